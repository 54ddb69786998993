//! The GSI routing table: what KVM_SET_GSI_ROUTING accepts, look-up, and the EOI-exit bitmap of a split irqchip.

mod common;
use common::*;
use irqchip::{Chip, ChipMode, MAX_ROUTES, MsiFormat, Route, RoutingError, RoutingTable, Target};

fn pin(gsi: u32, chip: Chip, pin: u8) -> Route {
    Route { gsi, target: Target::Pin { chip, pin } }
}

fn msi(gsi: u32, address: u64, data: u32) -> Route {
    Route { gsi, target: Target::Msi { address, data } }
}

fn refused(routes: &[Route], mode: ChipMode, format: bool) -> bool {
    matches!(RoutingTable::build(routes, mode, format), Err(RoutingError::Invalid))
}

#[test]
fn default_table() {
    let table = RoutingTable::default_kernel().unwrap();
    assert_eq!(table.lookup(0), [pin(0, Chip::Ioapic, 0), pin(0, Chip::PicMaster, 0)]);
    assert_eq!(table.lookup(12), [pin(12, Chip::Ioapic, 12), pin(12, Chip::PicSlave, 4)]);
    assert_eq!(table.lookup(23), [pin(23, Chip::Ioapic, 23)]);
    assert_eq!(table.routes().len(), 40);
    for gsi in [24, 4096, u32::MAX] {
        assert!(table.lookup(gsi).is_empty());
    }
    assert!(RoutingTable::empty().lookup(0).is_empty());
}

#[test]
fn lookup_finds_everything_in_any_order() {
    let routes: Vec<Route> = (0..MAX_ROUTES as u32).map(|i| msi(i * 2741 % 4096, 0xfee0_0000, i)).collect();
    let table = RoutingTable::build(&routes, ChipMode::Split, false).unwrap();
    for route in &routes {
        assert_eq!(table.lookup(route.gsi), [*route]);
    }
    assert!(table.routes().is_sorted_by_key(|r| r.gsi));
    let two = [pin(5, Chip::PicMaster, 5), msi(9, 0, 0), pin(5, Chip::Ioapic, 5)];
    let table = RoutingTable::build(&two, ChipMode::Kernel, false).unwrap();
    assert_eq!(table.lookup(5), [two[0], two[2]], "the caller's order");
}

#[test]
fn what_is_refused() {
    assert!(refused(&[msi(4096, 0, 0)], ChipMode::Split, false));
    assert!(refused(&[msi(u32::MAX, 0, 0)], ChipMode::Split, false));
    assert!(refused(&vec![msi(0, 0, 0); MAX_ROUTES + 1], ChipMode::Split, false));
    assert!(refused(&[pin(0, Chip::Ioapic, 0)], ChipMode::Split, false));
    assert!(refused(&[pin(0, Chip::Ioapic, 24)], ChipMode::Kernel, false));
    assert!(refused(&[pin(0, Chip::PicSlave, 8)], ChipMode::Kernel, false));
    assert!(refused(&[pin(1, Chip::Ioapic, 0), pin(1, Chip::Ioapic, 1)], ChipMode::Kernel, false));
    assert!(refused(&[pin(1, Chip::Ioapic, 0), msi(1, 0, 0)], ChipMode::Kernel, false));
    assert!(refused(&[msi(1, 0, 0), msi(1, 0, 0)], ChipMode::Split, false));
    assert!(refused(&[msi(1, 0x01_0000_0000, 0)], ChipMode::Split, true));
    assert!(!refused(&[msi(1, 0x01_0000_0000, 0)], ChipMode::Split, false));
    assert!(!refused(&[msi(1, 0xffff_ff00_fee0_0000, 0)], ChipMode::Split, true));
    assert!(!refused(&[], ChipMode::None, false));
}

#[test]
fn eoi_exits_of_a_split_irqchip() {
    const LEVEL: u32 = 1 << 15;
    let at = |cpu: u64| 0xfee0_0000 | cpu << 12;
    let routes = [
        msi(0, at(0), 0x40 | LEVEL),
        msi(1, at(0), 0x41),
        msi(2, at(1), 0x42 | LEVEL),
        msi(23, at(0), 0x43 | LEVEL),
        msi(24, at(0), 0x44 | LEVEL),
    ];
    let table = RoutingTable::build(&routes, ChipMode::Split, false).unwrap();
    let mut lapic = xapic(0);
    let vectors = |lapic: &irqchip::Lapic| {
        let bits = table.eoi_exit_bitmap(24, lapic, MsiFormat::default());
        (0..=255u8).filter(|&v| bits.contains(v)).collect::<Vec<_>>()
    };
    assert_eq!(vectors(&lapic), [0x40, 0x43]);
    // Routed elsewhere while this vCPU still has to end it.
    lapic.set_irr(0x42, true);
    assert_eq!(vectors(&lapic), [0x40, 0x42, 0x43]);
    let _ = ack(&mut lapic);
    assert_eq!(vectors(&lapic), [0x40, 0x42, 0x43]);
    let _ = lapic.eoi();
    assert_eq!(vectors(&lapic), [0x40, 0x43]);
}
