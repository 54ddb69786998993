//! A whole run, from interrupts off to interrupts on.

use crate::model::{
    hardware::{Bench, Op, hw},
    kernel::{Handler, Kernel, cpu_data, script, set_host_spec_ctrl},
};
use crate::{Machine, Svm};
use arch::{
    CleanBits, EventInj, EventType, Exit, HostPa, Intercepts, NestedRoot,
    exit::code,
    msr,
    vmcb::tlb_control::{DO_NOTHING, FLUSH_ALL_ASID, FLUSH_ASID},
};
use core::ptr::NonNull;
use host::{Cpu, CpuConfig, Errno, Request, VcpuRequests};
use std::{boxed::Box, vec::Vec};

pub const ROOT: CpuConfig = CpuConfig { root: NestedRoot::new(HostPa(0x5000)), pause_threshold: 128 };

/// A machine with both CPUs on. `svm` are the bits of CPUID Fn8000_000A_EDX beside nested paging.
pub fn machine(bench: &Bench, svm: u32) -> &'static Machine<Kernel> {
    script(|s| s.cpuid.get_mut(&(0x8000_000a, 0)).expect("scripted")[3] |= svm);
    let m: &'static Machine<Kernel> = Box::leak(Box::new(Machine::new().expect("a machine with SVM")));
    for cpu in [1, 0] {
        bench.move_to(cpu);
        let data = NonNull::new(cpu_data(cpu)).expect("an address");
        // SAFETY: this CPU's data, not in use.
        unsafe { Machine::<Kernel>::prepare_cpu(data) }.expect("pages");
        m.enable().expect("SVM is free");
    }
    bench.trace();
    m
}

pub fn last_entry() -> (CleanBits, u8, u32) {
    *hw().entries.last().expect("an entry")
}

fn host_areas(trace: &[Op]) -> Vec<u64> {
    let guest = |pa: u64| trace.contains(&Op::Vmrun(pa));
    trace
        .iter()
        .filter_map(|op| if let Op::Vmsave(pa) = op { Some(*pa) } else { None })
        .filter(|pa| !guest(*pa))
        .collect()
}

#[test]
fn one_run_from_interrupts_off_to_interrupts_on() {
    let b = Bench::new();
    let mut cpu = Svm::new(machine(&b, 0), &ROOT).unwrap();
    cpu.begin();
    let requests = VcpuRequests::new();
    hw().guest = Box::new(|_, vmcb| vmcb.control.exit_code = code::INTR);
    assert_eq!(cpu.enter(&requests, &mut Handler::none()), Exit::Intr);
    let trace = b.trace();
    let kept = |op: &&Op| matches!(op, Op::Call(_) | Op::Clgi | Op::Stgi | Op::Sti | Op::Cli | Op::Vmrun(_));
    let order: Vec<Op> = trace.iter().filter(kept).copied().collect();
    let vmcb = order.iter().copied().find(|o| matches!(o, Op::Vmrun(_))).unwrap();
    assert_eq!(
        order,
        [
            Op::Call("may_enter"),
            Op::Call("guest_barrier"),
            Op::Clgi,
            Op::Call("guest_enter"),
            Op::Sti,
            vmcb,
            Op::Cli,
            Op::Call("guest_exit"),
            Op::Call("guest_interrupted"),
            Op::Stgi,
            Op::Call("guest_done, take the interrupt"),
        ]
    );
    assert!(hw().gif && hw().interrupts && !requests.needs_ipi());
}

#[test]
fn the_profiler_learns_where_an_interrupt_or_nmi_found_the_guest() {
    let b = Bench::new();
    let mut cpu = Svm::new(machine(&b, 0), &ROOT).unwrap();
    cpu.begin();
    let requests = VcpuRequests::new();
    let mut told = |exit, cpl| {
        hw().guest = Box::new(move |_, vmcb| (vmcb.control.exit_code, vmcb.save.cpl) = (exit, cpl));
        cpu.enter(&requests, &mut Handler::none());
        let trace = b.trace();
        let at = |op| trace.iter().position(|&o| o == op);
        let call = ["guest_interrupted", "guest_interrupted in user mode"].into_iter().find_map(|c| at(Op::Call(c)));
        // Before the NMI can come.
        call.inspect(|&n| assert!(Some(n) < at(Op::Stgi))).map(|n| trace[n])
    };
    assert_eq!(told(code::NMI, 0), Some(Op::Call("guest_interrupted")));
    assert_eq!(told(code::NMI, 3), Some(Op::Call("guest_interrupted in user mode")));
    assert_eq!(told(code::INTR, 3), Some(Op::Call("guest_interrupted in user mode")));
    assert_eq!(told(code::HLT, 3), None);
}

#[test]
fn a_request_or_a_signal_keeps_the_guest_out() {
    let b = Bench::new();
    let mut cpu = Svm::new(machine(&b, 0), &ROOT).unwrap();
    let requests = VcpuRequests::new();
    requests.make_request(Request::Event);
    assert_eq!(cpu.enter(&requests, &mut Handler::none()), Exit::None);
    requests.take_all();
    hw().may_enter = false;
    assert_eq!(cpu.enter(&requests, &mut Handler::none()), Exit::None);
    assert_eq!(b.trace(), ["may_enter", "irq_enable", "may not enter"].map(Op::Call));
    assert!(cpu.broken().is_none() && !requests.needs_ipi());
}

#[test]
fn host_state_is_saved_once_per_run_ioctl_and_cpu() {
    let b = Bench::new();
    let m = machine(&b, 0);
    let (mut one, mut two) = (Svm::new(m, &ROOT).unwrap(), Svm::new(m, &ROOT).unwrap());
    let requests = VcpuRequests::new();
    let saves = |cpu: &mut Svm<Kernel>| {
        cpu.enter(&requests, &mut Handler::none());
        let trace = b.trace();
        (host_areas(&trace).len(), trace.contains(&Op::Call("guest_barrier")))
    };
    one.begin();
    assert_eq!(saves(&mut one), (1, true), "whose guest was here before nobody knows: barrier");
    assert_eq!(saves(&mut one), (0, false));
    one.begin();
    assert_eq!(saves(&mut one), (1, false), "user space may have changed FS");
    two.begin();
    assert_eq!(saves(&mut two), (1, true), "another guest: barrier");
    assert_eq!(saves(&mut one), (1, true), "the area is the other's");
    b.move_to(1);
    assert_eq!(saves(&mut one), (1, true), "another CPU, whose guest was another");
    assert_eq!(one.last_cpu(), 1);
    b.move_to(0);
    assert_eq!(saves(&mut two), (1, true));
}

#[test]
fn asids_follow_the_cpu_and_flush_when_they_run_out() {
    let b = Bench::new();
    let m = machine(&b, 0); // ASIDs 1 to 3.
    let requests = VcpuRequests::new();
    let mut cpus: Vec<_> = (0..4).map(|_| Svm::new(m, &ROOT).unwrap()).collect();
    let mut asids = Vec::new();
    for cpu in &mut cpus {
        cpu.enter(&requests, &mut Handler::none());
        asids.push((last_entry().1, last_entry().2));
    }
    assert_eq!(asids, [(FLUSH_ALL_ASID, 1), (DO_NOTHING, 2), (DO_NOTHING, 3), (FLUSH_ALL_ASID, 1)]);
    cpus[3].enter(&requests, &mut Handler::none());
    assert_eq!((last_entry().1, last_entry().2), (DO_NOTHING, 1), "TLB control is cleared after the run");
    cpus[0].enter(&requests, &mut Handler::none());
    assert_eq!(last_entry().2, 2, "its old ASID is another guest's now");
    b.move_to(1);
    cpus[0].enter(&requests, &mut Handler::none());
    assert_eq!((last_entry().1, last_entry().2), (FLUSH_ALL_ASID, 1), "the other CPU counts by itself");
}

#[test]
fn an_asid_of_one_cpu_says_nothing_on_another() {
    let b = Bench::new();
    let m = machine(&b, 0);
    let requests = VcpuRequests::new();
    let mut cpus = [Svm::new(m, &ROOT).unwrap(), Svm::new(m, &ROOT).unwrap()];
    for (n, cpu) in cpus.iter_mut().enumerate() {
        b.move_to(n as u64);
        cpu.enter(&requests, &mut Handler::none());
        assert_eq!(last_entry().2, 1);
    }
    // The same generation and number, but here it is the other guest's.
    cpus[0].enter(&requests, &mut Handler::none());
    assert_eq!(last_entry().2, 2);
}

#[test]
fn a_flush_takes_a_new_asid_or_flushes_the_one() {
    for (svm, how, asid) in [(0, DO_NOTHING, 2), (1 << 6, FLUSH_ASID, 1)] {
        let b = Bench::new();
        let mut cpu = Svm::new(machine(&b, svm), &ROOT).unwrap();
        let requests = VcpuRequests::new();
        cpu.enter(&requests, &mut Handler::none());
        cpu.flush_tlb();
        cpu.enter(&requests, &mut Handler::none());
        assert_eq!((last_entry().1, last_entry().2), (how, asid));
        cpu.enter(&requests, &mut Handler::none());
        assert_eq!((last_entry().1, last_entry().2), (DO_NOTHING, asid));
    }
}

#[test]
fn clean_bits_are_kept_on_one_cpu_and_only_where_they_exist() {
    let b = Bench::new();
    let mut cpu = Svm::new(machine(&b, 1 << 5), &ROOT).unwrap();
    let requests = VcpuRequests::new();
    cpu.enter(&requests, &mut Handler::none());
    assert_eq!(last_entry().0, CleanBits::empty());
    cpu.enter(&requests, &mut Handler::none());
    assert_eq!(last_entry().0, CleanBits::all());
    cpu.save_mut(CleanBits::SEG).cs.base = 5;
    cpu.set_intercept(Intercepts::VINTR, true);
    cpu.enter(&requests, &mut Handler::none());
    assert_eq!(last_entry().0, CleanBits::all() - CleanBits::SEG - CleanBits::I);
    b.move_to(1);
    cpu.enter(&requests, &mut Handler::none());
    assert_eq!(last_entry().0, CleanBits::empty());
    drop((cpu, b));

    let b = Bench::new();
    let mut cpu = Svm::new(machine(&b, 0), &ROOT).unwrap();
    cpu.enter(&requests, &mut Handler::none());
    cpu.enter(&requests, &mut Handler::none());
    assert_eq!(last_entry().0, CleanBits::empty());
}

#[test]
fn spec_ctrl_is_read_back_only_if_the_guest_may_write_it() {
    for (svm, read_back) in [(0, true), (1 << 20, false)] {
        let b = Bench::new();
        script(|s| s.cpuid.insert((0x8000_0008, 0), [48, 1 << 14, 0, 0]));
        let mut cpu = Svm::new(machine(&b, svm), &ROOT).unwrap();
        let requests = VcpuRequests::new();
        set_host_spec_ctrl(0, 1);
        cpu.extra_mut().spec_ctrl = 1;
        cpu.enter(&requests, &mut Handler::none());
        let touched =
            |t: &[Op]| t.iter().any(|o| matches!(o, Op::Rdmsr(msr::SPEC_CTRL) | Op::Wrmsr(msr::SPEC_CTRL, _)));
        assert!(!touched(&b.trace()));
        cpu.set_msr_intercept(msr::SPEC_CTRL, false, false);
        hw().guest = Box::new(|_, vmcb| {
            vmcb.save.spec_ctrl = 4;
            hw().msrs.insert(msr::SPEC_CTRL, 4);
        });
        cpu.enter(&requests, &mut Handler::none());
        assert_eq!(cpu.extra().spec_ctrl, 4);
        assert_eq!(touched(&b.trace()), read_back, "virtualised: the hardware switches it");
    }
}

#[test]
fn debug_registers_are_loaded_on_request_and_always_intercepted() {
    let b = Bench::new();
    let mut cpu = Svm::new(machine(&b, 0), &ROOT).unwrap();
    let requests = VcpuRequests::new();
    cpu.enter(&requests, &mut Handler::none());
    let dr = |o: &Op| matches!(o, Op::WriteDr(..));
    assert!(!b.trace().iter().any(dr) && cpu.control().intercept_dr_write == u16::MAX);
    cpu.extra_mut().dr = [1, 2, 3, 4];
    cpu.extra_mut().load_dr = true;
    hw().guest = Box::new(|_, _| assert_eq!(hw().dr, [1, 2, 3, 4]));
    cpu.enter(&requests, &mut Handler::none());
    assert_eq!((cpu.control().intercept_dr_read, cpu.control().intercept_dr_write), (u16::MAX, u16::MAX));
    hw().guest = Box::new(|_, _| {});
    cpu.extra_mut().load_dr = false;
    b.trace();
    cpu.enter(&requests, &mut Handler::none());
    assert!(!b.trace().iter().any(dr) && cpu.control().intercept_dr_write == u16::MAX);
}

#[test]
fn an_injected_event_is_injected_once() {
    let b = Bench::new();
    let mut cpu = Svm::new(machine(&b, 0), &ROOT).unwrap();
    let requests = VcpuRequests::new();
    let event = EventInj::new(EventType::Intr, 0x30, None);
    cpu.set_event_inj(event);
    requests.make_request(Request::Kick);
    cpu.enter(&requests, &mut Handler::none());
    assert_eq!(cpu.control().event_inj, event, "not entered: it still waits");
    requests.take_all();
    hw().guest = Box::new(move |_, vmcb| assert_eq!(vmcb.control.event_inj, event));
    cpu.enter(&requests, &mut Handler::none());
    assert!(!cpu.control().event_inj.valid());
}

#[test]
fn a_machine_check_in_the_guest_goes_to_the_host_and_a_refused_vmcb_is_reported() {
    let b = Bench::new();
    let mut cpu = Svm::new(machine(&b, 0), &ROOT).unwrap();
    let requests = VcpuRequests::new();
    hw().guest = Box::new(|_, vmcb| vmcb.control.exit_code = code::EXCP0 + 18);
    assert!(matches!(cpu.enter(&requests, &mut Handler::none()), Exit::Exception { vector: 18, .. }));
    let trace = b.trace();
    let at = |op: Op| trace.iter().position(|o| *o == op).unwrap();
    assert!(at(Op::Stgi) < at(Op::Call("machine_check")) && at(Op::Call("machine_check")) < at(Op::Call("guest_done")));
    hw().guest = Box::new(|_, vmcb| vmcb.control.exit_code = code::INVALID);
    assert_eq!(cpu.enter(&requests, &mut Handler::none()), Exit::Invalid);
    assert!(cpu.broken().is_none() && hw().gif);
}

#[test]
fn a_page_fault_of_the_outer_hypervisors_is_the_hosts() {
    let b = Bench::new();
    let mut cpu = Svm::new(machine(&b, 0), &ROOT).unwrap();
    let requests = VcpuRequests::new();
    hw().guest = Box::new(|_, vmcb| {
        let c = &mut vmcb.control;
        (c.exit_code, c.exit_info_1, c.exit_info_2) = (code::EXCP0 + 14, 0, 0x1234_5678);
    });
    script(|s| s.host_page_fault = true);
    assert_eq!(cpu.enter(&requests, &mut Handler::none()), Exit::Nmi);
    assert_eq!(script(|s| (s.host_page_fault, s.waited_for.take())), (true, Some(0x1234_5678)));
    let trace = b.trace();
    let at = |op: Op| trace.iter().position(|o| *o == op).unwrap();
    assert!(
        at(Op::Call("host_page_fault")) < at(Op::Call("guest_done")),
        "before another fault could come on this CPU"
    );
    // Any other is the guest's.
    script(|s| s.host_page_fault = false);
    assert!(matches!(cpu.enter(&requests, &mut Handler::none()), Exit::Exception { vector: 14, .. }));
    assert_eq!(script(|s| s.waited_for), None);
}

#[test]
fn without_svm_on_this_cpu_the_vcpu_is_broken() {
    let b = Bench::new();
    let m = machine(&b, 0);
    let mut cpu = Svm::new(m, &ROOT).unwrap();
    m.disable();
    assert_eq!((cpu.enter(&VcpuRequests::new(), &mut Handler::none()), cpu.broken()), (Exit::None, Some(Errno::EIO)));
    assert!(!b.trace().iter().any(|o| matches!(o, Op::Vmrun(_))));
    m.enable().unwrap();
    cpu.begin();
    assert_eq!((cpu.enter(&VcpuRequests::new(), &mut Handler::none()), cpu.broken()), (Exit::Hlt, None));
}

/// Runs `f` in a child process, which has the address space and its descriptor table to itself. The child's answer.
fn in_child(f: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child runs `f` and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let good = f();
        // SAFETY: ends the child.
        unsafe { libc::_exit(!good as i32) }
    }
    let mut status = 0;
    // SAFETY: our child.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
}

#[test]
fn a_process_with_a_local_descriptor_table_has_it_saved_at_each_entry() {
    let b = Bench::new();
    let mut cpu = Svm::new(machine(&b, 0), &ROOT).unwrap();
    assert!(in_child(move || {
        let requests = VcpuRequests::new();
        let mut saves = || {
            cpu.enter(&requests, &mut Handler::none());
            host_areas(&b.trace()).len()
        };
        let before = [saves(), saves()];
        // struct user_desc: a 32-bit data segment in entry 0.
        let descriptor: [u32; 4] = [0, 0, 0xfffff, 0b101_0001];
        // SAFETY: changes this process's descriptor table only.
        let set = unsafe { libc::syscall(libc::SYS_modify_ldt, 1, &descriptor, 16) };
        if set != 0 {
            std::eprintln!("this kernel has no modify_ldt: not tested");
            return true;
        }
        before == [1, 0] && [saves(), saves()] == [1, 1]
    }));
}

#[test]
fn svm_that_goes_away_during_a_reboot_breaks_the_vcpu_and_not_the_machine() {
    let b = Bench::new();
    let mut cpu = Svm::new(machine(&b, 0), &ROOT).unwrap();
    crate::model::kernel::set_rebooting(true);
    hw().svm_off = true;
    assert_eq!((cpu.enter(&VcpuRequests::new(), &mut Handler::none()), cpu.broken()), (Exit::None, Some(Errno::EIO)));
    let trace = b.trace();
    // VMSAVE of the host, CLGI, the four of the assembly, STGI.
    assert_eq!(trace.iter().filter(|o| **o == Op::Fixup).count(), 7);
    assert!(hw().interrupts && trace.last() == Some(&Op::Call("guest_done")));
}
