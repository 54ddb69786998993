//! Calls whose answers are policy: which CPUIDs, machine checks and paravirtual settings are taken.

use crate::msrs::{get, set};
use anyhow::Result;
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2, kvm_enable_cap};
use tests::client::{Client, number};

const KVM_X86_SETUP_MCE: u64 = 0x4008_ae9c;
const KVM_X86_SET_MCE: u64 = 0x4040_ae9e;
const KVM_KVMCLOCK_CTRL: u64 = 0xaead;
const KVM_ENABLE_CAP: u64 = 0x4068_aea3;

fn client() -> Result<Client> {
    let client = Client::new(8 << 20, false)?;
    client.split_irqchip()?;
    Ok(client)
}

fn errno(result: Result<(), kvm_ioctls::Error>) -> i32 {
    result.err().map_or(0, |e| e.errno())
}

/// KVM_SET_CPUID2 with one entry changed.
pub fn cpuid_checks() -> Result<()> {
    type Change = fn(&mut kvm_cpuid_entry2);
    let changes: [(&str, u32, Change); 9] = [
        ("nothing", 0, |_| {}),
        ("linear 57", 0x8000_0008, |e| e.eax = e.eax & 0xff | 57 << 8),
        ("linear 64", 0x8000_0008, |e| e.eax = e.eax & 0xff | 64 << 8),
        ("physical 60", 0x8000_0008, |e| e.eax = e.eax & !0xff | 60),
        ("vmx", 1, |e| e.ecx |= 1 << 5),
        ("svm", 0x8000_0001, |e| e.ecx |= 1 << 2),
        ("amx", 0xd, |e| e.eax |= 3 << 17),
        ("unknown flag", 1, |e| e.flags = 0x80),
        ("padding", 1, |e| e.padding[1] = 1),
    ];
    let client = client()?;
    for (id, (what, function, change)) in changes.into_iter().enumerate() {
        let mut cpuid = client.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
        if let Some(e) = cpuid.as_mut_slice().iter_mut().find(|e| e.function == function) {
            change(e);
        }
        let vcpu = client.vm.create_vcpu(id as u64)?;
        println!("set cpuid with {what}: {}", errno(vcpu.set_cpuid2(&cpuid)));
        let back = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES)?;
        let e = back.as_slice().iter().find(|e| e.function == function).copied().unwrap_or_default();
        // Without TSC_DEADLINE and HYPERVISOR, which not every kernel reports as supported.
        let ecx = e.ecx & !(1 << 24 | 1 << 31);
        println!("back with {what}: {} {:x} {:x} {ecx:x}", back.as_slice().len(), e.flags, e.eax);
    }
    Ok(())
}

#[repr(C)]
#[derive(Default)]
struct MachineCheck {
    status: u64,
    addr: u64,
    misc: u64,
    mcg_status: u64,
    bank: u8,
    pad1: [u8; 7],
    pad2: [u64; 3],
}

/// KVM_X86_SETUP_MCE and KVM_X86_SET_MCE.
pub fn machine_checks() -> Result<()> {
    let client = client()?;
    let vcpu = client.vcpu(0)?;
    for cap in [0u64, 1, 32, 33, 0x100_010a, 0x900_010a, 10 | 1 << 10, 10 | 1 << 27, 0xff_000a, 0x10a] {
        println!("mce setup {cap:x}: {}", number(&vcpu, KVM_X86_SETUP_MCE, &raw const cap as u64));
    }
    let mut s = vcpu.get_sregs()?;
    s.cr4 |= 1 << 6;
    vcpu.set_sregs(&s)?;
    const VAL: u64 = 1 << 63;
    const UC: u64 = 1 << 61;
    for (what, status, mcg_status, bank) in [
        ("not valid", 5, 5, 0),
        ("no such bank", VAL, 5, 10),
        ("corrected", VAL | 5, 5, 3),
        ("again", VAL | 6, 5, 3),
        ("uncorrected", VAL | UC | 7, 5, 3),
        ("uncorrected, no action", VAL | UC | 8, 0, 3),
        ("corrected then", VAL | 9, 5, 3),
    ] {
        let m = MachineCheck { status, addr: 0x1234_5000, misc: 0x8c, mcg_status, bank, ..Default::default() };
        let result = number(&vcpu, KVM_X86_SET_MCE, &raw const m as u64);
        let read = |n: u32| get(&vcpu, n).ok().flatten();
        let registers = [0x40d, 0x40e, 0x40f, 0x17a].map(read);
        let events = vcpu.get_vcpu_events()?;
        println!(
            "mce {what}: {result} {registers:x?} exception {} {} {}",
            events.exception.injected, events.exception.pending, events.exception.nr
        );
    }
    Ok(())
}

/// Paravirtual MSRs before and after KVM_CAP_ENFORCE_PV_FEATURE_CPUID, and KVM_KVMCLOCK_CTRL.
pub fn paravirtual() -> Result<()> {
    const MSRS: [u32; 9] =
        [0x11, 0x12, 0x4b56_4d00, 0x4b56_4d01, 0x4b56_4d02, 0x4b56_4d03, 0x4b56_4d04, 0x4b56_4d05, 0x4b56_4d06];
    let client = client()?;
    let vcpu = client.vm.create_vcpu(0)?;
    println!("kvmclock ctrl without clock: {}", number(&vcpu, KVM_KVMCLOCK_CTRL, 0));
    for round in ["before", "after"] {
        for index in MSRS {
            let written = [0, 1, 2, 0x1001, 0x1003, 0x1041, 1 << 40 | 1].map(|v| set(&vcpu, index, v).unwrap_or(false));
            println!("pv msr {index:x} {round} enforcing: {written:?} {:x?}", get(&vcpu, index)?);
            set(&vcpu, index, 0)?;
        }
        set(&vcpu, 0x4b56_4d01, 0x1001)?;
        println!("kvmclock ctrl {round}: {}", number(&vcpu, KVM_KVMCLOCK_CTRL, 0));
        set(&vcpu, 0x4b56_4d01, 0)?;
        let enforce = kvm_enable_cap { cap: 190, args: [1, 0, 0, 0], ..Default::default() };
        println!("enforcing on the vcpu: {}", number(&vcpu, KVM_ENABLE_CAP, &raw const enforce as u64));
        println!("enforcing on the vm: {}", number(&client.vm, KVM_ENABLE_CAP, &raw const enforce as u64));
    }
    Ok(())
}
