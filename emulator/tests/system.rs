//! Privileged instructions, ports and their permission, vector state, and the fetch of instruction bytes.

mod fake;

use emulator::{Exception, Insn, Known, Mode, Op, Seg, Shadow, Stop, TableReg, decode, fetch, len_of};
use fake::{Fake, Posted, Wanted, fault, ok, run};

fn long() -> Fake {
    let mut m = Fake::long();
    m.map(0x1000, 0x4000);
    (m.rip, m.gpr[3], m.gpr[4]) = (0x1000, 0x2000, 0x3000);
    m
}

#[test]
fn control_registers() {
    let mut m = long();
    m.cr[3] = 0x1_2345_6000;
    ok(&mut m, &[0x0f, 0x20, 0xd8]); // mov rax, cr3
    assert_eq!(m.gpr[0], 0x1_2345_6000);
    m.gpr[9] = 5;
    ok(&mut m, &[0x45, 0x0f, 0x22, 0xc1]); // mov cr8, r9
    assert_eq!(m.cr[8], 5);
    ok(&mut m, &[0xf0, 0x0f, 0x20, 0xc1]); // lock mov rcx, cr0: AMD's CR8
    assert_eq!(m.gpr[1], 5);
    m.gpr[0] = 0x8000_0000;
    assert_eq!(fault(&mut m, &[0x0f, 0x22, 0xc0]), Exception::gp(0), "paging without protection");
    assert_eq!(fault(&mut m, &[0x0f, 0x22, 0xc8]), Exception::UD, "no CR1");
    m.cr[0] |= 8;
    ok(&mut m, &[0x0f, 0x06]); // clts
    assert_eq!(m.cr[0] & 8, 0);
    m.gpr[0] = 0x000e;
    ok(&mut m, &[0x0f, 0x01, 0xf0]); // lmsw ax: PE cannot be cleared
    assert_eq!(m.cr[0], 0x8000_003f);
    ok(&mut m, &[0x0f, 0x01, 0x23]); // smsw [rbx]: 16 bits
    assert_eq!(m.peek(0x2000, 4), [0x3f, 0, 0, 0]);
    m.cpl = 3;
    for bytes in [[0x0f, 0x20, 0xd8], [0x0f, 0x22, 0xd8], [0x0f, 0x01, 0xf0], [0x0f, 0x01, 0x3b]] {
        assert_eq!(fault(&mut m, &bytes), Exception::gp(0), "{bytes:02x?}");
    }
    ok(&mut m, &[0x0f, 0x01, 0xe0]); // smsw eax
    m.cr[4] |= 1 << 11;
    assert_eq!(fault(&mut m, &[0x0f, 0x01, 0xe0]), Exception::gp(0), "UMIP");
    assert_eq!(fault(&mut m, &[0x0f, 0x01, 0x03]), Exception::gp(0));
}

#[test]
fn debug_registers() {
    let mut m = long();
    m.gpr[0] = 0x1234;
    ok(&mut m, &[0x0f, 0x23, 0xd8]); // mov dr3, rax
    assert_eq!(m.dr[3], 0x1234);
    ok(&mut m, &[0x0f, 0x21, 0xe1]); // mov rcx, dr4 = dr6
    assert_eq!(m.gpr[1], 0xffff_0ff0);
    m.gpr[0] = 1 << 32;
    assert_eq!(fault(&mut m, &[0x0f, 0x23, 0xf8]), Exception::gp(0));
    m.cr[4] |= 8;
    assert_eq!(fault(&mut m, &[0x0f, 0x21, 0xe1]), Exception::UD);
    m.dr[7] |= 1 << 13;
    assert_eq!(fault(&mut m, &[0x0f, 0x21, 0xc1]), Exception::DB_ACCESS);
    m.cpl = 3;
    assert_eq!(fault(&mut m, &[0x0f, 0x21, 0xc1]), Exception::gp(0));
}

#[test]
fn descriptor_table_registers_and_invlpg() {
    let mut m = long();
    m.gdtr = TableReg { base: 0xffff_8000_0000_1000, limit: 0x7f };
    ok(&mut m, &[0x0f, 0x01, 0x03]); // sgdt [rbx]
    assert_eq!(m.peek(0x2000, 10), [0x7f, 0, 0, 0x10, 0, 0, 0, 0x80, 0xff, 0xff]);
    ok(&mut m, &[0x0f, 0x01, 0x1b]); // lidt [rbx]
    assert_eq!(m.idtr, m.gdtr);
    m.poke(0x2009, &[0x7f]);
    assert_eq!(fault(&mut m, &[0x0f, 0x01, 0x13]), Exception::gp(0), "lgdt: base not canonical");
    m.gpr[3] = 0x1234_5678;
    ok(&mut m, &[0x0f, 0x01, 0x3b]); // invlpg [rbx]
    m.gpr[3] = 1 << 60;
    ok(&mut m, &[0x0f, 0x01, 0x3b]);
    assert_eq!(m.invalidated, [0x1234_5678]);
    // What counts is what the processor has, not what it does.
    m.gpr[3] = 1 << 52;
    ok(&mut m, &[0x0f, 0x01, 0x3b]);
    m.la57 = true;
    ok(&mut m, &[0x0f, 0x01, 0x3b]);
    assert_eq!(m.invalidated, [0x1234_5678, 1 << 52]);
    m.gpr[3] = 0x2000;
    m.poke(0x2002, &(1u64 << 52).to_le_bytes());
    ok(&mut m, &[0x0f, 0x01, 0x13]);
    assert_eq!(m.gdtr.base, 1 << 52);
    m.la57 = false;
    m.cr[4] |= 1 << 12;
    assert_eq!(fault(&mut m, &[0x0f, 0x01, 0x13]), Exception::gp(0));
    // With 16-bit operands the base has 24 bits.
    let mut m = Fake::real();
    m.map(0, 0x1000);
    m.poke(0x500, &[0xff, 0xff, 1, 2, 3, 4]);
    ok(&mut m, &[0x0f, 0x01, 0x16, 0x00, 0x05]);
    assert_eq!(m.gdtr, TableReg { base: 0x03_0201, limit: 0xffff });
    ok(&mut m, &[0x66, 0x0f, 0x01, 0x16, 0x00, 0x05]);
    assert_eq!(m.gdtr.base, 0x0403_0201);
}

#[test]
fn interrupt_flag_and_shadow() {
    let mut m = long();
    assert_eq!(ok(&mut m, &[0xfb]).shadow, Some(Shadow::Sti));
    assert_eq!(ok(&mut m, &[0xfb]).shadow, None, "IF was set already");
    m.cpl = 3;
    assert_eq!(fault(&mut m, &[0xfa]), Exception::gp(0));
    m.rflags |= 0x3000;
    ok(&mut m, &[0xfa]);
    assert_eq!(m.rflags, 0x3002);
    m.rflags |= 0x100;
    assert!(ok(&mut m, &[0x90]).single_step);
}

#[test]
fn ports() {
    let mut m = long();
    m.gpr[0] = 0xffff_ffff_1234_5678;
    m.gpr[2] = 0xcf8;
    ok(&mut m, &[0xef]); // out dx, eax
    ok(&mut m, &[0x66, 0xe7, 0x80]); // out 80, ax
    assert_eq!(
        m.posted,
        [
            Posted::Port { port: 0xcf8, data: vec![0x78, 0x56, 0x34, 0x12] },
            Posted::Port { port: 0x80, data: vec![0x78, 0x56] }
        ]
    );
    assert_eq!(run(&mut m, &[0xec]), Err(Stop::NeedUser)); // in al, dx
    assert_eq!(m.wanted, Some(Wanted::Port { port: 0xcf8, size: 1, count: 1 }));
    m.log.push(vec![0xee]);
    ok(&mut m, &[0xec]);
    assert_eq!(m.gpr[0], 0xffff_ffff_1234_56ee);
    assert_eq!(run(&mut m, &[0xed]), Err(Stop::NeedUser)); // in eax, dx
    m.log.push(vec![1, 2, 3, 4]);
    ok(&mut m, &[0xed]);
    assert_eq!(m.gpr[0], 0x0403_0201);
}

#[test]
fn port_permission_map() {
    let mut m = long();
    (m.cpl, m.gpr[2]) = (3, 0x3f8);
    m.seg(Seg::Tr).limit = 0x66;
    assert_eq!(fault(&mut m, &[0xee]), Exception::gp(0), "the TSS is too small for a map");
    m.map(0x8000, 0x3000);
    m.seg(Seg::Tr).base = 0x8000;
    m.seg(Seg::Tr).limit = 0x68 + 0x2000;
    m.poke(0x8066, &[0x68, 0]);
    ok(&mut m, &[0xee]);
    m.poke(0x8068 + 0x3f8 / 8, &[0x02]);
    ok(&mut m, &[0xee]); // out dx, al: port 3f8
    assert_eq!(fault(&mut m, &[0x66, 0xef]), Exception::gp(0), "3f9 is not allowed");
    assert_eq!(fault(&mut m, &[0x6f]), Exception::gp(0), "outsd");
    m.gpr[2] = 0xffff;
    assert_eq!(m.seg(Seg::Tr).limit, 0x2068);
    ok(&mut m, &[0xee]);
    m.seg(Seg::Tr).limit -= 1;
    assert_eq!(fault(&mut m, &[0xee]), Exception::gp(0), "the map has to have a byte more");
    m.rflags |= 0x3000;
    ok(&mut m, &[0xee]);
}

#[test]
fn vector_state_has_to_be_enabled() {
    let (sse, avx) = ([0x0f, 0x28, 0x03], [0xc5, 0xf8, 0x28, 0x03]); // movaps xmm0, [rbx]; vmovaps
    let mut m = long();
    m.poke(0x2000, &[5; 16]);
    ok(&mut m, &sse);
    m.ymm[0] = [9; 32];
    ok(&mut m, &avx);
    assert_eq!((m.ymm[0][15], m.ymm[0][16]), (5, 0));
    m.gpr[3] = 0x2008;
    assert_eq!(fault(&mut m, &sse), Exception::gp(0), "unaligned");
    ok(&mut m, &[0x0f, 0x10, 0x03]); // movups
    m.gpr[3] = 0x2000;
    m.cr[0] |= 8;
    assert_eq!((fault(&mut m, &sse), fault(&mut m, &avx)), (Exception::NM, Exception::NM));
    m.cr[0] |= 4;
    assert_eq!((fault(&mut m, &sse), fault(&mut m, &avx)), (Exception::UD, Exception::NM));
    m.cr[0] &= !12;
    m.xcr0 = 3;
    ok(&mut m, &sse);
    assert_eq!(fault(&mut m, &avx), Exception::UD);
    (m.cr[4], m.xcr0) = (0x20, 7);
    assert_eq!((fault(&mut m, &sse), fault(&mut m, &avx)), (Exception::UD, Exception::UD));
}

#[test]
fn mmx_moves_look_at_the_x87_state_first() {
    let (store, load) = ([0x0f, 0x7f, 0x13], [0x44, 0x0f, 0x6e, 0x1b]); // movq [rbx], mm2; movd mm3, [rbx]
    let mut m = long();
    m.gpr[3] = 0x2000;
    (m.mmx[2], m.mmx[3]) = (0x1122_3344_5566_7788, !0);
    ok(&mut m, &store);
    ok(&mut m, &load); // REX.R reaches no further than MM7
    assert_eq!((m.peek_u64(0x2000), m.mmx[3]), (0x1122_3344_5566_7788, 0x5566_7788));
    m.x87.1 = 0x80;
    assert_eq!((fault(&mut m, &store), fault(&mut m, &load)), (Exception::MF, Exception::MF));
    m.cr[0] |= 8;
    assert_eq!(fault(&mut m, &store), Exception::NM);
    m.cr[0] |= 4;
    assert_eq!(fault(&mut m, &load), Exception::UD);
}

#[test]
fn words_of_the_x87_state() {
    let mut m = long();
    m.gpr[3] = 0x2000;
    m.x87 = (0x27f, 0x80);
    ok(&mut m, &[0xd9, 0x3b]); // fnstcw [rbx]
    ok(&mut m, &[0xdd, 0x7b, 0x02]); // fnstsw [rbx + 2]: an exception that waits goes on waiting
    assert_eq!(m.peek(0x2000, 6), [0x7f, 0x02, 0x80, 0, 0, 0]);
    for bit in [4, 8] {
        m.cr[0] |= bit;
        assert_eq!((fault(&mut m, &[0xd9, 0x3b]), fault(&mut m, &[0xdd, 0x3b])), (Exception::NM, Exception::NM));
        m.cr[0] &= !bit;
    }
}

/// A present system descriptor of this type with a limit of 0x67, for the GDT at 0x4000.
fn system_descriptor(kind: u64, base: u64) -> [u8; 16] {
    let low = 0x67 | (base & 0xff_ffff) << 16 | (0x80 | kind) << 40 | (base >> 24 & 0xff) << 56;
    (u128::from(low) | u128::from(base >> 32) << 64).to_le_bytes()
}

const LLDT: [u8; 3] = [0x0f, 0x00, 0x13]; // lldt [rbx]
const LTR: [u8; 3] = [0x0f, 0x00, 0x1b]; // ltr [rbx]

/// With a GDT of an LDT at 0x10 and a TSS at 0x20.
fn with_system_descriptors(mut m: Fake) -> Fake {
    m.map(0x1000, 0x4000);
    (m.rip, m.gpr[3], m.gpr[4]) = (0x1000, 0x2000, 0x3000);
    m.gdtr = TableReg { base: 0x4000, limit: 0x2f };
    m.poke(0x4010, &system_descriptor(2, 0x7_1234_5000));
    m.poke(0x4020, &system_descriptor(9, 0x7_1234_6000));
    m
}

#[test]
fn system_segments() {
    let mut m = with_system_descriptors(Fake::long());
    m.poke(0x2000, &[0x13, 0, 0x23, 0]);
    ok(&mut m, &LLDT);
    let ldt = *m.seg(Seg::Ldtr);
    assert_eq!((ldt.selector, ldt.base, ldt.limit, ldt.attr), (0x13, 0x7_1234_5000, 0x67, 0x82));
    ok(&mut m, &[0x0f, 0x00, 0x5b, 0x02]); // ltr [rbx + 2]
    let tss = *m.seg(Seg::Tr);
    assert_eq!((tss.selector, tss.base, tss.attr), (0x23, 0x7_1234_6000, 0x8b));
    assert_eq!(m.peek(0x4025, 1), [0x8b], "busy in the table");
    assert_eq!(fault(&mut m, &[0x0f, 0x00, 0x5b, 0x02]), Exception::gp(0x20), "it is busy");
    ok(&mut m, &[0x0f, 0x00, 0x43, 0x04]); // sldt [rbx + 4]
    ok(&mut m, &[0x0f, 0x00, 0x4b, 0x06]); // str [rbx + 6]
    assert_eq!(m.peek(0x2004, 6), [0x13, 0, 0x23, 0, 0, 0]);
    m.gpr[0] = !0;
    ok(&mut m, &[0x48, 0x0f, 0x00, 0xc0]); // sldt rax
    assert_eq!(m.gpr[0], 0x13);
    m.poke(0x2000, &[3, 0]);
    ok(&mut m, &LLDT);
    assert!(!m.seg(Seg::Ldtr).present(), "none");
    assert_eq!(fault(&mut m, &LTR), Exception::gp(0));
    // Neither in the LDT, nor of another kind, nor behind the end of the table.
    for (selector, code) in [(0x14, 0x14), (0x20, 0x20), (0x28, 0x28)] {
        m.poke(0x2000, &[selector, 0]);
        assert_eq!(fault(&mut m, &LLDT), Exception::gp(code), "{selector:#x}");
    }
    m.poke(0x2000, &[0x10, 0]);
    assert_eq!(fault(&mut m, &LTR), Exception::gp(0x10), "an LDT");
    m.poke(0x4015, &[2]);
    assert_eq!(fault(&mut m, &LLDT), Exception::np(0x10));
    m.poke(0x4010, &system_descriptor(2, 1 << 50));
    assert_eq!(fault(&mut m, &LLDT), Exception::gp(0x10), "not canonical");
    m.la57 = true;
    ok(&mut m, &LLDT);
    m.cpl = 3;
    assert_eq!((fault(&mut m, &LLDT), fault(&mut m, &LTR)), (Exception::gp(0), Exception::gp(0)));
    ok(&mut m, &[0x0f, 0x00, 0x43, 0x04]);
    m.cr[4] |= 1 << 11;
    assert_eq!(fault(&mut m, &[0x0f, 0x00, 0x43, 0x04]), Exception::gp(0), "UMIP");
}

#[test]
fn system_segments_without_long_mode() {
    let mut m = with_system_descriptors(Fake::prot32());
    m.gdtr.limit = 0x27;
    m.poke(0x4020, &system_descriptor(1, 0x5000));
    m.poke(0x2000, &[0x20, 0]);
    ok(&mut m, &LTR); // a TSS of 16 bits, in eight bytes
    assert_eq!((m.seg(Seg::Tr).base, m.seg(Seg::Tr).attr), (0x5000, 0x83));
    for mut m in [Fake::real(), Fake::v86()] {
        m.map(0x1000, 0x4000);
        for reg in 0..4 {
            assert_eq!(fault(&mut m, &[0x0f, 0x00, 0x07 | reg << 3]), Exception::UD);
        }
    }
}

#[test]
fn divide_errors() {
    let mut m = long();
    (m.gpr[0], m.gpr[1], m.gpr[2]) = (1, 0, 0);
    assert_eq!(fault(&mut m, &[0x48, 0xf7, 0xf1]), Exception::DE); // div rcx
    (m.gpr[1], m.gpr[2]) = (5, 5);
    assert_eq!(fault(&mut m, &[0x48, 0xf7, 0xf1]), Exception::DE);
    (m.gpr[0], m.gpr[1], m.gpr[2]) = (i64::MIN as u64, u64::MAX, u64::MAX);
    assert_eq!(fault(&mut m, &[0x48, 0xf7, 0xf9]), Exception::DE); // idiv rcx
}

#[test]
fn length_only_instructions_are_not_executed() {
    let mut m = long();
    for bytes in [[0x0f, 0xa2].as_slice(), &[0x0f, 0x32], &[0xf4], &[0x0f, 0x01, 0xd9], &[0xcc], &[0xcd, 0x80]] {
        assert_eq!(run(&mut m, bytes), Err(Stop::Unhandleable), "{bytes:02x?}");
    }
}

#[test]
fn bytes_are_fetched_as_far_as_needed() {
    let mut m = Fake::long();
    m.map(0x1000, 0x1000);
    m.poke(0x1ffe, &[0x90, 0x48]);
    m.rip = 0x1ffe;
    assert!(fetch(&mut m, &[]).is_ok(), "the next page is not needed");
    m.rip = 0x1fff;
    assert_eq!(fetch(&mut m, &[]), Err(Stop::Fault(Exception::pf(0, 0x2000))));
    m.map(0x2000, 0x1000);
    m.poke(0x2000, &[0x89, 0xc8]);
    let insn = fetch(&mut m, &[]).expect("mov rax, rcx");
    assert_eq!((insn.op, insn.len), (Op::Mov, 3));
    // Bytes that the processor gave are not read again, the missing ones are.
    assert_eq!(fetch(&mut m, &[0x48]), Ok(insn));
    m.pages.clear();
    assert_eq!(fetch(&mut m, &[0x48, 0x89, 0xc8]), Ok(insn));
    assert_eq!(fetch(&mut m, &[0x66; 15]), Err(Stop::Fault(Exception::gp(0))), "15 bytes and no end");
    assert_eq!(fetch(&mut m, &[0x0f, 0x0b]), Err(Stop::Unhandleable));
    assert_eq!(fetch(&mut m, &[0xf0, 0x90, 0, 0]), Err(Stop::Fault(Exception::UD)));
    m.rip = 1 << 47;
    assert_eq!(fetch(&mut m, &[]), Err(Stop::Fault(Exception::gp(0))));
    // The code segment's limit.
    let mut m = Fake::real();
    m.map(0, 0x1000);
    m.rip = 0x7f;
    m.poke(0x7f, &[0xb8, 1, 2]);
    m.seg(Seg::Cs).limit = 0x80;
    assert_eq!(fetch(&mut m, &[]), Err(Stop::Fault(Exception::gp(0))));
    m.seg(Seg::Cs).limit = 0x81;
    assert!(fetch(&mut m, &[]).is_ok());
}

const KNOWN: [(Known, Op, &[u8]); 11] = [
    (Known::Cpuid, Op::Cpuid, &[0x0f, 0xa2]),
    (Known::Rdmsr, Op::Rdmsr, &[0x0f, 0x32]),
    (Known::Wrmsr, Op::Wrmsr, &[0x0f, 0x30]),
    (Known::Hlt, Op::Hlt, &[0xf4]),
    (Known::Vmmcall, Op::Vmmcall, &[0x0f, 0x01, 0xd9]),
    (Known::Invd, Op::Invd, &[0x0f, 0x08]),
    (Known::Wbinvd, Op::Wbinvd, &[0x0f, 0x09]),
    (Known::Xsetbv, Op::Xsetbv, &[0x0f, 0x01, 0xd1]),
    (Known::Pause, Op::Pause, &[0xf3, 0x90]),
    (Known::Monitor, Op::Monitor, &[0x0f, 0x01, 0xc8]),
    (Known::Mwait, Op::Mwait, &[0x0f, 0x01, 0xc9]),
];

#[test]
fn known_lengths_are_what_the_decoder_says() {
    let prefixes: [&[u8]; 6] = [&[], &[0x66], &[0x2e, 0x67], &[0x48], &[0x66, 0x41], &[0x65, 0x36, 0x66, 0x66]];
    for (known, op, opcode) in KNOWN {
        for mode in [Mode::Prot32, Mode::Long64] {
            for prefix in prefixes {
                let mut bytes = prefix.to_vec();
                if known == Known::Pause && prefix.contains(&0x48) {
                    continue; // REX before F3 is another thing
                }
                bytes.extend(opcode);
                let len = bytes.len() as u8;
                let got = len_of(&bytes, mode, known);
                match decode(&bytes, mode) {
                    Ok(Insn { op: o, len: l, .. }) if o == op => {
                        assert_eq!((l, got), (len, Some(len)), "{known:?} {bytes:02x?}");
                        assert_eq!(len_of(&bytes[..bytes.len() - 1], mode, known), None);
                    }
                    // REX in 32-bit mode is INC or DEC.
                    _ => assert_eq!(got, None, "{known:?} {bytes:02x?}"),
                }
                let other = if known == Known::Hlt { Known::Cpuid } else { Known::Hlt };
                assert_eq!(len_of(&bytes, mode, other), None);
            }
        }
    }
    assert_eq!(len_of(&[[0x66; 13].as_slice(), &[0x0f, 0xa2]].concat(), Mode::Long64, Known::Cpuid), Some(15));
    assert_eq!(len_of(&[[0x66; 14].as_slice(), &[0x0f, 0xa2]].concat(), Mode::Long64, Known::Cpuid), None);
    assert_eq!(len_of(&[], Mode::Real, Known::Hlt), None);
}
