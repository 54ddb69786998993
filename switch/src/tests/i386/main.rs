//! The world switch of i386 in a 32-bit process: the handler of the faults plays the processor, for every combination
//! of `matrix.rs`. `./x test` builds it with a `core` for i686; there is no C library, the system calls are here.
//!
//! FS is the per-CPU segment there. While it is the guest's it is null, so that a use of it faults and fails the test.
//! A failed check ends the process with status 1 and its line on standard error.
#![no_std]
#![no_main]

extern crate self as arch;

#[path = "../../ctx.rs"]
#[allow(dead_code)]
mod ctx;
#[path = "../../extable.rs"]
mod extable;
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
use runtime::{check, exit, fail, syscall};

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
    static __start___ex_table: [i32; 3];
    static __stop___ex_table: [i32; 3];
}

/// What happened.
#[derive(Clone, Copy, PartialEq)]
enum Op {
    Wrmsr(u64),
    Rdmsr,
    Vmload(u32),
    Vmrun(u32),
    Vmsave(u32),
    Entry,
    Rsb,
    Untrain,
    Return,
    Fixup,
}

/// General registers in the order of their encoding.
const AX: usize = 0;
const CX: usize = 1;
const DX: usize = 2;
/// What VMRUN takes from the registers: all but AX and SP.
const KEPT: [usize; 6] = [1, 2, 3, 5, 6, 7];
/// Where these are in the signal's context, and FS and EIP.
const SLOT: [usize; 8] = [11, 10, 9, 8, 7, 6, 5, 4];
const FS_SLOT: usize = 1;
const EIP_SLOT: usize = 14;

/// The processor, and the record of what it did.
struct Machine {
    trace: [Op; 32],
    length: usize,
    /// Bit n: the n-th SVM instruction faults.
    fail: u32,
    svm_count: u32,
    flags: u32,
    /// SPEC_CTRL, and what the guest leaves there.
    msr: u64,
    leaves: u64,
    /// The guest's registers as it found them, and all at the first return.
    seen: [u32; 8],
    at_return: [u32; 8],
    host_fs: u32,
    /// The host save area.
    area: u32,
}

static mut MACHINE: Machine = Machine {
    trace: [Op::Fixup; 32],
    length: 0,
    fail: 0,
    svm_count: 0,
    flags: 0,
    msr: 0,
    leaves: 0,
    seen: [0; 8],
    at_return: [0; 8],
    host_fs: 0,
    area: 0,
};

fn machine() -> &'static mut Machine {
    // SAFETY: one thread; a fault interrupts the assembly only, which does not touch it.
    unsafe { &mut *(&raw mut MACHINE) }
}

impl Machine {
    fn record(&mut self, op: Op) {
        check(self.length < self.trace.len());
        self.trace[self.length] = op;
        self.length += 1;
    }
}

fn guest_in(n: usize) -> u32 {
    0x1111_0000 | n as u32
}

fn guest_out(n: usize) -> u32 {
    0xeeee_0000 | n as u32
}

/// Where the exception table sends a fault.
fn fixup(eip: u32) -> u32 {
    let (mut entry, stop) = ((&raw const __start___ex_table).cast::<i32>(), (&raw const __stop___ex_table).cast());
    // SAFETY: inside of the table; its fields are relative to themselves.
    let target = |field: *const i32| (field as u32).wrapping_add_signed(unsafe { *field });
    while entry < stop {
        if target(entry) == eip {
            return target(entry.wrapping_add(1));
        }
        entry = entry.wrapping_add(3);
    }
    fail(line!())
}

extern "C" fn handler(signal: u32, _info: u32, context: *mut u32) {
    // SAFETY: the kernel's frame, of 19 words from the sixth of the context.
    let regs = unsafe { &mut *context.wrapping_add(5).cast::<[u32; 19]>() };
    let (m, eip) = (machine(), regs[EIP_SLOT]);
    if signal == 5 {
        let at = [at_entry, at_rsb, at_untrain, at_return].map(|f: unsafe extern "C" fn()| f as usize as u32);
        let op = [Op::Entry, Op::Rsb, Op::Untrain, Op::Return];
        let Some(n) = at.iter().position(|at| *at == eip) else { fail(line!()) };
        if n == 3 {
            m.at_return = SLOT.map(|slot| regs[slot]);
        }
        return m.record(op[n]);
    }
    // SAFETY: the processor just fetched from there, and text goes on.
    let insn = unsafe { *(eip as *const [u8; 3]) };
    let (eax, ecx, edx) = (regs[SLOT[AX]], regs[SLOT[CX]], regs[SLOT[DX]]);
    match insn {
        [0x0f, 0x01, op @ (0xd8 | 0xda | 0xdb)] => {
            m.svm_count += 1;
            if m.fail >> (m.svm_count - 1) & 1 != 0 {
                m.record(Op::Fixup);
                regs[EIP_SLOT] = fixup(eip);
                return;
            }
            match op {
                0xd8 => {
                    m.record(Op::Vmrun(eax));
                    for n in KEPT {
                        m.seen[n] = regs[SLOT[n]];
                        regs[SLOT[n]] = guest_out(n);
                    }
                    if m.flags != 0 {
                        m.msr = m.leaves;
                    }
                }
                0xda => {
                    m.record(Op::Vmload(eax));
                    regs[FS_SLOT] = if eax == m.area { m.host_fs } else { 0 };
                }
                _ => m.record(Op::Vmsave(eax)),
            }
            regs[EIP_SLOT] += 3;
        }
        [0x0f, 0x30, _] if ecx == SPEC_CTRL => {
            m.msr = eax as u64 | (edx as u64) << 32;
            m.record(Op::Wrmsr(m.msr));
            regs[EIP_SLOT] += 2;
        }
        [0x0f, 0x32, _] if ecx == SPEC_CTRL => {
            m.record(Op::Rdmsr);
            (regs[SLOT[AX]], regs[SLOT[DX]]) = (m.msr as u32, (m.msr >> 32) as u32);
            regs[EIP_SLOT] += 2;
        }
        _ => fail(line!()),
    }
}

/// One combination; the trace is compared with what the design says.
fn one(flags: u32, host: u64, guest: u64, leaves: u64, fails: u32) {
    // Any addresses do: the pages are not touched.
    let (vmcb01, vmcb, area) = (0x1000u32, 0x2000u32, 0x3000u32);
    let mut vcpu = VcpuCtx { vmcb01: HostPa(vmcb01 as u64), vmcb: HostPa(vmcb as u64), ..Default::default() };
    vcpu.regs = core::array::from_fn(|n| if n < 8 { guest_in(n) as u64 } else { 0 });
    vcpu.spec_ctrl = guest;
    let m = machine();
    (m.length, m.svm_count, m.fail, m.flags, m.msr, m.leaves, m.area) = (0, 0, fails, flags, host, leaves, area);
    let mut after = [0; 5];
    // SAFETY: the contract of the assembly, as far as the model goes.
    unsafe {
        (&raw mut hsave_cpu_data).cast::<u8>().add(HSAVE_PA).cast::<u32>().write(area);
        x86_spec_ctrl_current = host;
        hsave_rebooting = u8::from(fails != 0);
        call_it(&raw mut vcpu, flags, &raw mut after);
    }
    check(after == [0x1b1b, 0x1d1d, 0x1616, 0x1717, 0]);

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
    expect(svm(0, Op::Vmload(vmcb01)));
    expect(Op::Entry);
    expect(svm(1, Op::Vmrun(vmcb)));
    expect(svm(2, Op::Vmsave(vmcb01)));
    expect(svm(3, Op::Vmload(area)));
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
                    // As in matrix.rs: a host that cannot be loaded over a guest.
                    for fails in (0..16).filter(|fails| fails & 9 != 8) {
                        one(flags, host, guest, *leaves, fails);
                        cases += 1;
                    }
                }
            }
        }
    }
    check(cases == 16 * (12 + 4 * 12));
    exit(0)
}
