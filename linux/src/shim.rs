//! The C shim, as Rust sees it (linux/shim/kvm/*.c). Types of the kernel are opaque.
//!
//! This file is the source of both sides: `xtask/src/border.rs` makes a C header of it, with which the C compiler checks
//! the shim. It reads one function, constant or type at a time, in the form in which they stand here.

use core::ffi::c_void;
use switch::CpuData;

macro_rules! opaque {
    ($($(#[$doc:meta])* $name:ident = $c:literal)*) => {
        $(
            $(#[$doc])*
            #[repr(C)]
            pub struct $name {
                _opaque: [u8; 0],
            }
        )*
    };
}
opaque! {
    /// A vCPU's thread: wait place, timer.
    KThread = "struct hsave_thread"
    /// What a vCPU shares with those who bring pages in for it.
    KPageIns = "struct hsave_page_ins"
    /// The guest's FPU state.
    KFpu = "struct fpu_guest"
    /// An eventfd.
    KEventFd = "struct eventfd_ctx"
    /// An mmu notifier.
    KNotifier = "struct hsave_notifier"
    /// The timers of a VM's devices.
    KHrtimers = "struct hsave_hrtimers"
    /// An open file.
    KFile = "struct file"
    /// An eventfd that raises an interrupt.
    KIrqfd = "struct hsave_irqfd"
    /// What takes back the bindings of eventfds that are closed.
    KSweeper = "struct hsave_sweeper"
    /// A process's address space.
    KMm = "struct mm_struct"
}

/// How many timers a VM's devices have.
pub const HRTIMERS: usize = 2;
/// Of `hsave_user_page`: the guest may write to the page.
pub const PAGE_WRITABLE: i32 = 1;
/// Of `hsave_user_page`: nobody counts references to the page.
#[expect(dead_code, reason = "only the shim looks at it")]
pub const PAGE_UNCOUNTED: i32 = 2;

// SAFETY: the C compiler compares the signatures with the shim's; `safe` are functions that may be called with any
// arguments, in the contexts that their callers are called in.
#[rustfmt::skip]
unsafe extern "C" {
    // memory.c
    pub fn hsave_heap_alloc(size: usize, zeroed: bool) -> *mut u8;
    pub fn hsave_heap_free(p: *mut u8);
    pub fn hsave_pages_alloc(order: u32, pa: *mut u64) -> *mut u8;
    pub fn hsave_cpu_page_alloc(cpu: u32, pa: *mut u64) -> *mut u8;
    pub fn hsave_pages_free(va: *mut u8, order: u32);
    pub safe fn hsave_table_alloc() -> u64;
    pub safe fn hsave_table(pa: u64) -> *mut c_void;
    pub fn hsave_table_free(pa: u64);
    pub fn hsave_shared_alloc(pa: *mut u64) -> *mut u8;
    pub fn hsave_shared_get(pa: u64);
    pub fn hsave_shared_free(pa: u64);

    // pin.c
    pub fn hsave_user_page(hva: u64, write: bool, wait: bool, pa: *mut u64) -> i32;
    pub fn hsave_user_page_put(pa: u64, flags: i32);

    // user.c
    pub safe fn hsave_user_level(hva: u64) -> i32;
    pub fn hsave_mapped_page(hva: u64, pa: *mut u64) -> i32;
    pub safe fn hsave_paging_levels() -> u8;
    pub safe fn hsave_user_range_ok(hva: u64, len: u64) -> bool;
    pub fn hsave_copy_from_user(to: *mut u8, from: u64, n: usize) -> usize;
    pub fn hsave_read_user_u64(from: u64, value: *mut u64) -> i32;
    pub fn hsave_copy_to_user(to: u64, from: *const u8, n: usize) -> usize;
    pub safe fn hsave_cmpxchg_user(at: u64, old: u64, new: u64, size: u32) -> i32;
    pub fn hsave_read_guest(to: *mut u8, from: u64, n: usize) -> i32;
    pub fn hsave_read_guest_u64(from: u64, value: *mut u64) -> i32;
    pub fn hsave_write_guest(to: u64, from: *const u8, n: usize) -> i32;
    pub safe fn hsave_cmpxchg_guest(at: u64, old: u64, new: u64, size: u32) -> i32;
    pub safe fn hsave_wait_for_page(hva: u64, write: bool);
    pub safe fn hsave_killed() -> bool;

    // sync.c
    pub fn hsave_wait_word(word: *const u32, value: u32);
    pub fn hsave_wait_word_killable(word: *const u32, value: u32) -> i32;
    pub fn hsave_wake_word(word: *const u32);
    pub safe fn hsave_preempt_disable();
    pub fn hsave_preempt_enable();
    pub safe fn hsave_irq_save();
    pub fn hsave_irq_restore();
    pub safe fn hsave_cond_resched();
    pub safe fn hsave_do_work() -> i32;
    pub safe fn hsave_sigmask_set(mask: u64);
    pub safe fn hsave_sigmask_restore();

    // thread.c
    pub fn hsave_thread_new(owner: *const c_void) -> *mut KThread;
    pub fn hsave_thread_free(t: *mut KThread);
    pub fn hsave_thread_run(t: *mut KThread, running: bool);
    pub fn hsave_thread_kick(t: *mut KThread);
    pub fn hsave_thread_wake(t: *mut KThread);
    pub fn hsave_thread_yield_to(t: *mut KThread) -> i32;
    pub fn hsave_thread_abandon() -> *const c_void;
    pub fn hsave_thread_note(t: *mut KThread, at: u64);
    pub fn hsave_thread_preemptions(t: *mut KThread, reported: *mut u64, other: *mut u64);
    pub fn hsave_thread_wbinvd(t: *mut KThread);
    pub fn hsave_thread_preemptible(t: *mut KThread, yes: bool);
    pub safe fn hsave_has_run_delay() -> bool;
    pub safe fn hsave_run_delay() -> u64;
    pub safe fn hsave_task_runtime() -> u64;
    pub safe fn hsave_smt_possible() -> bool;
    pub fn hsave_thread_block_begin(t: *mut KThread);
    pub safe fn hsave_thread_block_prepare() -> bool;
    pub safe fn hsave_thread_block_sleep();
    pub fn hsave_thread_block_end(t: *mut KThread);
    pub fn hsave_timer_arm(t: *mut KThread, ns: u64);
    pub fn hsave_timer_cancel(t: *mut KThread);
    pub fn hsave_timer_migrate(t: *mut KThread);

    // async_pf.c
    pub safe fn hsave_page_ins_start() -> i32;
    pub safe fn hsave_page_ins_stop();
    pub fn hsave_page_ins_new(owner: *const c_void, sibling: *const KPageIns) -> *mut KPageIns;
    pub fn hsave_page_ins_free(all: *mut KPageIns);
    pub fn hsave_page_ins_forget(all: *mut KPageIns);
    pub fn hsave_page_in_start(all: *mut KPageIns, hva: u64, write: bool, number: u8) -> i32;

    // hrtimer.c
    pub safe fn hsave_hrtimers_new() -> *mut KHrtimers;
    pub fn hsave_hrtimers_bind(all: *mut KHrtimers, vm: *const c_void);
    pub fn hsave_hrtimers_free(all: *mut KHrtimers);
    pub fn hsave_hrtimer_arm(all: *mut KHrtimers, which: u32, ns: u64);
    pub fn hsave_hrtimer_cancel(all: *mut KHrtimers, which: u32);
    pub fn hsave_hrtimer_migrate(all: *mut KHrtimers, which: u32);

    // params.c
    pub safe fn hsave_min_timer_period_us() -> u32;
    pub safe fn hsave_tsc_tolerance_ppm() -> u32;
    pub safe fn hsave_hidden_svm_features() -> u32;
    pub safe fn hsave_dumps_invalid_vmcb() -> bool;
    pub fn hsave_pause_parameters(count: *mut u32, thresh: *mut u32, grow: *mut u32, shrink: *mut u32, max: *mut u32);

    // halt.c
    pub fn hsave_poll_parameters(max: *mut u32, grow: *mut u32, grow_start: *mut u32, shrink: *mut u32);
    pub safe fn hsave_may_poll() -> bool;
    pub safe fn hsave_idle_exits() -> u32;

    // fpu.c
    pub safe fn hsave_fpu_new() -> *mut KFpu;
    pub fn hsave_fpu_free(fpu: *mut KFpu);
    pub fn hsave_fpu_swap(fpu: *mut KFpu, enter: bool);
    pub fn hsave_fpu_abandon();
    pub fn hsave_fpu_user_size(fpu: *const KFpu) -> usize;
    pub fn hsave_fpu_get(fpu: *mut KFpu, buf: *mut u8, size: u32, xfeatures: u64, pkru: u32);
    pub fn hsave_fpu_set(fpu: *mut KFpu, buf: *const u8, xcr0: u64, pkru: *mut u32) -> i32;
    pub fn hsave_fpu_vector_get(n: u32, out: *mut u8);
    pub fn hsave_fpu_vector_set(n: u32, value: *const u8, vex: bool);
    pub fn hsave_fpu_x87_control() -> u16;
    pub fn hsave_fpu_x87_status() -> u16;
    pub fn hsave_fpu_mmx_get(n: u32) -> u64;
    pub fn hsave_fpu_mmx_set(n: u32, value: u64);

    // clock.c
    pub safe fn hsave_clock_start() -> i32;
    pub safe fn hsave_clock_stop();
    pub safe fn hsave_tsc_is_stable() -> bool;
    pub safe fn hsave_tsc_khz() -> u32;
    pub safe fn hsave_now_ns() -> u64;
    pub fn hsave_time_point(tsc: *mut u64, boot_ns: *mut u64, real_ns: *mut u64, lost: *mut u64);
    pub safe fn hsave_suspends() -> u64;

    // event.c
    pub safe fn hsave_eventfd_get(fd: i32) -> *mut KEventFd;
    pub fn hsave_eventfd_put(ctx: *mut KEventFd);
    pub fn hsave_eventfd_signal(ctx: *mut KEventFd);

    // irqfd.c
    pub safe fn hsave_irqfd_new(fd: i32) -> *mut KIrqfd;
    pub fn hsave_irqfd_bind(i: *mut KIrqfd, sweeper: *mut KSweeper, vm: *const c_void, gsi: u32, resample: bool) -> i32;
    pub fn hsave_irqfd_free(i: *mut KIrqfd);
    pub fn hsave_irqfd_event(i: *const KIrqfd) -> *const KEventFd;
    pub fn hsave_irqfd_dead(i: *const KIrqfd) -> bool;
    pub fn hsave_sweeper_new(list: *const c_void) -> *mut KSweeper;
    pub fn hsave_sweeper_free(s: *mut KSweeper);

    // vfio.c
    pub safe fn hsave_vfio_get(fd: i32) -> *mut KFile;
    pub fn hsave_vfio_put(file: *mut KFile);
    pub fn hsave_vfio_coherent(file: *mut KFile) -> bool;
    pub fn hsave_vfio_set_vm(file: *mut KFile, vm: *const c_void);

    // notify.c
    pub fn hsave_notifier_new(vm: *const c_void) -> *mut KNotifier;
    pub fn hsave_notifier_free(n: *mut KNotifier);
    pub safe fn hsave_notifiers_settle();
    pub fn hsave_notifier_mm(n: *const KNotifier) -> *const KMm;

    // file.c
    pub safe fn hsave_device_register() -> i32;
    pub safe fn hsave_device_unregister();
    pub safe fn hsave_fd_reserve() -> i32;
    pub fn hsave_fd_release(fd: i32);
    pub safe fn hsave_vm_file() -> *mut KFile;
    pub safe fn hsave_vcpu_file(id: u32) -> *mut KFile;
    pub safe fn hsave_stats_file(vcpu: i64) -> *mut KFile;
    pub safe fn hsave_device_file() -> *mut KFile;
    pub fn hsave_file_drop(file: *mut KFile);
    pub fn hsave_file_install(fd: i32, file: *mut KFile, object: *mut c_void);
    pub safe fn hsave_pid() -> u32;

    // log.c
    pub fn hsave_log_info(text: *const u8, len: usize);
    pub fn hsave_log_err(text: *const u8, len: usize);
    pub fn hsave_log_warn(text: *const u8, len: usize, value: u64);
    pub safe fn hsave_log_unexpected_exit(vcpu: u32, rip: u64, code: u64);
    pub fn hsave_log_field(name: *const u8, len: usize, value: u64);
    pub fn hsave_log_segment(name: *const u8, len: usize, selector: u16, attrib: u16, limit: u32, base: u64);
    pub fn hsave_panicked(file: *const u8, len: usize, line: u32);
    pub fn hsave_bug();

    // perf.c
    pub fn hsave_guest_interrupted(ip: u64, user: bool);

    // srso.c
    pub safe fn hsave_vm_comes();
    pub fn hsave_vm_gone();

    // cpu.c, tsc_aux.c
    pub safe fn hsave_memory_is_encrypted() -> bool;
    pub safe fn hsave_snp_is_on() -> bool;
    pub safe fn hsave_next_cpu(previous: i32) -> u32;
    pub safe fn hsave_unhandled_wrmsr(vcpu: u32, rip: u64, index: u32, value: u64);
    pub safe fn hsave_ignores_msr(index: u32, write: bool, value: u64) -> bool;
    pub safe fn hsave_online_cpus() -> u32;
    pub safe fn hsave_cpu_exists(cpu: u32) -> bool;
    pub fn hsave_cpu_data_of(cpu: u32) -> *mut CpuData;
    pub safe fn hsave_cpus_start() -> i32;
    pub safe fn hsave_cpus_stop();
    pub safe fn hsave_svme_on() -> i32;
    pub fn hsave_svme_off();
    pub safe fn hsave_set_user_return_tsc_aux(value: u64);

    // platform.c
    pub safe fn hsave_may_enter() -> bool;
    pub fn hsave_irq_enable();
    pub fn hsave_guest_enter();
    pub fn hsave_guest_exit();
    pub fn hsave_guest_done(pending: bool);
    pub safe fn hsave_guest_barrier();
    pub safe fn hsave_interrupt_self();
    pub fn hsave_machine_check();
    pub safe fn hsave_known_features(reg: u32) -> u32;
    pub safe fn hsave_has_retbleed() -> bool;
    pub safe fn hsave_has_virt_ssbd() -> bool;
    pub safe fn hsave_task_ssbd() -> bool;
    pub safe fn hsave_virt_spec_ctrl(value: u64, enter: bool);
    pub fn hsave_prediction_command(bits: u64);
    pub safe fn hsave_flush_l1d();
    pub fn hsave_read_msr(index: u32, value: *mut u64) -> i32;
    pub safe fn hsave_cpuid_mask(leaf: u32, subleaf: u32, reg: u32) -> u32;
}
