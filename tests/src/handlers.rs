//! A handler for each vector of a client's guest: IDT, GDT and task register.

use crate::client::{Client, assemble};
use anyhow::{Result, ensure};
use iced_x86::{IcedError, code_asm::CodeAssembler};
use kvm_bindings::kvm_segment;
use kvm_ioctls::VcpuFd;

const GDT: u64 = 0x1_1000;
const IDT: u64 = 0x1_2000;
const TSS: u64 = 0x1_3000;
/// The handlers.
const HANDLERS: u64 = 0x20_0000;
/// Most bytes of a handler.
const SIZE: u64 = 64;

/// Puts `handler` into the guest's memory, once for each vector.
pub fn install(client: &mut Client, handler: impl Fn(&mut CodeAssembler, u8) -> Result<(), IcedError>) -> Result<()> {
    for vector in 0..=255u8 {
        let at = HANDLERS + SIZE * u64::from(vector);
        let code = assemble(|a| handler(a, vector))?.assemble(at)?;
        ensure!(code.len() as u64 <= SIZE, "a handler of {} bytes", code.len());
        client.memory()[at as usize..][..code.len()].copy_from_slice(&code);
        let place = IDT + 16 * u64::from(vector);
        client.put(place, at & 0xffff | 8 << 16 | 0x8e << 40 | (at >> 16 & 0xffff) << 48);
        client.put(place + 8, at >> 32);
    }
    for (n, descriptor) in [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff].into_iter().enumerate() {
        client.put(GDT + 8 * n as u64, descriptor);
    }
    Ok(())
}

/// Has a vCPU use them.
pub fn enable(vcpu: &VcpuFd) -> Result<()> {
    let mut s = vcpu.get_sregs()?;
    (s.gdt.base, s.gdt.limit, s.idt.base, s.idt.limit) = (GDT, 23, IDT, 0xfff);
    s.tr = kvm_segment { type_: 11, present: 1, limit: 0x67, base: TSS, ..Default::default() };
    Ok(vcpu.set_sregs(&s)?)
}
