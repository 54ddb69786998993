//! ioctls on a vCPU.
//!
//! Long because: one table of vCPU ioctls after the other; a reader looks for the ioctl, not for the file.

use super::*;

/// Every struct ioctl, with an argument that is no memory.
#[test]
fn bad_addresses() {
    let bed = Bed::new();
    for (name, cmd) in ioctl::ALL {
        let direction_and_size = cmd >> 16;
        let number = cmd & 0xff;
        let vcpu = (0x81..=0xcf).contains(&number);
        let absent = [KVM_X86_SET_MCE, KVM_X86_GET_MCE_CAP_SUPPORTED, KVM_ENABLE_CAP, KVM_MEMORY_ENCRYPT_OP];
        let vm_only = [
            KVM_GET_PIT2,
            KVM_SET_PIT2,
            KVM_SIGNAL_MSI,
            KVM_HYPERV_EVENTFD,
            KVM_CLEAR_DIRTY_LOG,
            KVM_X86_SET_MSR_FILTER,
            KVM_SET_TSC_KHZ,
            KVM_GET_TSC_KHZ,
        ];
        if direction_and_size != 0 && vcpu && !absent.contains(cmd) && !vm_only.contains(cmd) {
            assert_eq!(bed.vcpu(*cmd, NOWHERE), Err(Errno::EFAULT), "{name}");
        }
    }
}

#[test]
fn unknown_ioctls() {
    let bed = Bed::new();
    // Something like nested state, one register, another driver's number.
    for cmd in [iowr::<u64>(0xbe), iow::<[u64; 2]>(0xab), 0x5401] {
        assert_eq!(bed.vcpu(cmd, ARG), Err(Errno::EINVAL), "{cmd:#x}");
    }
    assert_eq!(bed.vcpu(KVM_RUN, 1), Err(Errno::EINVAL));
    for (minor, errno) in [(15, Errno::EINVAL), (16, Errno::ENOTTY)] {
        bed.sim.set_linux_version(6, minor);
        assert_eq!(bed.vcpu(KVM_MEMORY_ENCRYPT_OP, ARG), Err(errno), "6.{minor}");
    }
}

#[test]
fn registers_come_back() {
    let bed = Bed::new();
    let regs = kvm_regs {
        rax: 1,
        rbx: 2,
        rcx: 3,
        rdx: 4,
        rsi: 5,
        rdi: 6,
        rsp: 7,
        rbp: 8,
        r8: 9,
        r9: 10,
        r10: 11,
        r11: 12,
        r12: 13,
        r13: 14,
        r14: 15,
        r15: 16,
        rip: 17,
        rflags: 0x202,
    };
    assert_eq!(bed.vcpu_with(KVM_SET_REGS, &regs), Ok(0));
    bed.put(&kvm_regs::default());
    assert_eq!(bed.vcpu_get::<kvm_regs>(KVM_GET_REGS), regs);
    assert_eq!(bed.vcpu_with(KVM_SET_REGS, &kvm_regs { rflags: 0, ..regs }), Ok(0));
    assert_eq!(bed.vcpu_get::<kvm_regs>(KVM_GET_REGS).rflags, 2);
}

#[test]
fn system_registers_come_back() {
    let bed = Bed::new();
    let reset: kvm_sregs = bed.vcpu_get(KVM_GET_SREGS);
    assert_eq!((reset.cs.selector, reset.cs.base, reset.cs.limit), (0xf000, 0xffff_0000, 0xffff));
    assert_eq!((reset.cs.present, reset.cs.unusable, reset.cs.g), (1, 0, 0));
    assert_eq!(bed.vcpu_with(KVM_SET_SREGS, &reset), Ok(0));
    assert_eq!(bed.vcpu_get::<kvm_sregs>(KVM_GET_SREGS), reset);
    // Flat 32-bit protected mode.
    let flat = kvm_segment { limit: !0, selector: 8, type_: 11, present: 1, db: 1, s: 1, g: 1, ..Default::default() };
    let data = kvm_segment { selector: 16, type_: 3, ..flat };
    let protected = kvm_sregs { cr0: 0x11, cs: flat, ds: data, es: data, ss: data, ..reset };
    assert_eq!(bed.vcpu_with(KVM_SET_SREGS, &protected), Ok(0));
    assert_eq!(bed.vcpu_get::<kvm_sregs>(KVM_GET_SREGS), protected);
    // Paging without protection, and long mode without PAE.
    for bad in [kvm_sregs { cr0: 1 << 31, ..reset }, kvm_sregs { cr0: 1 << 31 | 1, efer: 1 << 8 | 1 << 10, ..reset }] {
        assert_eq!(bed.vcpu_with(KVM_SET_SREGS, &bad), Err(Errno::EINVAL));
    }
    assert_eq!(bed.vcpu_get::<kvm_sregs>(KVM_GET_SREGS), protected);
}

#[test]
fn an_interrupt_in_the_bitmap() {
    let bed = Bed::new();
    let mut s: kvm_sregs = bed.vcpu_get(KVM_GET_SREGS);
    s.interrupt_bitmap = [0, 1 << 3, 1 << 5, 0];
    assert_eq!(bed.vcpu_with(KVM_SET_SREGS, &s), Ok(0));
    // Only one can wait: the first.
    assert_eq!(bed.vcpu_get::<kvm_sregs>(KVM_GET_SREGS).interrupt_bitmap, [0, 1 << 3, 0, 0]);
    assert_eq!(bed.vcpu_get::<kvm_vcpu_events>(KVM_GET_VCPU_EVENTS).interrupt.nr, 67);
}

#[test]
fn sregs2_flags() {
    let bed = Bed::new();
    let s: kvm_sregs2 = bed.vcpu_get(KVM_GET_SREGS2);
    assert_eq!(bed.vcpu_with(KVM_SET_SREGS2, &s), Ok(0));
    for flags in [2, KVM_SREGS2_FLAGS_PDPTRS_VALID] {
        assert_eq!(bed.vcpu_with(KVM_SET_SREGS2, &kvm_sregs2 { flags, ..s }), Err(Errno::EINVAL));
    }
}

#[test]
fn fpu_and_xsave_are_one_state() {
    let bed = Bed::new();
    let fpu: kvm_fpu = bed.vcpu_get(KVM_GET_FPU);
    assert_eq!(fpu.fcw, 0x37f);
    let mut changed = fpu;
    changed.xmm[15] = [0xab; 16];
    changed.fpr[7] = [0x7f; 16];
    changed.last_dp = 0x1234;
    assert_eq!(bed.vcpu_with(KVM_SET_FPU, &changed), Ok(0));
    assert_eq!(bed.vcpu_get::<kvm_fpu>(KVM_GET_FPU), changed);
    assert_eq!(bed.vcpu(KVM_GET_XSAVE, ARG), Ok(0));
    let mut image = [0; 4096];
    crate::codec::read(&bed.sim, ARG, &mut image).unwrap();
    assert_eq!(&image[160 + 15 * 16..160 + 16 * 16], [0xab; 16]);
    assert_eq!(u32::take(&image[24..]), 0x1f80, "MXCSR stays");
    assert_eq!(image[512] & 3, 3);
    assert_eq!(bed.vcpu(KVM_SET_XSAVE, ARG), Ok(0));
    assert_eq!(bed.vcpu(KVM_GET_XSAVE2, ARG), Ok(0));
    // A component that nobody has.
    image[512 + 7] = 0x40;
    crate::codec::write(&bed.sim, ARG, &image).unwrap();
    assert_eq!(bed.vcpu(KVM_SET_XSAVE, ARG), Err(Errno::EINVAL));
}

#[test]
fn xcrs() {
    let bed = Bed::new();
    let x: kvm_xcrs = bed.vcpu_get(KVM_GET_XCRS);
    assert_eq!((x.nr_xcrs, x.flags, x.xcrs[0]), (1, 0, kvm_xcr { xcr: 0, reserved: 0, value: 1 }));
    assert_eq!(bed.vcpu_with(KVM_SET_XCRS, &x), Ok(0));
    let with = |value| {
        let mut bad = x;
        bad.xcrs[0].value = value;
        bad
    };
    for bad in [kvm_xcrs { nr_xcrs: 17, ..x }, kvm_xcrs { flags: 1, ..x }, with(0), with(5), with(1 << 40 | 1)] {
        assert_eq!(bed.vcpu_with(KVM_SET_XCRS, &bad), Err(Errno::EINVAL));
    }
    // Others than XCR0 are passed over.
    let mut other = x;
    other.xcrs[0].xcr = 1;
    assert_eq!(bed.vcpu_with(KVM_SET_XCRS, &other), Ok(0));
}

#[test]
fn msrs_stop_at_the_first_that_fails() {
    let bed = Bed::new();
    let entry = |index, data| kvm_msr_entry { index, reserved: 0, data };
    let three = kvm_msrs { nmsrs: 3, pad: 0 };
    let efi = 0x0007_0406_0007_0406;
    bed.array(&three, &[entry(0x277, efi), entry(0xdead_0000, 1), entry(0x175, 5)]);
    assert_eq!(bed.vcpu(KVM_SET_MSRS, ARG), Ok(1));
    bed.array(&three, &[entry(0x277, 0), entry(0xdead_0000, 0x55), entry(0x175, 0x66)]);
    assert_eq!(bed.vcpu(KVM_GET_MSRS, ARG), Ok(1));
    assert_eq!(bed.item::<kvm_msrs, kvm_msr_entry>(0), entry(0x277, efi));
    assert_eq!([1, 2].map(|n| bed.item::<kvm_msrs, kvm_msr_entry>(n).data), [0, 0x66], "what fails reads zero");
    for cmd in [KVM_GET_MSRS, KVM_SET_MSRS] {
        assert_eq!(bed.vcpu_with(cmd, &kvm_msrs { nmsrs: 0, pad: 0 }), Ok(0));
        assert_eq!(bed.vcpu_with(cmd, &kvm_msrs { nmsrs: 256, pad: 0 }), Err(Errno::E2BIG));
        assert_eq!(bed.vcpu_with(cmd, &kvm_msrs { nmsrs: !0, pad: 0 }), Err(Errno::E2BIG));
    }
}

#[test]
fn cpuid_comes_back() {
    let bed = Bed::new();
    let entries = [
        kvm_cpuid_entry2 { function: 0, eax: 1, ebx: 0x6874_7541, ..Default::default() },
        kvm_cpuid_entry2 { function: 1, edx: 0x0381_0301, ..Default::default() },
    ];
    bed.array(&kvm_cpuid2 { nent: 2, padding: 0 }, &entries);
    assert_eq!(bed.vcpu(KVM_SET_CPUID2, ARG), Ok(0));
    assert_eq!(bed.vcpu_with(KVM_GET_CPUID2, &kvm_cpuid2 { nent: 1, padding: 0 }), Err(Errno::E2BIG));
    assert_eq!(bed.vcpu_with(KVM_GET_CPUID2, &kvm_cpuid2 { nent: 5, padding: 0 }), Ok(0));
    assert_eq!(bed.read::<kvm_cpuid2>().nent, 2);
    assert_eq!(bed.item::<kvm_cpuid2, kvm_cpuid_entry2>(0), entries[0]);
    for cmd in [KVM_SET_CPUID, KVM_SET_CPUID2] {
        assert_eq!(bed.vcpu_with(cmd, &kvm_cpuid2 { nent: 257, padding: 0 }), Err(Errno::E2BIG));
    }
}

#[test]
fn events_are_checked_before_anything_changes() {
    let bed = Bed::new();
    let e: kvm_vcpu_events = bed.vcpu_get(KVM_GET_VCPU_EVENTS);
    assert_eq!(e.flags, vcpuevent::VALID_NMI_PENDING | vcpuevent::VALID_SHADOW | vcpuevent::VALID_SMM);
    assert_eq!(bed.vcpu_with(KVM_SET_VCPU_EVENTS, &e), Ok(0));
    let mut nmi_as_exception = e;
    (nmi_as_exception.exception.injected, nmi_as_exception.exception.nr) = (1, 2);
    let mut vector_32 = nmi_as_exception;
    vector_32.exception.nr = 32;
    for bad in [
        kvm_vcpu_events { flags: 1 << 6, ..e },
        kvm_vcpu_events { flags: e.flags | vcpuevent::VALID_PAYLOAD, ..e },
        kvm_vcpu_events { flags: e.flags | vcpuevent::VALID_TRIPLE_FAULT, ..e },
        nmi_as_exception,
        vector_32,
    ] {
        let mut bad = bad;
        bad.nmi.masked = 1;
        assert_eq!(bed.vcpu_with(KVM_SET_VCPU_EVENTS, &bad), Err(Errno::EINVAL), "{bad:?}");
    }
    assert_eq!(bed.vcpu_get::<kvm_vcpu_events>(KVM_GET_VCPU_EVENTS), e);
}

#[test]
fn payloads_and_triple_faults_need_their_capability() {
    let bed = Bed::new();
    assert_eq!(bed.enable(cap::EXCEPTION_PAYLOAD, 1), Ok(0));
    assert_eq!(bed.enable(cap::X86_TRIPLE_FAULT_EVENT, 1), Ok(0));
    let mut e: kvm_vcpu_events = bed.vcpu_get(KVM_GET_VCPU_EVENTS);
    assert_eq!(e.flags & 0x30, 0x30);
    e.exception = kvm_vcpu_events_exception { pending: 1, nr: 14, has_error_code: 1, error_code: 2, injected: 1 };
    (e.exception_has_payload, e.exception_payload) = (1, 0xdead_beef);
    e.triple_fault.pending = 1;
    assert_eq!(bed.vcpu_with(KVM_SET_VCPU_EVENTS, &e), Ok(0));
    let back: kvm_vcpu_events = bed.vcpu_get(KVM_GET_VCPU_EVENTS);
    assert_eq!((back.exception.pending, back.exception.injected, back.exception.nr), (1, 0, 14));
    assert_eq!((back.exception.error_code, back.exception_payload), (2, 0xdead_beef));
    assert_eq!(back.triple_fault.pending, 1);
}

#[test]
fn run_states() {
    let bed = Bed::new();
    assert_eq!(bed.vcpu_get::<kvm_mp_state>(KVM_GET_MP_STATE).mp_state, 0);
    assert_eq!(bed.vcpu_with(KVM_SET_MP_STATE, &kvm_mp_state { mp_state: 3 }), Ok(0));
    assert_eq!(bed.vcpu_get::<kvm_mp_state>(KVM_GET_MP_STATE).mp_state, 3);
    assert_eq!(bed.vcpu_with(KVM_SET_MP_STATE, &kvm_mp_state { mp_state: 5 }), Err(Errno::EINVAL));
}

#[test]
fn debug_registers() {
    let bed = Bed::new();
    let d: kvm_debugregs = bed.vcpu_get(KVM_GET_DEBUGREGS);
    assert_eq!((d.dr6, d.dr7), (0xffff_0ff0, 0x400));
    let set = kvm_debugregs { db: [1, 2, 3, 4], dr7: 0x401, ..d };
    assert_eq!(bed.vcpu_with(KVM_SET_DEBUGREGS, &set), Ok(0));
    assert_eq!(bed.vcpu_get::<kvm_debugregs>(KVM_GET_DEBUGREGS), set);
    for bad in
        [kvm_debugregs { flags: 1, ..d }, kvm_debugregs { dr6: 1 << 32, ..d }, kvm_debugregs { dr7: 1 << 63, ..d }]
    {
        assert_eq!(bed.vcpu_with(KVM_SET_DEBUGREGS, &bad), Err(Errno::EINVAL));
    }
    let unknown = kvm_guest_debug { control: 1 << 30, ..Default::default() };
    assert_eq!(bed.vcpu_with(KVM_SET_GUEST_DEBUG, &unknown), Ok(0), "as on stock: they mean nothing");
}

#[test]
fn local_apic() {
    let bed = Bed::new();
    let state: kvm_lapic_state = bed.vcpu_get(KVM_GET_LAPIC);
    assert_eq!(u32::take(&state.regs[0x30..]) & 0xff, 0x14);
    assert_eq!(bed.vcpu_with(KVM_SET_LAPIC, &state), Ok(0));
    assert_eq!(bed.vcpu_with(KVM_INTERRUPT, &kvm_interrupt { irq: 256 }), Err(Errno::EINVAL));
    assert_eq!(bed.vcpu_with(KVM_INTERRUPT, &kvm_interrupt { irq: 0x20 }), Ok(0));
    assert_eq!(bed.vcpu_with(KVM_INTERRUPT, &kvm_interrupt { irq: 0x20 }), Err(Errno::EEXIST));
    assert_eq!(bed.vcpu(KVM_NMI, 0), Ok(0));
    assert_eq!(bed.vcpu_get::<kvm_vcpu_events>(KVM_GET_VCPU_EVENTS).nmi.pending, 1);
    assert_eq!(bed.vcpu_with(KVM_SET_VAPIC_ADDR, &kvm_vapic_addr { vapic_addr: 0 }), Ok(0));
    assert_eq!(bed.vcpu_with(KVM_SET_VAPIC_ADDR, &kvm_vapic_addr { vapic_addr: 0x1000 }), Err(Errno::EINVAL));
}

#[test]
fn no_local_apic_without_irqchip() {
    let bed = Bed::bare();
    assert_eq!(vm_ioctl(&bed.vm, KVM_CREATE_VCPU, 0), Ok(VmReply::NewVcpu { index: 0 }));
    for cmd in [KVM_GET_LAPIC, KVM_SET_LAPIC, KVM_SET_VAPIC_ADDR] {
        assert_eq!(bed.vcpu(cmd, NOWHERE), Err(Errno::EINVAL), "{cmd:#x}");
    }
    bed.vm.vcpu(0).unwrap().pages[0].0.set_u64(16, 16);
    assert_eq!(bed.vcpu(KVM_RUN, 0), Err(Errno::EINVAL), "CR8 has four bits");
}

#[test]
fn signal_mask() {
    let bed = Bed::new();
    let vcpu = bed.vm.vcpu(0).unwrap();
    let call = |arg| vcpu_ioctl(&bed.vm, vcpu, KVM_SET_SIGNAL_MASK, arg);
    assert_eq!(call(0), Ok(VcpuReply::SignalMask(None)));
    bed.put(&kvm_signal_mask { len: 8 });
    put(&bed.sim, ARG + 4, &0x8000_0000_0000_0001u64).unwrap();
    assert_eq!(call(ARG), Ok(VcpuReply::SignalMask(Some(0x8000_0000_0000_0001))));
    bed.put(&kvm_signal_mask { len: 16 });
    assert_eq!(call(ARG), Err(Errno::EINVAL));
    assert_eq!(call(NOWHERE), Err(Errno::EFAULT));
}

#[test]
fn machine_check_setup() {
    let bed = Bed::new();
    for bad in [0u64, 33, 1 << 40 | 10] {
        assert_eq!(bed.vcpu_with(KVM_X86_SETUP_MCE, &bad), Err(Errno::EINVAL), "{bad:#x}");
    }
    assert_eq!(bed.vcpu_with(KVM_X86_SETUP_MCE, &0x0100_010au64), Ok(0));
}

#[test]
fn time_attributes() {
    let bed = Bed::new();
    assert_eq!(bed.vcpu(KVM_GET_TSC_KHZ, 0), Ok(2_000_000));
    assert_eq!(bed.vcpu(KVM_SET_TSC_KHZ, 0), Ok(0));
    assert_eq!(bed.vcpu(KVM_KVMCLOCK_CTRL, 0), Err(Errno::EINVAL), "the guest has no clock page");
    let attr = kvm_device_attr { addr: DATA, ..Default::default() };
    put(&bed.sim, DATA, &77u64).unwrap();
    assert_eq!(bed.vcpu_with(KVM_HAS_DEVICE_ATTR, &attr), Ok(0));
    assert_eq!(bed.vcpu_with(KVM_SET_DEVICE_ATTR, &attr), Ok(0));
    put(&bed.sim, DATA, &0u64).unwrap();
    assert_eq!(bed.vcpu_with(KVM_GET_DEVICE_ATTR, &attr), Ok(0));
    assert_eq!(get::<Sim, u64>(&bed.sim, DATA), Ok(77));
    for other in [kvm_device_attr { group: 1, ..attr }, kvm_device_attr { attr: 1, ..attr }] {
        assert_eq!(bed.vcpu_with(KVM_HAS_DEVICE_ATTR, &other), Err(Errno::ENXIO));
    }
}

#[test]
fn a_run_that_ends_with_a_port_write() {
    let bed = Bed::new();
    bed.sim.step(0, |cpu| {
        cpu.guest().rax = 0x41;
        (arch::exit::code::IOIO, 0x3f8 << 16 | 1 << 4, 0x1002)
    });
    assert_eq!(bed.vcpu(KVM_RUN, 0), Ok(0));
    let [run, pio] = &bed.vm.vcpu(0).unwrap().pages;
    assert_eq!(run.0.u32(8), 2);
    assert_eq!((run.0.u8(32), run.0.u8(33), run.0.u16(34), run.0.u32(36)), (1, 1, 0x3f8, 1));
    assert_eq!(pio.0.u8(0), 0x41);
    assert_eq!(run.0.u64(24), 0xfee0_0900, "APIC base of the bootstrap processor");
    // The script is over: a signal.
    assert_eq!(bed.vcpu(KVM_RUN, 0), Err(Errno::EINTR));
    assert_eq!(run.0.u32(8), 10);
}

#[test]
fn immediate_exit() {
    let bed = Bed::new();
    let [run, ..] = &bed.vm.vcpu(0).unwrap().pages;
    run.0.set_u8(1, 1);
    bed.sim.step(0, |_| panic!("entered"));
    // The reason of the exit before it can still be read.
    run.0.set_u32(8, 6);
    assert_eq!(bed.vcpu(KVM_RUN, 0), Err(Errno::EINTR));
    assert_eq!(run.0.u32(8), 6);
}

#[test]
fn registers_go_through_the_run_page() {
    let bed = Bed::new();
    let [run, ..] = &bed.vm.vcpu(0).unwrap().pages;
    let image = |at, len| {
        let mut b = std::vec![0; len];
        run.0.read(at, &mut b);
        b
    };
    // Immediate exit: no more than the registers.
    run.0.set_u8(1, 1);
    run.0.set_u64(288, 7);
    assert_eq!(bed.vcpu(KVM_RUN, 0), Err(Errno::EINTR));
    let regs: kvm_regs = Field::take(&image(304, 144));
    assert_eq!(regs, bed.vcpu_get(KVM_GET_REGS));
    assert_eq!(kvm_sregs::take(&image(448, 312)), bed.vcpu_get(KVM_GET_SREGS));
    assert_eq!(kvm_vcpu_events::take(&image(760, 64)), bed.vcpu_get(KVM_GET_VCPU_EVENTS));
    // Nothing is stored that is not asked for.
    run.0.set_u64(288, 0);
    run.0.set_u64(304, 77);
    assert_eq!(bed.vcpu(KVM_RUN, 0), Err(Errno::EINTR));
    assert_eq!(run.0.u64(304), 77);
    // Loaded when marked, and only then; the mark goes.
    assert_eq!(bed.vcpu_get::<kvm_regs>(KVM_GET_REGS).rax, 0);
    run.0.set_u64(296, 1);
    assert_eq!(bed.vcpu(KVM_RUN, 0), Err(Errno::EINTR));
    assert_eq!((bed.vcpu_get::<kvm_regs>(KVM_GET_REGS).rax, run.0.u64(296)), (77, 0));
    // Registers that the ioctl refuses are refused here, and stay marked.
    run.0.set_u64(448 + 224, 1 << 40);
    run.0.set_u64(296, 2);
    assert_eq!(bed.vcpu(KVM_RUN, 0), Err(Errno::EINVAL));
    assert_eq!(run.0.u64(296), 2);
    for (at, unknown) in [(288, 8), (296, 1 << 63)] {
        run.0.set_u64(288, 0);
        run.0.set_u64(296, 0);
        run.0.set_u64(at, unknown);
        assert_eq!(bed.vcpu(KVM_RUN, 0), Err(Errno::EINVAL));
    }
}

/// What every client does at the start and every snapshot at the end: the guest gets the whole supported CPUID, and
/// each listed MSR is read and written back.
#[test]
fn listed_msrs_can_be_saved_and_restored() {
    let bed = Bed::new();
    bed.put(&kvm_cpuid2 { nent: 256, padding: 0 });
    assert_eq!(bed.system(KVM_GET_SUPPORTED_CPUID, ARG), Ok(0));
    assert_eq!(bed.vcpu(KVM_SET_CPUID2, ARG), Ok(0));
    bed.put(&kvm_msr_list { nmsrs: 255 });
    assert_eq!(bed.system(KVM_GET_MSR_INDEX_LIST, ARG), Ok(0));
    let n = bed.read::<kvm_msr_list>().nmsrs;
    let indices: std::vec::Vec<u32> = (0..n as usize).map(|i| bed.item::<kvm_msr_list, u32>(i)).collect();
    for index in indices {
        let one = kvm_msr_entry { index, reserved: 0, data: 0 };
        bed.array(&kvm_msrs { nmsrs: 1, pad: 0 }, &[one]);
        assert_eq!(bed.vcpu(KVM_GET_MSRS, ARG), Ok(1), "reading {index:#x}");
        assert_eq!(bed.vcpu(KVM_SET_MSRS, ARG), Ok(1), "writing {index:#x}");
    }
}

/// The register ioctls of a client that puts a vCPU into 64-bit mode and takes it back after a reset.
#[test]
fn long_mode_and_back() {
    let bed = Bed::new();
    bed.put(&kvm_cpuid2 { nent: 256, padding: 0 });
    assert_eq!(bed.system(KVM_GET_SUPPORTED_CPUID, ARG), Ok(0));
    assert_eq!(bed.vcpu(KVM_SET_CPUID2, ARG), Ok(0));
    let reset: kvm_sregs = bed.vcpu_get(KVM_GET_SREGS);
    let code = kvm_segment { selector: 8, type_: 11, present: 1, s: 1, l: 1, g: 1, limit: !0, ..Default::default() };
    let data = kvm_segment { selector: 16, type_: 3, db: 1, l: 0, ..code };
    let tr = kvm_segment { selector: 24, type_: 11, present: 1, limit: 0x67, ..Default::default() };
    let long = kvm_sregs {
        cs: code,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr,
        cr0: 0x8005_0033,
        cr3: 0x1000,
        cr4: 0x0000_06a0,
        efer: 0x500,
        ..reset
    };
    assert_eq!(bed.vcpu_with(KVM_SET_SREGS, &long), Ok(0));
    assert_eq!(bed.vcpu_get::<kvm_sregs>(KVM_GET_SREGS), long);
    assert_eq!(bed.vcpu_with(KVM_SET_SREGS, &reset), Ok(0));
    assert_eq!(bed.vcpu_get::<kvm_sregs>(KVM_GET_SREGS), reset);
}
