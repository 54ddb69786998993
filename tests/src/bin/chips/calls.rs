//! The ioctls: in which order, with which errors, and the state in the beginning.

use crate::hand::Hand;
use anyhow::Result;
use kvm_bindings::{kvm_irqchip, kvm_pit_config, kvm_pit_state2};
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
