//! The guest's page tables once more, as a table of facts instead of a walk: written from the APM's figures, slowly and
//! without sharing anything with the code under test.

use crate::{Kind, Paging, Translation};
use std::vec::Vec;

/// One entry on the way: where it is, what it holds, and whether it has permission and A bits.
struct Step {
    at: u64,
    entry: u64,
    plain: bool,
}

/// What should come out: the translation, or a #PF code; and the entries with A and D set as they should be then.
pub struct Answer {
    pub result: Result<Translation, u32>,
    pub stores: Vec<(u64, u64)>,
}

/// `read(address, size)` is guest memory; None outside of it.
pub fn walk(p: &Paging, linear: u64, kind: Kind, page_1g: bool, read: impl Fn(u64, usize) -> Option<u64>) -> Answer {
    let fault = |code| Answer { result: Err(code), stores: Vec::new() };
    let on = |word: u64, bit: u32| word >> bit & 1 == 1;
    let (wp, paging) = (on(p.cr0, 16), on(p.cr0, 31));
    let (pse, pae, la57) = (on(p.cr4, 4), on(p.cr4, 5), on(p.cr4, 12));
    let (smep, smap, pke) = (on(p.cr4, 20), on(p.cr4, 21), on(p.cr4, 22));
    let (long, nxe) = (on(p.efer, 10), on(p.efer, 11));
    let write = matches!(kind, Kind::Write | Kind::SystemWrite);
    let system = matches!(kind, Kind::SystemRead | Kind::SystemWrite);
    let fetch = matches!(kind, Kind::Fetch);
    let user = p.cpl == 3 && !system;

    if !paging {
        let t =
            Translation { gpa: arch::Gpa(linear & 0xffff_ffff), writable: true, user: true, execute: true, level: 1 };
        return Answer { result: Ok(t), stores: Vec::new() };
    }
    // (bits of the index from, to), top level first; entry size; first table.
    let (fields, size, cr3): (&[(u32, u32)], usize, u64) = match (long, pae, la57) {
        (true, _, true) => (&[(48, 56), (39, 47), (30, 38), (21, 29), (12, 20)], 8, p.cr3 & 0x000f_ffff_ffff_f000),
        (true, _, false) => (&[(39, 47), (30, 38), (21, 29), (12, 20)], 8, p.cr3 & 0x000f_ffff_ffff_f000),
        (false, true, _) => (&[(30, 31), (21, 29), (12, 20)], 8, p.cr3 & 0xffff_ffe0),
        (false, false, _) => (&[(22, 31), (12, 21)], 4, p.cr3 & 0xffff_f000),
    };
    let wide = size == 8;
    let physical = (1u64 << p.phys_bits) - 1;
    let mut code = 0;
    code |= if write { 2 } else { 0 };
    code |= if user { 4 } else { 0 };
    code |= if fetch && (smep || nxe && (long || pae)) { 16 } else { 0 };

    let mut steps = Vec::new();
    let mut table = if long { cr3 & physical } else { cr3 };
    let mut found = None;
    for (n, &(low, high)) in fields.iter().enumerate() {
        let level = fields.len() - n;
        let index = linear >> low & ((1 << (high - low + 1)) - 1);
        let at = table + index * size as u64;
        let Some(entry) = read(at, size) else { return fault(code) };
        if !on(entry, 0) {
            return fault(code);
        }
        let pdpte = !long && wide && level == 3;
        let ps = on(entry, 7);
        let leaf = level == 1
            || ps
                && match (wide, level) {
                    (false, 2) => pse,
                    (true, 2) => true,
                    (true, 3) => long && page_1g,
                    _ => false,
                };
        let mut bad = false;
        if wide {
            bad |= (p.phys_bits.into()..52).any(|b| on(entry, b));
            bad |= !nxe && on(entry, 63);
            bad |= !long && (52..63).any(|b| on(entry, b));
            bad |= pdpte && ([1, 2, 5, 6, 7, 8, 63].iter().any(|b| on(entry, *b)));
            bad |= long && level >= 4 && (ps || on(entry, 8));
            bad |= long && level == 3 && ps && !page_1g;
            bad |= leaf && level == 2 && (13..21).any(|b| on(entry, b));
            bad |= leaf && level == 3 && (13..30).any(|b| on(entry, b));
        } else if leaf && level == 2 {
            bad |= on(entry, 21);
            bad |= (13..21).any(|b| on(entry, b) && 32 + b - 13 >= p.phys_bits.into());
        }
        if bad {
            return fault(code | 1 | 8);
        }
        steps.push(Step { at, entry, plain: !pdpte });
        if leaf {
            let base = match (wide, level) {
                (false, 2) => entry & 0xffc0_0000 | (entry >> 13 & 255) << 32,
                (false, _) => entry & 0xffff_f000,
                _ => entry & 0x000f_ffff_ffff_f000 & !((1 << low) - 1),
            };
            found = Some((base + (linear & ((1 << low) - 1)), level as u8, entry));
            break;
        }
        table = entry & if wide { 0x000f_ffff_ffff_f000 } else { 0xffff_f000 };
    }
    let (gpa, level, last) = found.unwrap();
    let writable = steps.iter().filter(|s| s.plain).all(|s| on(s.entry, 1));
    let user_page = steps.iter().filter(|s| s.plain).all(|s| on(s.entry, 2));
    let execute = !wide || !steps.iter().filter(|s| s.plain).any(|s| on(s.entry, 63));

    let key = last >> 59 & 15;
    let (ad, wd) = (p.pkru >> (2 * key) & 1 == 1, p.pkru >> (2 * key + 1) & 1 == 1);
    let keyed = long && pke && user_page && !fetch && (ad || wd && write && (user || wp));
    let allowed = match (user, user_page) {
        (true, false) => false,
        (true, true) => (!write || writable) && (!fetch || execute),
        (false, true) if fetch && smep => false,
        (false, true) if !fetch && smap && (system || !p.ac) => false,
        (false, _) => (!write || writable || !wp) && (!fetch || execute),
    };
    if !allowed || keyed {
        return fault(code | 1 | if keyed { 32 } else { 0 });
    }
    let last = steps.len() - 1;
    let plain = steps.iter().enumerate().filter(|(_, s)| s.plain);
    let stores = plain.map(|(n, s)| (s.at, s.entry | 0x20 | if n == last && write { 0x40 } else { 0 })).collect();
    Answer { result: Ok(Translation { gpa: arch::Gpa(gpa), writable, user: user_page, execute, level }), stores }
}
