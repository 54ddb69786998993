//! The clock of the board, whose interrupt counts as pending until every vCPU that took it has ended it.

use crate::chips::{entry_of, eoi, line, machine, open, redirect, set_up_pics, vectors};
use crate::chips_corners::write_entry;
use abi::uapi::ioctl::*;
use kvm_bindings::*;
use std::sync::{Arc, Mutex};
use tests::scenario::DATA;

/// The clock's line, whose user asks: what it delivered is pending until every vCPU that took it has ended it.
#[test]
fn the_clock_is_pending_until_its_interrupt_ends() {
    let m = machine(false);
    set_up_pics(&m, 0);
    redirect(&m, 8, 0x88);
    let tick = || {
        let status = line(&m, 8, 1);
        assert_eq!(line(&m, 8, 0), 1);
        status
    };
    assert_eq!((tick(), tick()), (1, 0));
    open(&m);
    assert_eq!((vectors(&m), tick()), (vec![0x88], 0));
    // The tick was dropped.
    eoi(&m);
    m.run_out(0);
    open(&m);
    assert_eq!((vectors(&m), tick()), (vec![0x88], 1));
    // Who does not ask is no concern of this, and nothing is kept from him.
    open(&m);
    assert_eq!(vectors(&m), [0x88, 0x88]);
    for level in [1, 0] {
        let mut l = kvm_irq_level { level, ..Default::default() };
        l.__bindgen_anon_1.irq = 8;
        assert_eq!(m.vm_with(KVM_IRQ_LINE, &l), Ok(0));
    }
    eoi(&m);
    m.run_out(0);
    open(&m);
    assert_eq!(vectors(&m), [0x88, 0x88, 0x88]);
    eoi(&m);
    m.run_out(0);
    m.end();
}

#[test]
fn the_clock_is_restored_from_the_local_apic() {
    let m = machine(false);
    set_up_pics(&m, 0);
    redirect(&m, 8, 0x88);
    assert_eq!((line(&m, 8, 1), line(&m, 8, 0), line(&m, 8, 1), line(&m, 8, 0)), (1, 1, 0, 1));
    assert_eq!(m.vcpu(0, KVM_GET_LAPIC, DATA), Ok(0));
    let pending: [u8; 1024] = m.get_at(DATA);
    let mut empty = pending;
    empty[0x100..0x280].fill(0);
    let set = |state: &[u8; 1024]| {
        m.put_at(DATA, state);
        assert_eq!(m.vcpu(0, KVM_SET_LAPIC, DATA), Ok(0));
    };
    set(&empty);
    assert_eq!((line(&m, 8, 1), line(&m, 8, 0)), (1, 1));
    set(&empty);
    set(&pending);
    assert_eq!((line(&m, 8, 1), line(&m, 8, 0)), (0, 1));
    // The IOAPIC's state too: each vCPU looks at its own APIC before it runs.
    redirect(&m, 8, 0x88);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!((line(&m, 8, 1), line(&m, 8, 0)), (0, 1));
    m.end();
}

/// A vCPU that is told of the clock's interrupt may have ended it before whoever raised it goes on.
#[test]
fn the_clocks_interrupt_is_awaited_before_it_can_end() {
    let m = Arc::new(machine(false));
    set_up_pics(&m, 0);
    redirect(&m, 8, 0x88);
    m.does(0, |_| ());
    m.run_out(0);
    let (other, awaited) = (m.clone(), Arc::new(Mutex::new(None)));
    let seen = awaited.clone();
    m.sim.during_wake(move || *seen.lock().unwrap() = other.cpu(0).rtc.vector());
    assert_eq!((line(&m, 8, 1), *awaited.lock().unwrap()), (1, Some(0x88)));
}

/// The end of its interrupt counts even if the pin's vector is another by then.
#[test]
fn the_clocks_vector_changes_meanwhile() {
    let m = machine(false);
    set_up_pics(&m, 0);
    redirect(&m, 8, 0x88);
    assert_eq!((line(&m, 8, 1), line(&m, 8, 0)), (1, 1));
    write_entry(&m, 8, 0x99);
    open(&m);
    assert_eq!(entry_of(&m, 8), 0x99);
    assert_eq!((vectors(&m), line(&m, 8, 1), line(&m, 8, 0)), (vec![0x88], 0, 1));
    eoi(&m);
    m.run_out(0);
    assert_eq!((line(&m, 8, 1), line(&m, 8, 0)), (1, 1));
    m.end();
}
