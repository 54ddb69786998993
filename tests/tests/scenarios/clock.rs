//! The paravirtual clock: what the guest computes from its page is what user space is told.

use abi::uapi::ioctl::KVM_GET_CLOCK;
use kvm_bindings::kvm_clock_data;
use tests::scenario::Machine;

const SYSTEM_TIME: u32 = 0x4b56_4d01;
const WALL_CLOCK: u32 = 0x4b56_4d00;
const PAGE: u64 = 0xb000;

/// Nanoseconds by the formula of the page (KVM's document on MSRs).
fn guest_time(m: &Machine) -> u64 {
    let version: u32 = m.read_ram(PAGE);
    assert!(version != 0 && version % 2 == 0, "version {version}");
    let (tsc_then, time_then) = (m.read_ram::<u64>(PAGE + 8), m.read_ram::<u64>(PAGE + 16));
    let (mul, shift) = (m.read_ram::<u32>(PAGE + 24), m.read_ram::<u8>(PAGE + 28) as i8);
    let delta = m.msr(0, 0x10).wrapping_sub(tsc_then);
    let delta = if shift < 0 { delta >> -shift } else { delta << shift };
    time_then + ((u128::from(delta) * u128::from(mul)) >> 32) as u64
}

#[test]
fn the_guests_clock_is_user_spaces() {
    let m = Machine::new();
    m.long(0, &[]);
    m.wrmsr(0, SYSTEM_TIME, PAGE | 1);
    m.does(0, |_| ());
    m.run_out(0);
    for pause in [0, 1, 1_000_000, 3_600_000_000_000] {
        m.sim.advance(pause);
        let clock: kvm_clock_data = {
            assert_eq!(m.vm(KVM_GET_CLOCK, tests::scenario::DATA), Ok(0));
            m.get_at(tests::scenario::DATA)
        };
        assert!(guest_time(&m).abs_diff(clock.clock) <= 2, "{} and {}", guest_time(&m), clock.clock);
    }
    m.end();
}

/// A guest that uses the old MSR is shown no stable clock: vCPU 0 says which it is, whichever starts the others.
#[test]
fn the_first_vcpu_chooses_between_old_and_new_clock() {
    const OLD: u32 = 0x12;
    const STABLE: u32 = 2;
    let m = Machine::without_vcpu(true);
    assert_eq!(m.vm(abi::uapi::ioctl::KVM_SET_BOOT_CPU_ID, 1), Ok(0));
    for id in 0..2 {
        assert_eq!(m.add_vcpu(id), Ok(id as usize));
        m.long(id as usize, &[]);
    }
    let runnable = kvm_bindings::kvm_mp_state { mp_state: kvm_bindings::KVM_MP_STATE_RUNNABLE };
    assert_eq!(m.vcpu_with(0, abi::uapi::ioctl::KVM_SET_MP_STATE, &runnable), Ok(0));
    let stable = || {
        assert_eq!(m.vm(KVM_GET_CLOCK, tests::scenario::DATA), Ok(0));
        m.get_at::<kvm_clock_data>(tests::scenario::DATA).flags & STABLE != 0
    };
    let writes = |vcpu, msr| {
        m.wrmsr(vcpu, msr, PAGE | 1);
        m.does(vcpu, |_| ());
        m.run_out(vcpu);
        stable()
    };
    assert_eq!(
        [writes(1, OLD), writes(0, SYSTEM_TIME), writes(0, OLD), writes(1, SYSTEM_TIME)],
        [true, true, false, false]
    );
    assert_eq!((m.set_msr(0, SYSTEM_TIME, PAGE | 1), stable()), (Ok(1), false), "user space restores both");
    assert!(writes(0, SYSTEM_TIME));
    m.end();
}

/// The host's watchdog finds the TSC wanting: no guest may be told that its clock follows it, neither by the page nor by user space.
#[test]
fn a_host_that_loses_its_tsc_tells_each_vcpu() {
    const STABLE: u32 = 2;
    let m = Machine::new();
    m.long(0, &[]);
    let flags = || {
        assert_eq!(m.vm(KVM_GET_CLOCK, tests::scenario::DATA), Ok(0));
        m.get_at::<kvm_clock_data>(tests::scenario::DATA).flags & STABLE
    };
    m.wrmsr(0, SYSTEM_TIME, PAGE | 1);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!((flags(), m.read_ram::<u8>(PAGE + 29) & 1), (STABLE, 1));
    m.sim.loses_its_tsc();
    assert_eq!(flags(), 0, "user space is told at once");
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!((flags(), m.read_ram::<u8>(PAGE + 29) & 1), (0, 0), "and the guest, when it runs");
    m.end();
}

#[test]
fn wall_clock() {
    let m = Machine::new();
    m.long(0, &[]);
    m.wrmsr(0, WALL_CLOCK, PAGE);
    m.run_out(0);
    let version: u32 = m.read_ram(PAGE);
    assert!(version != 0 && version % 2 == 0);
    // When the VM's clock was 0: the machine's epoch, within a second.
    assert!(m.read_ram::<u32>(PAGE + 4).abs_diff(1_700_000_000) <= 1);
}

#[test]
fn a_clock_page_outside_of_memory_harms_nobody() {
    let m = Machine::new();
    m.long(0, &[]);
    m.wrmsr(0, SYSTEM_TIME, 0xd000_0000 | 1);
    m.wrmsr(0, WALL_CLOCK, 0xd000_0000);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(m.injected(0), []);
}

#[test]
fn guest_time_goes_on_when_the_machine_has_slept() {
    const SLEPT: u64 = 3_000_000_000;
    let m = Machine::new();
    m.long(0, &[]);
    m.wrmsr(0, SYSTEM_TIME, PAGE | 1);
    m.does(0, |_| ());
    m.run_out(0);
    let flags = |m: &Machine| m.read_ram::<u8>(PAGE + 29);
    let clock = |m: &Machine| {
        assert_eq!(m.vm(KVM_GET_CLOCK, tests::scenario::DATA), Ok(0));
        m.get_at::<kvm_clock_data>(tests::scenario::DATA).clock
    };
    assert_eq!(flags(&m), 1, "one line over the host's TSC");
    m.sim.advance(1_000_000_000);
    let (tsc, before) = (m.msr(0, 0x10), clock(&m));
    m.sim.sleeps(SLEPT);
    // Also if nobody has looked at the vCPU yet.
    assert_eq!(clock(&m), before + SLEPT);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(m.msr(0, 0x10), tsc, "the host's TSC began anew, the guest's did not");
    assert_eq!(flags(&m), 2, "PVCLOCK_GUEST_STOPPED, and one line no more");
    m.sim.advance(500_000_000);
    assert_eq!(m.msr(0, 0x10), tsc + 1_000_000_000);
    assert!(guest_time(&m).abs_diff(clock(&m)) <= 2);
    m.sim.sleeps(SLEPT);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(m.msr(0, 0x10), tsc + 1_000_000_000);
    assert_eq!(flags(&m), 2);
    m.end();
}
