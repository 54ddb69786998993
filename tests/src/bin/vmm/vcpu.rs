//! One vCPU: its CPUID, its registers at the start, and the loop around KVM_RUN.

use crate::{
    boot::{Entry, PARAMETERS},
    bus::{Bus, Power},
};
use anyhow::{Context, Result, bail};
use kvm_bindings::{CpuId, kvm_regs, kvm_segment};
use kvm_ioctls::{VcpuExit, VcpuFd};
use libc::{SIGRTMIN, c_int, c_void, siginfo_t};
use std::sync::{Condvar, Mutex};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::signal::register_signal_handler;

const GDT: u64 = 0x500;
const PML4: u64 = 0x9000;
const PDPT: u64 = 0xa000;
const PD: u64 = 0xb000;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;

/// What the guest finds in CPUID on vCPU `id` of `cpus`; without `deadline` its timer has to be calibrated.
pub fn cpuid(supported: &CpuId, id: u8, cpus: u8, deadline: bool) -> CpuId {
    let mut cpuid = supported.clone();
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            1 => {
                entry.ebx = entry.ebx & 0xffff | u32::from(cpus) << 16 | u32::from(id) << 24;
                entry.ecx |= HYPERVISOR;
                entry.ecx = if deadline { entry.ecx | TSC_DEADLINE } else { entry.ecx & !TSC_DEADLINE };
            }
            0xb => entry.edx = id.into(),
            0x8000_001e => entry.eax = id.into(),
            _ => {}
        }
    }
    cpuid
}

/// The tables that the 64-bit start needs: 1 GiB identity-mapped, and a GDT for both kinds.
pub fn write_tables(memory: &GuestMemoryMmap) -> Result<()> {
    memory.write_obj(PDPT | 3, GuestAddress(PML4))?;
    memory.write_obj(PD | 3, GuestAddress(PDPT))?;
    for n in 0..512 {
        memory.write_obj(n << 21 | 0x83, GuestAddress(PD + 8 * n))?;
    }
    let gdt: [u64; 4] = [0, 0x00cf_9b00_0000_ffff, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
    for (at, entry) in (GDT..).step_by(8).zip(gdt) {
        memory.write_obj(entry, GuestAddress(at))?;
    }
    Ok(())
}

/// Puts the first vCPU at the kernel's entry.
pub fn start_at(vcpu: &VcpuFd, entry: &Entry) -> Result<()> {
    let mut s = vcpu.get_sregs()?;
    let data =
        kvm_segment { base: 0, limit: !0, selector: 24, type_: 3, present: 1, s: 1, g: 1, db: 1, ..Default::default() };
    (s.ds, s.es, s.fs, s.gs, s.ss) = (data, data, data, data, data);
    (s.gdt.base, s.gdt.limit) = (GDT, 31);
    let mut regs = kvm_regs { rflags: 2, ..Default::default() };
    match *entry {
        Entry::Long(rip) => {
            s.cs = kvm_segment { selector: 16, type_: 11, l: 1, db: 0, ..data };
            (s.cr3, s.cr4, s.efer) = (PML4, 1 << 5, 1 << 8 | 1 << 10);
            s.cr0 |= 1 << 31 | 1;
            (regs.rip, regs.rsi) = (rip, PARAMETERS);
        }
        Entry::Flat(rip) => {
            s.cs = kvm_segment { selector: 8, type_: 11, ..data };
            s.cr0 = 1;
            (s.cr4, s.efer) = (0, 0);
            (regs.rip, regs.rbx) = (rip, PARAMETERS);
        }
    }
    vcpu.set_sregs(&s).context("KVM_SET_SREGS")?;
    vcpu.set_regs(&regs).context("KVM_SET_REGS")
}

/// Why a vCPU's thread stops.
pub enum Stop {
    /// The guest powered off.
    Off,
    /// The script wants the machine saved; the thread is not paused yet.
    Save {
        /// And left.
        leave: bool,
    },
    /// As was asked; nothing that KVM began is unfinished.
    Paused,
}

/// Asks all vCPUs' threads to pause.
#[derive(Default)]
pub struct Pause {
    asked: Mutex<bool>,
    ended: Condvar,
}

impl Pause {
    fn asked(&self) -> bool {
        self.asked.lock().is_ok_and(|asked| *asked)
    }

    fn set(&self, asked: bool) {
        if let Ok(mut now) = self.asked.lock() {
            *now = asked;
        }
        self.ended.notify_all();
    }

    /// Lets the threads go on.
    pub fn end(&self) {
        self.set(false);
    }

    /// Until [`Pause::end`].
    pub fn wait_for_end(&self) {
        if let Ok(asked) = self.asked.lock() {
            drop(self.ended.wait_while(asked, |asked| *asked));
        }
    }
}

/// The signal that makes KVM_RUN return.
pub fn kick() -> c_int {
    SIGRTMIN()
}

/// Has the signal interrupt system calls, and nothing more.
pub fn catch_kicks() -> Result<()> {
    extern "C" fn nothing(_: c_int, _: *mut siginfo_t, _: *mut c_void) {}
    Ok(register_signal_handler(kick(), nothing)?)
}

/// Runs until there is something for the machine to do.
pub fn run(vcpu: &mut VcpuFd, bus: &Mutex<Bus>, pause: &Pause) -> Result<Stop> {
    let lock = || bus.lock().map_err(|_| anyhow::anyhow!("a vCPU's thread failed"));
    loop {
        if pause.asked() {
            finish(vcpu)?;
            return Ok(Stop::Paused);
        }
        match vcpu.run() {
            Ok(VcpuExit::IoIn(port, data)) => lock()?.port_read(port, data),
            Ok(VcpuExit::IoOut(port, data)) => match lock()?.port_write(port, data)? {
                Power::On => {}
                Power::Off => return Ok(Stop::Off),
                Power::Save { leave } => {
                    pause.set(true);
                    return Ok(Stop::Save { leave });
                }
            },
            Ok(VcpuExit::MmioRead(address, data)) => lock()?.memory_read(address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => lock()?.memory_write(address, data)?,
            Ok(VcpuExit::IoapicEoi(_)) => {}
            Ok(other) => bail!("{other:?}"),
            Err(error) if [libc::EINTR, libc::EAGAIN].contains(&error.errno()) => {}
            Err(error) => bail!("KVM_RUN: {error}"),
        }
    }
}

/// Has KVM complete the port or memory access that it returned for last, without entering the guest.
fn finish(vcpu: &mut VcpuFd) -> Result<()> {
    vcpu.set_kvm_immediate_exit(1);
    let left = vcpu.run().map(|exit| format!("{exit:?}"));
    vcpu.set_kvm_immediate_exit(0);
    match left {
        Err(error) if error.errno() == libc::EINTR => Ok(()),
        other => bail!("KVM_RUN with immediate_exit: {other:?}"),
    }
}
