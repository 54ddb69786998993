//! TSC frequencies and offsets.

use crate::msrs::{get, set};
use anyhow::Result;
use kvm_bindings::kvm_device_attr;
use std::os::fd::AsRawFd;
use tests::client::{Client, number};

const KVM_SET_TSC_KHZ: u64 = 0xaea2;
const KVM_GET_TSC_KHZ: u64 = 0xaea3;
const KVM_GET_DEVICE_ATTR: u64 = 0x4018_aee2;
const TSC: u32 = 0x10;
const TSC_ADJUST: u32 = 0x3b;

/// KVM_SET_TSC_KHZ and KVM_GET_TSC_KHZ of the VM and of vCPUs, as parts of the host's frequency.
pub fn frequencies() -> Result<()> {
    let host = {
        let client = Client::new(8 << 20, false)?;
        client.split_irqchip()?;
        client.vcpu(0)?.get_tsc_khz()?
    };
    let name = |khz: i64| match khz {
        ..=0 => khz.to_string(),
        0xffff_ffff => "most".to_owned(),
        khz => format!("{:.6}", khz as f64 / f64::from(host)),
    };
    let parts = |x: f64| (f64::from(host) * x) as u64;
    for wanted in
        [0, 1, parts(0.5), parts(0.9998), u64::from(host), parts(1.0002), parts(1.01), parts(2.0), 0xffff_ffff]
    {
        let client = Client::new(8 << 20, false)?;
        client.split_irqchip()?;
        let before = number(&client.vm, KVM_GET_TSC_KHZ, 0);
        let of_vm = number(&client.vm, KVM_SET_TSC_KHZ, wanted);
        let then = number(&client.vm, KVM_GET_TSC_KHZ, 0);
        let vcpu = client.vcpu(0)?;
        let inherited = number(&vcpu, KVM_GET_TSC_KHZ, 0);
        let late = number(&client.vm, KVM_SET_TSC_KHZ, wanted);
        println!(
            "tsc of vm {}: {} {of_vm} {} {} {late}",
            name(wanted as i64),
            name(before),
            name(then),
            name(inherited)
        );

        let client = Client::new(8 << 20, false)?;
        client.split_irqchip()?;
        let vcpu = client.vcpu(0)?;
        let set = number(&vcpu, KVM_SET_TSC_KHZ, wanted);
        println!("tsc of vcpu {}: {set} {}", name(wanted as i64), name(number(&vcpu, KVM_GET_TSC_KHZ, 0)));
    }
    Ok(())
}

fn offset(vcpu: &impl AsRawFd) -> i64 {
    let mut offset = 0i64;
    let attr = kvm_device_attr { group: 0, attr: 0, addr: &raw mut offset as u64, flags: 0 };
    match number(vcpu, KVM_GET_DEVICE_ATTR, &raw const attr as u64) {
        0 => offset,
        error => error,
    }
}

/// Which vCPUs' TSCs run in step after which writes, and what TSC_ADJUST makes of it.
pub fn steps() -> Result<()> {
    let client = Client::new(8 << 20, false)?;
    client.split_irqchip()?;
    let vcpus = [client.vcpu(0)?, client.vcpu(1)?, client.vcpu(2)?];
    let show = |what: &str| -> Result<()> {
        let offsets = vcpus.each_ref().map(offset);
        let same = offsets.map(|o| o == offsets[0]);
        let adjust = vcpus.each_ref().map(|v| get(v, TSC_ADJUST).ok().flatten());
        println!("tsc {what}: in step {same:?}, adjust {adjust:x?}");
        Ok(())
    };
    let khz = u64::from(vcpus[0].get_tsc_khz()?);
    show("new")?;
    for (what, vcpu, value) in [
        ("first write to 0", 0, 1 << 50),
        ("same to 1", 1, 1 << 50),
        ("half a second more to 2", 2, (1 << 50) + khz * 500),
        ("far away to 1", 1, 1 << 40),
        ("zero to 1", 1, 0),
        ("zero to 0", 0, 0),
        ("zero to 2", 2, 0),
        ("three seconds to 2", 2, khz * 3000),
    ] {
        set(&vcpus[vcpu], TSC, value)?;
        show(what)?;
    }
    for (what, vcpu, value) in [("adjust of 0", 0, 1u64 << 33), ("adjust of 1", 1, 5)] {
        let before = offset(&vcpus[vcpu]);
        let done = set(&vcpus[vcpu], TSC_ADJUST, value)?;
        println!("tsc {what}: {done}, offset moved by {}", offset(&vcpus[vcpu]).wrapping_sub(before));
    }
    show("adjusted")
}
