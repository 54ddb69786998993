//! What KVM_SET_USER_MEMORY_REGION takes: each limit from both sides.

use anyhow::{Context, Result};
use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, KVM_MEM_LOG_DIRTY_PAGES as LOG, KVM_MEM_READONLY as READONLY, kvm_userspace_memory_region,
};
use memmap2::MmapOptions;
use tests::client::Client;

const PAGE: u64 = 4096;
/// The slot that is there all the time, of 16 pages.
const OLD: u32 = 1;
const BASE: u64 = 1 << 32;

/// Lowest guest address that the processor cannot make.
fn limit(client: &Client) -> Result<u64> {
    let cpuid = client.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    let sizes = cpuid.as_slice().iter().find(|e| e.function == 0x8000_0008).context("leaf 8000_0008")?;
    Ok(1 << (sizes.eax & 0xff))
}

pub fn limits() -> Result<()> {
    let client = Client::new(8 << 20, false)?;
    let memory = MmapOptions::new().len(64 * PAGE as usize).map_anon()?;
    let (hva, limit) = (memory.as_ptr() as u64, limit(&client)?);
    let set = |slot, flags, guest_phys_addr, memory_size, userspace_addr| {
        let r = kvm_userspace_memory_region { slot, flags, guest_phys_addr, memory_size, userspace_addr };
        // SAFETY: No guest runs.
        unsafe { client.vm.set_user_memory_region(r) }.err().map_or(0, |e| e.errno())
    };
    println!("memslot that stays: {}", set(OLD, 0, BASE, 16 * PAGE, hva));
    let free = BASE + (1 << 30);
    let new = [
        ("flag 2", 2, 1 << 2, free, PAGE, hva),
        ("flag 31", 2, 1 << 31, free, PAGE, hva),
        ("unaligned address", 2, 0, free + 8, PAGE, hva),
        ("unaligned size", 2, 0, free, PAGE + 8, hva),
        ("unaligned memory", 2, 0, free, PAGE, hva + 8),
        ("the last id", 32763, 0, free, PAGE, hva),
        ("one id more", 32764, 0, free, PAGE, hva),
        ("an id of the kernel's", 32767, 0, free, PAGE, hva),
        ("the last id that there is", 65535, 0, free, PAGE, hva),
        ("address space 2", 2 << 16 | 2, 0, free, PAGE, hva),
        ("address space 65535", 65535 << 16 | 2, 0, free, PAGE, hva),
        ("a range that wraps", 2, 0, !0xfff, 2 * PAGE, hva),
        ("a range up to the end", 2, 0, !0xfff, PAGE, hva),
        ("too many pages", 2, 0, 0, 1 << 43, 0x1000_0000),
        ("all that there is", 2, 0, 0, !0xfff, 0x1000),
        ("the last page of the processor's", 2, 0, limit - PAGE, PAGE, hva),
        ("one page more", 2, 0, limit, PAGE, hva),
        ("a range across the limit", 2, 0, limit - PAGE, 2 * PAGE, hva),
        ("a page of 2^51", 2, 0, 1 << 51, PAGE, hva),
        ("a page of 2^52", 2, 0, 1 << 52, PAGE, hva),
        ("memory of the kernel's", 2, 0, free, PAGE, 0xffff_8880_0000_0000),
        ("the first page of memory", 2, 0, free, PAGE, 0),
        ("the last page of user memory", 2, 0, free, PAGE, 0x7fff_ffff_e000),
        ("a page after user memory", 2, 0, free, PAGE, 0x7fff_ffff_f000),
        ("memory with a tag", 2, 0, free, PAGE, hva | 1 << 60),
        ("memory that wraps", 2, 0, free, 2 * PAGE, !0xfff),
        ("an overlap at the start", 2, 0, BASE - PAGE, 2 * PAGE, hva),
        ("an overlap at the end", 2, 0, BASE + 15 * PAGE, 2 * PAGE, hva),
        ("an overlap around", 2, 0, BASE - PAGE, 32 * PAGE, hva),
        ("an overlap and a range across the limit", 2, 0, BASE, limit, 0x1000),
        ("the page before", 2, 0, BASE - PAGE, PAGE, hva),
        ("the page after", 2, 0, BASE + 16 * PAGE, PAGE, hva),
        ("read-only", 2, READONLY, free, PAGE, hva),
        ("with a log", 2, LOG, free, PAGE, hva),
        ("read-only with a log", 2, READONLY | LOG, free, PAGE, hva),
        ("nothing", 2, 0, free, 0, hva),
    ];
    for (what, slot, flags, gpa, size, hva) in new {
        let errno = set(slot, flags, gpa, size, hva);
        println!("memslot, {what}: {errno}, and without it: {}", set(slot, 0, 0, 0, 0));
    }
    println!("memslot beside it: {}", set(2, 0, free, 16 * PAGE, hva));
    let old = [
        ("the same", 0, BASE, 16 * PAGE, hva),
        ("less", 0, BASE, 15 * PAGE, hva),
        ("more", 0, BASE, 17 * PAGE, hva),
        ("other memory", 0, BASE, 16 * PAGE, hva + PAGE),
        ("read-only", READONLY, BASE, 16 * PAGE, hva),
        ("with a log", LOG, BASE, 16 * PAGE, hva),
        ("without it", 0, BASE, 16 * PAGE, hva),
        ("a page further", 0, BASE + PAGE, 16 * PAGE, hva),
        ("back, with a log", LOG, BASE, 16 * PAGE, hva),
        ("over the other", LOG, free - PAGE, 16 * PAGE, hva),
        ("across the limit", LOG, limit - PAGE, 16 * PAGE, hva),
        ("up to the limit", LOG, limit - 16 * PAGE, 16 * PAGE, hva),
        ("away, at an unaligned address", LOG, 8, 0, hva),
        ("away, in the kernel's memory", LOG, 0, 0, 0xffff_8880_0000_0000),
        ("away, with an unknown flag", 1 << 31, 0, 0, hva),
        ("away", LOG, 0, 0, hva),
        ("away again", LOG, 0, 0, hva),
    ];
    for (what, flags, gpa, size, hva) in old {
        println!("memslot becomes {what}: {}", set(OLD, flags, gpa, size, hva));
    }
    Ok(())
}
