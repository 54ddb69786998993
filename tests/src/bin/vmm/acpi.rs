//! The fewest ACPI tables that tell Linux of its processors, its I/O APIC and how to power off (ACPI 6.5, chapter 5).

use anyhow::Result;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Where the tables begin: the area that is searched for the root pointer.
pub const RSDP: u64 = 0xe_0000;
const DSDT: u64 = RSDP + 0x100;
const FADT: u64 = RSDP + 0x200;
const MADT: u64 = RSDP + 0x400;
const XSDT: u64 = RSDP + 0x800;

/// The power-management registers: two bytes of events, two of their mask, and the control register.
pub const PM1_EVENT: u16 = 0x600;
/// PM1a control.
pub const PM1_CONTROL: u16 = 0x604;
/// SLP_EN in PM1a control.
pub const SLP_EN: u16 = 1 << 13;
/// The global interrupt of ACPI's own events, which never come.
const SCI: u8 = 9;

/// `Name (_S5, Package () { 5, 0, 0, 0 })`
const S5: &[u8] = &[0x08, b'_', b'S', b'5', b'_', 0x12, 0x07, 0x04, 0x0a, 0x05, 0x00, 0x00, 0x00];

fn sum(bytes: &[u8]) -> u8 {
    0u8.wrapping_sub(bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte)))
}

/// A table with its header.
fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut table = signature.to_vec();
    table.extend((36 + body.len() as u32).to_le_bytes());
    table.extend([revision, 0]);
    table.extend(b"HSAVE ");
    table.extend(b"VMMTEST ");
    table.extend(1u32.to_le_bytes());
    table.extend(b"HSAV");
    table.extend(1u32.to_le_bytes());
    table.extend(body);
    table[9] = sum(&table);
    table
}

/// The fixed description table, 276 bytes; offsets are those of the whole table.
fn fadt() -> Vec<u8> {
    let mut body = vec![0; 276 - 36];
    let mut put = |at: usize, bytes: &[u8]| body[at - 36..at - 36 + bytes.len()].copy_from_slice(bytes);
    put(46, &u16::from(SCI).to_le_bytes());
    put(56, &u32::from(PM1_EVENT).to_le_bytes());
    put(64, &u32::from(PM1_CONTROL).to_le_bytes());
    put(88, &[4, 2]);
    // No VGA, no RTC; the keyboard controller, which resets, is there.
    put(109, &(1u16 << 1 | 1 << 2 | 1 << 5).to_le_bytes());
    // WBINVD works, no power and sleep buttons.
    put(112, &(1u32 | 1 << 4 | 1 << 5).to_le_bytes());
    put(140, &DSDT.to_le_bytes());
    table(b"FACP", 6, &body)
}

fn madt(cpus: u8) -> Vec<u8> {
    // The local APIC's address; PCAT_COMPAT: there may be a PIC, too.
    let mut body = [0xfee0_0000u32.to_le_bytes(), 1u32.to_le_bytes()].concat();
    for id in 0..cpus {
        body.extend([0, 8, id, id, 1, 0, 0, 0]);
    }
    body.extend([1, 12, 0, 0]);
    body.extend((super::ioapic::BASE as u32).to_le_bytes());
    body.extend(0u32.to_le_bytes());
    table(b"APIC", 4, &body)
}

/// Writes them all into the guest's memory.
pub fn write(memory: &GuestMemoryMmap, cpus: u8) -> Result<()> {
    memory.write_slice(&table(b"DSDT", 2, S5), GuestAddress(DSDT))?;
    memory.write_slice(&fadt(), GuestAddress(FADT))?;
    memory.write_slice(&madt(cpus), GuestAddress(MADT))?;
    memory.write_slice(&table(b"XSDT", 1, &[FADT.to_le_bytes(), MADT.to_le_bytes()].concat()), GuestAddress(XSDT))?;
    let mut rsdp = b"RSD PTR \0HSAVE \x02".to_vec();
    rsdp.extend(0u32.to_le_bytes());
    rsdp[8] = sum(&rsdp);
    rsdp.extend(36u32.to_le_bytes());
    rsdp.extend(XSDT.to_le_bytes());
    rsdp.extend([0; 4]);
    rsdp[32] = sum(&rsdp);
    Ok(memory.write_slice(&rsdp, GuestAddress(RSDP))?)
}
