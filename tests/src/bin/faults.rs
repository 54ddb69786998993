//! Allocations that fail, on a kernel that lets them fail on demand (CONFIG_FAULT_INJECTION): whatever KVM is asked for, its
//! first allocation fails, then its second, and so on until none is left to fail; and again with failures at random. Each time
//! the caller gets an error that KVM documents, and the same request right after it works: nothing is half done.
//!
//! Failures are for one task alone (`/proc/thread-self/fail-nth`, `make-it-fail`), so nobody else in the host sees any.

use anyhow::{Context, Result, bail, ensure};
use kvm_bindings::*;
use kvm_ioctls::{IoEventAddress, NoDatamatch, VcpuExit, VcpuFd};
use memmap2::MmapOptions;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use tests::check;
use tests::client::{Client, assemble};
use tests::engines::{Directory, ENGINES};
use vmm_sys_util::eventfd::EventFd;

/// Where failures are configured.
const DEBUG: &str = "/sys/kernel/debug";
/// No request allocates more often.
const MOST: u32 = 400;
/// The guest says here that it has written to all of the window.
const SAYS: u16 = 0xf4;
const WINDOW: u64 = 0x4000_0000;
const PAGES: u64 = 96;
const SEED: u64 = 0x6873_6176_6500_0001;

/// What a request comes to.
type Outcome = Result<(), kvm_ioctls::Error>;

/// Everything that requests are made of; a fresh one for each failure.
struct Subject {
    vcpu: Option<VcpuFd>,
    client: Client,
    events: [EventFd; 2],
    window: memmap2::MmapMut,
}

impl Subject {
    fn new() -> Result<Self> {
        let mut client = Client::new(4 << 20, true)?;
        client.load(assemble(|a| {
            use iced_x86::code_asm::*;
            let mut touch = a.create_label();
            a.mov(r14, WINDOW)?;
            a.mov(r12, PAGES)?;
            a.set_label(&mut touch)?;
            a.inc(dword_ptr(r14))?;
            a.add(r14, 4096)?;
            a.sub(r12, 1)?;
            a.jnz(touch)?;
            a.mov(dx, u32::from(SAYS))?;
            a.out(dx, al)?;
            a.hlt()
        })?)?;
        let events = [EventFd::new(libc::EFD_NONBLOCK)?, EventFd::new(libc::EFD_NONBLOCK)?];
        Ok(Self { vcpu: None, client, events, window: MmapOptions::new().len((PAGES * 4096) as usize).map_anon()? })
    }

    fn with_chips() -> Result<Self> {
        let subject = Self::new()?;
        subject.client.full_irqchip()?;
        Ok(subject)
    }

    fn with_vcpu() -> Result<Self> {
        let mut subject = Self::with_chips()?;
        let window = subject.window.as_ptr() as u64;
        subject.client.map(1, WINDOW, window, PAGES * 4096)?;
        subject.vcpu = Some(subject.client.vcpu(0)?);
        Ok(subject)
    }

    fn vcpu(&mut self) -> Result<&mut VcpuFd, kvm_ioctls::Error> {
        self.vcpu.as_mut().ok_or_else(|| kvm_ioctls::Error::new(libc::EBADF))
    }
}

/// A request, and what it needs before.
struct Request {
    name: &'static str,
    before: fn() -> Result<Subject>,
    request: fn(&mut Subject) -> Outcome,
}

const fn request(name: &'static str, before: fn() -> Result<Subject>, request: fn(&mut Subject) -> Outcome) -> Request {
    Request { name, before, request }
}

/// Runs until the guest has said that all is written; then each page of the window has been counted up once.
fn run(subject: &mut Subject) -> Outcome {
    match subject.vcpu()?.run()? {
        VcpuExit::IoOut(SAYS, _) => Ok(()),
        _ => Err(kvm_ioctls::Error::new(libc::EPROTO)),
    }
}

/// KVM_CREATE_VCPU and KVM_GET_STATS_FD: the crate's own functions do more than the ioctl, which may fail on its own.
const CREATE_VCPU: libc::Ioctl = 0xae41;
const GET_STATS_FD: libc::Ioctl = 0xaece;

/// A request without argument that makes a descriptor, which is closed again.
fn new_fd(of: &impl AsRawFd, request: libc::Ioctl) -> Outcome {
    // SAFETY: the ioctl reads and writes no memory of ours.
    let fd = unsafe { libc::ioctl(of.as_raw_fd(), request, 0) };
    if fd < 0 {
        return Err(kvm_ioctls::Error::last());
    }
    // SAFETY: the descriptor is new and ours.
    drop(unsafe { std::fs::File::from_raw_fd(fd) });
    Ok(())
}

fn irqfd(s: &Subject, resample: bool) -> Outcome {
    match resample {
        false => s.client.vm.register_irqfd(&s.events[0], 5),
        true => s.client.vm.register_irqfd_with_resample(&s.events[0], &s.events[1], 5),
    }
}

const REQUESTS: &[Request] = &[
    request("create-vm", Subject::new, |s| s.client.kvm.create_vm().map(drop)),
    request("supported-cpuid", Subject::new, |s| s.client.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map(drop)),
    request("msr-index-list", Subject::new, |s| s.client.kvm.get_msr_index_list().map(drop)),
    request("create-irqchip", Subject::new, |s| s.client.vm.create_irq_chip()),
    request(
        "create-pit2",
        || {
            let s = Subject::new()?;
            s.client.vm.create_irq_chip()?;
            Ok(s)
        },
        |s| s.client.vm.create_pit2(kvm_pit_config::default()),
    ),
    request("create-vcpu", Subject::with_chips, |s| new_fd(&s.client.vm, CREATE_VCPU)),
    request("new-slot", Subject::new, |s| slot(s, 0, PAGES)),
    request("log-slot", Subject::with_vcpu, |s| slot(s, KVM_MEM_LOG_DIRTY_PAGES, PAGES)),
    request("delete-slot", Subject::with_vcpu, |s| slot(s, 0, 0)),
    request("gsi-routing", Subject::with_chips, |s| {
        let entry = |gsi| kvm_irq_routing_entry {
            gsi,
            type_: KVM_IRQ_ROUTING_MSI,
            u: kvm_irq_routing_entry__bindgen_ty_1 {
                msi: kvm_irq_routing_msi { address_lo: 0xfee0_0000, data: 0x40, ..Default::default() },
            },
            ..Default::default()
        };
        let entries: Vec<_> = (0..64).map(entry).collect();
        let routing = KvmIrqRouting::from_entries(&entries).map_err(|_| kvm_ioctls::Error::new(libc::EPROTO))?;
        s.client.vm.set_gsi_routing(&routing)
    }),
    request("irqfd", Subject::with_chips, |s| irqfd(s, false)),
    request("irqfd-resample", Subject::with_chips, |s| irqfd(s, true)),
    request("ioeventfd", Subject::new, |s| {
        s.client.vm.register_ioevent(&s.events[0], &IoEventAddress::Pio(0x500), NoDatamatch)
    }),
    request("coalesced", Subject::new, |s| {
        s.client.vm.register_coalesced_mmio(IoEventAddress::Mmio(0xd000_0000), 0x1000)
    }),
    request("cpuid2", Subject::with_vcpu, |s| {
        let cpuid = s.vcpu()?.get_cpuid2(KVM_MAX_CPUID_ENTRIES)?;
        s.vcpu()?.set_cpuid2(&cpuid)
    }),
    request("xsave", Subject::with_vcpu, |s| {
        let state = s.vcpu()?.get_xsave()?;
        // SAFETY: the guest was given no features of XSAVE that would want more than these 4 KiB.
        unsafe { s.vcpu()?.set_xsave(&state) }
    }),
    request("lapic", Subject::with_vcpu, |s| {
        let state = s.vcpu()?.get_lapic()?;
        s.vcpu()?.set_lapic(&state)
    }),
    request("msrs", Subject::with_vcpu, |s| {
        let entries = [kvm_msr_entry { index: 0x10, ..Default::default() }];
        let mut msrs = Msrs::from_entries(&entries).map_err(|_| kvm_ioctls::Error::new(libc::EPROTO))?;
        s.vcpu()?.get_msrs(&mut msrs)?;
        s.vcpu()?.set_msrs(&msrs).map(drop)
    }),
    request("sregs", Subject::with_vcpu, |s| {
        let sregs = s.vcpu()?.get_sregs()?;
        s.vcpu()?.set_sregs(&sregs)
    }),
    request(
        "dirty-log",
        || {
            let s = Subject::with_vcpu()?;
            slot(&s, KVM_MEM_LOG_DIRTY_PAGES, PAGES)?;
            Ok(s)
        },
        |s| s.client.vm.get_dirty_log(1, (PAGES * 4096) as usize).map(drop),
    ),
    request("vm-stats", Subject::new, |s| new_fd(&s.client.vm, GET_STATS_FD)),
    request("vcpu-stats", Subject::with_vcpu, |s| new_fd(s.vcpu()?, GET_STATS_FD)),
    request("upgrade", Subject::with_vcpu, |s| {
        let changed = Directory::of(&s.client.vm).upgrade(ENGINES[1]);
        changed.map_err(|e| kvm_ioctls::Error::new(e.raw_os_error().unwrap_or(libc::EPROTO)))
    }),
];

/// The second slot with these flags and so many pages.
fn slot(s: &Subject, flags: u32, pages: u64) -> Outcome {
    let region = kvm_userspace_memory_region {
        slot: 1,
        flags,
        guest_phys_addr: WINDOW,
        memory_size: pages * 4096,
        userspace_addr: s.window.as_ptr() as u64,
    };
    // SAFETY: the mapping outlives the VM (`Subject` drops it last), and the guest may write to it.
    unsafe { s.client.vm.set_user_memory_region(region) }
}

/// What fails a task's allocations.
struct Fault(std::fs::File);

impl Fault {
    fn new() -> Result<Self> {
        let file = std::fs::File::options().read(true).write(true).open("/proc/thread-self/fail-nth");
        Ok(Self(file.context("/proc/thread-self/fail-nth")?))
    }

    /// Does `f`, whose `nth` allocation fails. Returns also whether there were so many.
    fn during<T>(&mut self, nth: u32, f: impl FnOnce() -> T) -> Result<(T, bool)> {
        let arm = nth.to_string();
        self.0.write_all(arm.as_bytes())?;
        let result = f();
        let mut left = [0; 16];
        // Looking at it may itself fail, which is then the failure that was left.
        let n = self.0.read_at(&mut left, 0).unwrap_or(0);
        let failed = n > 0 && left.first() == Some(&b'0');
        let _ = self.0.write_all(b"0");
        Ok((result, failed))
    }
}

/// Errors that a request without memory may have; EFAULT is for a copy from or to the caller.
fn is_documented(error: kvm_ioctls::Error) -> bool {
    matches!(error.errno(), libc::ENOMEM | libc::EFAULT | libc::EINTR | libc::EAGAIN)
}

/// Settings of the kernel's fault injection: for tasks that ask for it alone, allocations that may sleep included, and silent.
fn configure(probability: u32) -> Result<()> {
    for kind in ["failslab", "fail_page_alloc", "fail_usercopy"] {
        let set = |name: &str, value: &str| -> Result<()> {
            let path = format!("{DEBUG}/{kind}/{name}");
            std::fs::write(&path, value).with_context(|| format!("{path}: is this a kernel with fault injection?"))
        };
        set("task-filter", "Y")?;
        set("verbose", "0")?;
        set("interval", "1")?;
        set("times", "-1")?;
        // Copies are requests' own arguments: at random they would hardly let anything through.
        set("probability", &if kind == "fail_usercopy" { 0 } else { probability }.to_string())?;
        match kind {
            "failslab" => set("ignore-gfp-wait", "N")?,
            "fail_page_alloc" => {
                set("ignore-gfp-wait", "N")?;
                set("ignore-gfp-highmem", "N")?;
                set("min-order", "0")?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Each allocation of each request fails once.
fn one_by_one() -> Result<()> {
    configure(0)?;
    let (mut fault, mut total) = (Fault::new()?, 0);
    for Request { name, before, request } in REQUESTS {
        let mut nth = 1;
        loop {
            let mut subject = before()?;
            let (outcome, failed) = fault.during(nth, || request(&mut subject))?;
            match outcome {
                Ok(()) => {}
                Err(error) if failed && is_documented(error) => {
                    // Nothing is half done: the same again, with memory.
                    request(&mut subject).with_context(|| format!("{name}, again after failure {nth} ({error})"))?;
                }
                Err(error) => bail!("{name}, failure {nth}: {error}"),
            }
            if !failed {
                break;
            }
            nth += 1;
            ensure!(nth < MOST, "{name} allocates without end");
        }
        // Some need nothing that was not there before.
        total += nth - 1;
        println!("{name}: {} failures", nth - 1);
    }
    ensure!(total > 100, "only {total} failures: is anything made to fail?");
    Ok(())
}

/// While a guest runs: however often KVM_RUN fails, it goes on where it was, and each page is written once.
fn running() -> Result<()> {
    configure(0)?;
    let mut fault = Fault::new()?;
    let mut nth = 1;
    loop {
        let mut subject = Subject::with_vcpu()?;
        let (outcome, failed) = fault.during(nth, || run(&mut subject))?;
        if let Err(error) = outcome {
            ensure!(failed && is_documented(error), "failure {nth}: {error}");
            run(&mut subject).with_context(|| format!("again after failure {nth} ({error})"))?;
        }
        ensure!(counted(&subject), "failure {nth}: a page was written twice or not at all");
        if !failed {
            break;
        }
        nth += 1;
        ensure!(nth < 10 * MOST, "it allocates without end");
    }
    ensure!(nth > PAGES as u32 / 2, "only {nth} allocations: is anything made to fail?");
    println!("run: {} failures", nth - 1);
    Ok(())
}

fn counted(subject: &Subject) -> bool {
    subject.window.chunks(4096).all(|page| page.starts_with(&[1, 0, 0, 0]))
}

/// Failures at random, in all that a VM's life consists of.
fn at_random() -> Result<()> {
    let mut fail = std::fs::File::options().write(true).open("/proc/thread-self/make-it-fail")?;
    let (mut failed, mut state) = (0, SEED);
    for probability in [2, 10, 30] {
        configure(probability)?;
        for _ in 0..30 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let Some(Request { name, before, request }) = REQUESTS.get(state as usize % REQUESTS.len()) else {
                continue;
            };
            let mut subject = before()?;
            let mut guest = Subject::with_vcpu()?;
            fail.write_all(b"1")?;
            let outcomes = [request(&mut subject), run(&mut guest)];
            // Not an allocation of this program's own.
            let off = fail.write_all(b"0");
            off.or_else(|_| fail.write_all(b"0"))?;
            for (outcome, name) in outcomes.into_iter().zip([*name, "run"]) {
                if let Err(error) = outcome {
                    ensure!(is_documented(error), "{name}: {error}");
                    failed += 1;
                }
            }
            // Until it gets through.
            if !counted(&guest) {
                run(&mut guest).context("again after a failure at random")?;
            }
            ensure!(counted(&guest), "a page was written twice or not at all");
        }
    }
    configure(0)?;
    ensure!(failed > 10, "only {failed} failures: is anything made to fail?");
    Ok(())
}

fn main() -> Result<()> {
    check::run(&[("one-by-one", one_by_one), ("running", running), ("at-random", at_random)])
}
