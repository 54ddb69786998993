//! The base (linux/shim/kvm/*.c), as an engine sees it. Types of the kernel are opaque.
//!
//! This file is the source of both sides: `xtask/src/border.rs` makes a C header of it, with which the C compiler checks
//! the base, and what the base exports. It reads one function, variable, constant, struct or type at a time, in the form in which they
//! stand here. Long because: one border. What the base calls in an engine is behind `#[unsafe(no_mangle)]` in this crate; the header has a table of that.

use core::ffi::c_void;
use core::mem::{offset_of, size_of};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32};
use host::{PageIns, VcpuRequests};

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
    /// A VM, whatever engine it has.
    KVm = "struct hsave_vm"
    /// The file of a vCPU.
    KVcpu = "struct hsave_vcpu"
    /// A vCPU's thread: wait place, timer, page-ins. Begins with [`ThreadShared`].
    KThread = "struct hsave_thread"
    /// The guest's FPU state.
    KFpu = "struct fpu_guest"
    /// An eventfd, counted.
    KEventFd = "struct hsave_eventfd"
    /// The timers of a VM's devices.
    KHrtimers = "struct hsave_hrtimers"
    /// An open file.
    KFile = "struct file"
}

/// What a base and its engines, and engines among each other, have to agree about, in this version: this file, what is exported here,
/// `CpuData`, and of the crates above the numbers of requests, timers and what is lent, `Moved`, and what of nested tables is ours.
#[expect(dead_code, reason = "only the C side looks at it")]
pub const INTERFACE: u32 = 1;
/// `hsave_run`: the vCPU has left KVM_RUN for a handover, and user space is told nothing.
pub const RAN_HAND_OVER: i64 = 1;
/// How many words go from one engine to the next in the last step of a handover.
pub const MOVED: usize = 23;
/// Nested tables go from one engine to the next as they are: the bit by which an entry names a table of ours, and what one is that
/// maps nothing.
pub const NESTED_TABLE: u64 = 512;
pub const NESTED_ABSENT: u64 = 0;
/// The vCPU may be in its guest.
pub const IN_GUEST: u32 = 1;
/// How many timers a VM's devices have.
pub const HRTIMERS: usize = 2;
/// Of `hsave_user_page`: the guest may write to the page.
pub const PAGE_WRITABLE: i32 = 1;
/// Of `hsave_user_page`: nobody counts references to the page.
#[expect(dead_code, reason = "only the shim looks at it")]
pub const PAGE_UNCOUNTED: i32 = 2;

/// Locks whose place in the order (`host::rank`) is this or greater spin. So many there are, and the last is who reads a snapshot.
pub const FIRST_SPINNING: u32 = 7;
pub const RANK_SNAPSHOT: u32 = 14;

/// What `hsave_vm_value` is asked for: a statistic of the VM, one of its vCPUs, or something of one vCPU.
pub const VALUE_VM: u32 = 0;
pub const VALUE_VCPU: u32 = 1;
#[expect(dead_code, reason = "always zero, whoever asks")]
pub const VALUE_GUEST_MODE: u32 = 2;
pub const VALUE_TSC_OFFSET: u32 = 3;
#[expect(dead_code, reason = "always zero, whoever asks")]
pub const VALUE_TIMER_ADVANCE: u32 = 4;
pub const VALUE_TSC_RATIO: u32 = 5;
pub const VALUE_TSC_FRACTION: u32 = 6;

/// The numbers of `host::TraceEvent`.
pub const TRACE_ENTRY: u32 = 0;
pub const TRACE_EXIT: u32 = 1;
pub const TRACE_MMIO: u32 = 2;
pub const TRACE_PIO: u32 = 3;
pub const TRACE_MSR: u32 = 4;
pub const TRACE_CR: u32 = 5;
pub const TRACE_CPUID: u32 = 6;
pub const TRACE_INJ_VIRQ: u32 = 7;
pub const TRACE_INJ_EXCEPTION: u32 = 8;
pub const TRACE_PAGE_FAULT: u32 = 9;
pub const TRACE_APIC: u32 = 10;
pub const TRACE_APIC_IPI: u32 = 11;
pub const TRACE_APIC_ACCEPT_IRQ: u32 = 12;
pub const TRACE_EOI: u32 = 13;
pub const TRACE_PV_EOI: u32 = 14;
pub const TRACE_HYPERCALL: u32 = 15;
pub const TRACE_HALT_POLL_NS: u32 = 16;
pub const TRACE_VCPU_WAKEUP: u32 = 17;
pub const TRACE_PLE_WINDOW: u32 = 18;
pub const TRACE_USERSPACE_EXIT: u32 = 19;
pub const TRACE_HV_HYPERCALL: u32 = 20;

/// What base and engine both touch of a vCPU's thread.
#[repr(C)]
pub struct ThreadShared {
    /// What is asked of the vCPU, and where it is.
    pub requests: VcpuRequests,
    /// Page-ins that are over.
    pub page_ins: PageIns,
    /// It sleeps for want of anything to do.
    pub blocked: AtomicBool,
}

const _: () = {
    assert!(offset_of!(ThreadShared, requests) == 0 && size_of::<VcpuRequests>() == 16);
    assert!(offset_of!(ThreadShared, page_ins) == 16 && size_of::<PageIns>() == 8);
    assert!(offset_of!(ThreadShared, blocked) == 24);
    assert!(IN_GUEST == VcpuRequests::IN_GUEST);
    assert!(FIRST_SPINNING == host::rank::MMU as u32 && RANK_SNAPSHOT == host::rank::SNAPSHOT as u32);
};

/// A VM on its way from one engine to another (docs/decisions/0036). The base makes it, with all of it 0 but `why`, and frees what
/// is in it.
#[repr(C)]
pub struct Parcel {
    /// The sections, on the base's heap.
    pub state: *mut u8,
    pub state_len: usize,
    /// The numbers of what is lent, on the base's heap.
    pub lent: *mut u64,
    pub lent_len: usize,
    /// `MOVED` words.
    pub moved: *mut u64,
    /// Why the VM does not go, as text without an end, and how much room there is for it.
    pub why: *mut u8,
    pub why_len: usize,
}

const _: () = {
    assert!(offset_of!(Parcel, state) == 0 && offset_of!(Parcel, why_len) == 48);
    assert!(offset_of!(Parcel, state_len) == 8 && offset_of!(Parcel, lent) == 16 && offset_of!(Parcel, lent_len) == 24);
    assert!(offset_of!(Parcel, moved) == 32 && offset_of!(Parcel, why) == 40 && size_of::<Parcel>() == 56);
    assert!(MOVED == vm::handover::MOVED);
    assert!(NESTED_TABLE == vm::handover::TABLE && NESTED_ABSENT == vm::handover::ABSENT);
};

// SAFETY: the C compiler compares the signatures with the base's; `safe` are functions that may be called with any
// arguments, in the contexts that their callers are called in, and variables that are there as long as the base is.
#[rustfmt::skip]
unsafe extern "C" {
    // memory.c
    pub fn hsave_heap_alloc(size: usize, zeroed: bool) -> *mut u8;
    pub fn hsave_heap_free(p: *mut u8);
    pub fn hsave_pages_alloc(order: u32, pa: *mut u64) -> *mut u8;
    pub fn hsave_pages_free(va: *mut u8, order: u32);
    pub safe fn hsave_table_alloc() -> u64;
    pub safe fn hsave_table(pa: u64) -> *mut c_void;
    pub fn hsave_table_free(pa: u64);
    pub fn hsave_shared_alloc(pa: *mut u64) -> *mut u8;
    pub fn hsave_shared_get(pa: u64) -> *mut u8;
    pub fn hsave_shared_free(pa: u64);
    pub safe fn hsave_words_alloc(n: usize) -> *mut u64;
    pub fn hsave_words_get(words: *mut u64) -> usize;
    pub fn hsave_words_put(words: *mut u64);

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
    pub safe fn hsave_srcu_read_lock() -> i32;
    pub fn hsave_srcu_read_unlock(idx: i32);
    pub safe fn hsave_synchronize_srcu();
    pub safe fn hsave_irq_save();
    pub fn hsave_irq_restore();
    pub safe fn hsave_cond_resched();
    pub safe fn hsave_do_work() -> i32;

    // lockdep.c: they do nothing where the kernel has none.
    #[cfg_attr(not(feature = "lockdep"), expect(dead_code, reason = "nobody is told"))]
    pub safe fn hsave_lock_wanted(rank: u32);
    #[cfg_attr(not(feature = "lockdep"), expect(dead_code, reason = "nobody is told"))]
    pub fn hsave_lock_taken(rank: u32, read: bool, tried: bool);
    #[cfg_attr(not(feature = "lockdep"), expect(dead_code, reason = "nobody is told"))]
    pub fn hsave_lock_gone(rank: u32);

    // thread.c
    pub fn hsave_thread_new(sibling: *const KThread) -> *mut KThread;
    pub fn hsave_thread_get(t: *mut KThread);
    pub fn hsave_thread_put(t: *mut KThread);
    pub fn hsave_thread_run(t: *mut KThread, vm: *const c_void);
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
    pub fn hsave_timer_migrate(t: *mut KThread) -> bool;

    // async_pf.c
    pub fn hsave_page_ins_forget(t: *mut KThread);
    pub fn hsave_page_in_start(t: *mut KThread, hva: u64, write: bool, number: u8) -> i32;

    // hrtimer.c
    pub safe fn hsave_hrtimers_new() -> *mut KHrtimers;
    pub fn hsave_hrtimers_bind(all: *mut KHrtimers, vm: *mut KVm);
    pub fn hsave_hrtimers_get(all: *mut KHrtimers);
    pub fn hsave_hrtimers_put(all: *mut KHrtimers);
    pub fn hsave_hrtimer_arm(all: *mut KHrtimers, which: u32, ns: u64);
    pub fn hsave_hrtimer_cancel(all: *mut KHrtimers, which: u32);

    // params.c
    pub safe fn hsave_min_timer_period_us() -> u32;
    pub safe fn hsave_tsc_tolerance_ppm() -> u32;

    // halt.c
    pub fn hsave_poll_parameters(max: *mut u32, grow: *mut u32, grow_start: *mut u32, shrink: *mut u32);
    pub safe fn hsave_may_poll() -> bool;
    pub safe fn hsave_idle_exits() -> u32;
    pub safe fn hsave_linux_version() -> u32;

    // fpu.c
    pub safe fn hsave_fpu_new() -> *mut KFpu;
    pub fn hsave_fpu_hold(fpu: *mut KFpu);
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
    pub safe fn hsave_tsc_is_stable() -> bool;
    pub safe fn hsave_tsc_khz() -> u32;
    pub safe fn hsave_now_ns() -> u64;
    pub fn hsave_time_point(tsc: *mut u64, boot_ns: *mut u64, real_ns: *mut u64, lost: *mut u64);
    pub safe fn hsave_suspends() -> u64;

    // event.c
    pub safe fn hsave_eventfd_open(fd: i32) -> *mut KEventFd;
    pub fn hsave_eventfd_get(event: *mut KEventFd);
    pub fn hsave_eventfd_put(event: *mut KEventFd);
    pub fn hsave_eventfd_signal(event: *mut KEventFd);
    pub fn hsave_eventfd_same(event: *const KEventFd, other: *const KEventFd) -> bool;

    // irqfd.c
    pub fn hsave_irqfd_assign(vm: *mut KVm, fd: i32, gsi: u32, resample: bool, resample_fd: i32) -> i32;
    pub fn hsave_irqfd_deassign(vm: *mut KVm, fd: i32, gsi: u32) -> i32;

    // vfio.c
    pub fn hsave_vfio_add(vm: *mut KVm, fd: i32) -> i32;
    pub fn hsave_vfio_del(vm: *mut KVm, fd: i32) -> i32;

    // file.c
    pub safe fn hsave_fd_reserve() -> i32;
    pub fn hsave_fd_release(fd: i32);
    pub fn hsave_stats_file(vm: *mut KVm, vcpu: i64, id: i64) -> *mut KFile;
    pub fn hsave_device_file(vm: *mut KVm) -> *mut KFile;
    pub fn hsave_file_drop(file: *mut KFile);
    pub fn hsave_file_install(fd: i32, file: *mut KFile);
    pub fn hsave_vcpu_set_mask(vcpu: *mut KVcpu, on: bool, blocked: u64);

    // debugfs.c
    pub fn hsave_debugfs_stat(name: *const u8, len: usize, what: u32, n: u32, clearable: bool);
    pub fn hsave_debugfs_vcpu(vm: *mut KVm, n: u32, id: u32, lapic: bool, scales: bool);

    // log.c
    pub fn hsave_log_err(text: *const u8, len: usize);
    pub fn hsave_log_warn(text: *const u8, len: usize, value: u64);
    pub safe fn hsave_log_unexpected_exit(vcpu: u32, rip: u64, code: u64);
    pub fn hsave_log_field(name: *const u8, len: usize, value: u64);
    pub fn hsave_log_segment(name: *const u8, len: usize, selector: u16, attrib: u16, limit: u32, base: u64);
    pub fn hsave_panicked(file: *const u8, len: usize, line: u32);
    pub fn hsave_bug();

    // ends.c
    pub safe fn hsave_ended(
        vcpu: u32,
        reason: u32,
        detail: u64,
        code: u64,
        info1: u64,
        info2: u64,
        int_info: u64,
        rip: u64,
    );

    // perf.c
    pub fn hsave_guest_interrupted(ip: u64, user: bool);

    // trace.c
    /// How many trace events are on that are told where they happen: an `atomic_t`, which is looked at without a call.
    pub safe static hsave_listened: AtomicU32;
    pub safe fn hsave_traced() -> u32;
    pub safe fn hsave_trace_entry(vcpu: u32, rip: u64, immediate: bool, event_inj: u64);
    pub safe fn hsave_trace_exit(vcpu: u32, rip: u64, code: u64, info1: u64, info2: u64, int_info: u64, requests: u64);
    pub safe fn hsave_trace_mmio(kind: u32, len: u32, gpa: u64, value: u64);
    pub safe fn hsave_trace_pio(write: bool, port: u32, size: u32, count: u32, value: u32);
    pub safe fn hsave_trace_msr(write: bool, index: u32, value: u64, fault: bool);
    pub safe fn hsave_trace_cr(write: bool, cr: u32, value: u64);
    pub fn hsave_trace_cpuid(function: u32, index: u32, regs: *const u32, found: bool, used_max_basic: bool);
    pub safe fn hsave_trace_inj_virq(vector: u8, soft: bool, reinjected: bool);
    pub safe fn hsave_trace_inj_exception(vector: u8, has_error: bool, error_code: u32, reinjected: bool);
    pub safe fn hsave_trace_page_fault(vcpu: u32, rip: u64, address: u64, error_code: u64);
    pub safe fn hsave_trace_apic(write: bool, reg: u32, value: u64);
    pub safe fn hsave_trace_apic_ipi(icr_low: u32, destination: u32);
    pub safe fn hsave_trace_apic_accept_irq(apic_id: u32, vector: u8, level: bool);
    pub safe fn hsave_trace_eoi(apic_id: u32, vector: i32);
    pub safe fn hsave_trace_pv_eoi(apic_id: u32, vector: i32);
    pub fn hsave_trace_hypercall(nr: u64, args: *const u64);
    pub safe fn hsave_trace_hv_hypercall(control: u64, input: u64, output: u64);
    pub safe fn hsave_trace_halt_poll_ns(grow: bool, vcpu: u32, new: u32, old: u32);
    pub safe fn hsave_trace_vcpu_wakeup(ns: u64, waited: bool, valid: bool);
    pub safe fn hsave_trace_ple_window(vcpu: u32, new: u32, old: u32);
    pub safe fn hsave_trace_userspace_exit(reason: u32, errno: i32);
    pub safe fn hsave_trace_set_irq(gsi: u32, level: bool);
    pub safe fn hsave_trace_msi_set_irq(address: u64, data: u32);
    pub safe fn hsave_trace_ioapic_set_irq(entry: u64, pin: u8, coalesced: bool);
    pub safe fn hsave_trace_pic_set_irq(pin: u8, elcr: u8, imr: u8, coalesced: bool);
    pub safe fn hsave_trace_ack_irq(chip: u32, pin: u32);
    pub safe fn hsave_trace_smm_transition(vcpu: u32, smbase: u64, entering: bool);
    pub safe fn hsave_trace_dirty_ring_push(index: u32, dirty: u32, reset: u32, slot: u32, offset: u64);
    pub safe fn hsave_trace_dirty_ring_reset(index: u32, dirty: u32, reset: u32);
    pub safe fn hsave_trace_dirty_ring_exit(vcpu: u32);
    pub safe fn hsave_trace_try_async_get_page(gva: u64, gfn: u64);
    pub safe fn hsave_trace_async_pf_repeated_fault(gva: u64, gfn: u64);
    pub safe fn hsave_trace_async_pf_not_present(token: u64, gva: u64);
    pub safe fn hsave_trace_async_pf_ready(token: u64, gva: u64);
    pub safe fn hsave_trace_write_tsc_offset(vcpu: u32, previous: u64, next: u64);
    pub safe fn hsave_trace_pvclock_update(
        vcpu: u32,
        version: u32,
        tsc_timestamp: u64,
        system_time: u64,
        mul: u32,
        shift: u8,
        flags: u8,
    );

    // cpu.c, tsc_aux.c, msr.c
    /// Not 0 while SVM may be off under a running guest.
    #[expect(dead_code, reason = "the assembly of the world switch looks at it")]
    pub safe static hsave_rebooting: AtomicU8;
    pub safe fn hsave_vcpu_token() -> u64;
    pub safe fn hsave_unhandled_wrmsr(vcpu: u32, rip: u64, index: u32, value: u64);
    pub safe fn hsave_ignores_msr(index: u32, write: bool, value: u64) -> bool;
    pub safe fn hsave_online_cpus() -> u32;
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
    pub fn hsave_host_page_fault() -> bool;
    pub safe fn hsave_wait_for_host_page(token: u32);
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

// SAFETY: as above; what each engine's module has of its own in C.
#[rustfmt::skip]
unsafe extern "C" {
    // kvm-amd/main.c
    pub safe fn hsave_hidden_svm_features() -> u32;
    pub safe fn hsave_dumps_invalid_vmcb() -> bool;
    pub fn hsave_pause_parameters(count: *mut u32, thresh: *mut u32, grow: *mut u32, shrink: *mut u32, max: *mut u32);
}
