//! The walk of a guest's page tables: the same answer and the same accessed and dirty bits as the model's, whatever is in memory.

use crate::input::Input;
use crate::walk_model;
use crate::{Kind, Paging};
use arch::{Gpa, Hva};
use mmu::{Mmu, Space, UserRegion, WalkError};
use sim::host::{CpuFeatures, Host};
use sim::{HVA_BASE, Sim};
use tests::scenario::PLAIN;

const PAGES: u64 = 8;
const KINDS: [Kind; 5] = [Kind::Read, Kind::Write, Kind::Fetch, Kind::SystemRead, Kind::SystemWrite];

pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let head = input.u8();
    let features = CpuFeatures { page_1g: head & 1 != 0, ..PLAIN };
    let sim = Sim::new(PAGES as usize, features);
    let mmu = Mmu::new(sim.clone()).expect("memory");
    let region = UserRegion { slot: 0, flags: 0, gpa: 0, size: PAGES << 12, hva: HVA_BASE };
    mmu.set_memory_region(&region, &|| ()).expect("a slot");
    let (p, linear, kind) = mode(&mut input);
    tables(&sim, &mut input, &p, linear);
    let before = memory(&sim);
    let read = |at: u64, size: usize| {
        let bytes = before.get(at as usize..)?.get(..size)?;
        let mut word = [0; 8];
        word[..size].copy_from_slice(bytes);
        Some(u64::from_le_bytes(word))
    };
    let want = walk_model::walk(&p, linear, kind, features.page_1g, read);
    let view = mmu.view(Space::Normal, None);
    let quiet = view.translate(&p, linear);
    let mut code = [0; 15];
    view.fetch(&p, linear, &mut code);
    assert!(memory(&sim) == before, "what only looks changes nothing");
    if let Ok(t) = want.result {
        assert_eq!(quiet, Some(t));
    }
    match view.walk(&p, linear, kind) {
        Err(WalkError::Host { .. }) => panic!("the host has all of it"),
        Err(WalkError::Fault { code }) => assert_eq!(Err(code), want.result),
        Ok(t) => assert_eq!(Ok(t), want.result),
    }
    let mut after = before.clone();
    for (at, entry) in want.stores {
        let size = usize::from(entry_size(&p));
        after[at as usize..][..size].copy_from_slice(&entry.to_le_bytes()[..size]);
    }
    assert!(memory(&sim) == after, "accessed and dirty bits");
    drop(mmu);
    assert_eq!(sim.tables_live(), 0);
}

fn entry_size(p: &Paging) -> u8 {
    if p.efer & 1 << 10 != 0 || p.cr4 & 1 << 5 != 0 { 8 } else { 4 }
}

fn memory(sim: &Sim) -> Vec<u8> {
    let mut all = vec![0; (PAGES as usize) << 12];
    sim.read_user(Hva(HVA_BASE), &mut all).expect("it is there");
    all
}

/// A mode of paging, what is accessed, and how.
fn mode(input: &mut Input<'_>) -> (Paging, u64, Kind) {
    const PG: u64 = 1 << 31;
    let modes = [(0, 0), (0x10, 0), (0x20, 0), (0x20, 1 << 10), (0x20, 1 << 10), (0x1020, 1 << 10)];
    let (cr4, efer) = input.of(&modes);
    let bits = u64::from(input.u16());
    let bit = |n: u64, to: u64| (bits >> n & 1) << to;
    let paged = if bits & 0x8000 == 0 { PG } else { 0 };
    let p = Paging {
        cr0: paged | 1 | bit(0, 16),
        cr3: u64::from(input.u16()) & 0xfff | 0x1000,
        cr4: cr4 | bit(1, 20) | bit(2, 21) | bit(3, 22),
        efer: if paged == 0 { 0 } else { efer } | bit(4, 11),
        cpl: if bits & 0x20 == 0 { 0 } else { 3 },
        ac: bits & 0x40 != 0,
        pkru: input.u32(),
        phys_bits: 36 + (bits >> 8 & 15) as u8,
    };
    (p, input.u64(), input.of(&KINDS))
}

/// Entries along the way that the address takes, as far as memory reaches.
fn tables(sim: &Sim, input: &mut Input<'_>, p: &Paging, linear: u64) {
    let bits: &[(u32, u64)] = match (entry_size(p), p.efer & 1 << 10 != 0, p.cr4 & 1 << 12 != 0) {
        (4, _, _) => &[(22, 1023), (12, 1023)],
        (_, false, _) => &[(30, 3), (21, 511), (12, 511)],
        (_, true, false) => &[(39, 511), (30, 511), (21, 511), (12, 511)],
        (_, true, true) => &[(48, 511), (39, 511), (30, 511), (21, 511), (12, 511)],
    };
    let size = u64::from(entry_size(p));
    let mask = if bits.len() == 3 { !0x1f } else { !0xfff };
    let mut table = p.cr3 & mask;
    for (shift, mask) in bits {
        let noise = if input.bool() { 1 << (input.u8() & 63) } else { 0 };
        let entry = (input.number() << 12 | u64::from(input.u16()) & 0xfff) ^ noise;
        let at = table + (linear >> shift & mask) * size;
        if at + size <= PAGES << 12 {
            sim.write_user(Hva(HVA_BASE + at), &entry.to_le_bytes()[..size as usize]).expect("it is there");
        }
        table = entry & 0xf000;
    }
    // What is written through the walk lies somewhere in between.
    let _ = Gpa(table);
}
