//! The whole irqchip in the kernel, where it is easily wrong: who goes first, who is told, and what is forgotten.

use crate::chips::{IOAPIC, entry_of, eoi, line, machine, open, out, redirect, set_up_pics, vectors};
use abi::uapi::ioctl::*;
use abi::uapi::run::at;
use kvm_bindings::*;
use sim::host::{Errno, Host, Hrtimer, Request, VcpuThread};

use tests::scenario::{DATA, Machine, PLAIN, RAM, RAM_HVA};

const LEVEL: u64 = 1 << 15;

#[test]
fn an_nmi_that_waits_for_anothers_end_does_not_hold_interrupts_back() {
    let m = machine(false);
    set_up_pics(&m, 1 << 4);
    assert_eq!(m.vcpu(0, KVM_NMI, 0), Ok(0));
    m.does(0, |_| ());
    m.run_out(0);
    // The handler runs, with interrupts on; the second NMI has to wait for it, the 8259's interrupt has not.
    assert_eq!(m.vcpu(0, KVM_NMI, 0), Ok(0));
    assert_eq!(line(&m, 4, 1), 1);
    m.interrupt_flag(0, true);
    m.exit(0, sim::arch::exit::code::INTR);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(vectors(&m), [2, 0x24]);
}

#[test]
fn only_unmasking_forgets_ticks_of_the_pit() {
    let m = machine(true);
    set_up_pics(&m, 1);
    for (port, value) in [(0x43, 0x34), (0x40, 0x9c), (0x40, 0x2e)] {
        out(&m, port, value);
    }
    m.run_out(0);
    let late = |ns: u64| {
        m.sim.advance(ns);
        m.expire_all();
    };
    let ticks_left = || {
        let mut n = 0;
        loop {
            let before = vectors(&m).len();
            open(&m);
            if vectors(&m).len() == before {
                m.interrupt_flag(0, false);
                m.does(0, |_| ());
                m.run_out(0);
                return n;
            }
            n += 1;
            out(&m, 0x20, 0x20);
            m.run_out(0);
        }
    };
    late(30_003_000);
    // Masked: the ticks still wait; an unmask drops them, and the one on its way stays in the 8259.
    open(&m);
    out(&m, 0x21, 0xff);
    out(&m, 0x20, 0x20);
    m.run_out(0);
    m.does(0, |_| ());
    m.run_out(0);
    out(&m, 0x21, 0xfe);
    m.run_out(0);
    assert_eq!(ticks_left(), 1);
    // Not masked in between, all of them come.
    late(30_003_000);
    out(&m, 0x21, 0xfe);
    m.run_out(0);
    assert_eq!(ticks_left(), 3);
    // Masking another input changes nothing.
    late(30_003_000);
    out(&m, 0x21, 0xfc);
    out(&m, 0x21, 0xfe);
    m.run_out(0);
    assert_eq!(ticks_left(), 3);
}

#[test]
fn masking_alone_keeps_ticks() {
    let m = machine(true);
    set_up_pics(&m, 1);
    // The IOAPIC takes the ticks as well, so that masking the 8259's input stops nothing.
    redirect(&m, 0, 0x40);
    m.with_regs(0, |r| r.rflags |= 0x200);
    for (port, value) in [(0x43, 0x34), (0x40, 0x9c), (0x40, 0x2e)] {
        out(&m, port, value);
    }
    m.run_out(0);
    m.sim.advance(40_004_000);
    m.expire_all();
    out(&m, 0x21, 0xff);
    m.run_out(0);
    let ioapic = || vectors(&m).iter().filter(|v| **v == 0x40).count();
    for n in 1..=4 {
        open(&m);
        assert_eq!(ioapic(), n);
        crate::chips::eoi(&m);
        m.run_out(0);
    }
}

#[test]
fn of_two_routes_to_a_pin_the_last_is_told_of_its_end() {
    let m = machine(false);
    set_up_pics(&m, 0);
    m.with_regs(0, |r| r.rflags |= 0x200);
    redirect(&m, 10, LEVEL | 0x4a);
    let route = |gsi: u32| {
        let mut r = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
        r.u.irqchip = kvm_irq_routing_irqchip { irqchip: KVM_IRQCHIP_IOAPIC, pin: 10 };
        r
    };
    m.put_at(DATA, &[2u32, 0]);
    m.put_at(DATA + 8, &route(30));
    m.put_at(DATA + 8 + size_of::<kvm_irq_routing_entry>() as u64, &route(20));
    assert_eq!(m.vm(KVM_SET_GSI_ROUTING, DATA), Ok(0));
    for (gsi, event) in [(20, 2), (30, 3)] {
        m.engine().add_resampler(gsi, m.sim.eventfd(event).unwrap()).unwrap();
    }
    m.raise_until_eoi(20);
    m.does(0, |_| ());
    crate::chips::eoi(&m);
    m.run_out(0);
    assert_eq!((m.sim.event_count(2), m.sim.event_count(3)), (1, 0));
}

#[test]
fn destination_255_is_everybodys_unless_the_quirk_is_off() {
    for off in [false, true] {
        let m = Machine::bare(PLAIN).unwrap();
        assert_eq!(m.vm(KVM_CREATE_IRQCHIP, 0), Ok(0));
        assert_eq!(m.region(0, 0, 0, RAM, RAM_HVA), Ok(0));
        m.add_vcpu(0).unwrap();
        m.long(0, &[0x90]);
        m.x2apic(0);
        if off {
            assert_eq!(m.enable(KVM_CAP_X2APIC_API, 2), Ok(0));
        }
        // So that only the IOAPIC's answer counts.
        set_up_pics(&m, 0);
        redirect(&m, 5, 0xff << 56 | 0x45);
        assert_eq!(line(&m, 5, 1), if off { -1 } else { 1 });
    }
}

#[test]
fn user_space_is_not_asked_for_interrupts_of_a_kernel_pic() {
    let m = machine(false);
    m.page(0).set_u8(at::REQUEST_INTERRUPT_WINDOW, 1);
    m.interrupt_flag(0, true);
    m.exit(0, sim::arch::exit::code::INTR);
    m.does(0, |_| ());
    m.run_out(0);
    // As on stock it is always ready.
    m.interrupt_flag(0, false);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(m.page(0).u8(at::READY_FOR_INTERRUPT_INJECTION), 1);
}

#[test]
fn a_level_that_waits_for_unmasking_is_ended() {
    let m = machine(false);
    set_up_pics(&m, 0);
    m.with_regs(0, |r| r.rflags |= 0x200);
    redirect(&m, 9, 1 << 16 | LEVEL | 0x49);
    assert_eq!(line(&m, 9, 1), -1);
    for (offset, value) in [(0u64, 0x10 + 2 * 9), (0x10, LEVEL | 0x49)] {
        m.long(0, &[0x89, 0x03]);
        m.with_regs(0, |r| (r.rbx, r.rax) = (0xfec0_0000 + offset, value));
        m.npf(0, 0xfec0_0000 + offset, true);
        m.run_out(0);
    }
    open(&m);
    assert_eq!(vectors(&m), [0x49]);
    line(&m, 9, 0);
    crate::chips::eoi(&m);
    m.run_out(0);
    assert_eq!(entry_of(&m, 9) & 1 << 14, 0);
}

/// A level that is on its way to a vCPU is ended there, although its address is another by now.
#[test]
fn a_level_that_was_posted_to_an_address_of_before_is_ended() {
    let m = Machine::bare(PLAIN).unwrap();
    assert_eq!(m.vm(KVM_CREATE_IRQCHIP, 0), Ok(0));
    assert_eq!(m.region(0, 0, 0, RAM, RAM_HVA), Ok(0));
    m.add_vcpu(0).unwrap();
    m.long(0, &[]);
    let mut lapic: kvm_lapic_state = m.vcpu_get(0, KVM_GET_LAPIC);
    // SVR: on. LDR: 2, which x2APIC's is not.
    (lapic.regs[0xf0], lapic.regs[0xf1], lapic.regs[0xd3]) = (0xffu8 as _, 1, 2);
    assert_eq!(m.vcpu_with(0, KVM_SET_LAPIC, &lapic), Ok(0));
    set_up_pics(&m, 0);
    redirect(&m, 9, 2 << 56 | LEVEL | 1 << 11 | 0x49);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!((line(&m, 9, 1), entry_of(&m, 9) & 1 << 14), (1, 1 << 14));
    let base = m.msr(0, 0x1b);
    assert_eq!(m.set_msr(0, 0x1b, base | 0xc00), Ok(1));
    open(&m);
    line(&m, 9, 0);
    eoi(&m);
    m.run_out(0);
    assert_eq!((vectors(&m), entry_of(&m, 9) & 1 << 14), (vec![0x49], 0));
    m.end();
}

#[test]
fn the_argument_of_set_pit_comes_first() {
    let m = machine(false);
    for cmd in [KVM_SET_PIT, KVM_SET_PIT2] {
        assert_eq!(m.vm(cmd, 1), Err(Errno::EFAULT));
        assert_eq!(m.vm(cmd, DATA), Err(Errno::ENXIO));
    }
}

/// Whatever user space says of when they were loaded; of channel 0 it reads that back.
#[test]
fn all_counts_start_when_the_pits_state_is_set() {
    let m = machine(true);
    for (cmd, said) in [(KVM_SET_PIT2, 77), (KVM_SET_PIT, 78)] {
        m.sim.advance(5_000_000);
        assert_eq!(m.vm(KVM_GET_PIT2, DATA), Ok(0));
        m.put_at(DATA + 16, &said);
        assert_eq!(m.vm(cmd, DATA), Ok(0));
        let set = m.sim.now_ns();
        m.sim.advance(1000);
        let load_time = |n: u64| {
            assert_eq!(m.vm(KVM_GET_PIT2, DATA + 0x1000), Ok(0));
            m.get_at::<u64>(DATA + 0x1000 + 24 * n + 16)
        };
        assert_eq!([0, 1, 2].map(load_time), [said, set, set]);
    }
}

/// An edge that an 8259 latched for nobody is no interrupt that ends when the 8259 is initialised anew.
#[test]
fn an_8259_whose_interrupts_nobody_takes_ends_none() {
    for (lint0, told) in [(0x1_0700, 0), (0x700, 1)] {
        let m = machine(false);
        set_up_pics(&m, 1 << 2 | 1 << 10);
        assert_eq!(m.set_msr(0, 0x835, lint0), Ok(1));
        m.engine().add_resampler(10, m.sim.eventfd(2).unwrap()).unwrap();
        m.raise_until_eoi(10);
        out(&m, 0xa0, 0x11);
        m.run_out(0);
        assert_eq!(m.sim.event_count(2), told, "{lint0:x}");
    }
}

/// MSIs come and go all the time. Only where a pin's GSI changes, others may wait for its end.
#[test]
fn routes_that_are_no_pins_ask_nobody() {
    let m = machine(false);
    let set = |pins: u32, msis: u32| {
        let pin = |pin: u32| {
            let mut r = kvm_irq_routing_entry { gsi: pin, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
            r.u.irqchip = kvm_irq_routing_irqchip { irqchip: KVM_IRQCHIP_IOAPIC, pin };
            r
        };
        let msi = |n: u32| {
            let mut r = kvm_irq_routing_entry { gsi: 24 + n, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
            r.u.msi = kvm_irq_routing_msi { address_lo: 0xfee0_0000, data: 0x41 + n, ..Default::default() };
            r
        };
        m.put_at(DATA, &[pins + msis, 0]);
        for (n, r) in (0u64..).zip((0..pins).map(pin).chain((0..msis).map(msi))) {
            m.put_at(DATA + 8 + n * size_of::<kvm_irq_routing_entry>() as u64, &r);
        }
        m.cpu(0).thread.requests().take_all();
        assert_eq!(m.vm(KVM_SET_GSI_ROUTING, DATA), Ok(0));
        m.cpu(0).thread.requests().test_request(Request::ScanIoapic)
    };
    assert_eq!(
        [(24, 0), (24, 3), (24, 1), (23, 1), (23, 0)].map(|(p, n)| set(p, n)),
        [false, false, false, true, false]
    );
}

/// The guest writes the low half of a redirection entry.
pub fn write_entry(m: &Machine, pin: u64, value: u64) {
    for (register, value) in [(0, 0x10 + 2 * pin), (0x10, value)] {
        m.long(0, &[0x89, 0x03]); // mov [rbx], eax
        m.with_regs(0, |r| (r.rbx, r.rax) = (IOAPIC + register, value));
        m.npf(0, IOAPIC + register, true);
        m.run_out(0);
    }
}

/// What came while the pin was masked may be over: whoever raised it is asked.
#[test]
fn an_unmask_asks_who_waits_for_the_end() {
    let m = machine(false);
    set_up_pics(&m, 0);
    redirect(&m, 10, 1 << 16 | LEVEL | 0x4a);
    m.engine().add_resampler(10, m.sim.eventfd(2).unwrap()).unwrap();
    m.raise_until_eoi(10);
    write_entry(&m, 10, LEVEL | 0x4a);
    assert_eq!(m.sim.event_count(2), 1);
    open(&m);
    assert_eq!(vectors(&m), []);
    m.raise_until_eoi(10);
    open(&m);
    assert_eq!((vectors(&m), m.sim.event_count(2)), (vec![0x4a], 1));
    eoi(&m);
    m.run_out(0);
    assert_eq!(m.sim.event_count(2), 2);
    m.end();
}

#[test]
fn the_pits_tick_is_no_nmi_any_more_where_lint0_said_so_once() {
    const NMI: u64 = 0x400;
    const MASKED: u64 = 0x1_0400;
    // Said twice each: what is counted must not go below zero, nor stay.
    for (lvts, nmis) in [(&[NMI, NMI, MASKED, MASKED][..], 0), (&[NMI, MASKED, MASKED, NMI], 1)] {
        let m = machine(true);
        for (port, value) in [(0x43, 0x34), (0x40, 0), (0x40, 0x10)] {
            out(&m, port, value);
        }
        m.run_out(0);
        for lvt in lvts {
            m.set_msr(0, 0x835, *lvt).unwrap();
        }
        m.sim.advance(20_000_000);
        m.expire(Hrtimer::Pit);
        m.does(0, |_| {});
        m.run_out(0);
        let injected = m.injected(0);
        assert!(injected.len() == nmis && injected.iter().all(|e| e.kind() == Some(sim::arch::EventType::Nmi)));
    }
}
