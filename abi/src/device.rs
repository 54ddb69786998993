//! Devices of a VM (KVM_CREATE_DEVICE; KVM API document 4.79, 4.80): the VFIO device alone.

use crate::codec::{get, put};
use crate::uapi::ioctl::{KVM_GET_DEVICE_ATTR, KVM_HAS_DEVICE_ATTR, KVM_SET_DEVICE_ATTR};
use crate::uapi::{
    KVM_CREATE_DEVICE_TEST, KVM_DEV_TYPE_VFIO, KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_ADD, KVM_DEV_VFIO_FILE_DEL,
    kvm_create_device, kvm_device_attr,
};
use core::mem::offset_of;
use host::{Errno, Host};
use vm::Vm;

/// What the caller has to do after [`device_ioctl`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceReply {
    /// Return 0.
    Done,
    /// The VM uses the VFIO group or device with this descriptor.
    Add(i32),
    /// It does so no more.
    Del(i32),
}

/// KVM_CREATE_DEVICE. True: a device is to be made, not only asked for. Errors: ENODEV (no such type), EFAULT. Other
/// flags are not looked at, as on stock.
pub(crate) fn create<H: Host>(host: &H, arg: u64) -> Result<bool, Errno> {
    let d: kvm_create_device = get(host, arg)?;
    if d.type_ != KVM_DEV_TYPE_VFIO {
        return Err(Errno::ENODEV);
    }
    Ok(d.flags & KVM_CREATE_DEVICE_TEST == 0)
}

/// Writes the descriptor of a new device to where KVM_CREATE_DEVICE of `arg` wants it. Errors: EFAULT.
pub fn tell_device_fd<H: Host>(host: &H, arg: u64, fd: i32) -> Result<(), Errno> {
    put(host, arg.wrapping_add(offset_of!(kvm_create_device, fd) as u64), &fd)
}

/// One ioctl on the file of a VM's VFIO device. Errors: EIO (the VM is dead), ENOTTY (no such ioctl), EPERM (nothing can be
/// read), ENXIO (no such attribute), EFAULT.
pub fn device_ioctl<H: Host>(vm: &Vm<H>, cmd: u32, arg: u64) -> Result<DeviceReply, Errno> {
    vm.check_alive()?;
    let host = &vm.host;
    match cmd {
        KVM_SET_DEVICE_ATTR | KVM_HAS_DEVICE_ATTR => {}
        KVM_GET_DEVICE_ATTR => return Err(Errno::EPERM),
        _ => return Err(Errno::ENOTTY),
    }
    let a: kvm_device_attr = get(host, arg)?;
    let adds = match (a.group, a.attr) {
        (KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_ADD) => true,
        (KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_DEL) => false,
        _ => return Err(Errno::ENXIO),
    };
    if cmd == KVM_HAS_DEVICE_ATTR {
        return Ok(DeviceReply::Done);
    }
    let fd: i32 = get(host, a.addr)?;
    Ok(if adds { DeviceReply::Add(fd) } else { DeviceReply::Del(fd) })
}
