//! What a device in the kernel has user space told, beside all else that the instruction does: writes to other devices, a
//! fault, a trap, a debugger's step. Nothing of it is lost, and nothing is told of what did not happen.

use abi::uapi::ioctl::*;
use kvm_bindings::*;
use sim::host::{CpuFeatures, Errno};
use sim::{Outcome, Page};
use tests::scenario::{CODE, DATA, Left, MMIO, Machine, PLAIN, RAM, RAM_HVA};

const APIC: u64 = 0xfee0_0000;
const TPR: u64 = APIC + 0x80;
const EOI: u64 = APIC + 0xb0;
const TF: u64 = 1 << 8;
const X2APIC_EOI: u32 = 0x80b;
const HYPERV_EOI: u32 = 0x4000_0070;
/// A level-triggered vector that the IOAPIC in user space waits for.
const LEVEL: u8 = 0x51;
const STEP: u64 = 0xffff_4ff0;
const TPR_ACCESS: Left = Left::Other(KVM_EXIT_TPR_ACCESS);

/// KVM_TPR_ACCESS_REPORTING.
fn report_tpr(m: &Machine) {
    assert_eq!(m.vcpu_with(0, KVM_TPR_ACCESS_REPORTING, &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0u32]), Ok(0));
}

fn steps(m: &Machine) {
    let debug = kvm_guest_debug { control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP, ..Default::default() };
    assert_eq!(m.vcpu_with(0, KVM_SET_GUEST_DEBUG, &debug), Ok(0));
}

fn write(gpa: u64, value: u32) -> Left {
    Left::Mmio { gpa, write: true, data: value.to_le_bytes().to_vec() }
}

/// 32-bit code in pages of 4 MiB, one to one. The second is not there.
fn paged(code: &[u8]) -> Machine {
    const TABLE: u64 = 0xa000;
    let m = Machine::new();
    m.protected(0, code);
    for page in [0, MMIO >> 22, APIC >> 22] {
        m.write_ram(TABLE + 4 * page, &((page as u32 * 0x40_0000) | 0x87).to_le_bytes());
    }
    let mut s: kvm_sregs = m.vcpu_get(0, KVM_GET_SREGS);
    (s.cr0, s.cr3, s.cr4) = (s.cr0 | 1 << 31, TABLE, s.cr4 | 1 << 4);
    assert_eq!(m.vcpu_with(0, KVM_SET_SREGS, &s), Ok(0));
    report_tpr(&m);
    m
}

#[test]
fn an_access_of_an_instruction_that_faults_is_not_told() {
    // push dword [TPR]; mov [ebx], eax
    let m = paged(&[0xff, 0x35, 0x80, 0, 0xe0, 0xfe, 0x89, 0x03]);
    m.with_regs(0, |r| (r.rsp, r.rbx, r.rax) = (0x40_1000, MMIO, 0x1234_5678));
    m.npf(0, TPR, false);
    m.does(0, |c| assert_eq!(c.injected.iter().map(|(e, _)| e.vector()).collect::<Vec<_>>(), [14]));
    m.run_out(0);
    m.with_regs(0, |r| (r.rip, r.rsp) = (CODE + 6, 0x7000));
    m.npf(0, MMIO, true);
    assert_eq!(m.run(0), Ok(write(MMIO, 0x1234_5678)));
    m.run_out(0);
    assert_eq!(m.regs(0).rip, CODE + 8);
    // The same instruction without the fault is.
    m.with_regs(0, |r| r.rip = CODE);
    m.npf(0, TPR, false);
    assert_eq!((m.run(0), m.page(0).u64(32), m.regs(0).rip), (Ok(TPR_ACCESS), CODE, CODE + 6));
}

#[test]
fn a_write_to_another_device_goes_out_first() {
    let m = paged(&[0xa5]); // movsd
    m.with_regs(0, |r| (r.rsi, r.rdi) = (TPR, MMIO));
    m.npf(0, TPR, false);
    assert_eq!((m.run(0), m.regs(0).rip), (Ok(write(MMIO, 0)), CODE + 1));
    assert_eq!(m.run(0), Ok(TPR_ACCESS));
    assert_eq!((m.page(0).u64(32), m.page(0).u32(40)), (CODE, 0));
    m.run_out(0);
    // The debugger's step is over when all of it is.
    steps(&m);
    m.with_regs(0, |r| (r.rip, r.rsi, r.rdi) = (CODE, TPR, MMIO));
    m.npf(0, TPR, false);
    assert_eq!((m.run(0), m.run(0)), (Ok(write(MMIO, 0)), Ok(TPR_ACCESS)));
    assert_eq!(m.run(0), Ok(Left::Debug { exception: 1, pc: CODE + 1, dr6: STEP }));
    m.does(0, |c| assert!(c.injected.is_empty()));
    m.run_out(0);
}

/// The vector is in service, and its end has to be told.
fn in_service(m: &Machine, vector: u8) {
    let mut route = kvm_irq_routing_entry { gsi: 4, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    route.u.msi =
        kvm_irq_routing_msi { address_lo: APIC as u32, data: 0xc000 | u32::from(LEVEL), ..Default::default() };
    m.put_at(DATA, &[1u32, 0]);
    m.put_at(DATA + 8, &route);
    assert_eq!(m.vm(KVM_SET_GSI_ROUTING, DATA), Ok(0));
    m.does(0, |_| ());
    m.run_out(0);
    let mut s: kvm_lapic_state = m.vcpu_get(0, KVM_GET_LAPIC);
    (s.regs[0xf0], s.regs[0xf1]) = (-1, 1);
    for vectors in [0x100, 0x180] {
        s.regs[vectors + 0x10 * usize::from(vector / 32) + usize::from(vector % 32 / 8)] |= 1 << (vector % 8);
    }
    assert_eq!(m.vcpu_with(0, KVM_SET_LAPIC, &s), Ok(0));
}

/// A guest in 64-bit mode that is about to end the interrupt by a MOV to the page of the local APIC.
fn ends_by_mov() -> (Machine, u64) {
    let m = Machine::new();
    m.long(0, &[0x89, 0x03]); // mov [rbx], eax
    m.with_regs(0, |r| r.rbx = EOI);
    in_service(&m, LEVEL);
    m.npf(0, EOI, true);
    (m, CODE + 2)
}

/// By WRMSR.
fn ends_by_msr() -> (Machine, u64) {
    let m = Machine::new();
    m.long(0, &[]);
    m.x2apic(0);
    in_service(&m, LEVEL);
    m.wrmsr(0, X2APIC_EOI, 0);
    (m, CODE + 0x812)
}

/// By WRMSR to Hyper-V's.
fn ends_by_hyperv() -> (Machine, u64) {
    let m = Machine::hyperv();
    in_service(&m, LEVEL);
    m.wrmsr(0, HYPERV_EOI, 0);
    (m, CODE + 0x812)
}

#[test]
fn a_debuggers_step_over_the_end_of_an_interrupt() {
    for (m, next) in [ends_by_mov(), ends_by_msr(), ends_by_hyperv()] {
        steps(&m);
        assert_eq!(m.run(0), Ok(Left::Eoi { vector: LEVEL }));
        assert_eq!(m.run(0), Ok(Left::Debug { exception: 1, pc: next, dr6: STEP }));
        m.does(0, |c| assert!(c.injected.is_empty()));
        m.run_out(0);
        assert_eq!(m.regs(0).rip, next);
    }
    // It is called off while user space looks at the first.
    let (m, next) = ends_by_msr();
    steps(&m);
    assert_eq!(m.run(0), Ok(Left::Eoi { vector: LEVEL }));
    assert_eq!(m.vcpu_with(0, KVM_SET_GUEST_DEBUG, &kvm_guest_debug::default()), Ok(0));
    m.does(0, |c| assert!(c.injected.is_empty()));
    m.run_out(0);
    assert_eq!(m.regs(0).rip, next);
}

#[test]
fn a_trap_behind_the_end_of_an_interrupt() {
    for (m, next) in [ends_by_mov(), ends_by_msr()] {
        m.with_regs(0, |r| r.rflags |= TF);
        assert_eq!((m.run(0), m.regs(0).rip), (Ok(Left::Eoi { vector: LEVEL }), next));
        m.does(0, |c| assert_eq!(c.injected.iter().map(|(e, _)| e.vector()).collect::<Vec<_>>(), [1]));
        m.run_out(0);
    }
}

#[test]
fn a_repeated_write_pauses_at_the_end_of_an_interrupt() {
    let m = Machine::new();
    m.long(0, &[0xf3, 0xab]); // rep stosd
    m.with_regs(0, |r| (r.rdi, r.rcx) = (EOI - 0x10, 7));
    in_service(&m, LEVEL);
    m.npf(0, EOI - 0x10, true);
    assert_eq!(m.run(0), Ok(Left::Eoi { vector: LEVEL }));
    assert_eq!((m.regs(0).rip, m.regs(0).rcx), (CODE, 2));
    m.npf(0, EOI + 4, true);
    m.run_out(0);
    assert_eq!((m.regs(0).rip, m.regs(0).rcx), (CODE + 2, 0));
}

#[test]
fn a_debuggers_step_over_a_write_of_cr8() {
    let assists = CpuFeatures { decode_assists: true, nrips: true, ..PLAIN };
    for (features, info) in [(PLAIN, 0), (assists, 1 << 63)] {
        let m = Machine::bare(features).unwrap();
        assert_eq!(m.region(0, 0, 0, RAM, RAM_HVA), Ok(0));
        m.add_vcpu(0).unwrap();
        m.long(0, &[0x44, 0x0f, 0x22, 0xc0]); // mov cr8, rax
        m.page(0).set_u64(abi::uapi::run::at::CR8, 9);
        steps(&m);
        m.sim.act(0, move |c| {
            if c.has_nrips {
                c.vmcb().next_rip = c.guest().rip + 4;
            }
            Outcome::Exit(0x18, info, 0)
        });
        assert_eq!(m.run(0), Ok(Left::Other(KVM_EXIT_SET_TPR)));
        assert_eq!(m.run(0), Ok(Left::Debug { exception: 1, pc: CODE + 4, dr6: STEP }));
    }
}

#[test]
fn a_debuggers_step_over_hlt() {
    let m = Machine::without_irqchip();
    m.long(0, &[]);
    steps(&m);
    m.hlt(0);
    assert_eq!(m.run(0), Ok(Left::Hlt));
    assert_eq!(m.run(0), Ok(Left::Debug { exception: 1, pc: CODE + 0x821, dr6: STEP }));
}

/// The processor does not say where the next instruction is, and a signal comes before the code can be read.
#[test]
fn an_end_of_an_interrupt_that_begins_anew_is_one() {
    let (m, next) = ends_by_msr();
    m.host_changes(CODE, 1, Page::Missing);
    assert_eq!(m.run(0), Err((Errno::EINTR, Left::Intr)));
    m.host_changes(CODE, 1, Page::Writable);
    m.wrmsr(0, X2APIC_EOI, 0);
    assert_eq!((m.run(0), m.regs(0).rip), (Ok(Left::Eoi { vector: LEVEL }), next));
}
