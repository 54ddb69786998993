//! What user space sees and sets between an exit and its completion.

use abi::uapi::ioctl::*;
use abi::uapi::run::at;
use kvm_bindings::*;
use sim::Outcome;
use sim::arch::exit::code;
use sim::host::Errno;
use tests::scenario::{CODE, Left, MMIO, Machine};

const ELSEWHERE: u64 = CODE + 0x100;
const INPUT: u64 = 1;

fn port(m: &Machine, port: u64, input: u64, len: u64) {
    m.sim.step(0, move |c| (code::IOIO, port << 16 | 1 << 4 | input, c.guest().rip + len));
    assert!(matches!(m.run(0), Ok(Left::Io { .. })));
}

#[test]
fn a_port_access_is_dropped_where_the_guest_has_been_put_elsewhere() {
    for input in [0, INPUT] {
        for real in [false, true] {
            let m = Machine::new();
            if real {
                m.real(0, &[0xe6, 0x70])
            } else {
                m.long(0, &[0xe6, 0x70])
            }
            m.with_regs(0, |r| r.rax = 0x1234);
            port(&m, 0x70, input, 2);
            m.port_data(0).set_u8(0, 0xee);
            m.with_regs(0, |r| r.rip = ELSEWHERE);
            m.does(0, |_| ());
            m.run_out(0);
            assert_eq!((m.regs(0).rip, m.regs(0).rax), (ELSEWHERE, 0x1234));
            // The next one is not affected.
            m.with_regs(0, |r| r.rip = CODE);
            port(&m, 0x70, input, 2);
            m.settle(0);
            assert_eq!(m.regs(0).rip, CODE + 2);
        }
    }
}

#[test]
fn port_7e_is_behind_the_instruction_unless_the_quirk_is_off() {
    for (off, seen) in [(0, CODE + 2), (u64::from(KVM_X86_QUIRK_OUT_7E_INC_RIP), CODE)] {
        let m = Machine::new();
        assert_eq!(m.enable(KVM_CAP_DISABLE_QUIRKS2, off), Ok(0));
        m.real(0, &[0xe6, 0x7e]);
        port(&m, 0x7e, 0, 2);
        assert_eq!(m.regs(0).rip, seen);
        m.settle(0);
        assert_eq!(m.regs(0).rip, CODE + 2);
    }
}

/// What the instruction writes is its own; everything else is as user space has set it.
#[test]
fn registers_that_are_set_while_a_device_is_read() {
    // The instruction, what it is to leave in RAX, and how it goes on.
    let cases: [(&'static [u8], u64, Option<Left>); 4] = [
        (&[0x8b, 0x06], 0xb4b3_b2b1, None),               // mov eax, [rsi]
        (&[0x8a, 0x06], 0x9988_7766_5544_33b1, None),     // mov al, [rsi]
        (&[0x03, 0x06], 0xb4b3_b2b1 + 0x5566_7788, None), // add eax, [rsi]
        (
            &[0x01, 0x06], // add [rsi], eax
            0x9988_7766_5544_3322,
            Some(Left::Mmio {
                gpa: MMIO,
                write: true,
                data: (0xb4b3_b2b1u32.wrapping_add(0x5566_7788)).to_le_bytes().to_vec(),
            }),
        ),
    ];
    for (bytes, rax, then) in cases {
        let m = Machine::new();
        m.long(0, bytes);
        m.with_regs(0, |r| (r.rax, r.rsi, r.rbx) = (0x1122_3344_5566_7788, MMIO, 1));
        m.npf(0, MMIO, false);
        assert!(matches!(m.run(0), Ok(Left::Mmio { gpa: MMIO, write: false, .. })));
        assert_eq!(m.regs(0).rip, CODE, "still to be completed");
        m.page(0).write(abi::uapi::run::exit::MMIO_DATA, &[0xb1, 0xb2, 0xb3, 0xb4, 0, 0, 0, 0]);
        m.with_regs(0, |r| (r.rax, r.rsi, r.rbx) = (0x9988_7766_5544_3322, MMIO + 0x40, 2));
        m.with_regs(0, |r| r.rip = ELSEWHERE);
        match then {
            Some(exit) => assert_eq!(m.run(0), Ok(exit)),
            None => m.settle(0),
        }
        let r = m.regs(0);
        // As on stock, RIP is the instruction's as well.
        assert_eq!(
            (r.rip, r.rax & 0xffff_ffff, r.rsi, r.rbx),
            (CODE + 2, rax & 0xffff_ffff, MMIO + 0x40, 2),
            "{bytes:x?}"
        );
    }
}

/// INIT between an exit and its answer: there is nothing left to complete.
#[test]
fn an_answer_after_init_is_dropped() {
    for bytes in [&[0x8b, 0x06][..], &[0x6c]] {
        let m = Machine::new();
        m.long(0, bytes);
        m.with_regs(0, |r| (r.rsi, r.rdi) = (MMIO, 0x9000));
        if bytes[0] == 0x6c {
            m.sim.step(0, |c| (code::IOIO, 0x70 << 16 | 1 << 4 | 4 | INPUT, c.guest().rip + 1));
        } else {
            m.npf(0, MMIO, false);
        }
        assert!(m.run(0).is_ok());
        let mut e: kvm_vcpu_events = m.vcpu_get(0, KVM_GET_VCPU_EVENTS);
        (e.flags, e.smi.latched_init) = (KVM_VCPUEVENT_VALID_SMM, 1);
        assert_eq!(m.vcpu_with(0, KVM_SET_VCPU_EVENTS, &e), Ok(0));
        assert_eq!(m.vcpu_get::<kvm_mp_state>(0, KVM_GET_MP_STATE).mp_state, KVM_MP_STATE_RUNNABLE);
        assert_eq!(m.regs(0).rip, 0xfff0);
        m.with_regs(0, |r| r.rax = 7);
        m.does(0, |c| assert_eq!((c.guest().rip, c.guest().rax), (0xfff0, 7)));
        m.run_out(0);
        assert_eq!(m.injected(0), []);
    }
}

/// CR8 without local APIC in the kernel.
#[test]
fn a_priority_that_is_lowered_is_told() {
    let m = Machine::without_irqchip();
    m.long(0, &[0x44, 0x0f, 0x22, 0xc0]); // mov cr8, rax
    let write = |m: &Machine, value: u64| {
        m.with_regs(0, |r| (r.rip, r.rax) = (CODE, value));
        m.sim.act(0, |c| {
            assert!(c.vmcb().intercept_cr_write & 1 << 8 != 0, "each write exits");
            Outcome::Exit(0x18, 0, 0)
        });
        let left = m.run(0);
        assert_eq!(m.regs(0).rip, CODE + 4);
        left
    };
    for (value, told) in [(9, false), (9, false), (12, false), (3, true), (3, false), (0, true)] {
        let left = write(&m, value);
        assert_eq!(left == Ok(Left::Other(KVM_EXIT_SET_TPR)), told, "{value}: {left:?}");
        assert_eq!(m.page(0).u64(at::CR8), value);
    }
    // What user space leaves in `kvm_run` counts, with `immediate_exit` as well.
    m.page(0).set_u64(at::CR8, 7);
    m.page(0).set_u8(at::IMMEDIATE_EXIT, 1);
    assert!(matches!(m.run(0), Err((Errno::EINTR, _))));
    m.page(0).set_u8(at::IMMEDIATE_EXIT, 0);
    assert_eq!(m.vcpu_get::<kvm_sregs>(0, KVM_GET_SREGS).cr8, 7);
    assert_eq!(write(&m, 6), Ok(Left::Other(KVM_EXIT_SET_TPR)));
}

#[test]
fn an_interrupt_of_user_spaces_controllers_moves() {
    let m = Machine::without_irqchip();
    m.long(0, &[]);
    m.with_regs(0, |r| r.rflags |= 0x200);
    assert_eq!(m.vcpu_with(0, KVM_INTERRUPT, &kvm_interrupt { irq: 0x41 }), Ok(0));
    m.page(0).set_u8(at::IMMEDIATE_EXIT, 1);
    assert!(m.run(0).is_err());
    let s: kvm_sregs = m.vcpu_get(0, KVM_GET_SREGS);
    let e: kvm_vcpu_events = m.vcpu_get(0, KVM_GET_VCPU_EVENTS);
    assert_eq!((s.interrupt_bitmap, e.interrupt.injected, e.interrupt.nr), ([0, 2, 0, 0], 1, 0x41));
    for with_events in [false, true] {
        let other = Machine::without_irqchip();
        other.long(0, &[]);
        other.with_regs(0, |r| r.rflags |= 0x200);
        if with_events {
            assert_eq!(other.vcpu_with(0, KVM_SET_VCPU_EVENTS, &e), Ok(0));
        } else {
            let s = kvm_sregs { interrupt_bitmap: s.interrupt_bitmap, ..other.vcpu_get(0, KVM_GET_SREGS) };
            assert_eq!(other.vcpu_with(0, KVM_SET_SREGS, &s), Ok(0));
        }
        other.does(0, |_| ());
        other.run_out(0);
        assert_eq!(other.injected(0).iter().map(|e| e.vector()).collect::<Vec<_>>(), [0x41]);
        assert_eq!(other.vcpu_get::<kvm_sregs>(0, KVM_GET_SREGS).interrupt_bitmap, [0; 4]);
    }
}

/// What a SHUTDOWN leaves in the save area is undefined (APM 15.14.3): nothing of it reaches the next entry.
#[test]
fn nothing_is_left_of_a_shutdown() {
    let m = Machine::new();
    m.long(0, &[]);
    m.sim.step(0, |c| {
        let save = c.guest();
        (save.dbgctl, save.br_from, save.br_to, save.last_excp_from) = (!0, !0, !0, !0);
        (save.star, save.lstar, save.sysenter_eip, save.kernel_gs_base) = (!0, !0, !0, !0);
        (save.g_pat, save.dr6, save.cpl) = (!0, !0, 3);
        (code::SHUTDOWN, 0, 0)
    });
    assert_eq!(m.run(0), Ok(Left::Shutdown));
    m.does(0, |c| {
        let save = c.guest();
        assert_eq!((save.dbgctl, save.br_from, save.br_to, save.last_excp_from), (0, 0, 0, 0));
        assert_eq!((save.star, save.lstar, save.sysenter_eip, save.kernel_gs_base), (0, 0, 0, 0));
        assert_eq!((save.g_pat, save.dr6, save.cpl), (0x0007_0406_0007_0406, 0xffff_0ff0, 0));
        assert_eq!((save.rip, save.cs.selector), (0xfff0, 0xf000));
    });
    m.run_out(0);
}

/// It is as INIT for the rest of the vCPU, but that it does not wait for SIPI: what was on its way is gone, its local APIC is off and
/// its timer silent; PAT is what it was.
#[test]
fn a_shutdown_is_an_init() {
    const PAT: u64 = 0x0406_0606_0606_0606;
    let m = Machine::new();
    m.long(0, &[]);
    m.x2apic(0);
    assert_eq!(m.set_msr(0, 0x277, PAT), Ok(1));
    let msi = |data| m.vm_with(KVM_SIGNAL_MSI, &kvm_msi { address_lo: 0xfee0_0000, data, ..Default::default() });
    m.with_regs(0, |r| r.rflags |= 0x200);
    // 0x41 is in service, 0x35 waits behind it, the timer counts, an NMI is on its way.
    assert_eq!((msi(0x41), msi(0x35)), (Ok(1), Ok(1)));
    for (register, value) in [(0x808, 0x20), (0x832, 0x31), (0x835, 1 << 16), (0x838, 1000)] {
        m.wrmsr(0, register, value);
    }
    m.run_out(0);
    assert_eq!(m.vcpu(0, KVM_NMI, 0), Ok(0));
    m.sim.step(0, |c| {
        c.guest().g_pat = !0;
        (code::SHUTDOWN, 0, 0)
    });
    assert_eq!(m.run(0), Ok(Left::Shutdown));
    let state: kvm_lapic_state = m.vcpu_get(0, KVM_GET_LAPIC);
    let register = |at: usize| u32::from_le_bytes(std::array::from_fn(|n| state.regs[at + n] as u8));
    assert_eq!([0x80, 0xf0, 0x320, 0x350, 0x380, 0x390].map(register), [0, 0xff, 1 << 16, 0x700, 0, 0]);
    let vectors = (0x100..0x280).step_by(16);
    assert!(vectors.map(register).all(|vectors| vectors == 0), "nothing is served, nothing waits");
    let e: kvm_vcpu_events = m.vcpu_get(0, KVM_GET_VCPU_EVENTS);
    assert_eq!((e.nmi.pending, e.nmi.injected, msi(0x51)), (0, 0, Ok(0)));
    let running: kvm_mp_state = m.vcpu_get(0, KVM_GET_MP_STATE);
    assert_eq!((running.mp_state, m.msr(0, 0x277), m.msr(0, 0x1b) & 0xfff), (KVM_MP_STATE_RUNNABLE, PAT, 0xd00));
    let before = (m.taken(0), m.injected(0));
    m.sim.advance(1_000_000);
    m.interrupt_flag(0, true);
    m.does(0, |c| assert_eq!((c.guest().g_pat, c.guest().rip), (PAT, 0xfff0)));
    m.run_out(0);
    assert_eq!((m.taken(0), m.injected(0)), before);
    m.end();
}

/// The header is there whether there is nested virtualisation or not: clients save it.
#[test]
fn nested_state_is_a_bare_header() {
    let m = Machine::new();
    let at = tests::scenario::DATA;
    for (size, result) in [(0, Err(Errno::E2BIG)), (127, Err(Errno::E2BIG)), (128, Ok(0)), (4224, Ok(0))] {
        m.put_at(at, &[0u32, size]);
        assert_eq!(m.vcpu(0, KVM_GET_NESTED_STATE, at), result);
        assert_eq!(m.get_at::<u32>(at + 4), 128);
    }
    assert_eq!(m.get_at::<[u32; 4]>(at), [0x1_0100, 128, 0, 0]);
    assert_eq!(m.vcpu(0, KVM_SET_NESTED_STATE, at), Ok(0));
    for (flags_and_format, size) in
        [(0x1_0101, 128), (0x1_0000, 128), (0x0_0100, 128), (0x2_0100, 128), (0x1_0100, 127)]
    {
        m.put_at(at, &[flags_and_format, size]);
        assert_eq!(m.vcpu(0, KVM_SET_NESTED_STATE, at), Err(Errno::EINVAL), "{flags_and_format:x} {size}");
    }
}

/// XSETBV without CR4.OSXSAVE, on a processor that intercepts it first.
#[test]
fn xsetbv_is_undefined_without_osxsave() {
    let m = Machine::new();
    m.long(0, &[0x0f, 0x01, 0xd1]);
    m.with_regs(0, |r| (r.rax, r.rcx) = (3, 0));
    m.exit(0, code::XSETBV);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(m.injected(0).iter().map(|e| e.vector()).collect::<Vec<_>>(), [6]);
    assert_eq!(m.regs(0).rip, CODE);
}
