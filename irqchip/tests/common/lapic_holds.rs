//! What holds of a local APIC whatever was done to it.

use irqchip::{Lapic, Mode};

/// The vector with the highest number in a set of eight registers, as KVM_GET_LAPIC has them; 0: none.
fn highest(state: &[u8; 1024], offset: usize) -> u8 {
    let bit = |v: &usize| state[offset + v / 32 * 16 + v % 32 / 8] >> (v % 8) & 1 != 0;
    (0..256).rev().find(bit).unwrap_or(0) as u8
}

/// The invariants of priorities, pending vectors and the timer's count. Panics where one does not hold.
pub fn holds(lapic: &Lapic, now: u64) {
    let mut state = [0; 1024];
    lapic.get_state(&mut state, now, true);
    let (isr, irr) = (highest(&state, 0x100), highest(&state, 0x200));
    assert_eq!((lapic.isr_max(), lapic.irr_max()), (isr, irr));
    let tpr = lapic.tpr();
    let ppr = if tpr >> 4 >= isr >> 4 { tpr } else { isr & 0xf0 };
    assert_eq!(lapic.ppr(), ppr);
    let expected = (irr >> 4 > ppr >> 4 && lapic.mode() != Mode::Disabled).then_some(irr);
    assert_eq!(lapic.pending_vector(), expected);
    assert!(expected.is_none_or(|vector| vector >= 16));
    assert_eq!(lapic.address().sw_enabled(), state[0xf1] & 1 != 0);
    let register = |at: usize| u32::from_le_bytes([state[at], state[at + 1], state[at + 2], state[at + 3]]);
    assert!(register(0x390) <= register(0x380), "the count is above where it began");
}
