//! Quirks (KVM_CAP_DISABLE_QUIRKS2): on at first, and what goes when they are switched off.

use abi::uapi::ioctl::*;
use kvm_bindings::*;
use sim::arch::exit::code;
use sim::host::Errno;
use tests::scenario::{CODE, Machine};

const UD: u64 = code::EXCP0 + 6;
const VMCALL: &[u8] = &[0x0f, 0x01, 0xc1];
const VMMCALL: u32 = 0xd9_010f;

fn machine(off: u64, bytes: &[u8]) -> Machine {
    let m = Machine::new();
    assert_eq!(m.enable(KVM_CAP_DISABLE_QUIRKS2, off), Ok(0));
    m.long(0, bytes);
    m
}

fn vectors(m: &Machine) -> Vec<u8> {
    m.injected(0).iter().map(|e| e.vector()).collect()
}

#[test]
fn the_other_makers_hypercall_is_patched() {
    let m = machine(0, VMCALL);
    assert_eq!(m.inside(0, |c| sim::host::Cpu::control(&c.core.cpu).intercept_exceptions) & 1 << 6, 1 << 6);
    m.exit(0, UD);
    m.does(0, |c| assert_eq!((c.guest().rip, c.injected.len()), (CODE, 0), "runs again"));
    m.run_out(0);
    assert_eq!(m.read_ram::<u32>(CODE) & 0xff_ffff, VMMCALL);

    let m = machine(KVM_X86_QUIRK_FIX_HYPERCALL_INSN.into(), VMCALL);
    m.exit(0, UD);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!((vectors(&m), m.read_ram::<u32>(CODE) & 0xff_ffff), (vec![6], 0xc1_010f));

    // Anything else that is undefined is the guest's.
    let m = machine(0, &[0x0f, 0x0b]);
    m.exit(0, UD);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!((vectors(&m), m.read_ram::<u32>(CODE) & 0xffff), (vec![6], 0x0b0f));
}

#[test]
fn monitor_and_mwait_without_them() {
    for off in [0, u64::from(KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS)] {
        for (bytes, exit) in [([0x0f, 0x01, 0xc8], code::MONITOR), ([0x0f, 0x01, 0xc9], code::MWAIT)] {
            let m = machine(off, &bytes);
            m.exit(0, exit);
            m.does(0, |_| ());
            m.run_out(0);
            assert_eq!((vectors(&m), m.regs(0).rip), if off == 0 { (vec![], CODE + 3) } else { (vec![6], CODE) });
        }
    }
}

#[test]
fn lint0_after_reset() {
    let lint0 = |off| {
        let m = Machine::without_vcpu(true);
        assert_eq!(m.enable(KVM_CAP_DISABLE_QUIRKS2, off), Ok(0));
        m.add_vcpu(0).expect("a vCPU");
        let l: kvm_lapic_state = m.vcpu_get(0, KVM_GET_LAPIC);
        [0x350, 0x351, 0x352].map(|n| l.regs[n] as u8)
    };
    assert_eq!(lint0(0), [0, 7, 0], "ExtINT, open");
    assert_eq!(lint0(KVM_X86_QUIRK_LINT0_REENABLED.into()), [0, 0, 1], "masked");
}

#[test]
fn unknown_quirks() {
    let m = Machine::new();
    let all = m.vm(KVM_CHECK_EXTENSION, KVM_CAP_DISABLE_QUIRKS2.into()).expect("a capability") as u64;
    for bit in (0..64).filter(|bit| all >> bit & 1 == 0) {
        assert_eq!(m.enable(KVM_CAP_DISABLE_QUIRKS2, 1 << bit), Err(Errno::EINVAL));
        assert_eq!(m.enable(KVM_CAP_DISABLE_QUIRKS, 1 << bit), Ok(0));
    }
    assert_eq!(m.enable(KVM_CAP_DISABLE_QUIRKS2, all), Ok(0));
}
