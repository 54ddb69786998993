//! Every kind of exit: where RIP is, and what becomes of the registers that user space sets before it completes it.

use crate::guest::{Chips, ELSEWHERE, Guest, MMIO, MOVED};
use anyhow::Result;
use iced_x86::{IcedError, code_asm::*};
use kvm_bindings::{
    KVM_CAP_EXIT_HYPERCALL, KVM_CAP_X86_USER_SPACE_MSR, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_USE_SW_BP, kvm_enable_cap,
};
use tests::client::CODE;

type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// A name, which controllers are in the kernel, and the instruction.
const CASES: &[(&str, Chips, Code)] = &[
    ("out imm", Chips::Split, |a| a.out(0x70, al)),
    ("out 7e", Chips::Split, |a| a.out(0x7e, al)),
    ("out dx", Chips::None, |a| a.out(dx, eax)),
    ("in al", Chips::Split, |a| a.in_(al, 0x64)),
    ("in eax", Chips::Split, |a| a.in_(eax, dx)),
    ("outsb", Chips::Split, |a| a.outsb()),
    ("rep outsb", Chips::Split, |a| a.rep().outsb()),
    ("insb", Chips::Split, |a| a.insb()),
    ("rep insb", Chips::Split, |a| a.rep().insb()),
    ("load 4", Chips::Split, |a| a.mov(eax, dword_ptr(rsi))),
    ("load 8", Chips::Split, |a| a.mov(rax, qword_ptr(rsi + 8))),
    ("load 8 of two pages", Chips::Split, |a| a.mov(rax, qword_ptr(rsi + 0xffc))),
    ("load 16", Chips::Split, |a| a.movdqu(xmm0, xmmword_ptr(rsi))),
    ("load sx", Chips::Split, |a| a.movsx(eax, byte_ptr(rsi))),
    ("store 4", Chips::Split, |a| a.mov(dword_ptr(rsi), eax)),
    ("store imm", Chips::Split, |a| a.mov(dword_ptr(rsi), 0x1234)),
    ("store 16", Chips::Split, |a| a.movdqu(xmmword_ptr(rsi), xmm0)),
    ("add", Chips::Split, |a| a.add(dword_ptr(rsi), eax)),
    ("load and add", Chips::Split, |a| a.add(eax, dword_ptr(rsi))),
    ("load by xchg", Chips::Split, |a| a.xchg(dword_ptr(rsi), eax)),
    ("push", Chips::Split, |a| a.push(qword_ptr(rsi))),
    ("movsb", Chips::Split, |a| a.movsb()),
    ("rep movsb", Chips::Split, |a| a.rep().movsb()),
    ("rdmsr", Chips::Split, |a| a.rdmsr()),
    ("wrmsr", Chips::Split, |a| a.wrmsr()),
    ("hypercall", Chips::Split, |a| a.vmmcall()),
    ("hlt", Chips::None, |a| a.hlt()),
    ("cr8", Chips::None, |a| a.mov(cr8, rdx)),
    ("int3", Chips::Split, |a| a.int3()),
];

/// What user space does at the exit.
#[derive(Clone, Copy, Debug)]
enum Change {
    /// Nothing.
    Nothing,
    /// KVM_RUN with `immediate_exit`, so that it is complete.
    Settle,
    /// KVM_SET_REGS with what KVM_GET_REGS gave.
    Same,
    /// Other values in the registers, RIP as it is.
    Others,
    /// The guest is put elsewhere.
    Elsewhere,
    /// The guest is put elsewhere, and then the exit is completed by itself.
    ElsewhereAndSettle,
}

const CHANGES: [Change; 6] =
    [Change::Nothing, Change::Settle, Change::Same, Change::Others, Change::Elsewhere, Change::ElsewhereAndSettle];

/// More exits than a case makes.
const MOST: usize = 12;

fn guest(name: &str, chips: Chips, code: Code) -> Result<Guest> {
    let guest = Guest::new(chips, code)?;
    let enable = |cap: u32, value: u64| {
        let cap = kvm_enable_cap { cap, args: [value, 0, 0, 0], ..Default::default() };
        guest.client.vm.enable_cap(&cap)
    };
    enable(KVM_CAP_X86_USER_SPACE_MSR, 7)?;
    enable(KVM_CAP_EXIT_HYPERCALL, 1 << 12)?;
    guest.regs(|r| {
        (r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi) =
            (0x1122_3344_5566_7788, 0x10, 3, 0x3f8, MMIO + 0x100, MMIO + 0x200);
        match name {
            "rdmsr" | "wrmsr" => r.rcx = 0x1234_5678,
            "hypercall" => (r.rax, r.rbx, r.rcx, r.rdx) = (12, 0x1000, 1, 0),
            "outsb" | "rep outsb" => r.rsi = 0x6_0000,
            "insb" | "rep insb" => r.rdi = 0x6_0000,
            "cr8" => r.rdx = 3,
            _ => {}
        }
    })?;
    if name == "cr8" {
        let mut s = guest.vcpu.get_sregs()?;
        s.cr8 = 7;
        guest.vcpu.set_sregs(&s)?;
    }
    if name == "int3" {
        guest.debug(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP, [0; 8]);
    }
    Ok(guest)
}

fn change(guest: &mut Guest, what: Change) -> Result<()> {
    match what {
        Change::Nothing => {}
        Change::Settle => {
            guest.settle();
        }
        Change::Same => guest.regs(|_| {})?,
        Change::Others => guest.regs(|r| {
            (r.rax, r.rbx, r.rcx, r.rdx) = (0x9988_7766_5544_3322, 0x20, 5, 0x2f8);
            (r.rsi, r.rdi) = (r.rsi + 0x20, r.rdi + 0x20);
        })?,
        Change::Elsewhere => guest.regs(|r| r.rip = ELSEWHERE)?,
        Change::ElsewhereAndSettle => {
            guest.regs(|r| r.rip = ELSEWHERE)?;
            guest.settle();
        }
    }
    Ok(())
}

/// Prints each exit of each case, with each change at its first one.
pub fn completions() -> Result<()> {
    for &(name, chips, code) in CASES {
        for what in CHANGES {
            let mut guest = guest(name, chips, code)?;
            for n in 0..MOST {
                // As a client does, which takes kvm_run.cr8 from the vCPU.
                if n == 0 && name == "cr8" {
                    guest.vcpu.get_kvm_run().cr8 = 7;
                }
                let exit = guest.run();
                // After its last element RIP may be at the instruction still, which has nothing left to do.
                if name.starts_with("rep") && guest.vcpu.get_regs()?.rcx == 0 {
                    println!("{what:?}: {name}, last exit: {exit}");
                    break;
                }
                println!("{what:?}: {name}, exit {n}: {exit}, {}", guest.shown()?);
                if n == 0 {
                    change(&mut guest, what)?;
                    println!("{what:?}: {name}, then: {}", guest.shown()?);
                }
                let ends = [crate::guest::DONE, MOVED].iter().any(|port| exit.starts_with(&format!("out {port:x} ")));
                if ends || exit.starts_with("errno") {
                    break;
                }
                // The INT3 would come again for ever.
                if name == "int3" {
                    guest.regs(|r| r.rip = if r.rip == CODE { CODE + 1 } else { r.rip })?;
                }
            }
        }
    }
    Ok(())
}
