//! What the host has and a guest's CPUID has not: components of the XSAVE state, and RDTSCP.

use anyhow::Result;
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{VcpuExit, VcpuFd};
use tests::client::{Client, assemble};

/// XSTATE_BV, the first word of the header, in words of 32 bits.
const XSTATE_BV: usize = 128;

fn cpuid_with(client: &Client, change: impl Fn(&mut kvm_cpuid_entry2)) -> Result<CpuId> {
    let mut cpuid = client.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    cpuid.as_mut_slice().iter_mut().for_each(change);
    Ok(cpuid)
}

fn present(vcpu: &VcpuFd) -> Result<u32> {
    Ok(vcpu.get_xsave()?.region[XSTATE_BV])
}

/// KVM_GET_XSAVE of guests with ever fewer components, new and after all that the host has was set.
pub fn components() -> Result<()> {
    let client = Client::new(8 << 20, false)?;
    client.split_irqchip()?;
    let all = client.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    let all = all.as_slice().iter().find(|e| e.function == 0xd && e.index == 0).map_or(3, |e| e.eax);
    for (id, mask) in [!0, !(1 << 9), !(0xe0 | 1 << 9), 7, 3, 0].into_iter().enumerate() {
        let vcpu = client.vm.create_vcpu(id as u64)?;
        let components = |e: &mut kvm_cpuid_entry2| {
            if e.function == 0xd && e.index == 0 {
                (e.eax, e.edx) = (e.eax & mask, 0);
            }
        };
        if mask != 0 {
            vcpu.set_cpuid2(&cpuid_with(&client, components)?)?;
        }
        let new = present(&vcpu)?;
        let mut area = vcpu.get_xsave()?;
        area.region[XSTATE_BV] = all;
        // SAFETY: no component is larger than what KVM_SET_XSAVE reads, as no dynamic one was enabled.
        let set = unsafe { vcpu.set_xsave(&area) }.err().map_or(0, |e| e.errno());
        println!("components of cpuid {mask:x}: {new:x}, set {all:x}: {set}, {:x}", present(&vcpu)?);
    }
    Ok(())
}

/// RDTSCP in guests that have it, and that do not: without an IDT #UD ends in a shutdown.
pub fn rdtscp() -> Result<()> {
    let mut client = Client::new(8 << 20, false)?;
    client.load(assemble(|a| {
        a.rdtscp()?;
        a.hlt()
    })?)?;
    for (id, hidden) in [false, true].into_iter().enumerate() {
        let mut vcpu = client.vcpu(id as u64)?;
        let without = |e: &mut kvm_cpuid_entry2| {
            if hidden && e.function == 0x8000_0001 {
                e.edx &= !(1 << 27);
            }
        };
        vcpu.set_cpuid2(&cpuid_with(&client, without)?)?;
        let exit = match vcpu.run()? {
            VcpuExit::Hlt => "runs".to_owned(),
            VcpuExit::Shutdown => "is undefined".to_owned(),
            other => format!("{other:?}"),
        };
        println!("rdtscp, hidden {hidden}: {exit}");
    }
    Ok(())
}
