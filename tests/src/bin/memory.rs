//! Guest memory while the VMM changes it under the guest: the guest sees the right bytes, or the VMM the right error.

use anyhow::{Context, Result, bail, ensure};
use iced_x86::code_asm::*;
use kvm_ioctls::{VcpuExit, VcpuFd};
use memmap2::{Advice, MmapMut, MmapOptions, UncheckedAdvice};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use tests::check;
use tests::client::{Client, assemble};

/// Where the second slot lies in the guest.
const WINDOW: u64 = 0x4000_0000;
const WINDOW_LEN: usize = 8 << 20;
/// The guest says here what it read.
const SAYS: u16 = 0xf4;
/// A device without memory, for exits that the tests expect.
const DEVICE: u64 = 0x8000_0000;

/// A guest that reads a dword at RSI, says it, writes RDI to it if RBP is set, and starts over.
fn reader() -> Result<(Client, VcpuFd)> {
    let mut client = Client::new(8 << 20, true)?;
    client.split_irqchip()?;
    client.load(assemble(|a| {
        let (mut again, mut skip) = (a.create_label(), a.create_label());
        a.set_label(&mut again)?;
        a.mov(eax, dword_ptr(rsi))?;
        a.mov(dx, u32::from(SAYS))?;
        a.out(dx, eax)?;
        a.test(ebp, ebp)?;
        a.jz(skip)?;
        a.mov(dword_ptr(rsi), edi)?;
        a.set_label(&mut skip)?;
        a.jmp(again)
    })?)?;
    let vcpu = client.vcpu(0)?;
    Ok((client, vcpu))
}

/// Tells the guest where to read, and what to write there afterwards.
fn aim(vcpu: &VcpuFd, at: u64, write: Option<u32>) -> Result<()> {
    let mut regs = vcpu.get_regs()?;
    regs.rsi = at;
    regs.rdi = write.unwrap_or(0).into();
    regs.rbp = write.is_some().into();
    regs.rip = tests::client::CODE;
    Ok(vcpu.set_regs(&regs)?)
}

fn says(vcpu: &mut VcpuFd) -> Result<u32> {
    match vcpu.run()? {
        VcpuExit::IoOut(SAYS, bytes) => Ok(u32::from_le_bytes(bytes.try_into()?)),
        other => bail!("the guest left with {other:?}"),
    }
}

fn window(client: &Client) -> Result<MmapMut> {
    let map = MmapOptions::new().len(WINDOW_LEN).map_anon()?;
    client.map(1, WINDOW, map.as_ptr() as u64, WINDOW_LEN as u64)?;
    Ok(map)
}

fn put(map: &mut MmapMut, at: usize, value: u32) {
    map[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn get(map: &MmapMut, at: usize) -> u32 {
    u32::from_le_bytes([map[at], map[at + 1], map[at + 2], map[at + 3]])
}

fn madvise_away() -> Result<()> {
    let (client, mut vcpu) = reader()?;
    let mut map = window(&client)?;
    put(&mut map, 0x5000, 42);
    aim(&vcpu, WINDOW + 0x5000, None)?;
    ensure!(says(&mut vcpu)? == 42, "before");
    // SAFETY: nobody holds a reference into the map while its pages are dropped.
    unsafe { map.unchecked_advise(UncheckedAdvice::DontNeed)? };
    ensure!(says(&mut vcpu)? == 0, "after the page was dropped");
    put(&mut map, 0x5000, 7);
    ensure!(says(&mut vcpu)? == 7, "after it was written again");
    Ok(())
}

fn unmapped() -> Result<()> {
    let (client, mut vcpu) = reader()?;
    let mut map = window(&client)?;
    put(&mut map, 0, 1);
    aim(&vcpu, WINDOW, None)?;
    ensure!(says(&mut vcpu)? == 1, "before");
    let (at, len) = (map.as_ptr(), map.len());
    drop(map);
    match vcpu.run() {
        // EFAULT; where the exit says which page it is, the crate makes this of it.
        Ok(VcpuExit::MemoryFault { flags: 0, gpa: WINDOW, size: 4096 }) => {}
        Err(e) if e.errno() == libc::EFAULT => {}
        other => bail!("reading unmapped memory: {other:?}"),
    }
    // SAFETY: the place was this program's own and is free since the drop; nothing else has been mapped meanwhile.
    let again = unsafe {
        libc::mmap(
            at as *mut libc::c_void,
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
            -1,
            0,
        )
    };
    ensure!(again != libc::MAP_FAILED, "mmap");
    ensure!(says(&mut vcpu)? == 0, "after memory was mapped again");
    // SAFETY: the mapping made above.
    unsafe { libc::munmap(again, len) };
    Ok(())
}

fn replaced() -> Result<()> {
    let (client, mut vcpu) = reader()?;
    let mut map = window(&client)?;
    put(&mut map, 0x3000, 0x11);
    aim(&vcpu, WINDOW + 0x3000, None)?;
    ensure!(says(&mut vcpu)? == 0x11, "before");
    let mut other = MmapOptions::new().len(WINDOW_LEN).map_anon()?;
    put(&mut other, 0x3000, 0x22);
    // SAFETY: moves the pages of one mapping of ours over another; `other` is forgotten, as its range is gone.
    let moved = unsafe {
        libc::mremap(
            other.as_mut_ptr().cast(),
            WINDOW_LEN,
            WINDOW_LEN,
            libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
            map.as_mut_ptr().cast::<libc::c_void>(),
        )
    };
    std::mem::forget(other);
    ensure!(moved != libc::MAP_FAILED, "mremap: {}", std::io::Error::last_os_error());
    ensure!(says(&mut vcpu)? == 0x22, "after other memory took its place");
    Ok(())
}

fn copy_on_write() -> Result<()> {
    let (client, mut vcpu) = reader()?;
    let mut map = window(&client)?;
    put(&mut map, 0, 5);
    aim(&vcpu, WINDOW, Some(6))?;
    ensure!(says(&mut vcpu)? == 5, "before");
    ensure!(says(&mut vcpu)? == 6, "the guest's own write");
    // SAFETY: the child sleeps and leaves with `_exit`.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: system calls only.
        unsafe {
            libc::usleep(300_000);
            libc::_exit(0)
        }
    }
    aim(&vcpu, WINDOW, Some(9))?;
    ensure!(says(&mut vcpu)? == 6, "after the fork");
    ensure!(says(&mut vcpu)? == 9, "the guest's write after the fork");
    ensure!(get(&map, 0) == 9, "the VMM sees {} instead of the guest's write", get(&map, 0));
    // SAFETY: waits for the child made above.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
    Ok(())
}

fn paged_out() -> Result<()> {
    if std::fs::read_to_string("/proc/swaps")?.lines().count() < 2 {
        println!("   (no swap space: nothing is paged out)");
        return Ok(());
    }
    let (client, mut vcpu) = reader()?;
    let mut map = window(&client)?;
    for page in 0..WINDOW_LEN / 4096 {
        put(&mut map, page * 4096, page as u32 ^ 0x5a5a);
    }
    for round in 0..3 {
        // SAFETY: paging out keeps the contents.
        let r = unsafe { libc::madvise(map.as_mut_ptr().cast(), WINDOW_LEN, libc::MADV_PAGEOUT) };
        ensure!(r == 0, "MADV_PAGEOUT");
        for page in (round..WINDOW_LEN / 4096).step_by(97) {
            aim(&vcpu, WINDOW + 4096 * page as u64, None)?;
            ensure!(says(&mut vcpu)? == page as u32 ^ 0x5a5a, "page {page} after it was paged out");
        }
    }
    Ok(())
}

fn dropped_while_it_runs() -> Result<()> {
    let (client, mut vcpu) = reader()?;
    let mut map = window(&client)?;
    let stop = Arc::new(AtomicBool::new(false));
    let (at, flag) = (map.as_mut_ptr() as usize, stop.clone());
    let other = std::thread::spawn(move || {
        while !flag.load(SeqCst) {
            // SAFETY: the mapping outlives this thread, which is joined below.
            unsafe { libc::madvise(at as *mut libc::c_void, WINDOW_LEN, libc::MADV_DONTNEED) };
            std::thread::yield_now();
        }
    });
    aim(&vcpu, WINDOW + 0x1000, Some(3))?;
    let result = (0..4000).try_for_each(|_| match says(&mut vcpu)? {
        0 | 3 => Ok(()),
        n => bail!("the guest read {n}"),
    });
    stop.store(true, SeqCst);
    let _ = other.join();
    result
}

fn slot_deleted() -> Result<()> {
    let (client, mut vcpu) = reader()?;
    let mut map = window(&client)?;
    put(&mut map, 0, 77);
    aim(&vcpu, WINDOW, None)?;
    ensure!(says(&mut vcpu)? == 77, "before");
    client.map(1, WINDOW, map.as_ptr() as u64, 0)?;
    match vcpu.run()? {
        VcpuExit::MmioRead(WINDOW, data) if data.len() == 4 => data.copy_from_slice(&88u32.to_le_bytes()),
        other => bail!("reading a deleted slot: {other:?}"),
    }
    ensure!(says(&mut vcpu)? == 88, "the answer to the MMIO read");
    client.map(1, WINDOW, map.as_ptr() as u64, WINDOW_LEN as u64)?;
    ensure!(says(&mut vcpu)? == 77, "after the slot came back");
    Ok(())
}

fn mmio() -> Result<()> {
    let (_client, mut vcpu) = reader()?;
    aim(&vcpu, DEVICE + 0x10, Some(0x1234_5678))?;
    match vcpu.run()? {
        VcpuExit::MmioRead(a, data) if a == DEVICE + 0x10 && data.len() == 4 => data.copy_from_slice(&[1, 2, 3, 4]),
        other => bail!("{other:?}"),
    }
    ensure!(says(&mut vcpu)? == 0x0403_0201, "the value read");
    match vcpu.run()? {
        VcpuExit::MmioWrite(a, data) if a == DEVICE + 0x10 => ensure!(data == 0x1234_5678u32.to_le_bytes(), "{data:?}"),
        other => bail!("{other:?}"),
    }
    Ok(())
}

fn mmio_across_pages() -> Result<()> {
    let (_client, mut vcpu) = reader()?;
    aim(&vcpu, DEVICE + 0xffe, None)?;
    let mut bytes = vec![];
    loop {
        match vcpu.run()? {
            VcpuExit::MmioRead(a, data) => {
                ensure!(a == DEVICE + 0xffe + bytes.len() as u64, "piece at {a:#x}");
                for d in data {
                    *d = bytes.len() as u8 + 1;
                    bytes.push(*d);
                }
            }
            VcpuExit::IoOut(SAYS, data) => {
                ensure!(data == bytes.as_slice(), "read {data:?}, answered {bytes:?}");
                return Ok(());
            }
            other => bail!("{other:?}"),
        }
    }
}

fn huge_pages() -> Result<()> {
    let (client, mut vcpu) = reader()?;
    let map = MmapOptions::new().len(WINDOW_LEN).map_anon()?;
    // Kernels with PREEMPT_RT have none.
    if std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
        map.advise(Advice::HugePage)?;
    }
    // The guest's 2 MiB must fall on the host's.
    let skew = map.as_ptr() as u64 & ((2 << 20) - 1);
    let start = if skew == 0 { 0 } else { (2 << 20) - skew };
    let len = (WINDOW_LEN as u64 - start) & !((2 << 20) - 1);
    client.map(1, WINDOW, map.as_ptr() as u64 + start, len)?;
    let mut map = map;
    for page in 0..len / 4096 {
        put(&mut map, (start + page * 4096) as usize, page as u32);
    }
    for page in (0..len / 4096).step_by(61) {
        aim(&vcpu, WINDOW + page * 4096, Some(1))?;
        ensure!(says(&mut vcpu)? == page as u32, "page {page}");
    }
    // A huge page that is split by dropping one small page keeps the others.
    // SAFETY: one page of a mapping of ours, to which nobody holds a reference.
    let r = unsafe { libc::madvise(map.as_mut_ptr().add(start as usize + 4096).cast(), 4096, libc::MADV_DONTNEED) };
    ensure!(r == 0, "madvise");
    aim(&vcpu, WINDOW + 4096, None)?;
    ensure!(says(&mut vcpu)? == 0, "the dropped page");
    aim(&vcpu, WINDOW + 2 * 4096, None)?;
    ensure!(says(&mut vcpu)? == 2, "its neighbour");
    Ok(())
}

/// Memory of the host without `struct page`, or with one that nobody counts: the firmware's, which the kernel lets
/// programs read.
fn device_memory() -> Result<()> {
    const ROM: u64 = 0xf_0000;
    const LEN: usize = 0x1_0000;
    let mem = std::fs::File::open("/dev/mem").context("/dev/mem")?;
    // SAFETY: the firmware's memory does not change.
    let rom = unsafe { MmapOptions::new().offset(ROM).len(LEN).map(&mem) }.context("mapping the firmware")?;
    let (client, mut vcpu) = reader()?;
    client.map(1, WINDOW, rom.as_ptr() as u64, LEN as u64)?;
    let words = |at: usize| u32::from_le_bytes([rom[at], rom[at + 1], rom[at + 2], rom[at + 3]]);
    // The reset vector, where every firmware has its first jump.
    for at in [LEN - 16, 0x1234, 0] {
        aim(&vcpu, WINDOW + at as u64, None)?;
        let (guest, host) = (says(&mut vcpu)?, words(at));
        ensure!(guest == host, "the guest reads {guest:#x}, the host {host:#x} at {at:#x}");
    }
    ensure!(words(LEN - 16) != 0, "this is not the firmware");
    aim(&vcpu, WINDOW, Some(1))?;
    says(&mut vcpu)?;
    // What the VMM may only read is a device for writes.
    match vcpu.run()? {
        VcpuExit::MmioWrite(WINDOW, [1, 0, 0, 0]) => {}
        other => bail!("a write to what the VMM may only read: {other:?}"),
    }
    // The guest is behind it, and reads the next time what was there before.
    let (guest, host) = (says(&mut vcpu)?, words(0));
    ensure!(guest == host, "the guest reads {guest:#x}, the host {host:#x} after its write");
    Ok(())
}

fn main() -> Result<()> {
    check::run(&[
        ("mmio", mmio),
        ("mmio-across-pages", mmio_across_pages),
        ("madvise-away", madvise_away),
        ("unmapped", unmapped),
        ("replaced", replaced),
        ("copy-on-write", copy_on_write),
        ("paged-out", paged_out),
        ("dropped-while-it-runs", dropped_while_it_runs),
        ("slot-deleted", slot_deleted),
        ("huge-pages", huge_pages),
        ("device-memory", device_memory),
    ])
}
