//! Boots Linux the way Firecracker and Cloud Hypervisor do: without firmware, on the crates that they are made of.
//!
//! `vmm boot IMAGE INITRD bzimage|pvh irqchip|split CPUS` starts the guest with a serial console, types a few commands
//! into its shell and looks at the answers; what the guest prints goes to standard output.
//! With one vCPU and `irqchip` there are no ACPI tables, and so the PIC and the PIT are what the guest has.
//!
//! `vmm save DIR IMAGE ...` pauses the guest while it counts, writes the whole machine into DIR and goes on; pauses again,
//! writes what has changed since, and leaves. `vmm restore DIR` goes on from there, in a process of its own.
//!
//! `vmm measure IMAGE ...` boots the guest up to its first program, and marks the begin and the end for an emulator that
//! counts instructions.

mod acpi;
mod boot;
mod bus;
mod ioapic;
mod machine;
mod snapshot;
mod vcpu;

use anyhow::{Context, Result, ensure};
use bus::{Script, Step};
use machine::{End, Machine};
use std::path::{Path, PathBuf};

/// How the guest's kernel is handed over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Linux's 64-bit boot protocol.
    BzImage,
    /// PVH, from an ELF file.
    Pvh,
}

/// A guest to be booted.
pub struct Config {
    /// The kernel's file.
    pub image: String,
    /// The initial file system's.
    pub initrd: String,
    /// How the kernel is started.
    pub protocol: Protocol,
    /// The I/O APIC is in user space.
    pub split: bool,
    /// How many vCPUs.
    pub cpus: u8,
    /// Where the machine is saved, if it is.
    pub save: Option<PathBuf>,
}

impl Config {
    fn parse(words: &[&str], save: Option<PathBuf>) -> Result<Self> {
        let [image, initrd, protocol, irqchip, cpus] = *words else {
            anyhow::bail!("IMAGE INITRD bzimage|pvh irqchip|split CPUS")
        };
        let protocol = match protocol {
            "bzimage" => Protocol::BzImage,
            "pvh" => Protocol::Pvh,
            other => anyhow::bail!("{other}: no such protocol"),
        };
        ensure!(["irqchip", "split"].contains(&irqchip), "{irqchip}: no such irqchip");
        let cpus: u8 = cpus.parse().context("number of vCPUs")?;
        ensure!((1..=16).contains(&cpus), "{cpus} vCPUs");
        Ok(Self { image: image.into(), initrd: initrd.into(), protocol, split: irqchip == "split", cpus, save })
    }

    /// Whether the guest is told of its hardware by ACPI tables.
    pub fn acpi(&self) -> bool {
        self.split || self.cpus > 1
    }
}

/// A port that only an eventfd answers to. Linux writes it when it looks for a second UART (interrupt enable register).
pub const DOORBELL_PORT: u16 = 0x2f9;
/// An address that only an eventfd answers to.
pub const DOORBELL_ADDRESS: u64 = 0xd000_0000;

/// What is done with a guest of `cpus` vCPUs. No line is longer than the UART's receive FIFO.
fn script(cpus: u8, save: bool) -> Script {
    let mut steps = vec![
        // The shell's first word.
        ("This is a Linux guest".to_owned(), Step::Type("echo cpus=$(grep -c ^proc /proc/cpuinfo)\n")),
        (format!("cpus={cpus}"), Step::Type("for i in `seq 30`;do usleep 30000;echo z=$i;done\n")),
    ];
    if save {
        steps.extend([("z=5".to_owned(), Step::Save), ("z=15".to_owned(), Step::SaveRest)]);
    }
    steps.extend(end());
    Script::new(steps)
}

/// The part of the script that a guest has before it when it was saved for the last time.
fn end() -> Vec<(String, Step)> {
    vec![
        ("z=30".to_owned(), Step::Type("devmem 0xd0000000 8 1 && echo y\n")),
        ("y".to_owned(), Step::Type("exit\n")),
        ("guest: done".to_owned(), Step::Nothing),
    ]
}

/// Has an emulator that looks for it write down what it has counted: a NOP with a number that nobody else uses.
fn mark() {
    // SAFETY: a NOP reads and writes nothing, its memory operand neither.
    unsafe { std::arch::asm!(".byte 0x0f, 0x1f, 0x84, 0x00, 0x68, 0x73, 0x76, 0x01", options(nomem, nostack)) };
}

/// Up to the first word of the guest's first program.
fn measured(config: &Config) -> Result<()> {
    let machine = Machine::boot(config, Script::new(vec![("guest: init".to_owned(), Step::Leave)]))?;
    mark();
    machine.run().map(drop)
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let machine = match *words {
        ["restore", dir] => Machine::restore(Path::new(dir), Script::new(end()))?,
        ["boot", ref rest @ ..] => booted(&Config::parse(rest, None)?)?,
        ["save", dir, ref rest @ ..] => booted(&Config::parse(rest, Some(dir.into()))?)?,
        ["measure", ref rest @ ..] => return measured(&Config::parse(rest, None)?),
        _ => anyhow::bail!("vmm boot ... | vmm save DIR ... | vmm restore DIR | vmm measure ..."),
    };
    match machine.run()? {
        End::Off { rung: [port, address] } => {
            println!("\nvmm: the guest is off; the doorbells rang {port} and {address} times");
            let probed = if words.starts_with(&["boot"]) { port > 0 } else { port == 0 };
            ensure!(probed && address == 1, "these are not the guest's writes");
        }
        End::Saved => println!("\nvmm: the guest is saved"),
    }
    Ok(())
}

fn booted(config: &Config) -> Result<Machine> {
    Machine::boot(config, script(config.cpus, config.save.is_some()))
}
