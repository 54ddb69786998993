//! The pin of the local APIC that an 8259 in user space drives (KVM_INTERRUPT), and IA32_APIC_BASE.

use crate::interrupts::{machine, msi, vectors};
use abi::uapi::ioctl::*;
use abi::uapi::run::at;
use kvm_bindings::*;
use sim::arch::exit::code;
use sim::arch::vmcb::int_ctl;
use sim::host::Errno;
use tests::scenario::{DATA, Left, Machine};

/// KVM_INTERRUPT with a local APIC in the kernel is the 8259's vector at LINT0: it waits there as long as the guest does not take
/// such interrupts, and neither injects nor wakes.
#[test]
fn lint0_holds_the_vector_of_a_pic_in_user_space() {
    const LINT0: u32 = 0x835;
    for (masked, open) in [
        ((LINT0, 1 << 16), (LINT0, 0x700)),       // masked, then ExtINT
        ((LINT0, 0x45), (LINT0, 0x700)),          // a vector of its own, then ExtINT
        ((LINT0, 0x1_0700), (0x1b, 0xfee0_0100)), // masked, then the APIC goes off
    ] {
        let m = machine();
        m.wrmsr(0, masked.0, masked.1);
        m.run_out(0);
        let interrupt = |irq| m.vcpu_with(0, KVM_INTERRUPT, &kvm_interrupt { irq });
        assert_eq!((interrupt(0x20), interrupt(0x21)), (Ok(0), Err(Errno::EEXIST)), "{masked:x?}");
        m.interrupt_flag(0, true);
        m.does(0, |c| assert_eq!((c.injected.len(), c.taken.len(), c.vmcb().int_ctl & int_ctl::V_IRQ), (0, 0, 0)));
        m.hlt(0);
        m.does(0, |_| panic!("it woke up"));
        assert_eq!(m.run(0), Err((Errno::EINTR, Left::Intr)));
        m.sim.drop_script(0);
        assert_eq!(m.page(0).u8(at::READY_FOR_INTERRUPT_INJECTION), 0);
        // Another interrupt wakes it, and it opens LINT0.
        assert_eq!(msi(&m, 0x61), Ok(1));
        m.wrmsr(0, open.0, open.1);
        m.interrupt_flag(0, true);
        m.does(0, |_| ());
        m.run_out(0);
        let external = m.taken(0).into_iter().chain(vectors(&m)).filter(|v| *v != 0x61).collect::<Vec<_>>();
        assert_eq!((external, interrupt(0x21)), (vec![0x20], Ok(0)), "{open:x?}");
        m.end();
    }
}

/// Who acknowledged it at the 8259 waits for its end.
#[test]
fn a_vector_at_lint0_outlasts_init() {
    let m = machine();
    m.wrmsr(0, 0x835, 1 << 16);
    m.run_out(0);
    assert_eq!(m.vcpu_with(0, KVM_INTERRUPT, &kvm_interrupt { irq: 0x20 }), Ok(0));
    m.sim.step(0, |_| (code::SHUTDOWN, 0, 0));
    assert_eq!(m.run(0), Ok(Left::Shutdown));
    m.interrupt_flag(0, true);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(
        m.taken(0).into_iter().chain(vectors(&m)).collect::<Vec<_>>(),
        [0x20],
        "LINT0 of the boot processor is ExtINT"
    );
    m.end();
}

/// What CPUID has lost cannot be written again, neither by user space nor by the guest, though it is there.
#[test]
fn an_apic_base_that_cpuid_no_longer_allows() {
    let m = Machine::new();
    m.long(0, &[]);
    let base = m.msr(0, 0x1b) | 0xc00;
    assert_eq!((m.set_msr(0, 0x1b, base), m.set_msr(0, 0x1b, base)), (Ok(1), Ok(1)));
    m.put_at(DATA, &[0u32, 0]);
    assert_eq!(m.vcpu(0, KVM_SET_CPUID2, DATA), Ok(0));
    let s: kvm_sregs = m.vcpu_get(0, KVM_GET_SREGS);
    assert_eq!((s.apic_base, m.set_msr(0, 0x1b, base)), (base, Ok(0)));
    // Whatever else it is refused for.
    let plain = kvm_sregs { cr0: 0x10, cr4: 0, efer: 0, cs: kvm_segment { l: 0, ..s.cs }, ..s };
    let with = |apic_base| m.vcpu_with(0, KVM_SET_SREGS, &kvm_sregs { apic_base, ..plain });
    assert_eq!((with(base), with(base & !0x400)), (Err(Errno::EINVAL), Ok(0)));
    assert_eq!(with(base & !0x400), Ok(0), "no change");
    // As the guest finds it, which has read it before.
    let m = Machine::new();
    m.long(0, &[]);
    assert_eq!(m.set_msr(0, 0x1b, base), Ok(1));
    m.put_at(DATA, &[256u32, 0]);
    assert_eq!(m.vcpu(0, KVM_GET_CPUID2, DATA), Ok(0));
    let entries = m.get_at::<u32>(DATA);
    for n in 0..u64::from(entries) {
        let at = DATA + 8 + 40 * n;
        if m.get_at::<u32>(at) == 1 {
            let ecx = m.get_at::<u32>(at + 20);
            m.put_at(at + 20, &(ecx & !(1 << 21)));
        }
    }
    assert_eq!(m.vcpu(0, KVM_SET_CPUID2, DATA), Ok(0));
    m.rdmsr(0, 0x1b);
    m.wrmsr(0, 0x1b, base);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(vectors(&m), [13]);
    m.end();
}
