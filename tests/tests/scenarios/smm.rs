//! System management mode: an SMI wherever it can come, what it saves, and RSM.
//!
//! Long because: a scenario after the other, and all share their helpers.

use abi::uapi::ioctl::*;
use kvm_bindings::*;
use sim::arch::EventType;
use sim::arch::exit::code;
use sim::host::Errno::*;
use tests::random::Random;
use tests::scenario::{CODE, DATA, Left, Machine, RAM, RAM_HVA};

const SMM: u32 = 1 << 16;
/// Where SMBASE is after reset, and the save area there.
const SMBASE: u64 = 0x3_0000;
const AREA: u64 = SMBASE + 0xfe00;
/// SMRAM that only system management mode sees: [`SMBASE`] and 128 KiB from there, elsewhere in the VMM's memory.
const SMRAM_HVA: u64 = RAM_HVA + RAM - 0x2_0000;
const MSR_SMBASE: u32 = 0x9e;
const SMI_COUNT: u32 = 0x34;

/// One processor in 64-bit mode with SMRAM.
fn machine() -> Machine {
    let m = Machine::new();
    smram(&m);
    m.long(0, &[]);
    m
}

fn smram(m: &Machine) {
    assert_eq!(m.region(SMM, 0, 0, SMBASE, RAM_HVA), Ok(0), "below it there is what is there always");
    assert_eq!(m.region(SMM | 1, 0, SMBASE, 0x2_0000, SMRAM_HVA), Ok(0));
}

fn events(m: &Machine, vcpu: usize) -> kvm_vcpu_events {
    m.vcpu_get(vcpu, KVM_GET_VCPU_EVENTS)
}

fn sregs(m: &Machine) -> kvm_sregs {
    m.vcpu_get(0, KVM_GET_SREGS)
}

fn smi(m: &Machine, vcpu: usize) {
    assert_eq!(m.vcpu(vcpu, KVM_SMI, 0), Ok(0));
}

fn rsm(m: &Machine) {
    m.exit(0, code::RSM);
}

/// 8 bytes of the save area, at the offset from SMBASE that the manual gives.
fn saved(m: &Machine, offset: u64) -> u64 {
    m.get_at(SMRAM_HVA + offset)
}

fn save(m: &Machine, offset: u64, value: u64) {
    m.put_at(SMRAM_HVA + offset, &value);
}

/// The guest is in the first instruction of the handler.
fn in_handler(m: &Machine) {
    m.does(0, |c| {
        let g = c.guest();
        assert_eq!((g.cs.selector, g.cs.base, g.rip), (0x3000, SMBASE, 0x8000));
        assert_eq!((g.rflags, g.cr4 & !(1 << 6), g.efer), (2, 0, 1 << 12));
        assert_eq!((g.cr0 & (1 | 1 << 31), g.dr7, g.idtr.limit), (0, 0x400, 0));
        assert_eq!((g.ds.base, g.ss.limit, g.cpl), (0, u32::MAX, 0));
    });
}

#[test]
fn there_and_back_in_each_mode() {
    type Mode = fn(&Machine, usize, &[u8]);
    for mode in [Machine::real as Mode, Machine::protected, Machine::long] {
        let m = Machine::new();
        smram(&m);
        mode(&m, 0, &[]);
        m.with_regs(0, |r| {
            (r.rax, r.r15, r.rsp, r.rflags) = (0x1111_2222_3333_4444, 0xfff, 0x7ff0, 0x202);
        });
        assert_eq!(
            m.vcpu_with(0, KVM_SET_DEBUGREGS, &kvm_debugregs { dr6: 0xffff_4ff1, dr7: 0x401, ..Default::default() }),
            Ok(0)
        );
        let (regs, before) = (m.regs(0), sregs(&m));
        smi(&m, 0);
        in_handler(&m);
        m.run_out(0);
        assert_eq!(m.page(0).u16(14), 1, "KVM_RUN_X86_SMM");
        assert_eq!(events(&m, 0).smi.smm, 1);
        assert_eq!((saved(&m, 0xff78), saved(&m, 0xfff8), saved(&m, 0xff80)), (regs.rip, regs.rax, regs.r15));
        assert_eq!((saved(&m, 0xff58), saved(&m, 0xff50), saved(&m, 0xff48)), (before.cr0, before.cr3, before.cr4));
        assert_eq!((saved(&m, 0xfed0), saved(&m, 0xff70)), (before.efer, regs.rflags));
        assert_eq!(saved(&m, 0xfefc), SMBASE << 32 | 0x2_0064);
        assert_eq!(saved(&m, 0xfe98), before.tr.base);
        assert_eq!(saved(&m, 0xfe10) as u16, before.cs.selector);
        rsm(&m);
        let rip = regs.rip;
        m.does(0, move |c| assert_eq!(c.guest().rip, rip));
        m.run_out(0);
        assert_eq!((m.regs(0), sregs(&m)), (regs, before));
        let d: kvm_debugregs = m.vcpu_get(0, KVM_GET_DEBUGREGS);
        assert_eq!((d.dr6, d.dr7), (0xffff_4ff1, 0x401));
        assert_eq!((m.page(0).u16(14), events(&m, 0).smi.smm, m.msr(0, SMI_COUNT)), (0, 0, 1));
        m.end();
    }
}

#[test]
fn a_processor_without_long_mode_saves_32_bits() {
    let m = Machine::without_vcpu(true);
    smram(&m);
    assert_eq!(m.add_vcpu_without_cpuid(0), Ok(0));
    m.protected(0, &[]);
    m.with_regs(0, |r| (r.rax, r.rcx, r.rdi) = (0x1234_5678, 2, 7));
    let (regs, before) = (m.regs(0), sregs(&m));
    smi(&m, 0);
    m.does(0, |c| assert_eq!(c.guest().rip, 0x8000));
    m.run_out(0);
    assert_eq!(saved(&m, 0xfff0), regs.rflags << 32 | regs.rip);
    assert_eq!(saved(&m, 0xffd0), 2 << 32 | 0x1234_5678);
    assert_eq!(saved(&m, 0xfff8), before.cr0 << 32 | before.cr3);
    assert_eq!(saved(&m, 0xfef8), 0x2_0000 << 32 | SMBASE);
    assert_eq!(saved(&m, 0xffac) as u16, before.cs.selector);
    rsm(&m);
    m.run_out(0);
    assert_eq!((m.regs(0), sregs(&m)), (regs, before));
}

/// SYSRET leaves the attributes of SS alone, so user code can run with those of a kernel's stack.
#[test]
fn user_code_is_not_privileged_behind_rsm() {
    // Read and write, present, system privilege; what is left of a stack that is gone, too.
    for (attrib, db) in [(0x493, 1), (0x400, 0)] {
        let m = machine();
        m.does(0, move |c| (c.guest().cpl, c.guest().ss.attrib.0) = (3, attrib));
        m.run_out(0);
        let before = sregs(&m);
        assert_eq!((before.ss.dpl, before.ss.db), (3, db));
        smi(&m, 0);
        in_handler(&m);
        rsm(&m);
        m.does(0, |c| assert_eq!(c.guest().cpl, 3));
        m.run_out(0);
        assert_eq!(saved(&m, 0xfe22) as u16 >> 5 & 3, 3, "SS as it is saved");
        assert_eq!(sregs(&m), before);
    }
    // Without long mode.
    let m = Machine::without_vcpu(true);
    smram(&m);
    assert_eq!(m.add_vcpu_without_cpuid(0), Ok(0));
    m.protected(0, &[]);
    m.does(0, move |c| (c.guest().cpl, c.guest().ss.attrib.0) = (3, 0x493));
    m.run_out(0);
    smi(&m, 0);
    m.does(0, |c| assert_eq!((c.guest().rip, c.guest().cpl), (0x8000, 0)));
    rsm(&m);
    m.does(0, |c| assert_eq!(c.guest().cpl, 3));
    m.run_out(0);
}

#[test]
fn memory_is_another_inside() {
    let m = machine();
    m.store(0, SMBASE + 0x100, 1);
    m.run_out(0);
    smi(&m, 0);
    m.load(0, SMBASE + 0x100, 0);
    m.store(0, SMBASE + 0x100, 2);
    m.load(0, 0x100, 0);
    m.run_out(0);
    // Where only the other one has memory there is a device: mov eax, [3ff000h], which the handler's code is read from here for.
    m.put_at(SMRAM_HVA + 0x8000, &[0x66u8, 0x67, 0xa1, 0x00, 0xf0, 0x3f, 0x00, 0x90]);
    m.tries(0, 0x3f_f000, false);
    assert!(matches!(m.run(0), Ok(Left::Mmio { gpa: 0x3f_f000, write: false, .. })));
    let m = machine();
    smi(&m, 0);
    m.store(0, SMBASE + 0x100, 2);
    rsm(&m);
    m.load(0, SMBASE + 0x100, 0);
    m.store(0, SMBASE + 0x100, 3);
    m.run_out(0);
    smi(&m, 0);
    m.load(0, SMBASE + 0x100, 2);
    m.run_out(0);
    assert_eq!(m.get_at::<u64>(SMRAM_HVA + 0x100), 2);
    // A slot that goes while the vCPU is inside.
    assert_eq!(m.region(SMM | 1, 0, SMBASE, 0, SMRAM_HVA), Ok(0));
    m.tries(0, SMBASE + 0x100, false);
    assert!(m.run(0).is_ok(), "it is not there any more, nor is the code");
    m.end();
}

#[test]
fn smis_in_a_storm_are_one_at_a_time() {
    let m = machine();
    for _ in 0..10 {
        smi(&m, 0);
    }
    in_handler(&m);
    m.run_out(0);
    for _ in 0..10 {
        smi(&m, 0);
    }
    m.does(0, |c| assert_eq!(c.guest().rip, 0x8000, "not again inside"));
    m.run_out(0);
    assert_eq!((events(&m, 0).smi.pending, m.msr(0, SMI_COUNT)), (1, 1));
    rsm(&m);
    in_handler(&m);
    m.run_out(0);
    assert_eq!((events(&m, 0).smi.pending, m.msr(0, SMI_COUNT)), (0, 2));
    rsm(&m);
    m.does(0, |c| assert_eq!(c.guest().rip, CODE));
    m.run_out(0);
}

#[test]
fn what_is_being_delivered_goes_first() {
    // An exception, twice, because its delivery is cut short. The guest is not entered for an instruction in between.
    let m = machine();
    let mut e = events(&m, 0);
    (e.exception.injected, e.exception.nr, e.exception.has_error_code) = (1, 13, 1);
    assert_eq!(m.vcpu_with(0, KVM_SET_VCPU_EVENTS, &e), Ok(0));
    smi(&m, 0);
    m.sim.step(0, |c| {
        assert_eq!(c.guest().rip, CODE);
        c.cut_delivery_short();
        (code::NPF, 1 << 32 | 4, 0x1_0000)
    });
    in_handler(&m);
    m.run_out(0);
    let injected: Vec<u8> = m.injected(0).iter().map(|e| e.vector()).collect();
    assert_eq!((injected, events(&m, 0).smi.smm), (vec![13, 13], 1));

    // An NMI: its handler is interrupted, and stays masked behind RSM.
    let m = machine();
    assert_eq!(m.vcpu(0, KVM_NMI, 0), Ok(0));
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(events(&m, 0).nmi.masked, 1);
    smi(&m, 0);
    in_handler(&m);
    m.run_out(0);
    assert_eq!((events(&m, 0).smi.smm_inside_nmi, events(&m, 0).nmi.masked), (1, 1));
    rsm(&m);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!((events(&m, 0).smi.smm_inside_nmi, events(&m, 0).nmi.masked), (0, 1));
    m.exit(0, code::IRET);
    m.does(0, |c| c.guest().rip = CODE + 0x80);
    m.run_out(0);
    assert_eq!(events(&m, 0).nmi.masked, 0);
}

#[test]
fn nmis_wait_outside() {
    let m = machine();
    smi(&m, 0);
    in_handler(&m);
    m.run_out(0);
    assert_eq!(m.vcpu(0, KVM_NMI, 0), Ok(0));
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(m.injected(0), []);
    assert_eq!((events(&m, 0).nmi.pending, events(&m, 0).nmi.masked), (1, 1));
    rsm(&m);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(m.injected(0).iter().map(|e| e.kind()).collect::<Vec<_>>(), [Some(EventType::Nmi)]);
}

#[test]
fn both_at_once() {
    // The SMI first.
    let m = machine();
    assert_eq!(m.vcpu(0, KVM_NMI, 0), Ok(0));
    smi(&m, 0);
    in_handler(&m);
    m.run_out(0);
    assert_eq!((m.injected(0).len(), events(&m, 0).smi.smm_inside_nmi), (0, 0));
    rsm(&m);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(m.injected(0).len(), 1);
}

#[test]
fn the_iret_of_an_nmi_handler_that_was_met_is_met_again() {
    let m = machine();
    assert_eq!(m.vcpu(0, KVM_NMI, 0), Ok(0));
    m.does(0, |_| ());
    m.exit(0, code::IRET);
    m.run_out(0);
    smi(&m, 0);
    in_handler(&m);
    m.does(0, |c| c.guest().rip = 0x8010);
    m.run_out(0);
    assert_eq!((events(&m, 0).nmi.masked, events(&m, 0).smi.smm_inside_nmi), (1, 1), "it has not run");
    rsm(&m);
    m.exit(0, code::IRET);
    m.does(0, |c| c.guest().rip = CODE + 0x80);
    m.run_out(0);
    assert_eq!(events(&m, 0).nmi.masked, 0);
}

#[test]
fn hlt_ends() {
    let m = machine();
    m.hlt(0);
    m.run_out(0);
    smi(&m, 0);
    in_handler(&m);
    m.run_out(0);
    let behind = saved(&m, 0xff78);
    rsm(&m);
    m.does(0, move |c| assert_eq!(c.guest().rip, behind));
    m.run_out(0);
    // One inside goes on sleeping.
    smi(&m, 0);
    m.does(0, |_| ());
    m.run_out(0);
    smi(&m, 0);
    m.hlt(0);
    m.run_out(0);
    assert_eq!(m.vcpu_get::<kvm_mp_state>(0, KVM_GET_MP_STATE).mp_state, KVM_MP_STATE_HALTED);
}

#[test]
fn a_processor_that_waits_for_sipi_takes_it_afterwards() {
    let m = Machine::new();
    smram(&m);
    assert_eq!(m.add_vcpu(1), Ok(1));
    m.long(0, &[]);
    m.x2apic(0);
    smi(&m, 1);
    m.wrmsr(0, 0x830, 1 << 32 | 0x4500);
    m.wrmsr(0, 0x830, 1 << 32 | 0x4622);
    m.wrmsr(0, 0x830, 1 << 32 | 0x4200); // And an SMI through the APIC.
    m.run_out(0);
    m.does(1, |c| assert_eq!(c.guest().rip, 0x8000));
    assert_eq!(m.run(1).map_err(|e| e.0), Err(EAGAIN), "a VMM looks at it after INIT");
    m.run_out(1);
    assert_eq!((events(&m, 1).smi.smm, m.msr(1, SMI_COUNT)), (1, 1), "all of them are one");
    assert_eq!((saved(&m, 0xff78), saved(&m, 0xfe10) as u16), (0, 0x2200), "it was where SIPI has sent it");
}

#[test]
fn init_is_latched_and_sipi_is_lost() {
    let m = Machine::new();
    smram(&m);
    assert_eq!(m.add_vcpu(1), Ok(1));
    assert_eq!(m.vcpu_with(1, KVM_SET_MP_STATE, &kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE }), Ok(0));
    m.long(0, &[]);
    m.x2apic(0);
    m.long(1, &[]);
    smi(&m, 1);
    m.does(1, |_| ());
    m.run_out(1);
    m.wrmsr(0, 0x830, 1 << 32 | 0x4500);
    m.wrmsr(0, 0x830, 1 << 32 | 0x4622);
    m.run_out(0);
    m.does(1, |c| assert_eq!(c.guest().rip, 0x8000));
    m.run_out(1);
    assert_eq!((events(&m, 1).smi.smm, events(&m, 1).smi.latched_init), (1, 1));
    let state = |mp_state| m.vcpu_with(1, KVM_SET_MP_STATE, &kvm_mp_state { mp_state });
    assert_eq!(state(KVM_MP_STATE_INIT_RECEIVED), Err(EINVAL));
    assert_eq!(state(KVM_MP_STATE_SIPI_RECEIVED), Err(EINVAL));
    m.exit(1, code::RSM);
    m.run_out(1);
    assert_eq!(m.vcpu_get::<kvm_mp_state>(1, KVM_GET_MP_STATE).mp_state, KVM_MP_STATE_INIT_RECEIVED);
    assert_eq!((events(&m, 1).smi.smm, events(&m, 1).smi.latched_init), (0, 0));
    let mut e = events(&m, 1);
    e.smi.smm = 1;
    assert_eq!(m.vcpu_with(1, KVM_SET_VCPU_EVENTS, &e), Err(EINVAL), "INIT cannot have been received inside");
}

#[test]
fn an_answer_of_user_space_reaches_the_instruction_first() {
    let m = machine();
    m.write_ram(CODE, &[0xed]); // in eax, dx
    m.with_regs(0, |r| r.rdx = 0x700);
    m.sim.step(0, |_| (code::IOIO, 0x700 << 16 | 1 << 6 | 1, CODE + 1));
    assert!(matches!(m.run(0), Ok(Left::Io { input: true, .. })));
    smi(&m, 0);
    m.port_data(0).write(0, &0xaabb_ccddu32.to_le_bytes());
    in_handler(&m);
    m.run_out(0);
    assert_eq!((saved(&m, 0xfff8), saved(&m, 0xff78)), (0xaabb_ccdd, CODE + 1));
}

#[test]
fn the_shadow_and_the_trap_flag_are_kept() {
    let m = machine();
    m.with_regs(0, |r| r.rflags = 0x302);
    let mut e = events(&m, 0);
    (e.flags, e.interrupt.shadow) = (KVM_VCPUEVENT_VALID_SHADOW, 2);
    assert_eq!(m.vcpu_with(0, KVM_SET_VCPU_EVENTS, &e), Ok(0));
    smi(&m, 0);
    in_handler(&m);
    m.run_out(0);
    assert_eq!((events(&m, 0).interrupt.shadow, saved(&m, 0xff70)), (0, 0x302));
    assert_eq!(saved(&m, 0xfec8) >> 24 & 0xff, 3);
    rsm(&m);
    m.does(0, |c| assert_eq!((c.guest().rflags, c.vmcb().int_state & 1), (0x302, 1)));
    m.run_out(0);
}

#[test]
fn a_debugger_steps_and_can_keep_it_away() {
    let m = machine();
    let debug = |control| m.vcpu_with(0, KVM_SET_GUEST_DEBUG, &kvm_guest_debug { control, ..Default::default() });
    assert_eq!(debug(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_BLOCKIRQ), Ok(0));
    smi(&m, 0);
    m.does(0, |c| assert_eq!(c.guest().rip, CODE));
    m.run_out(0);
    assert_eq!(debug(0), Ok(0));
    in_handler(&m);
    m.run_out(0);
    rsm(&m);
    m.run_out(0);
    assert_eq!(debug(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP), Ok(0));
    smi(&m, 0);
    m.does(0, |c| assert_eq!((c.guest().rip, c.guest().rflags), (0x8000, 0x102), "into the handler"));
    m.run_out(0);
    assert_eq!(saved(&m, 0xff70) & 0x100, 0, "the flag is the debugger's");
    rsm(&m);
    assert!(matches!(m.run(0), Ok(Left::Debug { exception: 1, .. })));
    assert_eq!((m.regs(0).rip, m.regs(0).rflags & 0x100), (CODE, 0));
}

#[test]
fn rsm_outside_is_undefined() {
    let m = machine();
    rsm(&m);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(m.injected(0).iter().map(|e| e.vector()).collect::<Vec<_>>(), [6]);
}

#[test]
fn the_handler_may_move() {
    let m = machine();
    smi(&m, 0);
    in_handler(&m);
    m.run_out(0);
    save(&m, 0xfefc, 0x3_8000 << 32 | 0x2_0064);
    rsm(&m);
    m.run_out(0);
    assert_eq!(m.msr(0, MSR_SMBASE), 0x3_8000);
    smi(&m, 0);
    m.does(0, |c| assert_eq!((c.guest().cs.base, c.guest().cs.selector), (0x3_8000, 0x3800)));
    m.run_out(0);
    assert_eq!(m.set_msr(0, MSR_SMBASE, 0xa_0000), Ok(1));
    // The guest cannot reach it.
    m.rdmsr(0, MSR_SMBASE);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(m.injected(0).last().map(|e| e.vector()), Some(13));
}

#[test]
fn a_state_that_no_processor_has_is_a_shutdown() {
    let bad: [(u64, u64); 7] = [
        (0xff58, 1 << 31),     // CR0.PG without PE
        (0xff58, 1 << 29 | 1), // NW without CD
        (0xff48, 1 << 15),     // CR4, reserved
        (0xff48, 0),           // long mode without PAE
        (0xfed0, 1 << 20),     // EFER, reserved
        (0xff68, 1 << 32),     // DR6
        (0xff50, 1 << 60),     // CR3
    ];
    for (offset, value) in bad {
        let m = machine();
        smi(&m, 0);
        in_handler(&m);
        m.run_out(0);
        save(&m, offset, value);
        // Another SMI does not hide what was shut down.
        smi(&m, 0);
        rsm(&m);
        m.does(0, |_| panic!("goes on"));
        assert_eq!(m.run(0), Ok(Left::Shutdown), "{offset:#x} {value:#x}");
        let seen = events(&m, 0).smi;
        assert_eq!((seen.smm, seen.pending), (0, 1));
    }
}

#[test]
fn no_memory_for_the_state_is_the_end() {
    let m = machine();
    assert_eq!(m.set_msr(0, MSR_SMBASE, 0xf000_0000), Ok(1));
    smi(&m, 0);
    m.does(0, |_| panic!("goes on"));
    assert_eq!(m.run(0).map_err(|e| e.0), Err(EIO));
    for cmd in [KVM_GET_MP_STATE, KVM_SET_SIGNAL_MASK, KVM_GET_STATS_FD, KVM_SMI, KVM_RUN] {
        assert_eq!(m.vcpu(0, cmd, DATA), Err(EIO), "{cmd:x}");
    }
    for cmd in [KVM_GET_CLOCK, KVM_CHECK_EXTENSION, KVM_GET_STATS_FD, KVM_IRQFD] {
        assert_eq!(m.vm(cmd, DATA), Err(EIO), "{cmd:x}");
    }
    assert_eq!(abi::vm_compat_ioctl(&m.engine(), KVM_GET_DIRTY_LOG, DATA).err(), Some(EIO));
    assert_eq!(abi::device_ioctl(&m.engine(), KVM_GET_DEVICE_ATTR, DATA).err(), Some(EIO));
    assert_eq!(m.add_vcpu_without_cpuid(1), Err(EIO));
    assert_eq!(m.run(0).map_err(|e| e.0), Err(EIO));
    m.end();
    let m = machine();
    smi(&m, 0);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(m.set_msr(0, MSR_SMBASE, 0xf000_0000), Ok(1));
    rsm(&m);
    assert_eq!(m.run(0), Ok(Left::Shutdown), "RSM finds none");
}

#[test]
fn any_saved_state() {
    let mut random = Random(7);
    for case in 0..400 {
        let m = if case % 4 == 0 {
            let m = Machine::without_vcpu(true);
            smram(&m);
            assert_eq!(m.add_vcpu_without_cpuid(0), Ok(0));
            m.protected(0, &[]);
            m
        } else {
            machine()
        };
        smi(&m, 0);
        m.does(0, |_| ());
        m.run_out(0);
        // Some words, or all, or one bit.
        let places = (0..64).filter(|_| case % 7 == 0 || random.below(8) == 0).collect::<Vec<u64>>();
        for n in places {
            let at = 0xfe00 + 8 * n;
            let value = match random.below(4) {
                0 => random.any(),
                1 => saved(&m, at) ^ 1 << random.below(64),
                2 => 0,
                _ => random.any() & random.any() & 0xffff_ffff,
            };
            save(&m, at, value);
        }
        rsm(&m);
        m.sim.step(0, |_| (code::INTR, 0, 0));
        let _ = m.run(0);
        let _: kvm_sregs = sregs(&m);
        let e = events(&m, 0);
        assert_eq!(e.smi.smm, 0, "outside whatever came of it");
        // And on, as a VMM that resets it would.
        smi(&m, 0);
        let _ = m.run(0);
        m.end();
    }
}

#[test]
fn moved_while_inside() {
    let from = machine();
    from.with_regs(0, |r| r.rbx = 99);
    smi(&from, 0);
    in_handler(&from);
    from.run_out(0);
    smi(&from, 0);
    let to = machine();
    let (regs, s, mut e) = (from.regs(0), sregs(&from), events(&from, 0));
    assert_eq!((e.smi.smm, e.smi.pending), (1, 1));
    e.flags |= KVM_VCPUEVENT_VALID_SMM;
    to.set_regs(0, &regs);
    assert_eq!(to.vcpu_with(0, KVM_SET_SREGS, &s), Ok(0));
    assert_eq!(to.set_msr(0, MSR_SMBASE, from.msr(0, MSR_SMBASE)), Ok(1));
    assert_eq!(to.vcpu_with(0, KVM_SET_VCPU_EVENTS, &e), Ok(0));
    for n in 0..64 {
        save(&to, 0xfe00 + 8 * n, saved(&from, 0xfe00 + 8 * n));
    }
    to.load(0, AREA + 0x178, saved(&from, 0xff78));
    in_handler(&to);
    to.run_out(0);
    save(&to, 0xffe0, 98); // RBX
    rsm(&to);
    // The one that waited.
    in_handler(&to);
    to.run_out(0);
    rsm(&to);
    to.run_out(0);
    assert_eq!((to.regs(0).rbx, to.regs(0).rip), (98, CODE));
}

#[test]
fn both_spaces_have_a_log() {
    let m = machine();
    assert_eq!(m.region(SMM | 1, KVM_MEM_LOG_DIRTY_PAGES, SMBASE, 0x2_0000, SMRAM_HVA), Ok(0));
    smi(&m, 0);
    m.store(0, SMBASE + 0x5000, 1);
    m.run_out(0);
    let log = |slot| {
        let request = kvm_dirty_log {
            slot,
            __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 { dirty_bitmap: tests::scenario::DATA as *mut _ },
            ..Default::default()
        };
        let done = m.vm_with(KVM_GET_DIRTY_LOG, &request);
        done.map(|_| m.get_at::<u64>(tests::scenario::DATA))
    };
    assert_eq!(log(SMM | 1), Ok(1 << 5 | 1 << 15), "what the guest wrote, and its saved state");
    assert_eq!(log(1), Err(ENOENT));
}
