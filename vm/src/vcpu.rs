//! One vCPU: the part that other threads reach, and the core that only its own thread (under the vCPU's mutex) does.

use crate::chips::RtcMark;
use crate::code::Decoded;
use crate::exits::Pio;
use crate::fast::Fast;
use crate::halt::HaltPoll;
use crate::hyperv::{self, Hyperv};
use crate::pv::Pv;
use crate::smm::Smm;
use crate::spin::Spin;
use crate::trace::Tracing;
use crate::{
    Vm, clock::VcpuClock, cpuid::GuestCpuid, debug::DebugState, fpu::FpuUse, inject::Injection, mmio::MmioFragments,
    msr::MsrState, run::Next, state::MpState, stats::VcpuStats, user::Pending, user::RunRequest,
};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::*};
use host::{CpuFeatures, Host, OneBox, Request, VcpuThread, rank};
use irqchip::{AddressCell, Pir};
use lock_api::Mutex;
use mmu::{DirtyRing, MemoryCache, RingOf, Space, View};
use once_cell::race::OnceBox;

/// A vCPU. Lives in its VM until the VM ends, whatever happens to its file.
pub struct Vcpu<H: Host> {
    /// `vcpu_id` of KVM_CREATE_VCPU: the initial APIC ID.
    pub id: u32,
    /// Place in the VM's table, in order of creation.
    pub index: usize,
    /// Requests, sleep, timer.
    pub thread: H::Thread,
    /// Interrupts that others post.
    pub pir: Pir,
    /// What others may know of the local APIC.
    pub address: AddressCell,
    /// Other events that others post.
    pub pending_events: PendingEvents,
    /// Counters.
    pub stats: VcpuStats,
    /// Offset and ratio of its TSC, for who only looks.
    pub tsc: [AtomicU64; 2],
    /// Loops of PAUSE.
    pub(crate) spin: Spin,
    /// [`Lint0`](irqchip::Lint0) of the local APIC, as a number.
    pub lint0: AtomicU8,
    /// Has it ended the interrupt of the real-time clock?
    pub rtc: RtcMark,
    /// What others know of it as one of a Hyper-V guest's.
    pub(crate) hyperv: OnceBox<[hyperv::Shared; 1]>,
    /// The pages that it writes, where user space wants them so (KVM_CAP_DIRTY_LOG_RING).
    pub dirty_ring: Option<DirtyRing<H>>,
    /// `kvm_run` and the PIO data page: what mmap of the vCPU file shows, in this order, before the VM's coalesced ring.
    pub pages: [H::SharedPage; 2],
    /// Everything else. Held for the length of each vCPU ioctl.
    pub core: Mutex<H::RawMutex<{ rank::CORE }>, OneBox<Core<H>>>,
}

/// Events posted by other threads; each is followed by `Request::Event`. KVM has them in `arch.nmi_queued`,
/// `apic->pending_events` and `arch.pv.pv_unhalted`.
#[derive(Default)]
pub struct PendingEvents {
    /// NMIs that wait, at most 2 (one in service, one latched).
    pub nmi_queued: AtomicU32,
    /// INIT and SIPI.
    pub init_sipi: InitSipi,
    /// A paravirtual kick ends HLT.
    pub pv_unhalted: AtomicBool,
    /// An SMI; those that come before it is taken are one with it.
    pub smi: AtomicBool,
}

/// INIT and SIPI that arrived, in one word: a SIPI that follows an INIT is seen with it or after it.
#[derive(Default)]
pub struct InitSipi(AtomicU32);

impl InitSipi {
    const INIT: u32 = 1 << 9;
    const SIPI: u32 = 1 << 8;

    /// INIT arrived; a SIPI before it is void.
    pub fn init(&self) {
        self.0.store(Self::INIT, Release);
    }

    /// User space says whether an INIT is latched (KVM_SET_VCPU_EVENTS). A SIPI that waits is left alone.
    pub fn set_latched(&self, init: bool) {
        if init {
            self.0.fetch_or(Self::INIT, AcqRel);
        } else {
            self.0.fetch_and(!Self::INIT, AcqRel);
        }
    }

    /// Is an INIT latched, which has not had its effect?
    pub fn is_latched(&self) -> bool {
        self.0.load(Acquire) & Self::INIT != 0
    }

    /// SIPI arrived; the last vector counts.
    pub fn sipi(&self, vector: u8) {
        let new = |old: u32| Some(old & Self::INIT | Self::SIPI | u32::from(vector));
        // Never refused.
        let _ = self.0.fetch_update(AcqRel, Relaxed, new);
    }

    /// In system management mode INIT stays latched, and a SIPI is lost.
    pub fn hold(&self) {
        self.0.fetch_and(Self::INIT, AcqRel);
    }

    /// Takes both: whether INIT arrived, and the vector of a SIPI.
    pub fn take(&self) -> (bool, Option<u8>) {
        if self.0.load(Relaxed) == 0 {
            return (false, None);
        }
        let word = self.0.swap(0, AcqRel);
        (word & Self::INIT != 0, (word & Self::SIPI != 0).then_some(word as u8))
    }
}

::state::state! {
    inner InitSipi
    place PendingEvents { nmi_queued, init_sipi, smi, pv_unhalted }
}

/// A vCPU's own state.
pub struct Core<H: Host> {
    /// The processor: world switch and VMCB.
    pub cpu: H::Cpu,
    /// Guest FPU state.
    pub fpu: H::Fpu,
    /// Where that state is.
    pub fpu_use: FpuUse,
    /// What is worked on without leaving the guest; the local APIC is part of it.
    pub fast: Fast,
    /// KVM_SET_CPUID2 and what follows from it.
    pub cpuid: OneBox<GuestCpuid>,
    /// MSRs that are plain values.
    pub msr: OneBox<MsrState>,
    /// Paravirtual clock and TSC of this vCPU.
    pub clock: VcpuClock,
    /// What the guest shares of its memory.
    pub(crate) pv: Pv,
    /// What makes it one of a Hyper-V guest's, as soon as it is.
    pub(crate) hyperv: Option<OneBox<Hyperv>>,
    /// Exceptions, interrupts and NMIs on their way into the guest.
    pub inject: Injection,
    /// System management mode.
    pub smm: Smm,
    /// Instructions that were decoded before.
    pub(crate) decoded: Decoded,
    /// MMIO and PIO on their way to user space.
    pub mmio_fragments: OneBox<MmioFragments>,
    /// Run state.
    pub mp_state: MpState,
    /// Vector of the last SIPI (KVM_SET_VCPU_EVENTS sets it for KVM_MP_STATE_SIPI_RECEIVED).
    pub sipi_vector: u8,
    /// PAUSEs before an exit; 0: they do not exit.
    pub(crate) pauses: u16,
    /// What it shrinks to: a parameter of the module's, which does not change.
    pub(crate) fewest_pauses: u16,
    /// Halt polling.
    pub(crate) poll: HaltPoll,
    /// What the last exit to user space waits for.
    pub pending: Pending,
    /// Table pages put aside for nested faults.
    pub tables: MemoryCache<H>,
    /// IA32_APIC_BASE without in-kernel local APIC.
    pub apic_base: u64,
    /// CR8 without in-kernel local APIC.
    pub cr8: u64,
    /// The guest's view of CR0 and CR4 where they differ from what the hardware runs with (CR0.CD/NW, CR4.MCE).
    pub guest_cr0: u64,
    /// See `guest_cr0`.
    pub guest_cr4: u64,
    /// The guest's debug registers, and the debugger's.
    pub debug: DebugState,
    /// [`Host::suspends`] when the clocks were last looked at.
    pub(crate) suspends: u64,
    /// The guest has been entered: CPUID is fixed.
    pub has_run: bool,
    /// V_TPR as last seen in the VMCB, to notice the guest's own changes.
    pub vtpr: u8,
    /// The processor's features.
    pub features: CpuFeatures,
    /// The IN or OUT that user space serves.
    pub(crate) pio: Pio,
    /// CR0 is intercepted.
    pub(crate) cr0_exits: bool,
    /// Reads of CR4 are intercepted.
    pub(crate) cr4_read_exits: bool,
    /// Writes of CR8 are intercepted: since a virtual interrupt waits, or until the next one after it.
    pub(crate) cr8_exits: bool,
    /// Why the host could not do an access of the emulated instruction.
    pub(crate) host_stop: Option<Next>,
    /// Where that access was, or the entry of the guest's page tables that it needed.
    pub(crate) awaited: Option<arch::Gpa>,
    /// What an access to a device in the kernel wants of user space once the instruction is complete and its writes are out.
    pub(crate) device_exit: Next,
    /// Data of the last exit to user space that is too long for [`UserExit`](crate::UserExit), which every handler
    /// passes on by value.
    pub exit_words: [u64; 8],
    /// KVM_X86_DISABLE_EXITS_* of the VM when the vCPU was made.
    pub(crate) disabled_exits: u32,
    /// What of this vCPU is traced.
    pub(crate) trace: Tracing,
    /// Every exit has to come to the loop, and KVM_RUN has to look ([`Core::look_who_watches`]).
    pub(crate) watched: bool,
    /// What the KVM_RUN was asked for that goes on after a handover.
    pub(crate) resumes: Option<RunRequest>,
}

::state::state! {
    // The processor and the local APIC have sections of their own, and the FPU's state is the kernel's, which hands it on.
    place [H: Host] Core<H> {
        fpu_use, fast, cpuid, msr, clock, pv, inject, mmio_fragments, mp_state, sipi_vector, pauses, poll, pending, apic_base, cr8,
        guest_cr0, guest_cr4, debug, suspends, has_run, vtpr, pio, cr0_exits, cr4_read_exits, cr8_exits, host_stop, awaited,
        device_exit, exit_words, disabled_exits, resumes, smm, trace;
        // What a guest of Hyper-V's has is a section of its own, too.
        // Each engine finds out anew who wants to know what.
        not cpu, fpu, tables, features, hyperv, decoded, fewest_pauses, watched
    }
}

/// One vCPU while its own thread works on it: the VM, what others see, and its state.
pub struct Ctx<'a, H: Host> {
    /// The VM.
    pub vm: &'a Vm<H>,
    /// The part that other threads reach.
    pub me: &'a Vcpu<H>,
    /// Its state, locked.
    pub core: &'a mut Core<H>,
}

impl<'a, H: Host> Ctx<'a, H> {
    /// Guest memory as this vCPU sees it now.
    #[inline]
    pub(crate) fn memory_view(&self) -> View<'a, H> {
        self.vm.mmu.view(self.core.smm.space(), self.me.ring())
    }

    /// Guest memory outside of system management mode, whatever the vCPU is in: there is what it shares with the hypervisor.
    #[inline]
    pub(crate) fn shared_memory(&self) -> View<'a, H> {
        self.vm.mmu.view(Space::Normal, self.me.ring())
    }
}

impl<H: Host> Vcpu<H> {
    /// Makes the request, and gets the vCPU out of the guest if it is there.
    #[inline]
    pub(crate) fn request(&self, what: Request) {
        self.thread.requests().make_request(what);
        self.thread.kick();
    }

    /// After [`request`](Self::request): returns when the vCPU is out of the guest, or has been and has served the request.
    /// **Memory safety hangs on it**, for [`Vm::flush_all`](crate::Vm::flush_all).
    #[inline]
    pub(crate) fn wait_for_exit(&self, what: Request) {
        // The IPI is on its way; the vCPU leaves the guest within its latency.
        while self.thread.requests().needs_ipi() && self.thread.requests().test_request(what) {
            core::hint::spin_loop();
        }
    }

    /// The TSC offset as others see it.
    pub(crate) fn shown_tsc_offset(&self) -> u64 {
        let [offset, _] = &self.tsc;
        offset.load(Relaxed)
    }

    /// What others see of its TSC.
    pub(crate) fn show_tsc(&self, clock: &VcpuClock) {
        let [offset, ratio] = &self.tsc;
        offset.store(clock.tsc_offset(), Relaxed);
        ratio.store(clock.tsc_ratio(), Relaxed);
    }

    /// Where pages are recorded that this vCPU writes. For its own thread.
    #[inline]
    pub(crate) fn ring(&self) -> Option<RingOf<'_, H>> {
        self.dirty_ring.as_ref().map(|ring| RingOf { ring, requests: self.thread.requests() })
    }

    /// The page that holds the data of KVM_EXIT_IO.
    pub(crate) fn pio_page(&self) -> &H::SharedPage {
        let [_, pio] = &self.pages;
        pio
    }
}
