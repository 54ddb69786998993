//! IN and OUT: through user space, with what the guest sees before and after.

use abi::uapi::ioctl::{KVM_CREATE_PIT2, KVM_IOEVENTFD};
use kvm_bindings::{kvm_ioeventfd, kvm_pit_config};
use sim::Outcome;
use sim::arch::exit::code;
use sim::host::Cpu;
use tests::scenario::{CODE, Left, MMIO, Machine};

const INPUT: u64 = 1;
const STRING: u64 = 4;
const REP: u64 = 8;

/// EXITINFO1 of an access to `port`.
const fn io(port: u64, size: u64, flags: u64) -> u64 {
    port << 16 | size << 4 | flags
}

fn out(m: &Machine, port: u64, size: u64, len: u64) {
    m.sim.step(0, move |c| (code::IOIO, io(port, size, 0), c.guest().rip + len));
}

fn input(m: &Machine, port: u64, size: u64, len: u64) {
    m.sim.step(0, move |c| (code::IOIO, io(port, size, INPUT), c.guest().rip + len));
}

#[test]
fn out_shows_the_data_and_is_over() {
    for (size, bytes) in [(1, [0x78, 0, 0, 0]), (2, [0x78, 0x56, 0, 0]), (4, [0x78, 0x56, 0x34, 0x12])] {
        let m = Machine::new();
        m.real(0, &[0xe6, 0x80]);
        m.with_regs(0, |r| r.rax = 0xffff_ffff_1234_5678);
        out(&m, 0x80, size, 2);
        assert_eq!(m.run(0), Ok(Left::Io { input: false, size: size as u8, port: 0x80, count: 1 }));
        let mut seen = [0; 4];
        m.port_data(0).read(0, &mut seen[..size as usize]);
        assert_eq!(seen, bytes);
        assert_eq!(m.regs(0).rip, CODE, "whoever looks sees the instruction that is served");
        m.run_out(0);
        assert_eq!(m.regs(0).rip, CODE + 2);
    }
}

#[test]
fn in_completes_when_user_space_comes_back() {
    for (size, want) in [(1, 0x1111_1111_1111_11dd), (2, 0x1111_1111_1111_ccdd), (4, 0xaabb_ccdd)] {
        let m = Machine::new();
        m.real(0, &[0xe4, 0x71]);
        m.with_regs(0, |r| r.rax = 0x1111_1111_1111_1111);
        input(&m, 0x71, size, 2);
        assert_eq!(m.run(0), Ok(Left::Io { input: true, size: size as u8, port: 0x71, count: 1 }));
        assert_eq!(m.regs(0).rip, CODE, "the instruction is still to be completed");
        m.port_data(0).set_u32(0, 0xaabb_ccdd);
        m.run_out(0);
        assert_eq!((m.regs(0).rip, m.regs(0).rax), (CODE + 2, want));
    }
}

#[test]
fn immediate_exit_completes_what_is_pending_and_enters_nothing() {
    let m = Machine::new();
    m.real(0, &[0xe4, 0x71]);
    input(&m, 0x71, 1, 2);
    m.exit(0, code::PAUSE);
    assert!(m.run(0).is_ok());
    m.port_data(0).set_u8(0, 0x5a);
    m.settle(0);
    assert_eq!((m.regs(0).rip, m.regs(0).rax), (CODE + 2, 0x5a));
    assert_eq!(m.sim.steps_left(0), 1, "the guest did not run");
    m.port_data(0).set_u8(0, 0xff);
    m.settle(0);
    assert_eq!(m.regs(0).rax, 0x5a, "completed once");
}

/// A repeated string instruction exits until RCX is 0.
fn repeat(m: &Machine, info1: u64, len: u64) {
    m.sim.act(0, move |c| match c.gpr(1) {
        0 => Outcome::Next,
        _ => Outcome::Again(code::IOIO, info1, c.guest().rip + len),
    });
}

#[test]
fn rep_outsb_goes_out_byte_by_byte() {
    let m = Machine::new();
    m.protected(0, &[0xf3, 0x6e]);
    m.write_ram(0x9000, b"abc");
    m.with_regs(0, |r| (r.rsi, r.rcx, r.rdx) = (0x9000, 3, 0x3f8));
    repeat(&m, io(0x3f8, 1, STRING | REP), 2);
    let mut seen = Vec::new();
    for left in [2, 1, 0] {
        assert_eq!(m.run(0), Ok(Left::Io { input: false, size: 1, port: 0x3f8, count: 1 }));
        seen.push(m.port_data(0).u8(0));
        assert_eq!(m.regs(0).rcx, left, "each byte is committed before it is shown");
    }
    m.run_out(0);
    assert_eq!(seen, b"abc");
    assert_eq!((m.regs(0).rsi, m.regs(0).rip), (0x9003, CODE + 2));
}

#[test]
fn rep_insw_is_one_exit_for_all() {
    let m = Machine::new();
    m.protected(0, &[0xf3, 0x66, 0x6d]);
    m.with_regs(0, |r| (r.rdi, r.rcx, r.rdx) = (0x9000, 4, 0x1f0));
    repeat(&m, io(0x1f0, 2, STRING | REP | INPUT), 3);
    assert_eq!(m.run(0), Ok(Left::Io { input: true, size: 2, port: 0x1f0, count: 4 }));
    m.port_data(0).write(0, b"sector!.");
    m.run_out(0);
    assert_eq!(m.read_ram::<[u8; 8]>(0x9000), *b"sector!.");
    assert_eq!((m.regs(0).rdi, m.regs(0).rcx, m.regs(0).rip), (0x9008, 0, CODE + 3));
}

/// Whatever user space makes of RCX while it answers, the instruction moves so many elements and ends with zero.
#[test]
fn rep_insb_with_another_count() {
    for (count, other) in [(2, 1), (3, 1000)] {
        let m = Machine::new();
        m.protected(0, &[0xf3, 0x6c]);
        m.with_regs(0, |r| (r.rdi, r.rcx, r.rdx) = (0x9000, count, 0x80));
        repeat(&m, io(0x80, 1, STRING | REP | INPUT), 2);
        assert!(matches!(m.run(0), Ok(Left::Io { count: n, .. }) if u64::from(n) == count));
        m.with_regs(0, |r| r.rcx = other);
        m.port_data(0).write(0, &[0xaa; 4096]);
        let asked = Left::Io { input: true, size: 1, port: 0x80, count: other as u32 };
        assert_eq!(m.run(0), Ok(asked), "for so many anew");
        m.port_data(0).write(0, &[0xaa; 4096]);
        m.run_out(0);
        let r = m.regs(0);
        assert_eq!((r.rdi, r.rcx, r.rip), (0x9000 + other, 0, CODE + 2));
    }
}

/// INS without a prefix does not count: what user space makes of RCX is the guest's, and the one element is not lost.
#[test]
fn insb_with_another_count() {
    let m = Machine::new();
    m.protected(0, &[0x6c]);
    m.with_regs(0, |r| (r.rdi, r.rcx, r.rdx) = (0x9000, 3, 0x80));
    m.sim.act(0, |c| match c.guest().rip {
        CODE => Outcome::Again(code::IOIO, io(0x80, 1, STRING | INPUT), CODE + 1),
        _ => Outcome::Next,
    });
    assert!(matches!(m.run(0), Ok(Left::Io { count: 1, .. })));
    m.with_regs(0, |r| r.rcx = 5);
    m.port_data(0).write(0, &[0xaa]);
    m.run_out(0);
    let r = m.regs(0);
    assert_eq!((r.rdi, r.rcx, r.rip), (0x9001, 5, CODE + 1));
}

/// The kernel has the port by the time that user space answers: the device has been read once.
#[test]
fn an_answer_for_a_port_that_the_kernel_has_by_now() {
    let m = crate::chips::machine(false);
    m.write_ram(CODE, &[0x6c]); // insb
    m.with_regs(0, |r| (r.rip, r.rdi, r.rdx) = (CODE, 0x9000, 0x61));
    m.sim.step(0, |c| (code::IOIO, io(0x61, 1, STRING | INPUT), c.guest().rip + 1));
    assert_eq!(m.run(0), Ok(Left::Io { input: true, size: 1, port: 0x61, count: 1 }));
    assert_eq!(m.vm_with(KVM_CREATE_PIT2, &kvm_pit_config::default()), Ok(0));
    m.port_data(0).write(0, &[0xaa]);
    m.run_out(0);
    assert_eq!((m.read_ram::<u8>(0x9000), m.regs(0).rip), (0xaa, CODE + 1));
}

/// A device takes what REP INS brings element by element, however much it is.
#[test]
fn rep_insb_to_a_device() {
    let m = Machine::new();
    m.protected(0, &[0xf3, 0x6c]);
    m.with_regs(0, |r| (r.rdi, r.rcx, r.rdx) = (MMIO, 300, 0xe0));
    repeat(&m, io(0xe0, 1, STRING | REP | INPUT), 2);
    for n in 0..300_u64 {
        assert_eq!(m.run(0), Ok(Left::Io { input: true, size: 1, port: 0xe0, count: 1 }));
        m.port_data(0).write(0, &[n as u8]);
        assert_eq!(m.run(0), Ok(Left::Mmio { gpa: MMIO + n, write: true, data: vec![n as u8] }));
    }
    m.run_out(0);
    assert_eq!((m.regs(0).rcx, m.regs(0).rip), (0, CODE + 2));
}

#[test]
fn ioeventfd_takes_its_port_without_user_space() {
    let m = Machine::new();
    m.real(0, &[0xe7, 0x90]);
    let event = kvm_ioeventfd { addr: 0x90, len: 4, fd: 3, flags: 2 | 1, datamatch: 7, ..Default::default() };
    assert_eq!(m.vm_with(KVM_IOEVENTFD, &event), Ok(0));
    m.with_regs(0, |r| r.rax = 7);
    out(&m, 0x90, 4, 2);
    m.run_out(0);
    assert_eq!((m.sim.event_count(3), m.regs(0).rip), (1, CODE + 2));
    // Another value, and another size, are user space's.
    m.with_regs(0, |r| r.rax = 8);
    out(&m, 0x90, 4, 2);
    assert!(matches!(m.run(0), Ok(Left::Io { input: false, .. })));
    m.with_regs(0, |r| r.rax = 7);
    out(&m, 0x90, 1, 2);
    assert!(matches!(m.run(0), Ok(Left::Io { input: false, size: 1, .. })));
    assert_eq!(m.sim.event_count(3), 1);
    m.end();
}

#[test]
fn a_trap_flag_traps_after_the_instruction() {
    let m = Machine::new();
    m.protected(0, &[0xe6, 0x80]);
    m.with_regs(0, |r| r.rflags = 0x102);
    out(&m, 0x80, 1, 2);
    assert!(matches!(m.run(0), Ok(Left::Io { .. })));
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(m.injected(0).iter().map(|e| e.vector()).collect::<Vec<_>>(), [1]);
}
