//! One entry: a large one and its parts, and what happens to it when somebody else was faster.

use super::*;
use crate::tests::fake::Fake;
use std::vec::Vec;

const PA: u64 = 7 << 30;

fn pfn() -> Pfn {
    Pfn::from_host(HostPa(PA))
}

fn held(host: &Fake, pa: HostPa) -> Vec<u64> {
    host.table(pa).unwrap().0.iter().map(|c| c.load(Relaxed)).collect()
}

/// The parts map what the whole maps, with its rights and its age.
#[test]
fn parts_of_a_whole() {
    let host = Fake::new();
    for (level, size, bits) in [(2, 4096, 0), (3, 2 << 20, PS)] {
        for (write, rights) in [(false, 0), (true, RW | D)] {
            for age in [0, A] {
                let whole = Entry(Entry::leaf(pfn(), level, write).0 & !A | age);
                let parts = Parts::of(&host, host.alloc_table().unwrap(), whole, level).unwrap_or_else(|_| panic!());
                let want: Vec<u64> = (0..512).map(|n| (PA + n * size) | P | US | rights | age | bits).collect();
                assert_eq!(held(&host, parts.page.pa()), want);
                let cell = AtomicU64::new(whole.0);
                let pa = parts.page.pa();
                assert!(Cell(&cell).split(parts).is_ok());
                assert_eq!(Cell(&cell).load().child(), Some(pa));
                assert!(Cell(&cell).load().writable());
                host.free_table(TablePage::from_host(pa));
            }
        }
    }
}

/// Somebody else was faster: what is there stays, and the page is as it was.
#[test]
fn what_is_not_there_any_more_is_not_split() {
    let host = Fake::new();
    let old = Entry::leaf(pfn(), 2, false);
    for now in [Entry(0), Entry::leaf(pfn(), 2, true), Entry(old.0 & !A), Entry(9 << 12 | P | RW | US | A | TABLE)] {
        let cell = AtomicU64::new(now.0);
        let parts = Parts::of(&host, host.alloc_table().unwrap(), old, 2).unwrap_or_else(|_| panic!());
        let page = Cell(&cell).split(parts).unwrap_err();
        assert_eq!((cell.load(Relaxed), held(&host, page.pa())), (now.0, std::vec![0; 512]));
        host.free_table(page);
    }
}

#[test]
fn what_is_not_large_has_no_parts() {
    let host = Fake::new();
    let table = Entry(9 << 12 | P | RW | US | A | TABLE);
    for (whole, level) in
        [(Entry(0), 2), (Entry::leaf(pfn(), 1, false), 1), (table, 2), (Entry::leaf(pfn(), 4, false), 4)]
    {
        let page = Parts::of(&host, host.alloc_table().unwrap(), whole, level).err().unwrap();
        assert!(held(&host, page.pa()).iter().all(|e| *e == 0));
        host.free_table(page);
    }
}

/// Aging changes no table that has taken the place of a large page.
#[test]
fn only_what_was_seen_ages() {
    let old = Entry::leaf(pfn(), 2, false);
    for (now, then) in [(old.0, old.0 & !A), (9 << 12 | P | RW | US | A | TABLE, 9 << 12 | P | RW | US | A | TABLE)] {
        let cell = AtomicU64::new(now);
        assert_eq!(Cell(&cell).clear_accessed(old), now != then);
        assert_eq!(cell.load(Relaxed), then);
    }
}
