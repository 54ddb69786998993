//! A guest in which one instruction after another is tried, each from the same state.

use anyhow::{Context, Result};
use kvm_bindings::{kvm_fpu, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events};
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::fmt::Write;
use std::time::Duration;
use tests::client::{CODE, Client, STACK};
use tests::pace::limit;
use vmm_sys_util::signal::register_signal_handler;

/// How the guest runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    Long,
    Protected,
    Real,
}

/// Where there is no memory; the operand is a little further, in order that what lies before can be reached.
const MMIO: u64 = 0x8000_0000;
const OPERAND: u64 = 0x100;
/// A buffer in memory.
const BUFFER: u64 = 0x7_0000;
const TABLES: u64 = 0x6_0000;
const GDT: u64 = TABLES + 0x2000;
/// Handlers of the exceptions: a HLT each, at this address plus the vector.
const HANDLERS: u64 = 0x10_8000;
/// What is restored before each case.
const SCRATCH: [(u64, usize); 2] = [(BUFFER - 0x100, 0x300), (STACK - 0x100, 0x200)];
const HLT: u8 = 0xf4;
/// More exits than one instruction can make.
const EXITS: usize = 64;

/// For one case, on an idle machine: a few loop.
const PATIENCE: Duration = Duration::from_secs(1);

extern "C" fn rings(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// KVM_RUN ends with EINTR after so long; zero: not.
fn patience(time: Duration) {
    let once = libc::itimerval {
        it_interval: libc::timeval { tv_sec: 0, tv_usec: 0 },
        it_value: libc::timeval { tv_sec: time.as_secs() as libc::time_t, tv_usec: 0 },
    };
    // SAFETY: the struct is valid, and nothing is returned.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &once, std::ptr::null_mut()) };
}

pub struct Machine {
    client: Client,
    vcpu: VcpuFd,
    sregs: kvm_sregs,
    regs: kvm_regs,
    fpu: kvm_fpu,
    events: kvm_vcpu_events,
}

impl Machine {
    pub fn new(mode: Mode) -> Result<Self> {
        register_signal_handler(libc::SIGALRM, rings)?;
        let mut client = Client::new(8 << 20, true)?;
        let memory = client.memory();
        // Whatever follows an instruction, and whatever is jumped to: HLT.
        memory[0x10_0000..0x11_0000].fill(HLT);
        let put = |memory: &mut [u8], at: u64, value: u64| {
            memory[at as usize..at as usize + 8].copy_from_slice(&value.to_le_bytes());
        };
        for vector in 0..32 {
            let handler = HANDLERS + vector;
            match mode {
                Mode::Long => {
                    put(memory, TABLES + 16 * vector, handler & 0xffff | 8 << 16 | 0x8e << 40 | handler >> 16 << 48);
                    put(memory, TABLES + 16 * vector + 8, 0);
                }
                Mode::Protected => {
                    put(memory, TABLES + 8 * vector, handler & 0xffff | 8 << 16 | 0x8e << 40 | handler >> 16 << 48);
                }
                // An offset in the segment that the address is in, as far up as it goes.
                Mode::Real => put(memory, TABLES + 4 * vector, 0xf800_8010 + vector),
            }
        }
        let code = if mode == Mode::Long { 0x00af_9b00_0000_ffff } else { 0x00cf_9b00_0000_ffff };
        put(memory, GDT + 8, code);
        put(memory, GDT + 16, 0x00cf_9300_0000_ffff);
        let vcpu = client.vcpu(0)?;
        let mut sregs = vcpu.get_sregs()?;
        (sregs.idt.base, sregs.idt.limit) = (TABLES, 0x3ff);
        (sregs.gdt.base, sregs.gdt.limit) = (GDT, 23);
        let mut regs = kvm_regs {
            rax: 0x0807_0605_0403_0201,
            rbx: 0x1817_1615_1413_1211,
            rcx: 3,
            rsi: MMIO + OPERAND,
            rdi: BUFFER,
            rbp: STACK - 0x40,
            rsp: STACK,
            rip: CODE,
            rflags: 2,
            ..Default::default()
        };
        match mode {
            Mode::Long => {}
            Mode::Protected => {
                (sregs.cr0, sregs.efer) = (0x33, 0);
                (sregs.cs.l, sregs.cs.db) = (0, 1);
            }
            Mode::Real => {
                (sregs.cr0, sregs.efer) = (0x32, 0);
                let real = |base: u64| kvm_segment {
                    base,
                    limit: 0xffff,
                    selector: (base >> 4) as u16,
                    type_: 3,
                    present: 1,
                    s: 1,
                    ..Default::default()
                };
                sregs.cs = real(CODE);
                (sregs.cs.type_, sregs.cs.selector) = (11, 0xf000);
                sregs.ds = real(MMIO);
                (sregs.es, sregs.ss) = (real(BUFFER), real(STACK - 0x1000));
                (sregs.fs, sregs.gs) = (real(0), real(0));
                (regs.rip, regs.rsi, regs.rdi, regs.rsp, regs.rbp) = (0, OPERAND, 0, 0x1000, 0x1000 - 0x40);
            }
        }
        let mut fpu = vcpu.get_fpu()?;
        for (n, xmm) in fpu.xmm.iter_mut().enumerate() {
            *xmm = core::array::from_fn(|i| (n * 16 + i) as u8 | 0x40);
        }
        let events = vcpu.get_vcpu_events()?;
        let mut machine = Self { client, vcpu, sregs, regs, fpu, events };
        // Registers of the FPU that were set before the first entry are not on stock what they were set to.
        machine.run(&[], 0)?;
        Ok(machine)
    }

    /// What came of an instruction; None if user space had no part in it. `undefined`: flags that are not looked at.
    pub fn run(&mut self, code: &[u8], undefined: u64) -> Result<Option<String>> {
        let at = CODE as usize;
        let memory = self.client.memory();
        memory[at..at + 32].fill(HLT);
        memory[at..at + code.len()].copy_from_slice(code);
        for (at, bytes) in SCRATCH {
            memory[at as usize..at as usize + bytes].iter_mut().enumerate().for_each(|(i, byte)| *byte = i as u8);
        }
        self.vcpu.set_sregs(&self.sregs)?;
        self.vcpu.set_regs(&self.regs)?;
        self.vcpu.set_fpu(&self.fpu)?;
        self.vcpu.set_vcpu_events(&self.events)?;
        patience(limit(PATIENCE));
        let mut line = String::new();
        let mut met = false;
        let mut end = "goes on";
        for _ in 0..EXITS {
            let exit = match self.vcpu.run() {
                Err(e) if e.errno() == libc::EINTR => {
                    end = "goes on";
                    break;
                }
                exit => exit?,
            };
            match exit {
                VcpuExit::Hlt => {
                    end = "";
                    break;
                }
                VcpuExit::MmioRead(at, data) => {
                    met = true;
                    for (i, byte) in data.iter_mut().enumerate() {
                        *byte = (at as u8).wrapping_add(i as u8).wrapping_mul(7) | 0x21;
                    }
                    write!(line, "r{}@{:x} ", data.len(), at.wrapping_sub(MMIO))?;
                }
                VcpuExit::MmioWrite(at, data) => {
                    met = true;
                    let value: String = data.iter().rev().map(|byte| format!("{byte:02x}")).collect();
                    write!(line, "w{}@{:x}={value} ", data.len(), at.wrapping_sub(MMIO))?;
                }
                VcpuExit::IoIn(port, data) => {
                    data.fill(0x5a);
                    write!(line, "in{}@{port:x} ", data.len())?;
                }
                VcpuExit::IoOut(port, data) => write!(line, "out{}@{port:x} ", data.len())?,
                VcpuExit::InternalError => {
                    met = true;
                    end = "internal error";
                    break;
                }
                VcpuExit::Shutdown => {
                    end = "shutdown";
                    break;
                }
                other => {
                    write!(line, "{other:?}")?;
                    end = "another exit";
                    break;
                }
            }
        }
        patience(Duration::ZERO);
        if !end.is_empty() {
            self.finish()?;
        }
        if !met {
            return Ok(None);
        }
        self.changes(&mut line, undefined)?;
        line += end;
        Ok(Some(line.trim_end().to_owned()))
    }

    /// Has what the last exit left unfinished done with, so that it is not done in the next case's state.
    fn finish(&mut self) -> Result<()> {
        self.vcpu.set_kvm_immediate_exit(1);
        let left = self.vcpu.run().map(drop);
        self.vcpu.set_kvm_immediate_exit(0);
        match left {
            Err(e) if e.errno() != libc::EINTR => Err(e.into()),
            _ => Ok(()),
        }
    }

    fn changes(&mut self, line: &mut String, undefined: u64) -> Result<()> {
        let (mut now, was) = (self.vcpu.get_regs()?, self.regs);
        now.rflags &= !undefined;
        let pairs = [
            ("rax", now.rax, was.rax),
            ("rbx", now.rbx, was.rbx),
            ("rcx", now.rcx, was.rcx),
            ("rdx", now.rdx, was.rdx),
            ("rsi", now.rsi, was.rsi),
            ("rdi", now.rdi, was.rdi),
            ("rbp", now.rbp, was.rbp),
            ("rsp", now.rsp, was.rsp),
            ("rflags", now.rflags, was.rflags),
            ("rip", now.rip, was.rip),
        ];
        for (name, now, was) in pairs {
            if now != was {
                write!(line, "{name}={now:x} ")?;
            }
        }
        let sregs = self.vcpu.get_sregs()?;
        let segments =
            |s: &kvm_sregs| [s.es, s.cs, s.ss, s.ds, s.fs, s.gs, s.ldt, s.tr].map(|s| (s.selector, s.base, s.limit));
        if segments(&sregs) != segments(&self.sregs) {
            write!(line, "segments={:x?} ", segments(&sregs))?;
        }
        let fpu = self.vcpu.get_fpu()?;
        for (n, (now, was)) in fpu.xmm.iter().zip(&self.fpu.xmm).enumerate() {
            if now != was {
                write!(line, "xmm{n}={:032x} ", u128::from_le_bytes(*now))?;
            }
        }
        if (fpu.fpr, fpu.fcw, fpu.fsw) != (self.fpu.fpr, self.fpu.fcw, self.fpu.fsw) {
            write!(line, "fpu={:x}/{:x}/{:x?} ", fpu.fcw, fpu.fsw, fpu.fpr[7])?;
        }
        let memory = self.client.memory();
        for (at, bytes) in SCRATCH {
            let is = &memory[at as usize..at as usize + bytes];
            let first = is.iter().enumerate().find(|(i, byte)| **byte != *i as u8);
            if let Some((i, _)) = first {
                let eight = is.get(i..i + 8).context("near the end of what is looked at")?;
                write!(line, "[{:x}]={eight:02x?} ", at + i as u64)?;
            }
        }
        Ok(())
    }
}
