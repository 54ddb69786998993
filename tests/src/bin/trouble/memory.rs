//! Guest memory that does not come, and guest memory that fails, in each way in which a guest comes to need it.

use anyhow::{Context, Result, bail, ensure};
use iced_x86::code_asm::*;
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};
use tests::client::{CODE, Client, assemble};
use tests::pace::leaves_out;

/// Where the memory that makes trouble lies in the guest, and how much there is of it.
pub const WINDOW: u64 = 0x4000_0000;
pub const PAGES: usize = 16;
pub const PAGE: usize = 4096;
/// The guest says here what it read.
const SAYS: u16 = 0xf4;
/// A device, to which the guest moves memory in one instruction.
const DEVICE: u64 = 0x8000_0000;
/// Longer than anything here takes, but for a wait that does not end.
pub const SOON: Duration = Duration::from_secs(20);

/// Fresh pages of this process, page aligned, unmapped at the end.
pub struct Pages(*mut libc::c_void);

impl Pages {
    pub fn new(flags: i32) -> Result<Self> {
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags);
        // SAFETY: a new mapping.
        let at = unsafe { libc::mmap(null_mut(), PAGES * PAGE, prot, flags, -1, 0) };
        ensure!(at != libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        Ok(Self(at))
    }

    pub fn address(&self) -> u64 {
        self.0 as u64
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: ours, and nobody looks at it any more.
        unsafe { libc::munmap(self.0, PAGES * PAGE) };
    }
}

/// How the guest comes to need a page.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// A load.
    Load,
    /// A store.
    Store,
    /// Code.
    Code,
    /// The processor's walk through a page table.
    Walk,
    /// A move to a device, which the kernel carries out once the processor has had its load.
    Device,
    /// A load that the kernel carries out, to a port.
    Port,
    /// The kernel's own walk through a page table, for the same.
    PortWalk,
}

const WAYS: [Way; 7] = [Way::Load, Way::Store, Way::Code, Way::Walk, Way::Device, Way::Port, Way::PortWalk];

/// Linear addresses from here on are mapped through the page directory in the page that makes trouble, for [`Way::Walk`].
const WALKED: u64 = 0xc000_0000;
/// Its place in the table above.
const WALKED_ENTRY: u64 = 0x2000 + 8 * 3;

/// What is in each page of the window: the guest says it where it reads it. It is also an entry of a page directory, for memory from 0
/// on, and code behind that, which says it.
fn content() -> Result<[u8; PAGE]> {
    let mut code = assemble(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.mov(eax, ENTRY as u32)?;
        a.mov(dx, u32::from(SAYS))?;
        a.out(dx, eax)?;
        a.jmp(again)
    })?;
    let code = code.assemble(WINDOW + 8)?;
    let mut page = [0; PAGE];
    page[..8].copy_from_slice(&ENTRY.to_le_bytes());
    page[8..8 + code.len()].copy_from_slice(&code);
    Ok(page)
}

/// Present, writable, accessed and dirty, 2 MiB.
const ENTRY: u64 = 0xe3;

/// A guest that needs the page of the window at RSI, in this way, again and again, and says what it found there.
fn reader(window: &Pages, way: Way) -> Result<(Client, VcpuFd)> {
    let mut client = Client::new(8 << 20, true)?;
    client.split_irqchip()?;
    client.map(1, WINDOW, window.address(), (PAGES * PAGE) as u64)?;
    client.load(assemble(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.mov(rdi, DEVICE)?;
        a.mov(dx, u32::from(SAYS))?;
        match way {
            Way::Load => a.mov(eax, dword_ptr(rsi))?,
            Way::Store => {
                a.mov(eax, ENTRY as u32)?;
                a.mov(dword_ptr(rsi), eax)?;
            }
            Way::Code => {
                a.add(rsi, 8)?;
                return a.jmp(rsi);
            }
            // Somewhere in memory that is zero, behind tables that nobody has walked yet.
            Way::Walk => {
                a.mov(rbx, WALKED + 0x8_0000)?;
                a.mov(eax, dword_ptr(rbx))?;
                a.add(eax, ENTRY as u32)?;
            }
            Way::Device | Way::Port | Way::PortWalk => {
                a.mov(rbx, rsi)?;
                if matches!(way, Way::PortWalk) {
                    a.mov(rsi, WALKED + 0x8_0000)?;
                }
                if matches!(way, Way::Device) {
                    a.movsd()?
                } else {
                    a.outsd()?
                }
                a.mov(rsi, rbx)?;
                return a.jmp(again);
            }
        }
        a.out(dx, eax)?;
        a.jmp(again)
    })?)?;
    let vcpu = client.vcpu(0)?;
    Ok((client, vcpu))
}

/// What the guest says of the page at first.
fn found(way: Way) -> u32 {
    if matches!(way, Way::PortWalk) { 0 } else { ENTRY as u32 }
}

/// The guest begins anew, with this page of the window.
fn aim(client: &Client, vcpu: &VcpuFd, way: Way, at: u64) -> Result<()> {
    if matches!(way, Way::Walk | Way::PortWalk) {
        client.poke(WALKED_ENTRY, &(at | 3).to_le_bytes());
        // Nothing is known of the tables that were there before.
        vcpu.set_sregs(&vcpu.get_sregs()?)?;
    }
    let mut regs = vcpu.get_regs()?;
    (regs.rip, regs.rsi) = (CODE, at);
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

pub extern "C" fn nothing(_: i32) {}

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

fn serve(fd: &OwnedFd, at: u64, page: &[u8; PAGE]) -> Result<()> {
    const COPY: u64 = 0xc028_aa03;
    let mut copy = [at, page.as_ptr() as u64, PAGE as u64, 0, 0];
    // SAFETY: a struct of the size that the number names, with the address of a page.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), COPY, copy.as_mut_ptr()) };
    ensure!(done == 0, "UFFDIO_COPY: {}", std::io::Error::last_os_error());
    Ok(())
}

pub fn does_not_come() -> Result<()> {
    let page = content()?;
    for (n, way) in WAYS.into_iter().enumerate() {
        let window = Pages::new(0)?;
        let fd = userfault(&window)?;
        let (client, mut vcpu) = reader(&window, way)?;
        let offset = (1 + 2 * n) as u64 * PAGE as u64;
        aim(&client, &vcpu, way, WINDOW + offset)?;
        for _ in 0..2 {
            interrupted(&mut vcpu).with_context(|| format!("{way:?}"))?;
        }
        serve(&fd, window.address() + offset, &page)?;
        let said = says(&mut vcpu)?;
        ensure!(said == Ok(found(way)), "{way:?}: the page is there, and the guest says {said:x?}");
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

pub fn fails() -> Result<()> {
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
    let page = content()?;
    for (n, way) in WAYS.into_iter().enumerate() {
        let window = Pages::new(libc::MAP_POPULATE)?;
        for n in 0..PAGES {
            // SAFETY: a page of ours.
            unsafe { window.0.byte_add(n * PAGE).cast::<u8>().copy_from_nonoverlapping(page.as_ptr(), PAGE) };
        }
        let (client, mut vcpu) = reader(&window, way)?;
        let offset = (1 + 2 * n) as u64 * PAGE as u64;
        aim(&client, &vcpu, way, WINDOW + offset)?;
        ensure!(says(&mut vcpu)? == Ok(found(way)), "{way:?}: before");
        aim(&client, &vcpu, way, WINDOW + offset)?;
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
            ensure!(got == Err(libc::EINTR), "{way:?}: KVM_RUN: {got:?}");
            let seen = (CODE_SEEN.load(SeqCst), ADDRESS.load(SeqCst), LSB.load(SeqCst));
            ensure!(seen == (BUS_MCEERR_AR, at, 12), "{way:?}: SIGBUS {seen:x?} for the page at {at:x}");
        }
        // The rest of the memory is as good as ever.
        aim(&client, &vcpu, way, WINDOW)?;
        ensure!(says(&mut vcpu)? == Ok(found(way)), "{way:?}: another page");
    }
    Ok(())
}
