//! Asynchronous page faults: the guest goes on while the host brings in a page of its memory.

use abi::uapi::ioctl::*;
use kvm_bindings::*;
use sim::Page;
use sim::arch::exit::code;
use sim::arch::{EventInj, EventType};
use sim::host::{Errno, PageIns, Trace};
use tests::scenario::{DATA, Left, Machine, RAM_HVA};

const EN: u32 = 0x4b56_4d02;
const INT: u32 = 0x4b56_4d06;
const ACK: u32 = 0x4b56_4d07;
/// Enabled, at any CPL, with an interrupt.
const ALWAYS: u64 = 1 | 2 | 8;
/// `struct kvm_vcpu_pv_apf_data`.
const AREA: u64 = 0xb040;
const VECTOR: u8 = 0x51;
/// Pages that are paged out.
const FAR: u64 = 0x20_0000;
const EOI: u32 = 0x80b;
const NOT_PRESENT: EventInj = EventInj::new(EventType::Exception, 14, Some(0));

/// 64-bit mode, the local APIC on, interrupts allowed; "page ready" is [`VECTOR`].
fn machine() -> Machine {
    let m = Machine::new();
    m.long(0, &[]);
    m.x2apic(0);
    m.with_regs(0, |r| r.rflags |= 0x200);
    m
}

fn enable(m: &Machine, vcpu: usize, bits: u64) {
    assert_eq!(m.set_msr(vcpu, INT, VECTOR.into()), Ok(1));
    assert_eq!(m.set_msr(vcpu, EN, AREA | bits), Ok(1));
}

/// The guest's handler of "page ready": which token it was.
fn handled(m: &Machine, vcpu: usize) -> u32 {
    m.does(vcpu, |_| ());
    m.run_out(vcpu);
    assert_eq!(m.taken(vcpu).last(), Some(&VECTOR));
    let token = m.read_ram::<u32>(AREA + 4);
    m.write_ram(AREA + 4, &[0; 4]);
    m.wrmsr(vcpu, EOI, 0);
    m.wrmsr(vcpu, ACK, 1);
    m.interrupt_flag(vcpu, true);
    m.run_out(vcpu);
    token
}

/// Enabled, and what enabling wakes is awake.
fn enabled(bits: u64) -> Machine {
    let m = machine();
    enable(&m, 0, bits);
    assert_eq!(handled(&m, 0), !0, "whoever waits since before this wakes up");
    m
}

fn page_out(m: &Machine, gpa: u64, pages: u64) {
    m.host_changes(gpa, pages, Page::Late);
}

/// The guest touches a page that is paged out, and is told so: its token.
fn told(m: &Machine, gpa: u64) -> u32 {
    let before = m.injected(0).len();
    m.tries(0, gpa, false);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(m.injected(0)[before..], [NOT_PRESENT]);
    assert_eq!(m.read_ram::<u32>(AREA), 1, "the reason");
    m.write_ram(AREA, &[0; 4]);
    m.inside(0, |c| sim::host::Cpu::save(&c.core.cpu).cr2) as u32
}

fn under_way(m: &Machine) -> usize {
    m.cpu(0).thread.pages_under_way()
}

#[test]
fn the_guest_is_told_of_an_absent_page_and_when_it_is_there() {
    let m = enabled(ALWAYS);
    page_out(&m, FAR, 1);
    let token = told(&m, FAR);
    assert_ne!(token, 0);
    let of_pages = |t: &Trace| {
        matches!(t, Trace::TryAsyncGetPage { .. } | Trace::AsyncPfNotPresent { .. } | Trace::AsyncPfReady { .. })
    };
    let mut told: Vec<Trace> = m.sim.take_told().into_iter().filter(of_pages).collect();
    let number = token.into();
    let absent = Trace::AsyncPfNotPresent { token: number, gva: FAR };
    assert_eq!(told, [Trace::TryAsyncGetPage { gva: FAR, gfn: FAR >> 12 }, absent]);
    assert_eq!((under_way(&m), m.read_ram::<u32>(AREA + 4)), (1, 0), "not yet");
    // It has nothing else to do: the interrupt wakes it.
    m.hlt(0);
    assert_eq!(handled(&m, 0), token);
    assert_eq!(under_way(&m), 0);
    told = m.sim.take_told().into_iter().filter(of_pages).collect();
    assert_eq!(told, [Trace::AsyncPfReady { token: number, gva: FAR }]);
    // The page is mapped before the guest touches it.
    let taken = m.cpu(0).stats.pf_taken.get();
    m.load(0, FAR, 0);
    m.run_out(0);
    assert_eq!(m.cpu(0).stats.pf_taken.get(), taken);
    m.end();
}

#[test]
fn user_code_alone_unless_the_kernel_wants_it_too() {
    let m = enabled(1 | 8);
    page_out(&m, FAR, 2);
    // At CPL 0: halted until the page is there.
    let (events, before) = (m.injected(0).len(), m.sim.0.now.load(std::sync::atomic::Ordering::SeqCst));
    m.load(0, FAR, 0);
    m.run_out(0);
    let after = m.sim.0.now.load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!((m.injected(0).len(), after - before), (events, 1_000_000));
    assert_eq!(m.read_ram::<u64>(AREA), 0, "neither absence nor readiness is told");
    m.does(0, |c| c.guest().cpl = 3);
    told(&m, FAR + 0x1000);
    m.end();
}

#[test]
fn a_guest_that_knows_nothing_of_it_is_halted_and_takes_interrupts() {
    let m = machine();
    page_out(&m, FAR, 1);
    m.sim.set_page_latency(u64::MAX);
    m.tries(0, FAR, false);
    m.run_out(0);
    assert_eq!(under_way(&m), 1, "and a signal ends KVM_RUN");
    // Touched again, it is the same page; an interrupt is taken meanwhile.
    let msi = kvm_msi { address_lo: 0xfee0_0000, data: 0x61, ..Default::default() };
    assert_eq!(m.vm_with(KVM_SIGNAL_MSI, &msi), Ok(1));
    m.tries(0, FAR, false);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!((under_way(&m), m.taken(0)), (1, vec![0x61]));
    // With interrupts off nothing could end the halt: it waits in its own thread.
    m.load(0, FAR, 0);
    m.run_out(0);
    m.end();
}

#[test]
fn an_interrupt_that_a_debugger_blocks_ends_no_halt() {
    let m = machine();
    page_out(&m, FAR, 1);
    m.sim.set_page_latency(u64::MAX);
    let debug = kvm_guest_debug { control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_BLOCKIRQ, ..Default::default() };
    assert_eq!(m.vcpu_with(0, KVM_SET_GUEST_DEBUG, &debug), Ok(0));
    let msi = kvm_msi { address_lo: 0xfee0_0000, data: 0x61, ..Default::default() };
    assert_eq!((m.vm_with(KVM_SIGNAL_MSI, &msi), m.vcpu(0, KVM_NMI, 0)), (Ok(1), Ok(0)));
    m.tries(0, FAR, false);
    m.does(0, |_| panic!("goes on without the page"));
    assert_eq!(m.run(0).unwrap_err().0, Errno::EINTR);
    m.sim.drop_script(0);
    // Once they are let through, they do.
    assert_eq!(m.vcpu_with(0, KVM_SET_GUEST_DEBUG, &kvm_guest_debug::default()), Ok(0));
    m.tries(0, FAR, false);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!((m.injected(0).len(), under_way(&m)), (1, 1));
    m.end();
}

#[test]
fn nothing_is_told_without_paging_or_while_an_event_is_delivered() {
    let m = enabled(ALWAYS);
    page_out(&m, FAR, 3);
    let before = m.injected(0).len();
    // The delivery of an event faults: it goes on first.
    assert_eq!(m.vcpu(0, KVM_NMI, 0), Ok(0));
    let mut once = false;
    m.sim.act(0, move |c| {
        if once {
            return sim::Outcome::Next;
        }
        once = true;
        c.cut_delivery_short();
        sim::Outcome::Again(code::NPF, 1 << 32 | 4, FAR)
    });
    m.run_out(0);
    let nmi = EventInj::new(EventType::Nmi, 2, None);
    assert_eq!((&m.injected(0)[before..], under_way(&m)), (&[nmi, nmi][..], 0));
    // Real mode has other handlers at vector 14.
    let m = machine();
    m.real(0, &[]);
    m.with_regs(0, |r| r.rflags |= 0x200);
    enable(&m, 0, ALWAYS);
    assert_eq!(handled(&m, 0), !0);
    page_out(&m, FAR, 1);
    m.load(0, FAR, 0);
    m.run_out(0);
    assert_eq!((m.injected(0), m.read_ram::<u32>(AREA)), (vec![], 0));
    m.end();
}

#[test]
fn one_token_at_a_time() {
    let m = enabled(ALWAYS);
    page_out(&m, FAR, 3);
    let tokens = [0, 1, 2].map(|n| told(&m, FAR + 0x1000 * n));
    assert_eq!(under_way(&m), 3);
    // All come in at once; the guest is told of the next when it has acknowledged the one before.
    m.sim.advance(10_000_000);
    assert_eq!(tokens.map(|_| handled(&m, 0)), tokens);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(m.read_ram::<u32>(AREA + 4), 0);
    // One that comes before the guest has taken its #PF.
    page_out(&m, FAR, 1);
    m.sim.set_page_latency(0);
    m.tries(0, FAR, false);
    m.sim.act(0, |_| sim::Outcome::Exit(code::INTR, 0, 0));
    m.run_out(0);
    m.sim.advance(1);
    assert_eq!(m.injected(0).last(), Some(&NOT_PRESENT));
    assert_ne!(handled(&m, 0), 0);
    m.end();
}

#[test]
fn more_than_fit_wait_in_the_thread() {
    let m = enabled(ALWAYS);
    page_out(&m, FAR, PageIns::LIMIT as u64 + 1);
    m.sim.set_page_latency(u64::MAX);
    for n in 0..PageIns::LIMIT as u64 {
        told(&m, FAR + 0x1000 * n);
    }
    assert_eq!(under_way(&m), PageIns::LIMIT);
    let before = m.injected(0).len();
    m.load(0, FAR + 0x1000 * PageIns::LIMIT as u64, 0);
    m.run_out(0);
    assert_eq!((m.injected(0).len(), under_way(&m)), (before, PageIns::LIMIT));
    // The guest ends it: nothing is told of any of them, and there is room again once they are over.
    assert_eq!(m.set_msr(0, EN, 0), Ok(1));
    assert_eq!(m.set_msr(0, EN, AREA | ALWAYS), Ok(1));
    assert_eq!(handled(&m, 0), !0);
    m.load(0, FAR, 0);
    m.run_out(0);
    m.end();
}

#[test]
fn what_is_under_way_when_the_guest_starts_over_or_ends() {
    let m = enabled(ALWAYS);
    page_out(&m, FAR, 2);
    told(&m, FAR);
    m.sim.step(0, |_| (code::SHUTDOWN, 0, 0));
    assert_eq!(m.run(0), Ok(Left::Shutdown));
    assert_eq!((m.msr(0, EN), m.msr(0, INT)), (0, 0));
    m.sim.advance(10_000_000);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(m.read_ram::<u64>(AREA), 0);
    // The VM goes while a page is on its way.
    m.long(0, &[]);
    m.x2apic(0);
    m.with_regs(0, |r| r.rflags |= 0x200);
    enable(&m, 0, ALWAYS);
    assert_eq!(handled(&m, 0), !0);
    told(&m, FAR + 0x1000);
    assert_eq!(under_way(&m), 1);
    m.end();
}

#[test]
fn a_guest_that_is_moved_takes_its_token_along() {
    let m = enabled(ALWAYS);
    page_out(&m, FAR, 1);
    // A signal comes between the fault and the delivery of the #PF.
    let sim = m.sim.clone();
    m.sim.step(0, move |_| {
        sim.signal();
        (code::NPF, 1 << 32 | 4, FAR)
    });
    let before = m.injected(0).len();
    m.run_out(0);
    assert_eq!(m.injected(0).len(), before);
    let s: kvm_sregs = m.vcpu_get(0, KVM_GET_SREGS);
    let e: kvm_vcpu_events = m.vcpu_get(0, KVM_GET_VCPU_EVENTS);
    assert_eq!((e.exception.injected, e.exception.nr, e.exception.has_error_code), (1, 14, 1));
    assert_eq!((m.read_ram::<u32>(AREA), s.cr2 & 0xfff), (1, 0), "the token");
    assert_ne!(s.cr2, 0);
    let saved = [m.msr(0, EN), m.msr(0, INT), m.msr(0, ACK)];
    assert_eq!(saved, [AREA | ALWAYS, VECTOR.into(), 0]);
    // On the other side nobody brings its page in: everybody who waits is woken, and touches it again.
    let m = machine();
    assert_eq!(m.set_msr(0, EN, saved[0]), Ok(1));
    assert_eq!(m.set_msr(0, INT, saved[1]), Ok(1));
    assert_eq!(handled(&m, 0), !0);
    m.end();
}

/// An APIC that is off takes no interrupt: "page ready" waits until it is on again.
#[test]
fn a_page_that_comes_while_the_local_apic_is_off() {
    const SVR: u32 = 0x80f;
    const BASE: u32 = 0x1b;
    let user_space = |m: &Machine| assert_eq!(m.set_msr(0, BASE, 0xfee0_0900), Ok(1));
    let guest = |register, value| move |m: &Machine| m.wrmsr(0, register, value);
    type Do<'a> = &'a dyn Fn(&Machine);
    let ways: [(Do<'_>, Do<'_>); 3] = [
        (&guest(SVR, 0xff), &guest(SVR, 0x1ff)),
        (&guest(BASE, 0xfee0_0100), &guest(BASE, 0xfee0_0900)),
        (&guest(BASE, 0xfee0_0100), &user_space),
    ];
    for (off, on) in ways {
        let m = enabled(ALWAYS);
        page_out(&m, FAR, 1);
        let token = told(&m, FAR);
        let before = m.taken(0).len();
        off(&m);
        m.run_out(0);
        m.sim.advance(10_000_000);
        m.interrupt_flag(0, true);
        m.does(0, |_| ());
        m.run_out(0);
        assert_eq!((m.taken(0).len(), m.read_ram::<u32>(AREA + 4)), (before, 0));
        on(&m);
        m.does(0, |_| ());
        m.does(0, |_| ());
        m.run_out(0);
        assert_eq!((m.taken(0)[before..].to_vec(), m.read_ram::<u32>(AREA + 4)), (vec![VECTOR], token));
        m.end();
    }
}

#[test]
fn a_page_that_never_comes_is_the_guests_next_access_to_meet() {
    let m = enabled(ALWAYS);
    page_out(&m, FAR, 2);
    let token = told(&m, FAR);
    // Unmapped meanwhile: the guest is told that it is ready all the same, and fails where it would have.
    m.host_changes(FAR, 1, Page::Absent);
    m.sim.advance(10_000_000);
    assert_eq!(handled(&m, 0), token);
    m.load(0, FAR, 0);
    assert!(matches!(m.run(0), Err((Errno::EFAULT, _))));
    m.sim.drop_script(0);
    // The slot is gone: nothing is told to memory that the guest has no more.
    let token = told(&m, FAR + 0x1000);
    assert_ne!(token, 0);
    assert_eq!(m.region(0, 0, 0, 0, RAM_HVA), Ok(0));
    m.sim.advance(10_000_000);
    m.does(0, |_| ());
    m.run_out(0);
    m.end();
}

#[test]
fn msrs() {
    let m = machine();
    for (value, want) in
        [(AREA | 1 | 0x10, 0), (AREA | 1 | 0x20, 0), (0xd000_0000 | ALWAYS, 0), (0xd000_0000 | 1, 1), (AREA | 15, 1)]
    {
        assert_eq!(m.set_msr(0, EN, value), Ok(want), "{value:#x}");
    }
    // Memory that the guest cannot write is none, for each of them that has to be there.
    let rom = 0x1000_0000;
    assert_eq!(m.region(1, KVM_MEM_READONLY, rom, 4096, RAM_HVA), Ok(0));
    for (msr, value) in [(EN, rom | ALWAYS), (0x4b56_4d04, rom | 1)] {
        assert_eq!((m.set_msr(0, msr, value), m.set_msr(0, msr, 0)), (Ok(0), Ok(1)), "{msr:x}");
    }
    assert_eq!(m.vcpu_with(0, KVM_SET_VAPIC_ADDR, &rom), Err(Errno::EINVAL));
    assert_eq!([m.set_msr(0, INT, 0x100), m.set_msr(0, INT, 0xff), m.set_msr(0, ACK, 0)], [Ok(0), Ok(1), Ok(1)]);
    // INIT and reset of a processor that another one sends.
    let off = Machine::without_irqchip();
    assert_eq!([off.set_msr(0, EN, AREA | 1), off.set_msr(0, EN, 0), off.set_msr(0, INT, 0)], [Ok(0), Ok(1), Ok(0)]);
    // Only what the guest was shown, once user space wants that.
    let enforce = kvm_enable_cap { cap: KVM_CAP_ENFORCE_PV_FEATURE_CPUID, args: [1, 0, 0, 0], ..Default::default() };
    let n = m.add_vcpu(1).unwrap();
    assert_eq!(m.vcpu_with(n, KVM_ENABLE_CAP, &enforce), Ok(0));
    assert_eq!(m.set_msr(n, EN, AREA | ALWAYS), Ok(1));
    for (features, want) in
        [(1 << 4, [Ok(0), Ok(1), Ok(0)]), (1 << 4 | 1 << 14, [Ok(1), Ok(1), Ok(1)]), (0, [Ok(0); 3])]
    {
        let entries = [
            kvm_cpuid_entry2 {
                function: 0x4000_0000,
                eax: 0x4000_0001,
                ebx: 0x4b4d_564b,
                ecx: 0x564b_4d56,
                edx: 0x4d,
                ..Default::default()
            },
            kvm_cpuid_entry2 { function: 0x4000_0001, eax: features, ..Default::default() },
        ];
        m.put_at(DATA, &[2u32, 0]);
        m.put_at(DATA + 8, &entries[0]);
        m.put_at(DATA + 8 + size_of::<kvm_cpuid_entry2>() as u64, &entries[1]);
        assert_eq!(m.vcpu(n, KVM_SET_CPUID2, DATA), Ok(0));
        assert_eq!(
            [m.set_msr(n, EN, AREA | 1 | 8), m.set_msr(n, EN, AREA | 1), m.set_msr(n, INT, 1)],
            want,
            "{features:#x}"
        );
    }
}
