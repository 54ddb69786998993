//! Maskable interrupts: from the local APIC, left with the processor, and from user space, injected at once if possible.

use abi::uapi::ioctl::*;
use abi::uapi::run::at;
use kvm_bindings::*;
use sim::arch::exit::code;
use sim::arch::vmcb::int_ctl;
use sim::arch::{EventInj, EventType};
use sim::host::{Cpu, Errno, Request, VcpuThread};
use tests::scenario::{Left, Machine};

/// A VM whose vCPU runs in 64-bit mode with its local APIC on.
pub(crate) fn machine() -> Machine {
    let m = Machine::new();
    m.long(0, &[]);
    m.x2apic(0);
    m
}

/// KVM_SIGNAL_MSI to APIC 0: the number of vCPUs that took it.
pub(crate) fn msi(m: &Machine, data: u32) -> Result<i64, Errno> {
    m.vm_with(KVM_SIGNAL_MSI, &kvm_msi { address_lo: 0xfee0_0000, data, ..Default::default() })
}

pub(crate) fn vectors(m: &Machine) -> Vec<u8> {
    m.injected(0).iter().map(|e| e.vector()).collect()
}

/// Is the vector in the ISR, in the IRR?
fn served_waits(m: &Machine, vector: u8) -> (bool, bool) {
    let state: kvm_lapic_state = m.vcpu_get(0, KVM_GET_LAPIC);
    let bit = |base: usize| {
        let at = base + 0x10 * usize::from(vector / 32) + usize::from(vector % 32 / 8);
        state.regs[at] as u8 >> (vector % 8) & 1 != 0
    };
    (bit(0x100), bit(0x200))
}

#[test]
fn taken_at_once_when_the_guest_can_take_it() {
    let m = machine();
    m.with_regs(0, |r| r.rflags |= 0x200);
    assert_eq!(msi(&m, 0x31), Ok(1));
    m.does(0, |c| assert_eq!((c.vmcb().int_ctl & int_ctl::V_IRQ, &c.taken[..]), (0, &[0x31][..])));
    m.run_out(0);
    assert_eq!((m.injected(0), served_waits(&m, 0x31)), (vec![], (true, false)));
    assert!(!cr8_writes_exit(&m), "it was not to wait");
}

/// What QEMU's emulation tells of a virtual interrupt whose delivery met a nested fault.
#[test]
fn one_that_the_processor_could_not_deliver_and_calls_an_exception_comes_again() {
    let m = machine();
    assert_eq!(msi(&m, 0x31), Ok(1));
    m.sim.step(0, |c| {
        assert!(c.vmcb().int_ctl & int_ctl::V_IRQ != 0);
        c.vmcb().exit_int_info = EventInj::new(EventType::Exception, 0x31, None);
        (code::NPF, 1 << 32 | 4, 0x1_0000)
    });
    m.does(0, |_| ());
    m.interrupt_flag(0, true);
    m.run_out(0);
    assert_eq!((m.injected(0), m.taken(0)), (vec![], vec![0x31]));
}

fn cr8_writes_exit(m: &Machine) -> bool {
    m.inside(0, |c| c.core.cpu.control().intercept_cr_write >> 8 & 1 != 0)
}

#[test]
fn cr8_is_looked_at_while_one_waits() {
    let m = machine();
    let writes_exit = cr8_writes_exit;
    m.does(0, |_| ());
    m.run_out(0);
    assert!(!writes_exit(&m));
    m.interrupt_flag(0, false);
    assert_eq!(msi(&m, 0x31), Ok(1));
    m.does(0, |_| ());
    m.run_out(0);
    assert!(writes_exit(&m));
    // It was taken. The next write exits for the last time.
    m.interrupt_flag(0, true);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(m.taken(0), vec![0x31]);
    m.write_ram(tests::scenario::CODE, &[0x44, 0x0f, 0x22, 0xc0]); // mov cr8, rax
    m.with_regs(0, |r| (r.rip, r.rax) = (tests::scenario::CODE, 1));
    m.exit(0, code::CR0_READ + 0x18);
    m.run_out(0);
    assert!(!writes_exit(&m));
    assert_eq!(m.inside(0, |c| c.core.cpu.control().int_ctl & 15), 1);
}

#[test]
fn left_with_the_processor_when_it_cannot() {
    let m = machine();
    assert_eq!(msi(&m, 0x31), Ok(1));
    m.exit(0, code::WBINVD);
    m.write_ram(tests::scenario::CODE, &[0x0f, 0x09]);
    m.does(0, |c| assert_eq!(c.taken, []));
    m.interrupt_flag(0, true);
    m.run_out(0);
    assert_eq!((vectors(&m), m.taken(0)), (vec![], vec![0x31]), "taken without an exit of its own");
    assert_eq!(served_waits(&m, 0x31), (true, false));
}

#[test]
fn the_shadow_of_sti_holds_it_back() {
    let m = machine();
    m.does(0, |c| {
        c.guest().rflags |= 0x200;
        c.vmcb().int_state = 1;
    });
    m.run_out(0);
    assert_eq!(msi(&m, 0x31), Ok(1));
    m.does(0, |c| assert_eq!((c.injected.len(), c.taken.len()), (0, 0)));
    m.does(0, |c| c.vmcb().int_state = 0);
    m.run_out(0);
    assert_eq!(m.taken(0), [0x31]);
}

#[test]
fn task_priority_masks() {
    let m = machine();
    m.interrupt_flag(0, true);
    m.does(0, |c| c.vmcb().int_ctl |= 5); // MOV CR8, 5 needs no exit
    m.run_out(0);
    assert_eq!(m.inside(0, |c| c.cr8()), 5);
    assert_eq!(msi(&m, 0x5f), Ok(1));
    // A processor that takes equal for above must not be tempted.
    m.does(0, |c| assert_eq!((c.injected.len(), c.taken.len(), c.vmcb().int_ctl & int_ctl::V_IRQ), (0, 0, 0)));
    m.write_ram(tests::scenario::CODE, &[0x44, 0x0f, 0x22, 0xc0]); // mov cr8, rax
    m.with_regs(0, |r| (r.rip, r.rax) = (tests::scenario::CODE, 4));
    m.exit(0, code::CR0_READ + 0x18);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!((vectors(&m), m.taken(0)), (vec![], vec![0x5f]));
    // Above the priority of both the task and what is being served.
    m.interrupt_flag(0, true);
    m.run_out(0);
    assert_eq!(msi(&m, 0x61), Ok(1));
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(m.taken(0), [0x5f, 0x61]);
}

#[test]
fn a_lower_vector_waits_for_eoi() {
    let m = machine();
    m.with_regs(0, |r| r.rflags |= 0x200);
    assert_eq!((msi(&m, 0x41), msi(&m, 0x35)), (Ok(1), Ok(1)));
    m.interrupt_flag(0, true);
    m.does(0, |c| assert_eq!(c.taken, [0x41]));
    m.interrupt_flag(0, true);
    m.wrmsr(0, 0x80b, 0);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(m.taken(0), [0x41, 0x35]);
    assert_eq!((served_waits(&m, 0x41), served_waits(&m, 0x35)), ((false, false), (true, false)));
}

#[test]
fn the_same_vector_twice_is_merged() {
    let m = machine();
    assert_eq!((msi(&m, 0x41), msi(&m, 0x41)), (Ok(1), Ok(1)));
    m.interrupt_flag(0, true);
    m.run_out(0);
    assert_eq!(m.taken(0), [0x41]);
    assert_eq!(served_waits(&m, 0x41), (true, false));
}

/// GSI 4 is a pin of the userspace IOAPIC; its route says which vector that is, and of which APIC.
fn route(m: &Machine, apic: u32, data: u32) {
    let mut route = kvm_irq_routing_entry { gsi: 4, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    route.u.msi = kvm_irq_routing_msi { address_lo: 0xfee0_0000 | apic << 12, data, ..Default::default() };
    m.put_at(tests::scenario::DATA, &[1u32, 0]);
    m.put_at(tests::scenario::DATA + 8, &route);
    assert_eq!(m.vm(KVM_SET_GSI_ROUTING, tests::scenario::DATA), Ok(0));
}

#[test]
fn eoi_for_a_route_of_before_is_told_once() {
    let m = machine();
    let level = 0xc000;
    let goes_on = || {
        m.does(0, |_| ());
        m.run_out(0);
    };
    route(&m, 0, level | 0x51);
    goes_on();
    m.with_regs(0, |r| r.rflags |= 0x200);
    assert_eq!(msi(&m, level | 0x51), Ok(1));
    goes_on();
    route(&m, 1, level | 0x51);
    goes_on();
    m.wrmsr(0, 0x80b, 0);
    assert_eq!(m.run(0), Ok(Left::Eoi { vector: 0x51 }));
    goes_on();
    // The vector is somebody else's now.
    m.with_regs(0, |r| r.rflags |= 0x200);
    assert_eq!(msi(&m, 0x51), Ok(1));
    m.wrmsr(0, 0x80b, 0);
    m.run_out(0);
    assert_eq!(m.taken(0), [0x51, 0x51]);
}

/// Who has posted the first is held up before it tells the vCPU, so that who posts the second does not either.
#[test]
fn eoi_of_a_level_interrupt_is_told_if_its_route_goes_before_it_is_seen() {
    let m = machine();
    let level = 0xc000;
    route(&m, 0, level | 0x51);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(msi(&m, 0x41), Ok(1));
    m.cpu(0).thread.requests().take_all();
    assert_eq!(msi(&m, level | 0x51), Ok(1));
    route(&m, 1, level | 0x51);
    m.does(0, |_| ());
    m.run_out(0);
    m.cpu(0).thread.requests().make_request(Request::Event);
    m.interrupt_flag(0, true);
    m.wrmsr(0, 0x80b, 0);
    assert_eq!((m.run(0), m.taken(0)), (Ok(Left::Eoi { vector: 0x51 }), vec![0x51]));
}

#[test]
fn eoi_of_a_level_interrupt_is_told_to_the_ioapic_in_user_space() {
    let m = machine();
    let level = 0xc000;
    route(&m, 0, level | 0x51);
    m.does(0, |_| ());
    m.run_out(0);
    // A VMM that looks at all MSRs, those of Hyper-V's among them, changes nothing.
    assert_eq!(m.msr(0, 0x4000_0000), 0);
    m.with_regs(0, |r| r.rflags |= 0x200);
    assert_eq!(msi(&m, level | 0x51), Ok(1));
    m.wrmsr(0, 0x80b, 0);
    assert_eq!(m.run(0), Ok(Left::Eoi { vector: 0x51 }));
    let at = m.regs(0).rip;
    m.run_out(0);
    assert_eq!((m.regs(0).rip, served_waits(&m, 0x51)), (at, (false, false)), "WRMSR is complete");
    // A vector that no pin has.
    m.with_regs(0, |r| r.rflags |= 0x200);
    assert_eq!(msi(&m, 0x52), Ok(1));
    m.wrmsr(0, 0x80b, 0);
    m.run_out(0);
    assert_eq!(m.taken(0), [0x51, 0x52]);
    // The GSI itself raises it, too (KVM_IRQFD does this).
    m.with_regs(0, |r| r.rflags |= 0x200);
    assert_eq!(m.engine().set_gsi(4, true, true), 1);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(m.taken(0), [0x51, 0x52, 0x51]);
}

#[test]
fn eoi_by_mmio() {
    let m = Machine::new();
    m.long(0, &[0x89, 0x03]); // mov [rbx], eax
    let state = {
        let mut s: kvm_lapic_state = m.vcpu_get(0, KVM_GET_LAPIC);
        s.regs[0xf1] = 1; // SVR: enabled
        s
    };
    assert_eq!(m.vcpu_with(0, KVM_SET_LAPIC, &state), Ok(0));
    m.with_regs(0, |r| (r.rflags, r.rbx) = (0x202, 0xfee0_00b0));
    assert_eq!(msi(&m, 0x51), Ok(1));
    m.npf(0, 0xfee0_00b0, true);
    m.run_out(0);
    assert_eq!((m.taken(0), served_waits(&m, 0x51)), (vec![0x51], (false, false)));
}

#[test]
fn nobody_there() {
    let m = machine();
    let to_nobody = kvm_msi { address_lo: 0xfee0_5000, data: 0x31, ..Default::default() };
    assert_eq!(m.vm_with(KVM_SIGNAL_MSI, &to_nobody), Ok(0));
    // Software-disabled: the message arrives and is refused.
    m.wrmsr(0, 0x80f, 0xff);
    m.run_out(0);
    assert_eq!(msi(&m, 0x31), Ok(0));
}

#[test]
fn an_apic_that_the_guest_turns_off_is_gone() {
    let m = machine();
    let apic_bit = |m: &Machine| {
        m.cpuid(0, 1);
        m.run_out(0);
        m.regs(0).rdx >> 9 & 1
    };
    assert_eq!((apic_bit(&m), msi(&m, 0x31)), (1, Ok(1)));
    m.wrmsr(0, 0x1b, 0xfee0_0100);
    m.run_out(0);
    assert_eq!((apic_bit(&m), msi(&m, 0x31)), (0, Ok(0)), "in CPUID, and to senders");
    m.wrmsr(0, 0x1b, 0xfee0_0900);
    m.run_out(0);
    assert_eq!(apic_bit(&m), 1);
}

#[test]
fn from_user_space() {
    let m = Machine::without_irqchip();
    m.long(0, &[]);
    let irq = kvm_interrupt { irq: 0x20 };
    assert_eq!(m.vcpu_with(0, KVM_INTERRUPT, &kvm_interrupt { irq: 0x41 }), Ok(0));
    assert_eq!(m.vcpu_with(0, KVM_INTERRUPT, &irq), Ok(0), "in the place of the other");
    m.does(0, |c| assert_eq!(c.taken, []));
    m.interrupt_flag(0, true);
    m.run_out(0);
    assert_eq!((vectors(&m), m.taken(0)), (vec![], vec![0x20]));
    // Now the guest can take one at once.
    m.with_regs(0, |r| r.rflags |= 0x200);
    assert_eq!(m.vcpu_with(0, KVM_INTERRUPT, &kvm_interrupt { irq: 0x21 }), Ok(0));
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(vectors(&m), [0x21]);
}

#[test]
fn the_interrupt_window() {
    let m = Machine::without_irqchip();
    m.long(0, &[]);
    m.page(0).set_u8(at::REQUEST_INTERRUPT_WINDOW, 1);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!((m.page(0).u8(at::READY_FOR_INTERRUPT_INJECTION), m.page(0).u8(at::IF_FLAG)), (0, 0));
    m.interrupt_flag(0, true);
    m.does(0, |_| panic!("the guest goes on in an open window"));
    assert_eq!(m.run(0), Ok(Left::Window));
    assert_eq!((m.page(0).u8(at::READY_FOR_INTERRUPT_INJECTION), m.page(0).u8(at::IF_FLAG)), (1, 1));
    m.page(0).set_u8(at::REQUEST_INTERRUPT_WINDOW, 0);
    assert_eq!(m.vcpu_with(0, KVM_INTERRUPT, &kvm_interrupt { irq: 0x20 }), Ok(0));
    m.sim.drop_script(0);
    m.does(0, |c| assert!(c.vmcb().intercept_3 & 1 << 4 == 0, "VINTR is intercepted no more"));
    m.run_out(0);
    assert_eq!((vectors(&m), m.taken(0)), (vec![0x20], vec![]));
}

#[test]
fn no_window_for_a_guest_that_takes_no_external_interrupts() {
    let m = machine();
    m.wrmsr(0, 0x835, 1 << 16); // LINT0 masked
    m.run_out(0);
    m.page(0).set_u8(at::REQUEST_INTERRUPT_WINDOW, 1);
    m.interrupt_flag(0, true);
    m.does(0, |_| ());
    m.run_out(0);
}

#[test]
fn halted_without_irqchip_is_user_spaces_business() {
    let m = Machine::without_irqchip();
    m.long(0, &[]);
    m.hlt(0);
    assert_eq!(m.run(0), Ok(Left::Hlt));
}

#[test]
fn cr8_without_irqchip_is_user_spaces() {
    let m = Machine::without_irqchip();
    m.long(0, &[]);
    m.page(0).set_u64(at::CR8, 16);
    assert_eq!(m.run(0).unwrap_err().0, Errno::EINVAL);
    m.page(0).set_u64(at::CR8, 7);
    m.does(0, |c| assert_eq!(c.vmcb().int_ctl & int_ctl::V_TPR, 7));
    m.does(0, |c| c.vmcb().int_ctl = c.vmcb().int_ctl & !int_ctl::V_TPR | 3);
    m.run_out(0);
    assert_eq!(m.page(0).u64(at::CR8), 3);
}

#[test]
fn state_moves_to_another_vm_with_its_interrupt() {
    let m = machine();
    assert_eq!(msi(&m, 0x45), Ok(1));
    m.does(0, |_| ());
    m.run_out(0); // left with the processor, not taken
    let state: kvm_lapic_state = m.vcpu_get(0, KVM_GET_LAPIC);
    let base = m.msr(0, 0x1b);
    let n = Machine::new();
    n.long(0, &[]);
    assert_eq!(n.set_msr(0, 0x1b, base), Ok(1));
    assert_eq!(n.vcpu_with(0, KVM_SET_LAPIC, &state), Ok(0));
    n.with_regs(0, |r| r.rflags |= 0x200);
    n.does(0, |_| ());
    n.run_out(0);
    assert_eq!(n.taken(0), [0x45]);
}
