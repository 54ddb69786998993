//! A guest that does one thing at a time, as it is told: a port, a register, the interrupts that wait.

use anyhow::{Result, bail, ensure};
use iced_x86::code_asm::*;
use kvm_bindings::{kvm_irqchip, kvm_pit_config};
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::os::fd::AsRawFd;
use tests::client::{Client, assemble};
use tests::handlers;

/// What to do, and what came of it.
const MAIL: u64 = 0x1_4000;
const ANSWER: u64 = MAIL + 24;
/// How many interrupts were taken, then the vector of each, a byte each.
const TAKEN: u64 = 0x1_5000;
const VECTORS: u64 = 0x1_6000;
/// A write to it leaves to us.
const DONE: i32 = 0xf4;

/// Vectors of the two 8259s; others are ended at the local APIC.
pub const PIC: std::ops::Range<u8> = 0x20..0x30;
/// Vectors that a handler ends; for the others this is done by hand.
const APIC: std::ops::Range<u8> = 0x30..0x80;
const KVM_IRQ_LINE_STATUS: u64 = 0xc008_ae67;

/// What the guest does.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Deed {
    Out = 1,
    In = 2,
    In32 = 3,
    Store = 4,
    Load = 5,
    /// Takes the interrupts that wait.
    Open = 6,
    /// Sleeps until there is one.
    Halt = 7,
}

/// The VM.
pub struct Hand {
    pub client: Client,
    pub vcpu: VcpuFd,
    /// Interrupts that were printed.
    seen: u64,
}

fn guest(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut deeds = [(); 8].map(|()| a.create_label());
    a.mov(rbx, MAIL)?;
    a.set_label(&mut deeds[0])?;
    a.out(DONE, al)?;
    a.mov(ecx, dword_ptr(rbx))?;
    a.mov(edx, dword_ptr(rbx + 4))?;
    a.mov(eax, dword_ptr(rbx + 8))?;
    a.mov(rsi, qword_ptr(rbx + 16))?;
    for (n, label) in deeds.iter().enumerate().skip(1) {
        a.cmp(ecx, n as i32)?;
        a.je(*label)?;
    }
    a.ud2()?;
    let top = deeds[0];
    for (n, label) in deeds.iter_mut().enumerate().skip(1) {
        a.set_label(label)?;
        match n {
            1 => a.out(dx, al)?,
            2 | 3 => {
                a.xor(eax, eax)?;
                if n == 2 {
                    a.in_(al, dx)?
                } else {
                    a.in_(eax, dx)?
                }
                a.mov(qword_ptr(rbx + 24), rax)?;
            }
            4 => a.mov(dword_ptr(rsi), eax)?,
            5 => {
                a.mov(eax, dword_ptr(rsi))?;
                a.mov(qword_ptr(rbx + 24), rax)?;
            }
            _ => {
                a.sti()?;
                if n == 7 {
                    a.hlt()?
                } else {
                    a.nop()?
                }
                a.nop()?;
                a.cli()?;
            }
        }
        a.jmp(top)?;
    }
    Ok(())
}

fn handler(a: &mut CodeAssembler, vector: u8) -> Result<(), IcedError> {
    a.push(rax)?;
    a.push(rdx)?;
    a.mov(rdx, TAKEN)?;
    a.mov(rax, qword_ptr(rdx))?;
    a.inc(qword_ptr(rdx))?;
    a.mov(byte_ptr(rdx + rax + (VECTORS - TAKEN)), i32::from(vector))?;
    if APIC.contains(&vector) {
        a.mov(rdx, 0xfee0_00b0u64)?;
        a.mov(dword_ptr(rdx), 0)?;
    }
    a.pop(rdx)?;
    a.pop(rax)?;
    a.iretq()
}

impl Hand {
    /// With 8259s, IOAPIC and, if wanted, the PIT; the local APIC enabled, LINT0 as at reset.
    pub fn new(pit: bool) -> Result<Self> {
        let mut client = Client::new(8 << 20, true)?;
        client.vm.set_tss_address(0xfffb_d000)?;
        client.vm.create_irq_chip()?;
        if pit {
            client.vm.create_pit2(kvm_pit_config::default())?;
        }
        client.load(assemble(guest)?)?;
        handlers::install(&mut client, handler)?;
        let vcpu = client.vcpu(0)?;
        handlers::enable(&vcpu)?;
        let mut hand = Self { client, vcpu, seen: 0 };
        hand.run()?;
        hand.store(0xfee0_00f0, 0x1ff)?;
        Ok(hand)
    }

    fn run(&mut self) -> Result<()> {
        loop {
            match self.vcpu.run()? {
                VcpuExit::IoOut(port, _) if i32::from(port) == DONE => return Ok(()),
                // An access that no device in the kernel takes.
                VcpuExit::IoIn(port, data) => {
                    println!("user space is asked for {} bytes of port {port:x}", data.len());
                    data.fill(0x5a);
                }
                other => bail!("{other:?}"),
            }
        }
    }

    /// Has the guest do it.
    pub fn deed(&mut self, deed: Deed, port: u16, address: u64, value: u32) -> Result<u64> {
        let mail = &mut self.client.memory()[MAIL as usize..];
        mail[..4].copy_from_slice(&(deed as u32).to_le_bytes());
        mail[4..8].copy_from_slice(&u32::from(port).to_le_bytes());
        mail[8..12].copy_from_slice(&value.to_le_bytes());
        mail[16..24].copy_from_slice(&address.to_le_bytes());
        self.run()?;
        Ok(self.word(ANSWER))
    }

    fn word(&mut self, at: u64) -> u64 {
        u64::from_le_bytes(self.client.memory()[at as usize..][..8].try_into().unwrap_or_default())
    }

    pub fn out(&mut self, port: u16, value: u8) -> Result<()> {
        self.deed(Deed::Out, port, 0, value.into()).map(|_| ())
    }

    pub fn input(&mut self, port: u16) -> Result<u8> {
        self.deed(Deed::In, port, 0, 0).map(|v| v as u8)
    }

    pub fn store(&mut self, address: u64, value: u32) -> Result<()> {
        self.deed(Deed::Store, 0, address, value).map(|_| ())
    }

    pub fn load(&mut self, address: u64) -> Result<u32> {
        self.deed(Deed::Load, 0, address, 0).map(|v| v as u32)
    }

    /// Lets interrupts in (or waits for one), and returns the vectors that came since the last time.
    pub fn take(&mut self, how: Deed) -> Result<Vec<u8>> {
        self.deed(how, 0, 0, 0)?;
        let (from, to) = (self.seen, self.word(TAKEN));
        ensure!(to < 0x8000, "{to} interrupts");
        self.seen = to;
        Ok(self.client.memory()[(VECTORS + from) as usize..(VECTORS + to) as usize].to_vec())
    }

    /// KVM_IRQ_LINE_STATUS.
    pub fn line(&self, irq: u32, level: u32) -> Result<i32> {
        let mut line = [irq, level];
        // SAFETY: the argument is a `struct kvm_irq_level` that lives through the call.
        let r =
            unsafe { libc::ioctl(self.client.vm.as_raw_fd(), KVM_IRQ_LINE_STATUS as libc::Ioctl, line.as_mut_ptr()) };
        ensure!(r == 0, "KVM_IRQ_LINE_STATUS");
        Ok(line[0] as i32)
    }

    /// KVM_GET_IRQCHIP: the bytes of a controller's state.
    pub fn state(&self, id: u32) -> Result<Vec<u8>> {
        let mut chip = kvm_irqchip { chip_id: id, ..Default::default() };
        self.client.vm.get_irqchip(&mut chip)?;
        // SAFETY: bytes are valid whatever the member.
        let bytes = unsafe { chip.chip.dummy };
        let len = if id == 2 { 216 } else { 16 };
        Ok(bytes[..len].iter().map(|b| *b as u8).collect())
    }

    /// Initialises both 8259s with vectors from [`PIC`], and unmasks all.
    pub fn start_pics(&mut self) -> Result<()> {
        for (port, base, cascade) in [(0x20, PIC.start, 4), (0xa0, PIC.start + 8, 2)] {
            for (offset, value) in [(0, 0x11), (1, base), (1, cascade), (1, 1), (1, 0)] {
                self.out(port + offset, value)?;
            }
        }
        Ok(())
    }
}
