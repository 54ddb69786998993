//! The I/O APIC of a VMM that keeps it in user space (82093AA): each entry that is not masked is a GSI route to an MSI.

use kvm_bindings::{KVM_IRQ_ROUTING_MSI, kvm_irq_routing_entry};
use serde::{Deserialize, Serialize};

/// Where it is.
pub const BASE: u64 = 0xfec0_0000;
/// Bytes that it answers to.
pub const SIZE: u64 = 0x20;
const PINS: usize = 24;
const MASKED: u64 = 1 << 16;
const LEVEL: u64 = 1 << 15;

/// Its registers.
#[derive(Clone, Serialize, Deserialize)]
pub struct IoApic {
    select: u8,
    id: u32,
    entries: [u64; PINS],
}

impl IoApic {
    /// As after a reset: all masked.
    pub fn new() -> Self {
        Self { select: 0, id: 0, entries: [MASKED; PINS] }
    }

    /// A 32-bit read at `offset`.
    pub fn read(&self, offset: u64) -> u32 {
        match (offset, self.select) {
            (0, select) => select.into(),
            (0x10, 0 | 2) => self.id,
            // 24 entries, version 0x11.
            (0x10, 1) => (PINS as u32 - 1) << 16 | 0x11,
            (0x10, select) => self.entry(select).map_or(0, |(pin, shift)| (self.entries[pin] >> shift) as u32),
            _ => 0,
        }
    }

    /// A 32-bit write; true if the routes are others now.
    pub fn write(&mut self, offset: u64, value: u32) -> bool {
        match (offset, self.select) {
            (0, _) => self.select = value as u8,
            (0x10, 0) => self.id = value & 0x0f00_0000,
            (0x10, select) => {
                let Some((pin, shift)) = self.entry(select) else { return false };
                let entry = &mut self.entries[pin];
                let old = *entry;
                *entry = *entry & !(0xffff_ffff << shift) | u64::from(value) << shift;
                // Delivery status and remote IRR cannot be written.
                *entry &= !(1 << 12 | 1 << 14);
                return *entry != old;
            }
            _ => {}
        }
        false
    }

    /// The entry that a register is half of, and which half.
    fn entry(&self, select: u8) -> Option<(usize, u32)> {
        let index = usize::from(select.checked_sub(0x10)?);
        (index / 2 < PINS).then_some((index / 2, 32 * (index as u32 % 2)))
    }

    /// Every pin that is not masked, as KVM_SET_GSI_ROUTING takes it: the GSI is the pin.
    pub fn routes(&self) -> Vec<kvm_irq_routing_entry> {
        let open = self.entries.iter().enumerate().filter(|(_, entry)| **entry & MASKED == 0);
        let route = |(pin, entry): (usize, &u64)| {
            let mut route = kvm_irq_routing_entry { gsi: pin as u32, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
            // Destination and its mode; vector, delivery mode, trigger mode and level.
            let address = 0xfee0_0000 | ((entry >> 56 << 12) as u32) | ((entry >> 11 & 1) as u32 * 4);
            let level = if entry & LEVEL == 0 { 0 } else { 3 << 14 };
            route.u.msi.address_lo = address;
            route.u.msi.data = (entry & 0x7ff) as u32 | level;
            route
        };
        open.map(route).collect()
    }
}
