//! A VM: what its vCPUs share.
//!
//! Long because: creation and shape of the VM, which know all of its parts.

use crate::apics::Apics;
use crate::chips::{Chips, Resampler, RtcMark};
use crate::clock::{VcpuClock, VmClock};
use crate::coalesced::Coalesced;
use crate::code::Decoded;
use crate::debug::DebugState;
use crate::fast::Fast;
use crate::fpu::FpuUse;
use crate::halt::HaltPoll;
use crate::hyperv::Partition;
use crate::inject::Injection;
use crate::ioeventfd::{IoEventSpec, IoEvents};
use crate::mmio::MmioFragments;
use crate::msr::{MsrFilter, MsrState, VmMsrs};
use crate::pv::Pv;
use crate::run::Next;
use crate::smm::Smm;
use crate::spin::Spin;
use crate::state::MpState;
use crate::stats::{VcpuStats, VmStats};
use crate::user::Pending;
use crate::vcpu::{Core, Ctx, PendingEvents, Vcpu};
use crate::{
    cpuid::{Caps, GuestCpuid},
    irqchip,
};
use ::irqchip::{Address, AddressCell, ChipMode, Lapic, Pir, RoutingTable};
use alloc::{boxed::Box, vec::Vec};
use arch::GuestIndexed;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering::*};
use host::{CpuConfig, Errno, Host, OneBox, Request, Snapshot, VcpuThread, rank, try_box};
use lock_api::{Mutex, RwLock};
use mmu::{DirtyRing, MemoryCache, Mmu, Space};
use once_cell::race::OnceBox;

/// Most vCPUs of a VM (KVM_CAP_MAX_VCPUS, as stock Debian kernels).
pub const MAX_VCPUS: usize = 4096;
/// vCPU ids are below this (KVM_CAP_MAX_VCPU_ID).
pub const MAX_VCPU_ID: u32 = 4 * MAX_VCPUS as u32;
/// Where a vCPU file's mapping shows the dirty ring, in pages (KVM_DIRTY_LOG_PAGE_OFFSET).
pub const DIRTY_LOG_PAGE_OFFSET: usize = 64;
/// The table of vCPUs has two levels of this size, so that a small VM needs two small pieces.
const FANOUT: usize = 64;

pub(crate) type Leaf<H> = [OnceBox<[Vcpu<H>; 1]>; FANOUT];

/// Switches that KVM_ENABLE_CAP and the VM ioctls set, read at any time without a lock.
#[derive(Default)]
pub struct Config {
    /// KVM_X2APIC_API_USE_32BIT_IDS.
    pub x2apic_format: AtomicBool,
    /// KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK.
    pub broadcast_quirk_disabled: AtomicBool,
    /// KVM_CAP_X86_USER_SPACE_MSR: KVM_MSR_EXIT_REASON_* that go to user space.
    pub user_space_msr: AtomicU32,
    /// KVM_CAP_EXCEPTION_PAYLOAD.
    pub exception_payload: AtomicBool,
    /// KVM_CAP_X86_TRIPLE_FAULT_EVENT.
    pub triple_fault_event: AtomicBool,
    /// KVM_CAP_X86_DISABLE_EXITS: KVM_X86_DISABLE_EXITS_*. Those of a vCPU are settled when it is made.
    pub disabled_exits: AtomicU32,
    /// KVM_CAP_DISABLE_QUIRKS2: the [`quirks`](crate::quirks) that are off.
    pub quirks_off: AtomicU64,
    /// KVM_CAP_HALT_POLL: most nanoseconds, and bit 63 that it was set; 0: the module's parameter.
    pub halt_poll: AtomicU64,
    /// KVM_CAP_MAX_VCPU_ID; 0: not limited.
    pub max_vcpu_id: AtomicU32,
    /// KVM_SET_BOOT_CPU_ID.
    pub bsp_id: AtomicU32,
    /// KVM_CAP_EXIT_HYPERCALL: a bit per hypercall number.
    pub exit_hypercall: AtomicU64,
    /// KVM_CAP_EXIT_ON_EMULATION_FAILURE.
    pub exit_on_emulation_error: AtomicBool,
    /// KVM_CAP_X86_APIC_BUS_CYCLES_NS: period of the local APICs' timer input in ns; 0: the default.
    pub apic_bus_cycle_ns: AtomicU32,
    /// KVM_CAP_DIRTY_LOG_RING: bytes of each vCPU's dirty ring; 0: there are none.
    pub dirty_ring_size: AtomicU32,
    /// KVM_SET_TSC_KHZ of the VM: frequency of new vCPUs in kHz; 0: the host's.
    pub tsc_khz: AtomicU32,
}

::state::state! {
    place Config {
        x2apic_format, broadcast_quirk_disabled, user_space_msr, exception_payload, triple_fault_event, disabled_exits, quirks_off, dirty_ring_size,
        halt_poll, max_vcpu_id, bsp_id, exit_hypercall, exit_on_emulation_error, apic_bus_cycle_ns, tsc_khz,
    }
}

/// What the machine has for a vCPU, whatever engine the vCPU is in.
pub(crate) struct OfTheMachine<H: Host> {
    pub(crate) thread: H::Thread,
    pub(crate) pages: [H::SharedPage; 2],
    pub(crate) fpu: H::Fpu,
    pub(crate) dirty_ring: Option<DirtyRing<H>>,
}

/// A virtual machine.
pub struct Vm<H: Host> {
    /// Timers of the devices. The first to go: an expiry uses the rest.
    pub hrtimers: H::Hrtimers,
    /// The machine under it.
    pub host: H,
    /// Guest memory.
    pub mmu: Mmu<H>,
    /// Switches.
    pub config: Config,
    /// The paravirtual clock.
    pub clock: Mutex<H::RawSpin<{ rank::CLOCK }>, VmClock>,
    /// MSR state that the vCPUs share.
    pub msrs: VmMsrs,
    /// Counters.
    pub stats: VmStats,
    /// Which MSRs the guest may touch; None: no filter.
    pub(crate) msr_filter: RwLock<H::RawRwSem<{ rank::TABLES }>, Option<MsrFilter>>,
    pub(crate) msr_filter_used: AtomicBool,
    /// GSI routing; None: no GSI leads anywhere. Eventfd wake-ups read it with interrupts off.
    pub(crate) routing: H::Snapshot<RoutingTable>,
    pub(crate) ioevents: RwLock<H::RawRwSem<{ rank::TABLES }>, IoEvents<H>>,
    pub(crate) ioevents_used: AtomicBool,
    /// There is something in the kernel that takes writes of the guest: controllers, ioeventfds or coalesced zones.
    pub(crate) has_devices: AtomicBool,
    /// Where the interrupt controllers are: 0 nowhere, 1 split, 2 all in the kernel.
    pub(crate) chip: AtomicU8,
    pub(crate) reserved_pins: AtomicU32,
    /// The interrupt controllers beside the local APICs.
    pub(crate) chips: OnceBox<[Chips<H>; 1]>,
    /// Eventfds that are told of the end of interrupts.
    pub(crate) resamplers: RwLock<H::RawRwSem<{ rank::TABLES }>, Vec<Resampler<H::EventFd>>>,
    pub(crate) resamplers_used: AtomicBool,
    /// See [`Vm::kill`].
    pub(crate) dead: AtomicBool,
    /// How many vCPUs have the 8259s' interrupts come as NMI. While there is none, a tick of the PIT, which comes in a hard
    /// interrupt, need not look at the vCPUs.
    pub(crate) vapics_in_nmi_mode: AtomicUsize,
    /// The first vCPU that takes the 8259s' interrupts by its LINT0, plus 1; 0: none does. Whoever raises one may not look at
    /// all of them.
    pub(crate) extint: AtomicUsize,
    /// See [`Vm::set_noncoherent_dma`].
    pub(crate) noncoherent_dma: AtomicBool,
    /// Coalesced MMIO and PIO.
    pub coalesced: Coalesced<H>,
    /// What the vCPUs of a Hyper-V guest share.
    pub(crate) partition: Partition<H>,
    /// What guests can be offered: vCPUs need not ask the processor again.
    pub(crate) caps: Caps,
    /// Serialises what changes the VM's shape (KVM's `kvm->lock`).
    pub(crate) shape: Mutex<H::RawMutex<{ rank::SHAPE }>, ()>,
    pub(crate) vcpus: GuestIndexed<[OnceBox<Leaf<H>>; FANOUT]>,
    pub(crate) count: AtomicUsize,
    pub(crate) apics: Apics<H>,
}

impl<H: Host> Vm<H> {
    /// A VM without memory and vCPUs. Errors: ENOMEM.
    pub fn new(host: H) -> Result<OneBox<Self>, Errno> {
        let mmu = Mmu::new(host.clone())?;
        let coalesced = Coalesced::new(host.new_shared_page()?);
        let hrtimers = host.new_hrtimers()?;
        Self::with(host, mmu, coalesced, hrtimers)
    }

    /// The same with this memory, this ring and these timers. Errors: ENOMEM.
    pub(crate) fn with(
        host: H,
        mmu: Mmu<H>,
        coalesced: Coalesced<H>,
        hrtimers: H::Hrtimers,
    ) -> Result<OneBox<Self>, Errno> {
        let clock = VmClock::new(host.time_point(), host.tsc_khz(), host.tsc_is_stable());
        let caps = Caps::new(&host);
        try_box(|| Self {
            mmu,
            clock: Mutex::new(clock),
            msrs: VmMsrs::default(),
            stats: VmStats::default(),
            config: Config::default(),
            msr_filter: RwLock::new(None),
            msr_filter_used: AtomicBool::new(false),
            routing: Snapshot::none(),
            ioevents: RwLock::new(IoEvents::default()),
            ioevents_used: AtomicBool::new(false),
            has_devices: AtomicBool::new(false),
            chip: AtomicU8::new(0),
            reserved_pins: AtomicU32::new(0),
            chips: OnceBox::new(),
            resamplers: RwLock::new(Vec::new()),
            resamplers_used: AtomicBool::new(false),
            noncoherent_dma: AtomicBool::new(false),
            dead: AtomicBool::new(false),
            vapics_in_nmi_mode: AtomicUsize::new(0),
            extint: AtomicUsize::new(0),
            coalesced,
            partition: Partition::new(),
            hrtimers,
            caps,
            shape: Mutex::new(()),
            vcpus: GuestIndexed::new([const { OnceBox::new() }; FANOUT]),
            count: AtomicUsize::new(0),
            apics: Apics::new(),
            host,
        })
    }

    /// KVM_CREATE_VCPU. Ok: the vCPU's index. Errors: EINVAL (id or number of vCPUs above the limit), EEXIST, ENOMEM.
    pub fn create_vcpu(&self, id: u32) -> Result<usize, Errno> {
        let limit = match self.config.max_vcpu_id.load(Relaxed) {
            0 => MAX_VCPU_ID,
            n => n,
        };
        if id >= limit {
            return Err(Errno::EINVAL);
        }
        let _shape = self.shape.lock();
        if self.vcpu_by_id(id).is_some() {
            return Err(Errno::EEXIST);
        }
        let index = self.count.load(Relaxed);
        if index >= MAX_VCPUS {
            return Err(Errno::EINVAL);
        }
        let slot = self.slot(index)?;
        self.apics.reserve(id)?;
        let host = &self.host;
        let pages = [host.new_shared_page()?, host.new_shared_page()?];
        let thread = host.new_thread(self.vcpu(0).map(|v| &v.thread))?;
        let dirty_ring = match self.config.dirty_ring_size.load(Relaxed) {
            0 => None,
            bytes => Some(DirtyRing::new(host, index as u32, bytes)?),
        };
        let mut vcpu = self.new_vcpu(id, index, OfTheMachine { thread, pages, fpu: host.new_fpu()?, dirty_ring })?;
        // Nothing fails from here on: who is counted among those in step is there.
        let core = vcpu.core.get_mut();
        let changed = self.clock.lock().vcpu_created(&mut core.clock, self.host.time_point());
        core.load_tsc();
        vcpu.tsc = [core.clock.tsc_offset(), core.clock.tsc_ratio()].map(AtomicU64::new);
        slot.set(vcpu.into_inner()).map_err(|_| Errno::EEXIST)?;
        self.count.store(index + 1, Release);
        self.vcpu_appeared(id, index);
        if changed {
            self.clock_changed();
        }
        Ok(index)
    }

    pub(crate) fn slot(&self, index: usize) -> Result<&OnceBox<[Vcpu<H>; 1]>, Errno> {
        let leaf = self.vcpus.get_nospec(index / FANOUT).ok_or(Errno::EINVAL)?;
        let leaf = leaf.get_or_try_init(|| -> Result<Box<Leaf<H>>, Errno> {
            let mut v = alloc::vec::Vec::new();
            v.try_reserve_exact(FANOUT).map_err(|_| Errno::ENOMEM)?;
            v.resize_with(FANOUT, OnceBox::new);
            <Box<Leaf<H>>>::try_from(v.into_boxed_slice()).map_err(|_| Errno::ENOMEM)
        })?;
        leaf.get(index % FANOUT).ok_or(Errno::EINVAL)
    }

    pub(crate) fn new_vcpu(
        &self,
        id: u32,
        index: usize,
        OfTheMachine { thread, pages, fpu, dirty_ring }: OfTheMachine<H>,
    ) -> Result<OneBox<Vcpu<H>>, Errno> {
        let host = &self.host;
        let bsp = self.is_bsp(id);
        let pause_threshold = host.pause_parameters().threshold;
        let roots = Space::ALL.map(|space| self.mmu.root(space));
        let [root, _] = roots;
        let cpu = host.new_cpu(&CpuConfig { root, pause_threshold })?;
        let mut apic = irqchip::Config::new(id, bsp);
        apic.lint0_reenabled = self.config.has_quirk(crate::quirks::LINT0_REENABLED);
        match self.config.apic_bus_cycle_ns.load(Relaxed) {
            0 => {}
            ns => apic.bus_cycle_ns = ns,
        }
        apic.min_period_ns = host.min_timer_period_ns();
        let lapic = (self.chip_mode() != ChipMode::None).then(|| Lapic::new(apic));
        let address = AddressCell::new(lapic.as_ref().map_or(Address::NONE, Lapic::address));
        let waits = !bsp && lapic.is_some();
        let mut clock = VcpuClock::new(host.tsc_khz());
        clock.set_tolerance(host.tsc_tolerance_ppm());
        // One that the processor cannot give is what the vCPU says it has all the same, as on stock.
        let _ = clock.set_tsc_khz(self.config.tsc_khz.load(Relaxed), host.tsc_khz(), host.features().tsc_scaling);
        let without_lapic = lapic.is_none();
        let fast = Fast::new(lapic)?;
        let cpuid = try_box(|| GuestCpuid::new(&self.caps))?;
        let mut msr = try_box(|| MsrState::new(host, &self.caps))?;
        msr.vcpu_id = id;
        let mmio_fragments = try_box(MmioFragments::default)?;
        let mut core = try_box(|| Core {
            cpu,
            fpu,
            fpu_use: FpuUse::new(),
            fast,
            features: host.features(),
            cpuid,
            msr,
            clock,
            pv: Pv::default(),
            hyperv: None,
            inject: Injection::default(),
            smm: Smm::new(roots),
            mmio_fragments,
            mp_state: if waits { MpState::Uninitialized } else { MpState::Runnable },
            sipi_vector: 0,
            pauses: 0,
            fewest_pauses: 0,
            poll: HaltPoll::default(),
            pending: Pending::None,
            tables: MemoryCache::new(host),
            apic_base: 0xfee0_0800 | if bsp { irqchip::APIC_BASE_BSP } else { 0 },
            cr8: 0,
            vtpr: 0,
            suspends: host.suspends(),
            has_run: false,
            decoded: Decoded::default(),
            guest_cr0: 0,
            guest_cr4: 0,
            debug: DebugState::default(),
            exit_words: [0; 8],
            pio: crate::exits::Pio::default(),
            cr0_exits: false,
            cr4_read_exits: true,
            cr8_exits: without_lapic,
            host_stop: None,
            awaited: None,
            device_exit: Next::Resume,
            disabled_exits: 0,
            trace: Default::default(),
            watched: false,
            resumes: None,
        })?;
        core.set_idle_exits(self.config.disabled_exits.load(Relaxed), host.pause_parameters());
        core.load_exception_intercepts();
        core.reset_registers(false);
        core.hide_instructions();
        core.apply_msr_policy(self.msr_filter.read().as_ref());
        core.look_who_watches();
        let lint0 = AtomicU8::new(core.fast.lapic.as_ref().map_or(0, |l| l.lint0() as u8));
        try_box(|| Vcpu {
            id,
            index,
            thread,
            pir: Pir::new(),
            address,
            pending_events: PendingEvents::default(),
            stats: VcpuStats::default(),
            tsc: [const { AtomicU64::new(0) }; 2],
            spin: Spin::default(),
            lint0,
            rtc: RtcMark::default(),
            hyperv: OnceBox::new(),
            dirty_ring,
            pages,
            core: Mutex::new(core),
        })
    }

    /// The vCPU that was created as number `index`.
    #[inline]
    pub fn vcpu(&self, index: usize) -> Option<&Vcpu<H>> {
        let [v] = self.vcpus.get_nospec(index / FANOUT)?.get()?.get(index % FANOUT)?.get()?;
        Some(v)
    }

    /// All vCPUs, in order of creation.
    pub fn vcpus(&self) -> impl Iterator<Item = &Vcpu<H>> + Clone {
        (0..self.count.load(Acquire)).map_while(|n| self.vcpu(n))
    }

    /// Runs `f` with the vCPU's own state locked. May sleep until another ioctl on this vCPU returns. Errors: EINTR (the thread
    /// is to die, and another ioctl is under way).
    #[inline]
    pub fn with_vcpu<R>(&self, v: &Vcpu<H>, f: impl FnOnce(&mut Ctx<'_, H>) -> R) -> Result<R, Errno> {
        let mut core = v.core.try_lock_for(self.host.until_killed()).ok_or(Errno::EINTR)?;
        let mut ctx = Ctx { vm: self, me: v, core: &mut core };
        let suspends = self.host.suspends();
        if ctx.core.suspends != suspends {
            ctx.core.suspends = suspends;
            ctx.woke_up();
        }
        Ok(f(&mut ctx))
    }

    /// Is this the bootstrap processor at reset (KVM_SET_BOOT_CPU_ID)?
    pub fn is_bsp(&self, id: u32) -> bool {
        self.config.bsp_id.load(Relaxed) == id
    }

    /// Where the interrupt controllers are.
    pub fn chip_mode(&self) -> ChipMode {
        match self.chip.load(Acquire) {
            0 => ChipMode::None,
            1 => ChipMode::Split,
            _ => ChipMode::Kernel,
        }
    }

    /// Pins of the userspace IOAPIC (KVM_CAP_SPLIT_IRQCHIP).
    pub(crate) fn reserved_pins(&self) -> u32 {
        self.reserved_pins.load(Relaxed)
    }

    /// KVM_CAP_SPLIT_IRQCHIP. Errors: EINVAL (more than 4096 pins), EEXIST (there is an irqchip, or a vCPU).
    pub fn enable_split_irqchip(&self, pins: u64) -> Result<(), Errno> {
        if pins > irqchip::MAX_ROUTES as u64 {
            return Err(Errno::EINVAL);
        }
        let _shape = self.shape.lock();
        if self.chip_mode() != ChipMode::None || self.count.load(Relaxed) != 0 {
            return Err(Errno::EEXIST);
        }
        self.reserved_pins.store(pins as u32, Relaxed);
        self.chip.store(1, Release);
        Ok(())
    }

    /// Are there vCPUs already?
    pub fn has_vcpus(&self) -> bool {
        self.count.load(Acquire) != 0
    }

    /// KVM_IOEVENTFD. Errors: EBADF, EINVAL (no eventfd), EEXIST, ENOENT, ENOMEM.
    pub fn ioeventfd(&self, assign: bool, spec: IoEventSpec, fd: i32) -> Result<(), Errno> {
        let event = self.host.eventfd(fd)?;
        let _shape = self.shape.lock();
        if assign {
            self.ioevents.write().assign(spec, event)?;
            self.ioevents_used.store(true, Release);
            self.has_devices.store(true, Release);
        } else {
            let gone = self.ioevents.write().deassign(&spec, &event)?;
            drop(gone);
        }
        Ok(())
    }

    /// A port write that something in the kernel takes. False: it is user space's.
    #[inline]
    pub(crate) fn device_port_write(&self, port: u16, data: &[u8]) -> bool {
        self.has_devices.load(Relaxed) && self.find_port_device(port, data)
    }

    #[inline(never)]
    fn find_port_device(&self, port: u16, data: &[u8]) -> bool {
        self.chip_port_write(port, data)
            || self.ioevents_used.load(Relaxed) && self.ioevents.read().write(true, port.into(), data)
            || self.coalesced.write(true, port.into(), data)
    }

    /// A port read that something in the kernel answers.
    #[inline]
    pub(crate) fn device_port_read(&self, port: u16, data: &mut [u8]) -> bool {
        self.chip_port_read(port, data)
    }

    /// An MMIO write that something in the kernel takes.
    pub(crate) fn device_mmio_write(&self, gpa: u64, data: &[u8]) -> bool {
        self.chip_mmio_write(gpa, data)
            || self.ioevents_used.load(Relaxed) && self.ioevents.read().write(false, gpa, data)
            || self.coalesced.write(false, gpa, data)
    }

    /// An MMIO read that something in the kernel answers.
    pub(crate) fn device_mmio_read(&self, gpa: u64, data: &mut [u8]) -> bool {
        self.chip_mmio_read(gpa, data)
    }

    /// Page `index` of the mapping of a vCPU's file.
    pub fn vcpu_page<'a>(&'a self, v: &'a Vcpu<H>, index: usize) -> Option<&'a H::SharedPage> {
        // INDEX: which page user space maps is not secret, and nothing is read by what it is.
        v.pages.get(index).or((index == v.pages.len()).then_some(&self.coalesced.page)).or_else(|| {
            let n = index.checked_sub(DIRTY_LOG_PAGE_OFFSET)?;
            v.dirty_ring.as_ref()?.page(n)
        })
    }

    /// Rings every vCPU, and gets those out of the guest that are in it.
    pub(crate) fn ring_all(&self, what: Request) {
        for v in self.vcpus() {
            v.request(what);
        }
    }

    /// The VM is broken for good: every KVM_RUN ends with EIO, as does every other ioctl on its files from now on.
    pub fn kill(&self) {
        self.dead.store(true, Relaxed);
        for v in self.vcpus() {
            v.thread.requests().make_request(Request::VmDead);
            v.thread.wake();
        }
    }

    /// Errors: EIO (it was killed). Every ioctl on a file of the VM asks first.
    #[inline]
    pub fn check_alive(&self) -> Result<(), Errno> {
        if self.dead.load(Relaxed) { Err(Errno::EIO) } else { Ok(()) }
    }

    /// Makes every vCPU drop its nested translations, and returns when none of them can use an old one. **Memory safety
    /// hangs on it**: the host takes pages back as soon as this returns.
    pub fn flush_all(&self) {
        self.stats.remote_tlb_flush_requests.count_shared();
        if self.vcpus().any(|v| v.thread.requests().needs_ipi()) {
            self.stats.remote_tlb_flush.count_shared();
        }
        self.ring_all(Request::TlbFlush);
        for v in self.vcpus() {
            v.wait_for_exit(Request::TlbFlush);
        }
    }
}
