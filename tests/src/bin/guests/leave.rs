//! How a guest leaves, and what is seen of it then.

use crate::world::{PAE, RAM, World};
use anyhow::Result;
use kvm_bindings::kvm_regs;
use kvm_ioctls::VcpuExit;
use std::fmt::Write as _;

/// Exits of a step at most.
const MOST_EXITS: usize = 24;
/// Milliseconds after which a guest counts as endless.
const PATIENCE: i64 = 60;
/// Flags whose value after some instructions no manual gives, and RF, which stock leaves set behind what it emulates.
const UNSEEN_FLAGS: u64 = 0x8d5 | 1 << 16;

impl World {
    /// Until the guest halts, or cannot go on, or has left often enough.
    pub fn run(&mut self) -> Result<String> {
        let mut line = String::new();
        let mut answer = 0x11u8;
        for _ in 0..MOST_EXITS {
            if !line.is_empty() {
                line.push_str(", ");
            }
            timer(PATIENCE);
            let exit = self.vcpu.run();
            timer(0);
            match exit {
                Ok(VcpuExit::IoOut(port, data)) => write!(line, "out {port:x} {}", hex(data))?,
                Ok(VcpuExit::IoIn(port, data)) => {
                    data.fill(answer);
                    write!(line, "in {port:x} {}", data.len())?;
                }
                Ok(VcpuExit::MmioRead(gpa, data)) => {
                    data.fill(answer);
                    write!(line, "read {gpa:x} {}", data.len())?;
                }
                Ok(VcpuExit::MmioWrite(gpa, data)) => write!(line, "write {gpa:x} {}", hex(data))?,
                Ok(VcpuExit::Hlt) => {
                    line.push_str("hlt");
                    return Ok(line);
                }
                Ok(VcpuExit::Shutdown) => {
                    line.push_str("shutdown");
                    return Ok(line);
                }
                Ok(VcpuExit::FailEntry(..)) => {
                    line.push_str("fails to enter");
                    return Ok(line);
                }
                Ok(VcpuExit::InternalError) => {
                    // SAFETY: the exit says that this is what the union holds.
                    let suberror = unsafe { self.vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror };
                    write!(line, "internal error {suberror}")?;
                    return Ok(line);
                }
                Ok(other) => {
                    write!(line, "{other:?}")?;
                    return Ok(line);
                }
                Err(e) if e.errno() == libc::EINTR => {
                    line.push_str("does not end");
                    return Ok(line);
                }
                Err(e) => {
                    write!(line, "{e}")?;
                    return Ok(line);
                }
            }
            answer = answer.wrapping_mul(3);
        }
        line.push_str(" and so on");
        Ok(line)
    }

    /// What is under way comes to its end, so that it is not the next step's.
    pub fn settle(&mut self) {
        self.vcpu.set_kvm_immediate_exit(1);
        for _ in 0..MOST_EXITS * 50 {
            if self.vcpu.run().is_err() {
                break;
            }
        }
        self.vcpu.set_kvm_immediate_exit(0);
    }

    /// What is different from before, in words; of memory only a sum.
    /// Where the log is on, `logged_from` is the memory since which it counts.
    pub fn seen(&mut self, before: &kvm_regs, logged_from: Option<&[u8]>, show: bool) -> Result<String> {
        let (r, s) = (self.vcpu.get_regs()?, self.vcpu.get_sregs()?);
        let e = self.vcpu.get_vcpu_events()?;
        let d = self.vcpu.get_debug_regs()?;
        let mut line = format!("rip {:x} flags {:x}", r.rip, r.rflags & !UNSEEN_FLAGS);
        let names = ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8"];
        let all = |r: &kvm_regs| [r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rsp, r.rbp, r.r8];
        for (name, (was, is)) in names.iter().zip(all(before).into_iter().zip(all(&r))) {
            if was != is {
                write!(line, " {name} {is:x}")?;
            }
        }
        write!(line, " cr {:x} {:x} {:x} {:x} {:x} efer {:x}", s.cr0, s.cr2, s.cr3, s.cr4, s.cr8, s.efer)?;
        let segments = [s.cs, s.ss, s.ds, s.es, s.fs, s.gs, s.tr, s.ldt];
        let sum = segments.iter().flat_map(|s| {
            let attributes = [s.type_, s.present, s.dpl, s.db, s.s, s.l, s.g];
            [
                s.base,
                s.limit.into(),
                s.selector.into(),
                u64::from_le_bytes([attributes.as_slice(), &[0]].concat().try_into().unwrap_or_default()),
            ]
        });
        write!(line, " cs {:x} ss {:x} segments {:x}", s.cs.selector, s.ss.selector, fold(sum))?;
        let tables = [s.gdt.base, s.gdt.limit.into(), s.idt.base, s.idt.limit.into()];
        write!(line, " tables {:x} dr {:x} {:x} {:x}", fold(tables), d.db[0], d.dr6, d.dr7)?;
        // What is not there has no number.
        let exception = if e.exception.injected != 0 { e.exception.nr } else { 0 };
        let interrupt = if e.interrupt.injected != 0 { e.interrupt.nr } else { 0 };
        let events = [
            e.exception.injected,
            exception,
            e.interrupt.injected,
            interrupt,
            e.nmi.injected,
            e.nmi.pending,
            e.nmi.masked,
            e.interrupt.shadow,
        ];
        write!(line, " events {}", hex(&events))?;
        let memory = self.client.memory();
        let words = memory.chunks_exact(8).map(|w| u64::from_le_bytes(w.try_into().unwrap_or_default()));
        // Accessed and dirty bits in the tables are the processor's; where it leaves them is no matter of ours.
        let sum = fold(words.enumerate().filter(|(n, _)| !(0x200..0x1000).contains(n)).map(|(_, w)| w));
        write!(line, " memory {sum:x}")?;
        // Stock logs what was only read as well: a page that it makes writable. What was written has to be there.
        if let Some(from) = logged_from {
            let log = self.client.vm.get_dirty_log(0, RAM as usize)?;
            let memory = self.client.memory();
            for (page, (was, is)) in from.chunks_exact(4096).zip(memory.chunks_exact(4096)).enumerate() {
                let logged = log.get(page / 64).is_some_and(|word| word >> (page % 64) & 1 != 0);
                if was != is && !logged {
                    write!(line, " NOT LOGGED {page:x}")?;
                }
            }
        }
        if show {
            println!(
                "{r:x?}\n{s:x?}\n{e:x?}\n{d:x?}\ntables {:x} {:x}",
                self.client.peek(PAE),
                self.client.peek(0x3000)
            );
        }
        Ok(line)
    }
}

fn timer(milliseconds: i64) {
    let value = libc::timeval { tv_sec: 0, tv_usec: milliseconds * 1000 };
    let none = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let timer = libc::itimerval { it_interval: none, it_value: value };
    // SAFETY: the structure lives as long as the call.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()) };
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A sum of 32 bits that tells one thing from another.
fn fold(words: impl IntoIterator<Item = u64>) -> u32 {
    let sum =
        words.into_iter().fold(0xcbf2_9ce4_8422_2325u64, |h, w| (h ^ w).wrapping_mul(0x100_0000_01b3).rotate_left(23));
    (sum ^ sum >> 32) as u32
}
