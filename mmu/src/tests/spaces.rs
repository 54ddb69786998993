//! The two address spaces.

use super::fake::PAGE;
use super::{Vm, look, npf};
use crate::{LOG_DIRTY_PAGES, PhysError, RetPf, Space};
use arch::{Gpa, Hva};
use host::Errno;

const HVA: u64 = 0x7000_0000_0000;
const SMM: u32 = 1 << 16;

#[test]
fn each_space_has_slots_and_tables_of_its_own() {
    let mut vm = Vm::new().checked();
    vm.host.map(HVA, 64, true);
    vm.set(1, 0, 8, HVA, 0).unwrap();
    vm.set(SMM | 1, 4 * PAGE, 8, HVA + 16 * PAGE, 0).unwrap();
    let fault = |vm: &mut Vm, space, gpa| vm.mmu.view(space, None).page_fault(&mut vm.cache, Gpa(gpa), npf(true));
    assert_eq!(fault(&mut vm, Space::Normal, 5 * PAGE), Ok(RetPf::Fixed));
    assert_eq!(fault(&mut vm, Space::Smm, 5 * PAGE), Ok(RetPf::Fixed));
    assert_eq!(fault(&mut vm, Space::Smm, 0), Ok(RetPf::Emulate));
    assert_eq!(fault(&mut vm, Space::Normal, 9 * PAGE), Ok(RetPf::Emulate));
    let pa = |vm: &Vm, space, gpa| look(&vm.host, vm.mmu.root(space).pa().0, 4, gpa).map(|f| f.pa);
    let pfn = |vm: &Vm, page: u64| Some(vm.host.pte(HVA + page * PAGE).unwrap().pfn << 12);
    assert_eq!(pa(&vm, Space::Normal, 5 * PAGE), pfn(&vm, 5));
    assert_eq!(pa(&vm, Space::Smm, 5 * PAGE), pfn(&vm, 17));
    assert_eq!(vm.mmu.mapped_pages(), [2, 0, 0]);

    // Accesses in turn: what was found last in one space is no hint for the other.
    for n in 0..3u8 {
        vm.mmu.normal().write_phys(Gpa(5 * PAGE), &[n]).unwrap();
        vm.mmu.view(Space::Smm, None).write_phys(Gpa(5 * PAGE), &[n + 100]).unwrap();
        let mut byte = [0];
        vm.mmu.normal().read_phys(Gpa(5 * PAGE), &mut byte).unwrap();
        assert_eq!(byte, [n]);
        vm.mmu.view(Space::Smm, None).read_phys(Gpa(5 * PAGE), &mut byte).unwrap();
        assert_eq!(byte, [n + 100]);
    }
    for gpa in [1 << 63, 1 << 62, 1 << 52, 0x000f_ffff_ffff_f000] {
        let nothing = Err(PhysError::NoSlot(Gpa(gpa + 5 * PAGE)));
        for space in Space::ALL {
            assert_eq!(
                vm.mmu.view(space, None).read_phys(Gpa(gpa + 5 * PAGE), &mut [0]),
                nothing,
                "no bit leads there"
            );
        }
    }

    // Deleting one leaves the other.
    vm.set(1, 0, 0, HVA, 0).unwrap();
    assert_eq!(pa(&vm, Space::Normal, 5 * PAGE), None);
    assert!(pa(&vm, Space::Smm, 5 * PAGE).is_some());
    vm.mmu.release(&|| ());
    assert_eq!(pa(&vm, Space::Smm, 5 * PAGE), None);
    vm.end();
}

#[test]
fn the_rules_of_slots_hold_in_each() {
    let vm = Vm::new();
    vm.host.map(HVA, 64, true);
    vm.set(SMM, 0, 8, HVA, 0).unwrap();
    vm.set(0, 0, 8, HVA, 0).unwrap();
    assert_eq!(vm.set(SMM | 1, 4 * PAGE, 8, HVA, 0), Err(Errno::EEXIST));
    assert_eq!(vm.set(SMM | 1, 0, 0, HVA, 0), Err(Errno::EINVAL), "nothing to delete");
    assert_eq!(vm.set(2 << 16, 16 * PAGE, 8, HVA, 0), Err(Errno::EINVAL), "no third space");
    assert_eq!(vm.set(SMM | 32764, 16 * PAGE, 8, HVA, 0), Err(Errno::EINVAL));
    for gpa in [1 << 63, 1 << 62, 1 << 52, 1 << 51] {
        assert_eq!(vm.set(1, gpa, 8, HVA, 0), Err(Errno::EINVAL), "{gpa:#x}");
        assert_eq!(vm.set(SMM | 1, gpa, 8, HVA, 0), Err(Errno::EINVAL), "{gpa:#x}");
    }
}

#[test]
fn the_notifier_reaches_both() {
    let mut vm = Vm::new().checked();
    vm.host.map(HVA, 8, true);
    vm.set(0, 0, 8, HVA, 0).unwrap();
    vm.set(SMM, 0, 8, HVA, 0).unwrap();
    for space in Space::ALL {
        vm.mmu.view(space, None).page_fault(&mut vm.cache, Gpa(0), npf(true)).unwrap();
    }
    assert!(vm.mmu.age(Hva(HVA), Hva(HVA + PAGE)));
    vm.invalidate(HVA, HVA + PAGE);
    for space in Space::ALL {
        assert!(look(&vm.host, vm.mmu.root(space).pa().0, 4, 0).is_none());
        let again = vm.mmu.view(space, None).page_fault(&mut vm.cache, Gpa(0), npf(true));
        assert_eq!(again, Ok(RetPf::Retry));
    }
    vm.invalidate_end(HVA, HVA + PAGE);
    assert_eq!(vm.flush_count(), 1);
    vm.end();
}

#[test]
fn each_has_a_log() {
    let mut vm = Vm::new().checked();
    vm.host.map(HVA, 64, true);
    vm.set(0, 0, 8, HVA, LOG_DIRTY_PAGES).unwrap();
    vm.set(SMM, 0, 8, HVA + 8 * PAGE, LOG_DIRTY_PAGES).unwrap();
    vm.mmu.view(Space::Smm, None).page_fault(&mut vm.cache, Gpa(3 * PAGE), npf(true)).unwrap();
    vm.mmu.view(Space::Smm, None).write_phys(Gpa(5 * PAGE), &[1]).unwrap();
    let log = |slot| {
        let out = HVA + 32 * PAGE;
        vm.mmu.get_dirty_log(slot, Hva(out), &|| vm.flush()).unwrap();
        let mut bits = [0; 8];
        vm.host.peek(out, &mut bits);
        u64::from_le_bytes(bits)
    };
    assert_eq!((log(0), log(SMM)), (0, 1 << 3 | 1 << 5));
    assert_eq!(log(SMM), 0);
    assert!(!look(&vm.host, vm.mmu.root(Space::Smm).pa().0, 4, 3 * PAGE).unwrap().write, "protected again");
}
