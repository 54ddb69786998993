//! A VM whose vCPUs storm, and what is done to it meanwhile.

use crate::deeds::{Area, Maker};
use crate::{guest, state};
use anyhow::{Context, Result, anyhow, bail, ensure};
use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_sregs, kvm_vcpu_events};
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tests::client::Client;
use tests::pace::limit;
use tests::random::Random;
use vmm_sys_util::signal::{Killable, register_signal_handler};

/// vCPUs of a storm.
pub const CPUS: u64 = 4;
/// How long a vCPU may take to leave the guest, on an idle machine.
const PATIENCE: Duration = Duration::from_secs(30);
const KICK: libc::c_int = libc::SIGUSR1;

/// What kind of storm.
#[derive(Clone, Copy)]
pub struct Kind {
    pub areas: &'static [Area],
    /// The other interrupt controllers are in the kernel too.
    pub full: bool,
    /// Guests begin in x2APIC mode.
    pub x2apic: bool,
    /// User space sets random state between runs.
    pub state: bool,
}

/// How a vCPU left.
#[derive(Clone, Copy)]
enum Left {
    Device = 0,
    Lost = 1,
    Kicked = 2,
    /// It was never started.
    Waits = 3,
}

/// The registers with which a vCPU begins, and to which it is put back.
struct Start {
    regs: kvm_regs,
    sregs: kvm_sregs,
    events: kvm_vcpu_events,
    lapic: kvm_lapic_state,
}

impl Start {
    /// Of vCPU number `n`, which was just made.
    fn new(vcpu: &VcpuFd, n: u64, kind: Kind) -> Result<Self> {
        tests::handlers::enable(vcpu)?;
        guest::set_smbase(vcpu, n)?;
        let (mut regs, mut sregs, events) = (vcpu.get_regs()?, vcpu.get_sregs()?, vcpu.get_vcpu_events()?);
        guest::start(&mut regs, n);
        if kind.x2apic {
            sregs.apic_base |= 0x400;
            vcpu.set_sregs(&sregs)?;
        }
        let mut lapic = vcpu.get_lapic()?;
        // Enabled by software, and with a logical ID of its own.
        (lapic.regs[0xf0], lapic.regs[0xf1]) = (-1, 1);
        if !kind.x2apic {
            lapic.regs[0xd3] = 1 << n;
        }
        Ok(Self { regs, sregs, events, lapic })
    }

    fn put(&self, vcpu: &VcpuFd) -> Result<()> {
        vcpu.set_sregs(&self.sregs).context("KVM_SET_SREGS")?;
        vcpu.set_regs(&self.regs).context("KVM_SET_REGS")?;
        vcpu.set_vcpu_events(&self.events).context("KVM_SET_VCPU_EVENTS")?;
        vcpu.set_lapic(&self.lapic).context("KVM_SET_LAPIC")?;
        vcpu.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE }).context("KVM_SET_MP_STATE")
    }
}

/// What the threads have in common.
pub struct Shared {
    pub client: Client,
    /// What the guest may have destroyed, by address.
    image: Vec<(u64, Vec<u8>)>,
    stop: AtomicBool,
    /// How often vCPUs left for user space, by [`Left`].
    left: [AtomicU64; 4],
}

/// A storm on its way.
pub struct Storm {
    pub shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<()>>>,
    pub random: Random,
}

extern "C" fn kicked(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// A call that may fail as it is documented to.
pub fn documented<T>(what: &str, r: Result<T, kvm_ioctls::Error>, errnos: &[i32]) -> Result<Option<T>> {
    match r {
        Ok(v) => Ok(Some(v)),
        Err(e) if errnos.contains(&e.errno()) => Ok(None),
        Err(e) => Err(anyhow!("{what}: {e} is not documented")),
    }
}

impl Storm {
    /// Starts one.
    pub fn start(kind: Kind, mut random: Random) -> Result<Self> {
        register_signal_handler(KICK, kicked).map_err(|e| anyhow!("signal: {e}"))?;
        let mut client = Client::new(8 << 20, true)?;
        client.vm.set_tss_address(0xfffb_d000)?;
        if kind.full {
            client.full_irqchip()?;
        } else {
            client.split_irqchip()?;
        }
        guest::install(&mut client)?;
        guest::serve_smis(&mut client)?;
        let mut vcpus = Vec::new();
        for n in 0..CPUS {
            let maker = Maker::new(random.fork(), kind.x2apic);
            guest::set_list(&mut client, n, &maker.list(kind.areas));
            let vcpu = client.vcpu(n)?;
            let start = Start::new(&vcpu, n, kind)?;
            vcpus.push((vcpu, start, random.fork()));
        }
        let image = guest::IMAGE.map(|(at, len)| (at, client.memory()[at as usize..][..len].to_vec())).to_vec();
        let shared = Arc::new(Shared { client, image, stop: AtomicBool::new(false), left: Default::default() });
        let threads = vcpus.into_iter().map(|(vcpu, start, random)| {
            let shared = shared.clone();
            std::thread::spawn(move || one(vcpu, &start, random, &shared, kind))
        });
        Ok(Self { threads: threads.collect(), shared, random })
    }

    /// Has every vCPU leave the guest.
    pub fn kick(&self) -> Result<()> {
        for thread in &self.threads {
            thread.kill(KICK).map_err(|e| anyhow!("kick: {e}"))?;
        }
        Ok(())
    }

    /// Lets it go on for that long, and does `meanwhile` all the time.
    pub fn rage(
        &mut self,
        time: Duration,
        mut meanwhile: impl FnMut(&Client, &mut Random) -> Result<()>,
    ) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < time {
            for _ in 0..8 {
                meanwhile(&self.shared.client, &mut self.random)?;
            }
            std::thread::sleep(Duration::from_millis(self.random.below(4)));
            self.kick()?;
        }
        Ok(())
    }

    /// Ends it. Errors: a vCPU that failed, does not leave, or never did anything.
    pub fn end(self) -> Result<Arc<Shared>> {
        let deeds = |shared: &Shared| (0..CPUS).map(|n| shared.client.peek(guest::counter(n))).collect::<Vec<u64>>();
        let start = Instant::now();
        // On a loaded machine a thread may not have had its turn yet.
        while deeds(&self.shared).contains(&0) && start.elapsed() < limit(PATIENCE) {
            self.kick()?;
            std::thread::sleep(Duration::from_millis(2));
        }
        self.shared.stop.store(true, SeqCst);
        let start = Instant::now();
        while self.threads.iter().any(|t| !t.is_finished()) {
            self.kick()?;
            std::thread::sleep(Duration::from_millis(2));
            if start.elapsed() > limit(PATIENCE) {
                println!("FAIL a vCPU does not leave the guest");
                std::process::exit(1);
            }
        }
        for thread in self.threads {
            thread.join().map_err(|_| anyhow!("a vCPU's thread panicked"))??;
        }
        let done = deeds(&self.shared);
        let [device, lost, kicked, waits] = self.shared.left.each_ref().map(|n| n.load(SeqCst));
        let what = format!("deeds {done:?}; left {device} for devices, {lost} lost, {kicked} kicked, {waits} waiting");
        ensure!(done.iter().all(|n| *n > 0) && kicked > 5, "{what}");
        println!("  {what}");
        Ok(self.shared)
    }
}

/// A vCPU's thread.
fn one(mut vcpu: VcpuFd, start: &Start, mut random: Random, shared: &Shared, kind: Kind) -> Result<()> {
    start.put(&vcpu)?;
    while !shared.stop.load(SeqCst) {
        let left = match vcpu.run() {
            Ok(VcpuExit::IoOut(port, _)) if port != guest::LOST => Left::Device,
            Ok(VcpuExit::IoIn(_, data) | VcpuExit::MmioRead(_, data)) => {
                data.fill(0xa5);
                Left::Device
            }
            Ok(VcpuExit::MmioWrite(..) | VcpuExit::IoapicEoi(_) | VcpuExit::IrqWindowOpen) => Left::Device,
            // Started by another, shutdown, failed entry, what cannot be emulated.
            Ok(_) => Left::Lost,
            Err(e) if e.errno() == libc::EINTR => Left::Kicked,
            Err(e) if e.errno() == libc::EAGAIN => Left::Waits,
            Err(e) => bail!("KVM_RUN: {e}"),
        };
        if let Some(count) = shared.left.get(left as usize) {
            count.fetch_add(1, SeqCst);
        }
        // Where nobody starts a vCPU that waits, it is helped after a while.
        if matches!(left, Left::Lost) || !matches!(left, Left::Device) && random.below(8) == 0 {
            for (at, bytes) in &shared.image {
                shared.client.poke(*at, bytes);
            }
            start.put(&vcpu)?;
        } else if kind.state && random.below(4) == 0 {
            state::set_some(&vcpu, &mut random)?;
        }
    }
    Ok(())
}
