//! Accesses to addresses that are nobody's: through the emulator to user space and back.

use abi::uapi::ioctl::{KVM_GET_FPU, KVM_GET_VCPU_EVENTS, KVM_IOEVENTFD, KVM_SET_GUEST_DEBUG};
use abi::uapi::run::exit::MMIO_DATA;
use kvm_bindings::{kvm_fpu, kvm_guest_debug, kvm_ioeventfd, kvm_vcpu_events};
use sim::Outcome;
use sim::arch::exit::code;
use sim::host::{Cpu, CpuFeatures, Errno};
use tests::scenario::{CODE, Left, MMIO, Machine, PLAIN, RAM, RAM_HVA};

/// mov rax, [rbx]
const LOAD: [u8; 3] = [0x48, 0x8b, 0x03];
/// mov [rbx], rax
const STORE: [u8; 3] = [0x48, 0x89, 0x03];

fn read(gpa: u64, len: usize) -> Left {
    Left::Mmio { gpa, write: false, data: vec![0; len] }
}

fn write(gpa: u64, data: &[u8]) -> Left {
    Left::Mmio { gpa, write: true, data: data.to_vec() }
}

/// A VM that is about to execute `code` with RBX = `rbx`.
fn machine(code: &[u8], rbx: u64) -> Machine {
    let m = Machine::new();
    m.long(0, code);
    m.with_regs(0, |r| r.rbx = rbx);
    m
}

fn answer(m: &Machine, data: &[u8]) {
    m.page(0).write(MMIO_DATA, data);
}

#[test]
fn read_completes_with_the_answer() {
    let m = machine(&LOAD, MMIO);
    m.npf(0, MMIO, false);
    assert_eq!(m.run(0), Ok(read(MMIO, 8)));
    assert_eq!(m.regs(0).rip, CODE, "not done yet");
    answer(&m, &0x0123_4567_89ab_cdefu64.to_le_bytes());
    m.run_out(0);
    assert_eq!((m.regs(0).rax, m.regs(0).rip), (0x0123_4567_89ab_cdef, CODE + 3));
    m.end();
}

#[test]
fn write_is_over_when_user_space_sees_it() {
    let m = machine(&STORE, MMIO + 8);
    m.with_regs(0, |r| r.rax = 0x1122_3344_5566_7788);
    m.npf(0, MMIO + 8, true);
    assert_eq!(m.run(0), Ok(write(MMIO + 8, &0x1122_3344_5566_7788u64.to_le_bytes())));
    assert_eq!(m.regs(0).rip, CODE + 3);
    m.run_out(0);
    assert_eq!(m.regs(0).rip, CODE + 3);
}

#[test]
fn misaligned_read_is_one() {
    let m = machine(&LOAD, MMIO + 5);
    m.npf(0, MMIO + 5, false);
    assert_eq!(m.run(0), Ok(read(MMIO + 5, 8)));
    answer(&m, &[1, 2, 3, 4, 5, 6, 7, 8]);
    m.run_out(0);
    assert_eq!(m.regs(0).rax, 0x0807_0605_0403_0201);
}

#[test]
fn access_across_a_page_is_two() {
    let m = machine(&[LOAD, STORE].concat(), MMIO + 0xffc);
    m.npf(0, MMIO + 0xffc, false);
    assert_eq!(m.run(0), Ok(read(MMIO + 0xffc, 4)));
    answer(&m, &[1, 2, 3, 4]);
    assert_eq!(m.run(0), Ok(read(MMIO + 0x1000, 4)));
    answer(&m, &[5, 6, 7, 8]);
    m.npf(0, MMIO + 0xffc, true);
    assert_eq!(m.run(0), Ok(write(MMIO + 0xffc, &[1, 2, 3, 4])));
    assert_eq!(m.run(0), Ok(write(MMIO + 0x1000, &[5, 6, 7, 8])));
    m.run_out(0);
    assert_eq!(m.regs(0).rip, CODE + 6);
}

#[test]
fn access_that_begins_in_memory() {
    let m = machine(&[LOAD, STORE].concat(), RAM - 4);
    m.write_ram(RAM - 4, &[1, 2, 3, 4]);
    m.npf(0, RAM, false);
    assert_eq!(m.run(0), Ok(read(RAM, 4)));
    answer(&m, &[5, 6, 7, 8]);
    m.run_out(0);
    assert_eq!(m.regs(0).rax, 0x0807_0605_0403_0201);
    m.write_ram(RAM - 4, &[0; 4]);
    m.npf(0, RAM, true);
    assert_eq!(m.run(0), Ok(write(RAM, &[5, 6, 7, 8])));
    m.run_out(0);
    assert_eq!(m.read_ram::<[u8; 4]>(RAM - 4), [1, 2, 3, 4]);
}

#[test]
fn read_modify_write_reads_then_writes() {
    let m = machine(&[0x01, 0x03], MMIO); // add [rbx], eax
    m.with_regs(0, |r| r.rax = 5);
    m.npf(0, MMIO, true);
    assert_eq!(m.run(0), Ok(read(MMIO, 4)));
    answer(&m, &37u32.to_le_bytes());
    assert_eq!(m.run(0), Ok(write(MMIO, &42u32.to_le_bytes())));
    m.run_out(0);
    assert_eq!(m.regs(0).rip, CODE + 2);
}

#[test]
fn sixteen_bytes_are_two_writes() {
    let m = machine(&[0x0f, 0x11, 0x03], MMIO); // movups [rbx], xmm0
    m.inside(0, |c| {
        use sim::host::Fpu;
        c.core.fpu.load();
        c.core.fpu.set_vector(0, &std::array::from_fn(|i| i as u8), false);
        c.core.fpu.put();
    });
    m.npf(0, MMIO, true);
    assert_eq!(m.run(0), Ok(write(MMIO, &[0, 1, 2, 3, 4, 5, 6, 7])));
    assert_eq!(m.run(0), Ok(write(MMIO + 8, &[8, 9, 10, 11, 12, 13, 14, 15])));
    m.run_out(0);
}

#[test]
fn rep_stos_to_a_device() {
    let m = machine(&[0xf3, 0xaa], 0);
    m.with_regs(0, |r| (r.rdi, r.rcx, r.rax) = (MMIO, 3, 0x55));
    m.sim.act(0, |c| match c.gpr(1) {
        0 => Outcome::Next,
        _ => Outcome::Again(code::NPF, 1 << 32 | 6, c.gpr(7)),
    });
    for n in 0..3 {
        assert_eq!(m.run(0), Ok(write(MMIO + n, &[0x55])));
    }
    m.run_out(0);
    assert_eq!((m.regs(0).rip, m.regs(0).rdi), (CODE + 2, MMIO + 3));
}

#[test]
fn decode_assists_spare_the_fetch() {
    let m = Machine::bare(CpuFeatures { decode_assists: true, ..PLAIN }).unwrap();
    m.region(0, 0, 0, RAM, RAM_HVA).unwrap();
    m.add_vcpu(0).unwrap();
    m.long(0, &[0xcc]); // not what the processor had fetched
    m.with_regs(0, |r| r.rbx = MMIO);
    m.sim.step(0, |c| {
        c.vmcb().insn_len = 3;
        c.vmcb().insn_bytes[..3].copy_from_slice(&LOAD);
        (code::NPF, 1 << 32 | 4, MMIO)
    });
    assert_eq!(m.run(0), Ok(read(MMIO, 8)));
}

/// They are given with page faults (APM 15.8.4). What is there after another exit is nobody's.
#[test]
fn bytes_that_come_with_another_exit_do_not_count() {
    let m = Machine::bare(CpuFeatures { decode_assists: true, ..PLAIN }).unwrap();
    m.region(0, 0, 0, RAM, RAM_HVA).unwrap();
    m.add_vcpu(0).unwrap();
    m.long(0, &[0x6e]); // outsb
    m.with_regs(0, |r| (r.rsi, r.rdx) = (0x9000, 0x80));
    m.sim.step(0, |c| {
        c.vmcb().insn_len = 15;
        c.vmcb().insn_bytes[..3].copy_from_slice(&LOAD);
        (code::IOIO, 0x80 << 16 | 1 << 4 | 4, c.guest().rip + 1)
    });
    assert_eq!(m.run(0), Ok(Left::Io { input: false, size: 1, port: 0x80, count: 1 }));
    m.run_out(0);
    assert_eq!(m.regs(0).rip, CODE + 1);
}

#[test]
fn registers_changed_in_between_do_not_move_the_access() {
    let m = machine(&LOAD, MMIO);
    m.npf(0, MMIO, false);
    assert_eq!(m.run(0), Ok(read(MMIO, 8)));
    m.with_regs(0, |r| r.rbx = MMIO + 0x100);
    answer(&m, &[1; 8]);
    m.run_out(0);
    assert_eq!((m.regs(0).rax, m.regs(0).rbx), (0x0101_0101_0101_0101, MMIO + 0x100));
}

#[test]
fn page_fault_of_the_emulated_instruction() {
    // ADD has read; the write goes to memory that the guest's own tables do not map any more: #PF, not an access.
    let m = machine(&[0x01, 0x03], MMIO);
    m.write_ram(0x3000 + 3 * 0x1000 + 8 * ((MMIO >> 21) & 511), &0u64.to_le_bytes());
    m.npf(0, MMIO, false);
    m.does(0, |c| assert_eq!(c.guest().cr2, MMIO));
    m.run_out(0);
    let e = m.injected(0);
    assert_eq!((e.len(), e[0].vector(), e[0].error_code()), (1, 14, Some(2)));
    assert_eq!(m.regs(0).rip, CODE);
}

/// The processor has walked the guest's tables for the access that faulted; another access of the instruction it has not.
#[test]
fn the_processors_own_walk_is_believed_for_its_access_only() {
    let unmapped = |m: &Machine| m.write_ram(0x3000 + 3 * 0x1000 + 8 * ((MMIO >> 21) & 511), &0u64.to_le_bytes());
    let m = machine(&STORE, MMIO);
    unmapped(&m);
    m.npf(0, MMIO, true);
    assert_eq!(m.run(0), Ok(write(MMIO, &[0; 8])));
    let m = machine(&LOAD, MMIO);
    m.npf(0, MMIO, false);
    assert_eq!(m.run(0), Ok(read(MMIO, 8)));
    unmapped(&m);
    answer(&m, &[7; 8]);
    m.run_out(0);
    assert_eq!(m.regs(0).rax, 0x0707_0707_0707_0707);
    // At another offset, by an instruction that uses the stack as well, and after a fault in the tables themselves.
    let faults = |code: &[u8], gpa: u64, info: u64| {
        let m = machine(code, MMIO + 8);
        unmapped(&m);
        m.sim.step(0, move |_| (code::NPF, info, gpa));
        m.does(0, |_| ());
        m.run_out(0);
        m.injected(0).len()
    };
    const FINAL: u64 = 1 << 32 | 4;
    assert_eq!(faults(&LOAD, MMIO + 16, FINAL), 1);
    assert_eq!(faults(&[0xff, 0x33], MMIO + 8, FINAL), 1, "push [rbx]");
    assert_eq!(faults(&LOAD, MMIO + 8, 1 << 33 | 4), 1);
}

#[test]
fn ioeventfd_takes_its_address_without_user_space() {
    let m = machine(&[0x89, 0x03, 0x89, 0x03], MMIO); // mov [rbx], eax
    let event = kvm_ioeventfd { addr: MMIO, len: 4, fd: 1, ..Default::default() };
    assert_eq!(m.vm_with(KVM_IOEVENTFD, &event), Ok(0));
    m.npf(0, MMIO, true);
    m.run_out(0);
    assert_eq!((m.sim.event_count(1), m.regs(0).rip), (1, CODE + 2));
    assert_eq!(m.vm_with(KVM_IOEVENTFD, &kvm_ioeventfd { flags: 4, ..event }), Ok(0));
    m.npf(0, MMIO, true);
    assert_eq!(m.run(0), Ok(write(MMIO, &[0; 4])));
    assert_eq!(m.sim.event_count(1), 1);
}

#[test]
fn local_apic_page_is_served_in_the_kernel() {
    let m = machine(&[0x8b, 0x03], 0xfee0_0030); // mov eax, [rbx]: version
    m.npf(0, 0xfee0_0030, false);
    m.run_out(0);
    assert_eq!(m.regs(0).rax & 0xff, 0x14);
    assert_eq!(m.regs(0).rip, CODE + 2);
}

/// A debugger in user space that steps over a device access sees the access, and then that the step is over.
#[test]
fn a_single_step_ends_when_user_space_has_seen_the_access() {
    let stepped = Ok(Left::Debug { exception: 1, pc: CODE + 3, dr6: 0xffff_4ff0 });
    let machine = |code: &[u8]| {
        let m = machine(code, MMIO);
        let debug = kvm_guest_debug { control: 1 | 2, ..Default::default() };
        assert_eq!(m.vcpu_with(0, KVM_SET_GUEST_DEBUG, &debug), Ok(0));
        m
    };
    let m = machine(&STORE);
    m.npf(0, MMIO, true);
    assert_eq!(m.run(0), Ok(write(MMIO, &m.regs(0).rax.to_le_bytes())));
    assert_eq!(m.run(0), stepped);
    m.does(0, |c| assert!(c.injected.is_empty()));
    m.run_out(0);

    let m = machine(&LOAD);
    m.npf(0, MMIO, false);
    assert_eq!(m.run(0), Ok(read(MMIO, 8)));
    assert_eq!(m.run(0), stepped);

    let m = machine(&[0x66, 0xe7, 0x80]); // out 0x80, ax
    let out = Ok(Left::Io { input: false, size: 2, port: 0x80, count: 1 });
    let port = |m: &Machine| m.sim.step(0, |c| (code::IOIO, 0x80 << 16 | 2 << 4, c.guest().rip + 3));
    port(&m);
    assert_eq!(m.run(0), out);
    assert_eq!(m.run(0), stepped);
    // Called off while user space looks at the write.
    m.with_regs(0, |r| r.rip = CODE);
    port(&m);
    assert_eq!(m.run(0), out);
    assert_eq!(m.vcpu_with(0, KVM_SET_GUEST_DEBUG, &kvm_guest_debug::default()), Ok(0));
    m.does(0, |c| assert!(c.injected.is_empty()));
    m.run_out(0);
}

#[test]
fn ioeventfds_are_as_many_as_memory_allows() {
    const MANY: u64 = 3000;
    let m = machine(&STORE, MMIO + 8 * MANY);
    let event = |n: u64| kvm_ioeventfd { addr: MMIO + 8 * n, len: 8, fd: 1, ..Default::default() };
    for n in (1..=MANY).rev() {
        assert_eq!(m.vm_with(KVM_IOEVENTFD, &event(n)), Ok(0), "{n}");
    }
    assert_eq!(m.vm_with(KVM_IOEVENTFD, &kvm_ioeventfd { len: 0, ..event(MANY) }), Err(Errno::EEXIST));
    m.npf(0, MMIO + 8 * MANY, true);
    m.run_out(0);
    assert_eq!(m.regs(0).rip, CODE + 3, "the last one takes the write");
}

/// The device has been read once, and what it said is what the guest gets.
#[test]
fn an_answer_counts_although_there_is_memory_by_now() {
    let slot = |m: &Machine| assert_eq!(m.region(1, 0, MMIO, 0x1000, RAM_HVA + RAM), Ok(0));
    let m = machine(&[0x48, 0x03, 0x03], MMIO); // add rax, [rbx]
    m.with_regs(0, |r| r.rax = 5);
    m.npf(0, MMIO, false);
    assert_eq!(m.run(0), Ok(read(MMIO, 8)));
    slot(&m);
    answer(&m, &37u64.to_le_bytes());
    m.run_out(0);
    assert_eq!((m.regs(0).rax, m.regs(0).rip), (42, CODE + 3));
    // Of one access that is asked for in two parts both are the device's.
    let m = machine(&[0x0f, 0x10, 0x03], MMIO); // movups xmm0, [rbx]
    m.npf(0, MMIO, false);
    assert_eq!(m.run(0), Ok(read(MMIO, 8)));
    slot(&m);
    answer(&m, &[1; 8]);
    assert_eq!(m.run(0), Ok(read(MMIO + 8, 8)));
    answer(&m, &[2; 8]);
    m.run_out(0);
    assert_eq!(m.vcpu_get::<kvm_fpu>(0, KVM_GET_FPU).xmm[0][..], [[1; 8], [2; 8]].concat());
}

/// An instruction that lost a race has done nothing: it is still the one in the shadow.
#[test]
fn a_lost_race_does_not_end_the_interrupt_shadow() {
    let m = machine(&[0xf0, 0x01, 0x03], MMIO); // lock add [rbx], eax
    m.sim.step(0, |c| {
        c.vmcb().int_state = 1;
        (code::NPF, 1 << 32 | 6, MMIO)
    });
    assert_eq!(m.run(0), Ok(read(MMIO, 4)));
    // Memory, which holds something else than the device.
    assert_eq!(m.region(1, 0, MMIO, 0x1000, RAM_HVA + RAM), Ok(0));
    answer(&m, &37u32.to_le_bytes());
    m.run_out(0);
    let shadow = |m: &Machine| m.vcpu_get::<kvm_vcpu_events>(0, KVM_GET_VCPU_EVENTS).interrupt.shadow;
    assert_eq!((m.regs(0).rip, shadow(&m) != 0), (CODE, true));
    m.npf(0, MMIO, true);
    m.run_out(0);
}

/// A load of SS holds a trap off until the next instruction is over, but not the step of a debugger.
#[test]
fn a_trap_waits_behind_a_load_of_ss() {
    let load = || {
        let m = machine(&[0x8e, 0x13], MMIO); // mov ss, [rbx]
        m.inside(0, |c| c.core.cpu.single_steps = true);
        m
    };
    let m = load();
    m.with_regs(0, |r| r.rflags |= 0x100);
    m.npf(0, MMIO, false);
    assert_eq!(m.run(0), Ok(read(MMIO, 2)));
    answer(&m, &[0, 0]);
    m.does(0, |c| assert_eq!((c.guest().rip, c.injected.len()), (CODE + 2, 0)));
    m.does(0, |c| assert_eq!(c.injected.iter().map(|(e, _)| e.vector()).collect::<Vec<_>>(), [1]));
    m.run_out(0);
    let m = load();
    let debug = kvm_guest_debug { control: 1 | 2, ..Default::default() };
    assert_eq!(m.vcpu_with(0, KVM_SET_GUEST_DEBUG, &debug), Ok(0));
    m.npf(0, MMIO, false);
    assert_eq!(m.run(0), Ok(read(MMIO, 2)));
    answer(&m, &[0, 0]);
    assert_eq!(m.run(0), Ok(Left::Debug { exception: 1, pc: CODE + 2, dr6: 0xffff_4ff0 }));
}
