//! The world switch of i386 in a 32-bit process: the handler of the faults plays the processor, for every combination
//! of `matrix.rs`. `./x test` builds it with a `core` for i686; there is no C library, the system calls are here.
//!
//! FS is the per-CPU segment there. While it is the guest's it is null, so that a use of it faults and fails the test.
//! A failed check ends the process with status 1 and its place on standard error.
#![no_std]
#![no_main]

extern crate self as arch;

#[path = "../../ctx.rs"]
#[allow(dead_code)]
mod ctx;
#[path = "../../extable.rs"]
mod extable;
mod processor;
mod runtime;

/// What the vCPU's structure refers to.
mod fast {
    /// As wide as the real one, and null.
    #[repr(C)]
    #[derive(Debug, Default)]
    pub struct Link {
        pub svm: usize,
        pub state: usize,
    }
}

/// As in the crate `arch`.
#[repr(transparent)]
#[derive(Debug, Default, Clone, Copy)]
pub struct HostPa(pub u64);

use core::{
    arch::{asm, global_asm},
    mem::offset_of,
};
use ctx::{SPEC_CTRL_NOT_INTERCEPTED, VcpuCtx};
use extable::extable;
use processor::{AX, BUG, CX, DX, GUEST_FS, KEPT, Op, guest_in, guest_out, handler, machine};
use runtime::{check, ends, exit, syscall};

/// Where the per-CPU data has the address of the host save area.
const HSAVE_PA: usize = 8;
const SPEC_CTRL: u32 = 0x48;
const VALUES: [u64; 4] = [0, 1, 0xffff_ffff, 4];

global_asm!(
    ".macro hsave_extable from, to",
    extable!(),
    "    .balign 4",
    "    .long \\from - .",
    "    .long \\to - .",
    "    .long 1",
    "    .popsection",
    ".endm",
    include_str!(env!("ENTRY")),
    i386 = const 1,
    sev_es = const 0,
    hsave_pa = const HSAVE_PA,
    regs = const offset_of!(VcpuCtx, regs),
    vmcb01 = const offset_of!(VcpuCtx, vmcb01),
    vmcb = const offset_of!(VcpuCtx, vmcb),
    spec_ctrl = const offset_of!(VcpuCtx, spec_ctrl),
    faulted = const offset_of!(VcpuCtx, faulted),
    not_intercepted = const SPEC_CTRL_NOT_INTERCEPTED,
    msr = const SPEC_CTRL,
    // In what is assembled for 64 bits only.
    stack = const 0, fast = const 0, hsave_va = const 0, host = const 0,
    rbx = const 0, rbp = const 0, rsi = const 0, rdi = const 0,
    r12 = const 0, r13 = const 0, r14 = const 0, r15 = const 0,
);

global_asm!(
    ".text",
    // The pieces of the shim, and the return thunk: each stops at an INT3, and clobbers what it may.
    ".globl hsave_mitigate_entry, hsave_mitigate_exit_rsb, hsave_mitigate_exit_untrain, __x86_return_thunk",
    "hsave_mitigate_entry: int3",
    "at_entry: jmp hsave_mitigate_entry_done",
    "hsave_mitigate_exit_rsb: int3",
    "at_rsb: mov eax, -1",
    "cmp esp, eax",
    "jmp hsave_mitigate_exit_rsb_done",
    "hsave_mitigate_exit_untrain: int3",
    "at_untrain: mov eax, -1",
    "mov ecx, -1",
    "mov edx, -1",
    "jmp hsave_mitigate_exit_untrain_done",
    "__x86_return_thunk: int3",
    "at_return: ret",
    "restorer: mov eax, 173",
    "int 0x80",
    // call_it(vcpu, flags, after): the assembly with its arguments in registers, and a pattern in what a callee preserves.
    "call_it: push ebp",
    "push ebx",
    "push esi",
    "push edi",
    "mov eax, [esp + 20]",
    "mov edx, [esp + 24]",
    "mov ecx, [esp + 28]",
    "push ecx",
    "mov [ecx + 16], esp",
    "mov ebx, 0x1b1b",
    "mov ebp, 0x1d1d",
    "mov esi, 0x1616",
    "mov edi, 0x1717",
    "call hsave_vcpu_run",
    "mov ecx, [esp]",
    "mov [ecx], ebx",
    "mov [ecx + 4], ebp",
    "mov [ecx + 8], esi",
    "mov [ecx + 12], edi",
    "sub [ecx + 16], esp", // 0 if the stack is where it was.
    "pop ecx",
    "pop edi",
    "pop esi",
    "pop ebx",
    "pop ebp",
    "ret",
    ".globl _start",
    "_start: and esp, -16",
    "call start",
    ".bss",
    ".balign 64",
    ".globl hsave_cpu_data, x86_spec_ctrl_current, hsave_rebooting",
    "hsave_cpu_data: .skip 256",
    "x86_spec_ctrl_current: .skip 8",
    "hsave_rebooting: .skip 4",
    ".text",
);

// SAFETY: defined by the assembly above and the linker.
unsafe extern "C" {
    fn call_it(vcpu: *mut VcpuCtx, flags: u32, after: *mut [u32; 5]);
    fn at_entry();
    fn at_rsb();
    fn at_untrain();
    fn at_return();
    fn restorer();
    static mut hsave_cpu_data: [u8; 256];
    static mut x86_spec_ctrl_current: u64;
    static mut hsave_rebooting: u8;
}

/// What decides the path through the assembly.
#[derive(Clone, Copy)]
struct Case {
    flags: u32,
    host: u64,
    guest: u64,
    /// What the guest writes, where it may.
    leaves: u64,
    /// Bit n: the n-th SVM instruction faults.
    fails: u32,
}

// Any addresses do: the pages are not touched.
const VMCB01: u32 = 0x1000;
const VMCB: u32 = 0x2000;
const AREA: u32 = 0x3000;

/// Runs the guest once.
fn run(case: Case, rebooting: bool) -> VcpuCtx {
    let Case { flags, host, guest, leaves, fails } = case;
    let mut vcpu = VcpuCtx { vmcb01: HostPa(VMCB01 as u64), vmcb: HostPa(VMCB as u64), ..Default::default() };
    vcpu.regs = core::array::from_fn(|n| if n < 8 { guest_in(n) as u64 } else { 0 });
    vcpu.spec_ctrl = guest;
    let m = machine();
    (m.length, m.svm_count, m.fail, m.flags, m.msr, m.leaves, m.area) = (0, 0, fails, flags, host, leaves, AREA);
    let mut after = [0; 5];
    // SAFETY: the contract of the assembly, as far as the model goes.
    unsafe {
        (&raw mut hsave_cpu_data).cast::<u8>().add(HSAVE_PA).cast::<u32>().write(AREA);
        x86_spec_ctrl_current = host;
        hsave_rebooting = u8::from(rebooting);
        call_it(&raw mut vcpu, flags, &raw mut after);
    }
    check(after == [0x1b1b, 0x1d1d, 0x1616, 0x1717, 0]);
    vcpu
}

/// One combination while the machine reboots; the trace is compared with what the design says.
fn one(case: Case) {
    let Case { flags, host, guest, leaves, fails } = case;
    let vcpu = run(case, fails != 0);
    let (m, mut at) = (machine(), 0);
    let trace = &m.trace[..m.length];
    let mut expect = |op| {
        check(trace.get(at) == Some(&op));
        at += 1;
    };
    let svm = |n: u32, op| if fails >> n & 1 != 0 { Op::Fixup } else { op };
    let ran = fails & 2 == 0;
    let left = if flags != 0 && ran { leaves } else { guest };
    if guest != host {
        expect(Op::Wrmsr(guest));
    }
    expect(svm(0, Op::Vmload(VMCB01)));
    expect(Op::Entry);
    expect(svm(1, Op::Vmrun(VMCB)));
    expect(svm(2, Op::Vmsave(VMCB01)));
    expect(svm(3, Op::Vmload(AREA)));
    expect(Op::Rsb);
    if flags != 0 {
        expect(Op::Rdmsr);
    }
    if left != host {
        expect(Op::Wrmsr(host));
    }
    expect(Op::Untrain);
    expect(Op::Return);
    check(at == m.length && m.msr == host && vcpu.spec_ctrl == left && vcpu.faulted == u32::from(fails != 0));
    check([AX, CX, DX].iter().all(|n| m.at_return[*n] == 0));
    for n in KEPT {
        check(!ran || m.seen[n] == guest_in(n));
        check(vcpu.regs[n] == (if ran { guest_out(n) } else { guest_in(n) }) as u64);
    }
}

/// Faults that there is no going on after.
fn bugs() {
    for flags in [0, SPEC_CTRL_NOT_INTERCEPTED] {
        for guest in [0, 1] {
            for fails in 1..16 {
                let case = Case { flags, host: 0, guest, leaves: 4, fails };
                check(
                    ends(|| {
                        run(case, false);
                    }) == BUG,
                );
                // The guest's segment stays where the host's does not replace it, and is not used as if it had.
                if fails & 9 == 8 {
                    check(
                        ends(|| {
                            run(case, true);
                        }) == GUEST_FS,
                    );
                }
            }
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn start() -> ! {
    // SA_SIGINFO, SA_RESTORER, SA_NODEFER.
    let action = [handler as *const () as u32, 0x4400_0004, restorer as *const () as u32, 0, 0];
    for signal in [4, 5, 11] {
        check(syscall(174, [signal, action.as_ptr() as u32, 0, 8]) == 0);
    }
    // struct user_desc: a flat 32-bit data segment.
    let mut fs = [u32::MAX, 0, 0xfffff, 0x51];
    check(syscall(243, [fs.as_mut_ptr() as u32, 0, 0, 0]) == 0);
    // SAFETY: the kernel wrote the number of the entry.
    let entry = unsafe { fs.as_ptr().read_volatile() };
    machine().host_fs = entry * 8 + 3;
    // SAFETY: Rust does not use FS here.
    unsafe { asm!("mov fs, {0:x}", in(reg) machine().host_fs) };
    let mut cases = 0;
    for flags in [0, SPEC_CTRL_NOT_INTERCEPTED] {
        for host in VALUES {
            for guest in VALUES {
                for leaves in if flags == 0 { &VALUES[..1] } else { &VALUES[..] } {
                    // As in matrix.rs: a host that cannot be loaded over a guest is in `bugs`.
                    for fails in (0..16).filter(|fails| fails & 9 != 8) {
                        one(Case { flags, host, guest, leaves: *leaves, fails });
                        cases += 1;
                    }
                }
            }
        }
    }
    check(cases == 16 * (12 + 4 * 12));
    bugs();
    exit(0)
}
