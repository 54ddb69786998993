//! The dirty log: what is reported, and that no write is lost.

use super::Vm;
use super::fake::PAGE;
use crate::RetPf::*;
use crate::{LOG_DIRTY_PAGES, MANUAL_DIRTY_LOG_BITS, READONLY};
use arch::{Gpa, Hva};
use host::Errno::*;
use host::MapLevel::Page2M;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::vec::Vec;

const HVA: u64 = 0x7000_0000_0000;
/// Where user space keeps its bitmap.
const OUT: u64 = 0x6000_0000_0000;

fn log(vm: &Vm, slot: u32, pages: u64) -> Vec<u64> {
    vm.mmu.get_dirty_log(slot, Hva(OUT), &|| vm.flush()).unwrap();
    read_bits(vm, pages)
}

fn read_bits(vm: &Vm, pages: u64) -> Vec<u64> {
    let mut bytes = std::vec![0; pages.div_ceil(64) as usize * 8];
    vm.host.peek(OUT, &mut bytes);
    (0..bytes.len() as u64 * 8).filter(|n| bytes[*n as usize / 8] & 1 << (n % 8) != 0).collect()
}

fn logging(pages: u64) -> Vm {
    let vm = Vm::new().checked();
    vm.host.map_as(HVA, pages.next_multiple_of(512), true, Page2M);
    vm.host.map(OUT, 1, true);
    vm.set(3, 0x20_0000, pages, HVA, LOG_DIRTY_PAGES).unwrap();
    vm
}

#[test]
fn writes_are_reported_once() {
    let mut vm = logging(130);
    assert_eq!(log(&vm, 3, 130), []);
    vm.fault(0x20_0000, false).unwrap();
    vm.fault(0x20_1000, true).unwrap();
    vm.fault(0x20_0000 + 129 * PAGE, true).unwrap();
    vm.mmu.normal().write_phys(Gpa(0x20_0000 + 64 * PAGE - 1), &[1, 2]).unwrap();
    vm.mmu.normal().cmpxchg_phys(Gpa(0x20_5000), 4, 0, 7).unwrap();
    vm.mmu.normal().cmpxchg_phys(Gpa(0x20_6000), 4, 1, 7).unwrap(); // does not match: not written
    let before = vm.flush_count();
    // The first was only read: it was mapped writable for it.
    assert_eq!(log(&vm, 3, 130), [0, 1, 5, 63, 64, 129]);
    assert_eq!(vm.flush_count(), before + 1);
    // Write-protected, still mapped; the next write is seen again, and reads are not.
    assert!(!vm.look(0x20_1000).unwrap().write);
    assert_eq!(log(&vm, 3, 130), []);
    assert_eq!(vm.flush_count(), before + 1, "nothing was writable");
    vm.fault(0x20_1000, true).unwrap();
    assert_eq!(log(&vm, 3, 130), [1]);
    vm.end();
}

#[test]
fn room_to_read_logs_out_goes_with_the_last_of_them() {
    let vm = logging(130);
    let room = || vm.mmu.slots_lock.lock().scratch.capacity();
    vm.set(4, 0x4000_0000, 512, HVA, LOG_DIRTY_PAGES).unwrap();
    assert!(room() >= 64);
    vm.set(4, 0x4000_0000, 512, HVA, 0).unwrap();
    assert!(room() >= 24, "the other logs still");
    assert_eq!(log(&vm, 3, 130), []);
    vm.set(3, 0x20_0000, 130, HVA, 0).unwrap();
    assert_eq!(room(), 0, "none logs");
    vm.set(4, 0x4000_0000, 512, HVA, LOG_DIRTY_PAGES).unwrap();
    assert_eq!(log(&vm, 4, 512), []);
    vm.set(4, 0, 0, 0, 0).unwrap();
    assert_eq!(room(), 0, "none is left that does");
    vm.end();
}

/// What is only read stays read-only where the slot is, log or not.
#[test]
fn read_only_slots_that_log() {
    let mut vm = Vm::new().checked();
    vm.host.map(HVA, 1, true);
    vm.host.map(OUT, 1, true);
    vm.set(3, 0, 1, HVA, LOG_DIRTY_PAGES | READONLY).unwrap();
    vm.fault(0, false).unwrap();
    assert!(!vm.look(0).unwrap().write);
    assert_eq!(log(&vm, 3, 1), []);
    vm.end();
}

/// The large pages of a read-only slot stay when the log begins, and are flushed when the host takes the memory back.
#[test]
fn read_only_slots_whose_log_begins() {
    let mut vm = Vm::new().checked();
    vm.host.map_as(HVA, 512, true, Page2M);
    vm.set(0, 0, 512, HVA, READONLY).unwrap();
    vm.fault(0x5000, false).unwrap();
    assert_eq!(vm.look(0x5000).map(|f| (f.level, f.write)), Some((2, false)));
    vm.set(0, 0, 512, HVA, READONLY | LOG_DIRTY_PAGES).unwrap();
    assert_eq!((vm.look(0x5000).map(|f| (f.level, f.write)), vm.flush_count()), (Some((2, false)), 0));
    vm.invalidate(HVA, HVA + PAGE);
    assert_eq!((vm.look(0x5000), vm.flush_count()), (None, 1));
    vm.end();
}

#[test]
fn errors() {
    let vm = logging(130);
    let get = |slot| vm.mmu.get_dirty_log(slot, Hva(OUT), &|| {});
    assert_eq!(get(2), Err(ENOENT));
    assert_eq!(get(1 << 16 | 3), Err(ENOENT));
    assert_eq!(get(2 << 16 | 3), Err(EINVAL));
    assert_eq!(get(32764), Err(EINVAL));
    assert_eq!(vm.mmu.get_dirty_log(3, Hva(0x1000), &|| {}), Err(EFAULT));
    vm.set(2, 0x100_0000, 1, HVA, 0).unwrap();
    assert_eq!(get(2), Err(ENOENT)); // does not log
    let clear = |first, num| vm.mmu.clear_dirty_log(3, first, num, Hva(OUT), &|| {});
    for (first, num, want) in [
        (0, 130, Ok(())),
        (64, 66, Ok(())),
        (128, 2, Ok(())),
        (0, 64, Ok(())),
        (0, 0, Ok(())),
        (1, 64, Err(EINVAL)),
        (0, 65, Err(EINVAL)),
        (0, 131, Err(EINVAL)),
        (128, 64, Err(EINVAL)),
        (192, 0, Err(EINVAL)),
        (1 << 63, 64, Err(EINVAL)),
    ] {
        assert_eq!(clear(first, num), want, "{first} {num}");
    }
    assert_eq!(vm.mmu.clear_dirty_log(3, 0, 64, Hva(0x1000), &|| {}), Err(EFAULT));
    assert_eq!(vm.mmu.clear_dirty_log(4, 0, 64, Hva(OUT), &|| {}), Err(ENOENT));
    assert_eq!(vm.mmu.set_manual_dirty_log(2), Err(EINVAL));
    assert_eq!(vm.mmu.set_manual_dirty_log(4), Err(EINVAL));
    vm.set(3, 0x20_0000, 130, HVA, 0).unwrap();
    assert_eq!(get(3), Err(ENOENT));
    vm.end();
}

#[test]
fn manual_clearing() {
    let mut vm = Vm::new().checked();
    vm.mmu.set_manual_dirty_log(MANUAL_DIRTY_LOG_BITS).unwrap();
    vm.host.map_as(HVA, 512, true, Page2M);
    vm.host.map(OUT, 1, true);
    vm.set(3, 0, 512, HVA, 0).unwrap();
    vm.fault(0, true).unwrap();
    vm.set(3, 0, 512, HVA, LOG_DIRTY_PAGES).unwrap();
    // All pages count as written, and nothing was unmapped.
    assert_eq!(vm.flush_count(), 0);
    assert_eq!(vm.look(0).map(|f| (f.level, f.write)), Some((2, true)));
    assert_eq!(log(&vm, 3, 512).len(), 512);
    assert_eq!(log(&vm, 3, 512).len(), 512, "reading does not clear");
    // Clear pages 64 to 127 but for one.
    vm.host.poke(OUT, &(!2u64).to_le_bytes());
    vm.mmu.clear_dirty_log(3, 64, 64, Hva(OUT), &|| vm.flush()).unwrap();
    assert_eq!(vm.flush_count(), 1);
    let left: Vec<u64> = (0..512).filter(|n| !(64..128).contains(n) || *n == 65).collect();
    assert_eq!(log(&vm, 3, 512), left);
    assert_eq!(vm.look(70 * PAGE).map(|f| (f.level, f.write)), Some((2, false)), "the large page is protected");
    vm.fault(70 * PAGE, true).unwrap();
    assert_eq!(vm.look(70 * PAGE).map(|f| (f.level, f.write)), Some((1, true)));
    assert!(log(&vm, 3, 512).contains(&70));
    // A new log while the mode is plain manual starts empty.
    vm.mmu.set_manual_dirty_log(1).unwrap();
    vm.set(3, 0, 512, HVA, 0).unwrap();
    vm.set(3, 0, 512, HVA, LOG_DIRTY_PAGES).unwrap();
    assert_eq!(log(&vm, 3, 512), []);
    vm.end();
}

#[test]
fn initially_set_bits_end_with_the_slot() {
    let vm = Vm::new();
    vm.mmu.set_manual_dirty_log(MANUAL_DIRTY_LOG_BITS).unwrap();
    vm.host.map(OUT, 1, true);
    for (slot, pages) in [(0, 1), (1, 63), (2, 64), (3, 65), (4, 128)] {
        vm.set(slot, u64::from(slot) << 24, pages, HVA, LOG_DIRTY_PAGES).unwrap();
        assert_eq!(log(&vm, slot, pages), (0..pages).collect::<Vec<_>>());
    }
    vm.end();
}

/// The log goes with a slot that moves, unless the move ends it.
#[test]
fn a_moved_slot_keeps_its_log() {
    let mut vm = logging(64);
    vm.fault(0x20_3000, true).unwrap();
    vm.set(3, 0x40_0000, 64, HVA, LOG_DIRTY_PAGES).unwrap();
    vm.fault(0x40_5000, true).unwrap();
    assert_eq!(log(&vm, 3, 64), [3, 5]);
    vm.set(3, 0x60_0000, 64, HVA, 0).unwrap();
    assert_eq!(vm.mmu.get_dirty_log(3, Hva(OUT), &|| {}), Err(ENOENT));
    vm.set(3, 0x80_0000, 64, HVA, LOG_DIRTY_PAGES).unwrap();
    assert_eq!(log(&vm, 3, 64), []);
    vm.end();
}

/// Reading the log lets go of the lock between batches and protects across all of a large slot.
#[test]
fn many_pages() {
    let pages = 20_000;
    let mut vm = Vm::new().checked();
    vm.host.map(HVA, pages, true);
    vm.host.map(OUT, 1, true);
    vm.set(0, 0, pages, HVA, 0).unwrap();
    for n in (0..pages).step_by(37) {
        vm.fault(n * PAGE, true).unwrap();
    }
    vm.set(0, 0, pages, HVA, LOG_DIRTY_PAGES).unwrap();
    assert!((0..pages).step_by(37).all(|n| vm.look(n * PAGE).is_some_and(|f| !f.write)));
    for n in (0..pages).step_by(41) {
        vm.fault(n * PAGE, true).unwrap();
    }
    assert_eq!(log(&vm, 0, pages), (0..pages).step_by(41).collect::<Vec<_>>());
    assert!((0..pages).all(|n| vm.look(n * PAGE).is_none_or(|f| !f.write)));
    vm.end();
}

#[derive(Clone, Debug)]
enum Op {
    GuestWrite(u64),
    GuestRead(u64),
    HostWrite(u64),
    Invalidate(u64),
    Get,
    Clear(u64),
    Off,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..200u64).prop_map(Op::GuestWrite),
        2 => (0..200u64).prop_map(Op::GuestRead),
        2 => (0..200u64).prop_map(Op::HostWrite),
        1 => (0..200u64).prop_map(Op::Invalidate),
        2 => Just(Op::Get),
        2 => any::<u64>().prop_map(Op::Clear),
        1 => Just(Op::Off),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Guest, host and user space do what they like: the log always holds exactly the pages written since.
    #[test]
    fn no_write_is_lost(manual in any::<bool>(), ops in prop::collection::vec(op(), 1..120)) {
        let mut vm = logging(200);
        vm.mmu.set_manual_dirty_log(manual.into()).unwrap();
        let (mut written, mut always) = (BTreeSet::new(), true);
        for op in ops {
            match op {
                // A guest's write faults only where the page is not writable.
                Op::GuestWrite(n) => {
                    let gpa = 0x20_0000 + n * PAGE;
                    if !vm.look(gpa).is_some_and(|f| f.write) {
                        prop_assert_eq!(vm.fault(gpa, true), Ok(Fixed));
                    }
                    written.insert(n);
                }
                // A page that is read first counts as written, if the log is as old as the slot.
                Op::GuestRead(n) => {
                    let gpa = 0x20_0000 + n * PAGE;
                    if vm.look(gpa).is_none() {
                        prop_assert_eq!(vm.fault(gpa, false), Ok(Fixed));
                        if always {
                            written.insert(n);
                        }
                    }
                }
                Op::HostWrite(n) => {
                    vm.mmu.normal().write_phys(Gpa(0x20_0000 + n * PAGE + 5), &[1]).unwrap();
                    written.insert(n);
                }
                Op::Invalidate(n) => {
                    vm.invalidate(HVA + n * PAGE, HVA + n * PAGE + 3 * PAGE);
                    vm.invalidate_end(HVA + n * PAGE, HVA + n * PAGE + 3 * PAGE);
                }
                Op::Get => {
                    prop_assert_eq!(log(&vm, 3, 200), written.iter().copied().collect::<Vec<_>>());
                    if !manual {
                        written.clear();
                    }
                }
                Op::Clear(mask) => {
                    vm.host.poke(OUT, &mask.to_le_bytes());
                    vm.mmu.clear_dirty_log(3, 64, 64, Hva(OUT), &|| vm.flush()).unwrap();
                    written.retain(|n| !(64..128).contains(n) || mask & 1 << (n - 64) == 0);
                }
                Op::Off => {
                    vm.set(3, 0x20_0000, 200, HVA, 0).unwrap();
                    vm.fault(0x20_0000, true).unwrap();
                    vm.set(3, 0x20_0000, 200, HVA, LOG_DIRTY_PAGES).unwrap();
                    written.clear();
                    always = false;
                }
            }
        }
        vm.end();
    }
}
