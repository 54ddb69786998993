//! What user space does to the interrupt controllers meanwhile: messages, lines, routes, eventfds.

use crate::deeds::{DOORBELL_PORT, DOORBELLS};
use crate::storm::documented;
use anyhow::Result;
use kvm_bindings::{KvmIrqRouting, kvm_irq_routing_entry, kvm_msi};
use kvm_ioctls::IoEventAddress;
use libc::{EBUSY, EEXIST, EINVAL, ENOENT, ENOSPC, EPERM};
use tests::client::Client;
use tests::random::Random;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// GSIs that are played with, and a few that do not exist.
const GSIS: u64 = 28;

/// A message with any address and data, mostly one that arrives.
pub fn message(client: &Client, random: &mut Random) -> Result<()> {
    let mut msi = kvm_msi { address_lo: random.any() as u32, data: random.any() as u32, ..Default::default() };
    if random.below(4) != 0 {
        msi.address_lo = 0xfee0_0000 | random.of(&[0, 1, 2, 3, 0xff]) << 12 | msi.address_lo & 0xc;
        // Fixed, lowest priority or NMI: all would wait for their start most of the time, or be elsewhere.
        msi.data = msi.data & !0x700 | random.of(&[0, 0, 0, 0x100, 0x400]);
    }
    if random.below(16) == 0 {
        (msi.address_hi, msi.flags) = (random.any() as u32, random.below(3) as u32);
    }
    // EPERM: stock returns the -1 that means nobody.
    documented("KVM_SIGNAL_MSI", client.vm.signal_msi(msi), &[EINVAL, EPERM])?;
    Ok(())
}

/// A line goes up or down.
pub fn line(client: &Client, random: &mut Random) -> Result<()> {
    let gsi = random.below(GSIS) as u32;
    documented("KVM_IRQ_LINE", client.vm.set_irq_line(gsi, random.below(2) == 0), &[])?;
    Ok(())
}

/// Other routes, of any kind; most of them are refused as a whole.
pub fn routes(client: &Client, random: &mut Random) -> Result<()> {
    let mut entries = Vec::new();
    let sane = random.below(4) != 0;
    for _ in 0..random.below(40) {
        let mut entry = kvm_irq_routing_entry { gsi: random.below(GSIS) as u32, ..Default::default() };
        entry.type_ = if sane { 1 + random.below(2) as u32 } else { random.below(8) as u32 };
        let (chip, pin) = match random.below(3) {
            0 => (2, random.below(24)),
            n => (n as u32 - 1, random.below(8)),
        };
        if entry.type_ == 1 {
            (entry.u.irqchip.irqchip, entry.u.irqchip.pin) = (chip, pin as u32);
            if !sane {
                (entry.u.irqchip.irqchip, entry.u.irqchip.pin) = (random.below(5) as u32, random.below(300) as u32);
            }
        } else {
            entry.u.msi.address_lo = 0xfee0_0000 | random.of(&[0, 1, 2, 3, 0xff]) << 12;
            entry.u.msi.data = 0x30 + random.below(0xd0) as u32;
            if !sane {
                (entry.u.msi.address_lo, entry.u.msi.data) = (random.any() as u32, random.any() as u32);
                (entry.u.msi.address_hi, entry.flags) = (random.any() as u32, random.below(3) as u32);
            }
        }
        entries.push(entry);
    }
    let routes = KvmIrqRouting::from_entries(&entries).map_err(|e| anyhow::anyhow!("{e:?}"))?;
    documented("KVM_SET_GSI_ROUTING", client.vm.set_gsi_routing(&routes), &[EINVAL])?;
    Ok(())
}

/// Eventfds that raise interrupts.
#[derive(Default)]
pub struct Irqfds(Vec<(EventFd, u32, Option<EventFd>)>);

impl Irqfds {
    /// One more, one less (taken back, or just closed), or signals.
    pub fn step(&mut self, client: &Client, random: &mut Random) -> Result<()> {
        let some = random.below(self.0.len().max(1) as u64) as usize;
        match random.below(12) {
            0 | 1 if self.0.len() < 40 => {
                let event = eventfd()?;
                let gsi = random.below(GSIS) as u32;
                let told = if random.below(2) == 0 { Some(eventfd()?) } else { None };
                let made = match &told {
                    Some(told) => client.vm.register_irqfd_with_resample(&event, told, gsi),
                    None => client.vm.register_irqfd(&event, gsi),
                };
                documented("KVM_IRQFD", made, &[EINVAL, EBUSY])?;
                if random.below(4) == 0 {
                    // The same eventfd again.
                    let again = client.vm.register_irqfd(&event, random.below(GSIS) as u32);
                    documented("KVM_IRQFD again", again, &[EINVAL, EBUSY])?;
                }
                self.0.push((event, gsi, told));
            }
            2 if !self.0.is_empty() => {
                let (event, gsi, told) = self.0.swap_remove(some);
                event.write(1)?;
                documented("KVM_IRQFD off", client.vm.unregister_irqfd(&event, gsi), &[EINVAL])?;
                event.write(1)?;
                drop(told);
            }
            // Closed: the kernel takes it back by itself.
            3 if !self.0.is_empty() => drop(self.0.swap_remove(some)),
            4 => routes(client, random)?,
            5 => line(client, random)?,
            _ => {
                for (event, _, told) in &self.0 {
                    event.write(1)?;
                    if let Some(told) = told {
                        let _ = told.read();
                    }
                }
            }
        }
        Ok(())
    }
}

/// Eventfds that guests' writes signal.
#[derive(Default)]
pub struct Doorbells {
    assigned: Vec<(EventFd, u64, bool, Option<u8>)>,
    /// How often guests rang.
    pub rung: u64,
}

impl Doorbells {
    /// One more, one less, or a look at those that there are.
    pub fn step(&mut self, client: &Client, random: &mut Random) -> Result<()> {
        let some = random.below(self.assigned.len().max(1) as u64) as usize;
        match random.below(4) {
            0 | 1 if self.assigned.len() < 6 => {
                let (event, n, mmio) = (eventfd()?, random.below(4), random.below(2) == 0);
                let data = (random.below(2) == 0).then_some(n as u8);
                documented("KVM_IOEVENTFD", bind(client, &event, n, mmio, data, true), &[EEXIST, ENOSPC])?;
                self.assigned.push((event, n, mmio, data));
            }
            2 if !self.assigned.is_empty() => {
                let (event, n, mmio, data) = self.assigned.swap_remove(some);
                // It may not have been taken.
                documented("KVM_IOEVENTFD off", bind(client, &event, n, mmio, data, false), &[ENOENT])?;
            }
            _ => {
                for (event, ..) in &self.assigned {
                    self.rung += event.read().unwrap_or(0);
                }
            }
        }
        Ok(())
    }
}

fn bind(
    client: &Client,
    event: &EventFd,
    n: u64,
    mmio: bool,
    data: Option<u8>,
    on: bool,
) -> Result<(), kvm_ioctls::Error> {
    let vm = &client.vm;
    let at =
        if mmio { IoEventAddress::Mmio(DOORBELLS + 8 * n) } else { IoEventAddress::Pio(u64::from(DOORBELL_PORT) + n) };
    match (data, mmio, on) {
        (None, _, true) => vm.register_ioevent(event, &at, kvm_ioctls::NoDatamatch),
        (None, _, false) => vm.unregister_ioevent(event, &at, kvm_ioctls::NoDatamatch),
        (Some(d), true, true) => vm.register_ioevent(event, &at, u32::from(d)),
        (Some(d), true, false) => vm.unregister_ioevent(event, &at, u32::from(d)),
        (Some(_), false, true) => vm.register_ioevent(event, &at, kvm_ioctls::NoDatamatch),
        (Some(_), false, false) => vm.unregister_ioevent(event, &at, kvm_ioctls::NoDatamatch),
    }
}

fn eventfd() -> Result<EventFd> {
    Ok(EventFd::new(EFD_NONBLOCK)?)
}
