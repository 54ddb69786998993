//! Large pages that the guest may write and that are mapped read-only: by a log that has begun, and because the host
//! has them read-only so far. Reads go on, and a write takes no more than one fault.

use crate::memory::faults;
use abi::uapi::ioctl::*;
use kvm_bindings::*;
use sim::host::{CpuFeatures, Errno, MapLevel};
use sim::{Outcome, Page};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use tests::scenario::{DATA, Left, Machine, PLAIN, RAM, RAM_HVA};

const M2: u64 = 2 << 20;
const G1: u64 = 1 << 30;
/// Where the arena begins, which a slot of 1 GiB maps; most of it is never touched.
const ARENA_HVA: u64 = RAM_HVA - M2;

/// How many nested faults a write of 8 bytes takes.
fn write_faults(m: &Machine, gpa: u64) -> usize {
    let seen = Arc::new(AtomicUsize::new(0));
    let count = seen.clone();
    m.sim.act(0, move |c| match c.store(gpa, gpa) {
        Ok(()) => Outcome::Next,
        Err(fault) => {
            count.fetch_add(1, Relaxed);
            fault
        }
    });
    m.run_out(0);
    seen.load(Relaxed)
}

/// The pages of a slot of `pages` that were written.
fn dirty(m: &Machine, slot: u32, pages: u64) -> Vec<u64> {
    let mut log = kvm_dirty_log { slot, ..Default::default() };
    log.__bindgen_anon_1.dirty_bitmap = DATA as *mut _;
    assert_eq!(m.vm_with(KVM_GET_DIRTY_LOG, &log), Ok(0));
    let word = |n: u64| m.get_at::<u64>(DATA + n / 64 * 8);
    (0..pages).filter(|n| word(*n) >> (n % 64) & 1 != 0).collect()
}

/// KVM_CLEAR_DIRTY_LOG of 64 pages.
fn clear(m: &Machine, slot: u32, first_page: u64) {
    m.put_at(DATA, &[u64::MAX]);
    let mut clear = kvm_clear_dirty_log { slot, num_pages: 64, first_page, ..Default::default() };
    clear.__bindgen_anon_1.dirty_bitmap = DATA as *mut _;
    assert_eq!(m.vm_with(KVM_CLEAR_DIRTY_LOG, &clear), Ok(0));
}

/// The host changes a page without calling the notifier: it stays where it is, and loses nothing.
fn quietly_writable(m: &Machine, gpa: u64, pages: u64) {
    (0..pages).for_each(|n| m.sim.set_page(RAM_HVA + gpa + n * 4096, Page::Writable));
}

fn efault(gpa: u64) -> Result<Left, (Errno, Left)> {
    Err((Errno::EFAULT, Left::MemoryFault { gpa }))
}

#[test]
fn reads_do_not_fault_when_a_log_begins() {
    let m = Machine::new();
    m.sim.set_level(MapLevel::Page2M);
    assert_eq!((write_faults(&m, 0x20_1000), faults(&m, 0x1000)), (1, 1));
    let tables = m.sim.tables_live();
    assert_eq!(m.region(0, KVM_MEM_LOG_DIRTY_PAGES, 0, RAM, RAM_HVA), Ok(0));
    for gpa in [0x1000, 0x20_1000, 0x20_2000, 0x3f_f000] {
        assert_eq!(faults(&m, gpa), 0, "{gpa:#x}");
    }
    assert_eq!((dirty(&m, 0, RAM >> 12), m.sim.tables_live()), (vec![], tables));
    // Nor where something else is written, or the log is read.
    assert_eq!(write_faults(&m, 0x20_3000), 1);
    assert_eq!(dirty(&m, 0, RAM >> 12), [0x203]);
    for gpa in [0x1000, 0x20_1000, 0x20_3000, 0x3f_f000] {
        assert_eq!(faults(&m, gpa), 0, "{gpa:#x}");
    }
    assert!(m.sim.tables_live() <= tables + 1);
    m.load(0, 0x20_1000, 0x20_1000);
    m.load(0, 0x20_3000, 0x20_3000);
    m.run_out(0);
    // Without the log the memory is large again.
    assert_eq!(m.region(0, 0, 0, RAM, RAM_HVA), Ok(0));
    assert_eq!((write_faults(&m, 0x20_5000), write_faults(&m, 0x20_6000)), (1, 0));
    m.end();
}

#[test]
fn each_page_is_dirty_once_after_its_first_write() {
    let m = Machine::new();
    m.sim.set_level(MapLevel::Page2M);
    assert_eq!(write_faults(&m, 0x20_0000), 1);
    assert_eq!(m.region(0, KVM_MEM_LOG_DIRTY_PAGES, 0, RAM, RAM_HVA), Ok(0));
    for round in 0..2 {
        let pages: Vec<u64> = (0x200..0x400).filter(|n| n % (3 + round) == 1).collect();
        for n in &pages {
            assert_eq!((write_faults(&m, n << 12), write_faults(&m, (n << 12) + 8)), (1, 0), "{n:#x}");
        }
        assert_eq!(dirty(&m, 0, RAM >> 12), pages);
        assert_eq!(dirty(&m, 0, RAM >> 12), []);
    }
    assert_eq!(faults(&m, 0x20_0000), 0);
    m.end();
}

#[test]
fn a_gigabyte_of_which_64_pages_are_cleared() {
    let m = Machine::on(CpuFeatures { page_1g: true, ..PLAIN });
    assert_eq!(m.enable(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 3), Ok(0));
    m.sim.set_level(MapLevel::Page1G);
    assert_eq!(m.region(1, 0, G1, G1, ARENA_HVA), Ok(0));
    let at = |page: u64| G1 + M2 + page * 4096;
    assert_eq!((write_faults(&m, at(0)), write_faults(&m, at(700))), (1, 0), "one page of 1 GiB");
    let tables = m.sim.tables_live();
    // All bits are set at first, and nothing is protected before they are cleared.
    assert_eq!(m.region(1, KVM_MEM_LOG_DIRTY_PAGES, G1, G1, ARENA_HVA), Ok(0));
    assert_eq!(write_faults(&m, at(1)), 0);
    clear(&m, 1, 512 + 64);
    for page in [0, 1, 64, 127, 128, 1000] {
        assert_eq!(faults(&m, at(page)), 0, "{page}");
    }
    assert_eq!(m.sim.tables_live(), tables);
    assert_eq!((write_faults(&m, at(70)), write_faults(&m, at(70))), (1, 0));
    // What was not cleared counts as written before and after.
    assert_eq!((write_faults(&m, at(3)), write_faults(&m, at(3))), (1, 0));
    let dirty: Vec<u64> = dirty(&m, 1, 2048).into_iter().filter(|n| (512..1024).contains(n)).map(|n| n - 512).collect();
    assert_eq!(dirty, (0..512).filter(|n| !(64..128).contains(n) || *n == 70).collect::<Vec<u64>>());
    for page in [0, 71, 128, 1000] {
        assert_eq!(faults(&m, at(page)), 0, "{page}");
    }
    assert!(m.sim.tables_live() <= tables + 2, "one of each level");
    m.load(0, at(70), at(70));
    m.load(0, at(700), at(700));
    m.run_out(0);
    m.end();
}

#[test]
fn read_only_in_the_host_and_upgraded_as_a_whole() {
    let m = Machine::new();
    m.sim.set_level(MapLevel::Page2M);
    m.host_changes(M2, 512, Page::ReadOnly);
    assert_eq!((faults(&m, M2), faults(&m, M2 + 0x5000)), (1, 0), "mapped large");
    let tables = m.sim.tables_live();
    m.tries(0, M2 + 0x5000, true);
    assert_eq!(m.run(0), efault(M2 + 0x5000), "and not written");
    quietly_writable(&m, M2, 512);
    assert_eq!((write_faults(&m, M2 + 0x5000), write_faults(&m, M2 + 0x6000)), (1, 0));
    assert_eq!(m.sim.tables_live(), tables);
    // The host takes it back, and the guest sees what comes then.
    m.host_changes(M2, 512, Page::ReadOnly);
    m.tries(0, M2 + 0x6000, true);
    assert_eq!(m.run(0), efault(M2 + 0x6000));
    m.end();
}

#[test]
fn read_only_in_the_host_whose_level_fell() {
    let m = Machine::new();
    m.sim.set_level(MapLevel::Page2M);
    m.host_changes(M2, 512, Page::ReadOnly);
    m.load(0, M2, 0);
    m.run_out(0);
    let tables = m.sim.tables_live();
    m.sim.set_level(MapLevel::Page4K);
    quietly_writable(&m, M2 + 0x5000, 1);
    assert_eq!((write_faults(&m, M2 + 0x5000), write_faults(&m, M2 + 0x5008)), (1, 0));
    assert_eq!((faults(&m, M2 + 0x6000), faults(&m, M2 + 0x1f_f000)), (0, 0));
    assert!(m.sim.tables_live() <= tables + 1);
    m.tries(0, M2 + 0x6000, true);
    assert_eq!(m.run(0), efault(M2 + 0x6000), "only the one page may be written");
    m.load(0, M2 + 0x5000, M2 + 0x5000);
    m.run_out(0);
    // Each part goes for itself.
    m.host_changes(M2 + 0x7000, 1, Page::Absent);
    assert_eq!(faults(&m, M2 + 0x6000), 0);
    m.load(0, M2 + 0x7000, 0);
    assert_eq!(m.run(0), efault(M2 + 0x7000));
    m.end();
}

/// The log begins while the host has the memory read-only: the write is still seen, and makes one small page writable.
#[test]
fn read_only_in_the_host_and_logged() {
    let m = Machine::new();
    m.sim.set_level(MapLevel::Page2M);
    m.host_changes(M2, 512, Page::ReadOnly);
    m.load(0, M2, 0);
    m.run_out(0);
    assert_eq!(m.region(0, KVM_MEM_LOG_DIRTY_PAGES, 0, RAM, RAM_HVA), Ok(0));
    quietly_writable(&m, M2, 512);
    assert_eq!(faults(&m, M2 + 0x6000), 0);
    assert_eq!((write_faults(&m, M2 + 0x5000), write_faults(&m, M2 + 0x6000)), (1, 1));
    assert_eq!(dirty(&m, 0, RAM >> 12), [0x205, 0x206]);
    m.end();
}
