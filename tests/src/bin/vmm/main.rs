//! Boots Linux the way Firecracker and Cloud Hypervisor do: without firmware, on the crates that they are made of.
//!
//! `vmm IMAGE INITRD bzimage|pvh irqchip|split CPUS` starts the guest with a serial console, types a few commands into
//! its shell and looks at the answers; what the guest prints goes to standard output.
//! With one vCPU and `irqchip` there are no ACPI tables, and so the PIC and the PIT are what the guest has.

mod acpi;
mod boot;
mod bus;
mod ioapic;
mod machine;
mod vcpu;

use anyhow::{Context, Result, ensure};
use machine::Machine;

/// How the guest's kernel is handed over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Linux's 64-bit boot protocol.
    BzImage,
    /// PVH, from an ELF file.
    Pvh,
}

/// What is asked for on the command line.
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
}

impl Config {
    fn parse() -> Result<Self> {
        let words: Vec<String> = std::env::args().skip(1).collect();
        let [image, initrd, protocol, irqchip, cpus] = words.as_slice() else {
            anyhow::bail!("vmm IMAGE INITRD bzimage|pvh irqchip|split CPUS")
        };
        let protocol = match protocol.as_str() {
            "bzimage" => Protocol::BzImage,
            "pvh" => Protocol::Pvh,
            other => anyhow::bail!("{other}: no such protocol"),
        };
        ensure!(["irqchip", "split"].contains(&irqchip.as_str()), "{irqchip}: no such irqchip");
        let (image, initrd) = (image.clone(), initrd.clone());
        let cpus: u8 = cpus.parse().context("number of vCPUs")?;
        ensure!((1..=16).contains(&cpus), "{cpus} vCPUs");
        Ok(Self { image, initrd, protocol, split: irqchip == "split", cpus })
    }

    /// Whether the guest is told of its hardware by ACPI tables.
    pub fn acpi(&self) -> bool {
        self.split || self.cpus > 1
    }
}

/// A port that only an eventfd answers to. Linux writes it when it looks for a second UART (interrupt enable register).
pub const DOORBELL_PORT: u16 = 0x2f9;

/// What is typed, and what must be printed then. No line is longer than the UART's receive FIFO.
fn dialogue(config: &Config) -> Vec<(&'static str, String)> {
    vec![
        ("echo cpus=$(grep -c ^proc /proc/cpuinfo)\n", format!("cpus={}", config.cpus)),
        ("for i in 1 2 3 4 5 6 7 8 9; do usleep 9999; done;echo z=$i\n", "z=9".into()),
        ("exit\n", "guest: done".into()),
    ]
}

fn main() -> Result<()> {
    let config = Config::parse()?;
    let machine = Machine::new(&config, dialogue(&config))?;
    let rung = machine.run()?;
    println!("\nvmm: the guest is off; the doorbell rang {rung} times");
    ensure!(rung > 0, "the doorbell should have rung");
    Ok(())
}
