//! The ABI against a simulated machine: what each ioctl takes, refuses and gives back.

mod system;
mod vcpu;
mod vm;

use crate::codec::{Abi, Field, get, put, put_array};
use crate::uapi::ioctl::*;
use crate::uapi::*;
use crate::{SystemReply, VcpuReply, VmReply, system_ioctl, vcpu_ioctl, vcpu_run, vm_compat_ioctl, vm_ioctl};
use ::vm::Vm;
use host::{CpuFeatures, Errno, OneBox};
use sim::{HVA_BASE, Sim};

/// Where arguments lie.
const ARG: u64 = HVA_BASE + 0x4000;
/// What an argument points to.
const DATA: u64 = HVA_BASE + 0x8000;
/// No memory at all.
const NOWHERE: u64 = 0x1000;

/// A VM with a split irqchip and one vCPU.
struct Bed {
    sim: Sim,
    vm: OneBox<Vm<Sim>>,
}

impl Bed {
    /// Without irqchip and vCPU.
    fn bare() -> Self {
        let sim = Sim::new(64, CpuFeatures { nrips: true, phys_bits: 40, ..Default::default() });
        let vm = Vm::new(sim.clone()).expect("memory");
        Self { sim, vm }
    }

    fn new() -> Self {
        let bed = Self::bare();
        assert_eq!(bed.enable(cap::SPLIT_IRQCHIP, 24), Ok(0));
        assert_eq!(vm_ioctl(&bed.vm, KVM_CREATE_VCPU, 0), Ok(VmReply::NewVcpu { index: 0 }));
        bed
    }

    fn put<T: Abi>(&self, value: &T) {
        put(&self.sim, ARG, value).expect("a writable page");
    }

    fn read<T: Abi>(&self) -> T {
        get(&self.sim, ARG).expect("a readable page")
    }

    fn array<H: Abi, T: Abi>(&self, header: &H, items: &[T]) {
        self.put(header);
        put_array(&self.sim, ARG, H::SIZE, items.iter().copied()).expect("writable pages");
    }

    /// Element `n` of the array after a header of type `H`.
    fn item<H: Abi, T: Abi>(&self, n: usize) -> T {
        get(&self.sim, ARG + (H::SIZE + n * T::SIZE) as u64).expect("a readable page")
    }

    fn system(&self, cmd: u32, arg: u64) -> Result<i64, Errno> {
        match system_ioctl(&self.sim, cmd, arg)? {
            SystemReply::Value(v) => Ok(v),
            SystemReply::NewVm => panic!("a VM"),
        }
    }

    fn vm(&self, cmd: u32, arg: u64) -> Result<i64, Errno> {
        match vm_ioctl(&self.vm, cmd, arg)? {
            VmReply::Value(v) => Ok(v),
            other => panic!("{other:?}"),
        }
    }

    /// A VM ioctl with a struct.
    fn vm_with<T: Abi>(&self, cmd: u32, value: &T) -> Result<i64, Errno> {
        self.put(value);
        self.vm(cmd, ARG)
    }

    fn vcpu(&self, cmd: u32, arg: u64) -> Result<i64, Errno> {
        let vcpu = self.vm.vcpu(0).expect("a vCPU");
        if cmd == KVM_RUN {
            return vcpu_run(&self.vm, vcpu, arg).map(|_| 0);
        }
        match vcpu_ioctl(&self.vm, vcpu, cmd, arg)? {
            VcpuReply::Value(v) => Ok(v),
            other => panic!("{other:?}"),
        }
    }

    /// A vCPU ioctl with a struct.
    fn vcpu_with<T: Abi>(&self, cmd: u32, value: &T) -> Result<i64, Errno> {
        self.put(value);
        self.vcpu(cmd, ARG)
    }

    /// What a vCPU ioctl gives back.
    fn vcpu_get<T: Abi>(&self, cmd: u32) -> T {
        assert_eq!(self.vcpu(cmd, ARG), Ok(0));
        self.read()
    }

    fn enable(&self, cap: u32, arg: u64) -> Result<i64, Errno> {
        self.vm_with(KVM_ENABLE_CAP, &kvm_enable_cap { cap, args: [arg, 0, 0, 0], ..Default::default() })
    }
}
