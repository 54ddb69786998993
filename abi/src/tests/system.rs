//! ioctls on /dev/kvm.

use super::*;

#[test]
fn plain_numbers() {
    let bed = Bed::bare();
    assert_eq!(bed.system(KVM_GET_API_VERSION, 0), Ok(12));
    assert_eq!(bed.system(KVM_GET_API_VERSION, 1), Err(Errno::EINVAL));
    assert_eq!(bed.system(KVM_GET_VCPU_MMAP_SIZE, 0), Ok(3 * 4096));
    assert_eq!(bed.system(KVM_GET_VCPU_MMAP_SIZE, 1), Err(Errno::EINVAL));
    assert_eq!(system_ioctl(&bed.sim, KVM_CREATE_VM, 0), Ok(SystemReply::NewVm));
    assert_eq!(bed.system(KVM_CREATE_VM, 1), Err(Errno::EINVAL));
    assert_eq!(bed.system(KVM_RUN, 0), Err(Errno::EINVAL));
    assert_eq!(bed.system(0xae7f, 0), Err(Errno::EINVAL));
}

/// QEMU 10 does not start without these.
#[test]
fn capabilities_that_qemu_insists_on() {
    let bed = Bed::bare();
    let needed = [
        cap::USER_MEMORY,
        cap::DESTROY_MEMORY_REGION_WORKS,
        cap::JOIN_MEMORY_REGIONS_WORKS,
        cap::INTERNAL_ERROR_DATA,
        cap::IOEVENTFD,
        cap::IOEVENTFD_ANY_LENGTH,
        cap::SET_TSS_ADDR,
        cap::EXT_CPUID,
        cap::MP_STATE,
        cap::SIGNAL_MSI,
        cap::IRQ_ROUTING,
        cap::DEBUGREGS,
        cap::XSAVE,
        cap::VCPU_EVENTS,
        cap::X86_ROBUST_SINGLESTEP,
        cap::MCE,
        cap::ADJUST_CLOCK,
        cap::SET_IDENTITY_MAP_ADDR,
        cap::IRQCHIP,
        cap::IRQFD,
    ];
    for c in needed {
        assert!(bed.system(KVM_CHECK_EXTENSION, c.into()).unwrap() > 0, "{c}");
        assert_eq!(bed.vm(KVM_CHECK_EXTENSION, c.into()), bed.system(KVM_CHECK_EXTENSION, c.into()));
    }
    assert_eq!(bed.system(KVM_CHECK_EXTENSION, cap::XSAVE2.into()), Ok(4096));
    // Nested state, the two for encrypted guests, a number that nobody has, and one that only looks like 0 when it is cut.
    for absent in [157, 197, 206, 696_969, 1 << 32] {
        assert_eq!(bed.system(KVM_CHECK_EXTENSION, absent), Ok(0));
    }
}

#[test]
fn cpuid_says_when_the_buffer_is_too_small() {
    let bed = Bed::bare();
    for n in [0, 1] {
        bed.put(&kvm_cpuid2 { nent: n, padding: 0 });
        assert_eq!(bed.system(KVM_GET_SUPPORTED_CPUID, ARG), Err(Errno::E2BIG));
        assert_eq!(bed.read::<kvm_cpuid2>().nent, n);
    }
    bed.put(&kvm_cpuid2 { nent: 256, padding: 0 });
    assert_eq!(bed.system(KVM_GET_SUPPORTED_CPUID, ARG), Ok(0));
    let n = bed.read::<kvm_cpuid2>().nent;
    assert!(n > 4 && n < 256);
    let first: kvm_cpuid_entry2 = bed.item::<kvm_cpuid2, _>(0);
    assert_eq!((first.function, first.ebx), (0, 0x6874_7541));
    // Exactly enough is enough.
    bed.put(&kvm_cpuid2 { nent: n, padding: 0 });
    assert_eq!(bed.system(KVM_GET_SUPPORTED_CPUID, ARG), Ok(0));
    assert_eq!(bed.system(KVM_GET_SUPPORTED_CPUID, NOWHERE), Err(Errno::EFAULT));
}

#[test]
fn emulated_cpuid_reserves_the_padding() {
    let bed = Bed::bare();
    let entry = kvm_cpuid_entry2 { padding: [0, 1, 0], ..Default::default() };
    bed.array(&kvm_cpuid2 { nent: 1, padding: 0 }, &[entry]);
    assert_eq!(bed.system(KVM_GET_EMULATED_CPUID, ARG), Err(Errno::EINVAL));
    // No memory behind the header.
    let end = HVA_BASE + 64 * 4096 - kvm_cpuid2::SIZE as u64;
    put(&bed.sim, end, &kvm_cpuid2 { nent: 4, padding: 0 }).unwrap();
    assert_eq!(bed.system(KVM_GET_EMULATED_CPUID, end), Err(Errno::EINVAL));
    // Three, and room for one that stock begins.
    for (room, result) in [(0, Err(Errno::E2BIG)), (3, Err(Errno::E2BIG)), (4, Ok(0))] {
        bed.array(&kvm_cpuid2 { nent: room, padding: 0 }, &[kvm_cpuid_entry2::default(); 4]);
        assert_eq!(bed.system(KVM_GET_EMULATED_CPUID, ARG), result, "{room}");
    }
    assert_eq!(bed.read::<kvm_cpuid2>().nent, 3);
}

#[test]
fn msr_lists_say_how_long_they_are() {
    let bed = Bed::bare();
    bed.put(&kvm_msr_list { nmsrs: 0 });
    assert_eq!(bed.system(KVM_GET_MSR_INDEX_LIST, ARG), Err(Errno::E2BIG));
    let n = bed.read::<kvm_msr_list>().nmsrs;
    assert!(n > 10);
    assert_eq!(bed.system(KVM_GET_MSR_INDEX_LIST, ARG), Ok(0));
    let indices: std::vec::Vec<u32> = (0..n as usize).map(|i| bed.item::<kvm_msr_list, u32>(i)).collect();
    assert!(indices.contains(&0x10) && indices.contains(&0x277));
    bed.put(&kvm_msr_list { nmsrs: 200 });
    assert_eq!(bed.system(KVM_GET_MSR_FEATURE_INDEX_LIST, ARG), Ok(0));
}

#[test]
fn feature_msrs_stop_at_the_first_unknown() {
    let bed = Bed::bare();
    let entry = |index| kvm_msr_entry { index, reserved: 0, data: 0x55 };
    bed.array(&kvm_msrs { nmsrs: 2, pad: 0 }, &[entry(0xdead_beef), entry(0x8b)]);
    assert_eq!(bed.system(KVM_GET_MSRS, ARG), Ok(0));
    assert_eq!([0, 1].map(|n| bed.item::<kvm_msrs, kvm_msr_entry>(n).data), [0, 0x55]);
    bed.put(&kvm_msrs { nmsrs: 256, pad: 0 });
    assert_eq!(bed.system(KVM_GET_MSRS, ARG), Err(Errno::E2BIG));
}

#[test]
fn the_only_attribute_is_the_guest_xcr0() {
    let bed = Bed::bare();
    let attr = kvm_device_attr { addr: DATA, ..Default::default() };
    bed.put(&attr);
    assert_eq!(bed.system(KVM_HAS_DEVICE_ATTR, ARG), Ok(0));
    assert_eq!(bed.system(KVM_GET_DEVICE_ATTR, ARG), Ok(0));
    assert_eq!(get::<Sim, u64>(&bed.sim, DATA), Ok(7));
    for other in [kvm_device_attr { group: 1, ..attr }, kvm_device_attr { attr: 1, ..attr }] {
        bed.put(&other);
        assert_eq!(bed.system(KVM_GET_DEVICE_ATTR, ARG), Err(Errno::ENXIO));
    }
    bed.put(&kvm_device_attr { addr: NOWHERE, ..attr });
    assert_eq!(bed.system(KVM_GET_DEVICE_ATTR, ARG), Err(Errno::EFAULT));
}
