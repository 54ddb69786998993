//! Instructions that exit, or that the processor refuses, at each privilege level: hypercalls, SYSENTER of a guest that
//! takes the processor for one of Intel's, code that cannot be fetched.

use crate::guest::{Chips, Guest, MMIO};
use anyhow::Result;
use iced_x86::{IcedError, code_asm::*};
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, Msrs, kvm_msr_entry, kvm_segment};
use tests::client::CODE;

type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;

const TSS: u64 = 0x1_3000;
const KERNEL_STACK: u64 = 0x5_0000;
const USER_PAGES: u64 = 4;

/// Lets the guest's user mode reach all memory, and has exceptions of it come in on a stack of the kernel's.
fn user_mode(guest: &Guest, level: u8) -> Result<()> {
    let open = |at: u64| guest.client.poke(at, &(guest.client.peek(at) | USER_PAGES).to_le_bytes());
    open(0x1000);
    (0..4).for_each(|n| open(0x2000 + 8 * n));
    (0..4 * 512).for_each(|n| open(0x3000 + 8 * n));
    guest.client.poke(TSS + 4, &KERNEL_STACK.to_le_bytes());
    let mut s = guest.vcpu.get_sregs()?;
    s.tr = kvm_segment { type_: 11, present: 1, limit: 0x67, base: TSS, selector: 0x18, ..Default::default() };
    if level != 0 {
        (s.cs.dpl, s.cs.selector, s.ss.dpl, s.ss.selector) = (level, 0x23, level, 0x2b);
    }
    Ok(guest.vcpu.set_sregs(&s)?)
}

/// The name, the instruction, and registers that it works with.
const INSTRUCTIONS: &[(&str, Code)] = &[
    ("vmcall", |a| a.vmcall()),
    ("vmmcall", |a| a.vmmcall()),
    ("hlt", |a| a.hlt()),
    ("wbinvd", |a| a.wbinvd()),
    ("invd", |a| a.invd()),
    ("rdmsr", |a| a.rdmsr()),
    ("wrmsr", |a| a.wrmsr()),
    ("xsetbv", |a| a.xsetbv()),
    ("xgetbv", |a| a.xgetbv()),
    ("rdpmc", |a| a.rdpmc()),
    ("monitor", |a| a.monitor()),
    ("mwait", |a| a.mwait()),
    ("invlpg", |a| a.invlpg(byte_ptr(rsi))),
    ("invlpga", |a| a.invlpga()),
    ("mov cr0", |a| a.mov(cr0, rbp)),
    ("mov cr4", |a| a.mov(cr4, rdi)),
    ("mov from cr0", |a| a.mov(rax, cr0)),
    ("mov cr8", |a| a.mov(cr8, rbx)),
    ("mov dr7", |a| a.mov(dr7, rbx)),
    ("mov from dr6", |a| a.mov(rax, dr6)),
    ("mov dr4", |a| a.db(&[0x0f, 0x23, 0xe0])),
    ("clts", |a| a.clts()),
    ("lmsw", |a| a.lmsw(ax)),
    ("smsw", |a| a.smsw(eax)),
    ("sgdt", |a| a.sgdt(ptr(rsi))),
    ("rsm", |a| a.rsm()),
    ("vmrun", |a| a.vmrun()),
    ("vmload", |a| a.vmload()),
    ("stgi", |a| a.stgi()),
    ("clgi", |a| a.clgi()),
    ("skinit", |a| a.skinit()),
    ("rdpru", |a| a.rdpru()),
    ("rdtsc with tsd", |a| a.rdtsc()),
    ("in", |a| a.in_(al, 0x70)),
    ("pause", |a| a.pause()),
    ("icebp", |a| a.int1()),
    ("ud2", |a| a.ud2()),
    ("cli", |a| a.cli()),
    ("sysenter", |a| a.sysenter()),
    ("sysexit", |a| a.sysexit()),
    ("cpuid", |a| a.cpuid()),
];

/// At each level, with and without CR4.OSXSAVE.
fn levels() -> Result<()> {
    for &(name, code) in INSTRUCTIONS {
        for level in [0, 3] {
            for osxsave in [false, true] {
                if osxsave && !name.contains("bv") {
                    continue;
                }
                let mut guest = Guest::new(Chips::Split, code)?;
                user_mode(&guest, level)?;
                let mut s = guest.vcpu.get_sregs()?;
                s.cr4 |= if osxsave { 1 << 18 } else { 0 };
                s.cr4 |= if name.contains("tsd") { 4 } else { 0 };
                s.cr4 |= if name.contains("dr4") { 8 } else { 0 };
                guest.vcpu.set_sregs(&s)?;
                guest.regs(|r| {
                    (r.rax, r.rbx, r.rcx, r.rdx, r.rsi) = (3, 0, 0, 0, 0x6_0000);
                    (r.rdi, r.rbp) = (s.cr4, s.cr0);
                    if matches!(name, "rdmsr" | "wrmsr") {
                        r.rcx = 0xc000_0102;
                    }
                })?;
                let name = format!("{name} at level {level} osxsave {osxsave}");
                // HLT with interrupts off would wait for ever.
                // What the time is varies.
                if name.starts_with("hlt at level 0") || name.starts_with("rdtsc with tsd at level 0") {
                    continue;
                }
                let exit = guest.run();
                let frame = if exit.starts_with("out f6") { guest.frame()? } else { guest.shown()? };
                println!("instructions, {name}: {exit} {frame}");
                println!(
                    "instructions, {name}: code {:x} ax {:x} dx {:x}",
                    guest.client.peek(CODE) & 0xff_ffff,
                    guest.vcpu.get_regs()?.rax,
                    guest.vcpu.get_regs()?.rdx
                );
            }
        }
    }
    Ok(())
}

const VENDOR: [u32; 3] = [u32::from_le_bytes(*b"Genu"), u32::from_le_bytes(*b"ineI"), u32::from_le_bytes(*b"ntel")];
const SYSENTER: u32 = 0x174;
const ENTRY: u64 = CODE + 0x2000;

/// SYSENTER and SYSEXIT of 32-bit programs in a 64-bit guest, by vendor.
fn fast_calls() -> Result<()> {
    for intel in [false, true] {
        for level in [0, 3] {
            for (name, bytes) in
                [("sysenter", &[0x0f, 0x34][..]), ("sysexit", &[0x0f, 0x35]), ("syscall", &[0x0f, 0x05])]
            {
                for long in [false, true] {
                    if long && name != "sysexit" {
                        // Stock gives up in 64-bit mode.
                        continue;
                    }
                    for selector in [0u64, 8] {
                        let mut guest = Guest::new(Chips::Split, |a| a.nop())?;
                        user_mode(&guest, level)?;
                        guest.client.poke(CODE, bytes);
                        guest.client.poke(ENTRY, &[0xe6, 0xf5]);
                        let mut cpuid = guest.client.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
                        if intel {
                            let vendor = cpuid.as_mut_slice().iter_mut().filter(|e| e.function & 0x7fff_ffff == 0);
                            vendor.for_each(|e| (e.ebx, e.edx, e.ecx) = (VENDOR[0], VENDOR[1], VENDOR[2]));
                        }
                        guest.vcpu.set_cpuid2(&cpuid)?;
                        let msrs = [(0, selector), (1, 0xffff_8000_0006_0000), (2, 0x1_0000_0000 + ENTRY)];
                        let entries =
                            msrs.map(|(n, data)| kvm_msr_entry { index: SYSENTER + n, data, ..Default::default() });
                        let mut list = Msrs::from_entries(&entries)?;
                        println!("fast, written: {}", guest.vcpu.set_msrs(&list)?);
                        guest.vcpu.get_msrs(&mut list)?;
                        let name = format!("{name} intel {intel} level {level} long {long} selector {selector}");
                        println!("fast, {name}: {:x?}", list.as_slice().iter().map(|e| e.data).collect::<Vec<_>>());
                        let mut s = guest.vcpu.get_sregs()?;
                        (s.cs.l, s.cs.db) = (long.into(), (!long).into());
                        s.efer |= 1;
                        guest.vcpu.set_sregs(&s)?;
                        guest.regs(|r| (r.rcx, r.rdx) = (0x7_0000, ENTRY))?;
                        // Where SYSENTER leads is not mapped above 4 GiB: what is of interest is where it led.
                        let exit = guest.run();
                        let (s, r) = (guest.vcpu.get_sregs()?, guest.vcpu.get_regs()?);
                        println!(
                            "fast, {name}: {exit} rip {:x} sp {:x} cs {:x} {} {} {} ss {:x} {} flags {:x} cr2 {:x}",
                            r.rip,
                            r.rsp,
                            s.cs.selector,
                            s.cs.l,
                            s.cs.db,
                            s.cs.dpl,
                            s.ss.selector,
                            s.ss.dpl,
                            r.rflags & !0x8d5,
                            s.cr2
                        );
                        if exit.starts_with("out f6") {
                            println!("fast, {name}: {}", guest.frame()?);
                        }
                    }
                }
            }
        }
    }
    // The guest's own access to the MSRs.
    for intel in [false, true] {
        let mut guest = Guest::new(Chips::Split, |a| {
            a.mov(ecx, SYSENTER + 2)?;
            a.mov(eax, 0x1234)?;
            a.mov(edx, 0x5678)?;
            a.wrmsr()?;
            a.xor(eax, eax)?;
            a.xor(edx, edx)?;
            a.rdmsr()
        })?;
        let mut cpuid = guest.client.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
        if intel {
            let vendor = cpuid.as_mut_slice().iter_mut().filter(|e| e.function & 0x7fff_ffff == 0);
            vendor.for_each(|e| (e.ebx, e.edx, e.ecx) = (VENDOR[0], VENDOR[1], VENDOR[2]));
        }
        guest.vcpu.set_cpuid2(&cpuid)?;
        let exit = guest.run();
        println!("fast, guest writes, intel {intel}: {exit} {}", guest.shown()?);
    }
    Ok(())
}

/// Code where there is none, and code that nobody emulates.
fn failures() -> Result<()> {
    let mut guest = Guest::new(Chips::Split, |a| a.nop())?;
    guest.regs(|r| r.rip = MMIO)?;
    println!("failures, code at a device: {}", guest.run());
    for level in [0, 3] {
        let mut guest = Guest::new(Chips::Split, |a| a.paddd(xmm0, xmmword_ptr(rsi)))?;
        user_mode(&guest, level)?;
        guest.regs(|r| r.rsi = MMIO)?;
        let exit = guest.run();
        println!("failures, nobody emulates it at level {level}: {exit}");
        let again = guest.run();
        println!("failures, again at level {level}: {again}");
    }
    // The last bytes before a page that is not there.
    let mut guest = Guest::new(Chips::Split, |a| a.nop())?;
    guest.client.poke(0x1f_fffc, &[0x66, 0x0f, 0xfe, 0x06]);
    guest.client.poke(0x3000 + 8, &0u64.to_le_bytes());
    guest.regs(|r| (r.rsi, r.rip) = (MMIO, 0x1f_fffc))?;
    println!("failures, nothing behind it: {}", guest.run());
    let mut guest = Guest::new(Chips::Split, |a| a.nop())?;
    let mut s = guest.vcpu.get_sregs()?;
    (s.cs.l, s.cs.db) = (1, 1);
    guest.vcpu.set_sregs(&s)?;
    println!("failures, refused: {}", guest.run());
    // Three faults.
    let mut guest = Guest::new(Chips::Split, |a| a.ud2())?;
    let mut s = guest.vcpu.get_sregs()?;
    s.idt.limit = 0;
    guest.vcpu.set_sregs(&s)?;
    println!("failures, three faults: {}", guest.run());
    let (s, r) = (guest.vcpu.get_sregs()?, guest.vcpu.get_regs()?);
    println!("failures, after them: {r:x?}");
    println!("failures, after them: {s:x?}");
    println!("failures, after them: {:x?}", guest.vcpu.get_debug_regs()?);
    Ok(())
}

pub fn all() -> Result<()> {
    levels()?;
    fast_calls()?;
    failures()
}
