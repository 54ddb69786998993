//! Operands of both decoders in one form, and where iced is no reference.

use emulator::{Insn, Mode, Op, Operand};
use iced_x86::{Code, Instruction, OpKind, Register};

use crate::IP;

/// An operand in a form that both sides can be brought to.
#[derive(Debug, PartialEq, Clone)]
pub enum Common {
    Gpr { index: u8, size: u8 },
    High(u8),
    Seg(u8),
    Cr(u8),
    Dr(u8),
    Vec(u8),
    Mmx(u8),
    Imm(u64),
    Target(u64),
    Far(u16, u32),
    Mem { seg: u8, base: Option<u8>, index: Option<u8>, scale: u8, disp: u64, size: usize },
}

fn register(r: Register) -> Common {
    if r.is_gpr() {
        let high = [Register::AH, Register::CH, Register::DH, Register::BH];
        if let Some(n) = high.iter().position(|h| *h == r) {
            return Common::High(n as u8);
        }
        return Common::Gpr { index: r.full_register().number() as u8, size: r.size() as u8 };
    }
    let n = r.number() as u8;
    if r.is_segment_register() {
        Common::Seg(n)
    } else if r.is_cr() {
        Common::Cr(n)
    } else if r.is_dr() {
        Common::Dr(n)
    } else if r.is_mm() {
        Common::Mmx(n)
    } else {
        Common::Vec(n)
    }
}

fn reg_number(r: Register) -> Option<u8> {
    if r == Register::None || r.is_ip() { None } else { Some(r.full_register().number() as u8) }
}

/// Operands of iced's instruction; `None` for kinds that are implied by the operation (string operands).
pub fn theirs(i: &Instruction, insn: &Insn) -> Vec<Common> {
    let imm_mask = |v: u64| v & size_mask(insn.opsize);
    (0..i.op_count())
        .filter_map(|n| {
            Some(match i.op_kind(n) {
                OpKind::Register => register(i.op_register(n)),
                OpKind::NearBranch16 => Common::Target(i.near_branch16().into()),
                OpKind::NearBranch32 => Common::Target(i.near_branch32().into()),
                OpKind::NearBranch64 => Common::Target(i.near_branch64()),
                OpKind::FarBranch16 => Common::Far(i.far_branch_selector(), i.far_branch16().into()),
                OpKind::FarBranch32 => Common::Far(i.far_branch_selector(), i.far_branch32()),
                OpKind::Immediate8
                | OpKind::Immediate8_2nd
                | OpKind::Immediate16
                | OpKind::Immediate32
                | OpKind::Immediate64
                | OpKind::Immediate8to16
                | OpKind::Immediate8to32
                | OpKind::Immediate8to64
                | OpKind::Immediate32to64 => Common::Imm(imm_mask(i.immediate(n))),
                OpKind::Memory => Common::Mem {
                    seg: segment(i.memory_segment().number() as u8, insn.mode),
                    base: reg_number(i.memory_base()),
                    index: reg_number(i.memory_index()),
                    scale: if i.memory_index() == Register::None {
                        0
                    } else {
                        i.memory_index_scale().trailing_zeros() as u8
                    },
                    disp: i.memory_displacement64() & size_mask(insn.addrsize),
                    size: i.memory_size().size(),
                },
                _ => return None,
            })
        })
        .collect()
}

/// In 64-bit mode all segments but FS and GS are the same.
fn segment(n: u8, mode: Mode) -> u8 {
    if mode == Mode::Long64 && n < 4 { 3 } else { n }
}

fn size_mask(size: u8) -> u64 {
    if size >= 8 { u64::MAX } else { (1 << (size * 8)) - 1 }
}

pub fn ours(insn: &Insn) -> Vec<Common> {
    let branch = matches!(insn.op, Op::Jmp | Op::Call | Op::Jcc | Op::Loop | Op::Loope | Op::Loopne | Op::Jcxz);
    insn.operands
        .iter()
        .filter_map(|o| {
            Some(match *o {
                Operand::None => return None,
                Operand::Gpr { index, size } => Common::Gpr { index, size },
                Operand::HighByte { index } => Common::High(index),
                Operand::Imm if branch => {
                    Common::Target(insn.next_rip(IP).wrapping_add(insn.imm) & size_mask(insn.opsize))
                }
                Operand::Imm if matches!(insn.op, Op::CallFar | Op::JmpFar) => {
                    Common::Far((insn.imm >> 32) as u16, insn.imm as u32)
                }
                Operand::Imm => Common::Imm(insn.imm & size_mask(insn.opsize)),
                Operand::Seg(s) => Common::Seg(s as u8),
                Operand::Cr(n) => Common::Cr(n),
                Operand::Dr(n) => Common::Dr(n),
                Operand::Vec { index, .. } => Common::Vec(index),
                Operand::Mmx { index, .. } => Common::Mmx(index),
                Operand::Mem { size } => {
                    let next = if insn.mem.rip_relative { insn.next_rip(IP) } else { 0 };
                    Common::Mem {
                        seg: segment(insn.mem.seg as u8, insn.mode),
                        base: insn.mem.base,
                        index: insn.mem.index,
                        scale: if insn.mem.index.is_some() { insn.mem.scale } else { 0 },
                        disp: insn.mem.disp.wrapping_add(next) & size_mask(insn.addrsize),
                        size: size.into(),
                    }
                }
            })
        })
        .collect()
}

/// Operations whose operands are implied or shown differently.
pub fn operands_differ_by_design(op: Op) -> bool {
    use Op::*;
    matches!(op, Movs | Cmps | Stos | Lods | Scas | Ins | Outs | Xlat | Nop | Enter | Les)
        || matches!(op, Cpuid | Monitor | Mwait | Vmrun | Vmload | Vmsave | Skinit | Invlpga | Int3 | Icebp | Int)
}

/// Sizes that iced reports otherwise: address-only operands, and registers of which 16 bits are used.
pub fn forget_size(c: &mut Common) {
    match c {
        Common::Mem { size, .. } => *size = 0,
        Common::Gpr { size, .. } => *size = 0,
        _ => {}
    }
}

/// Where iced is not the reference for what we decode: prefixes on 0F 01 xx, which we ignore, and F3 90 with REX.B, which is
/// PAUSE on Intel's processors only (see the tests' `make`).
pub fn iced_is_no_reference(insn: &Insn, name: &str) -> bool {
    let system = matches!(
        insn.op,
        Op::Monitor | Op::Mwait | Op::Vmcall | Op::Xgetbv | Op::Xsetbv | Op::Vmrun | Op::Vmload | Op::Vmsave | Op::Stgi
    ) || matches!(insn.op, Op::Clgi | Op::Skinit | Op::Invlpga | Op::Rdtscp | Op::Vmmcall);
    system && matches!(name, "INVALID" | "invalid" | "vmgexit") || insn.op == Op::Xchg && name == "pause"
}

/// An instruction that shares its mnemonic with one of ours and is not ours: CMPSD of SSE2; FNSTSW AX, which reaches no
/// memory.
pub fn not_ours(i: &Instruction) -> bool {
    matches!(i.code(), Code::Cmpsd_xmm_xmmm64_imm8 | Code::Fnstsw_AX)
}
