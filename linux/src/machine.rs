//! The kernel under the hypervisor: `host::Host`.

use crate::{
    cpuid, event::KernelEventFd, fpu::KernelFpu, load, lock, log, page, page::KernelPage, page::Page, platform::Kernel,
    shim, thread::Thread, trace,
};
use arch::{HostPa, Hva, Segment};
use core::ptr::NonNull;
use host::{
    Command, CpuConfig, CpuFeatures, Errno, Host, LastExit, MapLevel, PauseParameters, Pfn, PollParameters, Stop,
    TableCells, TablePage, TimePoint, Trace, TraceSet, Work,
};
use switch::{Platform, Svm};

/// The Linux kernel.
#[derive(Clone, Copy, Debug, Default)]
pub struct Linux;

impl Host for Linux {
    type Patience = lock::UntilKilled;
    type RawMutex<const RANK: u8> = lock::Known<lock::SleepMutex, RANK>;
    type RawSpin<const RANK: u8> = lock::Known<lock::SpinLock, RANK>;
    type RawSpinIrq<const RANK: u8> = lock::Known<lock::IrqSpinLock, RANK>;
    type RawRwSpin<const RANK: u8> = lock::Known<lock::SpinRwLock, RANK>;
    type RawRwSem<const RANK: u8> = lock::Known<lock::SleepRwLock, RANK>;
    type Snapshot<T: Send + Sync> = lock::SrcuSnapshot<T>;
    type Cpu = Svm<Kernel>;
    type Thread = Thread;
    type UserPage = Page;
    type SharedPage = KernelPage;
    type Hrtimers = crate::hrtimer::KernelHrtimers;
    type EventFd = KernelEventFd;
    type Fpu = KernelFpu;
    type Words = page::KernelWords;

    fn new_cpu(&self, config: &CpuConfig) -> Result<Self::Cpu, Errno> {
        Svm::new(load::machine().ok_or(Errno::ENODEV)?, config)
    }

    fn new_thread(&self, sibling: Option<&Thread>) -> Result<Thread, Errno> {
        Thread::new(sibling)
    }

    fn new_fpu(&self) -> Result<KernelFpu, Errno> {
        KernelFpu::new()
    }

    fn new_hrtimers(&self) -> Result<Self::Hrtimers, Errno> {
        crate::hrtimer::KernelHrtimers::new()
    }
    fn new_words(&self, n: usize) -> Result<page::KernelWords, Errno> {
        page::KernelWords::new(n)
    }

    fn new_shared_page(&self) -> Result<KernelPage, Errno> {
        KernelPage::new()
    }

    fn alloc_table(&self) -> Result<TablePage, Errno> {
        match shim::hsave_table_alloc() {
            0 => Err(Errno::ENOMEM),
            pa => Ok(TablePage::from_host(HostPa(pa))),
        }
    }

    fn table(&self, pa: HostPa) -> Option<&TableCells> {
        let table = NonNull::new(shim::hsave_table(pa.0).cast::<TableCells>())?;
        // SAFETY: a live page-table page (the shim looks at its mark), which the caller does not use after freeing it.
        Some(unsafe { table.as_ref() })
    }

    fn free_table(&self, page: TablePage) {
        // SAFETY: a page-table page that nothing refers to any more (contract of the trait); the shim looks at its mark.
        unsafe { shim::hsave_table_free(page.pa().0) }
    }

    fn nested_levels(&self) -> u8 {
        shim::hsave_paging_levels()
    }

    fn user_page(&self, hva: Hva, write: bool) -> Result<Page, Stop> {
        Page::get(hva, write)
    }

    fn user_page_now(&self, hva: Hva, write: bool) -> Result<Option<Page>, Stop> {
        Page::get_now(hva, write)
    }

    #[inline]
    fn mapped_page(&self, hva: Hva) -> Option<(Pfn, MapLevel)> {
        let mut pa = 0;
        // SAFETY: any address may be asked for; `pa` is ours.
        match unsafe { shim::hsave_mapped_page(hva.0, &mut pa) } {
            0 => None,
            n => Some((Pfn::from_host(HostPa(pa)), level(n))),
        }
    }

    fn user_level(&self, hva: Hva) -> MapLevel {
        level(shim::hsave_user_level(hva.0))
    }

    #[inline]
    fn read_user(&self, from: Hva, buf: &mut [u8]) -> Result<(), Stop> {
        // SAFETY: the kernel checks the user's address; the buffer is ours.
        let left = unsafe { shim::hsave_copy_from_user(buf.as_mut_ptr(), from.0, buf.len()) };
        if left == 0 { Ok(()) } else { Err(Stop::Fault) }
    }

    #[inline]
    fn read_user_u64(&self, from: Hva) -> Result<u64, Stop> {
        let mut value = 0;
        // SAFETY: the kernel checks the user's address; `value` is ours.
        let failed = unsafe { shim::hsave_read_user_u64(from.0, &mut value) };
        if failed == 0 { Ok(value) } else { Err(Stop::Fault) }
    }

    #[inline]
    fn write_user(&self, to: Hva, buf: &[u8]) -> Result<(), Stop> {
        // SAFETY: as above.
        let left = unsafe { shim::hsave_copy_to_user(to.0, buf.as_ptr(), buf.len()) };
        if left == 0 { Ok(()) } else { Err(Stop::Fault) }
    }

    fn cmpxchg_user(&self, at: Hva, old: u64, new: u64, size: u8) -> Result<bool, Stop> {
        match shim::hsave_cmpxchg_user(at.0, old, new, size.into()) {
            0 => Ok(true),
            1 => Ok(false),
            _ => Err(Stop::Fault),
        }
    }

    #[inline]
    fn read_guest(&self, from: Hva, buf: &mut [u8]) -> Result<(), Stop> {
        // SAFETY: the kernel checks the user's address; the buffer is ours.
        let err = unsafe { shim::hsave_read_guest(buf.as_mut_ptr(), from.0, buf.len()) };
        if err == 0 { Ok(()) } else { Err(page::stop(err)) }
    }

    #[inline]
    fn read_guest_u64(&self, from: Hva) -> Result<u64, Stop> {
        let mut value = 0;
        // SAFETY: the kernel checks the user's address; `value` is ours.
        let err = unsafe { shim::hsave_read_guest_u64(from.0, &mut value) };
        if err == 0 { Ok(value) } else { Err(page::stop(err)) }
    }

    fn write_guest(&self, to: Hva, buf: &[u8]) -> Result<(), Stop> {
        // SAFETY: as above.
        let err = unsafe { shim::hsave_write_guest(to.0, buf.as_ptr(), buf.len()) };
        if err == 0 { Ok(()) } else { Err(page::stop(err)) }
    }

    fn cmpxchg_guest(&self, at: Hva, old: u64, new: u64, size: u8) -> Result<bool, Stop> {
        match shim::hsave_cmpxchg_guest(at.0, old, new, size.into()) {
            0 => Ok(true),
            1 => Ok(false),
            err => Err(page::stop(err)),
        }
    }

    fn wait_for_page(&self, hva: Hva, write: bool) {
        shim::hsave_wait_for_page(hva.0, write);
    }

    fn killed(&self) -> bool {
        shim::hsave_killed()
    }

    fn until_killed(&self) -> lock::UntilKilled {
        lock::UntilKilled
    }

    fn user_range_ok(&self, hva: Hva, len: u64) -> bool {
        shim::hsave_user_range_ok(hva.0, len)
    }

    fn now_ns(&self) -> u64 {
        shim::hsave_now_ns()
    }

    #[inline]
    fn tsc(&self) -> u64 {
        #[allow(unused_unsafe)] // Safe on newer compilers.
        // SAFETY: every 64-bit processor has it.
        unsafe {
            core::arch::x86_64::_rdtsc()
        }
    }

    fn time_point(&self) -> TimePoint {
        let mut t = TimePoint::default();
        // SAFETY: four numbers of ours.
        unsafe { shim::hsave_time_point(&mut t.tsc, &mut t.boot_ns, &mut t.real_ns, &mut t.tsc_lost) };
        t
    }

    #[inline]
    fn suspends(&self) -> u64 {
        shim::hsave_suspends()
    }

    fn tsc_khz(&self) -> u32 {
        shim::hsave_tsc_khz()
    }

    fn tsc_is_stable(&self) -> bool {
        shim::hsave_tsc_is_stable()
    }

    #[inline]
    fn run_delay_ns(&self) -> Option<u64> {
        shim::hsave_has_run_delay().then(|| shim::hsave_run_delay())
    }

    fn task_runtime_ns(&self) -> u64 {
        shim::hsave_task_runtime()
    }

    fn smt_possible(&self) -> bool {
        shim::hsave_smt_possible()
    }

    #[inline]
    fn do_work(&self) -> Work {
        if shim::hsave_do_work() == 0 { Work::None } else { Work::Signal }
    }

    fn cond_resched(&self) {
        shim::hsave_cond_resched();
    }

    fn poll_parameters(&self) -> PollParameters {
        let mut p = PollParameters::default();
        // SAFETY: four numbers of ours.
        unsafe { shim::hsave_poll_parameters(&mut p.max, &mut p.grow, &mut p.grow_start, &mut p.shrink) };
        p
    }

    fn pause_parameters(&self) -> PauseParameters {
        let [mut count, mut threshold, mut grow, mut shrink, mut max] = [0; 5];
        // SAFETY: five numbers of ours.
        unsafe { shim::hsave_pause_parameters(&mut count, &mut threshold, &mut grow, &mut shrink, &mut max) };
        // Each is a u16 of the shim's.
        let [count, threshold, grow, shrink, max] = [count, threshold, grow, shrink, max].map(|n| n as u16);
        PauseParameters { count, threshold, grow, shrink, max }
    }

    fn min_timer_period_ns(&self) -> u64 {
        u64::from(shim::hsave_min_timer_period_us()) * 1000
    }

    fn tsc_tolerance_ppm(&self) -> u32 {
        shim::hsave_tsc_tolerance_ppm()
    }

    fn may_poll(&self) -> bool {
        shim::hsave_may_poll()
    }

    fn linux_version(&self) -> u32 {
        shim::hsave_linux_version()
    }

    fn idle_exits(&self) -> u32 {
        shim::hsave_idle_exits()
    }

    fn eventfd(&self, fd: i32) -> Result<KernelEventFd, Errno> {
        KernelEventFd::get(fd)
    }

    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        cpuid::limited(leaf, subleaf)
    }

    fn online_cpus(&self) -> u32 {
        shim::hsave_online_cpus()
    }

    fn features(&self) -> CpuFeatures {
        load::machine().map_or_else(Default::default, |m| m.features())
    }

    fn host_xcr0(&self) -> u64 {
        cpuid::host_xcr0()
    }

    fn read_host_msr(&self, msr: u32) -> Option<u64> {
        Kernel::read_msr(msr)
    }

    fn ignores_msr(&self, index: u32, write: bool, value: u64) -> bool {
        shim::hsave_ignores_msr(index, write, value)
    }

    fn unhandled_wrmsr(&self, vcpu: u32, rip: u64, index: u32, value: u64) {
        shim::hsave_unhandled_wrmsr(vcpu, rip, index, value);
    }

    fn unexpected_exit(&self, vcpu: u32, rip: u64, code: u64) {
        shim::hsave_log_unexpected_exit(vcpu, rip, code);
    }

    fn dumps_invalid_vmcb(&self) -> bool {
        shim::hsave_dumps_invalid_vmcb()
    }

    fn dump_field(&self, name: &'static str, value: u64) {
        log::field(name, value);
    }

    fn dump_segment(&self, name: &'static str, s: &Segment) {
        log::segment(name, s);
    }

    fn command(&self, what: Command) {
        match what {
            // SAFETY: the processor has these bits (contract of `Command`).
            Command::Prediction(bits) => unsafe { shim::hsave_prediction_command(bits) },
            Command::FlushL1d => shim::hsave_flush_l1d(),
        }
    }

    fn ended(&self, what: LastExit) {
        let LastExit { vcpu, reason, detail, code, info1, info2, int_info, rip } = what;
        shim::hsave_ended(vcpu, reason, detail, code, info1, info2, int_info, rip);
    }

    fn traced(&self) -> TraceSet {
        TraceSet(shim::hsave_traced())
    }

    #[inline]
    fn trace(&self, what: Trace) {
        trace::tell(what);
    }

    #[inline]
    fn listens(&self) -> bool {
        trace::listens()
    }

    fn warn(&self, what: &'static str, value: u64) {
        log::warn(what, value);
    }
}

/// linux/shim/kvm/user.c
#[inline]
fn level(n: i32) -> MapLevel {
    match n {
        3 => MapLevel::Page1G,
        2 => MapLevel::Page2M,
        _ => MapLevel::Page4K,
    }
}
