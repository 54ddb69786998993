//! Acceptance, priorities, EOI and destinations: APM volume 2 sections 16.4 to 16.6.

mod common;
use common::*;
use irqchip::{Accept, DeliveryMode, Effect, Eoi, Lvt, Message, MsiFormat, Pir, Shorthand};

fn message(mode: DeliveryMode, vector: u8) -> Message {
    Message {
        mode,
        vector,
        level: false,
        assert: true,
        logical: false,
        dest: 0,
        shorthand: Shorthand::None,
        lowest: false,
        ff_is_broadcast: false,
    }
}

#[test]
fn higher_classes_nest_lower_ones_wait() {
    let mut lapic = xapic(0);
    lapic.set_irr(0x31, false);
    lapic.set_irr(0x35, false);
    assert_eq!(ack(&mut lapic), Some(0x35));
    assert_eq!(lapic.ppr(), 0x30);
    assert_eq!(lapic.pending_vector(), None, "same class");
    lapic.set_irr(0x41, true);
    assert_eq!(ack(&mut lapic), Some(0x41));
    assert_eq!(read(&mut lapic, 0x110 + 0x10), 1 << 1, "ISR of vectors 0x40 to 0x5f");
    assert_eq!(lapic.eoi(), Some(Eoi { vector: 0x41, level: true, suppressed: false }));
    assert_eq!(lapic.eoi(), Some(Eoi { vector: 0x35, level: false, suppressed: false }));
    assert_eq!(ack(&mut lapic), Some(0x31));
    assert_eq!(write(&mut lapic, 0xb0, 0), Effect::Eoi(Eoi { vector: 0x31, level: false, suppressed: false }));
    assert_eq!(write(&mut lapic, 0xb0, 0), Effect::None, "nothing in service");
    assert_eq!((lapic.ppr(), lapic.irr_max(), lapic.isr_max()), (0, 0, 0));
}

#[test]
fn tpr_holds_back_and_cr8_is_its_upper_half() {
    let mut lapic = xapic(0);
    lapic.set_irr(0x5f, false);
    lapic.set_tpr(0x53);
    assert_eq!((lapic.pending_vector(), lapic.ppr(), lapic.cr8()), (None, 0x53, 5));
    assert!(lapic.has_irr() && lapic.waits_for_tpr());
    lapic.set_cr8(4);
    assert!(!lapic.waits_for_tpr(), "nothing holds it back");
    assert_eq!((lapic.tpr(), lapic.pending_vector()), (0x40, Some(0x5f)));
    assert_eq!(ack(&mut lapic), Some(0x5f));
    assert_eq!(lapic.ppr(), 0x50);
}

#[test]
fn directed_eoi_suppresses_the_broadcast() {
    let mut lapic = xapic(0);
    let _ = write(&mut lapic, 0xf0, 0x11ff);
    lapic.set_irr(0x40, true);
    let _ = ack(&mut lapic);
    assert_eq!(lapic.eoi(), Some(Eoi { vector: 0x40, level: true, suppressed: true }));
}

#[test]
fn hardware_disabled_delivers_nothing() {
    let mut lapic = xapic(0);
    lapic.set_irr(0x40, false);
    lapic.set_base(0xfee0_0000, false, 0).unwrap();
    assert_eq!(lapic.pending_vector(), None);
    assert!(lapic.accepts_pic_intr(), "the 8259 goes straight to the CPU");
    assert!(!lapic.address().matches(&message(DeliveryMode::Nmi, 0), false));
}

#[test]
fn software_disabled_takes_no_vectors_but_the_rest() {
    let mut lapic = xapic(0);
    let _ = write(&mut lapic, 0xf0, 0xff);
    let a = lapic.address();
    assert_eq!(a.accept(&message(DeliveryMode::Fixed, 0x40)), Accept::Refused);
    assert_eq!(a.accept(&message(DeliveryMode::Nmi, 0)), Accept::Nmi);
    assert_eq!(a.accept(&message(DeliveryMode::Smi, 0)), Accept::Smi);
    assert_eq!(a.accept(&message(DeliveryMode::Init, 0)), Accept::Init);
    assert_eq!(a.accept(&message(DeliveryMode::Startup, 9)), Accept::Startup { vector: 9 });
}

#[test]
fn software_disabled_is_no_candidate_for_lowest_priority() {
    let mut lapic = xapic(0);
    let _ = write(&mut lapic, 0xd0, 1 << 24);
    let several = [to(1, true), to(0xff, false)].map(|m| Message { lowest: true, ..m });
    assert!(several.iter().all(|m| lapic.address().matches(m, false)));
    let _ = write(&mut lapic, 0xf0, 0xff);
    assert!(!several.iter().any(|m| lapic.address().matches(m, false)));
    // The redirection hint with the ID of one: it is meant, an NMI reaches it.
    assert!(lapic.address().matches(&Message { lowest: true, ..to(0, false) }, false));
    assert!(lapic.address().matches(&to(0, false), false));
}

#[test]
fn what_each_mode_does() {
    let lapic = xapic(0);
    let a = lapic.address();
    assert_eq!(a.accept(&message(DeliveryMode::Fixed, 15)), Accept::Refused);
    assert_eq!(a.accept(&message(DeliveryMode::Fixed, 16)), Accept::Interrupt { vector: 16, level: false });
    assert_eq!(a.accept(&message(DeliveryMode::LowestPriority, 99)), Accept::Interrupt { vector: 99, level: false });
    assert_eq!(a.accept(&message(DeliveryMode::RemoteRead, 0)), Accept::Unhalt);
    assert_eq!(a.accept(&message(DeliveryMode::ExtInt, 0x40)), Accept::Refused);
    let deassert = Message { level: true, assert: false, ..message(DeliveryMode::Init, 0) };
    assert_eq!(a.accept(&deassert), Accept::Refused);
    assert_eq!(a.accept(&Message { mode: DeliveryMode::Fixed, vector: 0x40, ..deassert }), Accept::Refused);
}

#[test]
fn local_sources() {
    let mut lapic = xapic(0);
    let _ = write(&mut lapic, 0x360, 0x400);
    assert_eq!(lapic.local(Lvt::Lint1), Accept::Nmi);
    let _ = write(&mut lapic, 0x350, 0x8045);
    assert_eq!(lapic.local(Lvt::Lint0), Accept::Interrupt { vector: 0x45, level: true });
    assert!(!lapic.accepts_pic_intr());
    let _ = write(&mut lapic, 0x350, 0x700);
    assert!(lapic.accepts_pic_intr());
    assert_eq!(lapic.local(Lvt::Lint0), Accept::Refused);
    let _ = write(&mut lapic, 0x350, 0x1_0700);
    assert!(!lapic.accepts_pic_intr());
}

fn to(dest: u32, logical: bool) -> Message {
    Message { dest, logical, ..message(DeliveryMode::Fixed, 0x40) }
}

#[test]
fn physical_destinations() {
    let (x, x2) = (xapic(5).address(), x2apic(0x105).address());
    assert!(x.matches(&to(5, false), false) && !x.matches(&to(6, false), false));
    assert!(x2.matches(&to(0x105, false), false) && !x2.matches(&to(5, false), false));
    assert!(x.matches(&to(0xff, false), false) && !x2.matches(&to(0xff, false), false));
    assert!(x2.matches(&to(u32::MAX, false), false) && !x.matches(&to(u32::MAX, false), false));
    let device = Message::from_msi(0xfeef_f000, 0x40, MsiFormat::default());
    assert!(x2.matches(&device, false), "the broadcast quirk");
    let device =
        Message::from_msi(0xfeef_f000, 0x40, MsiFormat { broadcast_quirk_disabled: true, ..Default::default() });
    assert!(!x2.matches(&device, false) && x.matches(&device, false));
    // A vCPU id beyond 8 bits is found before it has entered x2APIC mode.
    let big = xapic(0x105).address();
    assert!(big.matches(&to(0x105, false), false));
}

#[test]
fn logical_destinations() {
    let mut lapic = xapic(0);
    let _ = write(&mut lapic, 0xd0, 0x2400_0000);
    let flat = lapic.address();
    assert!(flat.matches(&to(0x04, true), false) && flat.matches(&to(0x20, true), false));
    assert!(!flat.matches(&to(0xdb, true), false) && !flat.matches(&to(0, true), false));
    let _ = write(&mut lapic, 0xe0, 0);
    let cluster = lapic.address();
    assert!(cluster.matches(&to(0x24, true), false) && cluster.matches(&to(0x2f, true), false));
    assert!(!cluster.matches(&to(0x34, true), false) && !cluster.matches(&to(0x21, true), false));
    assert!(cluster.matches(&to(0xff, true), false));
    let _ = write(&mut lapic, 0xe0, 0x5000_0000);
    assert!(!lapic.address().matches(&to(0x24, true), false), "no such model");

    let x2 = x2apic(0x23).address();
    assert!(x2.matches(&to(2 << 16 | 1 << 3, true), false) && x2.matches(&to(2 << 16 | 0xffff, true), false));
    assert!(!x2.matches(&to(3 << 16 | 1 << 3, true), false) && !x2.matches(&to(2 << 16 | 1 << 2, true), false));
    assert!(x2.matches(&to(u32::MAX, true), false));
}

#[test]
fn shorthands() {
    let a = xapic(1).address();
    let with = |shorthand| Message { shorthand, ..to(0x77, false) };
    for (shorthand, own, others) in [
        (Shorthand::None, false, false),
        (Shorthand::SelfOnly, true, false),
        (Shorthand::AllIncludingSelf, true, true),
        (Shorthand::AllExcludingSelf, false, true),
    ] {
        assert_eq!(a.matches(&with(shorthand), true), own);
        assert_eq!(a.matches(&with(shorthand), false), others);
    }
}

#[test]
fn pir_moves_to_irr_and_tmr() {
    let (pir, mut lapic) = (Pir::new(), xapic(0));
    assert!(pir.is_empty() && !pir.drain_into(&mut lapic));
    assert!(pir.post(0x41, false), "the first post must wake");
    assert!(!pir.post(0xef, true) && !pir.post(0x41, false));
    assert!(!pir.is_empty() && pir.drain_into(&mut lapic) && pir.is_empty());
    assert_eq!((lapic.irr_max(), lapic.pending_vector()), (0xef, Some(0xef)));
    assert_eq!((ack(&mut lapic), lapic.eoi().map(|e| e.level)), (Some(0xef), Some(true)));
    assert_eq!((ack(&mut lapic), lapic.eoi().map(|e| e.level)), (Some(0x41), Some(false)));
    // The trigger mode follows the latest kind; level wins within one batch.
    pir.post(0x41, true);
    pir.post(0x41, false);
    pir.post(0x05, false);
    assert!(pir.drain_into(&mut lapic));
    assert_eq!((ack(&mut lapic), lapic.eoi().map(|e| e.level)), (Some(0x41), Some(true)));
    assert!(!lapic.has_irr(), "an illegal vector does not get in");
    pir.post(0x41, false);
    assert!(pir.drain_into(&mut lapic));
    assert_eq!((ack(&mut lapic), lapic.eoi().map(|e| e.level)), (Some(0x41), Some(false)));
    pir.post(0x41, false);
    pir.clear();
    assert!(!pir.drain_into(&mut lapic));
}

#[test]
fn nothing_posted_is_lost_between_threads() {
    // Each poster sends its own vectors over and over, but only after the reader has taken the previous one; so the
    // number of interrupts taken is exact.
    use std::sync::atomic::{AtomicU32, Ordering};
    const ROUNDS: u32 = 20_000;
    let pir = Pir::new();
    let taken: [AtomicU32; 4] = std::array::from_fn(|_| AtomicU32::new(0));
    let wakes = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for (i, seen) in taken.iter().enumerate() {
            let (pir, wakes) = (&pir, &wakes);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    if pir.post(0x30 + 0x31 * i as u8, i % 2 == 1) {
                        wakes.fetch_add(1, Ordering::SeqCst);
                    }
                    while seen.load(Ordering::SeqCst) == round {
                        std::thread::yield_now();
                    }
                }
            });
        }
        let mut lapic = xapic(0);
        let mut total = 0;
        let mut awake = 0;
        while total < 4 * ROUNDS {
            // Sleep until woken: a wake-up that is missing hangs the test.
            while wakes.load(Ordering::SeqCst) == awake {
                std::thread::yield_now();
            }
            awake = wakes.load(Ordering::SeqCst);
            pir.drain_into(&mut lapic);
            while let Some(vector) = ack(&mut lapic) {
                let i = usize::from((vector - 0x30) / 0x31);
                assert_eq!(lapic.eoi().map(|e| e.level), Some(i % 2 == 1));
                taken[i].fetch_add(1, Ordering::SeqCst);
                total += 1;
            }
        }
    });
    assert!(taken.iter().all(|t| t.load(Ordering::SeqCst) == ROUNDS));
}
