//! What a VMM meets when things go wrong around it: memory that does not come or that fails, files that cannot be made, an
//! eventfd that is taken, a thread that asks a vCPU's file for what it is; and VMMs of 32 bits.

mod descriptors;

use anyhow::{Context, Result, bail, ensure};
use iced_x86::code_asm::*;
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_dirty_log};
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};
use std::{arch::asm, ptr::null_mut, thread};
use tests::check;
use tests::client::{CODE, Client, assemble};
use tests::pace::leaves_out;

/// Where the memory that makes trouble lies in the guest, and how much there is of it.
const WINDOW: u64 = 0x4000_0000;
const PAGES: usize = 16;
const PAGE: usize = 4096;
/// The guest says here what it read.
const SAYS: u16 = 0xf4;
/// A device, to which the guest moves memory in one instruction.
const DEVICE: u64 = 0x8000_0000;
/// Longer than anything here takes, but for a wait that does not end.
const SOON: Duration = Duration::from_secs(20);

/// Fresh pages of this process, page aligned, unmapped at the end.
struct Pages(*mut libc::c_void);

impl Pages {
    fn new(flags: i32) -> Result<Self> {
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags);
        // SAFETY: a new mapping.
        let at = unsafe { libc::mmap(null_mut(), PAGES * PAGE, prot, flags, -1, 0) };
        ensure!(at != libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        Ok(Self(at))
    }

    fn address(&self) -> u64 {
        self.0 as u64
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: ours, and nobody looks at it any more.
        unsafe { libc::munmap(self.0, PAGES * PAGE) };
    }
}

/// A guest that says the dword at RSI for ever, or (RBP set) moves it to the device.
fn reader(window: &Pages) -> Result<(Client, VcpuFd)> {
    let mut client = Client::new(8 << 20, true)?;
    client.split_irqchip()?;
    client.map(1, WINDOW, window.address(), (PAGES * PAGE) as u64)?;
    client.load(assemble(|a| {
        let (mut again, mut device) = (a.create_label(), a.create_label());
        a.set_label(&mut again)?;
        a.test(ebp, ebp)?;
        a.jnz(device)?;
        a.mov(eax, dword_ptr(rsi))?;
        a.mov(dx, u32::from(SAYS))?;
        a.out(dx, eax)?;
        a.jmp(again)?;
        a.set_label(&mut device)?;
        a.movsd()?;
        a.jmp(again)
    })?)?;
    let vcpu = client.vcpu(0)?;
    Ok((client, vcpu))
}

fn aim(vcpu: &VcpuFd, at: u64, device: bool) -> Result<()> {
    let mut regs = vcpu.get_regs()?;
    (regs.rip, regs.rsi, regs.rdi, regs.rbp) = (CODE, at, DEVICE, device.into());
    Ok(vcpu.set_regs(&regs)?)
}

/// KVM_RUN until the guest says something: that, or the errno.
fn says(vcpu: &mut VcpuFd) -> Result<Result<u32, i32>> {
    Ok(match vcpu.run() {
        Ok(VcpuExit::IoOut(SAYS, bytes)) => Ok(u32::from_le_bytes(bytes.try_into()?)),
        Ok(VcpuExit::MmioWrite(DEVICE, bytes)) => Ok(u32::from_le_bytes(bytes.try_into()?)),
        Ok(other) => bail!("the guest left with {other:?}"),
        Err(e) => Err(e.errno()),
    })
}

extern "C" fn nothing(_: i32) {}

/// A signal whose handler does nothing and does not restart system calls, for this thread in a while; and again until the
/// result is dropped, should it have come too early.
fn signal_soon() -> impl Drop {
    struct Nagging(std::sync::mpsc::Sender<()>);
    impl Drop for Nagging {
        fn drop(&mut self) {
            let _ = self.0.send(());
        }
    }
    // SAFETY: the handler touches nothing; the thread that is signalled waits for the result to be dropped.
    let me = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        libc::sigaction(libc::SIGUSR1, &action, null_mut());
        libc::pthread_self()
    };
    let (sender, receiver) = std::sync::mpsc::channel();
    thread::spawn(move || {
        while receiver.recv_timeout(Duration::from_millis(300)).is_err() {
            // SAFETY: the thread lives: it holds the other end.
            unsafe { libc::pthread_kill(me, libc::SIGUSR1) };
        }
    });
    Nagging(sender)
}

/// Does the errno come within moments, with a signal on its way?
fn interrupted(vcpu: &mut VcpuFd) -> Result<()> {
    let since = Instant::now();
    let nagging = signal_soon();
    let got = says(vcpu)?;
    drop(nagging);
    ensure!(got == Err(libc::EINTR), "KVM_RUN: {got:?}");
    ensure!(since.elapsed() < SOON, "after {:?}", since.elapsed());
    Ok(())
}

/// Pages that nobody serves until the test does.
fn userfault(window: &Pages) -> Result<OwnedFd> {
    const API: u64 = 0xc018_aa3f;
    const REGISTER: u64 = 0xc020_aa00;
    const MISSING: u64 = 1;
    // SAFETY: a new descriptor, and structs of the size that the numbers name.
    unsafe {
        let fd = libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC);
        ensure!(fd >= 0, "userfaultfd: {}", std::io::Error::last_os_error());
        let fd = OwnedFd::from_raw_fd(fd as RawFd);
        let mut api = [0xaau64, 0, 0];
        ensure!(libc::ioctl(fd.as_raw_fd(), API, api.as_mut_ptr()) == 0, "UFFDIO_API");
        let mut register = [window.address(), (PAGES * PAGE) as u64, MISSING, 0];
        ensure!(libc::ioctl(fd.as_raw_fd(), REGISTER, register.as_mut_ptr()) == 0, "UFFDIO_REGISTER");
        Ok(fd)
    }
}

fn serve(fd: &OwnedFd, at: u64) -> Result<()> {
    const ZEROPAGE: u64 = 0xc020_aa04;
    let mut range = [at, PAGE as u64, 0, 0];
    // SAFETY: a struct of the size that the number names.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), ZEROPAGE, range.as_mut_ptr()) };
    ensure!(done == 0, "UFFDIO_ZEROPAGE: {}", std::io::Error::last_os_error());
    Ok(())
}

fn memory_that_does_not_come() -> Result<()> {
    let window = Pages::new(0)?;
    let fd = userfault(&window)?;
    let (_client, mut vcpu) = reader(&window)?;
    for (n, device) in [(1, false), (5, true)] {
        let offset = n * PAGE as u64;
        aim(&vcpu, WINDOW + offset, device)?;
        for _ in 0..2 {
            interrupted(&mut vcpu).with_context(|| format!("device {device}"))?;
        }
        serve(&fd, window.address() + offset)?;
        ensure!(says(&mut vcpu)? == Ok(0), "the page is there");
    }
    Ok(())
}

/// Of the last SIGBUS: code, address, and the number of address bits that do not count.
static CODE_SEEN: AtomicI32 = AtomicI32::new(0);
static ADDRESS: AtomicU64 = AtomicU64::new(0);
static LSB: AtomicU32 = AtomicU32::new(0);

extern "C" fn on_sigbus(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel's struct: for SIGBUS, 16 bytes of header and padding, the address, and a 16-bit number.
    unsafe {
        CODE_SEEN.store((*info).si_code, SeqCst);
        ADDRESS.store((*info).si_addr() as u64, SeqCst);
        LSB.store(info.cast::<u16>().add(12).read().into(), SeqCst);
    }
}

fn memory_that_fails() -> Result<()> {
    // The page is lost to the machine until it restarts.
    if leaves_out("takes pages of memory away") {
        return Ok(());
    }
    const MADV_HWPOISON: i32 = 100;
    const BUS_MCEERR_AR: i32 = 4;
    // SAFETY: the handler stores numbers.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_sigbus as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGBUS, &action, null_mut());
    }
    for (n, device) in [(2u64, false), (9, true)] {
        let window = Pages::new(libc::MAP_POPULATE)?;
        let (_client, mut vcpu) = reader(&window)?;
        let offset = n * PAGE as u64;
        aim(&vcpu, WINDOW + offset + 8, device)?;
        ensure!(says(&mut vcpu)? == Ok(0), "before");
        aim(&vcpu, WINDOW + offset + 8, device)?;
        let at = window.address() + offset;
        // SAFETY: a page of ours.
        if unsafe { libc::madvise(at as *mut libc::c_void, PAGE, MADV_HWPOISON) } != 0 {
            let error = std::io::Error::last_os_error();
            ensure!(error.raw_os_error() == Some(libc::EINVAL), "MADV_HWPOISON: {error}");
            println!("a kernel without CONFIG_MEMORY_FAILURE");
            return Ok(());
        }
        for _ in 0..2 {
            CODE_SEEN.store(0, SeqCst);
            let got = says(&mut vcpu)?;
            ensure!(got == Err(libc::EINTR), "KVM_RUN: {got:?}");
            let seen = (CODE_SEEN.load(SeqCst), ADDRESS.load(SeqCst), LSB.load(SeqCst));
            ensure!(seen == (BUS_MCEERR_AR, at, 12), "SIGBUS {seen:x?} for the page at {at:x}");
        }
        // The rest of the memory is as good as ever.
        aim(&vcpu, WINDOW, device)?;
        ensure!(says(&mut vcpu)? == Ok(0), "another page");
    }
    Ok(())
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// ioctl as a 32-bit program calls it: the result, or the negative errno.
fn ioctl_32(fd: RawFd, cmd: u32, arg: u64) -> i32 {
    let result: i64;
    // SAFETY: the kernel's other entry for system calls; the arguments are numbers and an address below 4 GiB.
    unsafe {
        asm!(
            "xchg {fd:r}, rbx", "int 0x80", "xchg {fd:r}, rbx",
            fd = inout(reg) fd as u64 => _,
            inlateout("rax") 54u64 => result,
            in("rcx") u64::from(cmd),
            in("rdx") arg,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    result as i32
}

fn callers_of_32_bits() -> Result<()> {
    const GET_DIRTY_LOG: u32 = 0x4010_ae42;
    const CLEAR_DIRTY_LOG: u32 = 0xc018_aec0;
    const SET_MSR_FILTER: u32 = 0x4104_aec6;
    const GET_API_VERSION: u32 = 0xae00;
    const SET_SIGNAL_MASK: u32 = 0x4004_ae8b;
    const RUBBISH: u32 = 0xdead_beef;
    let low = Pages::new(libc::MAP_32BIT | libc::MAP_POPULATE)?;
    let (arg, bitmap) = (low.address(), low.address() + PAGE as u64);
    ensure!(arg >> 32 == 0, "memory below 4 GiB");
    let put = |words: &[u32]| {
        // SAFETY: the first page is ours, and large enough.
        unsafe { (arg as *mut u32).copy_from_nonoverlapping(words.as_ptr(), words.len()) };
        arg
    };
    let window = Pages::new(0)?;
    let client = Client::new(8 << 20, false)?;
    let fd = client.vm.as_raw_fd();
    if ioctl_32(client.kvm.as_raw_fd(), GET_API_VERSION, 0) != 12 {
        println!("a kernel that runs no 32-bit programs");
        return Ok(());
    }
    client.map_with(1, KVM_MEM_LOG_DIRTY_PAGES, WINDOW, window.address(), (PAGES * PAGE) as u64)?;
    let got = ioctl_32(fd, GET_DIRTY_LOG, put(&[1, RUBBISH, bitmap as u32, RUBBISH]));
    ensure!(got == 0, "KVM_GET_DIRTY_LOG: {got}");
    let native = kvm_dirty_log::default();
    ensure!(size_of_val(&native) == 16, "the struct of either size");
    let mut cap = kvm_bindings::kvm_enable_cap { cap: 168, ..Default::default() };
    cap.args[0] = 1;
    client.vm.enable_cap(&cap).context("KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2")?;
    let got = ioctl_32(fd, CLEAR_DIRTY_LOG, put(&[1, PAGES as u32, 0, 0, bitmap as u32, RUBBISH]));
    ensure!(got == 0, "KVM_CLEAR_DIRTY_LOG: {got}");
    // Flags; flags, number, first MSR, bitmap.
    let mut filter = [0u32; 65];
    filter[..5].copy_from_slice(&[1, 3, 8, 0x174, bitmap as u32]);
    let got = ioctl_32(fd, SET_MSR_FILTER, put(&filter));
    ensure!(got == 0, "KVM_X86_SET_MSR_FILTER: {got}");
    let vcpu = client.vm.create_vcpu(0)?;
    let got = ioctl_32(vcpu.as_raw_fd(), SET_SIGNAL_MASK, put(&[8, 0, 0]));
    ensure!(got == 0, "KVM_SET_SIGNAL_MASK: {got}");
    let got = ioctl_32(vcpu.as_raw_fd(), SET_SIGNAL_MASK, put(&[4, 0, 0]));
    ensure!(got == -libc::EINVAL, "KVM_SET_SIGNAL_MASK of another length: {got}");
    Ok(())
}

fn main() -> Result<()> {
    check::run(&[
        ("memory-that-does-not-come", memory_that_does_not_come),
        ("memory-that-fails", memory_that_fails),
        ("files-that-cannot-be-made", descriptors::files_that_cannot_be_made),
        ("eventfds-that-are-taken", descriptors::eventfds_that_are_taken),
        ("others-ask-a-vcpu-that-runs", descriptors::others_ask_a_vcpu_that_runs),
        ("callers-of-32-bits", callers_of_32_bits),
    ])
}
