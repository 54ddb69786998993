//! The whole irqchip in the kernel: the 8259s, the IOAPIC and the PIT between user space, guest and local APIC.
//!
//! Long because: one test for each thing that a line, a pin or an end of an interrupt does, on the same machine.

use abi::uapi::ioctl::*;
use kvm_bindings::*;
use sim::arch::EventType;
use sim::arch::exit::code;
use sim::host::{Cpu, Errno, EventFd, Host, Hrtimer};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use tests::plain::Plain;
use tests::scenario::{DATA, Left, MMIO, Machine, PLAIN, RAM, RAM_HVA};

pub(crate) const IOAPIC: u64 = 0xfec0_0000;
/// mov [rbx], eax
const STORE: [u8; 2] = [0x89, 0x03];

/// A VM with KVM_CREATE_IRQCHIP, perhaps the PIT, and one vCPU in 64-bit mode, x2APIC on.
pub(crate) fn machine(pit: bool) -> Machine {
    let m = Machine::bare(PLAIN).expect("a VM");
    assert_eq!(m.vm(KVM_CREATE_IRQCHIP, 0), Ok(0));
    if pit {
        assert_eq!(m.vm_with(KVM_CREATE_PIT2, &kvm_pit_config::default()), Ok(0));
    }
    assert_eq!(m.region(0, 0, 0, RAM, RAM_HVA), Ok(0));
    m.add_vcpu(0).expect("a vCPU");
    m.long(0, &STORE);
    m.x2apic(0);
    m
}

/// The guest executes OUT; the controller takes it.
pub(crate) fn out(m: &Machine, port: u64, value: u8) {
    m.does(0, move |c| c.set_gpr(0, value.into()));
    m.sim.step(0, move |c| (code::IOIO, port << 16 | 1 << 4, c.guest().rip));
}

/// Both 8259s as a BIOS sets them up: vectors from 0x20 and 0x28, everything but `inputs` masked.
pub(crate) fn set_up_pics(m: &Machine, inputs: u16) {
    for (port, base, cascade, mask) in [(0x20, 0x20, 4, !inputs as u8), (0xa0, 0x28, 2, (!inputs >> 8) as u8)] {
        for (offset, value) in [(0, 0x11), (1, base), (1, cascade), (1, 1), (1, mask)] {
            out(m, port + offset, value);
        }
    }
    m.run_out(0);
}

/// The guest writes a redirection entry: 64-bit stores to the index and the window, each a nested fault.
pub(crate) fn redirect(m: &Machine, pin: u8, entry: u64) {
    let mut ioapic: kvm_irqchip = empty();
    ioapic.chip_id = 2;
    m.put_at(DATA, &ioapic);
    assert_eq!(m.vm(KVM_GET_IRQCHIP, DATA), Ok(0));
    let at = DATA + 8 + 24 + 8 * u64::from(pin);
    m.put_at(at, &[entry]);
    assert_eq!(m.vm(KVM_SET_IRQCHIP, DATA), Ok(0));
}

fn empty() -> kvm_irqchip {
    kvm_irqchip::from_bytes(&vec![0; size_of::<kvm_irqchip>()])
}

pub(crate) fn entry_of(m: &Machine, pin: u8) -> u64 {
    let mut ioapic = empty();
    ioapic.chip_id = 2;
    m.put_at(DATA, &ioapic);
    assert_eq!(m.vm(KVM_GET_IRQCHIP, DATA), Ok(0));
    m.get_at::<[u64; 1]>(DATA + 8 + 24 + 8 * u64::from(pin))[0]
}

pub(crate) fn line(m: &Machine, irq: u32, level: u32) -> i32 {
    let mut l = kvm_irq_level { level, ..Default::default() };
    l.__bindgen_anon_1.irq = irq;
    assert_eq!(m.vm_with(KVM_IRQ_LINE_STATUS, &l), Ok(0));
    m.get_at::<[i32; 1]>(tests::scenario::ARG)[0]
}

/// The interrupts that the guest took so far, sorted.
pub(crate) fn vectors(m: &Machine) -> Vec<u8> {
    let mut all: Vec<u8> = m.injected(0).iter().map(|e| e.vector()).chain(m.taken(0)).collect();
    all.sort_unstable();
    all
}

/// The guest runs with interrupts on; taking one switches them off.
pub(crate) fn open(m: &Machine) {
    m.interrupt_flag(0, true);
    m.does(0, |_| {});
    m.run_out(0);
}

pub(crate) fn eoi(m: &Machine) {
    m.sim.step(0, |c| {
        c.set_gpr(1, 0x80b);
        c.set_gpr(0, 0);
        c.set_gpr(2, 0);
        (code::MSR, 1, 0)
    });
}

#[test]
fn made_once_and_before_the_vcpus() {
    let m = Machine::bare(PLAIN).unwrap();
    assert_eq!(m.vm_with(KVM_CREATE_PIT2, &kvm_pit_config::default()), Err(Errno::ENOENT));
    for cmd in [KVM_GET_IRQCHIP, KVM_SET_IRQCHIP, KVM_GET_PIT2, KVM_SET_PIT2, KVM_REINJECT_CONTROL] {
        assert_eq!(m.vm(cmd, DATA), Err(Errno::ENXIO), "{cmd:#x}");
    }
    assert_eq!(m.vm(KVM_CREATE_IRQCHIP, 0), Ok(0));
    assert_eq!(m.vm(KVM_CREATE_IRQCHIP, 0), Err(Errno::EEXIST));
    assert_eq!(m.enable(KVM_CAP_SPLIT_IRQCHIP, 24), Err(Errno::EEXIST));
    assert_eq!(m.vm(KVM_GET_PIT2, DATA), Err(Errno::ENXIO));
    assert_eq!(m.vm(KVM_CREATE_PIT, 0), Ok(0));
    assert_eq!(m.vm_with(KVM_CREATE_PIT2, &kvm_pit_config::default()), Err(Errno::EEXIST));
    assert_eq!(m.vm_with(KVM_GET_IRQCHIP, &kvm_irqchip { chip_id: 3, ..empty() }), Err(Errno::EINVAL));
    let late = Machine::bare(PLAIN).unwrap();
    late.add_vcpu(0).unwrap();
    assert_eq!(late.vm(KVM_CREATE_IRQCHIP, 0), Err(Errno::EINVAL));
    m.end();
}

#[test]
fn the_8259s_interrupt_is_acknowledged_when_the_guest_takes_it() {
    let m = machine(false);
    set_up_pics(&m, 1 << 4 | 1 << 2 | 1 << 10);
    assert_eq!(line(&m, 4, 1), 1);
    line(&m, 4, 0);
    assert_eq!(line(&m, 4, 1), 0, "pending already");
    assert_eq!(line(&m, 5, 1), -1, "masked");
    // Interrupts are off: nothing is acknowledged; then the window opens.
    m.does(0, |_| {});
    m.run_out(0);
    assert_eq!(vectors(&m), []);
    open(&m);
    assert_eq!(vectors(&m), [0x24]);
    // In service: input 4 waits for EOI, the more urgent one of the slave comes through.
    line(&m, 4, 0);
    assert_eq!((line(&m, 4, 1), line(&m, 10, 1)), (1, 1));
    open(&m);
    assert_eq!(vectors(&m), [0x24, 0x2a]);
    for port in [0xa0, 0x20, 0x20] {
        out(&m, port, 0x20);
    }
    open(&m);
    assert_eq!(vectors(&m), [0x24, 0x24, 0x2a]);
    m.end();
}

#[test]
fn an_8259_interrupt_ends_hlt() {
    let m = machine(false);
    set_up_pics(&m, 1 << 3);
    m.interrupt_flag(0, true);
    m.exit(0, code::HLT);
    m.run_out(0);
    assert_eq!(line(&m, 3, 1), 1);
    m.does(0, |_| {});
    m.run_out(0);
    assert_eq!(vectors(&m), [0x23]);
}

#[test]
fn an_edge_goes_through_the_ioapic() {
    let m = machine(false);
    set_up_pics(&m, 0);
    m.with_regs(0, |r| r.rflags |= 0x200);
    redirect(&m, 5, 0x45);
    assert_eq!(line(&m, 5, 1), 1);
    assert_eq!(line(&m, 5, 1), 0, "coalesced");
    line(&m, 5, 0);
    open(&m);
    assert_eq!(vectors(&m), [0x45]);
    // A destination that is nobody's: the tables tell. Of a level interrupt nothing is in service.
    redirect(&m, 6, 7 << 56 | 0x46);
    assert_eq!(line(&m, 6, 1), 0);
    redirect(&m, 7, 7 << 56 | 0x8047);
    assert_eq!((line(&m, 7, 1), entry_of(&m, 7) & 1 << 14), (0, 0));
    m.end();
}

#[test]
fn a_level_is_in_service_until_eoi_and_comes_again_if_it_stays() {
    const LEVEL: u64 = 1 << 15;
    const REMOTE_IRR: u64 = 1 << 14;
    let m = machine(false);
    set_up_pics(&m, 0);
    m.with_regs(0, |r| r.rflags |= 0x200);
    redirect(&m, 9, LEVEL | 0x49);
    assert_eq!(line(&m, 9, 1), 1);
    assert_ne!(entry_of(&m, 9) & REMOTE_IRR, 0);
    open(&m);
    open(&m);
    assert_eq!(vectors(&m), [0x49], "not twice before EOI");
    eoi(&m);
    open(&m);
    assert_eq!(vectors(&m), [0x49, 0x49], "the line is still high");
    line(&m, 9, 0);
    eoi(&m);
    open(&m);
    assert_eq!(vectors(&m), [0x49, 0x49]);
    assert_eq!(entry_of(&m, 9) & REMOTE_IRR, 0);
    m.end();
}

#[test]
fn resampling_irqfds_are_as_many_as_memory_allows() {
    let m = Machine::new();
    for n in 0..2000 {
        assert_eq!(m.engine().add_resampler(n, m.sim.eventfd(2).unwrap()), Ok(()), "{n}");
    }
}

#[test]
fn many_resampling_irqfds_let_others_have_the_cpu() {
    let m = machine(false);
    set_up_pics(&m, 0);
    m.with_regs(0, |r| r.rflags |= 0x200);
    redirect(&m, 10, 1 << 15 | 0x4a);
    let given = std::sync::Arc::new(AtomicU32::new(0));
    let gives = |what: &str, f: &dyn Fn()| {
        let before = given.load(SeqCst);
        let count = given.clone();
        m.sim.during_wait(move || {
            count.fetch_add(1, SeqCst);
        });
        f();
        assert_eq!(given.load(SeqCst), before + 1, "{what}");
    };
    for _ in 0..300 {
        m.engine().add_resampler(10, m.sim.eventfd(2).unwrap()).unwrap();
    }
    m.raise_until_eoi(10);
    let goes_on = || {
        m.does(0, |_| {});
        m.run_out(0);
    };
    gives("which pins are waited for", &goes_on);
    eoi(&m);
    gives("the end of the interrupt", &goes_on);
    assert_eq!((vectors(&m), m.sim.event_count(2)), (vec![0x4a], 300));
    m.end();
}

#[test]
fn a_resampled_line_is_lowered_at_eoi_and_user_space_is_told() {
    let m = machine(false);
    set_up_pics(&m, 0);
    m.with_regs(0, |r| r.rflags |= 0x200);
    redirect(&m, 10, 1 << 15 | 0x4a);
    m.engine().add_resampler(10, m.sim.eventfd(2).unwrap()).unwrap();
    m.raise_until_eoi(10);
    m.does(0, |_| {});
    eoi(&m);
    m.does(0, |_| {});
    m.run_out(0);
    assert_eq!((vectors(&m), m.sim.event_count(2)), (vec![0x4a], 1));
    let event = m.sim.eventfd(2).unwrap();
    assert!(event.same(&event));
    m.engine().remove_resampler(10, &event);
    drop(event);
    m.raise_until_eoi(10);
    eoi(&m);
    m.run_out(0);
    assert_eq!(m.sim.event_count(2), 1, "nobody waits any more");
    m.end();
}

#[test]
fn a_line_that_never_goes_low_cannot_stop_the_guest() {
    let m = machine(false);
    set_up_pics(&m, 0);
    m.with_regs(0, |r| r.rflags |= 0x200);
    redirect(&m, 11, 1 << 15 | 0x4b);
    assert_eq!(line(&m, 11, 1), 1);
    for _ in 0..10_000 {
        m.interrupt_flag(0, true);
        eoi(&m);
    }
    open(&m);
    assert_eq!(vectors(&m).len(), 10_000);
    open(&m);
    assert_eq!(vectors(&m).len(), 10_000, "put off");
    m.sim.advance(10_000_000);
    assert_eq!(m.engine().hrtimers.due(m.sim.now_ns()), Some(Hrtimer::Ioapic));
    m.expire(Hrtimer::Ioapic);
    open(&m);
    assert_eq!(vectors(&m).len(), 10_001);
}

#[test]
fn guests_program_the_ioapic_through_memory() {
    let m = machine(false);
    m.long(0, &STORE);
    m.with_regs(0, |r| (r.rbx, r.rax) = (IOAPIC, 0x10 + 2 * 7));
    m.npf(0, IOAPIC, true);
    m.run_out(0);
    m.long(0, &STORE);
    m.with_regs(0, |r| (r.rbx, r.rax) = (IOAPIC + 0x10, 0x8047));
    m.npf(0, IOAPIC + 0x10, true);
    m.run_out(0);
    assert_eq!(entry_of(&m, 7), 0x8047);
    // Beside it is nobody.
    m.long(0, &STORE);
    m.with_regs(0, |r| r.rbx = IOAPIC + 0x100);
    m.npf(0, IOAPIC + 0x100, true);
    assert!(matches!(m.run(0), Ok(Left::Mmio { .. })));
}

#[test]
fn the_pit_ticks_and_makes_up_for_what_the_guest_missed() {
    let m = machine(true);
    set_up_pics(&m, 1);
    m.with_regs(0, |r| r.rflags |= 0x200);
    // Channel 0, rate generator, 11932 clocks: 10 ms.
    for (port, value) in [(0x43, 0x34), (0x40, 0x9c), (0x40, 0x2e)] {
        out(&m, port, value);
    }
    m.run_out(0);
    let tick = |ns: u64| {
        m.sim.advance(ns);
        m.expire_all();
    };
    // Takes what is there, and ends it.
    let end = || {
        open(&m);
        out(&m, 0x20, 0x20);
        m.run_out(0);
    };
    tick(10_001_000);
    end();
    assert_eq!(vectors(&m), [0x20]);
    // Three periods at once: three interrupts, one after the other.
    tick(30_003_000);
    for n in 2..=4 {
        end();
        assert_eq!(vectors(&m).len(), n);
    }
    end();
    assert_eq!(vectors(&m).len(), 4);
    // Without making up: one.
    assert_eq!(m.vm_with(KVM_REINJECT_CONTROL, &kvm_reinject_control::default()), Ok(0));
    tick(30_003_000);
    end();
    end();
    assert_eq!(vectors(&m).len(), 5);
    m.end();
}

#[test]
fn the_pits_state_can_be_moved() {
    let m = machine(true);
    for (port, value) in [(0x43, 0x34), (0x40, 0x9c), (0x40, 0x2e)] {
        out(&m, port, value);
    }
    m.run_out(0);
    assert_eq!(m.vm(KVM_GET_PIT2, DATA), Ok(0));
    let state: [u64; 14] = m.get_at(DATA);
    assert_eq!(state[0] as u32, 11932);
    let other = machine(true);
    other.put_at(DATA, &state);
    assert_eq!(other.vm(KVM_SET_PIT2, DATA), Ok(0));
    assert_eq!(other.vm(KVM_GET_PIT, DATA + 0x1000), Ok(0));
    assert_eq!(other.get_at::<[u64; 1]>(DATA + 0x1000)[0], state[0]);
    other.sim.advance(11_000_000);
    assert_eq!(other.engine().hrtimers.due(other.sim.now_ns()), Some(Hrtimer::Pit), "it runs there");
}

#[test]
fn an_access_beyond_a_devices_ports_is_user_spaces() {
    let m = machine(true);
    // 32 bits from port 0x20, of which the 8259 has two; 16 bits from the PIT's last port.
    for (port, size) in [(0x20u64, 4u64), (0x21, 2), (0x43, 2)] {
        m.sim.step(0, move |c| (code::IOIO, port << 16 | size << 4 | 1, c.guest().rip));
        assert!(matches!(m.run(0), Ok(Left::Io { .. })), "{port:#x}");
        m.run_out(0);
    }
    m.sim.step(0, |c| (code::IOIO, 0x20 << 16 | 2 << 4 | 1, c.guest().rip));
    m.run_out(0);
}

#[test]
fn the_pits_tick_is_an_nmi_where_lint0_says_so() {
    let m = machine(true);
    // LVT LINT0: delivery mode NMI.
    m.set_msr(0, 0x835, 0x400).unwrap();
    for (port, value) in [(0x43, 0x34), (0x40, 0), (0x40, 0x10)] {
        out(&m, port, value);
    }
    m.run_out(0);
    m.sim.advance(20_000_000);
    assert_eq!(m.engine().hrtimers.due(m.sim.now_ns()), Some(Hrtimer::Pit));
    m.expire(Hrtimer::Pit);
    m.does(0, |_| {});
    m.run_out(0);
    assert_eq!(m.injected(0).iter().map(|e| e.kind()).collect::<Vec<_>>(), [Some(EventType::Nmi)]);
}

#[test]
fn coalesced_writes_wait_in_the_ring() {
    let m = Machine::new();
    let zone = kvm_coalesced_mmio_zone { addr: MMIO, size: 0x1000, ..Default::default() };
    assert_eq!(m.vm_with(KVM_REGISTER_COALESCED_MMIO, &zone), Ok(0));
    let store = || {
        m.long(0, &STORE);
        m.with_regs(0, |r| (r.rbx, r.rax) = (MMIO + 8, 0x1234));
        m.npf(0, MMIO + 8, true);
        m.run(0).is_err()
    };
    let page = m.engine().vcpu_page(&m.cpu(0), 2).unwrap().clone();
    let ring = sim::host::SharedPage::cells(&page);
    assert!(store());
    assert_eq!((ring.u32(0), ring.u32(4)), (0, 1));
    assert_eq!((ring.u64(8), ring.u32(16), ring.u32(20), ring.u64(24)), (MMIO + 8, 4, 0, 0x1234));
    // 170 places, of which one stays empty.
    for _ in 1..169 {
        assert!(store());
    }
    assert!(!store(), "the ring is full");
    // User space wrote nonsense: nothing is written anywhere.
    ring.set_u32(4, 0x7fff_ffff);
    ring.set_u32(0, 0);
    assert!(!store());
    ring.set_u32(4, 0);
    ring.set_u32(0, 0);
    assert!(store());
    assert_eq!(m.vm_with(KVM_UNREGISTER_COALESCED_MMIO, &zone), Ok(0));
    assert!(!store());
    let bad = kvm_coalesced_mmio_zone { __bindgen_anon_1: kvm_coalesced_mmio_zone__bindgen_ty_1 { pio: 2 }, ..zone };
    assert_eq!(m.vm_with(KVM_REGISTER_COALESCED_MMIO, &bad), Err(Errno::EINVAL));
}
