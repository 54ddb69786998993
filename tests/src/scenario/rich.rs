//! A VM that is worth a handover.

use super::{DATA, Left, MMIO, Machine, PLAIN, RAM, RAM_HVA};
use crate::plain::{MsrFilter, MsrFilterRange};
use abi::uapi::ioctl::*;
use kvm_bindings::*;

impl Machine {
    /// A VM with something of everything: controllers and timer, eventfds, a filter, two vCPUs of which one sleeps, and an instruction
    /// in the middle of an access to a device.
    pub fn rich(irqchip: bool) -> Self {
        let m = Machine::bare(PLAIN).unwrap();
        if irqchip {
            assert_eq!(m.vm(KVM_CREATE_IRQCHIP, 0), Ok(0));
            assert_eq!(m.vm_with(KVM_CREATE_PIT2, &kvm_pit_config::default()), Ok(0));
        } else {
            assert_eq!(m.enable(KVM_CAP_SPLIT_IRQCHIP, 24), Ok(0));
        }
        assert_eq!(m.region(0, 0, 0, RAM, RAM_HVA), Ok(0));
        assert_eq!(m.region(7, KVM_MEM_LOG_DIRTY_PAGES, 0x1000_0000, 100 << 12, RAM_HVA + RAM), Ok(0));
        for id in [0, 5] {
            m.add_vcpu(id).unwrap();
        }
        let event = kvm_ioeventfd { addr: MMIO + 64, len: 4, fd: 1, ..Default::default() };
        assert_eq!(m.vm_with(KVM_IOEVENTFD, &event), Ok(0));
        let zone = kvm_coalesced_mmio_zone { addr: MMIO + 128, size: 8, ..Default::default() };
        assert_eq!(m.vm_with(KVM_REGISTER_COALESCED_MMIO, &zone), Ok(0));
        m.put_at(DATA, &[!0u64; 8]);
        let mut filter = MsrFilter::default();
        filter.ranges[0] = MsrFilterRange { flags: 3, nmsrs: 64, base: 0, pad: 0, bitmap: DATA };
        assert_eq!(m.vm_with(KVM_X86_SET_MSR_FILTER, &filter), Ok(0));
        let mut route = kvm_irq_routing_entry { gsi: 4, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
        route.u.msi = kvm_irq_routing_msi { address_lo: 0xfee0_0000, data: 0xc051, ..Default::default() };
        m.put_at(DATA, &[1u32, 0]);
        m.put_at(DATA + 8, &route);
        assert_eq!(m.vm(KVM_SET_GSI_ROUTING, DATA), Ok(0));
        m.long(0, &[0x8b, 0x03]); // mov eax, [rbx]
        m.with_regs(0, |r| (r.rbx, r.rflags) = (MMIO, 0x202));
        m.store(0, 0x9000, 1);
        m.store(0, 0x1000_2000, 2);
        m.npf(0, MMIO, false);
        assert_eq!(m.run(0), Ok(Left::Mmio { gpa: MMIO, write: false, data: vec![0; 4] }));
        m
    }

    /// The instruction gets its answer, and the guest the interrupt that was posted.
    pub fn goes_on(&self) {
        let m = self;
        m.page(0).write(abi::uapi::run::exit::MMIO_DATA, &[1, 2, 3, 4]);
        m.load(0, 0x9000, 1);
        m.load(0, 0x1000_2000, 2);
        m.run_out(0);
        assert_eq!(m.regs(0).rax, 0x0403_0201);
        let mut log = kvm_dirty_log { slot: 7, ..Default::default() };
        log.__bindgen_anon_1.dirty_bitmap = DATA as *mut _;
        assert_eq!(m.vm_with(KVM_GET_DIRTY_LOG, &log), Ok(0));
        assert_eq!(m.get_at::<u64>(DATA), 1 << 2, "what was written before");
    }

    /// The same, and its second vCPU is one of Hyper-V's, with something of everything, too.
    pub fn rich_hyperv() -> Self {
        let m = Self::rich(true);
        m.set_hyperv_cpuid(1, |_| ());
        assert_eq!(m.enable_vcpu(1, KVM_CAP_HYPERV_SYNIC2, 0), Ok(0));
        assert_eq!(m.enable_vcpu(1, KVM_CAP_HYPERV_ENFORCE_CPUID, 1), Ok(0));
        let runnable = kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE };
        assert_eq!(m.vcpu_with(1, KVM_SET_MP_STATE, &runnable), Ok(0));
        m.long(1, &[]);
        m.x2apic(1);
        m.with_regs(1, |r| r.rflags |= 0x200);
        for (index, value) in [
            (0x4000_0000, 0x8100 << 48), // who it is
            (0x4000_0001, 0xc001),       // hypercall page
            (0x4000_0002, 7),            // number
            (0x4000_0010, 1 << 40),      // run time
            (0x4000_0021, 0xb001),       // page of the reference time
            (0x4000_0073, 0xd001),       // assist page
            (0x4000_0082, 0xe001),       // pages of events and messages
            (0x4000_0083, 0xf001),
            (0x4000_0092, 0x51), // a source
            (0x4000_0093, 0x3_0052),
            (0x4000_00b1, 1 << 40), // timers: one by a message, far ahead, one by an interrupt
            (0x4000_00b0, 0x2_0001),
            (0x4000_00b3, 50_000),
            (0x4000_00b2, 0x1611),
            (0x4000_00ff, 4), // debugger
            (0x4000_0102, 7), // crash
            (0x4000_0105, 1 << 63),
            (0x4000_0106, 1), // after a migration
            (0x4000_0118, 1), // TSC
        ] {
            assert_eq!(m.set_msr(1, index, value), Ok(1), "{index:x}");
        }
        for (conn_id, fd) in [(5, 3), (0xff_ffff, 4)] {
            let event = kvm_hyperv_eventfd { conn_id, fd, ..Default::default() };
            assert_eq!(m.vm_with(KVM_HYPERV_EVENTFD, &event), Ok(0));
        }
        m
    }
}
