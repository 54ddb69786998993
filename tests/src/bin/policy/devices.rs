//! KVM_CREATE_DEVICE and what the file of the VFIO device takes, without a device of the host's.

use anyhow::Result;
use kvm_bindings::{
    KVM_CREATE_DEVICE_TEST, KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_ADD as ADD, KVM_DEV_VFIO_FILE_DEL as DEL,
    kvm_create_device, kvm_device_attr,
};
use std::fs::File;
use std::os::fd::AsRawFd;
use tests::client::Client;

/// What a call that returns nothing gives: 0 or the errno.
fn errno<T>(result: Result<T, kvm_ioctls::Error>) -> i32 {
    result.err().map_or(0, |e| e.errno())
}

pub fn all() -> Result<()> {
    let client = Client::new(8 << 20, false)?;
    for type_ in 0..16 {
        let mut wanted = kvm_create_device { type_, fd: 0, flags: KVM_CREATE_DEVICE_TEST };
        println!("devices, type {type_}: {}", errno(client.vm.create_device(&mut wanted)));
    }
    let mut wanted = kvm_create_device { type_: 4, fd: 0, flags: 0 };
    let device = client.vm.create_device(&mut wanted)?;
    println!("devices, a second one: {}", errno(client.vm.create_device(&mut wanted)));
    let other = File::open("/dev/null")?;
    let descriptors = [-1, 9999, other.as_raw_fd()];
    for (group, attr) in [(0, 1), (1, 0), (1, ADD), (1, DEL), (1, 3), (1, 4), (2, 1)] {
        assert_eq!(KVM_DEV_VFIO_FILE, 1);
        for fd in &descriptors {
            let a = kvm_device_attr { flags: 0, group, attr: attr.into(), addr: (&raw const *fd) as u64 };
            let name = if *fd == other.as_raw_fd() { "another file".to_owned() } else { fd.to_string() };
            println!(
                "devices, group {group} attribute {attr} {name}: has {} set {}",
                errno(device.has_device_attr(&a)),
                errno(device.set_device_attr(&a))
            );
        }
        let nowhere = kvm_device_attr { flags: 0, group, attr: attr.into(), addr: 8 };
        println!("devices, group {group} attribute {attr} at 8: {}", errno(device.set_device_attr(&nowhere)));
    }
    drop(device);
    println!("devices, another one after it: {}", errno(client.vm.create_device(&mut wanted)));
    Ok(())
}
