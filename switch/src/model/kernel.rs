//! The kernel and its shim: a scripted [`Platform`], and the symbols that the assembly refers to.
#![cfg(any(test, feature = "model"))]

use super::hardware::{Op, hw};
use crate::{CpuData, Pages, Platform, VcpuCtx};
use arch::HostPa;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use core::{arch::asm, ptr::NonNull};
use host::{Errno, FastExit, FastExits, PAGE_SIZE};
use std::{alloc::Layout, collections::BTreeMap, sync::Mutex};

/// CPUs that there are per-CPU variables for.
pub const CPUS: u64 = 1024;
/// Bytes between the per-CPU variables of CPU 0 and CPU 1.
pub const PERCPU_STRIDE: usize = 320;

core::arch::global_asm!(
    // The pieces of the shim, and the return thunk: each stops at an INT3 for the record.
    ".macro test_pieces v",
    "hsave_mitigate_entry\\v: int3",
    "test_entry\\v: test byte ptr [rip + test_mitigations], 1",
    "jz 33f",
    "verw word ptr [rip + test_selector]",
    "33: test byte ptr [rip + test_mitigations], 2",
    "jz 44f",
    "verw word ptr [16]", // Nothing is there.
    "44: jmp hsave_mitigate_entry\\v\\()_done",
    "hsave_mitigate_exit_rsb\\v: int3",
    "test_rsb\\v: test byte ptr [rip + test_mitigations], 4",
    "jz 66f",
    "mov rax, 16",
    "33: call 44f",
    "int3",
    "44: call 55f",
    "int3",
    "55: add rsp, 16",
    "dec rax",
    "jnz 33b",
    "66: mov rax, -1", // What a piece may clobber, it clobbers.
    "cmp rsp, rax",
    "jmp hsave_mitigate_exit_rsb\\v\\()_done",
    "hsave_mitigate_exit_untrain\\v: int3",
    "test_untrain\\v: test byte ptr [rip + test_mitigations], 8",
    "jz 33f",
    "call test_untrain_ret",
    "33: test byte ptr [rip + test_mitigations], 16",
    "jz 44f",
    "mov ecx, 0x49",
    "mov eax, 1",
    "xor edx, edx",
    "wrmsr",
    "44: mov rax, -1",
    "mov rcx, -1",
    "mov rdx, -1",
    "jmp hsave_mitigate_exit_untrain\\v\\()_done",
    ".globl hsave_mitigate_entry\\v, hsave_mitigate_exit_rsb\\v, hsave_mitigate_exit_untrain\\v",
    ".endm",
    ".pushsection .text",
    "test_pieces",
    "test_pieces _es",
    "__x86_return_thunk: int3",
    "test_return: ret",
    "test_untrain_ret: lfence",
    "ret",
    ".globl __x86_return_thunk",
    ".popsection",
    ".pushsection .bss",
    ".balign 64",
    "hsave_cpu_data: .skip 256",
    "x86_spec_ctrl_current: .skip 64",
    ".skip {others}",
    "hsave_rebooting: .byte 0",
    "test_mitigations: .byte 0",
    "test_selector: .skip 2",
    ".globl hsave_cpu_data, x86_spec_ctrl_current, hsave_rebooting",
    ".popsection",
    others = const PERCPU_STRIDE * (CPUS as usize - 1),
);

// SAFETY: defined by the assembly above, with these sizes.
unsafe extern "C" {
    static mut hsave_cpu_data: [u8; 256];
    static mut x86_spec_ctrl_current: u64;
    static mut hsave_rebooting: u8;
    static mut test_mitigations: u8;
    fn test_entry();
    fn test_rsb();
    fn test_untrain();
    fn test_entry_es();
    fn test_rsb_es();
    fn test_untrain_es();
    fn test_return();
}

/// The piece whose INT3 comes before `rip`.
pub fn piece_at(rip: u64) -> Option<&'static str> {
    let pieces: [(unsafe extern "C" fn(), &str); 7] = [
        (test_entry, "entry"),
        (test_entry_es, "entry"),
        (test_rsb, "rsb"),
        (test_rsb_es, "rsb"),
        (test_untrain, "untrain"),
        (test_untrain_es, "untrain"),
        (test_return, "return"),
    ];
    pieces.into_iter().find(|(at, _)| *at as usize as u64 == rip).map(|(_, name)| name)
}

/// Per-CPU data of a CPU.
pub fn cpu_data(cpu: u64) -> *mut CpuData {
    (&raw mut hsave_cpu_data).wrapping_byte_add(cpu as usize * PERCPU_STRIDE).cast()
}

/// Where a CPU's host state is saved.
pub fn host_area(cpu: u64) -> u64 {
    // SAFETY: written by the thread that has the CPU only.
    unsafe { (*cpu_data(cpu)).hsave_pa.get().0 }
}

/// The host's SPEC_CTRL on a CPU, in the kernel's variable.
pub fn set_host_spec_ctrl(cpu: u64, value: u64) {
    // SAFETY: reserved above.
    unsafe { *(&raw mut x86_spec_ctrl_current).wrapping_byte_add(cpu as usize * PERCPU_STRIDE) = value }
}

pub fn set_rebooting(on: bool) {
    // SAFETY: one test at a time.
    unsafe { hsave_rebooting = on as u8 }
}

/// What the pieces do, a bit each: VERW, VERW that faults, return stack filling, untraining, IBPB.
pub fn set_mitigations(bits: u8) {
    // SAFETY: one test at a time.
    unsafe { test_mitigations = bits }
}

/// What the kernel says when it is asked.
pub struct Script {
    pub cpuid: BTreeMap<(u32, u32), [u32; 4]>,
    /// Pages that may still be allocated.
    pub pages: usize,
    /// Pages that are allocated.
    pub held: usize,
    pub svme: Result<(), Errno>,
    /// The kernel can switch SSBD without SPEC_CTRL; whether the task has it.
    pub virt_ssbd: Option<bool>,
    /// The processor has Branch Type Confusion.
    pub retbleed: bool,
    /// The outer hypervisor waits for memory of the host's.
    pub host_page_fault: bool,
    /// The token of the page that was waited for.
    pub waited_for: Option<u32>,
}

static SCRIPT: Mutex<Option<Script>> = Mutex::new(None);

/// Looks at the script or changes it.
pub fn script<R>(f: impl FnOnce(&mut Script) -> R) -> R {
    let mut guard = SCRIPT.lock().unwrap_or_else(|e| e.into_inner());
    f(guard.get_or_insert_with(|| Script {
        cpuid: BTreeMap::from([
            ((0, 0), [1, 0, 0, 0]),
            ((0x8000_0000, 0), [0x8000_000a, 0, 0, 0]),
            ((0x8000_0001, 0), [0, 0, 1 << 2, 0]),
            ((0x8000_0008, 0), [48, 0, 0, 0]),
            ((0x8000_000a, 0), [1, 4, 0, 1]),
        ]),
        pages: usize::MAX,
        held: 0,
        svme: Ok(()),
        host_page_fault: false,
        waited_for: None,
        virt_ssbd: None,
        retbleed: false,
    }))
}

/// Everything as after loading the module.
pub fn reset() {
    *SCRIPT.lock().unwrap_or_else(|e| e.into_inner()) = None;
    // SAFETY: the lock of the bench is held.
    (0..2).for_each(|cpu| unsafe { reset_cpu(cpu) });
    set_rebooting(false);
    set_mitigations(0);
}

/// A CPU's variables as the shim has them before anything is called.
///
/// # Safety
/// Nobody has the CPU.
pub(super) unsafe fn reset_cpu(cpu: u64) {
    let data = cpu_data(cpu);
    // SAFETY: reserved above, and nobody's by contract.
    unsafe {
        data.cast::<u8>().write_bytes(0, crate::CPU_DATA_SIZE);
        (*data).this = data;
        (*data).number = cpu as u32;
    }
    set_host_spec_ctrl(cpu, 0);
}

/// EFER.SVME goes off.
pub(super) fn svme_off() {
    call("svme_off");
}

fn call(name: &'static str) {
    hw().trace.push(Op::Call(name));
}

fn layout(order: u32) -> Layout {
    Layout::from_size_align(PAGE_SIZE << order, PAGE_SIZE).expect("a page")
}

/// What exits are handled without leaving the guest. It runs while FS is the guest's: no thread-local state.
pub struct Handler {
    handle: Handle,
    /// How often it did.
    pub handled: usize,
}

enum Handle {
    Own(fn(&mut FastExit<'_>) -> bool),
    Lent(*mut (), unsafe fn(*mut (), &mut FastExit<'_>) -> bool),
}

impl Handler {
    /// This one.
    pub const fn new(handle: fn(&mut FastExit<'_>) -> bool) -> Self {
        Self { handle: Handle::Own(handle), handled: 0 }
    }

    /// None.
    pub const fn none() -> Self {
        Self::new(|_| false)
    }

    /// Those of a caller, of whatever type.
    ///
    /// # Safety
    /// `fast` outlives it, and is nobody else's as long.
    pub(super) unsafe fn lent<F: FastExits>(fast: &mut F) -> Self {
        let handle = |fast: *mut (), guest: &mut FastExit<'_>| {
            // SAFETY: what was lent, of this type.
            unsafe { (*fast.cast::<F>()).handle(guest) }
        };
        Self { handle: Handle::Lent((&raw mut *fast).cast(), handle), handled: 0 }
    }
}

impl FastExits for Handler {
    fn handle(&mut self, guest: &mut FastExit<'_>) -> bool {
        let done = match self.handle {
            Handle::Own(handle) => handle(guest),
            // SAFETY: by the contract of `lent`.
            Handle::Lent(fast, handle) => unsafe { handle(fast, guest) },
        };
        self.handled += usize::from(done);
        done
    }
}

/// As the module has it, but for the section.
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_fast(vcpu: *mut VcpuCtx) -> ! {
    // SAFETY: the assembly jumped here with its argument.
    unsafe {
        if crate::handle_fast::<Kernel>(vcpu) {
            asm!("jmp hsave_fast_again", in("rdi") vcpu, options(noreturn))
        }
        asm!("jmp hsave_fast_leave", in("rdi") vcpu, options(noreturn))
    }
}

/// The scripted kernel.
pub enum Kernel {}

// SAFETY: `cpu_data` and `alloc_pages` return memory that lives and is exclusive as the trait asks.
unsafe impl Platform for Kernel {
    type Fast = Handler;

    fn alloc_pages(order: u32) -> Option<Pages> {
        script(|s| {
            s.pages = s.pages.checked_sub(1 << order)?;
            s.held += 1 << order;
            // SAFETY: the layout has a size.
            let va = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout(order)) })?;
            Some(Pages { va, pa: HostPa(va.as_ptr().expose_provenance() as u64) })
        })
    }
    fn new_token() -> u64 {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        NEXT.fetch_add(1, Relaxed)
    }
    unsafe fn free_pages(pages: Pages, order: u32) {
        script(|s| s.held -= 1 << order);
        // SAFETY: allocated above with this layout.
        unsafe { std::alloc::dealloc(pages.va.as_ptr(), layout(order)) }
    }
    fn cpu_data() -> NonNull<CpuData> {
        NonNull::new(cpu_data(hw().cpu)).expect("an address")
    }
    fn may_enter() -> bool {
        hw().interrupts = !hw().may_enter;
        call(if hw().may_enter { "may_enter" } else { "may not enter" });
        hw().may_enter
    }
    fn irq_enable() {
        (hw().interrupts, hw().interrupt) = (true, false);
        call("irq_enable");
    }
    fn guest_enter() {
        call("guest_enter");
    }
    fn guest_exit() {
        call("guest_exit");
    }
    fn guest_interrupted(_rip: u64, user: bool) {
        call(if user { "guest_interrupted in user mode" } else { "guest_interrupted" });
    }
    fn guest_done(pending: bool) {
        (hw().interrupts, hw().interrupt) = (true, false);
        call(if pending { "guest_done, take the interrupt" } else { "guest_done" });
    }
    fn guest_barrier() {
        call("guest_barrier");
    }
    fn tell_entry(_vcpu: u32, _rip: u64, _at_once: bool, _event_inj: u64) {
        call("tell_entry");
    }
    fn interrupt_self() {
        hw().interrupt = true;
        call("interrupt_self");
    }
    fn machine_check() {
        call("machine_check");
    }
    fn host_page_fault() -> bool {
        call("host_page_fault");
        script(|s| s.host_page_fault)
    }
    fn wait_for_host_page(token: u32) {
        assert!(hw().interrupts && script(|s| s.waited_for.replace(token)).is_none());
    }
    fn has_retbleed() -> bool {
        script(|s| s.retbleed)
    }
    fn has_virt_ssbd() -> bool {
        script(|s| s.virt_ssbd.is_some())
    }
    fn task_ssbd() -> bool {
        script(|s| s.virt_ssbd == Some(true))
    }
    fn virt_spec_ctrl(value: u64, enter: bool) {
        call(match (value, enter) {
            (0, true) => "virt_spec_ctrl 0 in",
            (_, true) => "virt_spec_ctrl ssbd in",
            (_, false) => "virt_spec_ctrl out",
        });
    }
    fn set_user_return_tsc_aux(value: u64) {
        // SAFETY: this CPU's data.
        unsafe { (*cpu_data(hw().cpu)).tsc_aux.set(value) };
        call("set_user_return_tsc_aux");
    }
    fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
        script(|s| s.cpuid.get(&(leaf, subleaf)).copied().unwrap_or_default())
    }
    fn read_msr(msr: u32) -> Option<u64> {
        hw().msrs.get(&msr).copied()
    }
}
