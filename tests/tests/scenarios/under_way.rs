//! Instructions that wait for user space, with what else happens before they are complete: registers that are set, memory that
//! fails, slots that change. What a device has said is asked for once, and what is done is not done again.

use abi::uapi::ioctl::*;
use abi::uapi::run::exit::MMIO_DATA;
use kvm_bindings::*;
use sim::Page;
use sim::arch::Hva;
use sim::arch::exit::code;
use sim::host::{Errno, Host};
use tests::scenario::{CODE, Left, MMIO, Machine, RAM, RAM_HVA};

const ELSEWHERE: u64 = CODE + 0x100;
const TO: u64 = 0x9000;
const TF: u64 = 1 << 8;
const REP_MOVSB: &[u8] = &[0xf3, 0xa4];
const STEPS: u32 = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;

fn read(gpa: u64, len: usize) -> Left {
    Left::Mmio { gpa, write: false, data: vec![0; len] }
}

fn answer(m: &Machine, data: &[u8]) {
    m.page(0).write(MMIO_DATA, data);
}

/// A guest in 64-bit mode whose next instruction is met by a nested fault at RSI.
fn reads(code: &[u8], rsi: u64, rcx: u64) -> Machine {
    let m = Machine::new();
    m.long(0, code);
    m.with_regs(0, |r| (r.rsi, r.rdi, r.rbx, r.rcx) = (rsi, TO, rsi, rcx));
    m.npf(0, rsi, false);
    m
}

fn debug(m: &Machine, control: u32) {
    assert_eq!(m.vcpu_with(0, KVM_SET_GUEST_DEBUG, &kvm_guest_debug { control, ..Default::default() }), Ok(0));
}

/// A slot above memory, from `gpa` on.
fn slot(m: &Machine, gpa: u64) {
    assert_eq!(m.region(1, 0, gpa, 0x1000, RAM_HVA + RAM), Ok(0));
}

#[test]
fn a_repeated_read_goes_on_where_it_was_when_registers_are_set() {
    for times in 1..=3 {
        let m = reads(REP_MOVSB, MMIO, 3);
        for n in 0..3 {
            assert_eq!(m.run(0), Ok(read(MMIO + n, 1)));
            if n < times {
                m.with_regs(0, |r| r.rbx = n);
            }
            answer(&m, &[0xa0 + n as u8]);
        }
        m.run_out(0);
        let r = m.regs(0);
        assert_eq!((r.rip, r.rcx, r.rsi, r.rdi, r.rbx), (CODE + 2, 0, MMIO + 3, TO + 3, times - 1));
        assert_eq!(m.read_ram::<[u8; 3]>(TO), [0xa0, 0xa1, 0xa2]);
    }
    // repne scasb: RDI is what steps on, and the flags are those of the last element.
    let m = reads(&[0xf2, 0xae], MMIO, 5);
    m.with_regs(0, |r| (r.rdi, r.rax) = (MMIO, 0xa1));
    for n in 0..2 {
        assert_eq!(m.run(0), Ok(read(MMIO + n, 1)));
        m.with_regs(0, |_| ());
        answer(&m, &[0xa0 + n as u8]);
    }
    m.run_out(0);
    let r = m.regs(0);
    assert_eq!((r.rip, r.rcx, r.rdi, r.rflags & 0x40), (CODE + 2, 3, MMIO + 2, 0x40));
}

#[test]
fn a_debugger_steps_or_does_so_no_more_while_a_device_is_read() {
    for code in [&[0x48, 0x8b, 0x03][..], &[0x48, 0x03, 0x03]] {
        // mov rax, [rbx]; add rax, [rbx]
        let m = reads(code, MMIO, 0);
        assert_eq!(m.run(0), Ok(read(MMIO, 8)));
        m.with_regs(0, |_| ());
        debug(&m, STEPS);
        assert_eq!(m.run(0), Ok(Left::Debug { exception: 1, pc: CODE + 3, dr6: 0xffff_4ff0 }));
        let m = reads(code, MMIO, 0);
        debug(&m, STEPS);
        assert_eq!(m.run(0), Ok(read(MMIO, 8)));
        m.with_regs(0, |_| ());
        debug(&m, 0);
        m.does(0, |c| assert_eq!((c.guest().rip, c.guest().rflags & TF, c.injected.len()), (CODE + 3, 0, 0)));
        m.run_out(0);
    }
}

/// The second element is memory of the VMM's that fails: the instruction is over, and what it was is not remembered.
#[test]
fn an_instruction_that_ends_without_an_exit_leaves_nothing() {
    for how in [Page::Absent, Page::Missing, Page::Poisoned] {
        let m = reads(REP_MOVSB, MMIO + 0xfff, 2);
        slot(&m, MMIO + 0x1000);
        m.sim.set_page(RAM_HVA + RAM, how);
        assert_eq!(m.run(0), Ok(read(MMIO + 0xfff, 1)));
        m.with_regs(0, |r| r.rip = ELSEWHERE);
        answer(&m, &[0xa0]);
        match how {
            Page::Absent => {
                assert_eq!(m.run(0), Err((Errno::EFAULT, Left::MemoryFault { gpa: MMIO + 0x1000 })));
            }
            _ => assert_eq!(m.run(0), Err((Errno::EINTR, Left::Intr)), "{how:?}"),
        }
        let at = |m: &Machine| (m.regs(0).rip, m.regs(0).rcx, m.regs(0).rdi);
        assert_eq!(at(&m), (ELSEWHERE, 1, TO + 1), "{how:?}");
        // in al, 0x70
        m.write_ram(ELSEWHERE, &[0xe4, 0x70]);
        m.sim.step(0, |c| (code::IOIO, 0x70 << 16 | 1 << 4 | 1, c.guest().rip + 2));
        assert!(matches!(m.run(0), Ok(Left::Io { .. })));
        m.port_data(0).set_u8(0, 0x5a);
        m.settle(0);
        assert_eq!((at(&m), m.regs(0).rax), ((ELSEWHERE + 2, 1, TO + 1), 0x5a), "{how:?}");
    }
}

/// Another processor marks the descriptor while this one does: the device that named it is not asked again.
#[test]
fn a_race_for_a_descriptor_does_not_lose_an_answer() {
    const GDT: u64 = 0x6000;
    let data = 0x00cf_9200_0000_ffff_u64;
    for set in [false, true] {
        let m = reads(&[0x8e, 0x1b], MMIO, 0); // mov ds, [rbx]
        m.write_ram(GDT + 0x18, &data.to_le_bytes());
        let mut s: kvm_sregs = m.vcpu_get(0, KVM_GET_SREGS);
        (s.gdt.base, s.gdt.limit) = (GDT, 0x1f);
        assert_eq!(m.vcpu_with(0, KVM_SET_SREGS, &s), Ok(0));
        assert_eq!(m.run(0), Ok(read(MMIO, 2)));
        if set {
            m.with_regs(0, |r| r.rip = ELSEWHERE);
        }
        answer(&m, &[0x18, 0]);
        let (sim, marked) = (m.sim.clone(), data | 1 << 40);
        m.sim.before_exchange(move || {
            sim.write_user(Hva(RAM_HVA + GDT + 0x18), &marked.to_le_bytes()).expect("guest memory");
        });
        m.does(0, |c| assert_eq!((c.guest().rip, c.guest().ds.selector), (CODE + 2, 0x18)));
        m.run_out(0);
    }
    // A race that cannot be won, for memory that has taken the device's place, is lost: RIP is as user space has set it.
    let m = reads(&[0xf0, 0x01, 0x03], MMIO, 0); // lock add [rbx], eax
    assert_eq!(m.run(0), Ok(read(MMIO, 4)));
    slot(&m, MMIO);
    m.with_regs(0, |r| r.rip = ELSEWHERE);
    answer(&m, &[1, 0, 0, 0]);
    m.does(0, |c| assert_eq!(c.guest().rip, ELSEWHERE));
    m.run_out(0);
}

/// A guest in protected mode that reads `rcx` bytes from a port to `rdi`.
fn inputs(m: &Machine, port: u64, rdi: u64, rcx: u64) {
    m.write_ram(CODE, &[0xf3, 0x6c]); // rep insb
    m.with_regs(0, |r| (r.rip, r.rdx, r.rdi, r.rcx) = (CODE, port, rdi, rcx));
    m.sim.step(0, move |c| (code::IOIO, port << 16 | 1 << 4 | 8 | 4 | 1, c.guest().rip + 2));
}

fn bytes(n: usize) -> Vec<u8> {
    (0..n).map(|n| (n ^ n >> 8) as u8).collect()
}

/// A port, which cannot be read again, is answered for memory that is a device's by now.
#[test]
fn an_answer_for_a_slot_that_is_gone() {
    for n in [4, 8, 300, 1024] {
        let m = Machine::new();
        m.protected(0, &[]);
        slot(&m, MMIO);
        inputs(&m, 0x80, MMIO, n as u64);
        assert_eq!(m.run(0), Ok(Left::Io { input: true, size: 1, port: 0x80, count: n as u32 }));
        assert_eq!(m.region(1, 0, MMIO, 0, RAM_HVA + RAM), Ok(0));
        m.port_data(0).write(0, &bytes(n));
        for (k, data) in bytes(n).chunks(8).enumerate() {
            let write = Left::Mmio { gpa: MMIO + 8 * k as u64, write: true, data: data.to_vec() };
            assert_eq!(m.run(0), Ok(write));
        }
        m.run_out(0);
        let r = m.regs(0);
        assert_eq!((r.rip, r.rcx, r.rdi), (CODE + 2, 0, MMIO + n as u64));
    }
}

/// A debugger that steps gets one element at a time, but not of what has been answered.
#[test]
fn an_answer_for_a_debugger_who_steps_by_now() {
    let m = Machine::new();
    m.protected(0, &[]);
    inputs(&m, 0x80, TO, 8);
    assert_eq!(m.run(0), Ok(Left::Io { input: true, size: 1, port: 0x80, count: 8 }));
    m.with_regs(0, |_| ());
    debug(&m, STEPS);
    m.port_data(0).write(0, b"sector!.");
    assert_eq!(m.run(0), Ok(Left::Debug { exception: 1, pc: CODE + 2, dr6: 0xffff_4ff0 }));
    assert_eq!((m.regs(0).rcx, m.read_ram::<[u8; 8]>(TO)), (0, *b"sector!."));
}

/// A device has been read, and the memory that this goes to fails: the VMM brings it, and the device is not asked again.
#[test]
fn an_answer_outlives_memory_that_fails() {
    let efault = || Err((Errno::EFAULT, Left::MemoryFault { gpa: TO }));
    let from_device = || {
        let m = reads(&[0xa4], MMIO, 0); // movsb
        assert_eq!(m.run(0), Ok(read(MMIO, 1)));
        answer(&m, &[0xa0]);
        m
    };
    let from_port = || {
        let m = Machine::new();
        m.protected(0, &[]);
        inputs(&m, 0x80, TO, 1);
        assert!(matches!(m.run(0), Ok(Left::Io { count: 1, .. })));
        m.port_data(0).write(0, &[0xa0]);
        m
    };
    for device in [true, false] {
        for (set, settle) in [(false, false), (true, false), (false, true)] {
            let (m, next) = if device { (from_device(), CODE + 1) } else { (from_port(), CODE + 2) };
            m.host_changes(TO, 1, Page::Absent);
            for _ in 0..2 {
                assert_eq!((m.run(0), m.regs(0).rip), (efault(), CODE));
                if set {
                    m.with_regs(0, |r| r.rbx = 7);
                }
            }
            m.host_changes(TO, 1, Page::Writable);
            if settle {
                m.settle(0)
            } else {
                m.run_out(0)
            }
            let r = m.regs(0);
            assert_eq!((r.rip, r.rdi, m.read_ram::<u8>(TO)), (next, TO + 1, 0xa0));
            assert_eq!(r.rbx == 7, set);
        }
        // The VMM gives the guest something else to do.
        let m = if device { from_device() } else { from_port() };
        m.host_changes(TO, 1, Page::Absent);
        assert_eq!(m.run(0), efault());
        m.with_regs(0, |r| r.rip = ELSEWHERE);
        m.does(0, |c| assert_eq!(c.guest().rip, ELSEWHERE));
        m.run_out(0);
        assert_eq!(m.regs(0).rdi, TO);
    }
}

/// The same for a device in the kernel, and memory that a signal does not let the thread wait for.
#[test]
fn a_device_in_the_kernel_is_read_once() {
    for how in [Page::Missing, Page::Absent] {
        let m = crate::chips::machine(true);
        // The first counter, two bytes, counts from 0x1234; it is latched.
        for (port, value) in [(0x43, 0x34), (0x40, 0x34), (0x40, 0x12), (0x43, 0)] {
            crate::chips::out(&m, port, value);
        }
        m.run_out(0);
        m.host_changes(TO, 1, how);
        inputs(&m, 0x40, TO, 1);
        if how == Page::Missing {
            let sim = m.sim.clone();
            m.sim.during_wait(move || sim.set_page(RAM_HVA + TO, Page::Writable));
        } else {
            assert_eq!(m.run(0), Err((Errno::EFAULT, Left::MemoryFault { gpa: TO })));
            m.host_changes(TO, 1, Page::Writable);
        }
        m.run_out(0);
        inputs(&m, 0x40, TO + 1, 1);
        m.run_out(0);
        assert_eq!(m.read_ram::<[u8; 2]>(TO), [0x34, 0x12], "{how:?}");
    }
}

/// The half of a write that a device takes is posted once, however often the other half fails.
#[test]
fn half_of_a_write_is_not_posted_again() {
    let m = reads(&[0x48, 0xa5], MMIO, 0); // movsq
    let to = MMIO + 0x2ffc;
    slot(&m, MMIO + 0x3000);
    m.with_regs(0, |r| r.rdi = to);
    m.sim.set_page(RAM_HVA + RAM, Page::Absent);
    assert_eq!(m.run(0), Ok(read(MMIO, 8)));
    answer(&m, &[1, 2, 3, 4, 5, 6, 7, 8]);
    for _ in 0..40 {
        assert_eq!(m.run(0), Err((Errno::EFAULT, Left::MemoryFault { gpa: MMIO + 0x3000 })));
    }
    m.sim.set_page(RAM_HVA + RAM, Page::Writable);
    assert_eq!(m.run(0), Ok(Left::Mmio { gpa: to, write: true, data: vec![1, 2, 3, 4] }));
    m.run_out(0);
    assert_eq!((m.regs(0).rip, m.regs(0).rdi), (CODE + 2, to + 8));
}

/// A VMM that cannot bring the memory gives the guest an exception instead.
#[test]
fn an_exception_takes_the_place_of_memory_that_fails() {
    let m = reads(&[0xa4], MMIO, 0); // movsb
    assert_eq!(m.run(0), Ok(read(MMIO, 1)));
    answer(&m, &[0xa0]);
    m.host_changes(TO, 1, Page::Absent);
    assert_eq!(m.run(0), Err((Errno::EFAULT, Left::MemoryFault { gpa: TO })));
    let mut e: kvm_vcpu_events = m.vcpu_get(0, KVM_GET_VCPU_EVENTS);
    (e.exception.injected, e.exception.nr) = (1, 18);
    assert_eq!(m.vcpu_with(0, KVM_SET_VCPU_EVENTS, &e), Ok(0));
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(m.injected(0).iter().map(|e| e.vector()).collect::<Vec<_>>(), [18]);
    assert_eq!(m.regs(0).rip, CODE);
}
