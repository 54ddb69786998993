//! Where an instruction is: only what the nested tables map, and what leads there word by word.

use super::Vm;
use super::fake::{Fake, PAGE};
use crate::Paging;
use arch::HostPa;
use host::MapLevel;

const HVA: u64 = 0x7000_0000_0000;
const CODE: u64 = 0x5000;

const LONG: Paging =
    Paging { cr0: 1 << 31 | 1, cr3: 0x1000, cr4: 1 << 5, efer: 1 << 10, cpl: 0, ac: false, pkru: 0, phys_bits: 40 };

/// 32 KiB of memory with tables at 0x1000 to 0x4000 that map linear 0 to CODE; CPUID lies at its 8th byte.
fn vm(level: MapLevel) -> (Vm, u64) {
    let vm = Vm::on(Fake::new());
    let pfn = vm.host.map_as(HVA, 8, true, level);
    vm.set(0, 0, 8, HVA, 0).unwrap();
    for table in 1..5 {
        vm.host.poke(HVA + table * PAGE, &entry(table).to_le_bytes());
    }
    vm.host.poke(HVA + CODE + 7, &[0x0f, 0xa2]);
    (vm, pfn)
}

#[test]
fn the_words_are_those_of_the_walk_and_of_the_code() {
    let (mut vm, pfn) = vm(MapLevel::Page4K);
    for page in 1..6 {
        assert!(vm.mmu.seen(&LONG, 7, 2).is_none(), "not everything is mapped");
        vm.fault(page * PAGE, false).unwrap();
    }
    let code = vm.mmu.seen(&LONG, 7, 2).unwrap();
    let at = |gpa: u64| HostPa((pfn << 12) + gpa);
    let tables = [1, 2, 3, 4].map(|t| (at(t * PAGE), entry(t)));
    assert_eq!(code.words[..4], tables);
    assert_eq!(code.words[4..], [(at(CODE), 0x0f << 56), (at(CODE + 8), 0xa2)]);
    assert_eq!(code.len, 2);
    // One word of code: the first of all stands in.
    assert_eq!(vm.mmu.seen(&LONG, 8, 1).unwrap().words[4..], [(at(CODE + 8), 0xa2), tables[0]]);
    vm.end();
}

#[test]
fn what_is_on_two_pages_or_without_paging_or_gone_is_not_known() {
    let (mut vm, _) = vm(MapLevel::Page4K);
    for page in 1..6 {
        vm.fault(page * PAGE, false).unwrap();
    }
    assert!(vm.mmu.seen(&LONG, 0xffe, 2).is_some());
    assert!(vm.mmu.seen(&LONG, 0xfff, 2).is_none());
    assert!(vm.mmu.seen(&LONG, 7, 0).is_none() && vm.mmu.seen(&LONG, 7, 16).is_none());
    assert!(vm.mmu.seen(&Paging { cr0: 1, ..LONG }, 7, 2).is_none());
    assert!(vm.mmu.seen(&Paging { efer: 0, ..LONG }, 7, 2).is_none());
    assert!(vm.mmu.seen(&LONG, 0x1000, 2).is_none(), "the guest maps nothing there");
    vm.invalidate(HVA + 3 * PAGE, HVA + 4 * PAGE);
    assert!(vm.mmu.seen(&LONG, 7, 2).is_none(), "a table was unmapped");
    vm.invalidate_end(HVA + 3 * PAGE, HVA + 4 * PAGE);
    vm.fault(3 * PAGE, false).unwrap();
    assert!(vm.mmu.seen(&LONG, 7, 2).is_some());
    // The page that the nested tables name is not the one that user space has by now.
    vm.host.map(HVA + CODE, 1, true);
    assert!(vm.mmu.seen(&LONG, 7, 2).is_none());
    vm.end();
}

/// The entry that leads from a table to the next.
fn entry(table: u64) -> u64 {
    ((table + 1) * PAGE) | 0x23
}
