//! Descriptor tables for guests that take interrupts and exceptions: the client's bare guest has none.

use crate::client::Client;
use anyhow::{Context, Result};
use iced_x86::code_asm::CodeAssembler;
use kvm_bindings::kvm_dtable;
use kvm_ioctls::VcpuFd;

const GDT: u64 = 0x7000;
const IDT: u64 = 0x8000;
/// Where handlers are, this far apart: 256 of them.
const HANDLERS: u64 = 0x2_0000;
const HANDLER_ROOM: u64 = 0x100;
/// 64-bit code, and flat data: the descriptors that [`Client::vcpu`] loads (APM 4.8).
const DESCRIPTORS: [u64; 3] = [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
const CODE_SELECTOR: u64 = 8;
/// Present, 64-bit interrupt gate.
const GATE: u64 = 0x8e00;

impl Client {
    /// Puts a handler for `vector` where the guest finds it.
    pub fn handler(&mut self, vector: u8, code: CodeAssembler) -> Result<()> {
        let at = HANDLERS + HANDLER_ROOM * u64::from(vector);
        self.load_at(at, code)?;
        let gate = IDT + 16 * u64::from(vector);
        self.put(gate, (at & 0xffff) | CODE_SELECTOR << 16 | GATE << 32 | (at >> 16) << 48);
        self.put(gate + 8, 0);
        Ok(())
    }

    /// Has `vcpu` use the tables.
    pub fn descriptors(&mut self, vcpu: &VcpuFd) -> Result<()> {
        for (n, descriptor) in DESCRIPTORS.into_iter().enumerate() {
            self.put(GDT + 8 * n as u64, descriptor);
        }
        let mut s = vcpu.get_sregs().context("KVM_GET_SREGS")?;
        s.gdt = kvm_dtable { base: GDT, limit: 23, ..Default::default() };
        s.idt = kvm_dtable { base: IDT, limit: 0xfff, ..Default::default() };
        vcpu.set_sregs(&s).context("KVM_SET_SREGS")
    }
}
