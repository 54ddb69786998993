//! Control flow, stack and segments in real, virtual-8086, protected and 64-bit mode, with the faults they raise.

mod fake;

use emulator::{Exception, Seg, Segment, Shadow, Stop, TableReg};
use fake::{Fake, fault, ok, run};

fn real() -> Fake {
    let mut m = Fake::real();
    m.map(0, 0x30000);
    (m.rip, m.gpr[4]) = (0x100, 0x800);
    m
}

fn long() -> Fake {
    let mut m = Fake::long();
    m.map(0x1000, 0x4000);
    (m.rip, m.gpr[4]) = (0x1000, 0x2000);
    m
}

/// A descriptor from base, limit (in bytes or pages as attribute bit 11 says) and VMCB attributes.
fn descriptor(base: u32, limit: u32, attr: u16) -> [u8; 8] {
    let (base, limit, attr) = (u64::from(base), u64::from(limit), u64::from(attr));
    let raw = limit & 0xffff | (base & 0xff_ffff) << 16 | (attr & 0xff) << 40 | (limit >> 16 & 0xf) << 48;
    (raw | (attr & 0xf00) << 44 | (base >> 24) << 56).to_le_bytes()
}

/// 32-bit protected mode with a GDT at 0x1000: 8 code, 10 data, 18 absent data, 20 data DPL 3, 28 conforming code,
/// 30 a TSS, 38 read-only data, 40 execute-only code.
fn prot() -> Fake {
    let mut m = Fake::prot32();
    m.map(0x1000, 0x4000);
    (m.rip, m.gpr[4]) = (0x2000, 0x4000);
    m.gdtr = TableReg { base: 0x1000, limit: 0x47 };
    let table = [
        (8, 0xc9b),
        (0x10, 0xc92),
        (0x18, 0xc13),
        (0x20, 0xcf3),
        (0x28, 0xc9f),
        (0x30, 0x089),
        (0x38, 0xc91),
        (0x40, 0xc99),
    ];
    for (at, attr) in table {
        m.poke(0x1000 + at, &descriptor(0, 0xf_ffff, attr));
    }
    m
}

#[test]
fn near_branches() {
    let mut m = long();
    ok(&mut m, &[0xeb, 0x10]); // jmp +10
    assert_eq!(m.rip, 0x1012);
    ok(&mut m, &[0xe8, 0xf9, 0xff, 0xff, 0xff]); // call -7
    assert_eq!((m.rip, m.gpr[4], m.peek_u64(0x1ff8)), (0x1010, 0x1ff8, 0x1017));
    ok(&mut m, &[0xc2, 0x20, 0x00]); // ret 32
    assert_eq!((m.rip, m.gpr[4]), (0x1017, 0x2020));
    m.gpr[0] = 0x1234;
    ok(&mut m, &[0xff, 0xe0]); // jmp rax
    assert_eq!(m.rip, 0x1234);
    m.rflags |= 0x40;
    ok(&mut m, &[0x0f, 0x84, 0, 1, 0, 0]); // jz
    assert_eq!(m.rip, 0x133a);
    ok(&mut m, &[0x75, 0x10]); // jnz, not taken
    assert_eq!(m.rip, 0x133c);
    m.gpr[1] = 0x1_0000_0001;
    ok(&mut m, &[0x67, 0xe2, 0x10]); // loop with ECX
    assert_eq!((m.rip, m.gpr[1]), (0x133f, 0));
    ok(&mut m, &[0xe3, 0x10]); // jrcxz
    assert_eq!(m.rip, 0x1351);
    m.gpr[1] = 2;
    ok(&mut m, &[0xe1, 0xfe]); // loope to itself, ZF set
    assert_eq!((m.rip, m.gpr[1]), (0x1351, 1));
    m.gpr[0] = 0x8000_0000_0000;
    assert_eq!(fault(&mut m, &[0xff, 0xe0]), Exception::gp(0));
    assert_eq!(fault(&mut m, &[0xff, 0xd0]), Exception::gp(0));
}

#[test]
fn branches_stay_in_the_code_segment() {
    let mut m = real();
    m.rip = 0xfff0;
    ok(&mut m, &[0xe9, 0x20, 0x00]); // jmp +20h wraps at 16 bits
    assert_eq!(m.rip, 0x13);
    m.seg(Seg::Cs).limit = 0xff;
    assert_eq!(fault(&mut m, &[0xe9, 0x00, 0x10]), Exception::gp(0));
    // Not taken: no check of the target.
    ok(&mut m, &[0x70, 0x7f]);
}

#[test]
fn real_mode_far_transfers() {
    let mut m = real();
    ok(&mut m, &[0x9a, 0x34, 0x12, 0x00, 0x20]); // call 2000:1234
    assert_eq!((m.rip, m.seg(Seg::Cs).base, m.seg(Seg::Cs).selector), (0x1234, 0x20000, 0x2000));
    assert_eq!((m.gpr[4], m.peek(0x7fc, 4)), (0x7fc, vec![0x05, 0x01, 0, 0]));
    ok(&mut m, &[0xcb]); // retf
    assert_eq!((m.rip, m.seg(Seg::Cs).base, m.gpr[4]), (0x105, 0, 0x800));
    m.poke(0x300, &[0x78, 0x56, 0x00, 0x10]);
    ok(&mut m, &[0xff, 0x2e, 0x00, 0x03]); // jmp far [300]
    assert_eq!((m.rip, m.seg(Seg::Cs).base), (0x5678, 0x10000));
    m.poke(0x800, &[0x11, 0x22, 0x00, 0x00, 0x45, 0x0a]);
    m.rflags |= 0x1_0000;
    ok(&mut m, &[0xcf]); // iret
    assert_eq!((m.rip, m.gpr[4], m.rflags), (0x2211, 0x806, 0xa47));
    m.seg(Seg::Cs).limit = 0xff;
    assert_eq!(fault(&mut m, &[0xea, 0x00, 0x01, 0x00, 0x00]), Exception::gp(0));
}

#[test]
fn real_mode_segments_and_stack() {
    let mut m = real();
    m.gpr[0] = 0x1234;
    m.seg(Seg::Ds).limit = 0xffff_ffff;
    ok(&mut m, &[0x8e, 0xd8]); // mov ds, ax: the big limit stays
    let ds = *m.seg(Seg::Ds);
    assert_eq!((ds.base, ds.selector, ds.limit), (0x12340, 0x1234, 0xffff_ffff));
    ok(&mut m, &[0x66, 0x67, 0x89, 0x05, 0x00, 0x80, 0x01, 0x00]); // mov [18000], eax: big real mode
    assert_eq!(m.peek(0x2a340, 2), [0x34, 0x12]);
    assert_eq!(ok(&mut m, &[0x8e, 0xd0]).shadow, Some(Shadow::MovSs)); // mov ss, ax
    *m.seg(Seg::Ss) = *m.seg(Seg::Es);
    ok(&mut m, &[0x60]); // pusha
    assert_eq!((m.gpr[4], m.peek(0x7fe, 2), m.peek(0x7f6, 2)), (0x7f0, vec![0x34, 0x12], vec![0, 8]));
    m.gpr[0] = 0;
    ok(&mut m, &[0x61]); // popa
    assert_eq!((m.gpr[4], m.gpr[0]), (0x800, 0x1234));
    // The 16-bit stack pointer wraps; the upper half stays.
    m.gpr[4] = 0xabcd_0000;
    ok(&mut m, &[0x50]);
    assert_eq!((m.gpr[4], m.peek(0xfffe, 2)), (0xabcd_fffe, vec![0x34, 0x12]));
    // A word at the end of the segment.
    m.gpr[3] = 0xffff;
    m.seg(Seg::Ds).limit = 0xffff;
    assert_eq!(fault(&mut m, &[0x89, 0x07]), Exception::gp(0)); // mov [bx], ax
    m.gpr[4] = 1;
    assert_eq!(fault(&mut m, &[0x50]), Exception::ss(0));
    m.gpr[5] = 0xffff;
    assert_eq!(fault(&mut m, &[0x89, 0x46, 0x00]), Exception::ss(0)); // mov [bp], ax
    // 16-bit addresses wrap.
    m.gpr[3] = 0xfff0;
    *m.seg(Seg::Ds) = *m.seg(Seg::Es);
    ok(&mut m, &[0x89, 0x47, 0x20]); // mov [bx+20], ax
    assert_eq!(m.peek(0x10, 2), [0x34, 0x12]);
    ok(&mut m, &[0x0f, 0xb4, 0x3e, 0x10, 0x00]); // lfs di, [10]
    assert_eq!((m.gpr[7], m.seg(Seg::Fs).selector), (0x1234, 0));
}

#[test]
fn virtual_8086_mode() {
    let mut m = Fake::v86();
    m.map(0, 0x3000);
    m.gpr[4] = 0x800;
    m.gpr[0] = 0x123;
    ok(&mut m, &[0x8e, 0xc0]); // mov es, ax
    assert_eq!(*m.seg(Seg::Es), Segment { selector: 0x123, base: 0x1230, limit: 0xffff, attr: 0xf3 });
    for bytes in [[0x9c].as_slice(), &[0x9d], &[0xcf], &[0xfa], &[0xfb]] {
        assert_eq!(fault(&mut m, bytes), Exception::gp(0), "IOPL 0: {bytes:02x?}");
    }
    m.rflags |= 0x3000;
    ok(&mut m, &[0xfa]);
    m.poke(0x800, &[0, 1, 0, 0, 0x46, 0x02]);
    ok(&mut m, &[0xcf]);
    assert_eq!((m.rip, m.rflags), (0x100, 0x2_3246), "IRET leaves VM and IOPL");
    assert_eq!(fault(&mut m, &[0x0f, 0x20, 0xc0]), Exception::gp(0)); // mov eax, cr0
}

#[test]
fn protected_mode_segment_loads() {
    let mut m = prot();
    let mut load = |seg: u8, selector: u64| {
        m.gpr[0] = selector;
        run(&mut m, &[0x8e, 0xc0 | seg << 3]).map(|d| (d.shadow, m.segments[usize::from(seg)], m.peek(0x1015, 1)[0]))
    };
    // The accessed bit is set in the register and in the table.
    let data = Segment { selector: 0x10, base: 0, limit: u32::MAX, attr: 0xc93 };
    assert_eq!(load(3, 0x10), Ok((None, data, 0x93)));
    assert_eq!(load(2, 0x10), Ok((Some(Shadow::MovSs), data, 0x93)));
    assert_eq!(load(0, 3), Ok((None, Segment { selector: 3, ..Segment::default() }, 0x93)));
    let gp = |code| Err(Stop::Fault(Exception::gp(code)));
    assert_eq!(load(2, 0), gp(0));
    assert_eq!(load(2, 0x38), gp(0x38), "SS must be writable");
    assert_eq!(load(2, 0x20), gp(0x20), "SS must have the DPL of CPL");
    assert_eq!(load(3, 0x48), gp(0x48), "beyond the limit");
    assert_eq!(load(3, 0x14), gp(0x14), "no LDT");
    assert_eq!(load(3, 0x30), gp(0x30), "a system descriptor");
    assert_eq!(load(3, 0x40), gp(0x40), "execute-only code");
    assert_eq!(load(3, 0x18), Err(Stop::Fault(Exception::np(0x18))));
    assert_eq!(load(3, 0x13), gp(0x10), "RPL 3 for DPL 0");
    assert!(load(3, 0x23).is_ok() && load(3, 0x28).is_ok());
    assert_eq!(load(1, 0x10), Err(Stop::Fault(Exception::UD)), "MOV to CS");
    m.poke(0x4000, &[0x18, 0, 0, 0]);
    assert_eq!(fault(&mut m, &[0x17]), Exception::ss(0x18)); // pop ss: an absent descriptor
}

#[test]
fn protected_mode_accesses() {
    let mut m = prot();
    m.gpr[3] = 0x2ffe;
    ok(&mut m, &[0x89, 0x03]); // mov [ebx], eax
    assert_eq!(fault(&mut m, &[0x2e, 0x89, 0x03]), Exception::gp(0), "a write to code");
    m.seg(Seg::Es).attr = 0;
    assert_eq!(fault(&mut m, &[0x26, 0x8b, 0x03]), Exception::gp(0), "a null segment");
    m.seg(Seg::Ss).attr = 0xc13;
    assert_eq!(fault(&mut m, &[0x36, 0x8b, 0x03]), Exception::ss(0));
    m.seg(Seg::Cs).attr = 0xc99;
    assert_eq!(fault(&mut m, &[0x2e, 0x8b, 0x03]), Exception::gp(0), "a read of execute-only code");
    // Limits, both ways.
    m.seg(Seg::Ds).limit = 0x3000;
    ok(&mut m, &[0x8a, 0x03]);
    assert_eq!(fault(&mut m, &[0x8b, 0x03]), Exception::gp(0));
    m.seg(Seg::Ds).attr = 0xc97;
    assert_eq!(fault(&mut m, &[0x8b, 0x03]), Exception::gp(0));
    m.gpr[3] = 0x3001;
    ok(&mut m, &[0x8b, 0x03]);
    m.seg(Seg::Ds).attr = 0x097;
    m.gpr[3] = 0xfffd;
    assert_eq!(fault(&mut m, &[0x8b, 0x03]), Exception::gp(0), "a small expand-down segment ends at 64 KiB");
    // Base and offset wrap at 4 GiB.
    m.seg(Seg::Ds).attr = 0xc93;
    m.seg(Seg::Ds).limit = u32::MAX;
    m.seg(Seg::Ds).base = 0xffff_f000;
    m.gpr[3] = 0x3000;
    m.poke(0x2000, &[1, 2, 3, 4]);
    ok(&mut m, &[0x8b, 0x03]);
    assert_eq!(m.gpr[0], 0x0403_0201);
}

#[test]
fn protected_mode_far_transfers() {
    let mut m = prot();
    ok(&mut m, &[0x9a, 0x00, 0x30, 0x00, 0x00, 0x08, 0x00]); // call 8:3000
    assert_eq!((m.rip, m.gpr[4], m.peek_u64(0x3ff8)), (0x3000, 0x3ff8, 0x8_0000_2007));
    ok(&mut m, &[0xcb]);
    assert_eq!((m.rip, m.gpr[4]), (0x2007, 0x4000));
    let mut to = |selector: u8| run(&mut m, &[0xea, 0, 0, 0, 0, selector, 0]);
    assert_eq!(to(0x10), Err(Stop::Fault(Exception::gp(0x10))), "data");
    assert_eq!(to(0x00), Err(Stop::Fault(Exception::gp(0))));
    assert_eq!(to(0x30), Err(Stop::Unhandleable), "a task");
    assert_eq!(to(0x0b), Err(Stop::Fault(Exception::gp(0x08))), "RPL above CPL");
    assert!(to(0x2b).is_ok());
    assert_eq!(m.seg(Seg::Cs).selector, 0x28, "RPL becomes CPL");
    m.poke(0x4000, &[0, 0, 0, 0, 0x0b, 0, 0, 0]);
    assert_eq!(run(&mut m, &[0xcb]), Err(Stop::Unhandleable), "a return to CPL 3");
    assert_eq!(run(&mut m, &[0xcf]), Err(Stop::Unhandleable));
}

#[test]
fn far_transfers_with_a_64_bit_offset() {
    let mut m = long();
    m.gdtr = TableReg { base: 0x1800, limit: 0xf };
    m.poke(0x1808, &descriptor(0, 0xf_ffff, 0xa9b));
    m.poke(0x3000, &0x1234_5678_9abc_u64.to_le_bytes());
    m.poke(0x3008, &[8, 0]);
    m.gpr[3] = 0x3000;
    ok(&mut m, &[0x48, 0xff, 0x2b]); // rex.w jmp far [rbx]
    assert_eq!((m.rip, m.seg(Seg::Cs).selector), (0x1234_5678_9abc, 8));
    m.rip = 0x1000;
    let rsp = m.gpr[4];
    ok(&mut m, &[0x48, 0xff, 0x1b]); // rex.w call far [rbx]
    assert_eq!((m.rip, m.gpr[4]), (0x1234_5678_9abc, rsp - 16));
    assert_eq!((m.peek_u64(rsp - 16), m.peek_u64(rsp - 8) as u16), (0x1003, 8));
    m.rip = 0x1000;
    m.poke(0x3007, &[0x80]);
    assert_eq!(fault(&mut m, &[0x48, 0xff, 0x2b]), Exception::gp(0), "not canonical");
}

#[test]
fn sixty_four_bit_addresses() {
    let mut m = long();
    m.poke(0x3000, &[1, 2, 3, 4, 5, 6, 7, 8]);
    ok(&mut m, &[0x48, 0x8b, 0x05, 0xf9, 0x1f, 0, 0]); // mov rax, [rip+1ff9]
    assert_eq!(m.gpr[0], 0x0807_0605_0403_0201);
    m.seg(Seg::Ds).base = 0x500; // ignored
    m.seg(Seg::Fs).base = 0x1000;
    m.gpr[3] = 0x2000;
    ok(&mut m, &[0x64, 0x8a, 0x0b]); // mov cl, fs:[rbx]
    assert_eq!(m.gpr[1], 1);
    m.gpr[3] = 0xffff_ffff_0000_3001;
    ok(&mut m, &[0x67, 0x3e, 0x8a, 0x0b]); // mov cl, [ebx]
    assert_eq!(m.gpr[1], 2);
    m.gpr[3] = 0x7fff_ffff_fffe;
    assert_eq!(fault(&mut m, &[0x8b, 0x03]), Exception::gp(0), "the end is not canonical");
    m.gpr[4] = 0x8000_0000_0000;
    assert_eq!(fault(&mut m, &[0x8b, 0x04, 0x24]), Exception::ss(0));
    assert_eq!(fault(&mut m, &[0x50]), Exception::pf(2, 0x7fff_ffff_fff8));
    m.gpr[4] += 8;
    assert_eq!(fault(&mut m, &[0x50]), Exception::ss(0));
    m.cr[4] |= 1 << 12; // five levels
    assert_eq!(fault(&mut m, &[0x50]), Exception::pf(2, 0x8000_0000_0000));
}

#[test]
fn stack_details() {
    let mut m = long();
    ok(&mut m, &[0x54]); // push rsp pushes the old value
    assert_eq!(m.peek_u64(0x1ff8), 0x2000);
    m.poke(0x1ff8, &0x1234_u64.to_le_bytes());
    ok(&mut m, &[0x8f, 0x04, 0x24]); // pop [rsp]: the address uses the new RSP
    assert_eq!((m.gpr[4], m.peek_u64(0x2000)), (0x2000, 0x1234));
    ok(&mut m, &[0x5c]); // pop rsp
    assert_eq!(m.gpr[4], 0x1234);
    m.gpr[4] = 0x2000;
    ok(&mut m, &[0x6a, 0xff]); // push -1
    assert_eq!(m.peek_u64(0x1ff8), u64::MAX);
    ok(&mut m, &[0x66, 0x68, 0x34, 0x12]); // push word 1234
    assert_eq!((m.gpr[4], m.peek(0x1ff6, 2)), (0x1ff6, vec![0x34, 0x12]));
    // POPF: IOPL and IF only with the privilege.
    m.cpl = 3;
    m.gpr[4] = 0x2000;
    m.poke(0x2000, &0x3f_7fd7_u64.to_le_bytes());
    ok(&mut m, &[0x9d]);
    assert_eq!(m.rflags, 0x24_4dd7);
    m.cpl = 0;
    m.gpr[4] = 0x2000;
    m.rflags = 2;
    ok(&mut m, &[0x9d]);
    assert_eq!(m.rflags, 0x24_7fd7, "RF, VM, VIF and VIP are not loaded");
    m.rflags = 0x1_0002;
    ok(&mut m, &[0x90]);
    assert_eq!(m.rflags, 2, "RF ends with the next instruction");
}

#[test]
fn alignment_checks() {
    let mut m = long();
    m.gpr[3] = 0x1001;
    m.rflags |= 1 << 18;
    m.cr[0] |= 1 << 18;
    ok(&mut m, &[0x8b, 0x03]);
    m.cpl = 3;
    assert_eq!(fault(&mut m, &[0x8b, 0x03]), Exception::AC);
    ok(&mut m, &[0x8a, 0x03]);
    m.gpr[4] = 0x2001;
    assert_eq!(fault(&mut m, &[0x50]), Exception::AC);
}

/// PAUSE is F3 90 without REX.B; with it AMD's processors exchange RAX and R8.
#[test]
fn rex_b_makes_pause_an_exchange() {
    let mut m = long();
    for (bytes, after) in [(&[0xf3, 0x90, 0], (1, 2)), (&[0xf3, 0x4e, 0x90], (1, 2)), (&[0xf3, 0x4f, 0x90], (2, 1))] {
        (m.gpr[0], m.gpr[8]) = (1, 2);
        ok(&mut m, bytes);
        assert_eq!((m.gpr[0], m.gpr[8]), after, "{bytes:02x?}");
    }
}
