//! Hardware task switches, as the processor reports them, between tasks of 16 and 32 bits.

use abi::uapi::ioctl::*;
use abi::uapi::run::exit::MMIO_DATA;
use kvm_bindings::*;
use sim::arch::exit::code;
use sim::arch::{EventInj, EventType};
use sim::host::{Cpu, Errno};
use sim::{Page, SimCpu};
use tests::scenario::{CODE, Left, MMIO, Machine, RAM_HVA};

pub(crate) const GDT: u64 = 0x5000;
const IDT: u64 = 0x5800;
pub(crate) const OLD: u64 = 0x6000;
pub(crate) const NEW: u64 = 0x6100;
/// Selectors of the TSSs.
pub(crate) const OLD_TSS: u16 = 0x18;
pub(crate) const NEW_TSS: u16 = 0x20;
const NEW_TSS16: u16 = 0x28;
pub(crate) const BY_IRET: u64 = 1 << 36;
const BY_JUMP: u64 = 1 << 38;
const EXC: Option<EventType> = Some(EventType::Exception);

pub(crate) fn descriptor(base: u64, limit: u64, access: u64, flags: u64) -> u64 {
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | base >> 24 << 56
}

/// 32-bit protected mode with the GDT and a current task.
pub(crate) fn machine(code: &[u8]) -> Machine {
    let m = Machine::new();
    m.protected(0, code);
    let gdt = [
        0,
        descriptor(0, 0xf_ffff, 0x9b, 0xc),
        descriptor(0, 0xf_ffff, 0x93, 0xc),
        descriptor(OLD, 0x67, 0x8b, 0),
        descriptor(NEW, 0x67, 0x89, 0),
        descriptor(NEW, 0x2b, 0x81, 0),
        descriptor(NEW, 0x66, 0x89, 0),     // 0x30: too short
        descriptor(NEW, 0x67, 0x09, 0),     // 0x38: not present
        descriptor(0, 0xf_ffff, 0xfa, 0xc), // 0x40: code of ring 3, not accessed
        descriptor(0, 0xf_ffff, 0xf2, 0xc), // 0x48: data of ring 3, not accessed
        descriptor(0x7800, 0x7f, 0x82, 0),  // 0x50: LDT
        descriptor(0, 0xf_ffff, 0x12, 0xc), // 0x58: data, not present
    ];
    gdt.iter().enumerate().for_each(|(n, d)| m.write_ram(GDT + 8 * n as u64, &d.to_le_bytes()));
    let mut s: kvm_sregs = m.vcpu_get(0, KVM_GET_SREGS);
    (s.gdt.base, s.gdt.limit) = (GDT, 8 * gdt.len() as u16 - 1);
    (s.idt.base, s.idt.limit) = (IDT, 0x7ff);
    s.tr = kvm_segment { base: OLD, limit: 0x67, selector: OLD_TSS, type_: 11, present: 1, ..Default::default() };
    assert_eq!(m.vcpu_with(0, KVM_SET_SREGS, &s), Ok(0));
    m
}

/// The TSS of a 32-bit task of ring 0 at 0x9000.
pub(crate) fn task32() -> [u32; 26] {
    let mut t = [0; 26];
    (t[8], t[9]) = (0x9000, 0x202);
    for n in 0..8 {
        t[10 + n] = 0x1000_0000 + n as u32;
    }
    t[14] = 0x7800; // ESP
    (t[18], t[19], t[20], t[21], t[22], t[23]) = (16, 8, 16, 16, 0, 16);
    t
}

pub(crate) fn put32(m: &Machine, t: &[u32; 26]) {
    let bytes: Vec<u8> = t.iter().flat_map(|w| w.to_le_bytes()).collect();
    m.write_ram(NEW, &bytes);
}

pub(crate) fn switch(m: &Machine, selector: u16, info2: u64, event: Option<EventInj>) {
    m.sim.step(0, move |c| {
        c.vmcb().exit_int_info = event.unwrap_or(EventInj::NONE);
        (code::TASK_SWITCH, selector.into(), info2)
    });
}

pub(crate) fn then(m: &Machine, f: impl FnMut(&mut SimCpu) + Send + 'static) {
    m.does(0, f);
    m.run_out(0);
}

pub(crate) fn events(m: &Machine) -> Vec<(u8, Option<EventType>, Option<u32>)> {
    m.injected(0).iter().map(|e| (e.vector(), e.kind(), e.error_code())).collect()
}

pub(crate) fn word(m: &Machine, at: u64) -> u32 {
    m.read_ram::<u32>(at)
}

/// Type and S of a descriptor.
fn kind(m: &Machine, selector: u16) -> u64 {
    m.read_ram::<u64>(GDT + u64::from(selector)) >> 40 & 0x1f
}

#[test]
fn a_call_nests() {
    let m = machine(&[0x9a, 0, 0, 0, 0, 0x20, 0]); // lcall 0x20:0
    put32(&m, &task32());
    m.with_regs(0, |r| (r.rax, r.rdi, r.rflags) = (0x1111, 0x7777, 0x246));
    switch(&m, NEW_TSS, 0, None);
    then(&m, |c| {
        let g = c.guest();
        assert_eq!((g.rip, g.rsp, g.rflags), (0x9000, 0x7800, 0x4202), "NT is set");
        assert_eq!((g.tr.selector, g.tr.base, g.tr.attrib.0), (NEW_TSS, NEW, 0x8b));
        assert_eq!((g.cs.selector, g.ss.selector, g.gs.selector, g.fs.attrib.0), (8, 16, 16, 0));
        assert_eq!(g.cr0 & 8, 8, "CR0.TS");
        assert_eq!((c.gpr(0), c.gpr(7)), (0x1000_0000, 0x1000_0007));
    });
    assert_eq!((word(&m, OLD + 0x20), word(&m, OLD + 0x24)), (CODE as u32 + 7, 0x246));
    assert_eq!((word(&m, OLD + 0x28), word(&m, OLD + 0x44), word(&m, OLD + 0x4c)), (0x1111, 0x7777, 8));
    assert_eq!(word(&m, NEW) & 0xffff, OLD_TSS.into(), "the link back");
    assert_eq!((kind(&m, OLD_TSS), kind(&m, NEW_TSS)), (11, 11), "both are busy");
    // And back, with IRET.
    m.write_ram(0x9000, &[0xcf]);
    switch(&m, OLD_TSS, BY_IRET, None);
    then(&m, |c| {
        assert_eq!((c.guest().rip, c.guest().rflags, c.gpr(0)), (CODE + 7, 0x246, 0x1111));
        assert_eq!(c.guest().tr.selector, OLD_TSS);
    });
    assert_eq!(word(&m, NEW + 0x24), 0x202, "NT is not kept");
    assert_eq!((kind(&m, OLD_TSS), kind(&m, NEW_TSS)), (11, 9));
    assert_eq!(events(&m), []);
}

#[test]
fn a_jump_leaves_the_task() {
    let m = machine(&[0xea, 0, 0, 0, 0, 0x20, 0]);
    put32(&m, &task32());
    m.with_regs(0, |r| r.rflags = 0x4002);
    switch(&m, NEW_TSS, BY_JUMP, None);
    then(&m, |c| assert_eq!((c.guest().rip, c.guest().rflags), (0x9000, 0x202)));
    assert_eq!((kind(&m, OLD_TSS), kind(&m, NEW_TSS), word(&m, NEW)), (9, 11, 0));
    assert_eq!(word(&m, OLD + 0x24), 0x4002, "its flags are as they were");
}

#[test]
fn sixteen_bits() {
    let m = machine(&[0x9a, 0, 0, 0, 0, 0x28, 0]);
    let mut t = [0u16; 22];
    (t[7], t[8], t[9], t[13]) = (0x9000, 0x202, 0xaaaa, 0x7800);
    (t[17], t[18], t[19], t[20], t[21]) = (16, 8, 16, 16, 0x50);
    m.write_ram(NEW, &t.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>());
    m.with_regs(0, |r| r.rax = 0x1234_5678);
    switch(&m, NEW_TSS16, 0, None);
    then(&m, |c| {
        assert_eq!((c.guest().rip, c.gpr(0), c.gpr(4), c.guest().rflags), (0x9000, 0xaaaa, 0x7800, 0x4202));
        assert_eq!((c.guest().ldtr.selector, c.guest().ldtr.base), (0x50, 0x7800));
        assert_eq!(c.guest().tr.attrib.0, 0x83);
    });
    assert_eq!(word(&m, OLD + 0x28), 0x1234_5678, "the old task is one of 32 bits");
    m.write_ram(0x9000, &[0xcf]);
    switch(&m, OLD_TSS, BY_IRET, None);
    then(&m, |c| assert_eq!((c.guest().rip, c.gpr(0)), (CODE + 7, 0x1234_5678)));
    assert_eq!(word(&m, NEW + 0x12) & 0xffff, 0xaaaa);
    assert_eq!(word(&m, NEW + 0x2a) & 0xffff, 0x50, "the LDT is not written");
}

#[test]
fn a_task_of_ring_3_and_one_of_virtual_8086() {
    let m = machine(&[0x9a, 0, 0, 0, 0, 0x20, 0]);
    let mut t = task32();
    (t[18], t[19], t[20], t[21], t[23]) = (0x4b, 0x43, 0x4b, 0x4b, 0);
    put32(&m, &t);
    switch(&m, NEW_TSS, 0, None);
    then(&m, |c| assert_eq!((c.guest().cpl, c.guest().cs.selector, c.guest().ss.attrib.0), (3, 0x43, 0xcf3)));
    assert_eq!((kind(&m, 0x40), kind(&m, 0x48)), (0x1b, 0x13), "accessed");

    let m = machine(&[0x9a, 0, 0, 0, 0, 0x20, 0]);
    (t[9], t[19], t[20]) = (0x2_0202, 0xf000, 0x3000);
    put32(&m, &t);
    switch(&m, NEW_TSS, 0, None);
    then(&m, |c| {
        let g = c.guest();
        assert_eq!((g.cpl, g.cs.base, g.cs.limit, g.ss.base), (3, 0xf_0000, 0xffff, 0x3_0000));
        assert_eq!((g.cs.attrib.0, g.rflags & 1 << 17), (0xf3, 1 << 17));
    });
}

#[test]
fn exceptions_through_a_task_gate() {
    let m = machine(&[0x90]);
    put32(&m, &task32());
    let fault = EventInj::new(EventType::Exception, 13, Some(0x18));
    switch(&m, NEW_TSS, 1 << 44 | 0x18, Some(fault));
    then(&m, |c| assert_eq!((c.guest().rip, c.guest().rsp, c.injected.len()), (0x9000, 0x77fc, 0)));
    assert_eq!((word(&m, 0x77fc), word(&m, OLD + 0x20)), (0x18, CODE as u32), "it is the instruction's fault");

    // An NMI: no code, and masked until the task returns.
    let m = machine(&[0x90]);
    put32(&m, &task32());
    switch(&m, NEW_TSS, 0, Some(EventInj::new(EventType::Nmi, 2, None)));
    then(&m, |c| assert_eq!((c.guest().rsp, c.injected.len()), (0x7800, 0)));

    // INT goes on after itself, if its gate is open to it.
    for (dpl, open) in [(3, true), (0, false)] {
        let m = machine(&[0xcd, 0x40]);
        put32(&m, &task32());
        m.write_ram(IDT + 8 * 0x40, &((0x85 | dpl << 5) << 40 | u64::from(NEW_TSS) << 16).to_le_bytes());
        m.inside(0, |c| {
            let g = c.core.cpu.guest();
            (g.cpl, g.ss.attrib.0, g.cs.attrib.0) = (3, 0xcf3, 0xcfb);
        });
        switch(&m, NEW_TSS, 0, Some(EventInj::new(EventType::Soft, 0x40, None)));
        then(&m, |_| ());
        if open {
            assert_eq!((word(&m, OLD + 0x20), events(&m)), (CODE as u32 + 2, vec![]));
        } else {
            assert_eq!((events(&m), m.regs(0).rip), (vec![(13, EXC, Some(0x40 << 3 | 2))], CODE));
        }
    }
}

#[test]
fn faults_of_the_old_task_change_nothing() {
    for (selector, info2, vector, error) in [
        (0x30, 0, 10, 0x30),          // too short
        (0x38, 0, 11, 0x38),          // not present
        (OLD_TSS, 0, 13, 0x18),       // busy
        (NEW_TSS, BY_IRET, 10, 0x20), // not busy
        (0x10, BY_JUMP, 13, 0x10),    // no TSS
        (0x24, BY_JUMP, 13, 0x24),    // in an LDT
        (0xfff8, 0, 13, 0xfff8),      // beyond the table
    ] {
        let m = machine(&[0x9a, 0, 0, 0, 0, 0x20, 0]);
        put32(&m, &task32());
        let before = [m.read_ram::<u64>(GDT + 0x18), m.read_ram::<u64>(GDT + 0x20), m.read_ram::<u64>(OLD + 0x20)];
        switch(&m, selector, info2, None);
        then(&m, |c| assert_eq!((c.guest().rip, c.guest().tr.selector), (CODE, OLD_TSS)));
        assert_eq!(events(&m), [(vector, EXC, Some(error))], "{selector:#x}");
        let after = [m.read_ram::<u64>(GDT + 0x18), m.read_ram::<u64>(GDT + 0x20), m.read_ram::<u64>(OLD + 0x20)];
        assert_eq!(before, after);
    }
}

#[test]
fn faults_of_the_new_task_are_its_own() {
    for (index, selector, vector) in
        [(20, 0x58, 12), (21, 0x58, 11), (21, 0x18, 10), (20, 8, 10), (19, 0, 10), (19, 16, 10), (24, 0x18, 10)]
    {
        let m = machine(&[0x9a, 0, 0, 0, 0, 0x20, 0]);
        let mut t = task32();
        t[index] = selector;
        put32(&m, &t);
        switch(&m, NEW_TSS, 0, None);
        then(&m, |c| assert_eq!((c.guest().rip, c.guest().tr.selector), (0x9000, NEW_TSS)));
        assert_eq!(events(&m), [(vector, EXC, Some(selector & !3))], "field {index}");
    }
    // The T bit traps.
    let m = machine(&[0x9a, 0, 0, 0, 0, 0x20, 0]);
    let mut t = task32();
    t[25] = 1;
    put32(&m, &t);
    switch(&m, NEW_TSS, 0, None);
    then(&m, |_| ());
    assert_eq!(events(&m), [(1, EXC, None)]);
    assert_eq!(m.vcpu_get::<kvm_debugregs>(0, KVM_GET_DEBUGREGS).dr6 & 0x8000, 0x8000);
    // After what led to the switch has been delivered, if that is an exception.
    let m = machine(&[0x90]);
    put32(&m, &t);
    switch(&m, NEW_TSS, 1 << 44, Some(EventInj::new(EventType::Exception, 8, Some(0))));
    then(&m, |c| assert_eq!((c.guest().rip, c.guest().rsp), (0x9000, 0x77fc)));
    assert_eq!(events(&m), [(1, EXC, None)]);
    // The fault of a switch that an exception caused is a double fault.
    let m = machine(&[0x90]);
    switch(&m, 0x30, 1 << 44, Some(EventInj::new(EventType::Exception, 13, Some(0))));
    then(&m, |_| ());
    assert_eq!(events(&m), [(8, EXC, Some(0))]);
}

/// A TSS and a GDT that user code cannot reach are reached by the processor all the same (APM vol. 2, 5.6.1).
#[test]
fn an_nmi_meets_a_task_gate_in_user_code_with_paging() {
    const TABLE: u64 = 0xa000;
    const USER_CS: u32 = 0x43;
    const USER_SS: u32 = 0x4b;
    for user_task in [false, true] {
        let m = machine(&[0x90]);
        let mut t = task32();
        t[7] = TABLE as u32;
        if user_task {
            // Descriptors that are not marked as accessed yet.
            (t[19], t[20]) = (USER_CS, USER_SS);
            (t[18], t[21], t[23]) = (USER_SS, USER_SS, USER_SS);
        }
        put32(&m, &t);
        m.write_ram(TABLE, &0x83u32.to_le_bytes()); // 4 MiB, the supervisor's
        let mut s: kvm_sregs = m.vcpu_get(0, KVM_GET_SREGS);
        (s.cr0, s.cr3, s.cr4) = (s.cr0 | 1 << 31, TABLE, s.cr4 | 1 << 4);
        assert_eq!(m.vcpu_with(0, KVM_SET_SREGS, &s), Ok(0));
        m.inside(0, |c| {
            let g = c.core.cpu.guest();
            (g.cpl, g.ss.attrib.0, g.cs.attrib.0) = (3, 0xcf3, 0xcfb);
        });
        switch(&m, NEW_TSS, 0, Some(EventInj::new(EventType::Nmi, 2, None)));
        then(&m, |c| assert_eq!((c.guest().rip, c.guest().tr.selector), (0x9000, NEW_TSS)));
        assert_eq!(events(&m), []);
        assert_eq!(word(&m, OLD + 0x20), CODE as u32, "the old task is saved");
        assert_eq!(kind(&m, USER_CS as u16 & !7) & 1, user_task.into(), "and descriptors are marked");
    }
}

/// The same for the accessed bit of a descriptor in a GDT that user code cannot reach.
#[test]
fn user_code_loads_a_segment_from_a_device() {
    const TABLE: u64 = 0xa000;
    const ALIAS: u64 = 0x40_0000;
    let m = machine(&[0x8e, 0x1b]); // mov ds, [ebx]
    // Pages of 4 MiB: the lowest is the supervisor's, and has an alias for user code.
    m.write_ram(TABLE, &[0x83u32, 0x87].map(u32::to_le_bytes).concat());
    m.write_ram(TABLE + (MMIO >> 22) * 4, &(MMIO as u32 & !0x3f_ffff | 0x87).to_le_bytes());
    let mut s: kvm_sregs = m.vcpu_get(0, KVM_GET_SREGS);
    (s.cr0, s.cr3, s.cr4) = (s.cr0 | 1 << 31, TABLE, s.cr4 | 1 << 4);
    assert_eq!(m.vcpu_with(0, KVM_SET_SREGS, &s), Ok(0));
    m.with_regs(0, |r| (r.rip, r.rbx) = (ALIAS + CODE, MMIO));
    m.inside(0, |c| {
        let g = c.core.cpu.guest();
        (g.cpl, g.ss.attrib.0, g.cs.attrib.0) = (3, 0xcf3, 0xcfb);
    });
    assert_eq!(kind(&m, 0x48), 0x12);
    m.npf(0, MMIO, false);
    assert_eq!(m.run(0), Ok(Left::Mmio { gpa: MMIO, write: false, data: vec![0; 2] }));
    m.page(0).write(MMIO_DATA, &[0x4b, 0]);
    then(&m, |c| assert_eq!((c.guest().rip, c.guest().ds.selector), (ALIAS + CODE + 2, 0x4b)));
    assert_eq!((events(&m), kind(&m, 0x48)), (vec![], 0x13));
}

/// Pages of 4 MiB, one to one, whose table is at `TABLE`, in the old task and the new one.
fn page(m: &Machine, table: u64) {
    let mut t = task32();
    t[7] = table as u32;
    put32(m, &t);
    m.write_ram(table, &0x83u32.to_le_bytes());
    let mut s: kvm_sregs = m.vcpu_get(0, KVM_GET_SREGS);
    (s.cr0, s.cr3, s.cr4) = (s.cr0 | 1 << 31, table, s.cr4 | 1 << 4);
    assert_eq!(m.vcpu_with(0, KVM_SET_SREGS, &s), Ok(0));
}

/// A switch cannot begin anew when a part of it is done: no signal ends its waits, for a table of the guest's or for a stack.
#[test]
fn a_signal_does_not_end_a_switch() {
    const TABLE: u64 = 0xa000;
    let stack = 0x7000;
    for page_that_waits in [TABLE, stack] {
        let m = machine(&[0x90]);
        page(&m, TABLE);
        m.host_changes(page_that_waits, 1, Page::Missing);
        let sim = m.sim.clone();
        m.sim.during_wait(move || sim.set_page(RAM_HVA + page_that_waits, Page::Writable));
        switch(&m, NEW_TSS, 1 << 44 | 0x18, Some(EventInj::new(EventType::Exception, 13, Some(0x18))));
        then(&m, |c| assert_eq!((c.guest().rip, c.guest().rsp), (0x9000, 0x77fc)));
        assert_eq!((word(&m, 0x77fc), events(&m)), (0x18, vec![]), "{page_that_waits:#x}");
    }
}

/// The VMM's memory fails: it is told so, and once it has mended that the event comes again, and with it the switch.
#[test]
fn a_switch_begins_anew_when_the_vmm_has_mended_its_memory() {
    let fault = EventInj::new(EventType::Exception, 13, Some(0x18));
    let nmi = EventInj::new(EventType::Nmi, 2, None);
    for (event, info2) in [(fault, 1 << 44 | 0x18), (nmi, 0)] {
        let m = machine(&[0x90]);
        put32(&m, &task32());
        let tasks = OLD & !0xfff;
        m.host_changes(tasks, 1, Page::Absent);
        switch(&m, NEW_TSS, info2, Some(event));
        assert_eq!(m.run(0), Err((Errno::EFAULT, Left::MemoryFault { gpa: tasks })));
        assert_eq!(m.regs(0).rip, CODE);
        m.host_changes(tasks, 1, Page::Writable);
        switch(&m, NEW_TSS, info2, Some(event));
        then(&m, |c| assert_eq!(c.guest().rip, 0x9000));
        assert_eq!(events(&m), [(event.vector(), event.kind(), event.error_code())], "it was delivered again");
    }
}

/// The old task's TSS is a device's: it gets what is written there.
#[test]
fn the_old_task_is_put_away_in_a_device() {
    let m = machine(&[0xea, 0, 0, 0, 0, 0x20, 0]);
    put32(&m, &task32());
    let mut s: kvm_sregs = m.vcpu_get(0, KVM_GET_SREGS);
    s.tr.base = MMIO;
    assert_eq!(m.vcpu_with(0, KVM_SET_SREGS, &s), Ok(0));
    m.with_regs(0, |r| r.rflags = 0x4002);
    switch(&m, NEW_TSS, BY_JUMP, None);
    for (at, value) in [(0x20, CODE as u32 + 7), (0x24, 0x4002)] {
        let data = value.to_le_bytes().to_vec();
        assert_eq!(m.run(0), Ok(Left::Mmio { gpa: MMIO + at, write: true, data }));
    }
    for at in (0x28..0x60).step_by(4) {
        assert!(matches!(m.run(0), Ok(Left::Mmio { gpa, write: true, .. }) if gpa == MMIO + at), "{at:#x}");
    }
    then(&m, |c| assert_eq!(c.guest().rip, 0x9000));
}
