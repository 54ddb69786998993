//! Interrupts and eventfds (KVM API document 4.25, 4.52, 4.59, 4.70, 4.75).

use super::Irqfd;
use crate::codec::{Field, get, put};
use crate::uapi::*;
use host::{Errno, Host, try_push};
use vm::Vm;
use vm::ioeventfd::IoEventSpec;
use vm::irqchip::{Chip, ChipMode, MAX_ROUTES, Route, Target};

extern crate alloc;
use alloc::vec::Vec;

/// KVM_SET_GSI_ROUTING. Errors: EINVAL (no in-kernel irqchip; too many routes; an unknown type, flag, pin or
/// combination), EFAULT, ENOMEM.
pub fn set_gsi_routing<H: Host>(vm: &Vm<H>, arg: u64) -> Result<(), Errno> {
    let header: kvm_irq_routing = get(&vm.host, arg)?;
    let n = header.nr as usize;
    if vm.chip_mode() == ChipMode::None || n > MAX_ROUTES || header.flags != 0 {
        return Err(Errno::EINVAL);
    }
    let mut routes = Vec::new();
    routes.try_reserve_exact(n).map_err(|_| Errno::ENOMEM)?;
    let mut at = arg.wrapping_add(kvm_irq_routing::SIZE as u64);
    for _ in 0..n {
        try_push(&mut routes, route(&get(&vm.host, at)?)?)?;
        at = at.wrapping_add(kvm_irq_routing_entry::SIZE as u64);
    }
    vm.set_routing(&routes)
}

fn route(e: &kvm_irq_routing_entry) -> Result<Route, Errno> {
    let [a, b, c, ..] = e.u;
    let target = match e.type_ {
        KVM_IRQ_ROUTING_MSI if e.flags & !KVM_MSI_VALID_DEVID == 0 => {
            Target::Msi { address: u64::from(b) << 32 | u64::from(a), data: c }
        }
        KVM_IRQ_ROUTING_IRQCHIP if e.flags == 0 => {
            let chip = Chip::from_id(a).ok_or(Errno::EINVAL)?;
            Target::Pin { chip, pin: u8::try_from(b).map_err(|_| Errno::EINVAL)? }
        }
        KVM_IRQ_ROUTING_HV_SINT if e.flags == 0 => Target::HvSint { vp_index: a, sint: b },
        _ => return Err(Errno::EINVAL),
    };
    Ok(Route { gsi: e.gsi, target })
}

/// KVM_SIGNAL_MSI: number of vCPUs reached. Errors: EINVAL (no in-kernel irqchip, flags, bits of the address that
/// 32-bit APIC IDs leave reserved), EPERM (there is nobody: stock returns its -1 as it is).
pub fn signal_msi<H: Host>(vm: &Vm<H>, arg: u64) -> Result<i64, Errno> {
    let m: kvm_msi = get(&vm.host, arg)?;
    if vm.chip_mode() == ChipMode::None
        || m.flags & !KVM_MSI_VALID_DEVID != 0
        || vm.msi_format().x2apic_format && m.address_hi & 0xff != 0
    {
        return Err(Errno::EINVAL);
    }
    match vm.signal_msi(u64::from(m.address_hi) << 32 | u64::from(m.address_lo), m.data)? {
        reached if reached < 0 => Err(Errno::EPERM),
        reached => Ok(reached.into()),
    }
}

/// KVM_IRQ_LINE, and with `status` KVM_IRQ_LINE_STATUS. Errors: ENXIO (no in-kernel irqchip).
pub fn irq_line<H: Host>(vm: &Vm<H>, arg: u64, status: bool) -> Result<(), Errno> {
    let line: kvm_irq_level = get(&vm.host, arg)?;
    if vm.chip_mode() == ChipMode::None {
        return Err(Errno::ENXIO);
    }
    let result = vm.set_gsi(line.irq, line.level != 0, status);
    if status {
        put(&vm.host, arg, &kvm_irq_level { irq: result as u32, level: line.level })?;
    }
    Ok(())
}

/// KVM_IRQFD. Errors: EINVAL (unknown flags, no in-kernel irqchip; resampling without the IOAPIC in the kernel).
pub fn irqfd<H: Host>(vm: &Vm<H>, arg: u64) -> Result<Irqfd, Errno> {
    let i: kvm_irqfd = get(&vm.host, arg)?;
    let assign = i.flags & KVM_IRQFD_FLAG_DEASSIGN == 0;
    let resample = i.flags & KVM_IRQFD_FLAG_RESAMPLE != 0;
    if i.flags & !(KVM_IRQFD_FLAG_DEASSIGN | KVM_IRQFD_FLAG_RESAMPLE) != 0
        || assign && (vm.chip_mode() == ChipMode::None || resample && vm.chip_mode() != ChipMode::Kernel)
    {
        return Err(Errno::EINVAL);
    }
    let resample = (assign && resample).then_some(i.resamplefd as i32);
    Ok(Irqfd { fd: i.fd as i32, gsi: i.gsi, resample, assign })
}

/// KVM_IOEVENTFD. Errors: EINVAL (length, wrap-around, flags), EBADF, EEXIST, ENOENT, ENOMEM. One to take back is only
/// looked for: what could not have been bound is not there (ENOENT), whatever else is wrong with it.
pub fn ioeventfd<H: Host>(vm: &Vm<H>, arg: u64) -> Result<(), Errno> {
    let e: kvm_ioeventfd = get(&vm.host, arg)?;
    let has = |flag| e.flags & flag != 0;
    let assign = !has(KVM_IOEVENTFD_FLAG_DEASSIGN);
    let known = KVM_IOEVENTFD_FLAG_DATAMATCH | KVM_IOEVENTFD_FLAG_PIO | KVM_IOEVENTFD_FLAG_FAST_MMIO;
    let wildcard = !has(KVM_IOEVENTFD_FLAG_DATAMATCH);
    let sound = e.flags & !known == 0
        && matches!(e.len, 0 | 1 | 2 | 4 | 8)
        && e.addr.checked_add(e.len.into()).is_some()
        && (e.len != 0 || wildcard);
    if assign && !sound {
        return Err(Errno::EINVAL);
    }
    let spec = IoEventSpec {
        pio: has(KVM_IOEVENTFD_FLAG_PIO),
        addr: e.addr,
        len: e.len,
        datamatch: if wildcard { None } else { Some(e.datamatch) },
    };
    vm.ioeventfd(assign, spec, e.fd)
}

/// KVM_HYPERV_EVENTFD. Errors: EINVAL (flags, a connection's number of more than 24 bits, no eventfd), EBADF, EEXIST, ENOENT,
/// ENOMEM.
pub fn hyperv_eventfd<H: Host>(vm: &Vm<H>, e: &kvm_hyperv_eventfd) -> Result<(), Errno> {
    match e.flags {
        0 => vm.bind_connection(e.conn_id, e.fd),
        KVM_HYPERV_EVENTFD_DEASSIGN => vm.unbind_connection(e.conn_id),
        _ => Err(Errno::EINVAL),
    }
}
