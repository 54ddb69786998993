//! The kernel under the hypervisor.
//!
//! Long because: one trait.

use crate::trace::{LastExit, Trace, TraceSet};
use crate::{
    Cpu, CpuConfig, CpuFeatures, Errno, Lend, PageCells, PauseParameters, Pfn, PollParameters, Snapshot, TableCells,
    TablePage, VcpuThread,
};
use arch::{HostPa, Hva, Segment};
use core::sync::atomic::AtomicU64;

/// LINUX_VERSION_CODE of the first release of a series.
pub const fn linux_version(major: u32, minor: u32) -> u32 {
    major << 16 | minor << 8
}

/// Size of a host mapping, as the level of the page-table entry that maps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum MapLevel {
    /// 4 KiB.
    Page4K = 1,
    /// 2 MiB.
    Page2M = 2,
    /// 1 GiB.
    Page1G = 3,
}

/// A page of user memory with a reference held until drop, so that it can be looked at before it is mapped.
pub trait UserPage {
    /// The 4 KiB page. What it may be mapped for ends with the next invalidation, whatever the reference says.
    fn pfn(&self) -> Pfn;
    /// May the guest write it (the host maps it writable and copy-on-write is broken)?
    fn writable(&self) -> bool;
}

/// A zeroed page owned by the module that may be mapped into user space; freed when the last user lets go.
pub trait SharedPage {
    /// Its contents.
    fn cells(&self) -> &PageCells;
    /// Its physical address.
    fn pa(&self) -> HostPa;
    /// Aligned 64-bit word `n` (0 to 511), in one access if the implementation can; 0 beyond the page.
    #[inline]
    fn word(&self, n: usize) -> u64 {
        self.cells().u64(n.saturating_mul(8))
    }
    /// Writes word `n`; nothing happens beyond the page.
    #[inline]
    fn set_word(&self, n: usize, value: u64) {
        self.cells().set_u64(n.saturating_mul(8), value);
    }
}

/// The timers of a VM's devices. Expiry calls the VM's `hrtimer_expired` once, in any context, perhaps with interrupts off, and
/// `hrtimer_late` in a task if that says so; a call may still be on its way after [`cancel`](Self::cancel), none is after drop.
pub trait Hrtimers {
    /// Sets one to expire at `deadline` (nanoseconds of [`Host::now_ns`]) on this CPU, in place of what was set. Any context.
    fn arm(&self, which: Hrtimer, deadline: u64);
    /// Takes one back. Any context.
    fn cancel(&self, which: Hrtimer);
}

/// The devices that have one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Hrtimer {
    /// Channel 0 of the PIT.
    Pit = 0,
    /// Level interrupts of the IOAPIC that were put off.
    Ioapic = 1,
}

impl Hrtimer {
    /// All of them, by number.
    pub const ALL: [Self; 2] = [Self::Pit, Self::Ioapic];
}

/// A reference to an eventfd, dropped with the value.
pub trait EventFd {
    /// Adds one to the counter. Task context without a spin lock held: on PREEMPT_RT it may sleep.
    fn signal(&self);
    /// Do both name the same eventfd?
    fn same(&self, other: &Self) -> bool;
}

/// The guest's FPU, XSAVE and PKRU state of one vCPU, as the kernel's FPU code keeps it.
pub trait Fpu {
    /// vCPU thread: the guest's state goes into the registers, the task's is kept aside. Pairs with `put`.
    fn load(&mut self);
    /// vCPU thread: the reverse.
    fn put(&mut self);
    /// Size of the user format in bytes (at least 4096), as KVM_CAP_XSAVE2 reports it.
    fn user_size(&self) -> usize;
    /// Writes the state in user (XSAVE standard) format; `buf` is at most [`user_size`](Self::user_size) bytes. Components
    /// other than x87, SSE and those of `xcr0` are written as if they were in their initial state, XSTATE_BV included.
    fn get(&self, buf: &mut [u8], xcr0: u64, pkru: u32);
    /// Takes the state from user format. Errors: EINVAL (unsupported components, MXCSR or header bits).
    fn set(&mut self, buf: &[u8], supported_xcr0: u64, pkru: &mut u32) -> Result<(), Errno>;
    /// vCPU thread, between `load` and `put`: vector register `n` (0 to 15), bits 255:0; the upper half is zero where
    /// the processor has no AVX.
    fn vector(&self, n: u8) -> [u8; 32];
    /// The same for writing: with `vex` bits 255:0 and the rest cleared, else bits 127:0 and the rest kept.
    fn set_vector(&mut self, n: u8, value: &[u8; 32], vex: bool);
    /// vCPU thread, between `load` and `put`: the x87 control word.
    fn x87_control(&self) -> u16;
    /// The same: the x87 status word. Its ES (bit 7) says that an exception waits for the next instruction that looks.
    fn x87_status(&self) -> u16;
    /// The same: MMX register `n` (0 to 7), with what an MMX instruction does to the x87 state. No x87 exception waits.
    fn mmx(&mut self, n: u8) -> u64;
    /// The same for writing.
    fn set_mmx(&mut self, n: u8, value: u64);
    /// The processor's reset state (INIT leaves the FPU alone; reset does not).
    fn reset(&mut self) -> Result<(), Errno>;
}

/// Clocks, read together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimePoint {
    /// Host TSC.
    pub tsc: u64,
    /// Nanoseconds since boot including suspend (CLOCK_BOOTTIME).
    pub boot_ns: u64,
    /// Nanoseconds since the epoch (CLOCK_REALTIME).
    pub real_ns: u64,
    /// Cycles by which the host's TSC has been set back so far, altogether: in a sleep that the processor lost its state
    /// in it begins anew.
    pub tsc_lost: u64,
}

/// Why a host access to user memory did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Nothing is mapped there, or not with this permission: EFAULT.
    Fault,
    /// The page is poisoned: its memory has failed. For a guest's access, the current thread has been sent SIGBUS
    /// (BUS_MCEERR_AR) with the address, as for an access of its own.
    Poison,
    /// Device memory that the host may only read, and a guest's access that writes: a device's business, as where the slot is
    /// read-only.
    ReadOnly,
    /// A signal (EINTR) or out of memory (ENOMEM) while faulting in: leave with this errno.
    Errno(Errno),
}

/// What the kernel wants of the thread before it enters a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Nothing, or it has been done.
    None,
    /// A signal is pending: leave with EINTR and KVM_EXIT_INTR.
    Signal,
}

/// What a guest may have the processor do by writing an MSR that holds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// PRED_CMD with these bits, which the processor has: barriers for indirect branch prediction.
    Prediction(u64),
    /// FLUSH_CMD: writes back and flushes the L1 data cache.
    FlushL1d,
}

/// The machine under the hypervisor. A handle: cheap to clone, without size in the module.
pub trait Host: Clone + Send + Sync + 'static {
    /// How long to wait for a lock.
    type Patience: Copy;
    /// A lock whose holder may sleep. As with the others, `RANK` is its place in the order of the locks
    /// ([`rank`](crate::rank)).
    type RawMutex<const RANK: u8>: lock_api::RawMutexTimed<Duration = Self::Patience> + Send + Sync;
    /// A lock whose holder must not sleep. Taken in task context only.
    type RawSpin<const RANK: u8>: lock_api::RawMutex + Send + Sync;
    /// A lock that is also taken with interrupts off (eventfd wake-ups): disables interrupts while held.
    type RawSpinIrq<const RANK: u8>: lock_api::RawMutex + Send + Sync;
    /// Readers and writers must not sleep.
    type RawRwSpin<const RANK: u8>: lock_api::RawRwLock + Send + Sync;
    /// Readers and writers may sleep.
    type RawRwSem<const RANK: u8>: lock_api::RawRwLock + Send + Sync;
    /// What is read without a lock.
    type Snapshot<T: Send + Sync>: Snapshot<T>;
    /// The virtual processor.
    type Cpu: Cpu + Send;
    /// The thread of a vCPU. This and the rest that is [`Lend`] are handles: what they are to goes with the last.
    type Thread: VcpuThread + Send + Lend;
    /// User memory.
    type UserPage: UserPage;
    /// Pages shared with user space.
    type SharedPage: SharedPage + Send + Sync + Lend;
    /// Eventfds.
    type EventFd: EventFd + Send + Sync + Lend;
    /// Timers of a VM's devices.
    type Hrtimers: Hrtimers + Send + Sync + Lend;
    /// Guest FPU. One of two handles to the same is used.
    type Fpu: Fpu + Send + Lend;
    /// Words of memory, as many as they were made with.
    type Words: AsRef<[AtomicU64]> + Send + Sync + Lend;

    /// A vCPU's processor. Errors: ENOMEM.
    fn new_cpu(&self, config: &CpuConfig) -> Result<Self::Cpu, Errno>;
    /// A vCPU's thread object; `sibling` is that of another vCPU of the VM, if there is one. Errors: ENOMEM.
    fn new_thread(&self, sibling: Option<&Self::Thread>) -> Result<Self::Thread, Errno>;
    /// A vCPU's FPU in reset state. Errors: ENOMEM.
    fn new_fpu(&self) -> Result<Self::Fpu, Errno>;
    /// The timers of a VM's devices. Errors: ENOMEM.
    fn new_hrtimers(&self) -> Result<Self::Hrtimers, Errno>;
    /// So many words, all 0. Errors: ENOMEM.
    fn new_words(&self, n: usize) -> Result<Self::Words, Errno>;
    /// A zeroed page. Errors: ENOMEM.
    fn new_shared_page(&self) -> Result<Self::SharedPage, Errno>;

    /// A zeroed page-table page, accounted to the caller's memory cgroup. Errors: ENOMEM.
    fn alloc_table(&self) -> Result<TablePage, Errno>;
    /// The page-table page at `pa`, which came from [`alloc_table`](Self::alloc_table) and was not freed; None if
    /// `pa` is no page-table page.
    fn table(&self, pa: HostPa) -> Option<&TableCells>;
    /// Frees a page-table page, which no CPU can reach: the value says that it is in no tree.
    fn free_table(&self, page: TablePage);

    /// Levels of the nested page tables: as many as the host's own paging has while it runs guests, because VMRUN
    /// walks them in the host's mode (APM 15.25.3). 4, or 5 where the kernel uses CR4.LA57.
    fn nested_levels(&self) -> u8 {
        4
    }

    /// The user page at `hva` (page aligned) of the current task's memory, faulted in for the guest; may sleep, until
    /// a signal comes. With `write` the page is writable or the call fails. Without it, the result says whether it
    /// happens to be writable.
    ///
    /// **Memory safety hangs on the answer**, and on those of the next two: a guest gets what they say.
    fn user_page(&self, hva: Hva, write: bool) -> Result<Self::UserPage, Stop>;
    /// The same without waiting for whoever has to bring the page in (from swap, a file, or user space by userfaultfd):
    /// None if that is necessary. May sleep for locks and memory all the same.
    fn user_page_now(&self, hva: Hva, write: bool) -> Result<Option<Self::UserPage>, Stop> {
        self.user_page(hva, write).map(Some)
    }
    /// The 4 KiB page at `hva`, and the size of its mapping, if the current task's memory has it mapped in a way that
    /// leaves nothing to be done before a guest writes it: anonymous memory, writable, marked accessed and dirty. Any
    /// context, never sleeps, takes no reference: true until the next invalidation, which the caller holds off.
    #[inline]
    fn mapped_page(&self, _hva: Hva) -> Option<(Pfn, MapLevel)> {
        None
    }
    /// Size of the host's own mapping at `hva`; any context, never sleeps. The caller holds off invalidation.
    fn user_level(&self, hva: Hva) -> MapLevel;
    /// Copies from user memory; may sleep.
    fn read_user(&self, from: Hva, buf: &mut [u8]) -> Result<(), Stop>;
    /// One naturally aligned little-endian word of user memory, in a single access; may sleep. The walk of the guest's
    /// page tables is made of these.
    #[inline]
    fn read_user_u64(&self, from: Hva) -> Result<u64, Stop> {
        let mut bytes = [0; 8];
        self.read_user(from, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
    /// Copies to user memory; may sleep.
    fn write_user(&self, to: Hva, buf: &[u8]) -> Result<(), Stop>;
    /// Atomic compare-exchange of `size` (1, 2, 4 or 8) bytes, naturally aligned. Ok(true) if it was exchanged.
    fn cmpxchg_user(&self, at: Hva, old: u64, new: u64, size: u8) -> Result<bool, Stop>;
    /// [`read_user`](Self::read_user) on behalf of an instruction of the guest's. A signal ends the wait for memory that
    /// is not there yet (EINTR), and [`Stop::Poison`] is as for [`user_page`](Self::user_page).
    #[inline]
    fn read_guest(&self, from: Hva, buf: &mut [u8]) -> Result<(), Stop> {
        self.read_user(from, buf)
    }
    /// The same for one word, as [`read_user_u64`](Self::read_user_u64).
    #[inline]
    fn read_guest_u64(&self, from: Hva) -> Result<u64, Stop> {
        let mut bytes = [0; 8];
        self.read_guest(from, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
    /// The same for [`write_user`](Self::write_user).
    fn write_guest(&self, to: Hva, buf: &[u8]) -> Result<(), Stop> {
        self.write_user(to, buf)
    }
    /// The same for [`cmpxchg_user`](Self::cmpxchg_user).
    fn cmpxchg_guest(&self, at: Hva, old: u64, new: u64, size: u8) -> Result<bool, Stop> {
        self.cmpxchg_user(at, old, new, size)
    }
    /// Sleeps until the page at `hva` can be accessed (with `write`: be written, if the task may do that at all), or it is
    /// certain that it cannot. Unlike [`read_guest`](Self::read_guest) it goes on while a signal is pending, unless the
    /// thread is about to die; unlike [`read_user`](Self::read_user) it never spins then.
    fn wait_for_page(&self, _hva: Hva, _write: bool) {}
    /// Is the current thread about to die? Whatever waits for something else than it gives up.
    fn killed(&self) -> bool {
        false
    }
    /// As long as the current thread is not about to die: for a lock whose holder may take any time.
    fn until_killed(&self) -> Self::Patience;
    /// True if `[hva, hva + len)` lies in the user half of the address space.
    fn user_range_ok(&self, hva: Hva, len: u64) -> bool;

    /// Monotonic nanoseconds (CLOCK_MONOTONIC), the time base of [`VcpuThread::arm_timer`].
    fn now_ns(&self) -> u64;
    /// Host TSC.
    fn tsc(&self) -> u64;
    /// All clocks at one moment.
    fn time_point(&self) -> TimePoint;
    /// How often the machine has gone to sleep, or was about to. The TSC may have been set back and time have passed
    /// unseen when it changes. No vCPU is in KVM_RUN while the machine sleeps.
    fn suspends(&self) -> u64 {
        0
    }
    /// Host TSC frequency in kHz.
    fn tsc_khz(&self) -> u32;
    /// Is the TSC the host's clock source, in step on all CPUs (a stable paravirtual clock is possible)?
    fn tsc_is_stable(&self) -> bool;

    /// Nanoseconds that the current thread has waited for a CPU altogether; None if the kernel does not account it.
    fn run_delay_ns(&self) -> Option<u64>;

    /// Nanoseconds that the current thread has run altogether, in the kernel and in user space.
    fn task_runtime_ns(&self) -> u64;
    /// May two threads of one core run at the same time on this machine, now or later?
    fn smt_possible(&self) -> bool;
    /// Does what the kernel wants before guest entry: reschedules, task work. May sleep.
    fn do_work(&self) -> Work;
    /// Gives the CPU away if somebody waits for it. May sleep.
    fn cond_resched(&self);

    /// How long to look around before sleeping; may change at any time.
    fn poll_parameters(&self) -> PollParameters {
        PollParameters::default()
    }
    /// When a loop of PAUSE is an exit; the same as long as the module is there.
    fn pause_parameters(&self) -> PauseParameters {
        PauseParameters::default()
    }
    /// Shortest period of a guest's timer in nanoseconds (the module's parameter `min_timer_period_us`); may change at any
    /// time.
    fn min_timer_period_ns(&self) -> u64 {
        200_000
    }
    /// Within how many parts in a million of the host's a TSC frequency is taken for the host's (the module's parameter
    /// `tsc_tolerance_ppm`); may change at any time.
    fn tsc_tolerance_ppm(&self) -> u32 {
        250
    }
    /// Does nobody else want this CPU, and is no signal pending?
    fn may_poll(&self) -> bool {
        false
    }
    /// The kernel's version ([`linux_version`](crate::linux_version)): where KVM's interface has changed, it is that of the kernel's own.
    fn linux_version(&self) -> u32 {
        linux_version(6, 12)
    }
    /// Which instructions a guest may be let idle with by itself: KVM_X86_DISABLE_EXITS_*.
    fn idle_exits(&self) -> u32 {
        0
    }

    /// The eventfd behind a descriptor. Errors: EBADF, EINVAL (not an eventfd).
    fn eventfd(&self, fd: i32) -> Result<Self::EventFd, Errno>;

    /// What CPUID says on the host: `[eax, ebx, ecx, edx]`, limited to what the kernel itself lets be used.
    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4];
    /// Number of processors that are online.
    fn online_cpus(&self) -> u32;
    /// Features of the host that the world switch uses.
    fn features(&self) -> CpuFeatures;
    /// The XCR0 that the host runs with: the components that a guest may be offered; 0 where it does not use XSAVE.
    fn host_xcr0(&self) -> u64;
    /// Reads a host MSR that only describes the processor; None if it faults.
    fn read_host_msr(&self, msr: u32) -> Option<u64>;

    /// Is an access to an MSR that does not exist to read zero, or do nothing, instead of failing (parameter `ignore_msrs`)?
    /// Says so in the kernel log if `report_ignored_msrs` is set.
    fn ignores_msr(&self, _index: u32, _write: bool, _value: u64) -> bool {
        false
    }

    /// Says in the kernel log, rate limited and if `report_ignored_msrs` is set, that a guest wrote an MSR that does nothing
    /// here, or not with this value.
    fn unhandled_wrmsr(&self, _vcpu: u32, _rip: u64, _index: u32, _value: u64) {}
    /// Says in the kernel log, rate limited, that a guest left for a reason that nobody asked for.
    fn unexpected_exit(&self, _vcpu: u32, _rip: u64, _code: u64) {}
    /// Is a VMCB to be shown in the kernel log that VMRUN refused, or whose exit nobody asked for (the module's parameter
    /// `dump_invalid_vmcb`)? Says how to see it if not.
    fn dumps_invalid_vmcb(&self) -> bool {
        false
    }
    /// One field of it.
    fn dump_field(&self, _name: &'static str, _value: u64) {}
    /// One segment register of it.
    fn dump_segment(&self, _name: &'static str, _segment: &Segment) {}

    /// Which events of the run loop are wanted now. Whoever changes that makes [`Request::Trace`](crate::Request::Trace) of
    /// every vCPU afterwards.
    fn traced(&self) -> TraceSet {
        TraceSet::default()
    }
    /// Tells those who want to know. Any context.
    fn trace(&self, _what: Trace) {}
    /// Does anybody want events that are told where they happen? A load, since interrupts pay for it.
    fn listens(&self) -> bool {
        false
    }
    /// Tells such an event, which is only made while somebody wants one of them. Any context.
    #[inline]
    fn tell(&self, what: impl FnOnce() -> Trace)
    where
        Self: Sized,
    {
        if self.listens() {
            self.trace(what());
        }
    }
    /// A vCPU leaves KVM_RUN and has nowhere to go on: what an operator may want to know when it is gone. Task context.
    fn ended(&self, _what: LastExit) {}
    /// Carries out a guest's command on this CPU.
    fn command(&self, what: Command);

    /// One line in the kernel log, rate limited; `what` is a fixed text, `value` a number that goes with it.
    fn warn(&self, what: &'static str, value: u64);
}
