//! The machine: memory, interrupt controllers, eventfds, and a thread for each vCPU.

use crate::{Config, DOORBELL_PORT, boot, bus::Bus, vcpu};
use anyhow::{Context, Result, anyhow, ensure};
use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_enable_cap, kvm_pit_config,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, Kvm, NoDatamatch, VcpuFd, VmFd};
use std::sync::{Arc, Mutex, mpsc};
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Bytes of guest memory.
const MEMORY: u64 = 256 << 20;
/// The UART's line.
const SERIAL_GSI: u32 = 4;

/// A machine that is ready to run.
pub struct Machine {
    vcpus: Vec<VcpuFd>,
    bus: Arc<Mutex<Bus>>,
    doorbell: EventFd,
    // Dropped after everything that the guest runs on.
    _vm: Arc<VmFd>,
    _memory: GuestMemoryMmap,
}

impl Machine {
    /// Builds it, in the order in which Firecracker does.
    pub fn new(config: &Config, typed: Vec<(&'static str, String)>) -> Result<Self> {
        let kvm = Kvm::new().context("opening /dev/kvm")?;
        let vm = Arc::new(kvm.create_vm().context("KVM_CREATE_VM")?);
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)])?;
        for (slot, region) in memory.iter().enumerate() {
            let region = kvm_userspace_memory_region {
                slot: slot as u32,
                flags: 0,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: `Machine` keeps the memory for as long as the VM.
            unsafe { vm.set_user_memory_region(region) }.context("KVM_SET_USER_MEMORY_REGION")?;
        }
        vm.set_tss_address(0xfffb_d000).context("KVM_SET_TSS_ADDR")?;
        if config.split {
            let mut cap = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
            cap.args[0] = 24;
            vm.enable_cap(&cap).context("KVM_CAP_SPLIT_IRQCHIP")?;
        } else {
            vm.create_irq_chip().context("KVM_CREATE_IRQCHIP")?;
            let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
            vm.create_pit2(pit).context("KVM_CREATE_PIT2")?;
        }
        let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).context("KVM_GET_SUPPORTED_CPUID")?;
        let mut vcpus = Vec::new();
        for id in 0..config.cpus {
            let vcpu = vm.create_vcpu(id.into()).context("KVM_CREATE_VCPU")?;
            let cpuid = vcpu::cpuid(&supported, id, config.cpus, config.acpi());
            vcpu.set_cpuid2(&cpuid).context("KVM_SET_CPUID2")?;
            vcpus.push(vcpu);
        }
        let entry = boot::load(config, &memory, MEMORY)?;
        vcpu::write_tables(&memory)?;
        vcpu::start_at(vcpus.first().context("a vCPU")?, &entry)?;

        let line = EventFd::new(EFD_NONBLOCK)?;
        vm.register_irqfd(&line, SERIAL_GSI).context("KVM_IRQFD")?;
        let doorbell = EventFd::new(EFD_NONBLOCK)?;
        vm.register_ioevent(&doorbell, &IoEventAddress::Pio(DOORBELL_PORT.into()), NoDatamatch)
            .context("KVM_IOEVENTFD")?;
        let bus = Arc::new(Mutex::new(Bus::new(vm.clone(), line, config.split, typed)));
        Ok(Self { vcpus, bus, doorbell, _vm: vm, _memory: memory })
    }

    /// Runs until the guest is off, and returns how often it rang the doorbell. The other vCPUs' threads end with the
    /// process.
    pub fn run(self) -> Result<u64> {
        let (sender, receiver) = mpsc::channel();
        for vcpu in self.vcpus {
            let (bus, sender) = (self.bus.clone(), sender.clone());
            std::thread::spawn(move || sender.send(vcpu::run(vcpu, &bus)));
        }
        receiver.recv().context("a vCPU ended without a word")??;
        let bus = self.bus.lock().map_err(|_| anyhow!("a vCPU's thread failed"))?;
        ensure!(bus.finished(), "the guest is off before it answered everything");
        let rung = self.doorbell.read().unwrap_or(0);
        // The memory goes with the process: other vCPUs may still be in the guest.
        std::mem::forget(self._memory);
        Ok(rung)
    }
}
