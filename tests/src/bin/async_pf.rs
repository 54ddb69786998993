//! Asynchronous page faults: a guest reads pages that another thread brings in by userfaultfd, 5 ms after it is asked, and
//! has other work to do meanwhile. Prints how long reading and work take together, without and with.
//!
//! `async_pf [WORK]`: how much work, in turns of a loop. `async_pf abandon`: the VMM dies while a page is on its way that
//! nobody brings. `async_pf held`: the same, but another process holds the userfaultfd, so that the page stays on its way; prints that
//! process's number.
//!
//! `async_pf starved`: beside other VMs that wait for as many pages as they may. `async_pf uncounted`: for a page that is no memory
//! of the process's the vCPU waits itself.

use anyhow::{Context, Result, bail, ensure};
use iced_x86::code_asm::*;
use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{VcpuExit, VcpuFd};
use memmap2::{MmapMut, MmapOptions};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tests::client::{Client, assemble};
use tests::handlers;

/// Pages that are brought in.
const PAGES: u64 = 40;
/// How long that takes.
const DELAY: Duration = Duration::from_millis(5);
/// Where the guest has them.
const FAR: u64 = 0x4000_0000;
/// `struct kvm_vcpu_pv_apf_data`.
const AREA: u64 = 0x8_0000;
/// Work that is done, in all.
const WORK: u64 = AREA + 0x100;
/// Work that is done while a page is on its way.
const MEANWHILE: u64 = AREA + 0x108;
/// "Page not present" so often.
const TOLD: u64 = AREA + 0x110;
/// A page is ready.
const READY: u64 = AREA + 0x118;
const ASYNC_PF_EN: u32 = 0x4b56_4d02;
const ASYNC_PF_INT: u32 = 0x4b56_4d06;
const ASYNC_PF_ACK: u32 = 0x4b56_4d07;
const VECTOR: u8 = 0x50;
const PF: u8 = 14;
const X2APIC_EOI: u32 = 0x80b;

/// `include/uapi/linux/userfaultfd.h`.
mod uffd {
    pub const API: u64 = 0xaa;
    pub const UFFDIO_API: u64 = 0xc018_aa3f;
    pub const UFFDIO_REGISTER: u64 = 0xc020_aa00;
    pub const UFFDIO_ZEROPAGE: u64 = 0xc020_aa04;
    pub const MISSING: u64 = 1;
}

/// Memory of which no page is there.
fn missing(memory: &MmapMut) -> Result<OwnedFd> {
    // SAFETY: no memory is involved.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
    ensure!(fd >= 0, "userfaultfd: {}", std::io::Error::last_os_error());
    // SAFETY: it is new, and ours.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let mut api = [uffd::API, 0, 0];
    let mut register = [memory.as_ptr() as u64, memory.len() as u64, uffd::MISSING, 0];
    // SAFETY: each struct is as large as its ioctl has it.
    let failed = unsafe {
        libc::ioctl(fd.as_raw_fd(), uffd::UFFDIO_API as _, api.as_mut_ptr()) != 0
            || libc::ioctl(fd.as_raw_fd(), uffd::UFFDIO_REGISTER as _, register.as_mut_ptr()) != 0
    };
    ensure!(!failed, "UFFDIO_REGISTER: {}", std::io::Error::last_os_error());
    Ok(fd)
}

/// Brings in `PAGES` pages, each a while after somebody wants it.
fn bring_in(fd: &OwnedFd) -> Result<()> {
    for _ in 0..PAGES {
        let mut message = [0u64; 4];
        // SAFETY: as large as a message.
        let n = unsafe { libc::read(fd.as_raw_fd(), message.as_mut_ptr().cast(), size_of_val(&message)) };
        ensure!(n == size_of_val(&message) as isize, "userfaultfd: read {n}");
        std::thread::sleep(DELAY);
        let mut zero = [message[2] & !0xfff, 0x1000, 0, 0];
        // SAFETY: as large as the ioctl has it; the page was missing.
        let failed = unsafe { libc::ioctl(fd.as_raw_fd(), uffd::UFFDIO_ZEROPAGE as _, zero.as_mut_ptr()) };
        ensure!(failed == 0, "UFFDIO_ZEROPAGE: {}", std::io::Error::last_os_error());
    }
    Ok(())
}

/// WRMSR of a constant.
fn wrmsr(a: &mut CodeAssembler, index: u32, value: u32) -> Result<(), iced_x86::IcedError> {
    a.mov(ecx, index)?;
    a.mov(eax, value)?;
    a.xor(edx, edx)?;
    a.wrmsr()
}

/// The guest reads `pages` pages, and then does what is left of the work.
fn guest(client: &mut Client, pages: u64, work: u64, on: bool) -> Result<()> {
    client.load(assemble(|a| {
        wrmsr(a, 0x1b, 0xfee0_0d00)?;
        wrmsr(a, 0x80f, 0x1ff)?;
        a.sti()?;
        if on {
            // Whoever waits since before is woken: nobody, but that is told.
            let mut woken = a.create_label();
            wrmsr(a, ASYNC_PF_INT, VECTOR.into())?;
            wrmsr(a, ASYNC_PF_EN, AREA as u32 | 0xb)?;
            a.set_label(&mut woken)?;
            a.cmp(dword_ptr(READY), 0)?;
            a.je(woken)?;
            a.mov(dword_ptr(READY), 0)?;
        }
        let (mut page, mut turn) = (a.create_label(), a.create_label());
        a.mov(rbx, FAR)?;
        a.set_label(&mut page)?;
        a.mov(rax, qword_ptr(rbx))?;
        a.add(rbx, 0x1000)?;
        a.cmp(rbx, (FAR + 0x1000 * pages) as i32)?;
        a.jne(page)?;
        a.mov(rsi, work)?;
        a.set_label(&mut turn)?;
        a.inc(qword_ptr(WORK))?;
        a.cmp(qword_ptr(WORK), rsi)?;
        a.jb(turn)?;
        a.out(0x80, al)
    })?)?;
    handlers::install(client, |a, vector| match vector {
        // The other task: works until a page is ready.
        PF => {
            let mut turn = a.create_label();
            a.mov(dword_ptr(AREA), 0)?;
            a.inc(qword_ptr(TOLD))?;
            a.sti()?;
            a.set_label(&mut turn)?;
            a.inc(qword_ptr(WORK))?;
            a.inc(qword_ptr(MEANWHILE))?;
            a.cmp(dword_ptr(READY), 0)?;
            a.je(turn)?;
            a.mov(dword_ptr(READY), 0)?;
            a.add(rsp, 8)?;
            a.iretq()
        }
        VECTOR => {
            a.mov(dword_ptr(AREA + 4), 0)?;
            a.inc(dword_ptr(READY))?;
            a.mov(ecx, X2APIC_EOI)?;
            a.xor(eax, eax)?;
            a.xor(edx, edx)?;
            a.wrmsr()?;
            a.mov(ecx, ASYNC_PF_ACK)?;
            a.inc(eax)?;
            a.wrmsr()?;
            a.iretq()
        }
        _ => a.out(0x81, al),
    })
}

fn run(vcpu: &mut VcpuFd) -> Result<()> {
    match vcpu.run().context("KVM_RUN")? {
        VcpuExit::IoOut(0x80, _) => Ok(()),
        other => bail!("{other:?}"),
    }
}

/// How long it takes, how much was done meanwhile, and how often the guest was told of a page.
fn measured(work: u64, on: bool) -> Result<(Duration, u64, u64)> {
    let mut client = Client::new(4 << 20, true)?;
    client.split_irqchip()?;
    let memory = MmapOptions::new().len((PAGES << 12) as usize).map_anon()?;
    memory.advise(memmap2::Advice::NoHugePage)?;
    let fd = missing(&memory)?;
    client.map(1, FAR, memory.as_ptr() as u64, memory.len() as u64)?;
    guest(&mut client, PAGES, work, on)?;
    let mut vcpu = client.vcpu(0)?;
    handlers::enable(&vcpu)?;
    let (begin, done) = std::thread::scope(|scope| {
        let bringer = scope.spawn(|| bring_in(&fd));
        let begin = Instant::now();
        let result = run(&mut vcpu);
        let took = begin.elapsed();
        match result {
            // Nobody is left to ask for pages.
            Err(e) => {
                eprintln!("{e:#}");
                std::process::exit(1);
            }
            Ok(()) => (took, bringer.join()),
        }
    });
    done.map_err(|_| anyhow::anyhow!("the thread that brings pages in panicked"))??;
    Ok((begin, client.peek(MEANWHILE), client.peek(TOLD)))
}

/// Another process that has the descriptor for a minute, or until it is killed.
fn hold(fd: &OwnedFd) -> Result<u32> {
    // SAFETY: no memory is involved.
    ensure!(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) } == 0, "{}", std::io::Error::last_os_error());
    Ok(Command::new("sleep").arg("60").stdout(Stdio::null()).spawn().context("sleep")?.id())
}

/// The guest waits for a page that nobody brings; then the process ends, the userfaultfd with it unless it is `held`.
fn abandoned(held: bool) -> Result<()> {
    let mut client = Client::new(4 << 20, true)?;
    client.split_irqchip()?;
    let memory = MmapOptions::new().len(0x1000).map_anon()?;
    let fd = missing(&memory)?;
    if held {
        println!("{}", hold(&fd)?);
    }
    client.map(1, FAR, memory.as_ptr() as u64, memory.len() as u64)?;
    client.load(assemble(|a| {
        a.sti()?;
        a.mov(rbx, FAR)?;
        a.mov(rax, qword_ptr(rbx))
    })?)?;
    let mut vcpu = client.vcpu(0)?;
    vcpu.set_msrs(&Msrs::from_entries(&[kvm_msr_entry {
        index: ASYNC_PF_EN,
        data: AREA | 0xb,
        ..Default::default()
    }])?)?;
    std::thread::spawn(|| {
        std::thread::sleep(Duration::from_millis(300));
        // SAFETY: it ends this process.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) }
    });
    run(&mut vcpu)
}

/// A page that the kernel shows every process and that nobody counts references to ([vvar]), in a process that has not looked at
/// it: only that process can bring it in, so the guest waits, as on stock.
fn uncounted() -> Result<()> {
    const KVM_MEM_READONLY: u32 = 2;
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let line = maps.lines().find(|line| line.ends_with("[vvar]")).context("no [vvar]")?;
    let start = u64::from_str_radix(line.split('-').next().unwrap_or_default(), 16)?;
    let mut entry = [0; 8];
    std::fs::File::open("/proc/self/pagemap")?.read_exact_at(&mut entry, start >> 12 << 3)?;
    ensure!(u64::from_le_bytes(entry) >> 63 == 0, "somebody has looked at the page");
    let mut client = Client::new(4 << 20, true)?;
    client.split_irqchip()?;
    client.map_with(1, KVM_MEM_READONLY, FAR, start, 0x1000)?;
    guest(&mut client, 1, 1, true)?;
    let mut vcpu = client.vcpu(0)?;
    handlers::enable(&vcpu)?;
    run(&mut vcpu)?;
    ensure!(client.peek(TOLD) == 0, "told of {} pages", client.peek(TOLD));
    Ok(())
}

/// VMs that want as many pages as they may, which nobody brings.
const GREEDY: u64 = 20;
/// `MOST_OF_ONE`, `OF_ITS_OWN` and `MOST_IN_COMMON` of the module.
const MOST_OF_ONE: u64 = 64;
const OF_ITS_OWN: u64 = 8;
const MOST_IN_COMMON: u64 = 1024;

/// A guest that goes on to the next page whenever it is told that one is missing.
fn greedy(fds: &mut Vec<OwnedFd>) -> Result<&'static Client> {
    let mut client = Client::new(4 << 20, true)?;
    client.split_irqchip()?;
    let memory = MmapOptions::new().len(((MOST_OF_ONE + 1) << 12) as usize).map_anon()?;
    memory.advise(memmap2::Advice::NoHugePage)?;
    fds.push(missing(&memory)?);
    client.map(1, FAR, memory.as_ptr() as u64, memory.len() as u64)?;
    client.load(assemble(|a| {
        wrmsr(a, 0x1b, 0xfee0_0d00)?;
        wrmsr(a, 0x80f, 0x1ff)?;
        a.sti()?;
        wrmsr(a, ASYNC_PF_INT, VECTOR.into())?;
        wrmsr(a, ASYNC_PF_EN, AREA as u32 | 0xb)?;
        a.mov(rbx, FAR)?;
        a.mov(rax, qword_ptr(rbx))?;
        a.out(0x80, al)
    })?)?;
    handlers::install(&mut client, |a, vector| match vector {
        PF => {
            a.mov(dword_ptr(AREA), 0)?;
            a.inc(qword_ptr(TOLD))?;
            a.add(rbx, 0x1000)?;
            a.add(rsp, 8)?;
            a.iretq()
        }
        VECTOR => {
            a.mov(dword_ptr(AREA + 4), 0)?;
            wrmsr(a, X2APIC_EOI, 0)?;
            wrmsr(a, ASYNC_PF_ACK, 1)?;
            a.iretq()
        }
        _ => a.out(0x81, al),
    })?;
    let mut vcpu = client.vcpu(0)?;
    handlers::enable(&vcpu)?;
    // Both stay until the process ends.
    std::mem::forget(memory);
    std::thread::spawn(move || run(&mut vcpu));
    Ok(Box::leak(Box::new(client)))
}

/// However many pages other VMs wait for, one is told of each page of its own.
fn not_starved() -> Result<()> {
    let mut fds = Vec::new();
    let others = (0..GREEDY).map(|_| greedy(&mut fds)).collect::<Result<Vec<_>>>()?;
    let all = GREEDY * OF_ITS_OWN + MOST_IN_COMMON;
    ensure!(all < GREEDY * MOST_OF_ONE, "they are no match for the limit");
    let told = || others.iter().map(|client| client.peek(TOLD)).sum::<u64>();
    let begin = Instant::now();
    while told() != all {
        ensure!(begin.elapsed() < tests::pace::limit(Duration::from_secs(60)), "{} of {all} pages", told());
        std::thread::sleep(Duration::from_millis(20));
    }
    let (_, meanwhile, mine) = measured(1000, true)?;
    println!("beside {all} pages of others told of {mine}; {meanwhile} turns meanwhile");
    ensure!(mine == PAGES && told() == all, "told of {mine} pages, others of {}", told());
    Ok(())
}

fn main() -> Result<()> {
    let word = std::env::args().nth(1);
    if word.as_deref() == Some("starved") {
        return not_starved();
    }
    if word.as_deref() == Some("uncounted") {
        return uncounted();
    }
    if let Some(word @ ("abandon" | "held")) = word.as_deref() {
        return abandoned(word == "held");
    }
    let work = word.map_or(Ok(10_000_000), |w| w.parse())?;
    let (without, nothing, never) = measured(work, false)?;
    let (with, meanwhile, told) = measured(work, true)?;
    println!("{PAGES} pages after {DELAY:?} each, {work} turns: without {without:?}, with {with:?}");
    println!("told of {told} pages; {meanwhile} turns meanwhile");
    ensure!((nothing, never) == (0, 0), "told without having asked");
    ensure!(told == PAGES, "told of {told} pages");
    ensure!(meanwhile >= PAGES, "no other work was done");
    Ok(())
}
