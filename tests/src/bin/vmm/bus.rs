//! What the guest's ports and addresses lead to: the UART, the keyboard controller's reset, ACPI, the I/O APIC.

use crate::{acpi, ioapic, ioapic::IoApic};
use anyhow::{Result, anyhow};
use kvm_bindings::KvmIrqRouting;
use kvm_ioctls::VmFd;
use std::{
    io::{Stdout, Write},
    sync::Arc,
};
use vm_superio::{Serial, Trigger, serial::NoEvents};
use vmm_sys_util::eventfd::EventFd;

const COM1: std::ops::RangeInclusive<u16> = 0x3f8..=0x3ff;
const KEYBOARD: u16 = 0x64;
const RESET: u8 = 0xfe;

/// The UART's interrupt line: an eventfd that is an irqfd.
pub struct Line(pub EventFd);

impl Trigger for Line {
    type E = std::io::Error;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.write(1)
    }
}

/// Standard output, remembering the line that is being printed.
struct Console {
    output: Stdout,
    line: Vec<u8>,
    /// What is waited for, and whether it came.
    awaited: Vec<u8>,
    seen: bool,
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        for byte in bytes {
            self.line.push(*byte);
            // At the start of a line: what the guest says, not the echo of what is typed.
            self.seen |= self.line.starts_with(&self.awaited);
            if *byte == b'\n' {
                self.line.clear();
            }
        }
        self.output.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.output.flush()
    }
}

/// The devices, and what is to be typed.
pub struct Bus {
    vm: Arc<VmFd>,
    serial: Serial<Line, NoEvents, Console>,
    ioapic: Option<IoApic>,
    typed: std::vec::IntoIter<(&'static str, String)>,
    last: bool,
}

/// What an access to a device means for the machine.
#[derive(PartialEq, Eq)]
pub enum Power {
    /// It stays on.
    On,
    /// The guest is done.
    Off,
}

impl Bus {
    /// Devices of `vm`; the UART raises `line`.
    pub fn new(vm: Arc<VmFd>, line: EventFd, split: bool, typed: Vec<(&'static str, String)>) -> Self {
        let console = Console {
            output: std::io::stdout(),
            line: Vec::new(),
            // The shell's first word.
            awaited: b"This is a Linux guest".to_vec(),
            seen: false,
        };
        let serial = Serial::new(Line(line), console);
        Self { vm, serial, ioapic: split.then(IoApic::new), typed: typed.into_iter(), last: false }
    }

    /// Whether everything was typed and answered.
    pub fn finished(&self) -> bool {
        self.last && self.serial.writer().seen
    }

    /// IN.
    pub fn port_read(&mut self, port: u16, data: &mut [u8]) {
        data.fill(if COM1.contains(&port) || (acpi::PM1_EVENT..acpi::PM1_EVENT + 8).contains(&port) { 0 } else { !0 });
        if let ([byte], true) = (&mut *data, COM1.contains(&port)) {
            *byte = self.serial.read((port - COM1.start()) as u8);
        }
        // The input buffer is empty: commands can be given.
        if port == KEYBOARD {
            data.fill(0);
        }
    }

    /// OUT.
    pub fn port_write(&mut self, port: u16, data: &[u8]) -> Result<Power> {
        match *data {
            [RESET] if port == KEYBOARD => return Ok(Power::Off),
            [low, high] if port == acpi::PM1_CONTROL && u16::from_le_bytes([low, high]) & acpi::SLP_EN != 0 => {
                return Ok(Power::Off);
            }
            [byte] if COM1.contains(&port) => {
                let write = self.serial.write((port - COM1.start()) as u8, byte);
                write.map_err(|error| anyhow!("the UART: {error:?}"))?;
                self.type_next()?;
            }
            _ if port == crate::DOORBELL_PORT => anyhow::bail!("the doorbell came to user space"),
            _ => {}
        }
        Ok(Power::On)
    }

    /// Types the next line once the answer to the last one is there.
    fn type_next(&mut self) -> Result<()> {
        if !self.serial.writer().seen || self.serial.fifo_capacity() < 64 {
            return Ok(());
        }
        let Some((keys, answer)) = self.typed.next() else { return Ok(()) };
        self.last = self.typed.len() == 0;
        let console = self.serial.writer_mut();
        (console.awaited, console.seen) = (answer.into_bytes(), false);
        self.serial.enqueue_raw_bytes(keys.as_bytes()).map_err(|error| anyhow!("typing: {error:?}"))?;
        Ok(())
    }

    /// A load from an address without memory.
    pub fn memory_read(&mut self, address: u64, data: &mut [u8]) {
        data.fill(!0);
        if let (Some(ioapic), Some(offset), 4) = (&self.ioapic, offset(address), data.len()) {
            data.copy_from_slice(&ioapic.read(offset).to_le_bytes());
        }
    }

    /// A store to one.
    pub fn memory_write(&mut self, address: u64, data: &[u8]) -> Result<()> {
        let (Some(ioapic), Some(offset), &[a, b, c, d]) = (&mut self.ioapic, offset(address), data) else {
            return Ok(());
        };
        if ioapic.write(offset, u32::from_le_bytes([a, b, c, d])) {
            let routes = KvmIrqRouting::from_entries(&ioapic.routes()).map_err(|error| anyhow!("{error:?}"))?;
            self.vm.set_gsi_routing(&routes)?;
        }
        Ok(())
    }
}

fn offset(address: u64) -> Option<u64> {
    address.checked_sub(ioapic::BASE).filter(|offset| *offset < ioapic::SIZE)
}
