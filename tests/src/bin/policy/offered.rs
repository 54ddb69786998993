//! What user space is told before there is a VM.

use anyhow::Result;
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::Kvm;

/// Every KVM_CAP_* that any kernel knows so far, and some more.
const LAST_CAPABILITY: u64 = 250;

/// KVM_CHECK_EXTENSION on `/dev/kvm` and on a VM; those that are 0 on both are left out.
pub fn capabilities() -> Result<()> {
    let kvm = Kvm::new()?;
    let vm = kvm.create_vm()?;
    for cap in 0..=LAST_CAPABILITY {
        let (system, vm) = (kvm.check_extension_raw(cap), vm.check_extension_raw(cap));
        if system != 0 || vm != 0 {
            println!("cap {cap}: {system} {vm}");
        }
    }
    Ok(())
}

/// Leaves whose registers hold feature bits, and which: 0 EAX to 3 EDX.
const FEATURES: &[(u32, u32, &[usize])] = &[
    (1, 0, &[2, 3]),
    (7, 0, &[1, 2, 3]),
    (7, 1, &[0, 1, 2, 3]),
    (7, 2, &[3]),
    (0xd, 1, &[0]),
    (0x4000_0001, 0, &[0, 3]),
    (0x8000_0001, 0, &[2, 3]),
    (0x8000_0007, 0, &[3]),
    (0x8000_0008, 0, &[1]),
    (0x8000_000a, 0, &[3]),
    (0x8000_0021, 0, &[0, 2]),
];

/// One line per register, and one per bit where bits are features.
fn print_cpuid(kind: &str, entries: &CpuId) {
    for e in entries.as_slice() {
        let at = format!("{kind} {:x}.{}", e.function, e.index);
        println!("{at} flags {:x}", e.flags);
        let bits = FEATURES.iter().find(|f| (f.0, f.1) == (e.function, e.index)).map_or(&[][..], |f| f.2);
        for (n, (name, value)) in [("eax", e.eax), ("ebx", e.ebx), ("ecx", e.ecx), ("edx", e.edx)].iter().enumerate() {
            // The initial APIC ID, here and in the topology leaves, is that of the CPU that was asked.
            let value = match (e.function, n) {
                (1, 1) => value & 0x00ff_ffff,
                (0xb | 0x1f, 3) => 0,
                _ => *value,
            };
            if bits.contains(&n) {
                for bit in (0..32).filter(|bit| value >> bit & 1 != 0) {
                    println!("{at} {name} bit {bit}");
                }
            } else {
                println!("{at} {name} {value:x}");
            }
        }
    }
}

/// KVM_GET_SUPPORTED_CPUID and KVM_GET_EMULATED_CPUID.
pub fn cpuid() -> Result<()> {
    let kvm = Kvm::new()?;
    print_cpuid("supported", &kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?);
    print_cpuid("emulated", &kvm.get_emulated_cpuid(KVM_MAX_CPUID_ENTRIES)?);
    Ok(())
}

/// KVM_GET_MSR_INDEX_LIST and KVM_GET_MSR_FEATURE_INDEX_LIST, the latter with values.
pub fn msr_lists() -> Result<()> {
    let kvm = Kvm::new()?;
    for index in kvm.get_msr_index_list()?.as_slice() {
        println!("saved msr {index:x}");
    }
    for index in kvm.get_msr_feature_index_list()?.as_slice() {
        let mut one = Msrs::from_entries(&[kvm_msr_entry { index: *index, ..Default::default() }])?;
        match kvm.get_msrs(&mut one)? {
            1 => println!("feature msr {index:x}: {:x}", one.as_slice()[0].data),
            _ => println!("feature msr {index:x}: none"),
        }
    }
    Ok(())
}
