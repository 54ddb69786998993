//! Clients' vCPUs that are of a Hyper-V guest's.

use crate::client::{Client, number};
use anyhow::Result;
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2, kvm_enable_cap};
use kvm_ioctls::VcpuFd;
use std::os::fd::AsRawFd;

const KVM_GET_SUPPORTED_HV_CPUID: u64 = 0xc008_aec1;
const KVM_ENABLE_CAP: u64 = 0x4068_aea3;
/// KVM_CAP_HYPERV_SYNIC.
pub const SYNIC: u32 = 123;
/// KVM_CAP_HYPERV_SYNIC2.
pub const SYNIC2: u32 = 148;
/// KVM_CAP_HYPERV_ENFORCE_CPUID.
pub const ENFORCE: u32 = 199;

/// `struct kvm_cpuid2` with room.
#[repr(C)]
struct Leaves {
    nent: u32,
    padding: u32,
    entries: [kvm_cpuid_entry2; 32],
}

/// KVM_GET_SUPPORTED_HV_CPUID with room for so many leaves: what it returns, or minus the errno, and the leaves.
pub fn supported(fd: &impl AsRawFd, room: u32) -> (i64, Vec<kvm_cpuid_entry2>) {
    let mut leaves = Leaves { nent: room, padding: 0, entries: [kvm_cpuid_entry2::default(); 32] };
    let result = number(fd, KVM_GET_SUPPORTED_HV_CPUID, &raw mut leaves as u64);
    (result, leaves.entries[..if result == 0 { leaves.nent as usize } else { 0 }].to_vec())
}

/// KVM_ENABLE_CAP on a vCPU.
pub fn enable(vcpu: &VcpuFd, cap: u32, arg: u64) -> i64 {
    let enable = kvm_enable_cap { cap, args: [arg, 0, 0, 0], ..Default::default() };
    number(vcpu, KVM_ENABLE_CAP, &raw const enable as u64)
}

/// The vCPU is one of a Hyper-V guest's, with these of its leaves changed.
pub fn make(client: &Client, vcpu: &VcpuFd, change: impl Fn(&mut kvm_cpuid_entry2)) -> Result<()> {
    let mut all: Vec<kvm_cpuid_entry2> = client.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?.as_slice().to_vec();
    all.iter_mut().filter(|l| l.function >> 28 == 4).for_each(|l| l.function += 0x100);
    let mut leaves = supported(&client.kvm, 32).1;
    leaves.iter_mut().for_each(change);
    all.extend(leaves);
    Ok(vcpu.set_cpuid2(&CpuId::from_entries(&all)?)?)
}
