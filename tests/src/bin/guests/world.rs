//! The VM, what a step does to it and what is seen afterwards.
//!
//! Guest memory: tables and stacks below 0x10000, code from there to 0x20000, full of HLT, then data. Devices from the end of
//! memory on, and behind them some that can only be read. An exception ends at a HLT whose place says which it was.

use crate::instruction;
use crate::leave::hex;
use crate::registers::outside;
use anyhow::{Context, Result};
use kvm_bindings::*;
use kvm_ioctls::VcpuFd;
use memmap2::{MmapMut, MmapOptions};
use std::fmt::Write as _;
use tests::client::Client;
use tests::random::Random;

pub const RAM: u64 = 0x10_0000;
pub const READ_ONLY: u64 = 0x18_0000;
const READ_ONLY_SIZE: u64 = 0x4000;
pub const PAE: u64 = 0x7000;
pub const GDT: u64 = 0x8000;
pub const TSS: u64 = 0x8800;
pub const IDT: u64 = 0x9000;
pub const IDT64: u64 = 0xa000;
const HANDLERS: u64 = 0xf000;
pub const CODE: u64 = 0x1_0000;
pub const DATA: u64 = 0x2_0000;
pub const STACK: u64 = 0xcff0;
/// RFLAGS.TF.
const TF: u64 = 0x100;
const KERNEL_STACK: u64 = 0xdff0;

/// Entries of the GDT: code and data of both levels, 32, 16 and 64 bits.
pub const SEGMENTS: [u64; 16] = [
    0,
    0x00cf_9b00_0000_ffff, // 08: code, 32 bits
    0x00cf_9300_0000_ffff, // 10: data
    0x00cf_fb00_0000_ffff, // 18: code, level 3
    0x00cf_f300_0000_ffff, // 20: data, level 3
    0x0000_9b00_0000_ffff, // 28: code, 16 bits
    0x0000_9300_0000_ffff, // 30: data, 16 bits
    0x00af_9b00_0000_ffff, // 38: code, 64 bits
    0x00af_fb00_0000_ffff, // 40: code, 64 bits, level 3
    0x0000_8b00_8800_0067, // 48: TSS, busy
    0,
    0x0000_8900_8800_0067, // 58: TSS
    0x00cf_1b00_0000_ffff, // 60: code, not present
    0x0000_ec00_0008_f0c0, // 68: call gate
    0x0000_8200_8000_007f, // 70: LDT
    0,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Real,
    Protected,
    Paged,
    Compatible,
    Long,
}

pub struct World {
    pub client: Client,
    pub vcpu: VcpuFd,
    read_only: MmapMut,
    pub logged: bool,
    pub start: State,
}

/// A vCPU's registers, as user space sees them.
pub struct State {
    pub sregs: kvm_sregs,
    pub events: kvm_vcpu_events,
    pub debug: kvm_debugregs,
}

extern "C" fn alarm(_: libc::c_int) {}

impl World {
    pub fn new(random: &mut Random) -> Result<Self> {
        // SAFETY: a handler that does nothing, so that KVM_RUN ends with EINTR.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = alarm as extern "C" fn(libc::c_int) as usize;
            libc::sigaction(libc::SIGALRM, &action, std::ptr::null_mut());
        }
        let mut client = Client::new(RAM as usize, true)?;
        if random.below(2) == 0 {
            client.small_pages()?;
        }
        let read_only = MmapOptions::new().len(READ_ONLY_SIZE as usize).populate().map_anon()?;
        client.map_with(1, KVM_MEM_READONLY, READ_ONLY, read_only.as_ptr() as u64, READ_ONLY_SIZE)?;
        let vcpu = client.vcpu(0)?;
        let events = vcpu.get_vcpu_events().context("KVM_GET_VCPU_EVENTS")?;
        let start = State { sregs: vcpu.get_sregs()?, events, debug: vcpu.get_debug_regs()? };
        let mut world = Self { client, vcpu, read_only, logged: false, start };
        world.fill();
        Ok(world)
    }

    /// Memory as every step finds it.
    fn fill(&mut self) {
        self.read_only.fill(0x5a);
        let memory = self.client.memory();
        memory[..0x1000].fill(0);
        memory[0x7000..].fill(0);
        memory[HANDLERS as usize..DATA as usize].fill(0xf4);
        for (n, byte) in memory[DATA as usize..].iter_mut().enumerate() {
            *byte = (n as u8).wrapping_mul(7) ^ (n >> 8) as u8;
        }
        self.tables();
        for v in 0..256 {
            let handler = HANDLERS + v;
            self.client.poke(4 * v, &((HANDLERS >> 4) << 16 | v).to_le_bytes()[..4]);
            let gate = handler & 0xffff | 8 << 16 | 0xee00 << 32 | (handler >> 16) << 48;
            self.client.poke(IDT + 8 * v, &gate.to_le_bytes());
            let gate = handler & 0xffff | 0x38 << 16 | 0xee00 << 32 | (handler >> 16) << 48;
            self.client.poke(IDT64 + 16 * v, &gate.to_le_bytes());
        }
        for (n, segment) in SEGMENTS.iter().enumerate() {
            self.client.poke(GDT + 8 * n as u64, &segment.to_le_bytes());
        }
    }

    /// Does a step, and says what came of it.
    pub fn step(&mut self, random: &mut Random, show: bool) -> Result<String> {
        self.around(random)?;
        self.fill();
        let mode = random.of(&[
            Mode::Real,
            Mode::Protected,
            Mode::Paged,
            Mode::Compatible,
            Mode::Long,
            Mode::Long,
            Mode::Long,
        ]);
        self.set_tss(mode);
        let user = mode != Mode::Real && random.below(3) == 0;
        let bytes = instruction::any(random);
        let rip = match random.below(8) {
            // Across the border of a page, and of memory.
            0 => CODE + 0x1000 - random.below(bytes.len() as u64 + 1),
            1 if mode != Mode::Real => RAM - random.below(bytes.len() as u64 + 1),
            _ => CODE + 0x100,
        };
        let here = bytes.len().min((RAM - rip) as usize);
        self.client.poke(rip, &bytes[..here]);
        let mut line = format!("{mode:?}{} {}", if user { " user" } else { "" }, hex(&bytes));
        if rip != CODE + 0x100 {
            write!(line, " at {rip:x}")?;
        }
        let mut regs = self.registers(random, mode, rip);
        if instruction::is_ins(&bytes) {
            // With nowhere to put what is read, stock has read the device by then.
            regs.rdi = DATA + (regs.rdi & 0xfff);
        }
        if bytes.iter().take(3).any(|byte| matches!(byte, 0xf2 | 0xf3)) {
            // Nobody can call off what is repeated.
            regs.rcx = random.below(5);
        }
        let mut sregs = self.system_registers(mode, user);
        if random.below(4) == 0 {
            line.push_str(&outside(random, &mut sregs));
        }
        self.vcpu.set_vcpu_events(&self.start.events).context("KVM_SET_VCPU_EVENTS")?;
        self.vcpu.set_debug_regs(&self.start.debug).context("KVM_SET_DEBUGREGS")?;
        if let Err(e) = self.vcpu.set_sregs(&sregs) {
            return Ok(format!("{line}: KVM_SET_SREGS {e}"));
        }
        let waits = random.below(4) == 0;
        if waits {
            // An interrupt that cannot be taken is another matter (`state`), and so is a step that is single.
            regs.rflags = regs.rflags & !TF | 0x200;
        }
        self.vcpu.set_regs(&regs).context("KVM_SET_REGS")?;
        if waits {
            line.push_str(&self.event(random));
        }
        if show {
            println!("{regs:x?}\n{sregs:x?}");
        }
        let logged_from = if self.logged {
            // From here on.
            self.client.vm.get_dirty_log(0, RAM as usize)?;
            Some(self.client.memory().to_vec())
        } else {
            None
        };
        let left = self.run()?;
        self.settle();
        let seen = self.seen(&regs, logged_from.as_deref(), show)?;
        if let Some((access, _)) = left.split_once(", ").filter(|_| regs.rflags & TF != 0) {
            // Stock loses the step over a device, which is better here.
            return Ok(format!("{line}: {access}, in a single step"));
        }
        Ok(format!("{line}: {left}; {seen}"))
    }

    /// What user space and the host do beside the guest.
    fn around(&mut self, random: &mut Random) -> Result<()> {
        match random.below(10) {
            0 => {
                self.logged = !self.logged;
                self.client.dirty_log(self.logged)?;
            }
            1 => {
                // The slot is gone, and comes back.
                self.client.map(1, READ_ONLY, 0, 0)?;
                let flags = random.of(&[0, KVM_MEM_READONLY]);
                self.client.map_with(1, flags, READ_ONLY, self.read_only.as_ptr() as u64, READ_ONLY_SIZE)?;
            }
            2 => {
                // The host takes pages away.
                let page = random.below(RAM >> 12) as usize * 4096;
                let memory = &mut self.client.memory()[page..page + 4096];
                // SAFETY: the page is ours, and zeros are as good as what was there: it is filled anew.
                unsafe { libc::madvise(memory.as_mut_ptr().cast(), memory.len(), libc::MADV_DONTNEED) };
            }
            _ => {}
        }
        Ok(())
    }

    /// Memory is where it is up to 4 GiB, for all levels; for PAE in its own form of the topmost table.
    fn tables(&mut self) {
        self.client.poke(0x1000, &(0x2000u64 | 7).to_le_bytes());
        for g in 0..4u64 {
            self.client.poke(0x2000 + 8 * g, &((0x3000 + 0x1000 * g) | 7).to_le_bytes());
            self.client.poke(PAE + 8 * g, &((0x3000 + 0x1000 * g) | 1).to_le_bytes());
            for n in 0..512u64 {
                self.client.poke(0x3000 + 0x1000 * g + 8 * n, &(g << 30 | n << 21 | 0x87).to_le_bytes());
            }
        }
    }

    /// The stack for who comes from level 3, and a bitmap of ports that is all ones.
    fn set_tss(&mut self, mode: Mode) {
        if matches!(mode, Mode::Long | Mode::Compatible) {
            self.client.poke(TSS + 4, &KERNEL_STACK.to_le_bytes());
        } else {
            self.client.poke(TSS + 4, &(KERNEL_STACK as u32).to_le_bytes());
            self.client.poke(TSS + 8, &0x10u32.to_le_bytes());
        }
        self.client.poke(TSS + 102, &0x68u16.to_le_bytes());
    }
}
