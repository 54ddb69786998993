//! The VM goes to another engine: all scenarios once more with a handover at every exit, at every sleep and after every ioctl;
//! and states of old, damaged and foreign ones.

use abi::uapi::ioctl::{KVM_IOEVENTFD, KVM_SET_TSC_KHZ};
use kvm_bindings::kvm_ioeventfd;
use sim::arch::exit::code;
use sim::host::{Cpu, CpuFeatures, Errno, Host, Request, VcpuThread};
use state::{Id, Why};
use std::path::Path;
use tests::random::Random;
use tests::scenario::{
    Left, Machine, PLAIN, RAM, RAM_HVA, all_handed_over_everywhere, all_handed_over_through_the_assembly,
    is_handed_over_everywhere,
};
use vm::Vm;

#[test]
fn all_others_handed_over_everywhere() {
    all_handed_over_everywhere("all_others_handed_over_everywhere");
}

#[test]
fn all_others_handed_over_through_the_assembly() {
    all_handed_over_through_the_assembly("all_others_handed_over_through_the_assembly");
}

#[test]
fn it_is_handed_over() {
    let m = Machine::new();
    m.long(0, &[0x0f, 0x09]); // wbinvd
    let before = m.handovers();
    m.exit(0, code::WBINVD);
    m.hlt(0);
    m.run_out(0);
    // Two exits, a sleep, and the return to user space; each KVM_RUN that is left is one.
    assert_eq!(m.handovers() - before, if is_handed_over_everywhere() { 4 } else { 0 });
    m.end();
}

#[test]
fn a_state_that_is_larger_than_nearly_always() {
    let m = Machine::new();
    let room = m.state().len();
    for slot in 1..500 {
        assert_eq!(m.region(slot, 0, RAM + u64::from(slot) * 4096, 4096, RAM_HVA), Ok(0));
    }
    assert!(m.state().len() > room + 500 * 32);
    m.hand_over().unwrap();
    m.end();
}

/// An ioeventfd of port 0x70 that takes this value.
fn ioeventfd(m: &Machine, datamatch: u64) {
    const DATAMATCH: u32 = 1;
    const PIO: u32 = 2;
    let event = kvm_ioeventfd { datamatch, addr: 0x70, len: 4, fd: 1, flags: DATAMATCH | PIO, ..Default::default() };
    assert_eq!(m.vm_with(KVM_IOEVENTFD, &event), Ok(0));
}

#[test]
fn whoever_hands_much_over_lets_others_have_the_cpu() {
    const MUCH: u32 = 1000;
    let m = Machine::new();
    let offers = |what: &str, least: u32, f: &dyn Fn()| {
        let before = m.sim.offers();
        f();
        assert!(m.sim.offers() - before >= least as usize / 64, "{what}: {}", m.sim.offers() - before);
    };
    let hand_over = || {
        let parcel = m.engine().leave().unwrap();
        offers("leave", 3 * MUCH, &|| drop(m.engine().leave().unwrap()));
        offers("arrive", 3 * MUCH, &|| drop(Vm::arrive(m.sim.clone(), &parcel.state, &parcel.lent).unwrap()));
        offers("call out", MUCH / 1000, &|| m.engine().call_out());
        m.hand_over().unwrap();
    };
    // In no order that is of use; written and lent, each is gone through twice.
    (0..MUCH).for_each(|n| ioeventfd(&m, (u64::from(n) * 7919) % u64::from(MUCH)));
    for gsi in 0..MUCH {
        m.engine().add_resampler(gsi, m.sim.eventfd(2).unwrap()).unwrap();
    }
    let slot = |n: u32| m.region(n, 0, RAM + u64::from(n) * 4096, 4096, RAM_HVA + u64::from(n * 7919 % MUCH) * 4096);
    (1..MUCH).for_each(|n| assert_eq!(slot(n), Ok(0)));
    hand_over();
    // All of it is where it was.
    let writes = |value: u32| {
        m.does(0, move |c| c.set_gpr(0, value.into()));
        m.sim.step(0, move |c| (code::IOIO, 0x70 << 16 | 4 << 4, c.guest().rip));
        m.run(0)
    };
    assert!(writes(17).is_err() && m.sim.event_count(1) == 1, "nothing is left to do");
    assert!(matches!(writes(MUCH), Ok(Left::Io { .. })) && m.sim.event_count(1) == 1);
    m.run_out(0);
    for n in 1..MUCH {
        assert_eq!(m.region(n, 0, 0, 0, 0), Ok(0));
    }
    m.end();
}

#[test]
fn no_handle_is_made_of_a_number_that_is_something_elses() {
    for m in [Machine::rich(true), Machine::rich_hyperv()] {
        let vm::handover::Parcel { state, lent } = m.engine().leave().unwrap();
        let refused = |lent: &[u64]| {
            let why = Vm::arrive(m.sim.clone(), &state, lent).err().expect("refused").why;
            matches!(why, Why::Cannot(_) | Why::Value(_))
        };
        for n in (0..lent.len()).step_by(2) {
            for other in [lent[n] ^ 1 << 32, lent[n] ^ 1, lent[n] ^ 1 << 63, 0] {
                let mut wrong = lent.clone();
                wrong[n] = other;
                assert!(refused(&wrong), "{n} {other:#x}");
            }
            // The two pages of a vCPU, say.
            if n > 0 && lent[n - 2] != lent[n] {
                let mut wrong = lent.clone();
                wrong[n - 2..n + 2].rotate_left(2);
                assert!(refused(&wrong), "{n}");
            }
            assert!(refused(&lent[..n]) && refused(&lent[..n + 1]), "{n}");
        }
        assert!(Vm::arrive(m.sim.clone(), &state, &[&lent[..], &[0; 2]].concat()).is_err(), "more than there is");
        m.end();
    }
}

#[test]
fn ioeventfds_come_in_order_and_apart() {
    let m = Machine::new();
    [3, 1, 2].into_iter().for_each(|value| ioeventfd(&m, value));
    let bytes = m.state();
    // A port, the address, the length, and the value after a byte that says that there is one.
    let spec = |value: u8| [1, 0x70, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 1, value, 0, 0, 0, 0, 0, 0, 0];
    let all: Vec<u8> = [1, 2, 3].into_iter().flat_map(spec).collect();
    let at = bytes.windows(all.len()).position(|w| w == all).expect("in order");
    let with = |n: usize, to: [u8; 22]| {
        let mut wrong = bytes.clone();
        wrong[at + 22 * n..][..22].copy_from_slice(&to);
        m.become_state(&wrong).map_err(|why| why.to_string())
    };
    const REFUSED: &str = "section vm: an ioeventfd cannot have this value";
    for (n, value) in [(0, 2), (0, 3), (1, 1), (1, 3), (2, 1), (2, 2)] {
        assert_eq!(with(n, spec(value)), Err(REFUSED.into()), "{n} {value}");
    }
    for len in [0, 3, 5, 16] {
        let mut other = spec(2);
        other[9] = len;
        // One that takes any length may have a value for itself.
        assert_eq!(with(1, other), if len == 0 { Ok(()) } else { Err(REFUSED.into()) }, "{len}");
    }
    // The first takes what the second does, by any length.
    let mut any = spec(2);
    any[9] = 0;
    assert_eq!(with(0, any), Err(REFUSED.into()));
    assert_eq!(with(0, spec(0)), Ok(()));
    m.become_state(&bytes).unwrap();
    m.end();
}

#[test]
fn what_vmms_write_of_hyper_v_for_every_guest_goes_along() {
    const ASSIST_PAGE: u32 = 0x4000_0073;
    const SINT3: u32 = 0x4000_0093;
    let m = Machine::new();
    // KVM_SET_MSRS for what is not there.
    for (index, value) in [(ASSIST_PAGE, 0), (SINT3, 0), (ASSIST_PAGE, 0x1000)] {
        assert_eq!(m.set_msr(0, index, value), Ok(1));
        m.hand_over().unwrap();
        assert_eq!((m.msr(0, index), m.msr(0, SINT3 + 1)), (value, 1 << 16));
    }
    m.end();
}

#[test]
fn a_guest_of_hyper_v() {
    let m = Machine::rich_hyperv();
    let registers = || {
        let all = (0x4000_0000..0x4000_0120).filter(|n| !matches!(n, 0x4000_0010 | 0x4000_0020));
        all.map(|n| (n, m.msr_if_any(1, n))).collect::<Vec<_>>()
    };
    let before = registers();
    let has = |index, value| before.contains(&(index, Some(value)));
    assert!(has(0x4000_0002, 7) && has(0x4000_0093, 0x3_0052) && has(0x4000_00b1, 1 << 40) && has(0x4000_0102, 7));
    m.hand_over().unwrap();
    assert_eq!(registers(), before);
    // Its timer of 5 ms, and its connections.
    assert_eq!(m.called(1, 0x5d | 1 << 16, 0xff_ffff, 0), 0);
    assert_eq!(m.called(1, 0x5d | 1 << 16, 5, 0), 0);
    assert_eq!((m.sim.event_count(3), m.sim.event_count(4)), (1, 1));
    m.hlt(1);
    m.does(1, |_| ());
    m.run_out(1);
    assert_eq!(m.taken(1), [0x61]);
    // By its number among the guest's, which is not its place.
    m.interrupt_flag(1, true);
    assert_eq!(m.called(1, 0xb | 1 << 16, 0x75, 1 << 7), 0);
    m.does(1, |_| ());
    m.run_out(1);
    assert_eq!(m.taken(1), [0x61, 0x75]);
    m.goes_on();
    m.end();
}

#[test]
fn what_cannot_be_of_hyper_v_is_refused() {
    let m = Machine::rich_hyperv();
    let bytes = m.state();
    let refused = |at: usize, with: &[u8]| {
        let mut wrong = bytes.clone();
        wrong[at..at + with.len()].copy_from_slice(with);
        m.become_state(&wrong).unwrap_err().to_string()
    };
    // The numbers of connections are the last of the section.
    let (partition, vcpu) = (find(&bytes, b"hvvm"), find_of(&bytes, b"hvcp", 1));
    let end = partition + 16 + u32::from_le_bytes(bytes[partition + 12..][..4].try_into().unwrap()) as usize;
    assert_eq!(bytes[end - 12..end], [2, 0, 0, 0, 5, 0, 0, 0, 0xff, 0xff, 0xff, 0]);
    for wrong in [[5, 0, 0, 0], [4, 0, 0, 0], [0, 0, 0, 1]] {
        assert_eq!(refused(end - 4, &wrong), "section hvvm: the number of a connection cannot have this value");
    }
    for count in [0, 1] {
        assert!(refused(end - 12, &[count]).starts_with("section hvvm"));
    }
    assert!(refused(end - 12, &[0xff; 4]).starts_with("section hvvm"));
    assert_eq!(
        refused(vcpu + 16, &4096u32.to_le_bytes()),
        "section hvcp 1: a vCPU's number among the guest's cannot have this value"
    );
    assert!(m.state() == bytes);
    m.goes_on();
    m.end();
}

#[test]
fn in_the_middle_of_an_access() {
    for irqchip in [false, true] {
        let m = Machine::rich(irqchip);
        let tables = m.sim.tables_live();
        m.hand_over().unwrap();
        assert_eq!(m.sim.tables_live(), tables, "taken over, and not built anew");
        m.goes_on();
        m.end();
    }
}

/// Where a state of version 1 is kept.
fn kept(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("states").join(name)
}

/// With HSAVE_WRITE_STATES the files are written anew: for a format that was never released.
#[test]
fn states_of_version_1() {
    for name in ["1-split.bin", "1-irqchip.bin", "1-hyperv.bin"] {
        let m = if name == "1-hyperv.bin" { Machine::rich_hyperv() } else { Machine::rich(name == "1-irqchip.bin") };
        if std::env::var_os("HSAVE_WRITE_STATES").is_some() {
            std::fs::write(kept(name), m.state()).unwrap();
        }
        let bytes = std::fs::read(kept(name)).unwrap();
        m.become_state(&bytes).unwrap();
        assert!(m.state() == bytes, "nothing newer is in use: it goes back as it came");
        m.goes_on();
        m.end();
    }
}

/// Where the section with this name begins.
fn find(bytes: &[u8], name: &[u8; 4]) -> usize {
    find_of(bytes, name, 0)
}

/// The same of a vCPU.
fn find_of(bytes: &[u8], name: &[u8; 4], number: u32) -> usize {
    let mut at = 12;
    while &bytes[at..at + 4] != name || bytes[at + 4..at + 8] != number.to_le_bytes() {
        at += 16 + u32::from_le_bytes(bytes[at + 12..at + 16].try_into().unwrap()) as usize;
    }
    at
}

#[test]
fn what_is_not_known_is_refused_and_the_vm_goes_on() {
    let m = Machine::rich(true);
    let bytes = m.state();
    for name in [b"mem ", b"vm  ", b"rout", b"vmst", b"chip", b"pit ", b"vcpu", b"lapc", b"cpu ", b"cpst"] {
        let at = find(&bytes, name);
        let known = if name == b"vcpu" { 3 } else { 1 + u8::from(matches!(name, b"mem " | b"vm  " | b"pit ")) };
        let mut newer = bytes.clone();
        newer[at + 8] = known + 1;
        let refused = m.become_state(&newer).unwrap_err();
        let (has, known) = (u16::from(known) + 1, known.into());
        assert_eq!((refused.section, refused.why), (Some((Id(*name), 0)), Why::Newer { has, known }));
        let mut foreign = bytes.clone();
        foreign[at..at + 4].copy_from_slice(b"what");
        let refused = m.become_state(&foreign).unwrap_err();
        assert_eq!(refused.to_string(), "section what: this engine does not know such a section");
    }
    assert!(m.state() == bytes);
    m.goes_on();
    m.end();
}

#[test]
fn rings_that_are_not_there_are_refused() {
    let m = Machine::rich(true);
    let bytes = m.state();
    // KVM_CAP_DIRTY_LOG_RING with 4096 bytes: behind the number of vCPUs and what comes first in the configuration.
    let (at, mut refused) = (find(&bytes, b"vm  ") + 16, 0);
    for n in 8..64 {
        let mut ringed = bytes.clone();
        ringed[at + n..at + n + 4].copy_from_slice(&4096u32.to_le_bytes());
        match m.become_state(&ringed) {
            Ok(()) => assert!(m.state() == ringed, "what was taken can be handed on"),
            Err(why) => refused += usize::from(why.to_string().contains("section ring")),
        }
        m.become_state(&bytes).unwrap();
    }
    assert!(refused > 0);
    m.end();
}

#[test]
fn a_scaled_tsc_goes_to_an_engine_that_scales() {
    const PROCESSOR: CpuFeatures = CpuFeatures { tsc_scaling: true, ..PLAIN };
    let m = Machine::on(PROCESSOR);
    let without = Machine::new();
    without.become_state(&m.state()).expect("nothing is scaled yet");
    assert_eq!(m.vcpu(0, KVM_SET_TSC_KHZ, 1_234_567), Ok(0));
    let refused = without.become_state(&m.state()).unwrap_err();
    assert_eq!(refused.to_string(), "section cpu: this engine does not scale TSCs");
    Machine::on(PROCESSOR).become_state(&m.state()).expect("as the one before");
    m.end();
}

/// It comes together with INIT: user space is told of that, and the request is still there.
#[test]
fn a_request_to_leave_is_not_lost() {
    let m = Machine::new();
    m.add_vcpu(1).expect("a second vCPU");
    m.long(0, &[]);
    m.x2apic(0);
    m.wrmsr(0, 0x830, 1 << 32 | 0x4500);
    m.run_out(0);
    m.inside(1, |c| c.me.thread.requests().make_request(Request::HandOver));
    assert_eq!(m.run(1).unwrap_err().0, Errno::EAGAIN);
    assert!(m.inside(1, |c| c.me.thread.requests().test_request(Request::HandOver)));
    m.end();
}

#[test]
fn damaged_states_are_refused_or_taken_cleanly() {
    let taken = damages(|| Machine::rich(true), &[]);
    assert!(taken > 20, "most bits are values: {taken}");
}

#[test]
fn damaged_states_of_hyper_v() {
    let taken = damages(Machine::rich_hyperv, &[(b"hvvm", 0), (b"hvcp", 1)]);
    assert!(taken > 20, "most bits are values: {taken}");
}

/// Cuts the state of such a VM, and changes bits of it, or of these sections. How often it was taken.
fn damages(of: impl Fn() -> Machine, sections: &[(&[u8; 4], u32)]) -> usize {
    let mut random = Random(1);
    let whole = of();
    let bytes = whole.state();
    let mut cut = 0;
    while cut < bytes.len() {
        assert!(whole.become_state(&bytes[..cut]).is_err(), "{cut} bytes");
        cut += 97;
    }
    assert!(whole.state() == bytes, "it is as it was");
    let mut places: Vec<_> = sections
        .iter()
        .map(|(name, number)| {
            let at = find_of(&bytes, name, *number);
            at..at + 16 + u32::from_le_bytes(bytes[at + 12..at + 16].try_into().unwrap()) as usize
        })
        .collect();
    if places.is_empty() {
        places.push(0..bytes.len());
    }
    let mut taken = 0;
    for n in 0..300 {
        let place = &places[n % places.len()];
        let mut damaged = bytes.clone();
        for _ in 0..=random.below(3) {
            let bit = random.below(8 * place.len() as u64) as usize;
            damaged[place.start + bit / 8] ^= 1 << (bit % 8);
        }
        let m = of();
        if m.become_state(&damaged).is_ok() {
            taken += 1;
            let again = m.state();
            m.become_state(&again).expect("what was written is read");
            assert!(m.state() == again);
        }
        m.end();
    }
    taken
}
