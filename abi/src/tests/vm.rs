//! ioctls on a VM.
//!
//! Long because: one table of VM ioctls after the other, as for vCPUs.

use super::*;
use crate::{DeviceReply, Irqfd};

#[test]
fn unknown_ioctls() {
    let bed = Bed::bare();
    // KVM_MEMORY_ENCRYPT_OP and those for regions of encrypted memory: there is no firmware to talk to.
    let encryption = [iowr::<u64>(0xba), ior::<[u64; 2]>(0xbb), ior::<[u64; 2]>(0xbc)];
    for cmd in [io(0xcf), KVM_RUN].into_iter().chain(encryption) {
        assert_eq!(bed.vm(cmd, ARG), Err(Errno::ENOTTY), "{cmd:#x}");
    }
    assert_eq!(bed.vm(KVM_GET_IRQCHIP, ARG), Err(Errno::ENXIO));
}

#[test]
fn only_the_vfio_device_exists() {
    let bed = Bed::bare();
    for type_ in (0..16).chain([1 << 31, u32::MAX]) {
        for (flags, made) in [(0, VmReply::NewDevice), (KVM_CREATE_DEVICE_TEST, VmReply::Value(0))] {
            let wanted = kvm_create_device { type_, fd: 0, flags };
            bed.put(&wanted);
            let expected = if type_ == KVM_DEV_TYPE_VFIO { Ok(made) } else { Err(Errno::ENODEV) };
            assert_eq!(crate::vm_ioctl(&bed.vm, KVM_CREATE_DEVICE, ARG), expected, "{wanted:?}");
        }
    }
    assert_eq!(bed.vm(KVM_CREATE_DEVICE, 8), Err(Errno::EFAULT));
}

#[test]
fn attributes_of_the_vfio_device() {
    let bed = Bed::bare();
    let call = |cmd, group, attr, addr| {
        bed.put(&kvm_device_attr { flags: 0, group, attr, addr });
        crate::device_ioctl(&bed.vm, cmd, ARG)
    };
    put(&bed.sim, ARG + 64, &-3i32).expect("a writable page");
    let (add, del) = (KVM_DEV_VFIO_FILE_ADD, KVM_DEV_VFIO_FILE_DEL);
    assert_eq!(call(KVM_SET_DEVICE_ATTR, KVM_DEV_VFIO_FILE, add, ARG + 64), Ok(DeviceReply::Add(-3)));
    assert_eq!(call(KVM_SET_DEVICE_ATTR, KVM_DEV_VFIO_FILE, del, ARG + 64), Ok(DeviceReply::Del(-3)));
    assert_eq!(call(KVM_SET_DEVICE_ATTR, KVM_DEV_VFIO_FILE, add, 8), Err(Errno::EFAULT));
    assert_eq!(call(KVM_HAS_DEVICE_ATTR, KVM_DEV_VFIO_FILE, add, 8), Ok(DeviceReply::Done));
    // The third is for another architecture's IOMMU.
    for (group, attr) in [(1, 0), (1, 3), (1, 1 << 32 | 1), (0, 1), (2, 1), (u32::MAX, 1)] {
        assert_eq!(call(KVM_HAS_DEVICE_ATTR, group, attr, ARG + 64), Err(Errno::ENXIO));
        assert_eq!(call(KVM_SET_DEVICE_ATTR, group, attr, ARG + 64), Err(Errno::ENXIO));
    }
    assert_eq!(call(KVM_GET_DEVICE_ATTR, KVM_DEV_VFIO_FILE, add, ARG + 64), Err(Errno::EPERM));
    assert_eq!(call(KVM_RUN, KVM_DEV_VFIO_FILE, add, ARG + 64), Err(Errno::ENOTTY));
    assert_eq!(crate::device_ioctl(&bed.vm, KVM_SET_DEVICE_ATTR, 8), Err(Errno::EFAULT));
}

#[test]
fn memory_region_flags() {
    let bed = Bed::bare();
    let good = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: 0x4000,
        userspace_addr: HVA_BASE + 0x1_0000,
    };
    for flags in [4, 1 << 31] {
        let r = kvm_userspace_memory_region { flags, ..good };
        assert_eq!(bed.vm_with(KVM_SET_USER_MEMORY_REGION, &r), Err(Errno::EINVAL));
    }
    let odd = kvm_userspace_memory_region { userspace_addr: good.userspace_addr + 1, ..good };
    assert_eq!(bed.vm_with(KVM_SET_USER_MEMORY_REGION, &odd), Err(Errno::EINVAL));
    let far = kvm_userspace_memory_region { slot: 32764, ..good };
    assert_eq!(bed.vm_with(KVM_SET_USER_MEMORY_REGION, &far), Err(Errno::EINVAL));
    assert_eq!(bed.vm_with(KVM_SET_USER_MEMORY_REGION, &good), Ok(0));
    let overlap = kvm_userspace_memory_region { slot: 1, ..good };
    assert_eq!(bed.vm_with(KVM_SET_USER_MEMORY_REGION, &overlap), Err(Errno::EEXIST));
    let guest_memfd = kvm_userspace_memory_region2 {
        slot: 2,
        flags: 4,
        guest_phys_addr: 0x10_0000,
        memory_size: 0x1000,
        userspace_addr: good.userspace_addr,
        ..Default::default()
    };
    assert_eq!(bed.vm_with(KVM_SET_USER_MEMORY_REGION2, &guest_memfd), Err(Errno::EINVAL));
    let plain = kvm_userspace_memory_region2 { flags: 0, ..guest_memfd };
    assert_eq!(bed.vm_with(KVM_SET_USER_MEMORY_REGION2, &plain), Ok(0));
    assert_eq!(bed.vm(KVM_SET_USER_MEMORY_REGION, NOWHERE), Err(Errno::EFAULT));
}

#[test]
fn dirty_log_of_a_slot_that_is_not_logged() {
    let bed = Bed::bare();
    let region =
        kvm_userspace_memory_region { memory_size: 0x4000, userspace_addr: HVA_BASE + 0x1_0000, ..Default::default() };
    assert_eq!(bed.vm_with(KVM_SET_USER_MEMORY_REGION, &region), Ok(0));
    let log = kvm_dirty_log { slot: 0, padding1: 0, dirty_bitmap: DATA };
    assert_eq!(bed.vm_with(KVM_GET_DIRTY_LOG, &log), Err(Errno::ENOENT));
    let logged = kvm_userspace_memory_region { flags: KVM_MEM_LOG_DIRTY_PAGES, ..region };
    assert_eq!(bed.vm_with(KVM_SET_USER_MEMORY_REGION, &logged), Ok(0));
    assert_eq!(bed.vm_with(KVM_GET_DIRTY_LOG, &log), Ok(0));
    assert_eq!(bed.vm_with(KVM_GET_DIRTY_LOG, &kvm_dirty_log { dirty_bitmap: NOWHERE, ..log }), Err(Errno::EFAULT));
    assert_eq!(bed.vm_with(KVM_GET_DIRTY_LOG, &kvm_dirty_log { slot: 7, ..log }), Err(Errno::ENOENT));
}

#[test]
fn addresses_that_svm_does_not_need() {
    let bed = Bed::bare();
    assert_eq!((bed.vm(KVM_SET_NR_MMU_PAGES, 63), bed.vm(KVM_SET_NR_MMU_PAGES, 64)), (Err(Errno::EINVAL), Ok(0)));
    assert_eq!(bed.vm(KVM_SET_NR_MMU_PAGES, 1 << 32), Ok(0));
    assert_eq!(bed.vm(KVM_SET_TSS_ADDR, 0xfffb_d000), Ok(0));
    assert_eq!(bed.vm(KVM_SET_TSS_ADDR, 0xffff_d000), Ok(0));
    assert_eq!(bed.vm(KVM_SET_TSS_ADDR, 0xffff_d001), Err(Errno::EINVAL));
    assert_eq!(bed.vm(KVM_SET_IDENTITY_MAP_ADDR, ARG), Ok(0));
    assert_eq!(bed.vm(KVM_SET_IDENTITY_MAP_ADDR, NOWHERE), Err(Errno::EFAULT));
    assert_eq!(Bed::new().vm(KVM_SET_IDENTITY_MAP_ADDR, ARG), Err(Errno::EINVAL));
}

#[test]
fn vcpus() {
    let bed = Bed::new();
    assert_eq!(vm_ioctl(&bed.vm, KVM_CREATE_VCPU, 0), Err(Errno::EEXIST));
    assert_eq!(vm_ioctl(&bed.vm, KVM_CREATE_VCPU, 16384), Err(Errno::EINVAL));
    assert_eq!(vm_ioctl(&bed.vm, KVM_CREATE_VCPU, 1 << 32), Err(Errno::EINVAL));
    assert_eq!(vm_ioctl(&bed.vm, KVM_CREATE_VCPU, 9), Ok(VmReply::NewVcpu { index: 1 }));
    assert_eq!(bed.vm(KVM_SET_BOOT_CPU_ID, 1), Err(Errno::EBUSY));
    assert_eq!(Bed::bare().vm(KVM_SET_BOOT_CPU_ID, 1), Ok(0));
}

#[test]
fn capabilities_check_their_arguments() {
    let bed = Bed::bare();
    let cases = [
        (cap::MANUAL_DIRTY_LOG_PROTECT2, 3, 4),
        (cap::X2APIC_API, 3, 4),
        (cap::X86_USER_SPACE_MSR, 7, 8),
        (cap::EXIT_HYPERCALL, 1 << 12, 1),
        (cap::EXIT_ON_EMULATION_FAILURE, 1, 2),
        (cap::HALT_POLL, u32::MAX.into(), 1 << 32),
        (cap::X86_DISABLE_EXITS, 0xf, 0x10),
        (cap::X86_BUS_LOCK_EXIT, 2, 3),
        (cap::DISABLE_QUIRKS2, ::vm::quirks::all(&bed.sim), 1 << 40),
    ];
    for (c, good, bad) in cases {
        assert_eq!(bed.enable(c, bad), Err(Errno::EINVAL), "{c}");
        assert_eq!(bed.enable(c, good), Ok(0), "{c}");
        let flags = kvm_enable_cap { cap: c, flags: 1, args: [good, 0, 0, 0], ..Default::default() };
        assert_eq!(bed.vm_with(KVM_ENABLE_CAP, &flags), Err(Errno::EINVAL), "{c}");
    }
    assert_eq!(bed.enable(cap::EXCEPTION_PAYLOAD, 1), Ok(0));
    assert_eq!(bed.enable(cap::X86_TRIPLE_FAULT_EVENT, 1), Ok(0));
    // IRQCHIP cannot be switched, 123 is HYPERV_SYNIC, 2^32 + 121 is not SPLIT_IRQCHIP.
    for c in [cap::IRQCHIP, 123] {
        assert_eq!(bed.enable(c, 0), Err(Errno::EINVAL), "{c}");
    }
}

#[test]
fn the_limit_of_vcpu_ids_is_set_once() {
    let bed = Bed::bare();
    assert_eq!(bed.enable(cap::MAX_VCPU_ID, 16385), Err(Errno::EINVAL));
    assert_eq!(bed.enable(cap::MAX_VCPU_ID, 2), Ok(0));
    assert_eq!(bed.enable(cap::MAX_VCPU_ID, 2), Ok(0));
    assert_eq!(bed.enable(cap::MAX_VCPU_ID, 3), Err(Errno::EINVAL));
    assert_eq!(vm_ioctl(&bed.vm, KVM_CREATE_VCPU, 2), Err(Errno::EINVAL));
    assert_eq!(vm_ioctl(&bed.vm, KVM_CREATE_VCPU, 1), Ok(VmReply::NewVcpu { index: 0 }));
    // The first vCPU fixes the limit.
    let bed = Bed::new();
    assert_eq!(bed.enable(cap::MAX_VCPU_ID, 2), Err(Errno::EINVAL));
    assert_eq!(bed.enable(cap::MAX_VCPU_ID, 16384), Ok(0));
}

#[test]
fn the_clock_of_the_local_apics() {
    let cycles = |bed: &Bed, ns| bed.enable(cap::X86_APIC_BUS_CYCLES_NS, ns);
    let bed = Bed::bare();
    assert_eq!(cycles(&bed, 40), Err(Errno::ENXIO), "there are none");
    assert_eq!(bed.enable(cap::SPLIT_IRQCHIP, 24), Ok(0));
    for bad in [0, 1 << 26, 1 << 32, 1 << 63] {
        assert_eq!(cycles(&bed, bad), Err(Errno::EINVAL), "{bad:#x}");
    }
    let has = |bed: &Bed| vm_ioctl(&bed.vm, KVM_CHECK_EXTENSION, cap::X86_APIC_BUS_CYCLES_NS.into());
    assert_eq!(has(&bed), Ok(VmReply::Value(1)));
    assert_eq!((cycles(&bed, 1 << 25), cycles(&bed, 40)), (Ok(0), Ok(0)));
    assert_eq!(has(&bed), Ok(VmReply::Value(1)), "before 7.3");
    bed.sim.set_linux_version(7, 3);
    assert_eq!(has(&bed), Ok(VmReply::Value(40)));
    assert_eq!(vm_ioctl(&bed.vm, KVM_CREATE_VCPU, 0), Ok(VmReply::NewVcpu { index: 0 }));
    assert_eq!(cycles(&bed, 1), Err(Errno::EINVAL), "there is a vCPU");
    // Count 1000 of 40 ns each, in one-shot mode: half of it is left after 20 us.
    let mut state: kvm_lapic_state = bed.vcpu_get(KVM_GET_LAPIC);
    let reg = |at: usize, value: u32, state: &mut kvm_lapic_state| {
        state.regs[at..at + 4].copy_from_slice(&value.to_le_bytes());
    };
    reg(0x380, 1000, &mut state);
    reg(0x390, 1000, &mut state);
    reg(0x3e0, 11, &mut state);
    assert_eq!(bed.vcpu_with(KVM_SET_LAPIC, &state), Ok(0));
    bed.sim.advance(20_000);
    let state: kvm_lapic_state = bed.vcpu_get(KVM_GET_LAPIC);
    let left = u32::from_le_bytes(state.regs[0x390..0x394].try_into().unwrap());
    assert!((490..=500).contains(&left), "{left}");
}

#[test]
fn the_bootstrap_processor_has_an_id_that_can_exist() {
    let bed = Bed::bare();
    for bad in [16385, 1 << 32, 1 << 32 | 1] {
        assert_eq!(bed.vm(KVM_SET_BOOT_CPU_ID, bad), Err(Errno::EINVAL), "{bad:#x}");
    }
    assert_eq!(bed.vm(KVM_SET_BOOT_CPU_ID, 2), Ok(0));
    assert_eq!(bed.enable(cap::MAX_VCPU_ID, 1), Err(Errno::EINVAL));
    assert_eq!(bed.enable(cap::MAX_VCPU_ID, 2), Ok(0));
    assert_eq!(bed.vm(KVM_SET_BOOT_CPU_ID, 2), Ok(0), "the limit itself");
    assert_eq!(bed.vm(KVM_SET_BOOT_CPU_ID, 3), Err(Errno::EINVAL));
}

#[test]
fn split_irqchip_once_and_before_vcpus() {
    let bed = Bed::bare();
    assert_eq!(bed.enable(cap::SPLIT_IRQCHIP, 4097), Err(Errno::EINVAL));
    assert_eq!(bed.enable(cap::SPLIT_IRQCHIP, 24), Ok(0));
    assert_eq!(bed.enable(cap::SPLIT_IRQCHIP, 24), Err(Errno::EEXIST));
    let late = Bed::bare();
    assert_eq!(vm_ioctl(&late.vm, KVM_CREATE_VCPU, 0), Ok(VmReply::NewVcpu { index: 0 }));
    assert_eq!(late.enable(cap::SPLIT_IRQCHIP, 24), Err(Errno::EEXIST));
}

#[test]
fn routing() {
    let bed = Bed::new();
    let msi = kvm_irq_routing_entry { gsi: 5, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    let set = |header: kvm_irq_routing, entry: kvm_irq_routing_entry| {
        bed.array(&header, &[entry]);
        bed.vm(KVM_SET_GSI_ROUTING, ARG)
    };
    let one = kvm_irq_routing { nr: 1, flags: 0 };
    assert_eq!(set(one, msi), Ok(0));
    assert_eq!(set(one, kvm_irq_routing_entry { flags: KVM_MSI_VALID_DEVID, ..msi }), Ok(0));
    assert_eq!(set(kvm_irq_routing { nr: 0, flags: 0 }, msi), Ok(0));
    for bad in [
        kvm_irq_routing_entry { flags: 2, ..msi },
        kvm_irq_routing_entry { gsi: 4096, ..msi },
        kvm_irq_routing_entry { type_: 0, ..msi },
        kvm_irq_routing_entry { type_: 3, ..msi },
        kvm_irq_routing_entry { type_: KVM_IRQ_ROUTING_HV_SINT, flags: 1, ..msi },
        kvm_irq_routing_entry { type_: 5, ..msi },
        // The IOAPIC is not in the kernel.
        kvm_irq_routing_entry { type_: KVM_IRQ_ROUTING_IRQCHIP, u: [2, 1, 0, 0, 0, 0, 0, 0], ..msi },
    ] {
        assert_eq!(set(one, bad), Err(Errno::EINVAL), "{bad:?}");
    }
    assert_eq!(set(kvm_irq_routing { nr: 1, flags: 1 }, msi), Err(Errno::EINVAL));
    assert_eq!(set(kvm_irq_routing { nr: 4097, flags: 0 }, msi), Err(Errno::EINVAL));
    bed.put(&one);
    assert_eq!(Bed::bare().vm(KVM_SET_GSI_ROUTING, ARG), Err(Errno::EINVAL));
}

#[test]
fn interrupts_need_an_irqchip() {
    let bed = Bed::bare();
    assert_eq!(bed.vm_with(KVM_IRQ_LINE, &kvm_irq_level { irq: 1, level: 1 }), Err(Errno::ENXIO));
    assert_eq!(bed.vm_with(KVM_SIGNAL_MSI, &kvm_msi::default()), Err(Errno::EINVAL));
    assert_eq!(bed.vm_with(KVM_IRQFD, &kvm_irqfd::default()), Err(Errno::EINVAL));
    assert_eq!((bed.vm(KVM_GET_PIT, ARG), bed.vm(KVM_GET_PIT, NOWHERE)), (Err(Errno::ENXIO), Err(Errno::EFAULT)));
    assert_eq!(bed.vm(KVM_GET_PIT2, NOWHERE), Err(Errno::ENXIO));
}

#[test]
fn signal_msi_counts_receivers() {
    let bed = Bed::new();
    // A local APIC that software has not enabled takes no fixed interrupt, but an NMI.
    let nmi = kvm_msi { address_lo: 0xfee0_0000, data: 0x400, ..Default::default() };
    assert_eq!(bed.vm_with(KVM_SIGNAL_MSI, &nmi), Ok(1));
    let nobody = kvm_msi { address_lo: 0xfee0_5000, ..nmi };
    assert_eq!(bed.vm_with(KVM_SIGNAL_MSI, &nobody), Ok(0));
    assert_eq!(bed.vm_with(KVM_SIGNAL_MSI, &kvm_msi { flags: 2, ..nmi }), Err(Errno::EINVAL));
    assert_eq!(bed.enable(cap::X2APIC_API, 1), Ok(0));
    assert_eq!(bed.vm_with(KVM_SIGNAL_MSI, &kvm_msi { address_hi: 1, ..nmi }), Err(Errno::EINVAL));
}

#[test]
fn irq_line_status_comes_back() {
    let bed = Bed::new();
    assert_eq!(bed.vm_with(KVM_IRQ_LINE_STATUS, &kvm_irq_level { irq: 7, level: 1 }), Ok(0));
    assert_eq!(bed.read::<kvm_irq_level>().irq as i32, -1);
}

#[test]
fn irqfd_is_checked_and_handed_on() {
    let bed = Bed::new();
    let fd = kvm_irqfd { fd: 3, gsi: 5, ..Default::default() };
    bed.put(&fd);
    assert_eq!(
        vm_ioctl(&bed.vm, KVM_IRQFD, ARG),
        Ok(VmReply::Irqfd(Irqfd { fd: 3, gsi: 5, resample: None, assign: true }))
    );
    bed.put(&kvm_irqfd { flags: KVM_IRQFD_FLAG_DEASSIGN, ..fd });
    assert_eq!(
        vm_ioctl(&bed.vm, KVM_IRQFD, ARG),
        Ok(VmReply::Irqfd(Irqfd { fd: 3, gsi: 5, resample: None, assign: false }))
    );
    for flags in [KVM_IRQFD_FLAG_RESAMPLE, 4] {
        assert_eq!(bed.vm_with(KVM_IRQFD, &kvm_irqfd { flags, ..fd }), Err(Errno::EINVAL));
    }
}

#[test]
fn ioeventfd() {
    let bed = Bed::bare();
    let good = kvm_ioeventfd { addr: 0xd000_0000, len: 4, fd: 1, datamatch: 3, flags: 1, ..Default::default() };
    for bad in [
        kvm_ioeventfd { len: 3, ..good },
        kvm_ioeventfd { len: 16, ..good },
        kvm_ioeventfd { addr: u64::MAX, ..good },
        kvm_ioeventfd { flags: 1 << 3, ..good },
        kvm_ioeventfd { flags: 1 << 5, ..good },
        // No length leaves nothing to compare.
        kvm_ioeventfd { len: 0, ..good },
    ] {
        assert_eq!(bed.vm_with(KVM_IOEVENTFD, &bad), Err(Errno::EINVAL), "{bad:?}");
    }
    assert_eq!(bed.vm_with(KVM_IOEVENTFD, &kvm_ioeventfd { fd: 99, ..good }), Err(Errno::EBADF));
    assert_eq!(bed.vm_with(KVM_IOEVENTFD, &good), Ok(0));
    assert_eq!(bed.vm_with(KVM_IOEVENTFD, &good), Err(Errno::EEXIST));
    let gone = kvm_ioeventfd { flags: good.flags | KVM_IOEVENTFD_FLAG_DEASSIGN, ..good };
    assert_eq!(bed.vm_with(KVM_IOEVENTFD, &gone), Ok(0));
    assert_eq!(bed.vm_with(KVM_IOEVENTFD, &gone), Err(Errno::ENOENT));
}

#[test]
fn clock() {
    let bed = Bed::bare();
    assert_eq!(bed.vm(KVM_GET_CLOCK, ARG), Ok(0));
    let now: kvm_clock_data = bed.read();
    assert_eq!(now.flags & !0xe, 0);
    assert_eq!(bed.vm_with(KVM_SET_CLOCK, &kvm_clock_data { flags: 1, ..now }), Err(Errno::EINVAL));
    assert_eq!(bed.vm_with(KVM_SET_CLOCK, &kvm_clock_data { clock: 1 << 40, flags: 0, ..now }), Ok(0));
    assert_eq!(bed.vm(KVM_GET_CLOCK, ARG), Ok(0));
    assert!(bed.read::<kvm_clock_data>().clock >= 1 << 40);
    assert_eq!(bed.vm(KVM_GET_TSC_KHZ, 0), Ok(2_000_000));
}

#[test]
fn msr_filter() {
    let bed = Bed::bare();
    let range = kvm_msr_filter_range { flags: 3, nmsrs: 1, base: 0x35, bitmap: DATA };
    let mut filter = kvm_msr_filter::default();
    let mut set = |flags, r| {
        filter.flags = flags;
        filter.ranges[0] = r;
        bed.vm_with(KVM_X86_SET_MSR_FILTER, &filter)
    };
    assert_eq!(set(0, range), Ok(0));
    assert_eq!(set(2, range), Err(Errno::EINVAL));
    assert_eq!(set(0, kvm_msr_filter_range { flags: 0, ..range }), Err(Errno::EINVAL));
    assert_eq!(set(0, kvm_msr_filter_range { flags: 4, ..range }), Err(Errno::EINVAL));
    assert_eq!(set(0, kvm_msr_filter_range { nmsrs: 0x3001, ..range }), Err(Errno::EINVAL));
    assert_eq!(set(0, kvm_msr_filter_range { bitmap: NOWHERE, ..range }), Err(Errno::EFAULT));
    // No range: all allowed, or nothing to deny by.
    let none = kvm_msr_filter_range { nmsrs: 0, ..range };
    assert_eq!(set(0, none), Ok(0));
    assert_eq!(set(KVM_MSR_FILTER_DEFAULT_DENY, none), Err(Errno::EINVAL));
    assert_eq!(set(KVM_MSR_FILTER_DEFAULT_DENY, range), Ok(0));
}

#[test]
fn structs_of_32_bit_programs() {
    let bed = Bed::bare();
    let compat = |cmd, words: &[u32]| {
        put_array(&bed.sim, ARG, 0, words.iter().copied()).expect("writable pages");
        vm_compat_ioctl(&bed.vm, cmd, ARG).map(|_| ())
    };
    // Flags, then flags, number, first MSR and the bitmap's address of each range; no more than the 260 bytes count.
    let filter = |number, bitmap| {
        let mut words = [0; 66];
        words[..5].copy_from_slice(&[KVM_MSR_FILTER_DEFAULT_DENY, 3, number, 0x35, bitmap]);
        words[65] = !0;
        words
    };
    assert_eq!(compat(KVM_X86_SET_MSR_FILTER_COMPAT, &filter(1, NOWHERE as u32)), Err(Errno::EFAULT));
    assert_eq!(compat(KVM_X86_SET_MSR_FILTER_COMPAT, &filter(0, 0)), Err(Errno::EINVAL), "nothing but denied");
    let mut open = filter(0, 0);
    open[0] = 0;
    assert_eq!(compat(KVM_X86_SET_MSR_FILTER_COMPAT, &open), Ok(()));
    assert_eq!(bed.vm(KVM_X86_SET_MSR_FILTER_COMPAT, ARG), Err(Errno::ENOTTY), "not of 64-bit programs");
    // The upper half of an address is not part of it: the same struct leads elsewhere.
    let region = kvm_userspace_memory_region {
        flags: KVM_MEM_LOG_DIRTY_PAGES,
        memory_size: 0x4000,
        userspace_addr: DATA,
        ..Default::default()
    };
    assert_eq!(bed.vm_with(KVM_SET_USER_MEMORY_REGION, &region), Ok(0));
    let (low, high) = (DATA as u32, (DATA >> 32) as u32);
    let words = [0, 0, low, high];
    assert_eq!(compat(KVM_GET_DIRTY_LOG, &words), Err(Errno::EFAULT));
    assert_eq!(bed.vm(KVM_GET_DIRTY_LOG, ARG), Ok(0));
    assert_eq!(bed.enable(cap::MANUAL_DIRTY_LOG_PROTECT2, 1), Ok(0));
    let words = [0, 4, 0, 0, low, high];
    assert_eq!(compat(KVM_CLEAR_DIRTY_LOG, &words), Err(Errno::EFAULT));
    assert_eq!(bed.vm(KVM_CLEAR_DIRTY_LOG, ARG), Ok(0));
    // All else is the same for both.
    assert_eq!(compat(KVM_CREATE_VCPU, &[]), Err(Errno::EINVAL), "the argument is no id");
}
