//! ioctls on a VM (KVM API document, section 4, "Type: vm ioctl").

mod chips;
mod compat;
mod enable_cap;
mod filter;
mod irq;
mod memory;

pub use compat::vm_compat_ioctl;

use crate::caps;
use crate::codec::{get, put};
use crate::device;
use crate::uapi::ioctl::*;
use crate::uapi::*;
use core::sync::atomic::Ordering::Relaxed;
use host::{Errno, Host};
use vm::Vm;
use vm::clock::ClockData;

/// What the caller has to do after [`vm_ioctl`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmReply {
    /// Return this number.
    Value(i64),
    /// The vCPU with this index exists: return its file.
    NewVcpu {
        /// Place in the VM's table.
        index: usize,
    },
    /// Return a file that reads as the VM's statistics.
    Stats,
    /// Bind an eventfd to an interrupt, or take the binding back.
    Irqfd(Irqfd),
    /// Make the VFIO device, and tell its descriptor ([`tell_device_fd`](crate::tell_device_fd)).
    NewDevice,
}

/// KVM_IRQFD after validation. The wait queue of an eventfd is the module's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Irqfd {
    /// The eventfd.
    pub fd: i32,
    /// What it raises.
    pub gsi: u32,
    /// The eventfd that is told when the interrupt ended; it stays raised until then.
    pub resample: Option<i32>,
    /// Bind (else unbind).
    pub assign: bool,
}

/// One ioctl on a VM file. Errors: as each ioctl documents; EIO (the VM is dead); ENOTTY for those that do not exist here.
pub fn vm_ioctl<H: Host>(vm: &Vm<H>, cmd: u32, arg: u64) -> Result<VmReply, Errno> {
    vm.check_alive()?;
    let host = &vm.host;
    let value = match cmd {
        KVM_CREATE_VCPU => {
            let id = u32::try_from(arg).map_err(|_| Errno::EINVAL)?;
            return vm.create_vcpu(id).map(|index| VmReply::NewVcpu { index });
        }
        KVM_GET_STATS_FD => return Ok(VmReply::Stats),
        KVM_IRQFD => return irq::irqfd(vm, arg).map(VmReply::Irqfd),
        KVM_CREATE_DEVICE if device::create(host, arg)? => return Ok(VmReply::NewDevice),
        KVM_CREATE_DEVICE => 0,
        KVM_CHECK_EXTENSION if arg == u64::from(cap::X86_APIC_BUS_CYCLES_NS) => vm.apic_bus_cycle().into(),
        KVM_CHECK_EXTENSION => caps::check_extension(host, arg),
        KVM_ENABLE_CAP => done(enable_cap::enable_cap(vm, &get(host, arg)?))?,

        KVM_SET_USER_MEMORY_REGION => done(memory::set_region(vm, arg))?,
        KVM_SET_USER_MEMORY_REGION2 => done(memory::set_region2(vm, arg))?,
        KVM_GET_DIRTY_LOG => done(memory::get_dirty_log(vm, &get(host, arg)?))?,
        KVM_CLEAR_DIRTY_LOG => done(memory::clear_dirty_log(vm, &get(host, arg)?))?,
        KVM_RESET_DIRTY_RINGS => vm.reset_dirty_rings()?.into(),
        KVM_SET_NR_MMU_PAGES => done(memory::limit_shadow_pages(arg))?,
        KVM_SET_TSS_ADDR => done(memory::set_tss_addr(arg))?,
        KVM_SET_IDENTITY_MAP_ADDR => done(memory::set_identity_map_addr(vm, arg))?,

        KVM_SET_GSI_ROUTING => done(irq::set_gsi_routing(vm, arg))?,
        KVM_SIGNAL_MSI => irq::signal_msi(vm, arg)?,
        KVM_IRQ_LINE => done(irq::irq_line(vm, arg, false))?,
        KVM_IRQ_LINE_STATUS => done(irq::irq_line(vm, arg, true))?,
        KVM_IOEVENTFD => done(irq::ioeventfd(vm, arg))?,
        KVM_HYPERV_EVENTFD => done(irq::hyperv_eventfd(vm, &get(host, arg)?))?,
        KVM_CREATE_IRQCHIP => done(vm.create_irqchip())?,
        KVM_GET_IRQCHIP => done(chips::get_irqchip(vm, arg))?,
        KVM_SET_IRQCHIP => done(chips::set_irqchip(vm, arg))?,
        KVM_CREATE_PIT => done(vm.create_pit(vm::chips::SPEAKER_DUMMY))?,
        KVM_CREATE_PIT2 => done(vm.create_pit(get::<H, kvm_pit_config>(host, arg)?.flags))?,
        KVM_GET_PIT => done(chips::get_pit(vm, arg))?,
        KVM_SET_PIT => done(chips::set_pit(vm, arg))?,
        KVM_GET_PIT2 => done(chips::get_pit2(vm, arg))?,
        KVM_SET_PIT2 => done(chips::set_pit2(vm, arg))?,
        KVM_REINJECT_CONTROL => {
            done(vm.set_pit_reinject(get::<H, kvm_reinject_control>(host, arg)?.pit_reinject != 0))?
        }
        KVM_REGISTER_COALESCED_MMIO => done(vm.register_coalesced(chips::zone(&get(host, arg)?)?))?,
        KVM_UNREGISTER_COALESCED_MMIO => {
            vm.coalesced.unregister(chips::zone(&get(host, arg)?)?);
            0
        }

        KVM_GET_CLOCK => done(get_clock(vm, arg))?,
        KVM_SET_CLOCK => done(set_clock(vm, arg))?,
        KVM_SET_TSC_KHZ => done(vm.set_tsc_khz(arg as u32))?,
        KVM_GET_TSC_KHZ => match vm.config.tsc_khz.load(Relaxed) {
            0 => host.tsc_khz().into(),
            khz => khz.into(),
        },

        KVM_SET_BOOT_CPU_ID => done(vm.set_boot_cpu_id(arg))?,
        KVM_X86_SET_MSR_FILTER => done(filter::set_msr_filter(vm, &get(host, arg)?))?,
        _ => return Err(Errno::ENOTTY),
    };
    Ok(VmReply::Value(value))
}

/// An ioctl that returns 0 when it succeeds.
fn done(result: Result<(), Errno>) -> Result<i64, Errno> {
    result.map(|()| 0)
}

fn get_clock<H: Host>(vm: &Vm<H>, arg: u64) -> Result<(), Errno> {
    let ClockData { clock, flags, realtime, host_tsc } = vm.get_clock();
    put(&vm.host, arg, &kvm_clock_data { clock, flags, pad0: 0, realtime, host_tsc, pad: [0; 4] })
}

/// KVM_SET_CLOCK. Errors: EINVAL (unknown flags). The padding is not looked at, as on stock.
fn set_clock<H: Host>(vm: &Vm<H>, arg: u64) -> Result<(), Errno> {
    let d: kvm_clock_data = get(&vm.host, arg)?;
    if d.flags & !caps::CLOCK_FLAGS != 0 {
        return Err(Errno::EINVAL);
    }
    vm.set_clock(ClockData { clock: d.clock, flags: d.flags, realtime: d.realtime, host_tsc: d.host_tsc })
}
