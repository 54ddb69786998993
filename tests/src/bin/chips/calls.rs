//! The ioctls: in which order, with which errors, and the state in the beginning.

use crate::hand::Hand;
use anyhow::Result;
use kvm_bindings::{kvm_irqchip, kvm_msi, kvm_pit_config, kvm_pit_state2};
use tests::client::Client;

fn errno<T>(result: Result<T, kvm_ioctls::Error>) -> i32 {
    result.err().map_or(0, |e| e.errno())
}

/// In every order.
pub fn creation() -> Result<()> {
    let client = Client::new(8 << 20, false)?;
    let vm = &client.vm;
    println!("pit without irqchip: {}", errno(vm.create_pit2(kvm_pit_config::default())));
    println!("get irqchip: {}", errno(vm.get_irqchip(&mut kvm_irqchip::default())));
    println!("set irqchip: {}", errno(vm.set_irqchip(&kvm_irqchip::default())));
    println!("get pit: {}", errno(vm.get_pit2()));
    println!("set pit: {}", errno(vm.set_pit2(&kvm_pit_state2::default())));
    println!("line: {}", errno(vm.set_irq_line(4, true)));
    println!("irqchip: {}", errno(vm.create_irq_chip()));
    println!("again: {}", errno(vm.create_irq_chip()));
    println!("split: {}", client.split_irqchip().is_err());
    println!("get pit: {}", errno(vm.get_pit2()));
    println!("pit: {}", errno(vm.create_pit2(kvm_pit_config { flags: !0, ..Default::default() })));
    println!("again: {}", errno(vm.create_pit2(kvm_pit_config::default())));
    for id in [3, u32::MAX] {
        println!("chip {id}: {}", errno(vm.get_irqchip(&mut kvm_irqchip { chip_id: id, ..Default::default() })));
        println!("chip {id}: {}", errno(vm.set_irqchip(&kvm_irqchip { chip_id: id, ..Default::default() })));
    }
    for irq in [0, 8, 23, 24, 4095, u32::MAX] {
        println!("line {irq}: {} {}", errno(vm.set_irq_line(irq, true)), errno(vm.set_irq_line(irq, false)));
    }
    let late = Client::new(8 << 20, false)?;
    let _vcpu = late.vm.create_vcpu(0)?;
    println!("late: {}", errno(late.vm.create_irq_chip()));
    Ok(())
}

/// The state at power-on.
pub fn states() -> Result<()> {
    let hand = Hand::new(true)?;
    for id in 0..3 {
        println!("chip {id}: {:02x?}", hand.state(id)?);
    }
    println!("routes by default:");
    for irq in 0..24 {
        println!("line {irq}: {} {}", hand.line(irq, 1)?, hand.line(irq, 0)?);
    }
    Ok(())
}

/// KVM_SIGNAL_MSI: how many took it.
pub fn messages() -> Result<()> {
    let client = Client::new(8 << 20, false)?;
    client.split_irqchip()?;
    let signal = |client: &Client, low: u32, data: u32| -> i32 {
        let msi = kvm_msi { address_lo: low, data, ..Default::default() };
        client.vm.signal_msi(msi).unwrap_or_else(|e| -e.errno())
    };
    let all = |client: &Client, what: &str| {
        // Physical, broadcast, logical (flat, every bit; and one bit of each), lowest priority of them, with the hint.
        for low in [0, 0x1000, 0x2000, 0x7000, 0xf_f000, 0xf_f004, 0x1004, 0x2004, 0x8004, 0x0004, 0xf_f00c, 0x1008] {
            let of = [0x41, 0x141, 0x200, 0x300, 0x400, 0x500, 0x8500, 0x8041]
                .map(|data| signal(client, 0xfee0_0000 | low, data));
            println!("msi: {what}: {low:x} {of:?}");
        }
    };
    all(&client, "before any vcpu");
    let first = client.vcpu(0)?;
    // Stock reaches a new vCPU by a message only once something else has changed.
    first.set_lapic(&first.get_lapic()?)?;
    all(&client, "one vcpu");
    let second = client.vcpu(1)?;
    second.set_lapic(&second.get_lapic()?)?;
    all(&client, "two");
    // Software-enabled, logical ID 2.
    let mut apic = first.get_lapic()?;
    (apic.regs[0xf0], apic.regs[0xf1], apic.regs[0xd3]) = (-1, 1, 2);
    first.set_lapic(&apic)?;
    all(&client, "one enabled");
    println!("msi: illegal vector: {}", signal(&client, 0xfee0_0000, 0xf));
    Ok(())
}
