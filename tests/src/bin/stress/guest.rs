//! The guest: each vCPU goes through a list of deeds for ever, whatever faults and interrupts come.

use crate::storm::CPUS;
use anyhow::{Result, ensure};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use tests::client::{CODE, Client, STACK, assemble};
use tests::handlers;

/// Per vCPU, a page each: how many deeds were done, the top of the stack, the place in the list.
const BLOCKS: u64 = 0x2_0000;
/// Per vCPU, its list.
const LISTS: u64 = 0x30_0000;
/// Bytes of a list, a power of two.
const LIST: u64 = 0x1_0000;
const STACKS: u64 = 0x2000;
/// Where page tables begin.
const PAGE_TABLES: usize = 0x1000;
/// The first page and page tables; GDT, IDT and TSS; start pages; code; handlers.
pub const IMAGE: [(u64, usize); 6] = [
    (0, 0x8000),
    (0x1_1000, 0x3000),
    (SMBASE + SMM_ENTRY, 0x1000),
    (0x6_0000, 0x1_0000),
    (CODE, 0x1000),
    (0x20_0000, 0x4000),
];
/// SMBASE of the first vCPU, and how far those of two are apart; and where the handler is from there.
const SMBASE: u64 = 0x3_0000;
const SMBASE_STEP: u64 = 0x400;
const SMM_ENTRY: u64 = 0x8000;
/// MSR_IA32_SMBASE, which is user space's alone.
const SMBASE_MSR: u32 = 0x9e;
/// The slot of all memory in the address space of system management mode.
const SMM_SLOT: u32 = 1 << 16;
/// RSM.
const RSM: [u8; 2] = [0x0f, 0xaa];
/// A deed in a list: what, where (port, MSR or address), value.
pub type Deed = [u32; 4];
/// How many fit.
pub const DEEDS: usize = (LIST / 16) as usize;
/// Pages at which a processor may start: it says so, and is put back into its list.
pub const START_PAGES: std::ops::Range<u8> = 0x60..0x70;
/// Written to when a vCPU is to be put back.
pub const LOST: u16 = 0xf5;
/// IA32_APIC_BASE, whose value tells a handler how to end an interrupt.
const APIC_BASE: u32 = 0x1b;

/// SMIs find memory, and a handler that returns at once. Without it the first would be the end of the VM.
pub fn serve_smis(client: &mut Client) -> Result<()> {
    let memory = client.memory();
    let (hva, len) = (memory.as_ptr() as u64, memory.len() as u64);
    for n in 0..CPUS {
        client.poke(SMBASE + n * SMBASE_STEP + SMM_ENTRY, &RSM);
    }
    client.map(SMM_SLOT, 0, hva, len)
}

/// Where vCPU number `n` has its state saved.
pub fn set_smbase(vcpu: &VcpuFd, n: u64) -> Result<()> {
    let entry = kvm_msr_entry { index: SMBASE_MSR, data: SMBASE + n * SMBASE_STEP, ..Default::default() };
    let written = vcpu.set_msrs(&Msrs::from_entries(&[entry])?)?;
    ensure!(written == 1, "SMBASE cannot be set");
    Ok(())
}

/// What a deed does.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum What {
    Out8 = 1,
    In8 = 2,
    Out32 = 3,
    Store = 4,
    Load = 5,
    WriteMsr = 6,
    ReadMsr = 7,
    /// Lets interrupts in.
    Open = 8,
    Halt = 9,
    Close = 10,
    Hypercall = 11,
    /// TSC deadline, so many cycles from now.
    Deadline = 12,
}

/// The kinds of [`What`].
const KINDS: usize = 13;

fn code(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut kinds = [(); KINDS].map(|()| a.create_label());
    let top = kinds[0];
    a.set_label(&mut kinds[0])?;
    a.mov(rsp, qword_ptr(r15 + 8))?;
    a.inc(qword_ptr(r15))?;
    a.mov(rsi, qword_ptr(r15 + 16))?;
    a.add(rsi, 16)?;
    a.and(rsi, LIST as i32 - 1)?;
    a.mov(qword_ptr(r15 + 16), rsi)?;
    a.add(rsi, r14)?;
    a.mov(r8d, dword_ptr(rsi))?;
    a.mov(ecx, dword_ptr(rsi + 4))?;
    a.mov(eax, dword_ptr(rsi + 8))?;
    a.mov(edx, dword_ptr(rsi + 12))?;
    for (n, label) in kinds.iter().enumerate().skip(1) {
        a.cmp(r8d, n as i32)?;
        a.je(*label)?;
    }
    a.jmp(top)?;
    for (n, label) in kinds.iter_mut().enumerate().skip(1) {
        a.set_label(label)?;
        match n {
            1..=3 => {
                a.mov(edx, ecx)?;
                match n {
                    1 => a.out(dx, al)?,
                    2 => a.in_(al, dx)?,
                    _ => a.out(dx, eax)?,
                }
            }
            4 => a.mov(dword_ptr(rcx), eax)?,
            5 => a.mov(eax, dword_ptr(rcx))?,
            6 => a.wrmsr()?,
            7 => a.rdmsr()?,
            8 => {
                a.sti()?;
                a.nop()?;
            }
            9 => {
                a.sti()?;
                a.hlt()?;
            }
            10 => a.cli()?,
            11 => {
                a.mov(ebx, edx)?;
                a.mov(esi, 3)?;
                a.vmmcall()?;
            }
            _ => {
                a.mov(r9d, eax)?;
                a.rdtsc()?;
                a.add(eax, r9d)?;
                a.adc(edx, 0)?;
                a.wrmsr()?;
            }
        }
        a.jmp(top)?;
    }
    Ok(())
}

/// A fault ends the deed; an interrupt is ended in the way of the APIC's mode.
fn handler(a: &mut CodeAssembler, vector: u8) -> Result<(), IcedError> {
    if vector == 2 {
        return a.iretq();
    }
    if vector < 32 {
        a.mov(rax, CODE)?;
        return a.jmp(rax);
    }
    let (mut x2apic, mut end) = (a.create_label(), a.create_label());
    a.push(rax)?;
    a.push(rcx)?;
    a.push(rdx)?;
    a.mov(ecx, APIC_BASE)?;
    a.rdmsr()?;
    a.test(eax, 0x400)?;
    a.jnz(x2apic)?;
    a.mov(ecx, 0xfee0_00b0u32)?;
    a.mov(dword_ptr(rcx), 0)?;
    a.jmp(end)?;
    a.set_label(&mut x2apic)?;
    a.xor(eax, eax)?;
    a.xor(edx, edx)?;
    a.mov(ecx, 0x80b)?;
    a.wrmsr()?;
    a.set_label(&mut end)?;
    a.pop(rdx)?;
    a.pop(rcx)?;
    a.pop(rax)?;
    a.iretq()
}

/// Puts code, handlers and start pages into memory.
pub fn install(client: &mut Client) -> Result<()> {
    client.load(assemble(code)?)?;
    handlers::install(client, handler)?;
    // In any mode: out 0xf5, al; hlt; jump back.
    let lost = [0xe6, LOST as u8, 0xf4, 0xeb, 0xfb];
    // A startup message may find a vCPU that user space has just put into 64-bit mode: there it starts at 0. It must not get
    // to where its page tables are: QEMU's emulation never comes back from code in tables that it walks for that code.
    for at in START_PAGES.map(|page| usize::from(page) << 12).chain([0, PAGE_TABLES - lost.len()]) {
        client.memory()[at..][..lost.len()].copy_from_slice(&lost);
    }
    Ok(())
}

/// Is there a page table at this address?
pub fn is_table(address: u64) -> bool {
    (PAGE_TABLES as u64..0x8000).contains(&address)
}

/// Gives a vCPU what to do.
pub fn set_list(client: &mut Client, cpu: u64, deeds: &[Deed]) {
    let block = (BLOCKS + 0x1000 * cpu) as usize;
    client.memory()[block + 8..][..8].copy_from_slice(&stack(cpu).to_le_bytes());
    let list = (LISTS + LIST * cpu) as usize;
    for (n, word) in deeds.iter().take(DEEDS).flatten().enumerate() {
        client.memory()[list + 4 * n..][..4].copy_from_slice(&word.to_le_bytes());
    }
}

fn stack(cpu: u64) -> u64 {
    STACK - STACKS * cpu
}

/// The registers with which a vCPU begins.
pub fn start(regs: &mut kvm_bindings::kvm_regs, cpu: u64) {
    (regs.rip, regs.rsp, regs.rflags) = (CODE, stack(cpu), 2);
    (regs.r14, regs.r15) = (LISTS + LIST * cpu, BLOCKS + 0x1000 * cpu);
}

/// Where the number of deeds that a vCPU has done is.
pub fn counter(cpu: u64) -> u64 {
    BLOCKS + 0x1000 * cpu
}
