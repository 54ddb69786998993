//! Control, debug and extended control registers; instructions that are intercepted and do little.

use abi::uapi::ioctl::*;
use kvm_bindings::*;
use sim::arch::exit::code;
use sim::arch::vmcb::int_ctl;
use sim::host::{Cpu, CpuFeatures, Errno};
use tests::scenario::{CODE, Left, Machine, PLAIN, RAM, RAM_HVA, flushed};

const CR0_SEL_WRITE: u64 = code::CR0_SEL_WRITE;
const CR4_WRITE: u64 = 0x14;
const MOV_CR0_RAX: &[u8] = &[0x0f, 0x22, 0xc0];
const MOV_RAX_CR0: &[u8] = &[0x0f, 0x20, 0xc0];
const MOV_CR4_RAX: &[u8] = &[0x0f, 0x22, 0xe0];

fn machine(code: &[u8]) -> Machine {
    let m = Machine::new();
    m.long(0, code);
    m
}

fn sregs(m: &Machine) -> kvm_sregs {
    m.vcpu_get(0, KVM_GET_SREGS)
}

fn vectors(m: &Machine) -> Vec<u8> {
    m.injected(0).iter().map(|e| e.vector()).collect()
}

/// Executes one intercepted instruction with RAX = `rax`.
fn exit(m: &Machine, code: u64, rax: u64) {
    m.with_regs(0, |r| (r.rip, r.rax) = (CODE, rax));
    m.exit(0, code);
    m.does(0, |_| ());
    m.run_out(0);
}

#[test]
fn cache_disable_is_the_guests_illusion() {
    const CD: u64 = 1 << 30;
    let m = machine(MOV_CR0_RAX);
    exit(&m, CR0_SEL_WRITE, 0x8005_0033 | CD);
    assert_eq!((sregs(&m).cr0, m.regs(0).rip), (0x8005_0033 | CD, CODE + 3));
    m.does(0, |c| {
        assert_eq!(c.guest().cr0 & CD, 0, "the processor runs with caches");
        assert_eq!((c.vmcb().intercept_cr_read & 1, c.vmcb().intercept_cr_write & 1), (1, 1));
    });
    m.run_out(0);
    m.write_ram(CODE, MOV_RAX_CR0);
    exit(&m, code::CR0_READ, 0);
    assert_eq!(m.regs(0).rax, 0x8005_0033 | CD);
    m.write_ram(CODE, MOV_CR0_RAX);
    exit(&m, CR0_SEL_WRITE, 0x8005_0033);
    // The guest's first use of its FPU ends the other reason to intercept.
    m.exit(0, code::EXCP0 + 7);
    m.does(0, |c| assert_eq!(c.vmcb().intercept_cr_read & 1, 0, "no longer needed"));
    m.run_out(0);
}

#[test]
fn illegal_values_fault_and_change_nothing() {
    let m = machine(MOV_CR0_RAX);
    for bad in [0x8000_0000, 1 << 29 | 0x8000_0011, 1 << 32 | 0x8000_0011] {
        exit(&m, CR0_SEL_WRITE, bad);
    }
    m.write_ram(CODE, MOV_CR4_RAX);
    for bad in [1 << 31, 1 << 13, 0] {
        exit(&m, CR4_WRITE, bad); // reserved, VMXE, no PAE in long mode
    }
    assert_eq!((vectors(&m), m.regs(0).rip), (vec![13; 6], CODE));
    assert_eq!((sregs(&m).cr0, sregs(&m).cr4), (0x8005_0033, 0x620));
}

#[test]
fn reads_of_cr4_exit_while_the_processors_is_another() {
    const MCE: u64 = 1 << 6;
    let m = machine(MOV_CR4_RAX);
    let reads_exit = |m: &Machine| m.inside(0, |c| c.core.cpu.control().intercept_cr_read >> 4 & 1 != 0);
    exit(&m, CR4_WRITE, 0x620 & !MCE);
    assert!(reads_exit(&m));
    m.does(0, |c| assert_eq!(c.guest().cr4 & MCE, MCE, "a machine check is the host's"));
    m.run_out(0);
    exit(&m, CR4_WRITE, 0x620 | MCE);
    assert!(!reads_exit(&m));
    exit(&m, CR4_WRITE, 0x620 & !MCE);
    assert!(reads_exit(&m));
}

#[test]
fn decode_assists_name_the_operand() {
    let m = Machine::bare(CpuFeatures { nrips: true, decode_assists: true, ..PLAIN }).unwrap();
    m.region(0, 0, 0, RAM, RAM_HVA).unwrap();
    m.add_vcpu(0).unwrap();
    m.long(0, &[0xcc]); // the bytes are not looked at
    m.with_regs(0, |r| r.r9 = 0x620 | 1 << 7);
    m.sim.step(0, |c| {
        c.vmcb().next_rip = CODE + 4;
        (CR4_WRITE, 1 << 63 | 9, 0)
    });
    m.run_out(0);
    assert_eq!((sregs(&m).cr4, m.regs(0).rip), (0x620 | 1 << 7, CODE + 4));
}

#[test]
fn into_long_mode_step_by_step() {
    let m = Machine::new();
    m.long(0, &[]); // for the page tables
    m.protected(0, MOV_CR4_RAX);
    exit(&m, CR4_WRITE, 1 << 5);
    m.wrmsr(0, 0xc000_0080, 1 << 8);
    m.run_out(0);
    assert_eq!(sregs(&m).efer, 1 << 8, "LME, not active yet");
    m.does(0, |c| c.guest().cr3 = tests::scenario::PML4);
    m.write_ram(CODE, MOV_CR0_RAX);
    exit(&m, CR0_SEL_WRITE, 0x8000_0033);
    assert_eq!((sregs(&m).efer, vectors(&m)), (1 << 8 | 1 << 10, vec![]), "LMA");
    // And back: paging off ends it.
    exit(&m, CR0_SEL_WRITE, 0x33);
    assert_eq!((sregs(&m).efer, vectors(&m)), (1 << 8, vec![]));
}

#[test]
fn lmsw_smsw_clts() {
    let m = machine(&[0x0f, 0x06]); // clts
    let mut s = sregs(&m);
    s.cr0 |= 8;
    assert_eq!(m.vcpu_with(0, KVM_SET_SREGS, &s), Ok(0));
    exit(&m, CR0_SEL_WRITE, 0);
    assert_eq!((sregs(&m).cr0 & 8, m.regs(0).rip), (0, CODE + 2));
    m.write_ram(CODE, &[0x0f, 0x01, 0xf0]); // lmsw ax
    exit(&m, CR0_SEL_WRITE, 0xb);
    assert_eq!((sregs(&m).cr0 & 0xf, m.regs(0).rip), (0xb, CODE + 3));
}

/// KVM_GET_SREGS2: with PAE paging the four entries that the processor has loaded, from where CR3 is.
#[test]
fn pae_entries_are_shown_where_there_are_any() {
    const CR3: u64 = 0x5020;
    let m = Machine::new();
    let shown = |m: &Machine| {
        let s: kvm_sregs2 = m.vcpu_get(0, KVM_GET_SREGS2);
        (s.flags, s.pdptrs)
    };
    m.long(0, &[]);
    assert_eq!(shown(&m), (0, [0; 4]), "not in long mode");
    m.protected(0, &[]);
    m.write_ram(CR3, &[0x1001u64, 0x2001, 0, 0x4001].map(u64::to_le_bytes).concat());
    let mut s = sregs(&m);
    (s.cr3, s.cr4) = (CR3 | 0x18, 0x20);
    assert_eq!((m.vcpu_with(0, KVM_SET_SREGS, &s), shown(&m)), (Ok(0), (0, [0; 4])), "not without paging");
    s.cr0 |= 1 << 31;
    assert_eq!(m.vcpu_with(0, KVM_SET_SREGS, &s), Ok(0));
    let valid = u64::from(KVM_SREGS2_FLAGS_PDPTRS_VALID);
    assert_eq!(shown(&m), (valid, [0x1001, 0x2001, 0, 0x4001]));
    let whole: kvm_sregs2 = m.vcpu_get(0, KVM_GET_SREGS2);
    assert_eq!(m.vcpu_with(0, KVM_SET_SREGS2, &whole), Ok(0), "it takes what it gives");
    s.cr3 = 0xd000_0000;
    assert_eq!((m.vcpu_with(0, KVM_SET_SREGS, &s), shown(&m)), (Ok(0), (valid, [0; 4])), "no memory");
    m.end();
}

#[test]
fn cr8_is_the_task_priority() {
    let m = machine(&[0x44, 0x0f, 0x22, 0xc0]); // mov cr8, rax
    exit(&m, 0x18, 6);
    m.does(0, |c| assert_eq!(c.vmcb().int_ctl & int_ctl::V_TPR, 6));
    m.run_out(0);
    let state: kvm_lapic_state = m.vcpu_get(0, KVM_GET_LAPIC);
    assert_eq!((state.regs[0x80] as u8, sregs(&m).cr8), (0x60, 6));
    exit(&m, 0x18, 16);
    assert_eq!(vectors(&m), [13]);
}

#[test]
fn debug_registers() {
    let m = machine(&[0x0f, 0x23, 0xc8]); // mov dr1, rax
    exit(&m, 0x31, 0x1234);
    m.write_ram(CODE, &[0x0f, 0x23, 0xf8]); // mov dr7, rax
    exit(&m, 0x37, 0x404);
    let d: kvm_debugregs = m.vcpu_get(0, KVM_GET_DEBUGREGS);
    assert_eq!((d.db[1], d.dr7), (0x1234, 0x404));
    m.does(0, |c| {
        assert_eq!(c.guest().dr7, 0x404);
        assert!(c.extra().load_dr && c.extra().dr[1] == 0x1234);
    });
    m.run_out(0);
    exit(&m, 0x37, 1 << 32);
    assert_eq!(vectors(&m), [13], "upper half");
    exit(&m, 0x37, 1 << 13 | 0x400); // general detect
    exit(&m, 0x37, 0x400);
    assert_eq!(vectors(&m), [13, 1]);
    let d: kvm_debugregs = m.vcpu_get(0, KVM_GET_DEBUGREGS);
    assert_eq!((d.dr6 & 1 << 13, d.dr7 & 1 << 13), (1 << 13, 0), "delivery of #DB clears it");
}

#[test]
fn xsetbv() {
    let m = machine(&[0x0f, 0x01, 0xd1]);
    let mut s = sregs(&m);
    s.cr4 |= 1 << 18;
    assert_eq!(m.vcpu_with(0, KVM_SET_SREGS, &s), Ok(0));
    m.with_regs(0, |r| r.rcx = 0);
    exit(&m, code::XSETBV, 7);
    let x: kvm_xcrs = m.vcpu_get(0, KVM_GET_XCRS);
    assert_eq!((x.xcrs[0].value, m.regs(0).rip), (7, CODE + 3));
    for bad in [0, 6, 5, 1 << 20 | 1] {
        exit(&m, code::XSETBV, bad);
    }
    assert_eq!((vectors(&m), m.regs(0).rip), (vec![13; 4], CODE));
}

#[test]
fn instructions_that_do_little() {
    for (exit_code, bytes) in [
        (code::WBINVD, &[0x0f, 0x09][..]),
        (code::INVD, &[0x0f, 0x08]),
        (code::PAUSE, &[0xf3, 0x90]),
        (code::MONITOR, &[0x0f, 0x01, 0xc8]),
        (code::MWAIT, &[0x0f, 0x01, 0xc9]),
    ] {
        let m = machine(bytes);
        exit(&m, exit_code, 0);
        assert_eq!((m.regs(0).rip, vectors(&m)), (CODE + bytes.len() as u64, vec![]), "{exit_code:#x}");
    }
    let m = machine(&[0x0f, 0x33]);
    exit(&m, code::RDPMC, 0);
    assert_eq!(vectors(&m), [13], "no performance counters");
}

/// Caches are written back for a guest only while a device of its reads memory past them.
#[test]
fn wbinvd_with_noncoherent_dma() {
    let m = machine(&[0x0f, 0x09]);
    let wbinvds = |dma| {
        m.engine().set_noncoherent_dma(dma);
        m.with_regs(0, |r| r.rip = CODE);
        exit(&m, code::WBINVD, 0);
        assert_eq!(m.regs(0).rip, CODE + 2);
        m.cpu(0).thread.wbinvds()
    };
    assert_eq!([false, true, true, false].map(wbinvds), [0, 1, 2, 2]);
}

#[test]
fn invlpg_flushes() {
    let m = machine(&[0x0f, 0x01, 0x38]); // invlpg [rax]
    m.does(0, |_| ());
    m.run_out(0);
    let before = m.inside(0, |c| c.core.cpu.flushes);
    exit(&m, code::INVLPG, 0x5000);
    assert!(flushed(&m, 0, before, 1) && m.regs(0).rip == CODE + 3);
}

#[test]
fn impossible_task_switches_are_told_to_user_space() {
    let m = machine(&[]);
    m.sim.step(0, |_| (code::TASK_SWITCH, 0x18, 1 << 36));
    assert!(matches!(m.run(0), Ok(Left::Internal { suberror: 1, .. })), "there are none in long mode");
}

fn debug(m: &Machine, control: u32) {
    let debug = kvm_guest_debug { control, ..Default::default() };
    assert_eq!(m.vcpu_with(0, KVM_SET_GUEST_DEBUG, &debug), Ok(0));
}

#[test]
fn a_debugger_steps_over_what_the_kernel_does() {
    let m = machine(&[0x0f, 0xa2]);
    debug(&m, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP);
    m.exit(0, code::CPUID);
    assert_eq!(m.run(0), Ok(Left::Debug { exception: 1, pc: CODE + 2, dr6: 0xffff_4ff0 }));
}

#[test]
fn breakpoints_of_the_debugger() {
    let m = machine(&[0xcc]);
    debug(&m, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP);
    m.sim.step(0, |c| {
        assert_eq!(c.vmcb().intercept_exceptions & 8, 8);
        (code::EXCP0 + 3, 0, 0)
    });
    let Ok(Left::Debug { exception: 3, pc: CODE, .. }) = m.run(0) else { panic!("not told") };
    // It was the guest's own: back to it.
    debug(&m, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP | KVM_GUESTDBG_INJECT_BP);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(vectors(&m), [3]);
}

/// The debugger's exception has to wait for one that waits itself, and for a shutdown; not for one that is being delivered.
#[test]
fn an_exception_of_the_debuggers_beside_another() {
    let inject = |m: &Machine, control| {
        let debug = kvm_guest_debug { control: KVM_GUESTDBG_ENABLE | control, ..Default::default() };
        m.vcpu_with(0, KVM_SET_GUEST_DEBUG, &debug)
    };
    let m = machine(&[]);
    assert_eq!(inject(&m, KVM_GUESTDBG_INJECT_DB), Ok(0));
    for control in [KVM_GUESTDBG_INJECT_DB, KVM_GUESTDBG_INJECT_BP] {
        assert_eq!(inject(&m, control), Err(Errno::EBUSY));
    }
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(vectors(&m), [1]);

    let m = machine(&[]);
    let mut e: kvm_vcpu_events = m.vcpu_get(0, KVM_GET_VCPU_EVENTS);
    e.exception = kvm_vcpu_events__bindgen_ty_1 { injected: 1, nr: 13, has_error_code: 1, ..Default::default() };
    assert_eq!(m.vcpu_with(0, KVM_SET_VCPU_EVENTS, &e), Ok(0));
    assert_eq!(inject(&m, KVM_GUESTDBG_INJECT_DB), Ok(0));
    assert_eq!(inject(&m, KVM_GUESTDBG_INJECT_DB), Err(Errno::EBUSY), "it waits now");
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(vectors(&m), [1], "the other one happens again by itself");

    assert_eq!(m.enable(KVM_CAP_X86_TRIPLE_FAULT_EVENT, 1), Ok(0));
    (e.flags, e.triple_fault.pending, e.exception.injected) = (KVM_VCPUEVENT_VALID_TRIPLE_FAULT, 1, 0);
    assert_eq!(m.vcpu_with(0, KVM_SET_VCPU_EVENTS, &e), Ok(0));
    assert_eq!(inject(&m, KVM_GUESTDBG_INJECT_DB), Err(Errno::EBUSY));
    assert_eq!(m.run(0), Ok(Left::Shutdown));
    m.end();
}

#[test]
fn no_interrupts_while_the_debugger_steps() {
    let m = machine(&[]);
    m.x2apic(0);
    debug(&m, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_BLOCKIRQ);
    let msi = kvm_msi { address_lo: 0xfee0_0000, data: 0x31, ..Default::default() };
    assert_eq!(m.vm_with(KVM_SIGNAL_MSI, &msi), Ok(1));
    assert_eq!(m.vcpu(0, KVM_NMI, 0), Ok(0));
    m.interrupt_flag(0, true);
    m.exit(0, code::INTR);
    m.does(0, |c| assert_eq!((c.injected.len(), c.taken.len()), (0, 0)));
    m.run_out(0);
    debug(&m, 0);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!((vectors(&m), m.taken(0).len()), (vec![2], 0), "the NMI clears the interrupt flag");
    m.interrupt_flag(0, true);
    m.run_out(0);
    assert_eq!(m.taken(0), [0x31]);
}
