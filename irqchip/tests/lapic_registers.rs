//! Local APIC registers against APM volume 2 chapter 16: reset state, access rules of both modes, mode changes.

mod common;
use common::*;
use irqchip::{Accept, Config, DeliveryMode, Effect, Features, Gp, Lapic, Lvt, Mode, Shorthand, TimerEffect};

#[test]
fn reset_state() {
    let mut bsp = Lapic::new(Config::new(0, true));
    let mut ap = Lapic::new(Config::new(3, false));
    assert_eq!(bsp.base(), 0xfee0_0900);
    assert_eq!(ap.base(), 0xfee0_0800);
    assert_eq!(read(&mut ap, 0x20), 3 << 24);
    assert_eq!(read(&mut ap, 0x30), 0x50014);
    assert_eq!(read(&mut ap, 0xe0), u32::MAX);
    assert_eq!(read(&mut ap, 0xf0), 0xff);
    for lvt in (0x320..=0x370).step_by(16) {
        assert_eq!(read(&mut ap, lvt), 0x1_0000);
    }
    // The quirk: LINT0 of the BSP passes the 8259 through.
    assert_eq!(read(&mut bsp, 0x350), 0x700);
    assert!(bsp.accepts_pic_intr() && !ap.accepts_pic_intr());
    let mut no_quirk = Lapic::new(Config { lint0_reenabled: false, ..Config::new(0, true) });
    assert_eq!(read(&mut no_quirk, 0x350), 0x1_0000);
    for zero in [0x80, 0x90, 0xa0, 0xd0, 0x280, 0x300, 0x310, 0x380, 0x390, 0x3e0] {
        assert_eq!(read(&mut ap, zero), 0, "{zero:#x}");
    }
}

#[test]
fn init_keeps_base_and_id_only() {
    let mut lapic = x2apic(5);
    assert_eq!(lapic.msr_write(0x808, 0x40, 0), Ok(Effect::None));
    lapic.set_irr(0x50, true);
    assert_eq!(lapic.init(), TimerEffect::Cancel);
    assert_eq!(lapic.mode(), Mode::X2Apic);
    assert_eq!(lapic.msr_read(0x802, 0), Ok(5));
    assert_eq!((lapic.tpr(), lapic.has_irr(), lapic.address().sw_enabled()), (0, false, false));
    let _ = lapic.reset();
    assert_eq!(lapic.mode(), Mode::XApic);
}

#[test]
fn mmio_accesses_inside_four_bytes() {
    let mut lapic = xapic(0);
    let mut two = [0u8; 2];
    lapic.mmio_read(0x32, &mut two, 0);
    assert_eq!(two, [5, 1], "version bits 31:16, directed EOI included");
    let mut across = [0xaa; 4];
    lapic.mmio_read(0x32, &mut across, 0);
    assert_eq!(across, [0; 4]);
    let mut eight = [0xaa; 8];
    lapic.mmio_read(0x30, &mut eight, 0);
    assert_eq!(eight, [0; 8]);
    // Writes: 4 aligned bytes or nothing.
    assert_eq!(lapic.mmio_write(0x80, &[0x20], 0), Effect::None);
    assert_eq!(lapic.mmio_write(0x80, &[0x20, 0, 0, 0, 0, 0, 0, 0], 0), Effect::None);
    assert_eq!(lapic.mmio_write(0x84, &[0x20, 0, 0, 0], 0), Effect::None);
    assert_eq!(lapic.tpr(), 0);
    let _ = write(&mut lapic, 0x80, 0x1234_5620);
    assert_eq!(read(&mut lapic, 0x80), 0x20);
}

#[test]
fn mmio_is_a_hole_in_other_modes() {
    let mut lapic = x2apic(0);
    assert_eq!(read(&mut lapic, 0x30), u32::MAX);
    let _ = write(&mut lapic, 0x80, 0x40);
    assert_eq!(lapic.tpr(), 0);
    lapic.set_base(0xfee0_0000, false, 0).unwrap();
    assert_eq!(read(&mut lapic, 0x30), u32::MAX);
}

#[test]
fn read_only_and_reserved_registers() {
    let mut lapic = xapic(0);
    for offset in [0x30, 0xa0, 0x100, 0x180, 0x200, 0x270, 0x390] {
        let before = read(&mut lapic, offset);
        assert_eq!(write(&mut lapic, offset, !before), Effect::None);
        assert_eq!(read(&mut lapic, offset), before, "{offset:#x}");
    }
    let _ = write(&mut lapic, 0x280, 0);
    assert_eq!(read(&mut lapic, 0x280), 0, "read-only is no illegal register");
    for offset in [0x00, 0x10, 0x40, 0x70, 0xc0, 0x2f0, 0x3a0, 0x3f0, 0x400, 0xff0] {
        let _ = write(&mut lapic, offset, 1);
        assert_eq!(read(&mut lapic, offset), 0);
        assert_eq!(read(&mut lapic, 0x280), 0, "errors show after a write to ESR");
        let _ = write(&mut lapic, 0x280, 0);
        assert_eq!(read(&mut lapic, 0x280), 0x80, "{offset:#x}");
        let _ = write(&mut lapic, 0x280, 0);
        assert_eq!(read(&mut lapic, 0x280), 0);
    }
}

#[test]
fn lvt_masks() {
    let mut lapic = xapic(0);
    let expected = [(0x320, 0x7_10ff), (0x330, 0x1_17ff), (0x340, 0x1_17ff), (0x350, 0x1_f7ff), (0x360, 0x1_f7ff)];
    for (offset, mask) in expected.into_iter().chain([(0x370, 0x1_10ff)]) {
        let _ = write(&mut lapic, offset, u32::MAX);
        assert_eq!(read(&mut lapic, offset), mask, "{offset:#x}");
        let _ = write(&mut lapic, offset, 0);
        assert_eq!(read(&mut lapic, offset), 0);
    }
    lapic.set_features(Features { tsc_deadline: false, ..ALL });
    let _ = write(&mut lapic, 0x320, u32::MAX);
    assert_eq!(read(&mut lapic, 0x320), 0x3_10ff);
}

#[test]
fn software_disable_masks_every_lvt() {
    let mut lapic = xapic(0);
    for offset in (0x320..=0x370).step_by(16) {
        let _ = write(&mut lapic, offset, 0x40);
    }
    assert_eq!(write(&mut lapic, 0xf0, 0xff), Effect::AddressChanged);
    for offset in (0x320..=0x370).step_by(16) {
        assert_eq!(read(&mut lapic, offset), 0x1_0040);
        let _ = write(&mut lapic, offset, 0x41);
        assert_eq!(read(&mut lapic, offset), 0x1_0041, "cannot be unmasked");
    }
    assert_eq!(lapic.local(Lvt::Lint1), Accept::Refused);
}

#[test]
fn svr_bits() {
    let mut lapic = xapic(0);
    let _ = write(&mut lapic, 0xf0, u32::MAX);
    assert_eq!(read(&mut lapic, 0xf0), 0x13ff);
    lapic.set_features(Features { directed_eoi: false, ..ALL });
    assert_eq!(read(&mut lapic, 0x30), 0x50014);
    let _ = write(&mut lapic, 0xf0, u32::MAX);
    assert_eq!(read(&mut lapic, 0xf0), 0x3ff);
}

#[test]
fn base_transitions() {
    const DIS: u64 = 0xfee0_0000;
    const X: u64 = DIS | 1 << 11;
    const X2: u64 = X | 1 << 10;
    const BAD: u64 = DIS | 1 << 10;
    let allowed_guest = |from: u64, to: u64| !matches!((from, to), (_, BAD) | (X2, X) | (DIS, X2));
    for from in [DIS, X, X2] {
        for to in [DIS, X, X2, BAD] {
            let mut lapic = xapic(0);
            lapic.set_base(from, true, 0).unwrap();
            let result = lapic.set_base(to, false, 0);
            assert_eq!(result.is_ok(), allowed_guest(from, to), "{from:#x} -> {to:#x}");
            assert_eq!(lapic.base(), if result.is_ok() { to } else { from });
            lapic.set_base(from, true, 0).unwrap();
            assert_eq!(lapic.set_base(to, true, 0).is_ok(), to != BAD);
            assert_eq!(lapic.address().hw_enabled(), lapic.mode() != Mode::Disabled);
        }
    }
}

#[test]
fn base_reserved_bits() {
    let mut lapic = xapic(0);
    for bit in [0, 7, 9] {
        assert_eq!(lapic.set_base(0xfee0_0800 | 1 << bit, true, 0), Err(Gp));
    }
    assert_eq!(lapic.set_base(1 << 45 | 0xfee0_0800, true, !0 << 45), Err(Gp));
    assert_eq!(lapic.set_base(0x1234_5000 | 0x900, false, !0 << 45), Ok(()));
    assert_eq!(lapic.base_gpa(), 0x1234_5000);
    lapic.set_features(Features::default());
    assert_eq!(lapic.set_base(0xfee0_0c00, true, 0), Err(Gp), "x2APIC is not in CPUID");
    let mut lapic = x2apic(0);
    lapic.set_features(Features::default());
    for host in [false, true] {
        assert_eq!(lapic.set_base(lapic.base(), host, 0), Err(Gp), "no change, but it is not in CPUID any more");
    }
    let mut lapic = xapic(0);
    assert_eq!(lapic.set_base(lapic.base(), true, 1 << 31), Err(Gp), "nor is the address");
    assert_eq!(lapic.set_base(lapic.base(), false, 0), Ok(()));
}

#[test]
fn guest_id_is_lost_when_disabled() {
    let mut lapic = xapic(2);
    assert_eq!(write(&mut lapic, 0x20, 7 << 24), Effect::AddressChanged);
    assert_eq!(lapic.address().xapic_id(), 7);
    lapic.set_base(0xfee0_0000, false, 0).unwrap();
    lapic.set_base(0xfee0_0800, false, 0).unwrap();
    assert_eq!(read(&mut lapic, 0x20), 2 << 24);
}

#[test]
fn x2apic_access_rules() {
    let mut lapic = x2apic(0x123);
    assert_eq!(lapic.msr_read(0x802, 0), Ok(0x123));
    assert_eq!(lapic.msr_read(0x80d, 0), Ok(0x12_0008));
    let unreadable = [0x800, 0x801, 0x809, 0x80b, 0x80c, 0x80e, 0x831, 0x83f, 0x840, 0x8ff, 0x7ff, 0x900];
    for msr in unreadable {
        assert_eq!(lapic.msr_read(msr, 0), Err(Gp), "{msr:#x}");
    }
    for msr in [0x802, 0x803, 0x809, 0x80a, 0x80d, 0x80e, 0x810, 0x827, 0x831, 0x839, 0x840] {
        assert_eq!(lapic.msr_write(msr, 0, 0), Err(Gp), "{msr:#x}");
    }
    for msr in [0x808, 0x80b, 0x80f, 0x828, 0x832, 0x838, 0x83e, 0x83f] {
        assert_eq!(lapic.msr_write(msr, 1 << 32, 0), Err(Gp), "{msr:#x}");
    }
    assert_eq!(lapic.msr_write(0x828, 1, 0), Err(Gp));
    assert_eq!(lapic.msr_write(0x828, 0, 0), Ok(Effect::None));
    assert_eq!(lapic.msr_write(0x83f, 0x100, 0), Err(Gp));
    for bit in [13, 16, 17, 20, 31] {
        assert_eq!(lapic.msr_write(0x830, 1 << bit | 0x40, 0), Err(Gp), "{bit}");
    }
    let mut other = xapic(0);
    assert_eq!(other.msr_read(0x802, 0), Err(Gp));
    assert_eq!(other.msr_write(0x808, 0, 0), Err(Gp));
}

#[test]
fn icr_is_64_bits_in_x2apic_mode() {
    let mut lapic = x2apic(0);
    let Ok(Effect::Ipi(m)) = lapic.msr_write(0x830, 0x0001_0002_0000_5855, 0) else { panic!() };
    assert_eq!((m.mode, m.vector, m.dest, m.logical), (DeliveryMode::Fixed, 0x55, 0x1_0002, true));
    assert!(m.assert && !m.level && !m.lowest && !m.ff_is_broadcast);
    assert_eq!(lapic.msr_read(0x830, 0), Ok(0x0001_0002_0000_4855), "delivery status reads as zero");
}

#[test]
fn icr_is_two_registers_in_xapic_mode() {
    let mut lapic = xapic(0);
    assert_eq!(write(&mut lapic, 0x310, 0x0312_3456), Effect::None);
    assert_eq!(read(&mut lapic, 0x310), 0x0300_0000);
    let Effect::Ipi(m) = write(&mut lapic, 0x300, 0x0000_5610) else { panic!() };
    assert_eq!((m.mode, m.vector, m.dest, m.shorthand), (DeliveryMode::Startup, 0x10, 3, Shorthand::None));
    assert_eq!(read(&mut lapic, 0x300), 0x0000_4610);
    let Effect::Ipi(m) = write(&mut lapic, 0x300, 0x000c_c500) else { panic!() };
    assert_eq!((m.mode, m.shorthand, m.level), (DeliveryMode::Init, Shorthand::AllExcludingSelf, true));
}

#[test]
fn self_ipis_go_straight_to_irr() {
    let mut lapic = x2apic(0);
    let icr = lapic.msr_read(0x830, 0);
    assert_eq!(lapic.msr_write(0x83f, 0x61, 0), Ok(Effect::None));
    assert_eq!(lapic.pending_vector(), Some(0x61));
    assert_eq!(lapic.msr_read(0x830, 0), icr, "a self IPI leaves ICR alone");
    assert_eq!(lapic.msr_write(0x830, 0x4_4062, 0), Ok(Effect::None));
    assert_eq!(lapic.pending_vector(), Some(0x62));
    // Other modes are the caller's.
    assert!(matches!(lapic.msr_write(0x830, 0x4_4400, 0), Ok(Effect::Ipi(_))));
}

#[test]
fn illegal_vectors_are_reported_in_esr() {
    let mut lapic = xapic(0);
    let _ = write(&mut lapic, 0x370, 0xfe);
    assert_eq!(write(&mut lapic, 0x300, 0x4_400f), Effect::None);
    assert_eq!(lapic.pending_vector(), Some(0xfe), "the error interrupt");
    let _ = write(&mut lapic, 0x280, 0);
    assert_eq!(read(&mut lapic, 0x280), 1 << 5);
    // A local interrupt with an illegal vector; an illegal error vector must not recurse.
    let _ = write(&mut lapic, 0x340, 5);
    let _ = write(&mut lapic, 0x370, 4);
    assert_eq!(lapic.local(Lvt::Perf), Accept::Refused);
    let _ = write(&mut lapic, 0x280, 0);
    assert_eq!(read(&mut lapic, 0x280), 1 << 6);
}

#[test]
fn vectors_below_16_in_a_restored_state_are_shown_and_never_delivered() {
    let mut lapic = xapic(0);
    let mut state = [0; 1024];
    lapic.get_state(&mut state, 0, false);
    state[0x200..0x204].copy_from_slice(&0x4_4001u32.to_le_bytes());
    assert!(lapic.set_state(&state, 0, false).is_ok());
    assert_eq!(read(&mut lapic, 0x200), 0x4_4001);
    lapic.set_irr(0x55, false);
    assert_eq!((ack(&mut lapic), ack(&mut lapic)), (Some(0x55), None), "class 1 is not above that in service");
    assert!(lapic.eoi().is_some());
    assert_eq!((ack(&mut lapic), read(&mut lapic, 0x200)), (Some(18), 0x4001));
    assert!(lapic.eoi().is_some());
    assert_eq!((lapic.pending_vector(), lapic.waits_for_tpr()), (None, false));
}
