//! The walk of the guest's tables: against the model in all modes, and the cases that a random table does not hit.

use super::fake::{PAGE, Point};
use super::walk_model::walk as model;
use super::{Fake, Vm};
use crate::{Kind, LOG_DIRTY_PAGES, Paging, READONLY, WalkError};
use arch::Gpa;
use host::Stop;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::vec::Vec;

const HVA: u64 = 0x7000_0000_0000;
const KINDS: [Kind; 5] = [Kind::Read, Kind::Write, Kind::Fetch, Kind::SystemRead, Kind::SystemWrite];

const PG: u64 = 1 << 31;
const WP: u64 = 1 << 16;
const PSE: u64 = 1 << 4;
const PAE: u64 = 1 << 5;
const LMA: u64 = 1 << 10;
const NXE: u64 = 1 << 11;

/// 64 KiB of memory at guest address 0.
fn vm(page_1g: bool) -> Vm {
    let vm = Vm::on(if page_1g { Fake::new() } else { Fake::new().without_1g() });
    vm.host.map(HVA, 16, true);
    vm.set(0, 0, 16, HVA, 0).unwrap();
    vm
}

fn peek(vm: &Vm, at: u64, size: usize) -> u64 {
    let mut b = [0; 8];
    vm.host.peek(HVA + at, &mut b[..size]);
    u64::from_le_bytes(b)
}

/// All of the guest's memory.
fn snapshot(vm: &Vm) -> Vec<u8> {
    let mut all = std::vec![0; 16 * PAGE as usize];
    vm.host.peek(HVA, &mut all);
    all
}

fn poke(vm: &Vm, at: u64, value: u64) {
    vm.host.poke(HVA + at, &value.to_le_bytes());
}

/// CR0, CR4 and EFER of the paging modes, and the width of entries.
fn mode() -> impl Strategy<Value = (u64, u64, u64, u64)> {
    prop_oneof![
        Just((PG, 0, 0, 4)),
        Just((PG, PSE, 0, 4)),
        Just((PG, PAE, 0, 8)),
        Just((PG, PAE, LMA, 8)),
        Just((PG, PAE | 1 << 12, LMA, 8)),
        Just((0, 0, 0, 8)),
    ]
}

/// An entry: mostly a sound one that points to one of the first 16 pages (or, large, anywhere).
fn entry() -> impl Strategy<Value = u64> {
    let flags = (any::<u16>(), 0..16u64, 0..64u32);
    (flags, 0..18u64, any::<u64>(), 0..64u64).prop_map(|((low, key, chance), page, noise, bit)| {
        let mut e = 1 | u64::from(low) & 0x67 | page << 12;
        if chance < 12 {
            e = e & !0xf000 | 0x80 | (noise & 0xf_ffff) << 22 & 0xffff_c000_0000; // large
        }
        e |= if chance % 8 == 0 { key << 59 } else { 0 };
        e |= if chance % 8 == 1 { 1 << 63 } else { 0 };
        if chance > 50 { e ^ 1 << bit } else { e }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6000))]

    #[test]
    fn same_as_the_model(
        (pg, cr4, efer, width) in mode(),
        more in (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()),
        (cpl, pkru, phys_bits) in (prop_oneof![Just(0u8), Just(1), Just(3)], any::<u32>(), 36..53u8),
        entries in prop::collection::vec(entry(), 5),
        (linear, kind, page_1g) in (any::<u64>(), 0..5usize, any::<bool>()),
    ) {
        let (nxe, wp, smep, smap, pke, ac) = more;
        let vm = vm(page_1g);
        let flag = |on: bool, bit: u64| if on { bit } else { 0 };
        let p = Paging {
            cr0: pg | flag(wp, WP) | 1,
            cr3: 0x1000,
            cr4: cr4 | flag(smep, 1 << 20) | flag(smap, 1 << 21) | flag(pke, 1 << 22),
            efer: efer | flag(nxe, NXE),
            cpl,
            ac,
            pkru,
            phys_bits,
        };
        // Write the entries along the path that the address takes.
        let bits: &[(u32, u64)] = match (width, efer != 0, cr4 & 1 << 12 != 0) {
            (4, _, _) => &[(22, 1023), (12, 1023)],
            (_, false, _) => &[(30, 3), (21, 511), (12, 511)],
            (_, true, false) => &[(39, 511), (30, 511), (21, 511), (12, 511)],
            (_, true, true) => &[(48, 511), (39, 511), (30, 511), (21, 511), (12, 511)],
        };
        let mut table = 0x1000;
        for (n, (shift, mask)) in bits.iter().enumerate() {
            let pdpte = width == 8 && efer == 0 && n == 0;
            let mut e = entries[n];
            if pdpte && e & 0x80 == 0 {
                e &= !0x66;
            }
            if bits.len() - n >= 4 && e & 0x80 == 0 {
                e &= !0x100;
            }
            let at = table + (linear >> shift & mask) * width;
            if width == 8 {
                poke(&vm, at, e);
            } else {
                vm.host.poke(HVA + at, &(e as u32).to_le_bytes());
            }
            table = e & 0xf000;
        }
        let before = snapshot(&vm);
        let read = |at: u64, size: usize| (at < 16 * PAGE).then(|| peek(&vm, at, size));
        let want = model(&p, linear, KINDS[kind], page_1g, read);

        // A walk without side effects first.
        let quiet = vm.mmu.normal().translate(&p, linear);
        if let Ok(t) = want.result {
            prop_assert_eq!(quiet, Some(t));
        }
        let mut code = [0; 15];
        let fetched = vm.mmu.normal().fetch(&p, linear, &mut code);
        if let (Kind::Fetch, Ok(t)) = (KINDS[kind], want.result) {
            let here = (PAGE - (linear & 0xfff)).min(15) as usize;
            prop_assert!(t.gpa.0 >= 16 * PAGE || fetched >= here);
        }
        if let (Kind::Fetch, Err(_)) = (KINDS[kind], want.result) {
            prop_assert_eq!(fetched, 0);
        }
        prop_assert!(snapshot(&vm) == before);
        let got = vm.mmu.normal().walk(&p, linear, KINDS[kind]).map_err(|e| match e {
            WalkError::Fault { code } => code,
            WalkError::Host { .. } => u32::MAX,
        });
        prop_assert_eq!(got, want.result);
        // A table may be its own parent: then one entry gets the bits of both levels.
        let mut stores = BTreeMap::new();
        for (at, value) in want.stores {
            *stores.entry(at).or_insert(0) |= value;
        }
        for (at, value) in stores {
            prop_assert_eq!(peek(&vm, at, width as usize), value);
        }
        if want.result.is_err() {
            prop_assert!(snapshot(&vm) == before);
        }
    }
}

/// Long mode, tables in pages 1 to 4 (PML4 to PT), all user and writable; linear 0 is page 5, 0x1000 page 6.
fn long() -> (Vm, Paging) {
    let vm = vm(true);
    for (table, below) in [(1u64, 2u64), (2, 3), (3, 4), (4, 5)] {
        poke(&vm, table * PAGE, below << 12 | 7);
    }
    poke(&vm, 4 * PAGE + 8, 6 << 12 | 7);
    let p = Paging { cr0: PG | WP | 1, cr3: 0x1000, cr4: PAE, efer: LMA | NXE, phys_bits: 48, ..Default::default() };
    (vm, p)
}

#[test]
fn all_large_page_sizes() {
    let (vm, p) = long();
    poke(&vm, 2 * PAGE + 8, 0x4000_0000 | 0x1087); // 1 GiB, with the PAT bit
    poke(&vm, 3 * PAGE + 8, 0x60_0000 | 0x1087); // 2 MiB
    for (linear, gpa, level) in [
        (0x123, 0x5123, 1),
        (0x1fff, 0x6fff, 1),
        (0x20_1234, 0x60_1234, 2),
        (0x3f_ffff, 0x7f_ffff, 2),
        (0x4012_3456, 0x4012_3456, 3),
        (0x7fff_ffff, 0x7fff_ffff, 3),
    ] {
        let t = vm.mmu.normal().walk(&p, linear, Kind::Write).unwrap();
        assert_eq!((t.gpa, t.level, t.writable, t.user, t.execute), (Gpa(gpa), level, true, true, true));
    }
    // PSE-36: 4 MiB at 0x5_0040_0000.
    let p = Paging { cr4: PSE, efer: 0, cr3: 0x8000, ..p };
    poke(&vm, 0x8000, 0x0040_0087 | 5 << 13);
    assert_eq!(vm.mmu.normal().walk(&p, 0x12_3456, Kind::Read).unwrap().gpa, Gpa(0x5_0052_3456));
    vm.end();
}

#[test]
fn the_global_bit_of_entries_that_name_a_table() {
    for (table, reserved) in [(1, true), (2, false), (3, false)] {
        let (vm, p) = long();
        poke(&vm, table * PAGE, peek(&vm, table * PAGE, 8) | 1 << 8);
        let result = vm.mmu.normal().walk(&p, 0x123, Kind::Read).map(|t| t.gpa);
        let want = if reserved { Err(WalkError::Fault { code: 9 }) } else { Ok(Gpa(0x5123)) };
        assert_eq!(result, want, "table {table}");
        vm.end();
    }
}

#[test]
fn fetch_across_a_page() {
    let (vm, p) = long();
    vm.host.poke(HVA + 0x5ff8, &[1, 2, 3, 4, 5, 6, 7, 8]);
    vm.host.poke(HVA + 0x6000, &[9; 8]);
    let mut b = [0; 15];
    assert_eq!(vm.mmu.normal().fetch(&p, 0xff8, &mut b), 15);
    assert_eq!(b, [1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 9, 9, 9, 9]);
    assert_eq!(vm.mmu.normal().fetch(&p, 0x1ff8, &mut b), 8); // page 2 is not present
    assert_eq!(vm.mmu.normal().fetch(&p, 0x2000, &mut b), 0);
    poke(&vm, 4 * PAGE + 8, 1 << 63 | 6 << 12 | 7); // no execute
    assert_eq!(vm.mmu.normal().fetch(&p, 0xff8, &mut b), 8);
    // Real mode: the limit of 32 bits, and the end of memory.
    let real = Paging { phys_bits: 48, ..Default::default() };
    assert_eq!(vm.mmu.normal().fetch(&real, 0x5ffa, &mut b), 15);
    assert_eq!(b[..6], [3, 4, 5, 6, 7, 8]);
    assert_eq!(vm.mmu.normal().fetch(&real, 0xfff8, &mut b), 8);
    assert_eq!(vm.mmu.normal().fetch(&real, 0x1_0000_5ff8, &mut b), 15);
    vm.end();
}

#[test]
fn a_fetch_takes_few_looks() {
    let (vm, p) = long();
    let looks = Arc::new(AtomicU32::new(0));
    let count = looks.clone();
    vm.host.hook(move |_| {
        count.fetch_add(1, SeqCst);
    });
    assert_eq!(vm.mmu.normal().fetch(&p, 0x10, &mut [0; 15]), 15);
    assert_eq!(looks.load(SeqCst), 5, "four entries and the bytes");
    vm.end();
}

#[test]
fn tables_that_cannot_be_written() {
    let (vm, p) = long();
    vm.set(0, 0, 0, 0, 0).unwrap();
    vm.set(0, 0, 16, HVA, READONLY).unwrap();
    assert_eq!(vm.mmu.normal().walk(&p, 0, Kind::Write).unwrap().gpa, Gpa(0x5000));
    assert_eq!(peek(&vm, 0x1000, 8), 0x2007); // A and D stay as they are
    // In memory that the VMM took away.
    vm.host.unmap(HVA + 0x3000, 1);
    let lost = WalkError::Host { gpa: Gpa(0x3000), stop: Stop::Fault };
    assert_eq!(vm.mmu.normal().walk(&p, 0, Kind::Read), Err(lost));
    assert_eq!(vm.mmu.normal().translate(&p, 0), None);
    vm.end();
}

#[test]
fn set_bits_are_logged_as_writes() {
    let (vm, p) = long();
    vm.host.map(0x6000_0000_0000, 1, true);
    vm.set(0, 0, 16, HVA, LOG_DIRTY_PAGES).unwrap();
    let log = || {
        vm.mmu.get_dirty_log(0, arch::Hva(0x6000_0000_0000), &|| {}).unwrap();
        let mut b = [0; 8];
        vm.host.peek(0x6000_0000_0000, &mut b);
        u64::from_le_bytes(b)
    };
    vm.mmu.normal().walk(&p, 0, Kind::Read).unwrap();
    assert_eq!(log(), 0b11110);
    vm.mmu.normal().walk(&p, 0, Kind::Write).unwrap();
    assert_eq!(log(), 0b10000); // only D in the last one was missing
    vm.mmu.normal().walk(&p, 0, Kind::Write).unwrap();
    assert_eq!(log(), 0);
    vm.end();
}

/// Another vCPU changes an entry between our look and our compare-exchange: the walk sees the new one.
#[test]
fn an_entry_that_changes_under_the_walk() {
    let (vm, p) = long();
    let (host, times) = (vm.host.clone(), AtomicU32::new(0));
    vm.host.hook(move |at| {
        if at == Point::Cmpxchg(HVA + 0x4000) && times.fetch_add(1, SeqCst) == 0 {
            host.poke(HVA + 0x4000, &(7u64 << 12 | 7).to_le_bytes());
        }
    });
    assert_eq!(vm.mmu.normal().walk(&p, 0, Kind::Write).unwrap().gpa, Gpa(0x7000));
    assert_eq!(peek(&vm, 0x4000, 8), 7 << 12 | 0x67);
    // One that never stops changing: the walk ends all the same.
    let (host, times) = (vm.host.clone(), AtomicU32::new(0));
    vm.host.hook(move |at| {
        if at == Point::Cmpxchg(HVA + 0x4008) {
            let n = u64::from(times.fetch_add(1, SeqCst));
            host.poke(HVA + 0x4008, &(8 << 12 | 7 | (n & 1) << 9).to_le_bytes());
        }
    });
    assert_eq!(vm.mmu.normal().walk(&p, 0x1000, Kind::Write).unwrap().gpa, Gpa(0x8000));
    vm.host.hook(|_| {});
    vm.end();
}
