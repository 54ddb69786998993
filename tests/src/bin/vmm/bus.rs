//! What the guest's ports and addresses lead to: the UART, the keyboard controller's reset, ACPI, the I/O APIC.

use crate::{acpi, ioapic, ioapic::IoApic};
use anyhow::{Result, anyhow};
use kvm_bindings::KvmIrqRouting;
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};
use std::{
    io::{Stdout, Write},
    sync::Arc,
};
use vm_superio::{
    Serial, Trigger,
    serial::{NoEvents, SerialState},
};
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

/// What is done when an awaited line has come.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Keys for the guest's shell.
    Type(&'static str),
    /// The machine is written down.
    Save,
    /// What has changed since is, and the guest is left.
    SaveRest,
    /// The machine is left as it is: what is measured is over.
    Leave,
    /// That was the last line.
    Nothing,
}

/// Lines that are awaited, and what is done then.
pub struct Script(std::vec::IntoIter<(String, Step)>);

impl Script {
    /// In that order.
    pub fn new(steps: Vec<(String, Step)>) -> Self {
        Self(steps.into_iter())
    }
}

/// The devices of user space as they are saved.
#[derive(Serialize, Deserialize)]
pub struct DevicesState {
    #[serde(with = "Uart")]
    serial: SerialState,
    ioapic: Option<IoApic>,
}

/// serde's view of `vm-superio`'s type.
#[derive(Serialize, Deserialize)]
#[serde(remote = "SerialState")]
struct Uart {
    baud_divisor_low: u8,
    baud_divisor_high: u8,
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    in_buffer: Vec<u8>,
}

impl DevicesState {
    /// After a reset; with an I/O APIC, or KVM has one.
    pub fn reset(split: bool) -> Self {
        Self { serial: SerialState::default(), ioapic: split.then(IoApic::new) }
    }

    /// Whether the I/O APIC is here.
    pub fn split(&self) -> bool {
        self.ioapic.is_some()
    }
}

/// The devices, and what is to be done with the guest.
pub struct Bus {
    vm: Arc<VmFd>,
    serial: Serial<Line, NoEvents, Console>,
    ioapic: Option<IoApic>,
    /// What is done when the awaited line is there.
    step: Step,
    script: Script,
}

/// What an access to a device means for the machine.
#[derive(PartialEq, Eq)]
pub enum Power {
    /// It stays on.
    On,
    /// The guest is done.
    Off,
    /// It is to be paused and saved; and left, if `leave`.
    Save { leave: bool },
}

impl Bus {
    /// Devices of `vm`, as after a reset or as they were saved; the UART raises `line`.
    pub fn new(vm: Arc<VmFd>, line: EventFd, state: DevicesState, script: Script) -> Result<Self> {
        let console = Console { output: std::io::stdout(), line: Vec::new(), awaited: Vec::new(), seen: true };
        let serial = Serial::from_state(&state.serial, Line(line), NoEvents, console);
        let serial = serial.map_err(|error| anyhow!("the UART: {error:?}"))?;
        let mut bus = Self { vm, serial, ioapic: state.ioapic, step: Step::Nothing, script };
        bus.await_next();
        bus.set_routes()?;
        Ok(bus)
    }

    /// What [`Bus::new`] takes.
    pub fn state(&self) -> DevicesState {
        DevicesState { serial: self.serial.state(), ioapic: self.ioapic.clone() }
    }

    /// Whether everything was awaited and came.
    pub fn finished(&self) -> bool {
        self.script.0.len() == 0 && self.serial.writer().seen
    }

    /// The next line of the script; false at its end.
    fn await_next(&mut self) -> bool {
        let Some((line, step)) = self.script.0.next() else { return false };
        let console = self.serial.writer_mut();
        (console.awaited, console.seen) = (line.into_bytes(), false);
        self.step = step;
        true
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
                return self.step();
            }
            _ if port == crate::DOORBELL_PORT => anyhow::bail!("the doorbell came to user space"),
            _ => {}
        }
        Ok(Power::On)
    }

    /// Does what the awaited line, if it is there, is followed by.
    fn step(&mut self) -> Result<Power> {
        if !self.serial.writer().seen || self.serial.fifo_capacity() < 64 {
            return Ok(Power::On);
        }
        let step = self.step;
        if !self.await_next() && step != Step::Leave {
            return Ok(Power::On);
        }
        match step {
            Step::Type(keys) => {
                self.serial.enqueue_raw_bytes(keys.as_bytes()).map_err(|error| anyhow!("typing: {error:?}"))?;
                Ok(Power::On)
            }
            Step::Save => Ok(Power::Save { leave: false }),
            Step::SaveRest => Ok(Power::Save { leave: true }),
            Step::Leave => {
                crate::mark();
                Ok(Power::Off)
            }
            Step::Nothing => Ok(Power::On),
        }
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
        anyhow::ensure!(address != crate::DOORBELL_ADDRESS, "the doorbell came to user space");
        let (Some(ioapic), Some(offset), &[a, b, c, d]) = (&mut self.ioapic, offset(address), data) else {
            return Ok(());
        };
        if ioapic.write(offset, u32::from_le_bytes([a, b, c, d])) {
            self.set_routes()?;
        }
        Ok(())
    }

    /// The pins of an I/O APIC of our own, as KVM's routes.
    fn set_routes(&self) -> Result<()> {
        let Some(ioapic) = &self.ioapic else { return Ok(()) };
        let routes = KvmIrqRouting::from_entries(&ioapic.routes()).map_err(|error| anyhow!("{error:?}"))?;
        Ok(self.vm.set_gsi_routing(&routes)?)
    }
}

fn offset(address: u64) -> Option<u64> {
    address.checked_sub(ioapic::BASE).filter(|offset| *offset < ioapic::SIZE)
}
