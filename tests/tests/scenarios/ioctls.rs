//! Which ioctls there are, what bad pointers, counts and unknown numbers get, and what is said to be absent.

use abi::uapi::ioctl::*;
use kvm_bindings::*;
use sim::host::Errno::{self, *};
use tests::scenario::{ARG, DATA, Machine, NOWHERE};

/// ioctls whose argument points to something, by kind of file.
const SYSTEM: &[u32] = &[
    KVM_GET_MSR_INDEX_LIST,
    KVM_GET_MSR_FEATURE_INDEX_LIST,
    KVM_GET_SUPPORTED_CPUID,
    KVM_GET_EMULATED_CPUID,
    KVM_GET_SUPPORTED_HV_CPUID,
    KVM_GET_MSRS,
    KVM_X86_GET_MCE_CAP_SUPPORTED,
    KVM_GET_DEVICE_ATTR,
    KVM_HAS_DEVICE_ATTR,
];
const VM: &[u32] = &[
    KVM_ENABLE_CAP,
    KVM_SET_USER_MEMORY_REGION,
    KVM_SET_USER_MEMORY_REGION2,
    KVM_GET_DIRTY_LOG,
    KVM_CLEAR_DIRTY_LOG,
    KVM_SET_IDENTITY_MAP_ADDR,
    KVM_SET_GSI_ROUTING,
    KVM_SIGNAL_MSI,
    KVM_IRQ_LINE,
    KVM_IRQ_LINE_STATUS,
    KVM_IRQFD,
    KVM_IOEVENTFD,
    KVM_HYPERV_EVENTFD,
    KVM_GET_IRQCHIP,
    KVM_SET_IRQCHIP,
    KVM_CREATE_PIT2,
    KVM_GET_PIT,
    KVM_SET_PIT,
    KVM_GET_PIT2,
    KVM_SET_PIT2,
    KVM_REINJECT_CONTROL,
    KVM_REGISTER_COALESCED_MMIO,
    KVM_UNREGISTER_COALESCED_MMIO,
    KVM_GET_CLOCK,
    KVM_SET_CLOCK,
    KVM_X86_SET_MSR_FILTER,
    KVM_CREATE_DEVICE,
];
const VCPU: &[u32] = &[
    KVM_GET_REGS,
    KVM_SET_REGS,
    KVM_GET_SREGS,
    KVM_SET_SREGS,
    KVM_GET_SREGS2,
    KVM_SET_SREGS2,
    KVM_TRANSLATE,
    KVM_PRE_FAULT_MEMORY,
    KVM_GET_FPU,
    KVM_SET_FPU,
    KVM_GET_XSAVE,
    KVM_GET_XSAVE2,
    KVM_SET_XSAVE,
    KVM_GET_XCRS,
    KVM_SET_XCRS,
    KVM_GET_MSRS,
    KVM_SET_MSRS,
    KVM_SET_CPUID,
    KVM_SET_CPUID2,
    KVM_GET_CPUID2,
    KVM_GET_SUPPORTED_HV_CPUID,
    KVM_X86_SETUP_MCE,
    KVM_GET_LAPIC,
    KVM_SET_LAPIC,
    KVM_INTERRUPT,
    KVM_SET_SIGNAL_MASK,
    KVM_SET_VAPIC_ADDR,
    KVM_TPR_ACCESS_REPORTING,
    KVM_GET_MP_STATE,
    KVM_SET_MP_STATE,
    KVM_GET_VCPU_EVENTS,
    KVM_SET_VCPU_EVENTS,
    KVM_GET_DEBUGREGS,
    KVM_GET_NESTED_STATE,
    KVM_SET_NESTED_STATE,
    KVM_SET_DEBUGREGS,
    KVM_SET_GUEST_DEBUG,
    KVM_HAS_DEVICE_ATTR,
    KVM_GET_DEVICE_ATTR,
    KVM_SET_DEVICE_ATTR,
];
/// Those that take a number, or nothing.
const SYSTEM_NUMBERS: &[u32] = &[KVM_CREATE_VM, KVM_GET_API_VERSION, KVM_GET_VCPU_MMAP_SIZE, KVM_CHECK_EXTENSION];
const VM_NUMBERS: &[u32] = &[
    KVM_CREATE_VCPU,
    KVM_GET_STATS_FD,
    KVM_CHECK_EXTENSION,
    KVM_SET_NR_MMU_PAGES,
    KVM_SET_TSS_ADDR,
    KVM_SET_TSC_KHZ,
    KVM_GET_TSC_KHZ,
    KVM_SET_BOOT_CPU_ID,
    KVM_RESET_DIRTY_RINGS,
    KVM_CREATE_IRQCHIP,
    KVM_CREATE_PIT,
];
const VCPU_NUMBERS: &[u32] =
    &[KVM_RUN, KVM_GET_STATS_FD, KVM_NMI, KVM_SMI, KVM_KVMCLOCK_CTRL, KVM_SET_TSC_KHZ, KVM_GET_TSC_KHZ];

/// A kind of file.
struct File {
    name: &'static str,
    ioctl: fn(&Machine, u32, u64) -> Result<i64, Errno>,
    pointers: &'static [u32],
    numbers: &'static [u32],
    /// What an ioctl is that it does not have.
    unknown: Errno,
}

const FILES: [File; 3] = [
    File {
        name: "system",
        ioctl: |m, cmd, arg| m.system(cmd, arg),
        pointers: SYSTEM,
        numbers: SYSTEM_NUMBERS,
        unknown: EINVAL,
    },
    File { name: "vm", ioctl: |m, cmd, arg| m.vm(cmd, arg), pointers: VM, numbers: VM_NUMBERS, unknown: ENOTTY },
    File {
        name: "vcpu",
        ioctl: |m, cmd, arg| m.vcpu(0, cmd, arg),
        pointers: VCPU,
        numbers: VCPU_NUMBERS,
        unknown: EINVAL,
    },
];

fn name(cmd: u32) -> String {
    ALL.iter().find(|(_, n)| *n == cmd).map_or(format!("{cmd:#x}"), |(name, _)| name.to_string())
}

/// Some VM ioctls are refused for another reason once there is a vCPU.
fn machine_for(file: &str) -> Machine {
    if file != "vm" {
        return Machine::new();
    }
    let m = Machine::without_vcpu(false);
    assert_eq!(m.vm(KVM_CREATE_IRQCHIP, 0), Ok(0));
    assert_eq!(m.vm(KVM_CREATE_PIT, 0), Ok(0));
    m
}

#[test]
fn bad_pointers_are_efault() {
    for File { name: file, ioctl, pointers, .. } in FILES {
        let m = machine_for(file);
        for cmd in pointers {
            for at in [NOWHERE, 0xffff_8000_0000_0000, u64::MAX - 3] {
                assert_eq!(ioctl(&m, *cmd, at), Err(EFAULT), "{file} {} at {at:#x}", name(*cmd));
            }
        }
    }
}

/// The last byte of the struct is not there: as bad as all of it missing.
#[test]
fn structs_that_end_in_nothing_are_efault() {
    for File { name: file, ioctl, pointers, .. } in FILES {
        let m = machine_for(file);
        m.sim.set_page(DATA + 4096, sim::Page::Absent);
        // Nested state says first how much room there is.
        let whole = |cmd: &&u32| **cmd >> 16 & 0x3fff > 4 && **cmd != KVM_GET_NESTED_STATE;
        for cmd in pointers.iter().filter(whole) {
            let size = u64::from(*cmd >> 16 & 0x3fff);
            assert_eq!(ioctl(&m, *cmd, DATA + 4096 - size + 1), Err(EFAULT), "{file} {}", name(*cmd));
        }
    }
}

#[test]
fn unknown_numbers() {
    let m = Machine::new();
    for File { name: file, ioctl, pointers, numbers, unknown } in FILES {
        // Every known one belongs to the files that list it; on the others it is unknown.
        let all = ALL.iter().map(|(_, n)| *n);
        let made_up = (0..=255).flat_map(|nr| [io(nr), io(nr) | 0xc008_0000, io(nr) & !0xff00 | 0x5400]);
        for cmd in all.chain(made_up).filter(|cmd| !pointers.contains(cmd) && !numbers.contains(cmd)) {
            assert_eq!(ioctl(&m, cmd, ARG), Err(unknown), "{file} {}", name(cmd));
        }
    }
}

#[test]
fn devices_that_are_not_there() {
    let m = Machine::new();
    for cmd in [KVM_GET_IRQCHIP, KVM_SET_IRQCHIP, KVM_GET_PIT2, KVM_SET_PIT2, KVM_REINJECT_CONTROL] {
        assert_eq!(m.vm(cmd, ARG), Err(ENXIO), "{}", name(cmd));
    }
    assert_eq!(m.vm_with(KVM_CREATE_DEVICE, &kvm_create_device::default()), Err(ENODEV));
}

#[test]
fn arguments_of_the_system() {
    let m = Machine::new();
    assert_eq!(m.system(KVM_CREATE_VM, 1), Err(EINVAL), "no other machine type");
    assert_eq!(m.system(KVM_GET_API_VERSION, 0), Ok(12));
    assert_eq!(m.system(KVM_GET_API_VERSION, 1), Err(EINVAL));
    assert_eq!(m.system(KVM_GET_VCPU_MMAP_SIZE, 0), Ok(3 * 4096));
    assert_eq!(m.system(KVM_GET_VCPU_MMAP_SIZE, 1), Err(EINVAL));
}

#[test]
fn counts_that_are_too_small_or_too_large() {
    let m = Machine::new();
    let with = |n: u32| m.put_at(DATA, &[n, 0]);
    with(1);
    for cmd in [KVM_GET_SUPPORTED_CPUID, KVM_GET_EMULATED_CPUID] {
        assert_eq!(m.system(cmd, DATA), Err(E2BIG), "{}", name(cmd));
    }
    for cmd in [KVM_GET_MSR_INDEX_LIST, KVM_GET_MSR_FEATURE_INDEX_LIST] {
        with(0);
        assert_eq!(m.system(cmd, DATA), Err(E2BIG), "{}", name(cmd));
        let wanted = m.get_at::<u32>(DATA);
        assert!(wanted > 0, "says how many there are");
        assert_eq!(m.system(cmd, DATA), Ok(0), "that many fit");
    }
    with(257);
    assert_eq!(m.vcpu(0, KVM_SET_CPUID2, DATA), Err(E2BIG));
    assert_eq!(m.vcpu(0, KVM_SET_CPUID, DATA), Err(E2BIG));
    with(1);
    assert_eq!(m.vcpu(0, KVM_GET_CPUID2, DATA), Err(E2BIG));
    with(256);
    assert_eq!(m.vcpu(0, KVM_GET_MSRS, DATA), Err(E2BIG));
    assert_eq!(m.vcpu(0, KVM_SET_MSRS, DATA), Err(E2BIG));
    with(u32::MAX);
    for cmd in [KVM_SET_CPUID2, KVM_SET_CPUID, KVM_GET_MSRS, KVM_SET_MSRS] {
        assert_eq!(m.vcpu(0, cmd, DATA), Err(E2BIG), "{}", name(cmd));
    }
    with(4097);
    assert_eq!(m.vm(KVM_SET_GSI_ROUTING, DATA), Err(EINVAL));
}

#[test]
fn enabling_capabilities() {
    let m = Machine::new();
    assert_eq!(m.enable(KVM_CAP_SPLIT_IRQCHIP, 24), Err(EEXIST), "there is one");
    for (cap, arg) in [
        (KVM_CAP_X2APIC_API, 4),
        (KVM_CAP_X86_USER_SPACE_MSR, 8),
        (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 2),
        (KVM_CAP_EXIT_HYPERCALL, 1),
        (KVM_CAP_EXIT_ON_EMULATION_FAILURE, 2),
        (KVM_CAP_MAX_VCPU_ID, 1 << 32),
        (KVM_CAP_X86_DISABLE_EXITS, 16),
        (KVM_CAP_X86_BUS_LOCK_EXIT, 3),
        (KVM_CAP_USER_MEMORY, 0),
        (KVM_CAP_HYPERV_SYNIC, 0),
        (9999, 0),
    ] {
        assert_eq!(m.enable(cap, arg), Err(EINVAL), "capability {cap} with {arg:#x}");
    }
    let flags = kvm_enable_cap { cap: KVM_CAP_EXCEPTION_PAYLOAD, flags: 1, ..Default::default() };
    assert_eq!(m.vm_with(KVM_ENABLE_CAP, &flags), Err(EINVAL), "flags");
    // Absent, and taken all the same: nothing of it has an effect on stock either.
    assert_eq!([0, 1, 2].map(|mode| m.enable(KVM_CAP_X86_BUS_LOCK_EXIT, mode)), [Ok(0); 3]);
    let bare = Machine::without_vcpu(false);
    assert_eq!(bare.enable(KVM_CAP_SPLIT_IRQCHIP, 4097), Err(EINVAL), "pins");
    bare.add_vcpu(0).expect("a vCPU");
    assert_eq!(bare.enable(KVM_CAP_SPLIT_IRQCHIP, 24), Err(EEXIST), "too late");
}

#[test]
fn what_is_not_implemented_is_0() {
    let m = Machine::new();
    let absent = [
        KVM_CAP_PV_MMU,
        KVM_CAP_HYPERV_ENLIGHTENED_VMCS,
        KVM_CAP_HYPERV_DIRECT_TLBFLUSH,
        KVM_CAP_NESTED_STATE,
        KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP,
        KVM_CAP_TSC_CONTROL, // this processor cannot scale
        KVM_CAP_GUEST_MEMFD,
        KVM_CAP_VM_TYPES,
        KVM_CAP_XEN_HVM,
        KVM_CAP_PMU_CAPABILITY,
        KVM_CAP_X86_BUS_LOCK_EXIT,
        KVM_CAP_VM_COPY_ENC_CONTEXT_FROM,
        KVM_CAP_SGX_ATTRIBUTE,
        KVM_CAP_S390_UCONTROL,
        KVM_CAP_ARM_PSCI,
    ];
    let present: Vec<u32> = abi::uapi::cap::ALL.iter().map(|(_, n)| *n).collect();
    let unknown = (0..400).filter(|n| !present.contains(n));
    for cap in unknown.chain(absent).map(u64::from).chain([1 << 32, 1 << 32 | 3, u64::MAX]) {
        assert_eq!(m.system(KVM_CHECK_EXTENSION, cap), Ok(0), "capability {cap}");
        assert_eq!(m.vm(KVM_CHECK_EXTENSION, cap), Ok(0), "capability {cap} on a VM");
    }
    for cap in present {
        let on_vm = m.vm(KVM_CHECK_EXTENSION, cap.into());
        assert_eq!(m.system(KVM_CHECK_EXTENSION, cap.into()), on_vm, "capability {cap}");
    }
    for cap in [KVM_CAP_USER_MEMORY, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_IMMEDIATE_EXIT, KVM_CAP_READONLY_MEM] {
        assert_eq!(m.vm(KVM_CHECK_EXTENSION, cap.into()), Ok(1), "capability {cap}");
    }
}
