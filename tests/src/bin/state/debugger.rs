//! A debugger in user space: what it leaves behind in the guest.

use crate::guest::{Chips, DONE, Guest, MMIO};
use anyhow::Result;
use iced_x86::{
    IcedError,
    code_asm::{CodeAssembler, al, dr6 as DR6, dr7 as DR7, dword_ptr, eax, ebx, rcx, rdi, rdx, rsi},
};
use kvm_bindings::{KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP, KVM_GUESTDBG_USE_SW_BP};
use tests::client::CODE;

const STEP: u32 = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
const HARDWARE: u32 = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
const SOFTWARE: u32 = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP;
const BLOCKED: u32 = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | kvm_bindings::KVM_GUESTDBG_BLOCKIRQ;
/// Where the guest stores.
const DATA: u64 = 0x6_0000;

/// The guest's own debug registers: nothing in force; a breakpoint of its own far away.
const OWN: [(u64, u64); 2] = [(0xffff_0ff0, 0x400), (0xffff_4ff1, 0x402)];

fn code(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.nop()?;
    a.mov(dword_ptr(rsi), eax)?;
    a.inc(ebx)?;
    a.cpuid()?;
    a.nop()?;
    a.mov(rdx, DR6)?;
    a.mov(rdi, DR7)?;
    a.pushfq()?;
    a.pop(rcx)
}

fn show(guest: &mut Guest, what: &str) -> Result<()> {
    let d = guest.vcpu.get_debug_regs()?;
    let (r, e) = (guest.vcpu.get_regs()?, guest.vcpu.get_vcpu_events()?);
    println!(
        "debugger, {what}: dr6 {:x} dr7 {:x} db {:x?} rip {:x} flags {:x} shadow {} exception {} {} {}",
        d.dr6,
        d.dr7,
        d.db,
        r.rip,
        r.rflags & !0x8d5,
        e.interrupt.shadow,
        e.exception.injected,
        e.exception.pending,
        e.exception.nr * (e.exception.injected | e.exception.pending)
    );
    Ok(())
}

/// A debugger works a while and goes; then the guest looks at its own registers.
pub fn leaves_no_trace() -> Result<()> {
    for (dr6, dr7) in OWN {
        for (name, control, registers) in [
            ("one step", STEP, [0; 8]),
            ("blocked step", BLOCKED, [0; 8]),
            ("breakpoint", HARDWARE, [CODE + 3, 0, 0, 0, 0, 0, 0, 0x402]),
            ("watchpoint", HARDWARE, [0, DATA, 0, 0, 0, 0, 0, 0x00d0_0408]),
            ("both", STEP | HARDWARE, [CODE + 1, 0, 0, 0, 0, 0, 0, 0x402]),
            ("int3", SOFTWARE, [0; 8]),
        ] {
            for exits in [1, 3] {
                let mut guest = Guest::new(Chips::Split, code)?;
                if name == "int3" {
                    guest.client.poke(CODE, &[0xcc]);
                }
                let mut d = guest.vcpu.get_debug_regs()?;
                (d.dr6, d.dr7, d.db) = (dr6, dr7, [0x7000, 0x7100, 0x7200, 0x7300]);
                guest.vcpu.set_debug_regs(&d)?;
                guest.regs(|r| (r.rsi, r.rax, r.rflags) = (DATA, 0x4000_0000, 0x202))?;
                let name = format!("{name} of {exits} with dr6 {dr6:x}");
                println!("debugger, {name}: set {}", guest.debug(control, registers));
                for n in 0..exits {
                    let exit = guest.run();
                    show(&mut guest, &format!("{name}, {n}: {exit}"))?;
                    if exit.starts_with(&format!("out {DONE:x}")) || name.starts_with("int3") {
                        break;
                    }
                    // A breakpoint at an instruction comes again until it is stepped over.
                    if registers[7] & 2 != 0 && exit.starts_with("debug") {
                        guest.regs(|r| r.rflags |= 1 << 16)?;
                    }
                }
                println!("debugger, {name}: off {}", guest.debug(0, [0; 8]));
                show(&mut guest, &format!("{name}, off"))?;
                if name.starts_with("int3") {
                    guest.client.poke(CODE, &[0x90]);
                }
                let exit = guest.run();
                let r = guest.vcpu.get_regs()?;
                // RFLAGS as PUSHF gave them, without those of the arithmetic.
                println!(
                    "debugger, {name}, guest: {exit} dr6 {:x} dr7 {:x} flags {:x} bx {:x}",
                    r.rdx,
                    r.rdi,
                    r.rcx & !0x8d5,
                    r.rbx
                );
                show(&mut guest, &format!("{name}, end"))?;
            }
        }
    }
    own_traps()
}

/// The guest's own single step and breakpoint, with nobody who debugs it.
fn own_traps() -> Result<()> {
    for (name, flags, db, dr7) in
        [("step", 0x102, 0, 0x400), ("breakpoint", 2, CODE + 1, 0x402), ("watchpoint", 2, DATA, 0xd_0402)]
    {
        let mut guest = Guest::new(Chips::Split, code)?;
        let mut d = guest.vcpu.get_debug_regs()?;
        (d.dr7, d.db[0]) = (dr7, db);
        guest.vcpu.set_debug_regs(&d)?;
        guest.regs(|r| (r.rsi, r.rax, r.rflags) = (DATA, 0x4000_0000, flags))?;
        let exit = guest.run();
        println!("own {name}: {exit} {}", guest.frame()?);
        show(&mut guest, &format!("own {name}"))?;
    }
    // Its own trap after instructions that the host does.
    for (name, f) in [
        ("cpuid", (|a| a.cpuid()) as fn(&mut CodeAssembler) -> Result<(), IcedError>),
        ("out", |a| a.out(0x70, al)),
        ("in", |a| a.in_(al, 0x70)),
    ] {
        let mut guest = Guest::new(Chips::Split, f)?;
        guest.regs(|r| (r.rsi, r.rax, r.rflags) = (MMIO, 0, 0x102))?;
        for n in 0..3 {
            let exit = guest.run();
            println!("own step over {name}, {n}: {exit} {}", guest.frame()?);
            show(&mut guest, &format!("own step over {name}, {n}"))?;
            if exit.starts_with("out f") {
                break;
            }
        }
    }
    Ok(())
}
