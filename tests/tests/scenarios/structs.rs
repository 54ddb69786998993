//! Structs that an ioctl takes and refuses: every rule with the errno that it is answered with.

use abi::uapi::ioctl::*;
use kvm_bindings::*;
use sim::host::Errno::{self, *};
use tests::plain::{MsrFilter, MsrFilterRange, Plain};
use tests::scenario::{ARG, DATA, Machine, NOWHERE, RAM, RAM_HVA};

#[test]
fn memory_regions() {
    let m = Machine::new();
    let high = 0x1000_0000;
    for (slot, flags, gpa, size, hva, errno) in [
        (1, 4, high, 0x1000, RAM_HVA, EINVAL), // unknown flag
        (1, 1 << 31, high, 0x1000, RAM_HVA, EINVAL),
        (1, 0, high + 1, 0x1000, RAM_HVA, EINVAL), // unaligned
        (1, 0, high, 0x1001, RAM_HVA, EINVAL),
        (1, 0, high, 0x1000, RAM_HVA + 8, EINVAL),
        (1, 0, !0xfff, 0x1000, RAM_HVA, EINVAL), // wraps
        (1, 0, high, !0xfff, RAM_HVA, EINVAL),
        (1, 0, high, 0x1000, 0xffff_8000_0000_0000, EINVAL), // not the VMM's
        (1, 0, high, 1 << 43, RAM_HVA, EINVAL),              // too large
        (1, 0, 1 << 40, 0x1000, RAM_HVA, EINVAL),            // the processor has 40 bits
        (1, 0, (1 << 40) - 0x1000, 0x2000, RAM_HVA, EINVAL),
        (32764, 0, high, 0x1000, RAM_HVA, EINVAL),   // too many
        (2 << 16, 0, high, 0x1000, RAM_HVA, EINVAL), // no such address space
        (1, 0, 0x1000, 0x1000, RAM_HVA, EEXIST),     // overlaps
        (1, 0, RAM - 0x1000, 0x2000, RAM_HVA, EEXIST),
        (1, 0, high, 0, RAM_HVA, EINVAL),         // nothing to delete
        (0, 0, 0, RAM - 0x1000, RAM_HVA, EINVAL), // another size
        (0, 0, 0, RAM, RAM_HVA + 0x1000, EINVAL), // other memory
        (0, KVM_MEM_READONLY, 0, RAM, RAM_HVA, EINVAL),
    ] {
        assert_eq!(m.region(slot, flags, gpa, size, hva), Err(errno), "{slot:#x} {flags} {gpa:#x} {size:#x} {hva:#x}");
    }
    assert_eq!(m.region(1, 0, RAM, 0x1000, RAM_HVA), Ok(0), "next to it");
    assert_eq!(m.region(32763, 0, high, 0x1000, RAM_HVA), Ok(0), "the last one");
    assert_eq!(m.region(2, 0, (1 << 40) - 0x1000, 0x1000, RAM_HVA), Ok(0), "up to the limit");
    m.end();
}

/// A VM ioctl with a struct, and what comes of it.
fn vm<T: Plain>(m: &Machine, cmd: u32, value: T, errno: Errno, why: &str) {
    assert_eq!(m.vm_with(cmd, &value), Err(errno), "{cmd:#x}: {why}");
}

/// The same on a vCPU.
fn vcpu<T: Plain>(m: &Machine, cmd: u32, value: T, errno: Errno, why: &str) {
    assert_eq!(m.vcpu_with(0, cmd, &value), Err(errno), "{cmd:#x}: {why}");
}

#[test]
fn vm_structs() {
    let m = Machine::new();
    let mut log = kvm_dirty_log { slot: 32764, ..Default::default() };
    vm(&m, KVM_GET_DIRTY_LOG, log, EINVAL, "slot out of range");
    log.slot = 0;
    vm(&m, KVM_GET_DIRTY_LOG, log, ENOENT, "does not log");
    assert_eq!(m.region(1, 1, RAM, 128 << 12, RAM_HVA), Ok(0));
    let clear = kvm_clear_dirty_log { slot: 1, num_pages: 64, ..Default::default() };
    vm(&m, KVM_CLEAR_DIRTY_LOG, kvm_clear_dirty_log { first_page: 1, ..clear }, EINVAL, "no multiple of 64");
    vm(&m, KVM_CLEAR_DIRTY_LOG, kvm_clear_dirty_log { num_pages: 63, ..clear }, EINVAL, "length");
    vm(&m, KVM_CLEAR_DIRTY_LOG, kvm_clear_dirty_log { first_page: 128, ..clear }, EINVAL, "beyond the slot");
    vm(&m, KVM_CLEAR_DIRTY_LOG, clear, EFAULT, "no bitmap");
    let mut log = kvm_dirty_log { slot: 1, ..Default::default() };
    log.__bindgen_anon_1.dirty_bitmap = NOWHERE as *mut _;
    vm(&m, KVM_GET_DIRTY_LOG, log, EFAULT, "no bitmap");

    let event = kvm_ioeventfd { addr: 0x100, len: 4, fd: 1, ..Default::default() };
    vm(&m, KVM_IOEVENTFD, kvm_ioeventfd { len: 3, ..event }, EINVAL, "length");
    vm(&m, KVM_IOEVENTFD, kvm_ioeventfd { flags: 1 << 5, ..event }, EINVAL, "flag");
    vm(&m, KVM_IOEVENTFD, kvm_ioeventfd { addr: !0, ..event }, EINVAL, "wraps");
    vm(&m, KVM_IOEVENTFD, kvm_ioeventfd { len: 0, flags: 1, ..event }, EINVAL, "a value of no length");
    vm(&m, KVM_IOEVENTFD, kvm_ioeventfd { fd: -1, ..event }, EBADF, "descriptor");
    vm(&m, KVM_IOEVENTFD, kvm_ioeventfd { flags: 4, ..event }, ENOENT, "not there");
    vm(&m, KVM_IOEVENTFD, kvm_ioeventfd { flags: 4, len: 3, ..event }, ENOENT, "nothing of this length");
    vm(&m, KVM_IOEVENTFD, kvm_ioeventfd { flags: 4, len: 3, fd: -1, ..event }, EBADF, "descriptor first");
    let fast = kvm_ioeventfd { flags: 16, addr: 0x200, ..event };
    assert_eq!(m.vm_with(KVM_IOEVENTFD, &fast), Ok(0), "a flag without effect");
    vm(&m, KVM_IOEVENTFD, kvm_ioeventfd { flags: 0, ..fast }, EEXIST, "the same");
    assert_eq!(m.vm_with(KVM_IOEVENTFD, &event), Ok(0));
    vm(&m, KVM_IOEVENTFD, event, EEXIST, "twice");

    vm(&m, KVM_SIGNAL_MSI, kvm_msi { flags: 2, ..Default::default() }, EINVAL, "flag");
    vm(&m, KVM_IRQFD, kvm_irqfd { flags: 4, ..Default::default() }, EINVAL, "flag");
    vm(&m, KVM_IRQFD, kvm_irqfd { flags: 2, ..Default::default() }, EINVAL, "resampling");
    vm(&m, KVM_SET_CLOCK, kvm_clock_data { flags: 1, ..Default::default() }, EINVAL, "flag");
    assert_eq!(m.vm(KVM_SET_TSS_ADDR, 1 << 32), Err(EINVAL));
    assert_eq!(m.vm(KVM_SET_BOOT_CPU_ID, 1), Err(EBUSY), "there are vCPUs");
    assert_eq!(m.vm_with(KVM_SET_IDENTITY_MAP_ADDR, &0u64), Err(EINVAL), "there are vCPUs");

    let bare = Machine::without_vcpu(false);
    vm(&bare, KVM_SIGNAL_MSI, kvm_msi::default(), EINVAL, "no irqchip");
    vm(&bare, KVM_IRQ_LINE, kvm_irq_level::default(), ENXIO, "no irqchip");
    vm(&bare, KVM_SET_GSI_ROUTING, [0u32; 2], EINVAL, "no irqchip");
    vm(&bare, KVM_IRQFD, kvm_irqfd::default(), EINVAL, "no irqchip");
}

#[test]
fn routes() {
    let m = Machine::new();
    let set = |route: &kvm_irq_routing_entry, n: u32, flags: u32| {
        m.put_at(DATA, &[n, flags]);
        for i in 0..u64::from(n) {
            m.put_at(DATA + 8 + 48 * i, route);
        }
        m.vm(KVM_SET_GSI_ROUTING, DATA)
    };
    let mut msi = kvm_irq_routing_entry { gsi: 1, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    msi.u.msi = kvm_irq_routing_msi { address_lo: 0xfee0_0000, data: 0x31, ..Default::default() };
    assert_eq!(set(&msi, 1, 0), Ok(0));
    assert_eq!(set(&msi, 1, 1), Err(EINVAL), "flags");
    assert_eq!(set(&kvm_irq_routing_entry { type_: 77, ..msi }, 1, 0), Err(EINVAL), "type");
    assert_eq!(set(&kvm_irq_routing_entry { gsi: 4096, ..msi }, 1, 0), Err(EINVAL), "GSI");
    assert_eq!(set(&kvm_irq_routing_entry { flags: 2, ..msi }, 1, 0), Err(EINVAL), "flags of an entry");
    assert_eq!(set(&msi, 2, 0), Err(EINVAL), "two messages for one GSI");
    // The table of before is in force.
    assert_eq!(m.engine().set_gsi(1, true, true), 0, "software-disabled");
    assert_eq!(set(&msi, 0, 0), Ok(0));
    assert_eq!(m.engine().set_gsi(1, true, true), -1);
}

#[test]
fn vcpu_structs() {
    let m = Machine::new();
    let sregs: kvm_sregs = m.vcpu_get(0, KVM_GET_SREGS);
    for (why, change) in [
        ("CR0 beyond 32 bits", (|s| s.cr0 |= 1 << 32) as fn(&mut kvm_sregs)),
        ("PG without PE", |s| s.cr0 |= 1 << 31),
        ("NW without CD", |s| s.cr0 = 1 << 29),
        ("reserved bit of CR4", |s| s.cr4 |= 1 << 31),
        ("VMXE", |s| s.cr4 |= 1 << 13),
        ("SVME", |s| s.efer |= 1 << 12),
        ("reserved bit of EFER", |s| s.efer |= 1 << 40),
        ("LMA without paging", |s| s.efer |= 1 << 10),
        ("long mode without PAE", |s| (s.cr0, s.efer, s.cr4) = (0x8000_0011, 0x500, 0)),
        ("an APIC base with reserved bits", |s| s.apic_base |= 1 << 50),
        ("x2APIC without APIC", |s| s.apic_base = 0xfee0_0400),
    ] {
        let mut s = sregs;
        change(&mut s);
        vcpu(&m, KVM_SET_SREGS, s, EINVAL, why);
    }
    let after: kvm_sregs = m.vcpu_get(0, KVM_GET_SREGS);
    assert_eq!(after.bytes(), sregs.bytes(), "nothing has changed");

    vcpu(&m, KVM_SET_SREGS2, kvm_sregs2 { flags: 2, ..m.vcpu_get(0, KVM_GET_SREGS2) }, EINVAL, "flag");
    vcpu(&m, KVM_SET_SREGS2, kvm_sregs2 { flags: 1, ..m.vcpu_get(0, KVM_GET_SREGS2) }, EINVAL, "PDPTEs without PAE");
    vcpu(&m, KVM_SET_MP_STATE, kvm_mp_state { mp_state: 99 }, EINVAL, "no such state");
    vcpu(&m, KVM_SET_DEBUGREGS, kvm_debugregs { dr6: 1 << 32, ..Default::default() }, EINVAL, "DR6");
    vcpu(&m, KVM_SET_DEBUGREGS, kvm_debugregs { dr7: 1 << 32, ..Default::default() }, EINVAL, "DR7");
    vcpu(&m, KVM_SET_DEBUGREGS, kvm_debugregs { flags: 1, ..Default::default() }, EINVAL, "flags");
    vcpu(&m, KVM_INTERRUPT, kvm_interrupt { irq: 256 }, EINVAL, "vector");
    let xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
    vcpu(&m, KVM_SET_XCRS, xcrs, EINVAL, "XCR0 without x87");
    vcpu(&m, KVM_SET_XCRS, kvm_xcrs { nr_xcrs: 17, ..xcrs }, EINVAL, "too many");
    vcpu(&m, KVM_SET_XCRS, kvm_xcrs { flags: 1, ..xcrs }, EINVAL, "flags");
    let mut area = [0u8; 4096];
    area[512 + 7] = 0x80; // XSTATE_BV of a component that is not there
    vcpu(&m, KVM_SET_XSAVE, area, EINVAL, "component");
    let mut area = [0u8; 4096];
    area[24 + 3] = 0x80;
    vcpu(&m, KVM_SET_XSAVE, area, EINVAL, "MXCSR");
    vcpu(&m, KVM_X86_SETUP_MCE, 0u64, EINVAL, "no banks");
    vcpu(&m, KVM_X86_SETUP_MCE, 33u64, EINVAL, "too many banks");
    vcpu(&m, KVM_X86_SETUP_MCE, 1u64 << 63 | 1, EINVAL, "capability");
    vcpu(&m, KVM_SET_VAPIC_ADDR, 1u64 << 50, EINVAL, "no memory");
    vcpu(&m, KVM_TPR_ACCESS_REPORTING, [1u32, 1, 0, 0, 0, 0, 0, 0, 0, 0], EINVAL, "flags");
    vcpu(&m, KVM_SET_SIGNAL_MASK, [4u32, 0, 0], EINVAL, "length");
    for cmd in [KVM_HAS_DEVICE_ATTR, KVM_GET_DEVICE_ATTR, KVM_SET_DEVICE_ATTR] {
        vcpu(&m, cmd, kvm_device_attr { group: 9, ..Default::default() }, ENXIO, "attribute");
    }
    let events: kvm_vcpu_events = m.vcpu_get(0, KVM_GET_VCPU_EVENTS);
    let with = |change: fn(&mut kvm_vcpu_events)| {
        let mut e = events;
        change(&mut e);
        e
    };
    for (why, e) in [
        ("flags", with(|e| e.flags = 1 << 31)),
        ("payload", with(|e| e.flags = KVM_VCPUEVENT_VALID_PAYLOAD)),
        ("triple fault", with(|e| e.flags = KVM_VCPUEVENT_VALID_TRIPLE_FAULT)),
        ("vector", with(|e| (e.exception.injected, e.exception.nr) = (1, 32))),
        ("NMI as an exception", with(|e| (e.exception.injected, e.exception.nr) = (1, 2))),
    ] {
        vcpu(&m, KVM_SET_VCPU_EVENTS, e, EINVAL, why);
    }
    let bare = Machine::without_irqchip();
    vcpu(&bare, KVM_SET_LAPIC, kvm_lapic_state::default(), EINVAL, "no local APIC");
    assert_eq!(bare.vcpu(0, KVM_GET_LAPIC, ARG), Err(EINVAL));
    vcpu(&bare, KVM_SET_MP_STATE, kvm_mp_state { mp_state: KVM_MP_STATE_HALTED }, EINVAL, "no local APIC");
}

#[test]
fn msr_filters() {
    let m = Machine::new();
    let range = MsrFilterRange { flags: 3, nmsrs: 8, base: 0, pad: 0, bitmap: DATA };
    let with = |flags, range| {
        let mut f = MsrFilter { flags, ..Default::default() };
        f.ranges[3] = range;
        m.vm_with(KVM_X86_SET_MSR_FILTER, &f)
    };
    assert_eq!(with(2, range), Err(EINVAL), "flags");
    assert_eq!(with(1, MsrFilterRange::default()), Err(EINVAL), "denies all without a range");
    assert_eq!(with(0, MsrFilterRange { flags: 0, ..range }), Err(EINVAL), "neither reads nor writes");
    assert_eq!(with(0, MsrFilterRange { flags: 4, ..range }), Err(EINVAL), "flags of the range");
    assert_eq!(with(0, MsrFilterRange { nmsrs: 0x600 * 8 + 1, ..range }), Err(EINVAL), "too long");
    assert_eq!(with(0, MsrFilterRange { bitmap: NOWHERE, ..range }), Err(EFAULT));
    assert_eq!(with(0, range), Ok(0));
}

#[test]
fn cpuid_is_fixed_once_the_guest_has_run() {
    let m = Machine::new();
    m.long(0, &[]);
    m.does(0, |_| ());
    m.run_out(0);
    m.put_at(DATA, &[256u32, 0]);
    assert_eq!(m.vcpu(0, KVM_GET_CPUID2, DATA), Ok(0));
    assert_eq!(m.vcpu(0, KVM_SET_CPUID2, DATA), Ok(0), "the same again");
    let n = m.get_at::<u32>(DATA);
    m.put_at(DATA, &(n - 1));
    assert_eq!(m.vcpu(0, KVM_SET_CPUID2, DATA), Err(EINVAL));
}

/// KVM_RUN that only completes an exit, or that waits for INIT, has not run anything.
#[test]
fn cpuid_is_not_fixed_by_a_run_that_enters_nothing() {
    let m = Machine::new();
    m.add_vcpu(1).expect("a second vCPU");
    m.long(0, &[]);
    m.settle(0);
    assert!(m.run(0).is_err(), "a signal");
    assert!(m.run(1).is_err(), "nobody has started it");
    for vcpu in 0..2 {
        m.put_at(DATA, &[256u32, 0]);
        assert_eq!(m.vcpu(vcpu, KVM_GET_CPUID2, DATA), Ok(0));
        let n = m.get_at::<u32>(DATA);
        m.put_at(DATA, &(n - 1));
        assert_eq!(m.vcpu(vcpu, KVM_SET_CPUID2, DATA), Ok(0));
    }
}

#[test]
fn msrs_stop_at_the_first_that_is_refused() {
    let m = Machine::new();
    m.put_at(DATA, &[3u32, 0]);
    for (n, index) in [0x277u32, 0x1234_5678, 0x277].into_iter().enumerate() {
        m.put_at(DATA + 8 + 16 * n as u64, &kvm_msr_entry { index, reserved: 0, data: 0x0606_0606_0606_0606 });
    }
    assert_eq!(m.vcpu(0, KVM_SET_MSRS, DATA), Ok(1));
    assert_eq!(m.vcpu(0, KVM_GET_MSRS, DATA), Ok(1));
    assert_eq!(m.msr(0, 0x277), 0x0606_0606_0606_0606);
}
