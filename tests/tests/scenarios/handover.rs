//! The VM goes to another engine: all scenarios once more with a handover at every exit, at every sleep and after every ioctl;
//! and states of old, damaged and foreign ones.

use abi::uapi::ioctl::*;
use kvm_bindings::*;
use sim::arch::exit::code;
use state::{Id, Why};
use std::path::Path;
use tests::plain::{MsrFilter, MsrFilterRange};
use tests::random::Random;
use tests::scenario::{
    DATA, Left, MMIO, Machine, RAM, RAM_HVA, all_handed_over_everywhere, all_handed_over_through_the_assembly,
    is_handed_over_everywhere,
};

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

/// A VM with something of everything: controllers and timer, eventfds, a filter, two vCPUs of which one sleeps, and an instruction
/// in the middle of an access to a device.
fn rich(irqchip: bool) -> Machine {
    let m = Machine::bare(tests::scenario::PLAIN).unwrap();
    if irqchip {
        assert_eq!(m.vm(KVM_CREATE_IRQCHIP, 0), Ok(0));
        assert_eq!(m.vm_with(KVM_CREATE_PIT2, &kvm_pit_config::default()), Ok(0));
    } else {
        assert_eq!(m.enable(KVM_CAP_SPLIT_IRQCHIP, 24), Ok(0));
    }
    assert_eq!(m.region(0, 0, 0, RAM, RAM_HVA), Ok(0));
    assert_eq!(m.region(7, KVM_MEM_LOG_DIRTY_PAGES, 0x1000_0000, 100 << 12, RAM_HVA + RAM), Ok(0));
    for id in [0, 5] {
        m.add_vcpu(id).unwrap();
    }
    let event = kvm_ioeventfd { addr: MMIO + 64, len: 4, fd: 1, ..Default::default() };
    assert_eq!(m.vm_with(KVM_IOEVENTFD, &event), Ok(0));
    let zone = kvm_coalesced_mmio_zone { addr: MMIO + 128, size: 8, ..Default::default() };
    assert_eq!(m.vm_with(KVM_REGISTER_COALESCED_MMIO, &zone), Ok(0));
    m.put_at(DATA, &[!0u64; 8]);
    let mut filter = MsrFilter::default();
    filter.ranges[0] = MsrFilterRange { flags: 3, nmsrs: 64, base: 0, pad: 0, bitmap: DATA };
    assert_eq!(m.vm_with(KVM_X86_SET_MSR_FILTER, &filter), Ok(0));
    let mut route = kvm_irq_routing_entry { gsi: 4, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    route.u.msi = kvm_irq_routing_msi { address_lo: 0xfee0_0000, data: 0xc051, ..Default::default() };
    m.put_at(DATA, &[1u32, 0]);
    m.put_at(DATA + 8, &route);
    assert_eq!(m.vm(KVM_SET_GSI_ROUTING, DATA), Ok(0));
    m.long(0, &[0x8b, 0x03]); // mov eax, [rbx]
    m.with_regs(0, |r| (r.rbx, r.rflags) = (MMIO, 0x202));
    m.store(0, 0x9000, 1);
    m.store(0, 0x1000_2000, 2);
    m.npf(0, MMIO, false);
    assert_eq!(m.run(0), Ok(Left::Mmio { gpa: MMIO, write: false, data: vec![0; 4] }));
    m
}

/// The instruction gets its answer, and the guest the interrupt that was posted.
fn goes_on(m: &Machine) {
    m.page(0).write(abi::uapi::run::exit::MMIO_DATA, &[1, 2, 3, 4]);
    m.load(0, 0x9000, 1);
    m.load(0, 0x1000_2000, 2);
    m.run_out(0);
    assert_eq!(m.regs(0).rax, 0x0403_0201);
    let mut log = kvm_dirty_log { slot: 7, ..Default::default() };
    log.__bindgen_anon_1.dirty_bitmap = DATA as *mut _;
    assert_eq!(m.vm_with(KVM_GET_DIRTY_LOG, &log), Ok(0));
    assert_eq!(m.get_at::<u64>(DATA), 1 << 2, "what was written before");
}

#[test]
fn in_the_middle_of_an_access() {
    for irqchip in [false, true] {
        let m = rich(irqchip);
        let tables = m.sim.tables_live();
        m.hand_over().unwrap();
        assert_eq!(m.sim.tables_live(), tables, "taken over, and not built anew");
        goes_on(&m);
        m.end();
    }
}

/// Where states of version 1 are kept.
fn kept(irqchip: bool) -> std::path::PathBuf {
    let name = if irqchip { "1-irqchip.bin" } else { "1-split.bin" };
    Path::new(env!("CARGO_MANIFEST_DIR")).join("states").join(name)
}

/// With HSAVE_WRITE_STATES the files are written anew: for a format that was never released.
#[test]
fn states_of_version_1() {
    for irqchip in [false, true] {
        let m = rich(irqchip);
        if std::env::var_os("HSAVE_WRITE_STATES").is_some() {
            std::fs::write(kept(irqchip), m.state()).unwrap();
        }
        let bytes = std::fs::read(kept(irqchip)).unwrap();
        m.become_state(&bytes).unwrap();
        assert!(m.state() == bytes, "nothing newer is in use: it goes back as it came");
        goes_on(&m);
        m.end();
    }
}

/// Where the section with this name begins.
fn find(bytes: &[u8], name: &[u8; 4]) -> usize {
    let mut at = 12;
    while &bytes[at..at + 4] != name {
        at += 16 + u32::from_le_bytes(bytes[at + 12..at + 16].try_into().unwrap()) as usize;
    }
    at
}

#[test]
fn what_is_not_known_is_refused_and_the_vm_goes_on() {
    let m = rich(true);
    let bytes = m.state();
    for name in [b"mem ", b"vm  ", b"rout", b"vmst", b"chip", b"pit ", b"vcpu", b"lapc", b"cpu ", b"cpst"] {
        let at = find(&bytes, name);
        let mut newer = bytes.clone();
        newer[at + 8] = 2;
        let refused = m.become_state(&newer).unwrap_err();
        assert_eq!((refused.section, refused.why), (Some((Id(*name), 0)), Why::Newer { has: 2, known: 1 }));
        let mut foreign = bytes.clone();
        foreign[at..at + 4].copy_from_slice(b"what");
        let refused = m.become_state(&foreign).unwrap_err();
        assert_eq!(refused.to_string(), "section what: this engine does not know such a section");
    }
    assert!(m.state() == bytes);
    goes_on(&m);
    m.end();
}

#[test]
fn damaged_states_are_refused_or_taken_cleanly() {
    let mut random = Random(1);
    let whole = rich(true);
    let bytes = whole.state();
    let mut cut = 0;
    while cut < bytes.len() {
        assert!(whole.become_state(&bytes[..cut]).is_err(), "{cut} bytes");
        cut += 97;
    }
    assert!(whole.state() == bytes, "it is as it was");
    let mut taken = 0;
    for _ in 0..300 {
        let mut damaged = bytes.clone();
        for _ in 0..=random.below(3) {
            let bit = random.below(8 * bytes.len() as u64) as usize;
            damaged[bit / 8] ^= 1 << (bit % 8);
        }
        let m = rich(true);
        if m.become_state(&damaged).is_ok() {
            taken += 1;
            let again = m.state();
            m.become_state(&again).expect("what was written is read");
            assert!(m.state() == again);
        }
        m.end();
    }
    assert!(taken > 20, "most bits are values: {taken}");
}
