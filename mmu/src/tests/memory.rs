//! Accesses by guest physical address.

use super::Vm;
use super::fake::{PAGE, Point};
use crate::{PhysError, READONLY};
use arch::Gpa;
use host::Stop;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::vec;

const HVA: u64 = 0x7000_0000_0000;
const OTHER: u64 = 0x7100_0000_0000;

/// Two slots that touch, with memory elsewhere; a read-only one; a hole.
fn vm() -> Vm {
    let vm = Vm::new().checked();
    vm.host.map(HVA, 2, true);
    vm.host.map(OTHER, 2, true);
    vm.set(0, 0x1000, 2, HVA, 0).unwrap();
    vm.set(1, 0x3000, 2, OTHER, 0).unwrap();
    vm.set(2, 0x10_0000, 1, HVA, READONLY).unwrap();
    vm
}

#[test]
fn across_pages_and_slots() {
    let vm = vm();
    let data: vec::Vec<u8> = (0..=255).cycle().take(3 * PAGE as usize).collect();
    vm.mmu.normal().write_phys(Gpa(0x1800), &data).unwrap();
    let mut back = vec![0; data.len()];
    vm.mmu.normal().read_phys(Gpa(0x1800), &mut back).unwrap();
    assert_eq!(back, data);
    let mut b = [0; 4];
    vm.host.peek(OTHER, &mut b);
    assert_eq!(b, data[0x1800..0x1804]);
    vm.mmu.normal().read_phys(Gpa(0x10_0800), &mut b).unwrap();
    assert_eq!(b, data[..4]);
    vm.mmu.normal().read_phys(Gpa(0x9_9999), &mut []).unwrap();
    vm.end();
}

#[test]
fn where_it_ends() {
    let vm = vm();
    let mut b = [0; 8];
    assert_eq!(vm.mmu.normal().read_phys(Gpa(0xffc), &mut b), Err(PhysError::NoSlot(Gpa(0xffc))));
    assert_eq!(vm.mmu.normal().read_phys(Gpa(0x4ffc), &mut b), Err(PhysError::NoSlot(Gpa(0x5000))));
    assert_eq!(vm.mmu.normal().write_phys(Gpa(0x10_0000), &b), Err(PhysError::NoSlot(Gpa(0x10_0000))));
    assert_eq!(vm.mmu.normal().read_phys(Gpa(u64::MAX - 3), &mut b), Err(PhysError::NoSlot(Gpa(u64::MAX - 3))));
    vm.host.unmap(OTHER, 1);
    let failed = PhysError::Host { gpa: Gpa(0x3000), stop: Stop::Fault };
    assert_eq!(vm.mmu.normal().read_phys(Gpa(0x2ffc), &mut b), Err(failed));
    assert_eq!(vm.mmu.normal().write_phys(Gpa(0x2ffc), &b), Err(failed));
    assert!(vm.mmu.normal().is_memory(Gpa(0x4fff), true) && !vm.mmu.normal().is_memory(Gpa(0x5000), false));
    assert!(vm.mmu.normal().is_memory(Gpa(0x10_0000), false) && !vm.mmu.normal().is_memory(Gpa(0x10_0000), true));
    vm.end();
}

#[test]
fn compare_exchange() {
    let vm = vm();
    vm.mmu.normal().write_phys(Gpa(0x2000), &0x1122_3344_5566_7788u64.to_le_bytes()).unwrap();
    assert_eq!(vm.mmu.normal().cmpxchg_phys(Gpa(0x2000), 8, 0x1122_3344_5566_7788, 1), Ok(0x1122_3344_5566_7788));
    assert_eq!(vm.mmu.normal().cmpxchg_phys(Gpa(0x2000), 8, 7, 2), Ok(1));
    // Only `size` bytes count, in what is compared and in what is returned.
    assert_eq!(vm.mmu.normal().cmpxchg_phys(Gpa(0x2000), 2, 0xff_0001, 0xabcd), Ok(1));
    assert_eq!(vm.mmu.normal().cmpxchg_phys(Gpa(0x2000), 1, 0, 0), Ok(0xcd));
    assert_eq!(vm.mmu.normal().cmpxchg_phys(Gpa(0x2004), 4, 0, 0x1234), Ok(0));
    for (gpa, size) in [(0x2001, 2), (0x2004, 8), (0x2000, 3), (0x2000, 0), (0x2000, 16), (0x10_0000, 8), (0, 8)] {
        assert_eq!(
            vm.mmu.normal().cmpxchg_phys(Gpa(gpa), size, 0, 0),
            Err(PhysError::NoSlot(Gpa(gpa))),
            "{gpa:#x} {size}"
        );
    }
    vm.end();
}

/// Memory that changes between the compare and the read of what it held, and back.
#[test]
fn compare_exchange_against_a_busy_guest() {
    let vm = vm();
    let (host, turns) = (vm.host.clone(), Arc::new(AtomicU32::new(0)));
    let count = turns.clone();
    vm.host.hook(move |p| match p {
        Point::Cmpxchg(at) => host.poke(at, &[2]),
        Point::ReadUser(at) => {
            count.fetch_add(1, SeqCst);
            host.poke(at, &[1]);
        }
        _ => {}
    });
    // Each time the compare sees 2, and the read sees the value that was asked for.
    let seen = vm.mmu.normal().cmpxchg_phys(Gpa(0x2000), 1, 1, 9).unwrap();
    assert_ne!(seen, 1, "it was not exchanged");
    assert!(turns.load(SeqCst) > 1);
    vm.end();
}
