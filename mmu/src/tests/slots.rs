//! The rules of KVM_SET_USER_MEMORY_REGION, one by one and against a model.

use super::Vm;
use super::fake::{PAGE, USER_END};
use crate::slot::{Change, Memslots};
use crate::{LOG_DIRTY_PAGES, READONLY, RetPf, USER_SLOTS, UserRegion};
use arch::Gpa;
use host::Errno::{self, *};
use proptest::prelude::*;
use std::collections::BTreeMap;

const HVA: u64 = 0x7000_0000_0000;

#[test]
fn each_rule() {
    let vm = Vm::new().checked();
    let set = |slot, flags, gpa, size, hva| {
        vm.mmu.set_memory_region(&UserRegion { slot, flags, gpa, size, hva }, &|| vm.flush())
    };
    assert_eq!(set(0, 0, 0x1000, 0x4000, HVA), Ok(()));
    for (slot, flags, gpa, size, hva, want) in [
        (1, 4, 0x10_0000, 0x1000, HVA, EINVAL), // unknown flag
        (1, 0, 0x10_0800, 0x1000, HVA, EINVAL), // unaligned
        (1, 0, 0x10_0000, 0x1800, HVA, EINVAL),
        (1, 0, 0x10_0000, 0x1000, HVA + 1, EINVAL),
        (2 << 16, 0, 0x10_0000, 0x1000, HVA, EINVAL), // address space
        (USER_SLOTS.into(), 0, 0x10_0000, 0x1000, HVA, EINVAL), // slot id
        (1, 0, !0xfff, 0x2000, HVA, EINVAL),          // wraps
        (1, 0, 0x10_0000, 1 << 43, HVA, EINVAL),      // too many pages
        (1, 0, 0x10_0000, 0x2000, USER_END - 0x1000, EINVAL), // not user memory
        (1, 0, 0x10_0000, 0x1000, !0xfff, EINVAL),
        (1, 0, (1 << 48) - 0x1000, 0x2000, HVA, EINVAL), // beyond the processor's 48 bits
        (1, 0, 1 << 48, 0x1000, HVA, EINVAL),
        (1, 0, 1 << 51, 0x1000, HVA, EINVAL),
        (1, 0, 0x10_0000, 0, HVA, EINVAL),   // nothing to delete
        (1, 0, 0x0000, 0x2000, HVA, EEXIST), // overlaps
        (1, 0, 0x4000, 0x1000, HVA, EEXIST),
        (1, 0, 0x0000, 0x10_0000, HVA, EEXIST),
        (0, 0, 0x1000, 0x3000, HVA, EINVAL),        // other size
        (0, 0, 0x1000, 0x4000, HVA + PAGE, EINVAL), // other memory
        (0, READONLY, 0x1000, 0x4000, HVA, EINVAL), // read-only later
    ] {
        assert_eq!(set(slot, flags, gpa, size, hva), Err(want), "{slot:#x} {flags} {gpa:#x} {size:#x} {hva:#x}");
    }
    assert_eq!(set(1, 0, 0x5000, 0x1000, HVA), Ok(())); // neighbours may touch, memory may be shared
    assert_eq!(set(2, READONLY, 0, 0x1000, HVA), Ok(()));
    assert_eq!(set(2, 0, 0, 0x1000, HVA), Err(EINVAL));
    assert_eq!(set(0, 0, 0x1000, 0x4000, HVA), Ok(())); // no change
    assert_eq!(set(0, 0, 0x2000, 0x4000, HVA), Err(EEXIST)); // moves onto slot 1
    assert_eq!(set(0, 0, 0x10_0000, 0x4000, HVA), Ok(())); // moves
    assert_eq!(set(0, 0, 0x10_1000, 0x4000, HVA), Ok(())); // moves onto its own old place
    assert_eq!(set(0, LOG_DIRTY_PAGES, 0x10_1000, 0x4000, HVA), Ok(()));
    assert_eq!(set(0, LOG_DIRTY_PAGES, 0, 0, 0), Ok(())); // deletion looks at the size only
    assert_eq!(set(0, 0, 0, 0, 0), Err(EINVAL));
    assert_eq!(set(3, 0, (1 << 48) - 0x1000, 0x1000, HVA), Ok(()));
    assert_eq!(set(3, 0, 1 << 48, 0x1000, HVA), Err(EINVAL)); // moves too far
    vm.end();
}

#[test]
fn all_slots_can_be_used() {
    let vm = Vm::new();
    for id in 0..u32::from(USER_SLOTS) {
        vm.set(id, u64::from(id) * 2 * PAGE, 1, HVA, 0).unwrap();
    }
    assert_eq!(vm.set(USER_SLOTS.into(), 1 << 40, 1, HVA, 0), Err(EINVAL));
    assert!(vm.mmu.normal().is_memory(Gpa(0x2000), true) && !vm.mmu.normal().is_memory(Gpa(0x1000), false));
    vm.end();
}

/// What the API document says, in the plainest form.
fn model(slots: &BTreeMap<u32, UserRegion>, r: &UserRegion) -> Result<(), Errno> {
    if r.size == 0 {
        return if slots.contains_key(&r.slot) { Ok(()) } else { Err(EINVAL) };
    }
    if let Some(old) = slots.get(&r.slot) {
        if old.size != r.size || old.hva != r.hva || (old.flags ^ r.flags) & READONLY != 0 {
            return Err(EINVAL);
        }
    }
    let overlaps = |o: &&UserRegion| o.slot != r.slot && r.gpa < o.gpa + o.size && o.gpa < r.gpa + r.size;
    if slots.values().find(overlaps).is_some() { Err(EEXIST) } else { Ok(()) }
}

fn region() -> impl Strategy<Value = UserRegion> {
    (0..6u32, 0..4u32, 0..24u64, 0..7u64, 0..3u64).prop_map(|(slot, flags, gfn, pages, at)| UserRegion {
        slot,
        flags,
        gpa: gfn << 12,
        size: pages << 12,
        hva: HVA + (at << 16),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn same_as_the_model(requests in prop::collection::vec(region(), 1..60)) {
        let mut vm = Vm::new();
        for at in 0..3 {
            vm.host.map(HVA + (at << 16), 8, true);
        }
        let mut slots = BTreeMap::<u32, UserRegion>::new();
        for r in requests {
            let want = model(&slots, &r);
            prop_assert_eq!(vm.mmu.set_memory_region(&r, &|| vm.flush()), want, "{:?} {:?}", r, slots);
            if want.is_ok() {
                if r.size == 0 { slots.remove(&r.slot); } else { slots.insert(r.slot, r); }
            }
            for gfn in 0..32 {
                let gpa = gfn << 12;
                let slot = slots.values().find(|s| gpa >= s.gpa && gpa < s.gpa + s.size);
                prop_assert_eq!(vm.mmu.normal().is_memory(Gpa(gpa), false), slot.is_some());
                prop_assert_eq!(vm.mmu.normal().is_memory(Gpa(gpa), true), slot.is_some_and(|s| s.flags & READONLY == 0));
                // What is mapped is what the slot says, whatever happened before.
                let want = slot.map(|s| vm.host.pte(s.hva + gpa - s.gpa).unwrap().pfn << 12);
                if let Some(found) = vm.look(gpa) {
                    prop_assert_eq!(Some(found.pa), want);
                }
                let got = vm.fault(gpa, false);
                prop_assert_eq!(got, Ok(if slot.is_some() { RetPf::Fixed } else { RetPf::Emulate }));
                prop_assert_eq!(vm.look(gpa).map(|f| f.pa), want);
                let write = vm.fault(gpa, true);
                let writable = slot.is_some_and(|s| s.flags & READONLY == 0);
                prop_assert_eq!(write, Ok(if writable { RetPf::Fixed } else { RetPf::Emulate }));
            }
        }
        vm.end();
    }

    #[test]
    fn table_stays_ordered(ops in prop::collection::vec((0..12u32, 0..60u64, 1..6u64), 1..60)) {
        let host = super::fake::Fake::new();
        let mut t = Memslots::default();
        let mut all = BTreeMap::<u32, (u64, u64)>::new();
        for (id, base, pages) in ops {
            let r = UserRegion { slot: id, flags: 0, gpa: base << 12, size: pages << 12, hva: HVA };
            let Ok(change) = t.plan(&host, &r) else { continue };
            t.reserve().unwrap();
            t.apply(&change);
            if change != Change::Nothing {
                all.insert(id, (base, pages));
            }
            for gfn in 0..66 {
                let want = all.iter().find(|(_, (b, n))| gfn >= *b && gfn < b + n).map(|e| *e.0);
                prop_assert_eq!(t.find(gfn).map(|f| f.1.id), want);
            }
            for id in 0..12 {
                prop_assert_eq!(t.by_id(id).map(|s| (s.base, s.pages)), all.get(&id).copied());
            }
        }
    }
}
