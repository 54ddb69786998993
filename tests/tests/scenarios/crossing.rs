//! Emulated accesses to two pages of which the guest's own tables hold the second one back, and what they leave in those
//! tables: both pages have to be accessible before anything happens, #PF names the second, A and D are set like a
//! processor does.

use abi::uapi::run::exit::MMIO_DATA;
use tests::scenario::{CODE, Left, MMIO, Machine};

const P: u64 = 1;
const RW: u64 = 2;
const US: u64 = 4;
const A: u64 = 0x20;
const D: u64 = 0x40;
/// The first byte of the second page, which is 2 MiB large, as all are.
const SECOND: u64 = MMIO + 0x20_0000;

/// Where the entry is that maps an address below 4 GiB.
fn entry(linear: u64) -> u64 {
    0x3000 + (linear >> 30) * 0x1000 + 8 * ((linear >> 21) & 511)
}

/// A VM about to execute `code` with RBX four bytes before the second page, whose entry has lost `without`.
fn machine(code: &[u8], without: u64) -> Machine {
    let m = Machine::new();
    m.long(0, code);
    m.with_regs(0, |r| r.rbx = SECOND - 4);
    let old: u64 = m.read_ram(entry(SECOND));
    m.write_ram(entry(SECOND), &(old & !(without | A | D)).to_le_bytes());
    m
}

/// The error code of the #PF at the second page that the instruction ends in; no part of the access has happened.
fn fault(code: &[u8], without: u64, write: bool) -> Option<u32> {
    let m = machine(code, without);
    m.npf(0, SECOND - 4, write);
    m.does(0, |c| assert_eq!(c.guest().cr2, SECOND));
    m.run_out(0);
    let e = m.injected(0);
    assert_eq!((e.len(), e[0].vector(), m.regs(0).rip), (1, 14, CODE), "{code:02x?}");
    assert_eq!(m.read_ram::<u64>(entry(SECOND)) & (A | D), 0, "a refused access leaves no trace");
    m.end();
    e[0].error_code()
}

/// mov rax, [rbx]; mov [rbx], rax; add [rbx], rax; lock xadd [rbx], rax; movups [rbx], xmm0; bts [rbx], rax
const LOAD: &[u8] = &[0x48, 0x8b, 0x03];
const STORE: &[u8] = &[0x48, 0x89, 0x03];
const CHANGES: [&[u8]; 4] =
    [&[0x48, 0x01, 0x03], &[0xf0, 0x48, 0x0f, 0xc1, 0x03], &[0x0f, 0x11, 0x03], &[0x48, 0x0f, 0xab, 0x03]];

#[test]
fn the_second_page_is_absent() {
    assert_eq!(fault(LOAD, P, false), Some(0));
    assert_eq!(fault(STORE, P, true), Some(2));
    for code in CHANGES {
        assert_eq!(fault(code, P, true), Some(2), "{code:02x?}: a read that will be written is a write");
    }
}

#[test]
fn the_second_page_is_read_only() {
    assert_eq!(fault(STORE, RW, true), Some(3));
    for code in CHANGES {
        assert_eq!(fault(code, RW, true), Some(3), "{code:02x?}");
    }
}

#[test]
fn an_access_leaves_its_bits_in_the_second_pages_entry() {
    let bits = |m: &Machine| m.read_ram::<u64>(entry(SECOND)) & (A | D);
    let m = machine(LOAD, US);
    m.npf(0, SECOND - 4, false);
    assert_eq!(m.run(0), Ok(Left::Mmio { gpa: SECOND - 4, write: false, data: vec![0; 4] }));
    assert_eq!(bits(&m), A);
    m.page(0).write(MMIO_DATA, &[1; 8]);
    assert_eq!(m.run(0), Ok(Left::Mmio { gpa: SECOND, write: false, data: vec![0; 4] }));
    m.page(0).write(MMIO_DATA, &[2; 8]);
    m.run_out(0);
    assert_eq!((bits(&m), m.regs(0).rax), (A, 0x0202_0202_0101_0101));
    let m = machine(STORE, US);
    m.npf(0, SECOND - 4, true);
    assert_eq!(m.run(0), Ok(Left::Mmio { gpa: SECOND - 4, write: true, data: vec![0; 4] }));
    assert_eq!(m.run(0), Ok(Left::Mmio { gpa: SECOND, write: true, data: vec![0; 4] }));
    m.run_out(0);
    assert_eq!(bits(&m), A | D);
}

/// The source of a string instruction is not the access that faulted: its page is looked for, too.
#[test]
fn both_sides_of_a_move_of_strings() {
    const SOURCE: u64 = 0x60_0000;
    let m = Machine::new();
    m.long(0, &[0x48, 0xa5]); // movsq
    m.with_regs(0, |r| (r.rsi, r.rdi) = (SOURCE - 4, MMIO));
    let old: u64 = m.read_ram(entry(SOURCE));
    m.write_ram(entry(SOURCE), &(old & !P).to_le_bytes());
    m.npf(0, MMIO, true);
    m.does(0, |c| assert_eq!(c.guest().cr2, SOURCE));
    m.run_out(0);
    let e = m.injected(0);
    assert_eq!((e[0].vector(), e[0].error_code(), m.regs(0).rip), (14, Some(0), CODE));
}
