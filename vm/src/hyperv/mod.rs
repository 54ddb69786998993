//! A guest of Hyper-V's: the interface that Windows expects of whoever runs it, and that Linux uses as well (Hypervisor Top
//! Level Functional Specification; KVM API document, KVM_CAP_HYPERV*).
//!
//! A vCPU is one as soon as its CPUID says so. Until then, and until user space looks at one of the MSRs, there is nothing
//! of this but an empty place in the vCPU. What only a hypervisor in the guest would use is absent.
//!
//! - `cpuid`: what is offered; `msr`: the registers; `partition`: those that all vCPUs share
//! - `synic`: interrupt sources and messages; `stimer`: timers; `time`: the reference time and its page
//! - `hypercall`: what the guest calls; `targets` and `flush`: whom for, and the flushes and interrupts among vCPUs
//! - `connection`: eventfds that the guest signals; `syndbg`: the debugger's registers
//! - `handover`: the sections in which all of it goes to another engine

mod connection;
mod cpuid;
mod flush;
mod handover;
mod hypercall;
mod msr;
mod number;
mod partition;
mod stimer;
mod syndbg;
mod synic;
mod targets;
mod time;

use crate::Ctx;
use crate::msr::MsrError;
use crate::run::Next;
use crate::state::CpuidEntry;
use crate::user::{Pending, UserExit};
use cpuid::Features;
use host::{Errno, Host, Request, VcpuThread, try_box};
use irqchip::ChipMode;
use stimer::Timers;
use synic::{Synic, Vectors};

pub use cpuid::{LEAVES, supported_hv_cpuid};
pub(crate) use msr::{SAVED, is_msr};
pub use partition::Partition;
pub use synic::Shared;

/// KVM_EXIT_HYPERV_*.
const EXIT_SYNIC: u32 = 1;
const EXIT_HCALL: u32 = 2;
const EXIT_SYNDBG: u32 = 3;
/// KVM_SYSTEM_EVENT_*.
const EVENT_RESET: u32 = 2;
const EVENT_CRASH: u32 = 3;

/// One vCPU's own part.
#[derive(Default)]
pub struct Hyperv {
    /// What its CPUID says; None: it is no guest of Hyper-V's.
    features: Option<Features>,
    /// KVM_CAP_HYPERV_ENFORCE_CPUID: there is only what CPUID says.
    enforce: bool,
    /// HV_X64_MSR_VP_ASSIST_PAGE.
    assist_page: u64,
    /// Added to the thread's own time, in units of 100 ns.
    runtime_offset: u64,
    synic: Synic,
    pub(crate) vectors: Vectors,
    pub(crate) timers: Timers,
    leaving: Leaving,
}

::state::state! {
    place Hyperv {
        enforce, assist_page, runtime_offset, synic, vectors, timers, leaving;
        // Follow from CPUID.
        not features
    }
    value Leaving { crash, reset, exit }
}

/// What user space has to be told of at once.
enum Exit {
    /// KVM_EXIT_HYPERV_SYNIC with its words.
    Synic([u64; 4]),
    /// KVM_EXIT_HYPERV_SYNDBG with its words.
    Syndbg([u64; 6]),
    /// KVM_SYSTEM_EVENT_CRASH.
    Crash,
    /// KVM_SYSTEM_EVENT_RESET.
    Reset,
}

/// The same, noted.
#[derive(Default)]
struct Leaving {
    crash: bool,
    reset: bool,
    exit: Option<(u32, [u64; 8])>,
}

impl<H: Host> Ctx<'_, H> {
    /// Makes the vCPU's part where there is none. Errors: ENOMEM.
    fn need_hyperv(&mut self) -> Result<(), Errno> {
        if self.core.hyperv.is_none() {
            let shared = try_box(|| Shared::new(self.me.index))?;
            let mut own = try_box(Hyperv::default)?;
            // Whose ends an IOAPIC waits for is known, and must not be forgotten until somebody asks again.
            own.vectors.ioapic = self.core.fast.ioapic_eoi;
            // Nobody else makes one: the vCPU is locked.
            let _ = self.me.hyperv.set(shared.into_inner());
            self.core.hyperv = Some(own);
            // The local APIC's timer shares the host's from now on: it is set anew, so that it is known here.
            self.me.thread.requests().make_request(Request::Timer);
        }
        Ok(())
    }

    /// KVM_SET_CPUID2 is about to set these entries. Errors: ENOMEM.
    pub(crate) fn prepare_hyperv(&mut self, entries: &[CpuidEntry]) -> Result<(), Errno> {
        if cpuid::is_hyperv(entries) { self.need_hyperv() } else { Ok(()) }
    }

    /// KVM_SET_CPUID2 has set them.
    pub(crate) fn update_hyperv_features(&mut self) {
        if let Some(hv) = &mut self.core.hyperv {
            hv.features = Features::of(&self.core.cpuid);
        }
    }

    /// KVM_CAP_HYPERV_SYNIC, and with `keeps_pages` _SYNIC2. Errors: EINVAL (no local APIC in the kernel), ENOMEM.
    pub fn enable_synic(&mut self, keeps_pages: bool) -> Result<(), Errno> {
        if self.vm.chip_mode() == ChipMode::None {
            return Err(Errno::EINVAL);
        }
        self.switch_synic_on(keeps_pages)
    }

    /// KVM_CAP_HYPERV_ENFORCE_CPUID. Errors: ENOMEM.
    pub fn enforce_hv_cpuid(&mut self, on: bool) -> Result<(), Errno> {
        if on {
            self.need_hyperv()?;
        }
        if let Some(hv) = &mut self.core.hyperv {
            hv.enforce = on;
        }
        Ok(())
    }

    /// User space is told as soon as the instruction is complete.
    fn leave_for_hyperv(&mut self, exit: Exit) {
        let Some(hv) = &mut self.core.hyperv else { return };
        let words = |from: &[u64]| {
            let mut words = [0; 8];
            for (to, from) in words.iter_mut().zip(from) {
                *to = *from;
            }
            words
        };
        match exit {
            Exit::Synic(w) => hv.leaving.exit = Some((EXIT_SYNIC, words(&w))),
            Exit::Syndbg(w) => hv.leaving.exit = Some((EXIT_SYNDBG, words(&w))),
            Exit::Crash => hv.leaving.crash = true,
            Exit::Reset => hv.leaving.reset = true,
        }
        self.me.thread.requests().make_request(Request::Hyperv);
    }

    /// [`Request::Hyperv`]: what user space has to be told, one after the other.
    pub(crate) fn hyperv_exit(&mut self) -> Result<(), Next> {
        let Some(hv) = &mut self.core.hyperv else { return Ok(()) };
        let leaving = &mut hv.leaving;
        let exit = if core::mem::take(&mut leaving.crash) {
            UserExit::SystemEvent { kind: EVENT_CRASH }
        } else if core::mem::take(&mut leaving.reset) {
            UserExit::SystemEvent { kind: EVENT_RESET }
        } else if let Some((kind, words)) = leaving.exit.take() {
            self.core.exit_words = words;
            if kind == EXIT_SYNDBG {
                self.core.pending = Pending::Syndbg;
            }
            UserExit::Hyperv { kind }
        } else {
            return Ok(());
        };
        // There may be more.
        self.me.thread.requests().make_request(Request::Hyperv);
        Err(Next::User(exit))
    }

    /// May the guest (or with `host` user space) access this MSR, which is one of Hyper-V's? Then there is a place for it.
    fn check_hyperv_msr(&mut self, index: u32, host: bool) -> Result<(), MsrError> {
        if !host {
            let hv = self.core.hyperv.as_ref().ok_or(MsrError::Invalid)?;
            let features = hv.features.ok_or(MsrError::Invalid)?;
            if hv.enforce && !features.has_msr(index) {
                return Err(MsrError::Invalid);
            }
        }
        self.need_hyperv().map_err(|_| MsrError::Invalid)
    }
}
