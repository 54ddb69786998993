//! The guest's FPU state: in the registers when the guest uses it, and no sooner; the guest cannot tell.

use abi::uapi::ioctl::*;
use abi::uapi::run::exit::MMIO_DATA;
use kvm_bindings::*;
use sim::SimCpu;
use sim::arch::exit::code;
use sim::host::{CpuFeatures, Errno, Fpu};
use tests::scenario::{CODE, DATA, Left, MMIO, Machine, PLAIN};

const NM: u64 = code::EXCP0 + 7;
const UD: u64 = code::EXCP0 + 6;
const OSXSAVE: u64 = 1 << 18;
const CR0: u64 = 0x8005_0033;
const TS: u64 = 1 << 3;
const MP: u64 = 1 << 1;
/// KVM_RUNs that load the state at once after its first use.
const EAGER: usize = 4;

/// Is the guest kept away from the registers?
fn kept_away(c: &mut SimCpu) -> bool {
    let away = c.vmcb().intercept_exceptions & 1 << 7 != 0;
    let (cr0, reads, writes) = (c.guest().cr0, c.vmcb().intercept_cr_read & 1, c.vmcb().intercept_cr_write & 1);
    // FWAIT looks at the state only with MP set; what the guest would see of CR0 is not its own.
    assert_eq!((cr0 & TS != 0 && cr0 & MP != 0, reads, writes), (away, away.into(), away.into()));
    away
}

fn machine(code: &[u8]) -> Machine {
    let m = Machine::new();
    m.long(0, code);
    m
}

fn cr0(m: &Machine) -> u64 {
    m.vcpu_get::<kvm_sregs>(0, KVM_GET_SREGS).cr0
}

#[test]
fn the_first_use_brings_it_and_the_guest_has_it_from_then_on() {
    let m = machine(&[0x0f, 0x28, 0xc1]); // movaps xmm0, xmm1
    m.does(0, |c| assert!(kept_away(c)));
    m.run_out(0);
    assert_eq!(cr0(&m), CR0, "not what the hardware runs with");
    m.exit(0, NM);
    m.does(0, |c| {
        assert!(!kept_away(c));
        assert_eq!((c.guest().cr0, c.guest().rip), (CR0, CODE), "the instruction runs again");
    });
    m.exit(0, code::CPUID);
    m.does(0, |c| assert!(!kept_away(c)));
    m.run_out(0);
    assert!(m.injected(0).is_empty());
    for _ in 0..EAGER {
        m.does(0, |c| assert!(!kept_away(c)));
        m.run_out(0);
    }
    m.does(0, |c| assert!(kept_away(c)));
    m.run_out(0);
    m.end();
}

#[test]
fn who_uses_it_always_is_seldom_asked() {
    let m = machine(&[0x0f, 0x28, 0xc1]);
    let mut asked = 0;
    for _ in 0..2000 {
        let away = m.inside(0, |c| c.core.fpu_use.eager() == 0);
        if away {
            m.exit(0, NM);
            asked += 1;
        }
        m.does(0, |c| assert!(!kept_away(c)));
        m.run_out(0);
    }
    assert!((2..25).contains(&asked), "{asked}");
}

#[test]
fn the_guests_own_cr0_is_what_it_reads_and_writes() {
    let m = machine(&[0x0f, 0x20, 0xc0]); // mov rax, cr0
    m.exit(0, code::CR0_READ);
    m.does(0, |c| assert!(kept_away(c)));
    m.run_out(0);
    assert_eq!((m.regs(0).rax, m.regs(0).rip), (CR0, CODE + 3));
    // It sets TS and clears MP for itself: #NM is its own once the state is there.
    m.write_ram(CODE, &[0x0f, 0x22, 0xc0]); // mov cr0, rax
    m.with_regs(0, |r| (r.rip, r.rax) = (CODE, (CR0 | TS) & !MP));
    m.exit(0, code::CR0_SEL_WRITE);
    m.does(0, |c| assert!(kept_away(c)));
    m.run_out(0);
    assert_eq!(cr0(&m), (CR0 | TS) & !MP);
    m.exit(0, NM);
    m.does(0, |c| {
        assert_eq!((c.guest().cr0, c.vmcb().intercept_exceptions & 1 << 7), ((CR0 | TS) & !MP, 0));
    });
    m.run_out(0);
}

#[test]
fn clts_while_it_is_away_does_not_open_the_hosts_registers() {
    let m = machine(&[0x0f, 0x06]); // clts
    let mut s: kvm_sregs = m.vcpu_get(0, KVM_GET_SREGS);
    s.cr0 |= TS;
    m.vcpu_with(0, KVM_SET_SREGS, &s).unwrap();
    m.does(0, |c| assert!(kept_away(c)));
    m.exit(0, 0x10); // write of CR0
    m.does(0, |c| assert!(kept_away(c)));
    m.run_out(0);
    assert_eq!((cr0(&m), m.regs(0).rip), (CR0, CODE + 2));
    m.exit(0, NM);
    m.does(0, |c| assert_eq!(c.guest().cr0, CR0));
    m.run_out(0);
}

#[test]
fn a_debugger_keeps_its_breakpoints() {
    let m = machine(&[0x90]);
    let debug = kvm_guest_debug { control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP, ..Default::default() };
    m.does(0, |c| assert!(kept_away(c)));
    m.run_out(0);
    m.vcpu_with(0, KVM_SET_GUEST_DEBUG, &debug).unwrap();
    m.does(0, |c| assert!(kept_away(c) && c.vmcb().intercept_exceptions & 1 << 3 != 0));
    m.exit(0, NM);
    m.does(0, |c| assert!(!kept_away(c) && c.vmcb().intercept_exceptions & 1 << 3 != 0));
    m.run_out(0);
}

/// MOVQ of an MMX register to a device and back: the x87 state becomes what such an instruction makes of it.
#[test]
fn mmx_registers_reach_devices() {
    let m = Machine::new();
    m.long(0, &[0x0f, 0x7f, 0x03, 0x0f, 0x6f, 0x0b]); // movq [rbx], mm0; movq mm1, [rbx]
    m.with_regs(0, |r| r.rbx = MMIO);
    // TOP is 3: what the area has first is register 3.
    let mut area = [0u8; 4096];
    m.inside(0, |c| c.core.fpu.get(&mut area, !0, 0));
    area[3] = 3 << 3;
    area[32 + 16 * 5..][..8].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
    m.inside(0, |c| c.core.fpu.set(&area, !0, &mut 0).unwrap());
    m.npf(0, MMIO, true);
    assert_eq!(m.run(0), Ok(Left::Mmio { gpa: MMIO, write: true, data: vec![1, 2, 3, 4, 5, 6, 7, 8] }));
    m.npf(0, MMIO, false);
    assert_eq!(m.run(0), Ok(Left::Mmio { gpa: MMIO, write: false, data: vec![0; 8] }));
    m.page(0).write(MMIO_DATA, &[9; 8]);
    m.run_out(0);
    assert_eq!(m.regs(0).rip, CODE + 6);
    m.inside(0, |c| c.core.fpu.get(&mut area, !0, 0));
    assert_eq!((area[3], area[4]), (0, 0xff), "TOP and the tags");
    assert_eq!(area[48..58], [9, 9, 9, 9, 9, 9, 9, 9, 0xff, 0xff]);
    // An exception that waits comes first.
    area[2] = 0x80;
    m.inside(0, |c| c.core.fpu.set(&area, !0, &mut 0).unwrap());
    m.with_regs(0, |r| r.rip = CODE);
    m.npf(0, MMIO, true);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!((m.injected(0)[0].vector(), m.regs(0).rip), (16, CODE));
}

/// A processor that does not answer every use of the state with #NM.
fn unguarded(code: &[u8]) -> Machine {
    let m = Machine::on(CpuFeatures { ts_guards_fpu: false, ..PLAIN });
    m.long(0, code);
    m
}

#[test]
fn where_not_every_use_is_seen_the_first_one_is_the_last_that_is_asked_about() {
    let m = unguarded(&[0x0f, 0x28, 0xc1]); // movaps xmm0, xmm1
    m.does(0, |c| assert!(kept_away(c)));
    m.run_out(0);
    m.does(0, |c| assert!(kept_away(c), "it has nothing yet"));
    m.exit(0, NM);
    for _ in 0..3 * 128 {
        m.does(0, |c| assert!(!kept_away(c)));
        m.run_out(0);
    }
    m.end();
}

#[test]
fn where_not_every_use_is_seen_what_user_space_brings_is_there() {
    let m = unguarded(&[0x90]);
    let mut area: kvm_fpu = m.vcpu_get(0, KVM_GET_FPU);
    m.vcpu_with(0, KVM_SET_FPU, &area).unwrap();
    m.does(0, |c| assert!(kept_away(c), "nothing, so far"));
    m.run_out(0);
    area.xmm[15][15] = 1;
    m.vcpu_with(0, KVM_SET_FPU, &area).unwrap();
    m.does(0, |c| assert!(!kept_away(c)));
    m.run_out(0);
}

/// XGETBV does not look at CR0.TS, and with ECX = 1 it shows which of the registers are in use; so do those that look at TS on
/// some processors only.
#[test]
fn what_wants_osxsave_finds_the_guests_registers_too() {
    for features in [PLAIN, CpuFeatures { ts_guards_fpu: false, ..PLAIN }] {
        let m = Machine::on(features);
        m.long(0, &[0x0f, 0x22, 0xe0]); // mov cr4, rax
        let cr4 = m.vcpu_get::<kvm_sregs>(0, KVM_GET_SREGS).cr4 | OSXSAVE;
        let osxsave = |c: &mut SimCpu| c.guest().cr4 & OSXSAVE != 0;
        m.with_regs(0, |r| r.rax = cr4);
        m.exit(0, 0x14);
        m.does(0, move |c| {
            assert!(kept_away(c) && !osxsave(c));
            assert_eq!(c.vmcb().intercept_cr_read >> 4 & 1, 1, "it reads its own");
        });
        m.run_out(0);
        let sregs: kvm_sregs = m.vcpu_get(0, KVM_GET_SREGS);
        assert_eq!(sregs.cr4, cr4);
        m.write_ram(CODE, &[0x0f, 0x01, 0xd0]); // xgetbv
        m.with_regs(0, |r| r.rip = CODE);
        m.exit(0, UD);
        m.does(0, move |c| assert!(!kept_away(c) && osxsave(c) && c.guest().rip == CODE, "it runs again"));
        m.run_out(0);
        assert!(m.injected(0).is_empty());
        // One that is undefined in any case.
        m.exit(0, UD);
        m.does(0, |_| ());
        m.run_out(0);
        assert_eq!(m.injected(0).iter().map(|e| e.vector()).collect::<Vec<_>>(), [6]);
        m.end();
    }
}

#[test]
fn without_osxsave_undefined_is_undefined_at_once() {
    let m = machine(&[0x0f, 0x01, 0xd0]);
    m.exit(0, UD);
    m.does(0, |c| assert!(kept_away(c)));
    m.run_out(0);
    assert_eq!(m.injected(0).iter().map(|e| e.vector()).collect::<Vec<_>>(), [6]);
    m.end();
}

/// A host without the component would refuse what KVM_GET_XSAVE shows here.
#[test]
fn components_that_the_guest_does_not_have_are_not_shown() {
    const XSTATE_BV: u64 = 512;
    let m = Machine::bare(PLAIN).unwrap();
    for (id, shown) in [(0, 3), (1, 7)] {
        let vcpu = if id == 0 { m.add_vcpu_without_cpuid(id) } else { m.add_vcpu(id) }.unwrap();
        assert_eq!(m.vcpu(vcpu, KVM_GET_XSAVE, DATA), Ok(0));
        m.put_at(DATA + XSTATE_BV, &7u64);
        assert_eq!(m.vcpu(vcpu, KVM_SET_XSAVE, DATA), Ok(0), "what the host has can be set");
        for cmd in [KVM_GET_XSAVE, KVM_GET_XSAVE2] {
            m.put_at(DATA + XSTATE_BV, &0u64);
            assert_eq!(m.vcpu(vcpu, cmd, DATA), Ok(0));
            assert_eq!(m.get_at::<u64>(DATA + XSTATE_BV), shown);
        }
        m.put_at(DATA + XSTATE_BV, &(7u64 | 1 << 9));
        assert_eq!(m.vcpu(vcpu, KVM_SET_XSAVE, DATA), Err(Errno::EINVAL));
    }
    m.end();
}
