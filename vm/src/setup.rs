//! What user space fixes before it creates the first vCPU.

use crate::{MAX_VCPU_ID, Vm};
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use host::{Errno, Host, Request, VcpuThread, linux_version};
use irqchip::ChipMode;
use mmu::DirtyRing;

impl<H: Host> Vm<H> {
    /// There are devices of the host's in the guest whose DMA the IOMMU does not keep coherent with the caches
    /// (KVM's `kvm_arch_register_noncoherent_dma`): WBINVD is carried out. What else hangs on it in KVM does not on
    /// SVM: the guest's PAT and CR0.CD are in the VMCB.
    pub fn set_noncoherent_dma(&self, yes: bool) {
        self.noncoherent_dma.store(yes, SeqCst);
        // Until then a vCPU may take WBINVD for what it was before.
        for vcpu in self.vcpus() {
            vcpu.thread.requests().make_request(Request::Kick);
            vcpu.thread.kick();
        }
    }

    /// KVM_SET_BOOT_CPU_ID. Errors: EBUSY (there are vCPUs), EINVAL (no vCPU can have this id).
    pub fn set_boot_cpu_id(&self, id: u64) -> Result<(), Errno> {
        let _shape = self.shape.lock();
        if self.has_vcpus() {
            return Err(Errno::EBUSY);
        }
        let limit = self.config.max_vcpu_id.load(Relaxed);
        // The limit itself is taken, here as where the limit is set: then there is no bootstrap processor.
        let id = u32::try_from(id).ok().filter(|id| *id <= MAX_VCPU_ID && (limit == 0 || *id <= limit));
        self.config.bsp_id.store(id.ok_or(Errno::EINVAL)?, Relaxed);
        Ok(())
    }

    /// KVM_CAP_MAX_VCPU_ID: vCPU ids are below `limit`. Can be set once; the same value again is allowed.
    /// Errors: EINVAL (also: below the bootstrap processor's).
    pub fn set_max_vcpu_id(&self, limit: u64) -> Result<(), Errno> {
        let limit = u32::try_from(limit).ok().filter(|n| *n <= MAX_VCPU_ID).ok_or(Errno::EINVAL)?;
        let _shape = self.shape.lock();
        let now = match self.config.max_vcpu_id.load(Relaxed) {
            // The first vCPU fixes the limit that it was made under.
            0 if self.has_vcpus() => MAX_VCPU_ID,
            now => now,
        };
        if self.config.bsp_id.load(Relaxed) > limit || now != 0 && now != limit {
            return Err(Errno::EINVAL);
        }
        self.config.max_vcpu_id.store(limit, Relaxed);
        Ok(())
    }

    /// KVM_CAP_DIRTY_LOG_RING: pages that vCPUs write are recorded in rings of so many bytes. Errors: EINVAL (no power of two, or
    /// too small; there are vCPUs; it was set before), E2BIG.
    pub fn use_dirty_rings(&self, bytes: u32) -> Result<(), Errno> {
        DirtyRing::<H>::check_size(bytes)?;
        let _shape = self.shape.lock();
        if self.has_vcpus() || self.config.dirty_ring_size.load(Relaxed) != 0 {
            return Err(Errno::EINVAL);
        }
        self.config.dirty_ring_size.store(bytes, Relaxed);
        self.mmu.use_dirty_rings();
        Ok(())
    }

    /// Pages of each vCPU's dirty ring.
    pub fn dirty_ring_pages(&self) -> usize {
        self.config.dirty_ring_size.load(Relaxed) as usize / host::PAGE_SIZE
    }

    /// What KVM_CHECK_EXTENSION says of the bus that the local APICs' timers count: nanoseconds of a cycle; before Linux 7.3 those that are
    /// not set.
    pub fn apic_bus_cycle(&self) -> u32 {
        let told = self.host.linux_version() >= linux_version(7, 3);
        if told { self.config.apic_bus_cycle_ns.load(Relaxed).max(1) } else { 1 }
    }

    /// KVM_CAP_X86_APIC_BUS_CYCLES_NS. Errors: EINVAL (0, or so long that the longest count has more than 64 bits of
    /// nanoseconds; there are vCPUs), ENXIO (no local APICs in the kernel).
    pub fn set_apic_bus_cycle(&self, ns: u64) -> Result<(), Errno> {
        // The largest initial count, with the largest divisor.
        let longest = u64::from(u32::MAX) * 128;
        let ns = u32::try_from(ns).ok().filter(|ns| *ns != 0 && longest.checked_mul((*ns).into()).is_some());
        let ns = ns.ok_or(Errno::EINVAL)?;
        let _shape = self.shape.lock();
        if self.chip_mode() == ChipMode::None {
            return Err(Errno::ENXIO);
        }
        if self.has_vcpus() {
            return Err(Errno::EINVAL);
        }
        self.config.apic_bus_cycle_ns.store(ns, Relaxed);
        Ok(())
    }
}
