//! A guest for one case: code, handlers that tell what was pushed, and a line for each exit.

use anyhow::Result;
use iced_x86::{IcedError, code_asm::*};
use kvm_bindings::{kvm_guest_debug, kvm_regs};
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::os::fd::AsRawFd;
use tests::client::{CODE, Client, assemble};

/// Where there is no memory.
pub const MMIO: u64 = 0x8000_0000;
/// Where the case's instruction ends: here the guest tells that it has gone on.
pub const DONE: u16 = 0xf4;
/// The same, for the code at [`ELSEWHERE`].
pub const MOVED: u16 = 0xf5;
/// The same, for the handlers; EAX is the vector.
pub const HANDLED: u16 = 0xf6;
/// Code that counts in EBX and then tells [`MOVED`].
pub const ELSEWHERE: u64 = CODE + 0x1000;

/// Which interrupt controllers are in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chips {
    None,
    Split,
    Kernel,
}

pub struct Guest {
    pub vcpu: VcpuFd,
    pub client: Client,
}

impl Guest {
    /// A guest that runs `code` and then tells [`DONE`].
    pub fn new(chips: Chips, code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Result<Self> {
        let mut client = Client::new(8 << 20, true)?;
        match chips {
            Chips::None => {}
            Chips::Split => client.split_irqchip()?,
            Chips::Kernel => client.full_irqchip()?,
        }
        client.load(assemble(|a| {
            code(a)?;
            a.out(u32::from(DONE), al)
        })?)?;
        client.load_at(
            ELSEWHERE,
            assemble(|a| {
                a.inc(ebx)?;
                a.inc(ebx)?;
                a.inc(ebx)?;
                a.out(u32::from(MOVED), al)
            })?,
        )?;
        for vector in 0..=255 {
            client.handler(
                vector,
                assemble(|a| {
                    a.mov(eax, u32::from(vector))?;
                    a.out(u32::from(HANDLED), al)
                })?,
            )?;
        }
        let vcpu = client.vcpu(0)?;
        client.descriptors(&vcpu)?;
        Ok(Self { vcpu, client })
    }

    /// Changes registers.
    pub fn regs(&self, change: impl FnOnce(&mut kvm_regs)) -> Result<()> {
        let mut r = self.vcpu.get_regs()?;
        change(&mut r);
        Ok(self.vcpu.set_regs(&r)?)
    }

    /// KVM_RUN: the exit, without what varies.
    pub fn run(&mut self) -> String {
        let said = match self.vcpu.run() {
            Ok(VcpuExit::IoOut(port, data)) => format!("out {port:x} {data:x?}"),
            Ok(VcpuExit::IoIn(port, data)) => {
                data.iter_mut().zip(0xa1..).for_each(|(d, n)| *d = n);
                format!("in {port:x} of {}", data.len())
            }
            Ok(VcpuExit::MmioRead(at, data)) => {
                data.iter_mut().zip(0xb1..).for_each(|(d, n)| *d = n);
                format!("read {at:x} of {}", data.len())
            }
            Ok(VcpuExit::MmioWrite(at, data)) => format!("write {at:x} {data:x?}"),
            Ok(VcpuExit::X86Rdmsr(exit)) => {
                *exit.data = 0x1111_2222_3333_4444;
                format!("rdmsr {:x}", exit.index)
            }
            Ok(VcpuExit::X86Wrmsr(exit)) => format!("wrmsr {:x} {:x}", exit.index, exit.data),
            Ok(VcpuExit::Hypercall(exit)) => {
                *exit.ret = 0x77;
                format!("hypercall {:x?}", &exit.args[..3])
            }
            // DR7 is not filled in by all that report.
            Ok(VcpuExit::Debug(d)) => format!("debug {} at {:x} dr6 {:x}", d.exception, d.pc, d.dr6),
            Ok(VcpuExit::FailEntry(reason, _)) => format!("refused {reason:x}"),
            Ok(VcpuExit::InternalError) => "internal error".to_owned(),
            Ok(other) => format!("{other:?}"),
            Err(e) => format!("errno {}", e.errno()),
        };
        if said == "internal error" { said + &self.internal() } else { said }
    }

    /// What an internal error comes with.
    fn internal(&mut self) -> String {
        // SAFETY: the exit reason says which member of the union is valid.
        let e = unsafe { self.vcpu.get_kvm_run().__bindgen_anon_1.internal };
        let data: Vec<u64> = e.data.iter().take(e.ndata.min(16) as usize).copied().collect();
        format!(" {} {data:x?}", e.suberror)
    }

    /// KVM_RUN with `immediate_exit`.
    pub fn settle(&mut self) -> String {
        self.vcpu.set_kvm_immediate_exit(1);
        let errno = self.vcpu.run().err().map_or(0, |e| e.errno());
        self.vcpu.set_kvm_immediate_exit(0);
        format!("errno {errno}")
    }

    /// The registers that cases work with.
    pub fn shown(&self) -> Result<String> {
        let r = self.vcpu.get_regs()?;
        let place = match r.rip {
            at if at >= ELSEWHERE => format!("else+{:x}", at - ELSEWHERE),
            at if at >= CODE => format!("code+{:x}", at - CODE),
            at => format!("{at:x}"),
        };
        Ok(format!(
            "rip {place} ax {:x} bx {:x} cx {:x} si {:x} di {:x} sp {:x} flags {:x}",
            r.rax,
            r.rbx,
            r.rcx,
            r.rsi,
            r.rdi,
            r.rsp,
            // The arithmetic flags are of no interest. Stock sets RF while an instruction is repeated.
            r.rflags & !0x1_08d5
        ))
    }

    /// The frame that the last handler found: its vector, RIP and RFLAGS, and whether that exit is a handler's.
    pub fn frame(&self) -> Result<String> {
        let r = self.vcpu.get_regs()?;
        let at = |n: u64| self.client.peek(r.rsp + 8 * n);
        Ok(format!("vector {:x} pushed {:x} {:x} {:x} {:x}", r.rax as u8, at(0), at(1), at(2), at(3)))
    }

    /// KVM_SET_GUEST_DEBUG: minus the errno.
    pub fn debug(&self, control: u32, registers: [u64; 8]) -> i32 {
        let mut debug = kvm_guest_debug { control, ..Default::default() };
        debug.arch.debugreg = registers;
        self.vcpu.set_guest_debug(&debug).err().map_or(0, |e| e.errno())
    }

    /// Any ioctl of the vCPU with a pointer: minus the errno, or what it returns.
    pub fn call<T>(&self, request: u64, arg: &mut T) -> i32 {
        call(&self.vcpu, request, arg)
    }
}

/// An ioctl with a pointer: minus the errno, or what it returns.
pub fn call<T>(fd: &impl AsRawFd, request: u64, arg: &mut T) -> i32 {
    // SAFETY: callers pass the struct that the request reads or writes, which is live and theirs alone.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request as libc::Ioctl, core::ptr::from_mut(arg)) };
    match result {
        -1 => -std::io::Error::last_os_error().raw_os_error().unwrap_or(0),
        n => n,
    }
}
