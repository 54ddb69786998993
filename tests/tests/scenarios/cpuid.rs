//! CPUID exits.

use sim::arch::exit::code;
use sim::host::Errno;
use tests::scenario::{CODE, Left, Machine, RAM_HVA};

type Mode = fn(&Machine, usize, &[u8]);
const MODES: [(&str, Mode); 3] = [("real", Machine::real), ("protected", Machine::protected), ("long", Machine::long)];

#[test]
fn fills_registers_and_moves_on_in_every_mode() {
    for (name, mode) in MODES {
        for prefixes in [&[][..], &[0x66], &[0xf3, 0x2e], &[0x67, 0x66, 0x3e, 0x26]] {
            let m = Machine::new();
            let bytes = [prefixes, &[0x0f, 0xa2]].concat();
            mode(&m, 0, &bytes);
            m.with_regs(0, |r| (r.rax, r.rcx, r.rbx) = (0xffff_ffff_0000_0000, 0, !0));
            m.exit(0, code::CPUID);
            m.run_out(0);
            let r = m.regs(0);
            assert_eq!(r.rip, CODE + bytes.len() as u64, "{name} {prefixes:x?}");
            assert_eq!([r.rbx, r.rdx, r.rcx], [0x6874_7541, 0x6974_6e65, 0x444d_4163], "AuthenticAMD");
            assert!(r.rax >> 32 == 0 && r.rax >= 0xd, "{:#x}", r.rax);
            m.end();
        }
    }
}

#[test]
fn rex_prefix_counts_in_64_bit_mode_only() {
    let m = Machine::new();
    m.long(0, &[0x48, 0x0f, 0xa2]);
    m.exit(0, code::CPUID);
    m.run_out(0);
    assert_eq!(m.regs(0).rip, CODE + 3);
}

#[test]
fn next_rip_of_the_hardware_is_taken() {
    let m = Machine::bare(sim::host::CpuFeatures { nrips: true, ..tests::scenario::PLAIN }).unwrap();
    m.add_vcpu(0).unwrap();
    // There is no memory at all: looking at the instruction would fail.
    m.sim.step(0, |c| {
        c.vmcb().next_rip = 0x1234;
        (code::CPUID, 0, 0)
    });
    m.run_out(0);
    assert_eq!(m.regs(0).rip, 0x1234);
}

#[test]
fn bytes_that_cross_a_page() {
    let m = Machine::new();
    m.long(0, &[]);
    m.write_ram(0x9ffe, &[0x2e, 0x0f, 0xa2]);
    m.with_regs(0, |r| r.rip = 0x9ffe);
    m.exit(0, code::CPUID);
    m.run_out(0);
    assert_eq!(m.regs(0).rip, 0xa001);
}

#[test]
fn code_that_the_vmm_has_unmapped_is_its_own_fault() {
    let m = Machine::new();
    m.long(0, &[0x0f, 0xa2]);
    m.exit(0, code::CPUID);
    m.host_changes(CODE, 1, sim::Page::Absent);
    assert_eq!(m.run(0), Err((Errno::EFAULT, Left::MemoryFault { gpa: CODE })));
}

/// The processor does not say where the next instruction is, and the code is gone when that is looked for. The instruction has
/// changed registers, and cannot begin anew.
#[test]
fn code_that_somebody_has_to_bring_first() {
    let m = Machine::new();
    m.long(0, &[0x0f, 0xa2]);
    m.with_regs(0, |r| r.rax = 0x8000_0000);
    m.exit(0, code::CPUID);
    m.host_changes(CODE, 1, sim::Page::Missing);
    let sim = m.sim.clone();
    m.sim.during_wait(move || sim.set_page(RAM_HVA + CODE, sim::Page::Writable));
    m.run_out(0);
    let vendor = u64::from(u32::from_le_bytes(*b"Auth"));
    assert_eq!((m.regs(0).rip, m.regs(0).rbx), (CODE + 2, vendor));
}
