//! MSRs, one by one: what a new vCPU has, what user space may write, what a guest may read.

use anyhow::{Result, bail};
use iced_x86::code_asm::*;
use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::ops::Range;
use tests::client::{Client, assemble};

/// Where MSRs are: the architecture's, hypervisors', KVM's own, AMD's.
const RANGES: [Range<u32>; 5] =
    [0..0x2000, 0x4000_0000..0x4000_0200, 0x4b56_4d00..0x4b56_4d10, 0xc000_0000..0xc000_2000, 0xc001_0000..0xc001_2000];
/// They count, or differ with how fast the host finds itself to be.
const MOVING: [u32; 7] = [0x10, 0xe7, 0xe8, 0x839, 0x4000_0010, 0x4000_0020, 0x4000_0022];

fn all() -> impl Iterator<Item = u32> {
    RANGES.into_iter().flatten()
}

pub fn get(vcpu: &VcpuFd, index: u32) -> Result<Option<u64>> {
    let mut one = Msrs::from_entries(&[kvm_msr_entry { index, ..Default::default() }])?;
    Ok((vcpu.get_msrs(&mut one)? == 1).then(|| one.as_slice()[0].data))
}

pub fn set(vcpu: &VcpuFd, index: u32, data: u64) -> Result<bool> {
    let one = Msrs::from_entries(&[kvm_msr_entry { index, data, ..Default::default() }])?;
    Ok(vcpu.set_msrs(&one)? == 1)
}

fn client() -> Result<Client> {
    let client = Client::new(8 << 20, true)?;
    client.split_irqchip()?;
    Ok(client)
}

/// What KVM_GET_MSRS reads on a new vCPU.
pub fn initial_values() -> Result<()> {
    let client = client()?;
    let vcpu = client.vcpu(0)?;
    for index in all() {
        if let Some(value) = get(&vcpu, index)? {
            let value = if MOVING.contains(&index) { 0 } else { value };
            println!("user reads msr {index:x}: {value:x}");
        }
    }
    Ok(())
}

/// Which of some telling values KVM_SET_MSRS takes, and what it makes of them; what was there is put back.
pub fn user_space_writes() -> Result<()> {
    let client = client()?;
    let vcpu = client.vcpu(0)?;
    for index in all().filter(|index| !MOVING.contains(index)) {
        let before = get(&vcpu, index)?;
        let mut line = String::new();
        for value in [before.unwrap_or(0), 0, 1, 1 << 2, 1 << 7, 1 << 32, 1 << 47, 1 << 63, u64::MAX] {
            if !set(&vcpu, index, value)? {
                line += " -";
                continue;
            }
            match get(&vcpu, index)? {
                Some(now) if now == value => line += " +",
                Some(now) => line += &format!(" {now:x}"),
                None => line += " ?",
            }
        }
        if let Some(before) = before {
            set(&vcpu, index, before)?;
        }
        if line.contains(|c| c != ' ' && c != '-') {
            println!("user writes msr {index:x}:{line}");
        }
    }
    Ok(())
}

const GDT: u64 = 0x9000;
const IDT: u64 = 0x8000;
const HANDLER: u64 = 0x10_1000;
const RESULTS: u64 = 0x20_0000;
const GP: u64 = 13;

/// What a guest's RDMSR says, or that it is #GP: in 64-bit mode, at CPL 0.
pub fn guest_reads() -> Result<()> {
    reads("guest", &RANGES, |_, _| Ok(()))
}

/// The same for some MSRs, of a vCPU that was prepared.
pub fn reads(who: &str, ranges: &[Range<u32>], prepare: impl Fn(&Client, &VcpuFd) -> Result<()>) -> Result<()> {
    let mut client = client()?;
    // RSI: results; R10: whether the last RDMSR faulted.
    client.load(assemble(|a| {
        a.mov(rsi, RESULTS)?;
        for range in ranges {
            let mut next = a.create_label();
            a.mov(r8d, range.start)?;
            a.set_label(&mut next)?;
            a.mov(ecx, r8d)?;
            a.xor(r10d, r10d)?;
            a.rdmsr()?;
            a.shl(rdx, 32)?;
            a.mov(eax, eax)?;
            a.or(rax, rdx)?;
            a.mov(qword_ptr(rsi), rax)?;
            a.mov(qword_ptr(rsi + 8), r10)?;
            a.add(rsi, 16)?;
            a.inc(r8d)?;
            a.cmp(r8d, range.end)?;
            a.jne(next)?;
        }
        a.out(0x80, al)
    })?)?;
    // Over the error code, and past the two bytes of RDMSR.
    let mut handler = assemble(|a| {
        a.mov(r10d, 1)?;
        a.add(rsp, 8)?;
        a.add(qword_ptr(rsp), 2)?;
        a.iretq()
    })?;
    let handler = handler.assemble(HANDLER)?;
    let memory = client.memory();
    let mut put = |at: u64, bytes: &[u8]| memory[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    put(HANDLER, &handler);
    for (n, descriptor) in [0u64, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff].into_iter().enumerate() {
        put(GDT + 8 * n as u64, &descriptor.to_le_bytes());
    }
    put(IDT + 16 * GP, &(HANDLER & 0xffff | 8 << 16 | 0x8e00 << 32 | HANDLER >> 16 << 48).to_le_bytes());

    let mut vcpu = client.vcpu(0)?;
    let mut s = vcpu.get_sregs()?;
    (s.gdt.base, s.gdt.limit, s.idt.base, s.idt.limit) = (GDT, 23, IDT, 16 * 32 - 1);
    vcpu.set_sregs(&s)?;
    prepare(&client, &vcpu)?;
    match vcpu.run()? {
        VcpuExit::IoOut(0x80, _) => {}
        other => bail!("{other:?}"),
    }
    let word = |at: u64| u64::from_le_bytes(client.memory()[at as usize..at as usize + 8].try_into().unwrap_or([0; 8]));
    let mut word = word;
    for (n, index) in ranges.iter().cloned().flatten().enumerate() {
        let at = RESULTS + 16 * n as u64;
        if word(at + 8) == 0 {
            let value = if MOVING.contains(&index) { 0 } else { word(at) };
            println!("{who} reads msr {index:x}: {value:x}");
        }
    }
    Ok(())
}
