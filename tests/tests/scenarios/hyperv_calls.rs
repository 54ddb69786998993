//! Hypercalls of a guest of Hyper-V's.

use abi::uapi::ioctl::*;
use kvm_bindings::*;
use sim::arch::exit::code;
use sim::host::Errno::{EBADF, EEXIST, EINVAL, ENOENT};
use tests::scenario::{Left, MMIO, Machine, NOWHERE, flushed};

const GUEST_OS_ID: u32 = 0x4000_0000;
const VP_INDEX: u32 = 0x4000_0002;
const FAST: u64 = 1 << 16;
const INPUT: u64 = 0xb000;

const SUCCESS: u64 = 0;
const INVALID_CODE: u64 = 2;
const INVALID_INPUT: u64 = 3;
const INVALID_ALIGNMENT: u64 = 4;
const INVALID_PARAMETER: u64 = 5;
const OPERATION_DENIED: u64 = 8;
const INVALID_PORT_ID: u64 = 0x11;

fn var(count: u64) -> u64 {
    count << 17
}

fn reps(count: u64) -> u64 {
    count << 32
}

/// So many vCPUs; the first makes hypercalls, the local APICs of all are on.
fn machine(vcpus: u64) -> Machine {
    let m = Machine::hyperv();
    for id in 1..vcpus {
        let v = m.add_hyperv_vcpu(id, |_| ());
        let runnable = kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE };
        assert_eq!(m.vcpu_with(v, KVM_SET_MP_STATE, &runnable), Ok(0));
        m.long(v, &[]);
        m.x2apic(v);
    }
    m.wrmsr(0, GUEST_OS_ID, 1);
    m.run_out(0);
    m
}

fn words(m: &Machine, words: &[u64]) {
    for (n, word) in words.iter().enumerate() {
        m.write_ram(INPUT + 8 * n as u64, &word.to_le_bytes());
    }
}

/// XMM0 and so on.
fn xmm(m: &Machine, words: &[u64]) {
    let mut fpu: kvm_fpu = m.vcpu_get(0, KVM_GET_FPU);
    for (n, word) in words.iter().enumerate() {
        fpu.xmm[n / 2][n % 2 * 8..][..8].copy_from_slice(&word.to_le_bytes());
    }
    assert_eq!(m.vcpu_with(0, KVM_SET_FPU, &fpu), Ok(0));
}

/// Vectors in IRR of each vCPU, and forgets them.
fn received(m: &Machine) -> Vec<Vec<u8>> {
    m.engine()
        .vcpus()
        .map(|v| {
            let mut apic: kvm_lapic_state = m.vcpu_get(v.index, KVM_GET_LAPIC);
            let bit = |n: usize| apic.regs[0x200 + 0x10 * (n / 32) + n % 32 / 8] as u8 >> (n % 8) & 1 != 0;
            let vectors = (0..256).filter(|n| bit(*n)).map(|n| n as u8).collect();
            for register in 0..8 {
                apic.regs[0x200 + 0x10 * register..][..4].fill(0);
            }
            assert_eq!(m.vcpu_with(v.index, KVM_SET_LAPIC, &apic), Ok(0));
            vectors
        })
        .collect()
}

/// Are the translations of each vCPU flushed as often as this says? Where it says nothing, that does not matter.
fn flushes<const N: usize>(m: &Machine, times: [Option<usize>; N]) -> bool {
    let before: Vec<usize> = (0..N).map(|v| m.inside(v, |c| c.core.cpu.flushes)).collect();
    before.into_iter().zip(times).enumerate().all(|(v, (before, times))| {
        m.does(v, |_| ());
        m.run_out(v);
        times.is_none_or(|times| flushed(m, v, before, times))
    })
}

#[test]
fn who_has_not_said_what_he_is_calls_kvm() {
    let m = Machine::hyperv();
    // In RAX there is no number that KVM knows.
    assert_eq!(m.called(0, 8, 0, 0) as i64, -1000);
    m.wrmsr(0, GUEST_OS_ID, 1);
    m.run_out(0);
    assert_eq!(m.called(0, 8, 0, 0), SUCCESS);
    for (value, status) in [(0, INVALID_CODE), (1, INVALID_CODE), (0x7fff, INVALID_CODE), (0xffff, INVALID_CODE)] {
        assert_eq!(m.called(0, value, 0, 0), status, "{value:x}");
    }
    for reserved in [27, 30, 31, 44, 47, 60, 63] {
        assert_eq!(m.called(0, 8 | 1 << reserved, 0, 0), INVALID_INPUT, "bit {reserved}");
    }
    for shape in [var(1), reps(1), 1 << 48] {
        assert_eq!(m.called(0, 8 | shape, 0, 0), INVALID_INPUT);
    }
}

#[test]
fn only_the_kernel_in_protected_mode_calls() {
    let m = machine(1);
    m.does(0, |c| c.guest().cpl = 3);
    m.hypercall(0, 8, 0, 0);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(m.injected(0).last().map(|e| e.vector()), Some(6));
    let m = machine(1);
    // 32-bit code has its words in halves, and its result as well.
    m.protected(0, &[0x0f, 0x01, 0xd9]);
    words(&m, &[0, 1, 0, 0x1000, 0x2000]);
    m.with_regs(0, |r| {
        (r.rax, r.rdx) = (0xdead_0000_0003, 2);
        (r.rcx, r.rbx, r.rsi, r.rdi) = (INPUT, 0, 0, 0);
    });
    m.exit(0, code::VMMCALL);
    m.run_out(0);
    let r = m.regs(0);
    assert_eq!((r.rax, r.rdx), (SUCCESS, 2), "two repetitions");
    m.real(0, &[0x0f, 0x01, 0xd9]);
    m.exit(0, code::VMMCALL);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(m.injected(0).last().map(|e| e.vector()), Some(6));
}

#[test]
fn interrupts() {
    let m = machine(3);
    assert_eq!(m.called(0, 0xb | FAST, 0x41, 0b110), SUCCESS);
    assert_eq!(received(&m), [vec![], vec![0x41], vec![0x41]]);
    words(&m, &[0x42, 0b11 | 1 << 63]);
    assert_eq!(m.called(0, 0xb, INPUT, 0), SUCCESS);
    assert_eq!(received(&m), [vec![0x42], vec![0x42], vec![]]);
    for (value, input, output) in [
        (0xb | FAST, 0xf, 1),
        (0xb | FAST, 0x100, 1),
        (0xb | FAST, 0x41 | 1 << 32, 1),
        (0xb | FAST | var(1), 0x41, 1),
        (0xb | FAST | reps(1), 0x41, 1),
        (0xb, MMIO, 0),
        (0xb, !7, 0),
        (0xb, 0x3f_fff8, 0),
    ] {
        assert_eq!(m.called(0, value, input, output), INVALID_INPUT, "{value:x} {input:x}");
    }
    assert_eq!(received(&m), [vec![], vec![], vec![]]);
}

#[test]
fn interrupts_by_sparse_banks() {
    let m = machine(3);
    assert_eq!(m.set_msr(2, VP_INDEX, 130), Ok(1));
    // Banks 0 and 2.
    words(&m, &[0x41, 0, 0b101, 0b11, 0b100]);
    assert_eq!(m.called(0, 0x15 | var(2), INPUT, 0), SUCCESS);
    assert_eq!(received(&m), [vec![0x41], vec![0x41], vec![0x41]]);
    xmm(&m, &[0b100, 0b100]);
    assert_eq!(m.called(0, 0x15 | FAST | var(1), 0x42, 0), SUCCESS);
    assert_eq!(received(&m), [vec![], vec![], vec![0x42]]);
    // All, whatever the banks.
    assert_eq!(m.called(0, 0x15 | FAST | var(1), 0x43, 1), SUCCESS);
    assert_eq!(received(&m), [vec![0x43], vec![0x43], vec![0x43]]);
    // Nobody.
    xmm(&m, &[0, 0]);
    assert_eq!(m.called(0, 0x15 | FAST, 0x44, 0), SUCCESS);
    // Numbers are places again.
    assert_eq!(m.set_msr(2, VP_INDEX, 2), Ok(1));
    xmm(&m, &[1 << 5 | 1, 0b110, !0]);
    assert_eq!(m.called(0, 0x15 | FAST | var(2), 0x45, 0), SUCCESS);
    assert_eq!(received(&m), [vec![], vec![0x45], vec![0x45]]);
    // The count of banks has to be right; eleven words fit the registers behind the header.
    xmm(&m, &[0b1]);
    for count in [0, 2] {
        assert_eq!(m.called(0, 0x15 | FAST | var(count), 0x41, 0), INVALID_INPUT);
    }
    xmm(&m, &[(1 << 12) - 1]);
    assert_eq!(m.called(0, 0x15 | FAST | var(12), 0x41, 0), INVALID_INPUT);
    words(&m, &[0x41, 0, !0, 0, 0]);
    assert_eq!(m.called(0, 0x15 | var(64), INPUT, 0), SUCCESS);
    assert_eq!(m.called(0, 0x15 | var(64), 0x3f_ffe0, 0), INVALID_INPUT, "beyond memory");
    assert_eq!(received(&m), [vec![], vec![], vec![]]);
}

#[test]
fn flushes_of_other_processors() {
    let m = machine(3);
    flushes(&m, [None; 3]);
    words(&m, &[0, 0, 0b010]);
    assert_eq!(m.called(0, 2, INPUT, 0), SUCCESS);
    assert!(flushes(&m, [Some(0), Some(1), Some(0)]));
    // All: by the flag, and where nobody is named.
    for (flags, mask) in [(1, 0b010), (0, 0)] {
        words(&m, &[0x1000, flags, mask]);
        assert_eq!(m.called(0, 2, INPUT, 0), SUCCESS);
        assert!(flushes(&m, [None, Some(1), Some(1)]));
    }
    // A list of addresses: in memory, in registers, and too long to be looked at.
    words(&m, &[0, 0, 0b100, 0x1000, 0x2fff]);
    assert_eq!(m.called(0, 3 | reps(2), INPUT, 0), 2 << 32);
    assert!(flushes(&m, [Some(0), Some(0), Some(1)]));
    xmm(&m, &[0b100, 0x1000]);
    assert_eq!(m.called(0, 3 | FAST | reps(1), 0, 0), 1 << 32);
    assert!(flushes(&m, [Some(0), Some(0), Some(1)]));
    assert_eq!(m.called(0, 3 | FAST | reps(11), 0, 0), 11 << 32);
    assert_eq!(m.called(0, 3 | FAST | reps(12), 0, 0), INVALID_INPUT, "there are no more registers");
    assert_eq!(m.called(0, 3 | reps(4095), INPUT, 0), 4095 << 32);
    for value in [3, 3 | reps(2) | 1 << 48, 3 | reps(1) | var(1), 2 | reps(1), 2 | var(1)] {
        assert_eq!(m.called(0, value, INPUT, 0), INVALID_INPUT, "{value:x}");
    }
    for at in [MMIO, 0x3f_fff0, !7] {
        assert_eq!(m.called(0, 2, at, 0), INVALID_INPUT, "{at:x}");
        assert_eq!(m.called(0, 3 | reps(1), at, 0), INVALID_INPUT, "{at:x}");
    }
    m.end();
}

#[test]
fn flushes_by_sparse_banks() {
    let m = machine(3);
    flushes(&m, [None; 3]);
    words(&m, &[0, 0, 0, 0b1, 0b110, 0x1000]);
    assert_eq!(m.called(0, 0x14 | var(1) | reps(1), INPUT, 0), 1 << 32);
    assert!(flushes(&m, [Some(0), Some(1), Some(1)]));
    xmm(&m, &[0, 0b1, 0b100]);
    assert_eq!(m.called(0, 0x13 | FAST | var(1), 0, 0), SUCCESS);
    assert!(flushes(&m, [Some(0), Some(0), Some(1)]));
    // Any other format stands for all; banks that are there are skipped.
    xmm(&m, &[1, 0b1, 0, 0x1000]);
    assert_eq!(m.called(0, 0x14 | FAST | var(1) | reps(1), 0, 0), 1 << 32);
    assert!(flushes(&m, [None, Some(1), Some(1)]));
    assert_eq!(m.called(0, 0x14 | FAST | var(1) | reps(10), 0, 0), INVALID_INPUT);
    // Nobody is flushed.
    words(&m, &[0, 0, 0, 0]);
    assert_eq!(m.called(0, 0x13, INPUT, 0), SUCCESS);
    assert!(flushes(&m, [Some(0), Some(0), Some(0)]));
    assert_eq!(m.called(0, 0x13 | var(1), INPUT, 0), INVALID_INPUT);
}

#[test]
fn input_in_xmm_registers_is_undefined_for_who_does_not_have_it() {
    let m = Machine::without_vcpu(true);
    m.add_hyperv_vcpu(0, |l| {
        if l.function == 0x4000_0003 {
            l.edx &= !(1 << 4);
        }
    });
    m.long(0, &[]);
    assert_eq!(m.set_msr(0, GUEST_OS_ID, 1), Ok(1));
    assert_eq!(m.called(0, 2 | FAST, 0, 1), SUCCESS, "it is not enforced");
    assert_eq!(m.enable_vcpu(0, KVM_CAP_HYPERV_ENFORCE_CPUID, 1), Ok(0));
    m.hypercall(0, 2 | FAST, 0, 1);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(m.injected(0).last().map(|e| e.vector()), Some(6));
}

#[test]
fn some_calls_are_user_spaces() {
    let m = machine(1);
    for (value, input) in [(0x5c, INPUT), (0x5c | FAST, 5), (0x8001, INPUT), (0x8041, 0), (0x5d | FAST, 77)] {
        m.hypercall(0, value, input, 0x1234);
        let words = [value, 0, input, 0x1234, 0, 0];
        assert_eq!(m.run(0), Ok(Left::Hyperv { kind: KVM_EXIT_HYPERV_HCALL, words }));
        m.page(0).set_u64(48, 0x1_0000_0007);
        let rip = m.regs(0).rip;
        m.settle(0);
        assert_eq!((m.regs(0).rax, m.regs(0).rip), (0x1_0000_0007, rip + 3));
    }
    for value in [0x8001 | FAST, 0x69 | FAST, 0x6a | FAST] {
        assert_eq!(m.called(0, value, 0, 0), INVALID_PARAMETER);
    }
    for value in [0x5c | reps(1), 0x5c | var(1), 0x5d | var(1)] {
        assert_eq!(m.called(0, value, 0, 0), INVALID_INPUT);
    }
    assert_eq!(m.called(0, 0x8042, 0, 0), INVALID_CODE);
    // The debugger's, once it uses such calls.
    assert_eq!(m.called(0, 0x6b, 0, 0), OPERATION_DENIED);
    assert_eq!(m.set_msr(0, 0x4000_00ff, 4), Ok(1));
    m.hypercall(0, 0x6b, 1, 2);
    assert!(matches!(m.run(0), Ok(Left::Hyperv { kind: KVM_EXIT_HYPERV_HCALL, .. })));
    m.settle(0);
    // Messages want somebody who has switched the interrupt controller on.
    let m = Machine::without_vcpu(true);
    m.add_hyperv_vcpu(0, |_| ());
    m.long(0, &[]);
    assert_eq!(m.set_msr(0, GUEST_OS_ID, 1), Ok(1));
    assert_eq!((m.called(0, 0x5c, 0, 0), m.called(0, 0x5d | FAST, 77, 0)), (INVALID_INPUT, INVALID_INPUT));
    assert_eq!(m.called(0, 0x8001 | FAST, 0, 0), INVALID_PARAMETER);
}

#[test]
fn events_are_eventfds() {
    let m = machine(1);
    let bind = |conn_id, fd, flags| {
        m.vm_with(KVM_HYPERV_EVENTFD, &kvm_hyperv_eventfd { conn_id, fd, flags, ..Default::default() })
    };
    assert_eq!(m.vm(KVM_HYPERV_EVENTFD, NOWHERE), Err(sim::host::Errno::EFAULT));
    for (id, fd, flags, result) in [
        (5, 3, 0, Ok(0)),
        (5, 3, 0, Err(EEXIST)),
        (0xff_ffff, 4, 0, Ok(0)),
        (1 << 24, 4, 0, Err(EINVAL)),
        (6, 3, 2, Err(EINVAL)),
        (6, 3, 1, Err(ENOENT)),
        (1 << 24, 3, 1, Err(EINVAL)),
        (6, -1, 0, Err(EBADF)),
    ] {
        assert_eq!(bind(id, fd, flags), result, "{id:x} {fd} {flags}");
    }
    assert_eq!(m.called(0, 0x5d | FAST, 5, 0), SUCCESS);
    words(&m, &[0xff_ffff]);
    assert_eq!(m.called(0, 0x5d, INPUT, 0), SUCCESS);
    assert_eq!((m.sim.event_count(3), m.sim.event_count(4)), (1, 1));
    for (value, input, status) in [
        (0x5d, INPUT + 4, INVALID_ALIGNMENT),
        (0x5d, MMIO, INVALID_ALIGNMENT),
        (0x5d | FAST, 1 << 24, INVALID_INPUT),
        (0x5d | FAST, 1 << 48, INVALID_INPUT),
    ] {
        assert_eq!(m.called(0, value, input, 0), status, "{input:x}");
    }
    // With a number of the flag, or unknown: user space's, if it is there.
    m.hypercall(0, 0x5d | FAST, 5 | 1 << 32, 0);
    assert!(matches!(m.run(0), Ok(Left::Hyperv { kind: KVM_EXIT_HYPERV_HCALL, .. })));
    m.page(0).set_u64(48, INVALID_PORT_ID);
    m.settle(0);
    assert_eq!(bind(5, -1, 1), Ok(0));
    assert_eq!(bind(5, 3, 1), Err(ENOENT));
    m.end();
}
