//! A guest of Hyper-V's: its CPUID, as QEMU composes it, and its hypercalls.

use super::{CODE, DATA, Machine};
use abi::uapi::ioctl::{
    KVM_ENABLE_CAP, KVM_GET_MSRS, KVM_GET_SUPPORTED_CPUID, KVM_GET_SUPPORTED_HV_CPUID, KVM_SET_CPUID2,
};
use kvm_bindings::{kvm_cpuid_entry2, kvm_enable_cap};
use sim::arch::exit::code;
use sim::host::{Cpu, Errno};

/// Where an argument with many leaves is.
const LEAVES: u64 = DATA + 0x8000;
const VMMCALL: u64 = CODE + 0x840;

impl Machine {
    /// The leaves that an ioctl on /dev/kvm gives.
    fn leaves(&self, cmd: u32) -> Vec<kvm_cpuid_entry2> {
        self.put_at(LEAVES, &[256u32, 0]);
        assert_eq!(self.system(cmd, LEAVES), Ok(0));
        let n: u32 = self.get_at(LEAVES);
        (0..n.into()).map(|n: u64| self.get_at(LEAVES + 8 + 40 * n)).collect()
    }

    /// A vCPU with everything that is offered, Hyper-V's leaves `changed`, and KVM's own behind them.
    pub fn add_hyperv_vcpu(&self, id: u64, changed: impl Fn(&mut kvm_cpuid_entry2)) -> usize {
        let index = self.add_vcpu_without_cpuid(id).expect("a vCPU");
        self.set_hyperv_cpuid(index, changed);
        index
    }

    /// The same of a vCPU that is there.
    pub fn set_hyperv_cpuid(&self, index: usize, changed: impl Fn(&mut kvm_cpuid_entry2)) {
        let mut leaves = self.leaves(KVM_GET_SUPPORTED_CPUID);
        for leaf in leaves.iter_mut().filter(|l| l.function >> 28 == 4) {
            leaf.function += 0x100;
        }
        let mut offered = self.leaves(KVM_GET_SUPPORTED_HV_CPUID);
        offered.iter_mut().for_each(changed);
        leaves.extend(offered);
        self.put_at(LEAVES, &[leaves.len() as u32, 0]);
        for (n, leaf) in leaves.iter().enumerate() {
            self.put_at(LEAVES + 8 + 40 * n as u64, leaf);
        }
        assert_eq!(self.vcpu(index, KVM_SET_CPUID2, LEAVES), Ok(0));
    }

    /// A VM with memory, the split irqchip and a vCPU that is one of Hyper-V's, in 64-bit mode, its local APIC in x2APIC mode and
    /// its synthetic interrupt controller switched on.
    pub fn hyperv() -> Self {
        let m = Self::without_vcpu(true);
        m.add_hyperv_vcpu(0, |_| ());
        assert_eq!(m.enable_vcpu(0, kvm_bindings::KVM_CAP_HYPERV_SYNIC2, 0), Ok(0));
        m.long(0, &[]);
        m.x2apic(0);
        m.with_regs(0, |r| r.rflags |= 0x200);
        m
    }

    /// KVM_ENABLE_CAP on a vCPU.
    pub fn enable_vcpu(&self, vcpu: usize, cap: u32, arg: u64) -> Result<i64, Errno> {
        let c = kvm_enable_cap { cap, args: [arg, 0, 0, 0], ..Default::default() };
        self.vcpu_with(vcpu, KVM_ENABLE_CAP, &c)
    }

    /// The guest makes a hypercall in 64-bit mode: RCX, RDX and R8.
    pub fn hypercall(&self, vcpu: usize, value: u64, input: u64, output: u64) {
        self.write_ram(VMMCALL, &[0x0f, 0x01, 0xd9]);
        self.sim.step(vcpu, move |c| {
            c.guest().rip = VMMCALL;
            for (n, word) in [(1, value), (2, input), (8, output)] {
                c.set_gpr(n, word);
            }
            (code::VMMCALL, 0, 0)
        });
    }

    /// The same, to its end: what RAX holds then.
    pub fn called(&self, vcpu: usize, value: u64, input: u64, output: u64) -> u64 {
        self.hypercall(vcpu, value, input, output);
        self.run_out(vcpu);
        self.regs(vcpu).rax
    }

    /// The guest's RDMSR, to its end.
    pub fn guest_msr(&self, vcpu: usize, index: u32) -> u64 {
        self.rdmsr(vcpu, index);
        self.run_out(vcpu);
        let r = self.regs(vcpu);
        r.rdx << 32 | r.rax & 0xffff_ffff
    }

    /// KVM_GET_MSRS of one that may not be there.
    pub fn msr_if_any(&self, vcpu: usize, index: u32) -> Option<u64> {
        self.put_at(DATA, &[1, 0, index, 0, 0, 0]);
        (self.vcpu(vcpu, KVM_GET_MSRS, DATA) == Ok(1)).then(|| self.get_at(DATA + 16))
    }

    /// The guest's WRMSR is #GP (true) or not.
    pub fn write_faults(&self, vcpu: usize, index: u32, value: u64) -> bool {
        let before = self.injected(vcpu).len();
        self.wrmsr(vcpu, index, value);
        self.does(vcpu, |_| ());
        self.run_out(vcpu);
        self.injected(vcpu).iter().skip(before).any(|e| e.vector() == 13)
    }

    /// The guest's RDMSR is #GP (true) or not.
    pub fn read_faults(&self, vcpu: usize, index: u32) -> bool {
        let before = self.injected(vcpu).len();
        self.rdmsr(vcpu, index);
        self.does(vcpu, |_| ());
        self.run_out(vcpu);
        self.injected(vcpu).iter().skip(before).any(|e| e.vector() == 13)
    }
}
