//! A guest of Hyper-V's: what it is offered, its registers, and its time.

use abi::uapi::ioctl::*;
use kvm_bindings::*;
use sim::host::Errno::{E2BIG, EINVAL, ENOTTY};
use tests::scenario::{DATA, Left, MMIO, Machine, NOWHERE};

const GUEST_OS_ID: u32 = 0x4000_0000;
const HYPERCALL: u32 = 0x4000_0001;
const VP_INDEX: u32 = 0x4000_0002;
const RESET: u32 = 0x4000_0003;
const VP_RUNTIME: u32 = 0x4000_0010;
const TIME_REF_COUNT: u32 = 0x4000_0020;
const REFERENCE_TSC: u32 = 0x4000_0021;
const EOI: u32 = 0x4000_0070;
const ICR: u32 = 0x4000_0071;
const TPR: u32 = 0x4000_0072;
const ASSIST_PAGE: u32 = 0x4000_0073;
const SYNDBG_CONTROL: u32 = 0x4000_00f1;
const SYNDBG_STATUS: u32 = 0x4000_00f2;
const CRASH_P0: u32 = 0x4000_0100;
const CRASH_CTL: u32 = 0x4000_0105;
const TSC_EMULATION_CONTROL: u32 = 0x4000_0107;
const TSC_EMULATION_STATUS: u32 = 0x4000_0108;
const TSC_INVARIANT_CONTROL: u32 = 0x4000_0118;
const PAGE: u64 = 0xb000;

fn leaves(m: &Machine, cmd: impl Fn(u64) -> Result<i64, sim::host::Errno>) -> Vec<kvm_cpuid_entry2> {
    m.put_at(DATA, &[10u32, 0]);
    assert_eq!(cmd(DATA), Ok(0));
    (0..10).map(|n| m.get_at(DATA + 8 + 40 * n)).collect()
}

#[test]
fn what_is_offered() {
    let m = Machine::new();
    for (n, result) in [(0, Err(E2BIG)), (9, Err(E2BIG)), (10, Ok(0)), (300, Ok(0))] {
        m.put_at(DATA, &[n, 0u32]);
        assert_eq!(m.system(KVM_GET_SUPPORTED_HV_CPUID, DATA), result, "{n}");
        assert_eq!(m.get_at::<u32>(DATA), if result.is_ok() { 10 } else { n });
    }
    assert_eq!(m.system(KVM_GET_SUPPORTED_HV_CPUID, NOWHERE), Err(sim::host::Errno::EFAULT));
    let all = leaves(&m, |at| m.system(KVM_GET_SUPPORTED_HV_CPUID, at));
    assert_eq!(all[0].ebx.to_le_bytes(), *b"Linu");
    assert_eq!((all[1].function, all[1].eax), (0x4000_0001, 0x3123_7648));
    assert_eq!(leaves(&m, |at| m.vcpu(0, KVM_GET_SUPPORTED_HV_CPUID, at)), all);
    // Without local APICs in the kernel there are neither direct timers nor interrupts by hypercall.
    let m = Machine::without_irqchip();
    let less = leaves(&m, |at| m.vcpu(0, KVM_GET_SUPPORTED_HV_CPUID, at));
    assert_eq!((all[3].edx ^ less[3].edx, all[4].eax ^ less[4].eax), (1 << 19, 1 << 10));
    assert_eq!(m.enable_vcpu(0, KVM_CAP_HYPERV_SYNIC, 0), Err(EINVAL));
}

#[test]
fn capabilities_of_a_vcpu() {
    let m = Machine::new();
    assert_eq!(m.enable_vcpu(0, KVM_CAP_HYPERV_SYNIC2, 1), Err(EINVAL));
    assert_eq!(m.enable_vcpu(0, KVM_CAP_HYPERV_SYNIC, 1), Ok(0), "its argument has never been looked at");
    for nested in [KVM_CAP_HYPERV_ENLIGHTENED_VMCS, KVM_CAP_HYPERV_DIRECT_TLBFLUSH] {
        assert_eq!(m.enable_vcpu(0, nested, 0), Err(ENOTTY));
    }
    for arg in [0, 1, 0] {
        assert_eq!(m.enable_vcpu(0, KVM_CAP_HYPERV_ENFORCE_CPUID, arg), Ok(0));
    }
    m.end();
}

#[test]
fn others_have_no_such_registers() {
    let m = Machine::new();
    m.long(0, &[]);
    for index in [GUEST_OS_ID, VP_INDEX, TIME_REF_COUNT, CRASH_CTL] {
        assert!(m.read_faults(0, index) && m.write_faults(0, index, 0), "{index:x}");
    }
    // User space is told that they are not for this guest.
    assert_eq!(m.enable(KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_INVAL.into()), Ok(0));
    m.rdmsr(0, GUEST_OS_ID);
    assert_eq!(m.run(0), Ok(Left::Rdmsr { reason: KVM_MSR_EXIT_REASON_INVAL, index: GUEST_OS_ID }));
    // It may look at them all the same.
    assert_eq!((m.msr(0, GUEST_OS_ID), m.msr(0, 0x4000_0081), m.msr(0, 0x4000_0090)), (0, 1, 1 << 16));
}

#[test]
fn the_hypercall_page() {
    let m = Machine::hyperv();
    m.write_ram(PAGE, &[0xcc; 8]);
    m.wrmsr(0, HYPERCALL, PAGE | 1);
    m.run_out(0);
    assert_eq!(m.guest_msr(0, HYPERCALL), 0, "nobody has said what he is");
    m.wrmsr(0, GUEST_OS_ID, 0x8100 << 48);
    m.wrmsr(0, HYPERCALL, PAGE | 1);
    m.run_out(0);
    assert_eq!(m.read_ram::<u64>(PAGE), 0xcccc_cccc_c3d9_010f, "VMMCALL, RET");
    assert_eq!(m.guest_msr(0, HYPERCALL), PAGE | 1);
    assert!(m.write_faults(0, HYPERCALL, MMIO | 1), "no memory");
    assert_eq!(m.guest_msr(0, HYPERCALL), PAGE | 1);
    m.wrmsr(0, GUEST_OS_ID, 0);
    m.run_out(0);
    assert_eq!(m.guest_msr(0, HYPERCALL), PAGE);
    m.end();
}

#[test]
fn only_what_cpuid_says_where_that_is_enforced() {
    let m = Machine::without_vcpu(true);
    m.add_hyperv_vcpu(0, |l| match l.function {
        0x4000_0003 => (l.eax, l.ebx, l.edx) = (1 << 6, 0, 0),
        0x4000_0004 => (l.eax, l.ebx) = (0, 0),
        _ => {}
    });
    m.long(0, &[]);
    assert!(!m.read_faults(0, TIME_REF_COUNT));
    assert_eq!(m.enable_vcpu(0, KVM_CAP_HYPERV_ENFORCE_CPUID, 1), Ok(0));
    assert!(!m.read_faults(0, VP_INDEX));
    for index in [GUEST_OS_ID, TIME_REF_COUNT, CRASH_CTL, 0x4000_0080, 0x4000_00b0, TSC_INVARIANT_CONTROL] {
        assert!(m.read_faults(0, index), "{index:x}");
    }
    // Not for user space; its hypercalls are denied.
    assert_eq!(m.set_msr(0, GUEST_OS_ID, 1), Ok(1));
    assert_eq!(m.called(0, 2 | 1 << 16, 0, 1), 6, "HV_STATUS_ACCESS_DENIED");
    assert_eq!(m.enable_vcpu(0, KVM_CAP_HYPERV_ENFORCE_CPUID, 0), Ok(0));
    assert_eq!(m.called(0, 2 | 1 << 16, 0, 1), 0);
}

#[test]
fn numbers_of_vcpus() {
    let m = Machine::hyperv();
    m.add_hyperv_vcpu(7, |_| ());
    assert_eq!((m.msr(0, VP_INDEX), m.msr(1, VP_INDEX)), (0, 1), "in the order in which they were made");
    assert!(m.write_faults(0, VP_INDEX, 0));
    assert_eq!(m.set_msr(1, VP_INDEX, 4096), Ok(0));
    assert_eq!(m.set_msr(1, VP_INDEX, 4095), Ok(1));
    assert_eq!(m.guest_msr(0, VP_INDEX), 0);
    assert_eq!(m.msr(1, VP_INDEX), 4095);
}

#[test]
fn time_runs_by_the_register_and_by_the_page() {
    let m = Machine::hyperv();
    let by_page = |m: &Machine| {
        let (scale, offset) = (m.read_ram::<u64>(PAGE + 8), m.read_ram::<u64>(PAGE + 16));
        (((u128::from(m.msr(0, 0x10)) * u128::from(scale)) >> 64) as u64).wrapping_add(offset)
    };
    let first = m.guest_msr(0, TIME_REF_COUNT);
    m.sim.advance(5_000_000);
    assert_eq!(m.guest_msr(0, TIME_REF_COUNT) - first, 50_000);
    m.wrmsr(0, REFERENCE_TSC, PAGE | 1);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(m.read_ram::<u32>(PAGE), 1);
    for pause in [0, 1, 77, 123_456_789, 3_600_000_000_000] {
        m.sim.advance(pause);
        assert_eq!(m.guest_msr(0, TIME_REF_COUNT), by_page(&m));
    }
    // It is the VM's clock, and follows it.
    let mut clock: kvm_clock_data = {
        assert_eq!(m.vm(KVM_GET_CLOCK, DATA), Ok(0));
        m.get_at(DATA)
    };
    assert!(by_page(&m).abs_diff(clock.clock / 100) <= 1);
    (clock.clock, clock.flags) = (clock.clock + 1_000_000_000, 0);
    assert_eq!(m.vm_with(KVM_SET_CLOCK, &clock), Ok(0));
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(m.read_ram::<u32>(PAGE), 2, "sequence");
    assert!(by_page(&m).abs_diff(clock.clock / 100) <= 1);
    assert_eq!(m.guest_msr(0, TIME_REF_COUNT), by_page(&m));
    // Neither can be written.
    assert!(m.write_faults(0, TIME_REF_COUNT, 0) && m.write_faults(0, 0x4000_0022, 0));
    assert_eq!((m.msr(0, 0x4000_0022), m.msr(0, 0x4000_0023)), (2_000_000_000, 1_000_000_000));
    m.end();
}

/// The first vCPU does not run, and perhaps sleeps: the others must not go by what is not right any more.
#[test]
fn a_change_of_the_clock_reaches_whoever_runs() {
    let m = Machine::hyperv();
    m.add_hyperv_vcpu(1, |_| ());
    let runnable = kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE };
    assert_eq!(m.vcpu_with(1, KVM_SET_MP_STATE, &runnable), Ok(0));
    m.long(1, &[]);
    let runs = |vcpu| {
        m.does(vcpu, |_| ());
        m.run_out(vcpu);
    };
    let by_page = || {
        let (scale, offset) = (m.read_ram::<u64>(PAGE + 8), m.read_ram::<u64>(PAGE + 16));
        (((u128::from(m.msr(1, 0x10)) * u128::from(scale)) >> 64) as u64).wrapping_add(offset)
    };
    m.wrmsr(0, REFERENCE_TSC, PAGE | 1);
    runs(0);
    runs(1);
    assert_eq!(m.read_ram::<u32>(PAGE), 1);
    // Its clock is set back.
    m.sim.advance(10_000_000_000);
    assert!(m.msr(1, TIME_REF_COUNT) > 90_000_000);
    assert_eq!(m.vm_with(KVM_SET_CLOCK, &kvm_clock_data { clock: 700, ..Default::default() }), Ok(0));
    assert!(m.msr(1, TIME_REF_COUNT) < 100_000, "not by the page, which is old");
    runs(1);
    assert_eq!(m.read_ram::<u32>(PAGE), 2);
    assert!(by_page() < 100_000 && m.msr(1, TIME_REF_COUNT) == by_page());
    runs(0);
    assert_eq!(m.read_ram::<u32>(PAGE), 2, "it was right");
    // A TSC out of step, so that there is no line any more; and in step again.
    assert_eq!(m.set_msr(1, 0x10, 1 << 40), Ok(1));
    runs(1);
    assert_eq!(m.read_ram::<u32>(PAGE), 0, "the guest reads the register");
    assert!(m.msr(1, TIME_REF_COUNT) < 100_000);
    assert_eq!(m.set_msr(0, 0x10, 1 << 40), Ok(1));
    runs(1);
    assert_eq!(m.read_ram::<u32>(PAGE), 1);
    assert!(by_page() < 100_000 && m.msr(1, TIME_REF_COUNT) == by_page());
    m.end();
}

#[test]
fn a_guest_that_has_its_tsc_emulated_keeps_its_page() {
    let m = Machine::hyperv();
    m.wrmsr(0, REFERENCE_TSC, PAGE | 1);
    m.wrmsr(0, TSC_EMULATION_CONTROL, 1);
    m.does(0, |_| ());
    m.run_out(0);
    let page: [u64; 3] = m.read_ram(PAGE);
    // It comes here, with another clock.
    m.sim.advance(1_000_000);
    assert_eq!(m.vm_with(KVM_SET_CLOCK, &kvm_clock_data { clock: 7, ..Default::default() }), Ok(0));
    assert_eq!(m.set_msr(0, REFERENCE_TSC, PAGE | 1), Ok(1));
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(m.read_ram::<[u64; 3]>(PAGE), page);
    let of_page = ((u128::from(m.msr(0, 0x10)) * u128::from(page[1])) >> 64) as u64 + page[2];
    assert_eq!(m.guest_msr(0, TIME_REF_COUNT), of_page);
    assert!(m.write_faults(0, TSC_EMULATION_STATUS, 1) && !m.write_faults(0, TSC_EMULATION_STATUS, 0));
    // Afterwards it follows.
    m.wrmsr(0, TSC_EMULATION_CONTROL, 0);
    m.run_out(0);
    assert_eq!(m.vm_with(KVM_SET_CLOCK, &kvm_clock_data { clock: 7, ..Default::default() }), Ok(0));
    m.does(0, |_| ());
    m.run_out(0);
    assert_ne!(m.read_ram::<[u64; 3]>(PAGE)[2], page[2]);
}

#[test]
fn a_time_page_outside_of_memory() {
    let m = Machine::hyperv();
    for page in [MMIO, !0xfff, 0x3ff_fff8 & !0xfff] {
        m.wrmsr(0, REFERENCE_TSC, page | 1);
        m.does(0, |_| ());
        m.run_out(0);
        let now = m.guest_msr(0, TIME_REF_COUNT);
        m.sim.advance(1_000_000);
        assert_eq!(m.guest_msr(0, TIME_REF_COUNT) - now, 10_000);
    }
    assert_eq!(m.injected(0), []);
}

#[test]
fn time_on_a_cpu() {
    let m = Machine::hyperv();
    let first = m.guest_msr(0, VP_RUNTIME);
    m.sim.runs(3_000_000);
    assert_eq!(m.guest_msr(0, VP_RUNTIME) - first, 30_000);
    assert!(m.write_faults(0, VP_RUNTIME, 0));
    assert_eq!(m.set_msr(0, VP_RUNTIME, 5), Ok(1));
    assert_eq!(m.guest_msr(0, VP_RUNTIME), 5);
}

#[test]
fn crash_and_reset() {
    let m = Machine::hyperv();
    for n in 0..5 {
        m.wrmsr(0, CRASH_P0 + n, u64::from(n) << 60 | 1);
    }
    m.wrmsr(0, CRASH_CTL, 1);
    m.run_out(0);
    m.wrmsr(0, CRASH_CTL, 1 << 63);
    m.does(0, |_| ());
    assert_eq!(m.run(0), Ok(Left::SystemEvent { kind: KVM_SYSTEM_EVENT_CRASH }));
    assert_eq!(m.msr(0, CRASH_P0 + 4), 4 << 60 | 1);
    m.wrmsr(0, RESET, 1);
    assert_eq!(m.run(0), Ok(Left::SystemEvent { kind: KVM_SYSTEM_EVENT_RESET }));
    assert_eq!(m.guest_msr(0, RESET), 0);
    // What it has come to is user space's to say.
    assert_eq!((m.set_msr(0, CRASH_CTL, !0), m.msr(0, CRASH_CTL)), (Ok(1), 1 << 63));
    m.run_out(0);
}

#[test]
fn the_local_apics_registers() {
    let m = Machine::hyperv();
    m.wrmsr(0, TPR, 0x52);
    m.run_out(0);
    assert_eq!((m.guest_msr(0, TPR), m.guest_msr(0, 0x808)), (0x52, 0x52));
    assert!(m.read_faults(0, EOI) && m.write_faults(0, TPR, 1 << 32) && m.write_faults(0, ICR, 1 << 13));
    m.wrmsr(0, TPR, 0);
    // To itself, and its end.
    m.wrmsr(0, ICR, 0x4_0041);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!((m.taken(0), m.guest_msr(0, 0x812)), (vec![0x41], 1 << 1));
    m.wrmsr(0, EOI, 0);
    m.run_out(0);
    assert_eq!(m.guest_msr(0, 0x812), 0);
    // In xAPIC mode a destination is where that mode has it.
    let m = Machine::without_vcpu(true);
    m.add_hyperv_vcpu(0, |_| ());
    m.add_hyperv_vcpu(1, |_| ());
    m.long(0, &[]);
    let mut apic: kvm_lapic_state = m.vcpu_get(1, KVM_GET_LAPIC);
    (apic.regs[0xf0], apic.regs[0xf1]) = (-1, 1);
    assert_eq!(m.vcpu_with(1, KVM_SET_LAPIC, &apic), Ok(0));
    m.wrmsr(0, ICR, 1 << 56 | 0x4051);
    m.run_out(0);
    let apic: kvm_lapic_state = m.vcpu_get(1, KVM_GET_LAPIC);
    assert_eq!(apic.regs[0x222], 2, "vector 51 in IRR");
    assert_eq!(m.guest_msr(0, ICR), 1 << 56 | 0x4051);
}

#[test]
fn an_interrupt_ends_by_the_assist_page() {
    let m = Machine::hyperv();
    assert!(m.write_faults(0, ASSIST_PAGE, MMIO | 1));
    m.write_ram(PAGE, &[0xff; 16]);
    m.wrmsr(0, ASSIST_PAGE, PAGE | 1);
    m.run_out(0);
    assert_eq!(m.read_ram::<[u32; 2]>(PAGE), [0, !0], "what the guest keeps behind it is its own");
    m.wrmsr(0, 0x830, 0x4_0041);
    m.load(0, PAGE, 0xffff_ffff_0000_0001);
    m.store(0, PAGE, 0);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!((m.taken(0), m.guest_msr(0, 0x812)), (vec![0x41], 0));
    m.wrmsr(0, ASSIST_PAGE, 0);
    m.interrupt_flag(0, true);
    m.wrmsr(0, 0x830, 0x4_0041);
    m.load(0, PAGE, 0);
    m.run_out(0);
    assert_ne!(m.guest_msr(0, 0x812), 0);
}

#[test]
fn an_invariant_tsc_shows_when_it_was_asked_for() {
    let m = Machine::without_vcpu(true);
    m.add_hyperv_vcpu(0, |_| ());
    m.long(0, &[]);
    // The simulated processor has none: user space says so.
    let shown = |m: &Machine| {
        m.cpuid(0, 0x8000_0007);
        m.run_out(0);
        m.regs(0).rdx >> 8 & 1
    };
    m.inside(0, |c| {
        let mut entries = c.cpuid_entries().to_vec();
        let leaf = entries.iter_mut().find(|e| e.function == 0x8000_0007).expect("the leaf");
        leaf.regs[3] |= 1 << 8;
        c.set_cpuid(&entries).expect("it has not run");
    });
    assert_eq!(shown(&m), 0);
    assert!(m.write_faults(0, TSC_INVARIANT_CONTROL, 2));
    m.wrmsr(0, TSC_INVARIANT_CONTROL, 1);
    m.run_out(0);
    assert_eq!(shown(&m), 1);
    assert!(m.write_faults(0, TSC_INVARIANT_CONTROL, 0), "it cannot be taken back");
    assert_eq!(m.set_msr(0, TSC_INVARIANT_CONTROL, 0), Ok(1));
    assert_eq!(shown(&m), 0);
}

#[test]
fn the_debugger_is_user_spaces() {
    let m = Machine::hyperv();
    m.wrmsr(0, 0x4000_00f3, 0x5000);
    m.run_out(0);
    m.wrmsr(0, SYNDBG_CONTROL, 1);
    let words = [SYNDBG_CONTROL.into(), 1, 0, 0x5000, 0, 0];
    assert_eq!(m.run(0), Ok(Left::Hyperv { kind: KVM_EXIT_HYPERV_SYNDBG, words }));
    m.page(0).set_u64(56, 77);
    assert_eq!(m.guest_msr(0, SYNDBG_STATUS), 77);
    // Not where the guest's kernel must not be debugged.
    let m = Machine::without_vcpu(true);
    m.add_hyperv_vcpu(0, |l| {
        if l.function == 0x4000_0082 {
            l.eax = 0;
        }
    });
    m.long(0, &[]);
    assert!(m.read_faults(0, SYNDBG_STATUS) && m.write_faults(0, SYNDBG_CONTROL, 1));
    assert_eq!(m.set_msr(0, SYNDBG_CONTROL, 1), Ok(1));
    m.run_out(0);
}
