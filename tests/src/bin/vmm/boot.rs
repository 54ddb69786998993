//! The kernel, its initial file system and what it is told, in the guest's memory (crate `linux-loader`).

use crate::{Config, Protocol, acpi};
use anyhow::{Context, Result, bail};
use linux_loader::{
    configurator::{BootConfigurator, BootParams, linux::LinuxBootConfigurator, pvh::PvhBootConfigurator},
    loader::{
        BzImage, Cmdline, Elf, KernelLoader,
        bootparam::{boot_e820_entry, boot_params},
        elf::{
            PvhBootCapability,
            start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info},
        },
        load_cmdline,
    },
};
use std::fs::File;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Where the zero page or PVH's start information is.
pub const PARAMETERS: u64 = 0x7000;
const MEMMAP: u64 = 0x6000;
const MODULES: u64 = 0x6800;
const COMMAND_LINE: u64 = 0x2_0000;
const HIGH: u64 = 0x10_0000;
/// Where a bzImage is put: aligned as it wants to be.
const KERNEL: u64 = 0x100_0000;
/// Below this is RAM for the guest to use, above it the tables, then RAM again from 1 MiB.
const LOW_END: u64 = 0x9_fc00;

/// Where the first vCPU starts.
pub enum Entry {
    /// In 64-bit mode, with the zero page in RSI.
    Long(u64),
    /// In 32-bit mode without paging, with the start information in EBX.
    Flat(u64),
}

/// Loads everything; `size` is that of the guest's memory.
pub fn load(config: &Config, memory: &GuestMemoryMmap, size: u64) -> Result<Entry> {
    let initrd = std::fs::read(&config.initrd).context("reading the initial file system")?;
    let initrd_at = (size - initrd.len() as u64) & !0xfff;
    memory.write_slice(&initrd, GuestAddress(initrd_at))?;
    let mut line = Cmdline::new(1024)?;
    line.insert_str("console=ttyS0 panic=-1 printk.time=0 pci=off reboot=k hsave=shell")?;
    // On a slow machine they bark at nothing.
    line.insert_str("tsc=nowatchdog nowatchdog nosoftlockup rcupdate.rcu_cpu_stall_suppress=1")?;
    load_cmdline(memory, GuestAddress(COMMAND_LINE), &line)?;
    if config.acpi() {
        acpi::write(memory, config.cpus)?;
    }
    let ram = [(0, LOW_END), (HIGH, size - HIGH)];
    let mut image = File::open(&config.image).context("opening the kernel")?;
    match config.protocol {
        Protocol::BzImage => {
            let loaded = BzImage::load(memory, Some(GuestAddress(KERNEL)), &mut image, Some(GuestAddress(HIGH)))?;
            let mut zero_page = boot_params { hdr: loaded.setup_header.context("no header")?, ..Default::default() };
            zero_page.hdr.type_of_loader = 0xff;
            zero_page.hdr.cmd_line_ptr = COMMAND_LINE as u32;
            zero_page.hdr.ramdisk_image = initrd_at as u32;
            zero_page.hdr.ramdisk_size = initrd.len() as u32;
            for (entry, (addr, size)) in zero_page.e820_table.iter_mut().zip(ram) {
                *entry = boot_e820_entry { addr, size, type_: 1 };
            }
            zero_page.e820_entries = ram.len() as u8;
            if config.acpi() {
                zero_page.acpi_rsdp_addr = acpi::RSDP;
            }
            let params = BootParams::new(&zero_page, GuestAddress(PARAMETERS));
            LinuxBootConfigurator::write_bootparams(&params, memory)?;
            Ok(Entry::Long(KERNEL + 0x200))
        }
        Protocol::Pvh => {
            let loaded = Elf::load(memory, None, &mut image, Some(GuestAddress(HIGH)))?;
            let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
                bail!("the kernel has no PVH entry")
            };
            let info = hvm_start_info {
                magic: 0x336e_c578,
                version: 1,
                nr_modules: 1,
                modlist_paddr: MODULES,
                cmdline_paddr: COMMAND_LINE,
                rsdp_paddr: if config.acpi() { acpi::RSDP } else { 0 },
                memmap_paddr: MEMMAP,
                memmap_entries: ram.len() as u32,
                ..Default::default()
            };
            let entries = ram.map(|(addr, size)| hvm_memmap_table_entry { addr, size, type_: 1, reserved: 0 });
            let module = hvm_modlist_entry { paddr: initrd_at, size: initrd.len() as u64, ..Default::default() };
            let mut params = BootParams::new(&info, GuestAddress(PARAMETERS));
            params.set_sections(&entries, GuestAddress(MEMMAP));
            params.set_modules(&[module], GuestAddress(MODULES));
            PvhBootConfigurator::write_bootparams(&params, memory)?;
            Ok(Entry::Flat(entry.0))
        }
    }
}
