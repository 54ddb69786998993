//! Which processor starts the others, and when it starts itself.

use crate::smp::{machine, mp_state};
use abi::uapi::ioctl::*;
use kvm_bindings::*;
use sim::host::Errno;
use tests::scenario::Machine;

const ICR: u32 = 0x830;
const INIT: u64 = 0x4500;

/// Which processor is the bootstrap processor IA32_APIC_BASE says.
#[test]
fn init_starts_who_is_called_the_bootstrap_processor() {
    let m = machine();
    let base = m.msr(0, 0x1b);
    assert_eq!(base & 0x100, 0x100);
    assert_eq!((m.set_msr(0, 0x1b, base & !0x100), m.set_msr(1, 0x1b, 0xfee0_0d00)), (Ok(1), Ok(1)));
    let runnable = kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE };
    assert_eq!(m.vcpu_with(1, KVM_SET_MP_STATE, &runnable), Ok(0));
    m.wrmsr(0, ICR, 1 << 32 | INIT);
    m.wrmsr(0, ICR, INIT);
    assert_eq!(m.run(0).unwrap_err().0, Errno::EINTR, "waits for SIPI");
    assert_eq!([mp_state(&m, 0), mp_state(&m, 1)], [KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE]);
    m.does(1, |c| assert_eq!((c.guest().cs.selector, c.guest().rip), (0xf000, 0xfff0)));
    m.run_out(1);
    // The quirk of LINT0 is the boot processor's that the VM was made with.
    let lint0 = |vcpu| m.vcpu_get::<kvm_lapic_state>(vcpu, KVM_GET_LAPIC).regs[0x351];
    assert_eq!([lint0(0), lint0(1)], [7, 0]);
    m.end();
}

/// Older user space starts the bootstrap processor anew by its registers alone, whatever it waits for.
#[test]
fn registers_after_reset_start_the_bootstrap_processor() {
    let m = machine();
    let fresh = Machine::new();
    let reset: kvm_sregs = fresh.vcpu_get(0, KVM_GET_SREGS);
    let wanted = |vcpu: usize, state, cs: (u16, u64), rip| {
        assert_eq!(m.vcpu_with(vcpu, KVM_SET_MP_STATE, &kvm_mp_state { mp_state: state }), Ok(0));
        m.with_regs(vcpu, |r| r.rip = rip);
        let mut s = reset;
        (s.cs.selector, s.cs.base) = cs;
        s.apic_base = m.msr(vcpu, 0x1b);
        assert_eq!(m.vcpu_with(vcpu, KVM_SET_SREGS, &s), Ok(0));
        mp_state(&m, vcpu)
    };
    let (vector, here) = ((0xf000, 0xffff_0000), 0xfff0);
    for state in [KVM_MP_STATE_HALTED, KVM_MP_STATE_UNINITIALIZED, KVM_MP_STATE_INIT_RECEIVED] {
        assert_eq!(wanted(0, state, vector, here), KVM_MP_STATE_RUNNABLE);
        assert_eq!(wanted(0, state, (0xf000, 0xf_0000), here), state, "not the vector of reset");
        assert_eq!(wanted(0, state, vector, here + 1), state);
        assert_eq!(wanted(1, state, vector, here), state, "not the bootstrap processor");
    }
}
