//! The assembly by itself: registers, order, faults.

use crate::model::{
    hardware::{BUG, Bench, Op, hw},
    kernel::{cpu_data, set_host_spec_ctrl, set_rebooting},
};
use crate::{SPEC_CTRL_NOT_INTERCEPTED, VcpuCtx, hsave_vcpu_run};
use arch::{HostPa, Vmcb, Zero, msr::SPEC_CTRL};
use std::{boxed::Box, vec::Vec};

core::arch::global_asm!(
    // test_run(vcpu, flags, out, entry): calls the assembly at `entry` with a pattern in each register that a callee preserves and
    // stores what is in them afterwards.
    ".pushsection .text",
    "test_run:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "push rdx",
    "mov [rdx + 48], rsp",
    "mov rbx, 0x1b1b",
    "mov rbp, 0x1d1d",
    "mov r12, 0x1212",
    "mov r13, 0x1313",
    "mov r14, 0x1414",
    "mov r15, 0x1515",
    "call rcx",
    "mov rdx, [rsp]",
    "sub [rdx + 48], rsp", // 0 if the stack is where it was.
    "pop rdx",
    "mov [rdx], rbx",
    "mov [rdx + 8], rbp",
    "mov [rdx + 16], r12",
    "mov [rdx + 24], r13",
    "mov [rdx + 32], r14",
    "mov [rdx + 40], r15",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    ".popsection",
);
/// A variant of the world switch.
pub type Entry = unsafe extern "C" fn(*mut VcpuCtx, u32);

// SAFETY: defined by the assembly above, with this signature.
unsafe extern "C" {
    fn test_run(vcpu: *mut VcpuCtx, flags: u32, out: *mut [u64; 7], entry: Entry);
}

pub struct World {
    pub bench: Bench,
    pub vcpu: VcpuCtx,
    pub vmcb: Box<Vmcb>,
    /// The host save area.
    pub host: Box<Vmcb>,
}

impl World {
    pub fn new() -> Self {
        let bench = Bench::new();
        let vmcb = Box::new(Vmcb::ZERO);
        let pa = HostPa((&raw const *vmcb).expose_provenance() as u64);
        let mut vcpu = VcpuCtx { vmcb01: pa, vmcb: pa, ..Default::default() };
        for (n, r) in vcpu.regs.iter_mut().enumerate() {
            *r = guest_in(n);
        }
        let mut host = Box::new(Vmcb::ZERO);
        hw().system.save(&mut host.save);
        let area = (&raw mut *host).expose_provenance();
        // SAFETY: one test at a time.
        unsafe {
            (*cpu_data(0)).hsave_pa.set(HostPa(area as u64));
            (*cpu_data(0)).hsave_va.set(area);
        }
        (hw().gif, hw().interrupts) = (false, true);
        Self { bench, vcpu, vmcb, host }
    }

    pub fn run(&mut self, flags: u32) -> Vec<Op> {
        self.run_with(hsave_vcpu_run, flags)
    }

    pub fn run_with(&mut self, entry: Entry, flags: u32) -> Vec<Op> {
        let mut after = [0; 7];
        // SAFETY: the contract of the assembly, as far as the model goes.
        unsafe { test_run(&mut self.vcpu, flags, &mut after, entry) };
        assert_eq!(after[..6], preserved(), "callee-saved registers");
        assert_eq!(after[6], 0, "the stack");
        self.bench.trace()
    }

    pub fn host(&self) -> u64 {
        (&raw const *self.host).expose_provenance() as u64
    }

    pub fn pa(&self) -> u64 {
        self.vcpu.vmcb.0
    }
}

/// Register `n` as the guest finds it, and as it leaves it.
pub fn guest_in(n: usize) -> u64 {
    0x1111_0000_0000_0000 | n as u64
}
pub fn guest_out(n: usize) -> u64 {
    0xeeee_0000_0000_0000 | n as u64
}

/// What `test_run` puts into RBX, RBP and R12 to R15.
pub fn preserved() -> [u64; 6] {
    [0x1b1b, 0x1d1d, 0x1212, 0x1313, 0x1414, 0x1515]
}

fn is_return(op: &Op) -> bool {
    matches!(op, Op::Return(_))
}

#[test]
fn the_order_is_the_one_of_the_design() {
    let mut w = World::new();
    let trace = w.run(0);
    let (ret, before) = trace.split_last().expect("a trace");
    let pa = w.pa();
    let order = [
        Op::Vmload(pa),
        Op::Piece("entry"),
        Op::Vmrun(pa),
        Op::Vmsave(pa),
        Op::Vmload(w.host()),
        Op::Piece("rsb"),
        Op::Piece("untrain"),
    ];
    assert_eq!(before, order);
    assert!(is_return(ret));
}

#[test]
fn every_guest_register_goes_in_and_comes_back() {
    let mut w = World::new();
    w.vmcb.save.rax = guest_in(0);
    hw().guest = Box::new(|regs, _| {
        for n in (0..16).filter(|n| *n != 4) {
            assert_eq!(regs[n], guest_in(n), "register {n} in the guest");
            regs[n] = guest_out(n);
        }
    });
    w.run(0);
    for n in (1..16).filter(|n| *n != 4) {
        assert_eq!(w.vcpu.regs[n], guest_out(n), "register {n} after the exit");
    }
    assert_eq!(w.vmcb.save.rax, guest_out(0));
}

#[test]
fn no_guest_value_is_in_a_register_at_the_first_return() {
    let mut w = World::new();
    hw().guest = Box::new(|regs, _| *regs = core::array::from_fn(guest_out));
    let trace = w.run(SPEC_CTRL_NOT_INTERCEPTED);
    let Some(Op::Return(regs)) = trace.last() else { panic!("no return: {trace:?}") };
    for n in [0, 1, 2, 6, 7, 8, 9, 10, 11] {
        assert_eq!(regs[n], 0, "register {n}");
    }
    assert_eq!([3, 5, 12, 13, 14, 15].map(|n: usize| regs[n]), preserved());
}

#[test]
fn spec_ctrl_is_written_only_where_it_differs() {
    let mut w = World::new();
    set_host_spec_ctrl(0, 1);
    w.vcpu.spec_ctrl = 1;
    let msr = |op: &Op| matches!(op, Op::Wrmsr(..) | Op::Rdmsr(_));
    assert!(!w.run(0).iter().any(msr));

    w.vcpu.spec_ctrl = 0x5_0000_0004;
    let trace = w.run(0);
    let at = |op: Op| trace.iter().position(|o| *o == op).expect("in the trace");
    // The guest's before VMLOAD, because the comparison needs GS; the host's after the return stack is clean.
    assert!(at(Op::Wrmsr(SPEC_CTRL, 0x5_0000_0004)) < at(Op::Vmload(w.pa())));
    assert!(at(Op::Piece("rsb")) < at(Op::Wrmsr(SPEC_CTRL, 1)));
    assert!(at(Op::Wrmsr(SPEC_CTRL, 1)) < at(Op::Piece("untrain")));
    assert_eq!(trace.iter().filter(|o| msr(o)).count(), 2);
}

#[test]
fn a_guest_that_may_write_spec_ctrl_keeps_what_it_wrote() {
    let mut w = World::new();
    hw().guest = Box::new(|_, _| {
        hw().msrs.insert(SPEC_CTRL, 0x7_0000_0006);
    });
    let trace = w.run(SPEC_CTRL_NOT_INTERCEPTED);
    assert_eq!(w.vcpu.spec_ctrl, 0x7_0000_0006);
    let at = |op: Op| trace.iter().position(|o| *o == op).expect("in the trace");
    // Read before the host's value is written.
    assert!(at(Op::Rdmsr(SPEC_CTRL)) < at(Op::Wrmsr(SPEC_CTRL, 0)));
    assert_eq!(hw().msrs[&SPEC_CTRL], 0);
}

#[test]
fn a_guest_in_a_guest_runs_on_its_own_vmcb_with_the_vcpus_segments() {
    let mut w = World::new();
    let second = Box::new(Vmcb::ZERO);
    let (own, other) = (w.pa(), (&raw const *second).expose_provenance() as u64);
    w.vcpu.vmcb = HostPa(other);
    let trace = w.run(0);
    assert!(trace.contains(&Op::Vmrun(other)) && !trace.contains(&Op::Vmrun(own)));
    assert!(trace.contains(&Op::Vmload(own)) && trace.contains(&Op::Vmsave(own)));
}

#[test]
fn faults_are_tolerated_while_the_machine_reboots() {
    let mut w = World::new();
    set_rebooting(true);
    hw().svm_off = true;
    let trace = w.run(0);
    let fixups = trace.iter().filter(|o| **o == Op::Fixup).count();
    assert_eq!(fixups, 4, "VMLOAD, VMRUN, VMSAVE, VMLOAD: {trace:?}");
    assert_eq!(w.vcpu.faulted, 1);
    // The registers came through, though the guest never ran.
    assert_eq!(w.vcpu.regs[15], guest_in(15));
}

/// Does `f`, in a child process, end at UD2?
pub fn is_a_bug(f: impl FnOnce()) -> bool {
    ends(f) == Some(BUG)
}

/// The status that the child process ends with in which `f` runs: [`BUG`], [`FAULT`](crate::model::hardware::FAULT), or 1
/// where it comes back.
pub fn ends(f: impl FnOnce()) -> Option<i32> {
    // SAFETY: the child only runs the assembly and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: the status says it all.
        unsafe { libc::close(2) };
        f();
        // SAFETY: ends the child.
        unsafe { libc::_exit(1) }
    }
    let mut status = 0;
    // SAFETY: our child.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status))
}

#[test]
fn any_other_fault_is_a_bug() {
    let mut w = World::new();
    hw().svm_off = true;
    assert!(is_a_bug(|| {
        w.run(0);
    }));
}

#[test]
fn the_text_is_aligned_and_padded_for_the_kernel() {
    let entry = hsave_vcpu_run as *const () as *const u8;
    assert_eq!(entry as usize % 16, 0);
    // SAFETY: the padding is part of the text.
    let padding = unsafe { core::slice::from_raw_parts(entry.sub(16), 20) };
    assert_eq!(padding[..16], [0x90; 16]);
    assert_eq!(padding[16..], [0xf3, 0x0f, 0x1e, 0xfa], "ENDBR64");
}
