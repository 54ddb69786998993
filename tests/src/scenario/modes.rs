//! Puts a vCPU into the processor's modes, as a VMM that skips the firmware does.

use super::Machine;
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use sim::arch::exit::code;
use sim::host::{Cpu, Errno};

/// Where guest code is put.
pub const CODE: u64 = 0x8000;
/// Top of the guest's stack.
pub const STACK: u64 = 0x7000;
/// Page tables for 64-bit mode; they map the first 4 GiB one to one.
pub const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;

const EFER_LONG: u64 = 0x500;

/// Instructions at places of their own, so that a script can let the guest execute any of them at any time.
const RDMSR: u64 = CODE + 0x800;
const WRMSR: u64 = CODE + 0x810;
const HLT: u64 = CODE + 0x820;
const CPUID: u64 = CODE + 0x830;
const PARTS: [(u64, &[u8]); 4] =
    [(RDMSR, &[0x0f, 0x32]), (WRMSR, &[0x0f, 0x30]), (HLT, &[0xf4]), (CPUID, &[0x0f, 0xa2])];

fn segment(selector: u16, type_: u8, l: u8, db: u8) -> kvm_segment {
    kvm_segment { limit: !0, selector, type_, present: 1, s: 1, l, db, g: 1, ..Default::default() }
}

impl Machine {
    /// Real mode at [`CODE`].
    pub fn real(&self, vcpu: usize, code: &[u8]) {
        assert_eq!(self.try_real(vcpu, code), Ok(0));
    }

    /// Protected mode, 32 bits, flat, without paging.
    pub fn protected(&self, vcpu: usize, code: &[u8]) {
        assert_eq!(self.try_protected(vcpu, code), Ok(0));
    }

    /// The guest's next instruction, of two bytes, is intercepted on a processor that saves the next RIP: RAX, RCX, RDX.
    pub fn intercepts(&self, vcpu: usize, code: u64, write: bool, [rax, rcx, rdx]: [u64; 3]) {
        self.sim.step(vcpu, move |cpu| {
            (cpu.guest().rax, cpu.vmcb().next_rip) = (rax, cpu.guest().rip + 2);
            cpu.set_gpr(1, rcx);
            cpu.set_gpr(2, rdx);
            (code, write.into(), 0)
        });
    }

    /// 64-bit mode with memory mapped one to one.
    pub fn long(&self, vcpu: usize, code: &[u8]) {
        assert_eq!(self.try_long(vcpu, code), Ok(0));
    }

    /// [`real`](Self::real), if user space has not broken too much before.
    pub fn try_real(&self, vcpu: usize, code: &[u8]) -> Result<i64, Errno> {
        let mut s: kvm_sregs = self.vcpu_get(vcpu, abi::uapi::ioctl::KVM_GET_SREGS);
        let flat = |type_| kvm_segment { limit: 0xffff, type_, present: 1, s: 1, ..Default::default() };
        s.cs = flat(11);
        (s.ds, s.es, s.fs, s.gs, s.ss) = (flat(3), flat(3), flat(3), flat(3), flat(3));
        (s.cr0, s.cr4, s.efer) = (0x10, 0, 0);
        self.start(vcpu, s, code)
    }

    /// [`protected`](Self::protected), likewise.
    pub fn try_protected(&self, vcpu: usize, code: &[u8]) -> Result<i64, Errno> {
        let mut s: kvm_sregs = self.vcpu_get(vcpu, abi::uapi::ioctl::KVM_GET_SREGS);
        s.cs = segment(8, 11, 0, 1);
        let data = segment(16, 3, 0, 1);
        (s.ds, s.es, s.fs, s.gs, s.ss) = (data, data, data, data, data);
        (s.cr0, s.cr4, s.efer) = (0x33, 0, 0);
        self.start(vcpu, s, code)
    }

    /// [`long`](Self::long), likewise.
    pub fn try_long(&self, vcpu: usize, code: &[u8]) -> Result<i64, Errno> {
        self.write_ram(PML4, &(PDPT | 7).to_le_bytes());
        for g in 0..4u64 {
            self.write_ram(PDPT + 8 * g, &((PD + 0x1000 * g) | 7).to_le_bytes());
            let entries: Vec<u8> = (0..512u64).flat_map(|n| (g << 30 | n << 21 | 0x87).to_le_bytes()).collect();
            self.write_ram(PD + 0x1000 * g, &entries);
        }
        let mut s: kvm_sregs = self.vcpu_get(vcpu, abi::uapi::ioctl::KVM_GET_SREGS);
        s.cs = segment(8, 11, 1, 0);
        let data = segment(16, 3, 0, 1);
        (s.ds, s.es, s.fs, s.gs, s.ss) = (data, data, data, data, data);
        s.cr3 = PML4;
        s.cr4 = 0x620;
        s.cr0 = 0x8005_0033;
        s.efer = EFER_LONG;
        self.start(vcpu, s, code)
    }

    fn start(&self, vcpu: usize, s: kvm_sregs, code: &[u8]) -> Result<i64, Errno> {
        self.write_ram(CODE, code);
        for (at, bytes) in PARTS {
            self.write_ram(at, bytes);
        }
        self.vcpu_with(vcpu, abi::uapi::ioctl::KVM_SET_SREGS, &s)?;
        let regs = kvm_regs { rip: CODE, rsp: STACK, rflags: 2, ..Default::default() };
        self.vcpu_with(vcpu, abi::uapi::ioctl::KVM_SET_REGS, &regs)
    }

    /// The guest executes RDMSR.
    pub fn rdmsr(&self, vcpu: usize, index: u32) {
        self.sim.step(vcpu, move |c| {
            c.guest().rip = RDMSR;
            c.set_gpr(1, index.into());
            (code::MSR, 0, 0)
        });
    }

    /// The guest executes WRMSR.
    pub fn wrmsr(&self, vcpu: usize, index: u32, value: u64) {
        self.sim.step(vcpu, move |c| {
            c.guest().rip = WRMSR;
            c.set_gpr(1, index.into());
            c.set_gpr(0, value & 0xffff_ffff);
            c.set_gpr(2, value >> 32);
            (code::MSR, 1, 0)
        });
    }

    /// The guest executes HLT with RFLAGS.IF set.
    pub fn hlt(&self, vcpu: usize) {
        self.sim.step(vcpu, |c| {
            c.guest().rip = HLT;
            c.guest().rflags |= 0x200;
            (code::HLT, 0, 0)
        });
    }

    /// The guest executes CPUID.
    pub fn cpuid(&self, vcpu: usize, leaf: u32) {
        self.sim.step(vcpu, move |c| {
            c.guest().rip = CPUID;
            c.set_gpr(0, leaf.into());
            c.set_gpr(1, 0);
            (code::CPUID, 0, 0)
        });
    }

    /// Turns the local APIC on, in x2APIC mode.
    pub fn x2apic(&self, vcpu: usize) {
        let base = self.msr(vcpu, 0x1b);
        assert_eq!(self.set_msr(vcpu, 0x1b, base | 0xc00), Ok(1));
        self.wrmsr(vcpu, 0x80f, 0x1ff);
        self.run_out(vcpu);
    }
}
