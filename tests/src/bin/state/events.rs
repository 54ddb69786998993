//! Exceptions and interrupts that come from an instruction: which return address the handler finds, in each way in; and
//! what KVM_GET_VCPU_EVENTS shows of events on their way.

use crate::guest::{Chips, Guest, MMIO};
use anyhow::Result;
use iced_x86::{IcedError, code_asm::*};
use kvm_bindings::{
    KVM_CAP_EXCEPTION_PAYLOAD, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_INJECT_BP, KVM_GUESTDBG_INJECT_DB,
    KVM_GUESTDBG_USE_SW_BP, kvm_enable_cap, kvm_vcpu_events,
};

type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;
/// A stack that nothing has touched: delivery meets a nested fault.
const FRESH_STACK: u64 = 0x60_0000;

const INT3: Code = |a| a.int3();
const NOP: Code = |a| a.nop();
const INT_80: Code = |a| a.int(0x80);
const INT_81: Code = |a| a.int(0x81);

/// What user space injects.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// Nothing: the guest does it.
    Nothing,
    /// KVM_GUESTDBG_INJECT_BP, with or without breakpoints of its own.
    Breakpoint(u32),
    /// KVM_GUESTDBG_INJECT_DB.
    Debug,
    /// `exception` of KVM_SET_VCPU_EVENTS.
    Exception(u8),
    /// `interrupt` of KVM_SET_VCPU_EVENTS, as one of an instruction or not.
    Interrupt(u8, bool),
    /// The guest's own INT3 goes to the debugger, which gives it back.
    ThereAndBack,
}

fn events(guest: &Guest, change: impl FnOnce(&mut kvm_vcpu_events)) -> Result<i32> {
    let mut e = guest.vcpu.get_vcpu_events()?;
    change(&mut e);
    Ok(guest.vcpu.set_vcpu_events(&e).err().map_or(0, |e| e.errno()))
}

fn inject(guest: &mut Guest, way: Way) -> Result<i32> {
    Ok(match way {
        Way::Nothing => 0,
        Way::Breakpoint(more) => guest.debug(KVM_GUESTDBG_ENABLE | more | KVM_GUESTDBG_INJECT_BP, [0; 8]),
        Way::Debug => guest.debug(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_INJECT_DB, [0; 8]),
        Way::Exception(nr) => events(guest, |e| (e.exception.injected, e.exception.nr) = (1, nr))?,
        Way::Interrupt(nr, soft) => events(guest, |e| {
            (e.interrupt.injected, e.interrupt.nr, e.interrupt.soft) = (1, nr, soft.into());
        })?,
        Way::ThereAndBack => {
            let breakpoints = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP;
            guest.debug(breakpoints, [0; 8]);
            let exit = guest.run();
            println!("  to the debugger: {exit}");
            // Not every processor that is emulated lets INT3 be intercepted.
            if exit.starts_with("debug") { guest.debug(breakpoints | KVM_GUESTDBG_INJECT_BP, [0; 8]) } else { -1 }
        }
    })
}

/// Every way in, at instructions that are the event's and at others.
pub fn software() -> Result<()> {
    const BP: u32 = KVM_GUESTDBG_USE_SW_BP;
    for (at, code) in [("int3", INT3), ("nop", NOP), ("int 80", INT_80), ("int 81", INT_81)] {
        for way in [
            Way::Nothing,
            Way::Breakpoint(0),
            Way::Breakpoint(BP),
            Way::Debug,
            Way::Exception(3),
            Way::Exception(1),
            Way::Exception(6),
            Way::Interrupt(0x80, true),
            Way::Interrupt(0x80, false),
            Way::Interrupt(0x31, true),
            Way::ThereAndBack,
        ] {
            if matches!(way, Way::ThereAndBack) && at != "int3" {
                continue;
            }
            for fresh in [false, true] {
                let mut guest = Guest::new(Chips::Split, code)?;
                guest.regs(|r| {
                    r.rsi = MMIO;
                    r.rflags |= 0x200;
                    if fresh {
                        r.rsp = FRESH_STACK;
                    }
                })?;
                let name = format!("software at {at}, {way:?}, fresh stack {fresh}");
                let errno = inject(&mut guest, way)?;
                if errno == -1 {
                    continue;
                }
                let e = guest.vcpu.get_vcpu_events()?;
                println!(
                    "{name}: errno {errno} exception {} {} {} interrupt {} {} {}",
                    e.exception.injected,
                    e.exception.pending,
                    e.exception.nr * (e.exception.injected | e.exception.pending),
                    e.interrupt.injected,
                    e.interrupt.nr * e.interrupt.injected,
                    e.interrupt.soft
                );
                for n in 0..2 {
                    let exit = guest.run();
                    let frame = if exit.starts_with("out f6") { guest.frame()? } else { String::new() };
                    println!("{name}, exit {n}: {exit} {frame} {}", guest.shown()?);
                }
            }
        }
    }
    Ok(())
}

fn show(guest: &Guest, what: &str) -> Result<()> {
    let mut e = guest.vcpu.get_vcpu_events()?;
    // What is neither is of no interest.
    if e.exception.injected | e.exception.pending == 0 {
        (e.exception.nr, e.exception.has_error_code, e.exception.error_code, e.exception_has_payload) = (0, 0, 0, 0);
    }
    if e.exception_has_payload == 0 {
        e.exception_payload = 0;
    }
    println!(
        "shown, {what}: exception {} {} {} code {} {:x} payload {} {:x} interrupt {} {} {} shadow {} nmi {} {} {} flags {:x}",
        e.exception.injected,
        e.exception.pending,
        e.exception.nr,
        e.exception.has_error_code,
        e.exception.error_code,
        e.exception_has_payload,
        e.exception_payload,
        e.interrupt.injected,
        e.interrupt.nr,
        e.interrupt.soft,
        e.interrupt.shadow,
        e.nmi.injected,
        e.nmi.pending,
        e.nmi.masked,
        e.flags
    );
    Ok(())
}

/// What is set, and what is shown then.
pub fn shown() -> Result<()> {
    for payloads in [false, true] {
        for nr in [0, 1, 2, 3, 4, 5, 8, 13, 14, 31, 32] {
            for (injected, pending, has_payload) in [(1, 0, 0), (0, 1, 0), (0, 1, 1), (1, 1, 0), (0, 0, 1)] {
                let guest = Guest::new(Chips::Split, NOP)?;
                if payloads {
                    let cap =
                        kvm_enable_cap { cap: KVM_CAP_EXCEPTION_PAYLOAD, args: [1, 0, 0, 0], ..Default::default() };
                    guest.client.vm.enable_cap(&cap)?;
                }
                let errno = events(&guest, |e| {
                    (e.exception.injected, e.exception.pending, e.exception.nr) = (injected, pending, nr);
                    (e.exception.has_error_code, e.exception.error_code) = (1, 5);
                    (e.exception_has_payload, e.exception_payload) = (has_payload, 0x4001);
                })?;
                let name = format!("{nr} {injected} {pending} {has_payload} with payloads {payloads}");
                println!("shown, {name}: errno {errno}");
                show(&guest, &name)?;
                let d = guest.vcpu.get_debug_regs()?;
                println!("shown, {name}: dr6 {:x} cr2 {:x}", d.dr6, guest.vcpu.get_sregs()?.cr2);
                guest.regs(|_| {})?;
                show(&guest, &format!("{name}, registers set"))?;
            }
        }
    }
    for masked in [0, 1] {
        for pending in [0, 1, 2, 3, 255] {
            for more in 0..3 {
                let mut guest = Guest::new(Chips::Split, NOP)?;
                let errno = events(&guest, |e| (e.nmi.masked, e.nmi.pending) = (masked, pending))?;
                for _ in 0..more {
                    guest.vcpu.nmi()?;
                }
                let name = format!("nmi {pending} and {more}, masked {masked}");
                println!("shown, {name}: errno {errno}");
                show(&guest, &name)?;
                println!("shown, {name}, runs: {}", guest.run());
                show(&guest, &format!("{name}, after"))?;
            }
        }
    }
    for shadow in [0, 1, 2, 3, 4, 255] {
        let guest = Guest::new(Chips::Split, NOP)?;
        println!("shown, shadow {shadow}: {}", events(&guest, |e| e.interrupt.shadow = shadow)?);
        show(&guest, &format!("shadow {shadow}"))?;
    }
    Ok(())
}
