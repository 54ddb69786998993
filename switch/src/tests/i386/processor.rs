//! The processor, played by the handler of the faults that its privileged instructions raise, and the record of what it did.

use super::{
    SPEC_CTRL, at_entry, at_return, at_rsb, at_untrain,
    runtime::{check, exit, fail},
};

// SAFETY: the linker defines them at the ends of the section that the assembly fills.
unsafe extern "C" {
    static __start___ex_table: [i32; 3];
    static __stop___ex_table: [i32; 3];
}

/// What happened.
#[derive(Clone, Copy, PartialEq)]
pub enum Op {
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
pub const AX: usize = 0;
pub const CX: usize = 1;
pub const DX: usize = 2;
/// What VMRUN takes from the registers: all but AX and SP.
pub const KEPT: [usize; 6] = [1, 2, 3, 5, 6, 7];
/// Where these are in the signal's context, and FS and EIP.
const SLOT: [usize; 8] = [11, 10, 9, 8, 7, 6, 5, 4];
const FS_SLOT: usize = 1;
const EIP_SLOT: usize = 14;

/// The processor, and the record of what it did.
pub struct Machine {
    pub trace: [Op; 32],
    pub length: usize,
    /// Bit n: the n-th SVM instruction faults.
    pub fail: u32,
    pub svm_count: u32,
    pub flags: u32,
    /// SPEC_CTRL, and what the guest leaves there.
    pub msr: u64,
    pub leaves: u64,
    /// The guest's registers as it found them, and all at the first return.
    pub seen: [u32; 8],
    pub at_return: [u32; 8],
    pub host_fs: u32,
    /// The host save area.
    pub area: u32,
}

/// How a process ends that meets UD2, or uses FS while it is the guest's.
pub const BUG: u32 = 77;
pub const GUEST_FS: u32 = 70;

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

pub fn machine() -> &'static mut Machine {
    let machine = &raw mut MACHINE;
    // SAFETY: one thread; a fault interrupts the assembly only, which does not touch it.
    unsafe { &mut *machine }
}

impl Machine {
    fn record(&mut self, op: Op) {
        check(self.length < self.trace.len());
        self.trace[self.length] = op;
        self.length += 1;
    }
}

pub fn guest_in(n: usize) -> u32 {
    0x1111_0000 | n as u32
}

pub fn guest_out(n: usize) -> u32 {
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
    fail()
}

pub extern "C" fn handler(signal: u32, _info: u32, context: *mut u32) {
    // SAFETY: the kernel's frame, of 19 words from the sixth of the context.
    let regs = unsafe { &mut *context.wrapping_add(5).cast::<[u32; 19]>() };
    let (m, eip) = (machine(), regs[EIP_SLOT]);
    if signal == 5 {
        let at = [at_entry, at_rsb, at_untrain, at_return].map(|f: unsafe extern "C" fn()| f as usize as u32);
        let op = [Op::Entry, Op::Rsb, Op::Untrain, Op::Return];
        let Some(n) = at.iter().position(|at| *at == eip) else { fail() };
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
        [0x0f, 0x0b, _] => exit(BUG),
        [0x64, ..] if regs[FS_SLOT] == 0 => exit(GUEST_FS),
        _ => fail(),
    }
}
