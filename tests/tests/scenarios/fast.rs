//! Exits that the world switch handles by itself: the answers are those of the ordinary way, and as new.
//!
//! Long because: one test for each kind of exit, and what takes its answer back.

use kvm_bindings::*;
use sim::arch::exit::code;
use sim::host::Host as _;
use sim::host::{Cpu as _, CpuFeatures};
use std::sync::{Arc, Barrier};
use tests::plain::{MsrFilter, MsrFilterRange};
use tests::scenario::{CODE, DATA, Left, Machine, PLAIN, is_handed_over_everywhere};

const MTRRCAP: u32 = 0xfe;
const PAT: u32 = 0x277;
const APIC_BASE: u32 = 0x1b;
const X2APIC_EOI: u32 = 0x80b;
const TSC_DEADLINE: u32 = 0x6e0;
const PV_EOI: u32 = 0x4b56_4d04;

/// A vCPU in 64-bit mode whose processor saves the next RIP.
fn machine() -> Machine {
    machine_on(CpuFeatures { nrips: true, ..PLAIN })
}

fn machine_on(features: CpuFeatures) -> Machine {
    let m = Machine::on(features);
    m.long(0, &[]);
    m
}

/// One intercepted instruction of two bytes.
fn exits(m: &Machine, exit: u64, write: bool, registers: [u64; 3]) {
    m.intercepts(0, exit, write, registers);
}

fn cpuid(m: &Machine, function: u32) -> [u64; 4] {
    exits(m, code::CPUID, false, [function.into(), 0, 0]);
    m.run_out(0);
    let r = m.regs(0);
    [r.rax, r.rbx, r.rcx, r.rdx]
}

fn rdmsr(m: &Machine, index: u32) {
    exits(m, code::MSR, false, [0, index.into(), 0]);
}

fn wrmsr(m: &Machine, index: u32, value: u64) {
    exits(m, code::MSR, true, [value & 0xffff_ffff, index.into(), value >> 32]);
}

/// How many exits were handled so up to now.
fn handled(m: &Machine) -> usize {
    m.inside(0, |c| c.core.cpu.handled_fast)
}

#[test]
fn the_second_cpuid_is_answered_like_the_first() {
    if is_handed_over_everywhere() {
        return; // What is remembered of answers is asked again.
    }
    let m = machine();
    m.with_regs(0, |r| r.rip = CODE);
    let first = [0, 1, 7, 0xd, 0x8000_0000, 0x4000_0000, 0x1234_5678].map(|f| cpuid(&m, f));
    assert_eq!(handled(&m), 0);
    let second = [0, 1, 7, 0xd, 0x8000_0000, 0x4000_0000, 0x1234_5678].map(|f| cpuid(&m, f));
    assert_eq!(first, second);
    assert_eq!((handled(&m), m.regs(0).rip), (7, CODE + 28));
    m.end();
}

#[test]
fn what_cpuid_shows_of_the_processor_is_never_old() {
    if is_handed_over_everywhere() {
        return; // What is remembered of answers is asked again.
    }
    let m = machine();
    let osxsave = |m: &Machine| cpuid(m, 1)[2] >> 27 & 1;
    assert_eq!([osxsave(&m), osxsave(&m), handled(&m) as u64], [0, 0, 1]);
    let mut sregs: kvm_sregs = m.vcpu_get(0, abi::uapi::ioctl::KVM_GET_SREGS);
    sregs.cr4 |= 1 << 18;
    assert_eq!(m.vcpu_with(0, abi::uapi::ioctl::KVM_SET_SREGS, &sregs), Ok(0));
    assert_eq!([osxsave(&m), osxsave(&m), handled(&m) as u64], [1, 1, 2]);
    // The local APIC goes off: CPUID.1:EDX.APIC.
    let apic = |m: &Machine| cpuid(m, 1)[3] >> 9 & 1;
    assert_eq!(apic(&m), 1);
    wrmsr(&m, APIC_BASE, 0xfee0_0100);
    assert_eq!(apic(&m), 0);
    m.end();
}

#[test]
fn an_msr_that_was_read_is_known_until_something_is_written() {
    if is_handed_over_everywhere() {
        return; // What is remembered of answers is asked again.
    }
    let m = machine();
    let value = |m: &Machine| (m.regs(0).rdx, m.regs(0).rax);
    for _ in 0..2 {
        rdmsr(&m, PAT);
    }
    m.run_out(0);
    assert_eq!((value(&m), handled(&m)), ((0x0007_0406, 0x0007_0406), 1));
    wrmsr(&m, PAT, 0x0606_0606_0606_0606);
    m.run_out(0);
    assert_eq!(handled(&m), 1);
    wrmsr(&m, PAT, 0x0406_0606_0606_0606);
    rdmsr(&m, PAT);
    rdmsr(&m, PAT);
    m.run_out(0);
    assert_eq!((value(&m), handled(&m)), ((0x0406_0606, 0x0606_0606), 3));
    // User space may have written it.
    assert_eq!(m.set_msr(0, PAT, 0), Ok(1));
    rdmsr(&m, PAT);
    m.run_out(0);
    assert_eq!((value(&m), handled(&m)), ((0, 0), 3));
    m.end();
}

#[test]
fn an_msr_that_holds_what_is_written_is_not_written() {
    if is_handed_over_everywhere() {
        return; // What is remembered of answers is asked again.
    }
    let m = machine();
    let pat = 0x0406_0606_0606_0606;
    for value in [pat, pat, pat, 0, 0] {
        wrmsr(&m, PAT, value);
    }
    m.run_out(0);
    assert_eq!((handled(&m), m.msr(0, PAT)), (3, 0));
    // What cannot be written faults each time, also when it was read before.
    let capabilities = m.msr(0, MTRRCAP);
    rdmsr(&m, MTRRCAP);
    for n in 1..=2 {
        wrmsr(&m, MTRRCAP, capabilities);
        m.does(0, |_| ());
        m.run_out(0);
        assert_eq!(m.injected(0).iter().filter(|e| e.vector() == 13).count(), n);
    }
    assert_eq!(handled(&m), 3);
    m.end();
}

#[test]
fn registers_of_the_local_apic_that_only_the_guest_changes() {
    if is_handed_over_everywhere() {
        return; // What is remembered of answers is asked again.
    }
    let m = machine();
    m.x2apic(0);
    let lvt_error = |m: &Machine| {
        rdmsr(m, 0x837);
        rdmsr(m, 0x837);
        m.run_out(0);
        m.regs(0).rax
    };
    assert_eq!((lvt_error(&m), handled(&m)), (0x1_0000, 1));
    wrmsr(&m, 0x837, 0xfe);
    assert_eq!((lvt_error(&m), handled(&m)), (0xfe, 3), "what was written is known");
    // The local APIC is disabled by its own register, which masks the LVT.
    wrmsr(&m, 0x80f, 0xff);
    assert_eq!((lvt_error(&m), handled(&m)), (0x1_00fe, 4));
    // TPR changes by CR8, and the count by itself: these are asked each time.
    for register in [0x808, 0x839] {
        rdmsr(&m, register);
        rdmsr(&m, register);
    }
    m.run_out(0);
    assert_eq!(handled(&m), 4);
    m.end();
}

/// MOV from CR0 or CR4 to general register `gpr`, with decode assists.
fn mov_from_cr(m: &Machine, cr: u64, gpr: u64) {
    m.sim.step(0, move |cpu| {
        cpu.vmcb().next_rip = cpu.guest().rip + 3;
        (code::CR0_READ + cr, 1 << 63 | gpr, 0)
    });
}

#[test]
fn control_registers_that_the_processor_does_not_hold() {
    if is_handed_over_everywhere() {
        return; // What is remembered of answers is asked again.
    }
    let m = machine_on(CpuFeatures { nrips: true, decode_assists: true, ..PLAIN });
    let sregs: kvm_sregs = m.vcpu_get(0, abi::uapi::ioctl::KVM_GET_SREGS);
    mov_from_cr(&m, 0, 0);
    mov_from_cr(&m, 4, 4);
    mov_from_cr(&m, 4, 13);
    m.run_out(0);
    let r = m.regs(0);
    assert_eq!((r.rax, r.rsp, r.r13), (sregs.cr0, sregs.cr4, sregs.cr4));
    assert_eq!(handled(&m), 3);
    // SMSW comes as a read of CR0 without the number of a register, and is the emulator's.
    m.write_ram(CODE, &[0x0f, 0x01, 0xe3]);
    m.with_regs(0, |r| (r.rip, r.rbx) = (CODE, 0));
    m.exit(0, code::CR0_READ);
    m.run_out(0);
    assert_eq!((m.regs(0).rbx & 0xffff, handled(&m)), (sregs.cr0 & 0xffff, 3));
    m.end();
}

#[test]
fn wbinvd_until_a_device_needs_it() {
    if is_handed_over_everywhere() {
        return; // What is remembered of answers is asked again.
    }
    let m = machine();
    let counts = |m: &Machine| (m.cpu(0).thread.wbinvds(), handled(m));
    // It comes, and goes, while the vCPU is in the guest.
    for (dma, counted) in [(true, (1, 1)), (false, (2, 2))] {
        let (begun, goes_on) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
        let waits = [begun.clone(), goes_on.clone()];
        exits(&m, code::WBINVD, false, [0; 3]);
        // The interrupt that the kick is comes.
        m.sim.step(0, move |_| {
            for barrier in &waits {
                barrier.wait();
            }
            (code::INTR, 0, 0)
        });
        exits(&m, code::WBINVD, false, [0; 3]);
        std::thread::scope(|scope| {
            scope.spawn(|| m.run_out(0));
            begun.wait();
            m.engine().set_noncoherent_dma(dma);
            goes_on.wait();
        });
        assert_eq!(counts(&m), counted);
    }
    m.end();
}

/// Takes an interrupt of this vector, edge-triggered or level-triggered.
fn interrupt(m: &Machine, vector: u32, level: bool) {
    let msi =
        kvm_msi { address_lo: 0xfee0_0000, data: vector | u32::from(level) << 14 | 1 << 15, ..Default::default() };
    let msi = if level { msi } else { kvm_msi { data: vector, ..msi } };
    assert_eq!(m.vm_with(abi::uapi::ioctl::KVM_SIGNAL_MSI, &msi), Ok(1));
    m.interrupt_flag(0, true);
    m.run_out(0);
}

fn in_service(m: &Machine, vector: u8) -> bool {
    let state: kvm_lapic_state = m.vcpu_get(0, abi::uapi::ioctl::KVM_GET_LAPIC);
    state.regs[0x100 + 0x10 * usize::from(vector / 32) + usize::from(vector % 32 / 8)] as u8 >> (vector % 8) & 1 != 0
}

#[test]
fn the_end_of_an_interrupt_that_concerns_nobody_else() {
    let m = machine();
    m.x2apic(0);
    interrupt(&m, 0x41, false);
    assert!(in_service(&m, 0x41));
    wrmsr(&m, X2APIC_EOI, 0);
    m.run_out(0);
    assert!(!in_service(&m, 0x41));
    assert_eq!(handled(&m), 1);
    // With nothing in service it does nothing.
    wrmsr(&m, X2APIC_EOI, 0);
    m.run_out(0);
    assert_eq!(handled(&m), 2);
    m.end();
}

#[test]
fn an_interrupt_may_come_and_go_without_leaving_the_guest() {
    let m = machine();
    m.x2apic(0);
    let msi = |data| kvm_msi { address_lo: 0xfee0_0000, data, ..Default::default() };
    assert_eq!(m.vm_with(abi::uapi::ioctl::KVM_SIGNAL_MSI, &msi(0x41)), Ok(1));
    m.with_regs(0, |r| r.rflags |= 0x200);
    wrmsr(&m, X2APIC_EOI, 0);
    m.run_out(0);
    assert_eq!((handled(&m), m.taken(0), in_service(&m, 0x41)), (1, vec![0x41], false));
    // One that the guest has not taken is not what it ends.
    assert_eq!(m.vm_with(abi::uapi::ioctl::KVM_SIGNAL_MSI, &msi(0x42)), Ok(1));
    m.interrupt_flag(0, false);
    m.run_out(0);
    wrmsr(&m, X2APIC_EOI, 0);
    m.interrupt_flag(0, true);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!((handled(&m), m.taken(0), in_service(&m, 0x42)), (1, vec![0x41, 0x42], true));
    m.end();
}

#[test]
fn the_end_that_somebody_waits_for_takes_the_ordinary_way() {
    let m = machine();
    m.x2apic(0);
    interrupt(&m, 0x51, true);
    wrmsr(&m, X2APIC_EOI, 0);
    m.run_out(0);
    assert!(!in_service(&m, 0x51) && handled(&m) == 0, "level-triggered");
    // A lower one waits, and comes as soon as the first has ended.
    interrupt(&m, 0x61, false);
    m.interrupt_flag(0, false);
    m.run_out(0);
    let msi = kvm_msi { address_lo: 0xfee0_0000, data: 0x52, ..Default::default() };
    assert_eq!(m.vm_with(abi::uapi::ioctl::KVM_SIGNAL_MSI, &msi), Ok(1));
    m.interrupt_flag(0, true);
    wrmsr(&m, X2APIC_EOI, 0);
    m.does(0, |_| ());
    m.run_out(0);
    assert!(in_service(&m, 0x52) && handled(&m) == 0);
    assert_eq!(m.taken(0).last(), Some(&0x52));
    wrmsr(&m, X2APIC_EOI, 0);
    // Bits above 31 are reserved, and EOI by the register is not what a guest with an offer is expected to do.
    wrmsr(&m, X2APIC_EOI, 1 << 32);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!((handled(&m), m.injected(0).last().map(|e| e.vector())), (1, Some(13)));
    wrmsr(&m, PV_EOI, 0xb001);
    m.run_out(0);
    interrupt(&m, 0x41, false);
    wrmsr(&m, X2APIC_EOI, 0);
    m.run_out(0);
    assert!(!in_service(&m, 0x41) && handled(&m) == 1);
    m.end();
}

/// The timer in TSC-deadline mode with vector 0x40, and the guest's TSC, which counts 2 a nanosecond.
fn deadlines(m: &Machine) -> u64 {
    m.x2apic(0);
    wrmsr(m, 0x832, 2 << 17 | 0x40);
    m.run_out(0);
    m.msr(0, 0x10)
}

/// Sleeps until the timer wakes it: how many nanoseconds, and how many of its interrupts there were up to now.
fn sleeps(m: &Machine) -> (u64, usize) {
    let start = m.sim.now_ns();
    m.hlt(0);
    m.does(0, |_| ());
    m.run_out(0);
    (m.sim.now_ns() - start, m.taken(0).iter().filter(|v| **v == 0x40).count())
}

#[test]
fn a_later_deadline_is_only_noted_and_kept() {
    let m = machine();
    let tsc = deadlines(&m);
    wrmsr(&m, TSC_DEADLINE, tsc + 2_000_000);
    m.run_out(0);
    assert_eq!(handled(&m), 0, "the timer has to be set");
    for later in [2_000_000, 3_000_000, 6_000_000] {
        wrmsr(&m, TSC_DEADLINE, tsc + later);
    }
    m.run_out(0);
    assert_eq!((handled(&m), m.msr(0, TSC_DEADLINE)), (3, tsc + 6_000_000));
    let (slept, ticks) = sleeps(&m);
    assert!((2_999_000..3_001_000).contains(&slept) && ticks == 1, "{slept} {ticks}");
    assert_eq!(m.msr(0, TSC_DEADLINE), 0);
    // It has fired: the next one is set anew.
    wrmsr(&m, X2APIC_EOI, 0);
    wrmsr(&m, TSC_DEADLINE, tsc + 10_000_000);
    m.run_out(0);
    assert_eq!(handled(&m), 4, "the EOI");
    assert_eq!(sleeps(&m).1, 2);
    m.end();
}

#[test]
fn an_earlier_deadline_none_and_another_clock_set_the_timer() {
    let m = machine();
    let tsc = deadlines(&m);
    wrmsr(&m, TSC_DEADLINE, tsc + 6_000_000);
    wrmsr(&m, TSC_DEADLINE, tsc + 2_000_000);
    m.run_out(0);
    let (slept, ticks) = sleeps(&m);
    assert!((999_000..1_001_000).contains(&slept) && ticks == 1, "{slept} {ticks}");
    // Disarmed, and armed again.
    for value in [tsc + 8_000_000, 0, tsc + 9_000_000] {
        wrmsr(&m, TSC_DEADLINE, value);
    }
    m.run_out(0);
    // Time is set back by 4 ms: what the host's timer stands for is another moment now.
    assert_eq!(m.set_msr(0, 0x10, tsc), Ok(1));
    wrmsr(&m, TSC_DEADLINE, tsc + 9_000_000);
    m.run_out(0);
    assert_eq!(handled(&m), 1, "only the last: the timer was set anew when the clock was");
    m.end();
}

#[test]
fn a_deadline_that_a_filter_denies_is_no_shortcut() {
    let m = machine();
    let tsc = deadlines(&m);
    wrmsr(&m, TSC_DEADLINE, tsc + 2_000_000);
    m.run_out(0);
    let mut filter = MsrFilter::default();
    filter.ranges[0] = MsrFilterRange { flags: 2, nmsrs: 1, base: TSC_DEADLINE, pad: 0, bitmap: DATA };
    m.put_at(DATA, &0u64);
    assert_eq!(m.vm_with(abi::uapi::ioctl::KVM_X86_SET_MSR_FILTER, &filter), Ok(0));
    wrmsr(&m, TSC_DEADLINE, tsc + 3_000_000);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!((handled(&m), m.injected(0).last().map(|e| e.vector())), (0, Some(13)));
    m.end();
}

#[test]
fn each_exit_is_seen_where_a_debugger_or_a_step_needs_it() {
    let m = machine();
    cpuid(&m, 0);
    let debug = kvm_guest_debug { control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP, ..Default::default() };
    assert_eq!(m.vcpu_with(0, abi::uapi::ioctl::KVM_SET_GUEST_DEBUG, &debug), Ok(0));
    exits(&m, code::CPUID, false, [0; 3]);
    assert!(matches!(m.run(0), Ok(Left::Debug { .. })));
    assert_eq!(handled(&m), 0);
    m.end();
}

#[test]
fn they_are_counted() {
    if is_handed_over_everywhere() {
        return; // What is remembered of answers is asked again.
    }
    let m = machine();
    let exits_of = |m: &Machine| m.cpu(0).stats.exits.get();
    cpuid(&m, 0);
    let before = exits_of(&m);
    for _ in 0..5 {
        exits(&m, code::CPUID, false, [0; 3]);
    }
    m.does(0, |_| ());
    exits(&m, code::INVD, false, [0; 3]);
    m.run_out(0);
    assert_eq!((handled(&m), exits_of(&m) - before), (5, 6));
    m.end();
}

/// What an entry carries in is carried in once, however often the guest is entered again.
#[test]
fn an_event_and_a_flush_come_once() {
    if is_handed_over_everywhere() {
        return; // What is remembered of answers is asked again.
    }
    let m = machine();
    cpuid(&m, 0);
    assert_eq!(m.vcpu(0, abi::uapi::ioctl::KVM_NMI, 0), Ok(0));
    let flushes = m.inside(0, |c| {
        c.core.cpu.flush_tlb();
        c.core.cpu.flushes
    });
    for _ in 0..3 {
        exits(&m, code::CPUID, false, [0; 3]);
    }
    m.run_out(0);
    assert_eq!((handled(&m), m.injected(0).len()), (3, 1));
    assert_eq!(m.inside(0, |c| c.core.cpu.flushes), flushes + 1);
    m.end();
}

/// A processor that does not save the next RIP: no exit is handled before the guest was left, and each reads the instruction.
#[test]
fn without_nrips_the_instruction_is_read_at_each_exit() {
    let m = Machine::new();
    m.long(0, &[0x0f, 0xa2]);
    for text in [&[0x0f, 0xa2][..], &[0x0f, 0xa2], &[0x2e, 0x0f, 0xa2], &[0x66, 0x66, 0x0f, 0xa2], &[0x0f, 0xa2]] {
        m.write_ram(CODE, text);
        m.with_regs(0, |r| (r.rip, r.rax) = (CODE, 0));
        m.exit(0, code::CPUID);
        m.run_out(0);
        assert_eq!(m.regs(0).rip, CODE + text.len() as u64);
    }
    assert_eq!(handled(&m), 0);
    m.end();
}
