//! The machine: memory, interrupt controllers, eventfds, and a thread for each vCPU.

use crate::{
    Config, DOORBELL_ADDRESS, DOORBELL_PORT, boot,
    bus::{Bus, DevicesState, Script},
    snapshot::{self, State, VcpuState},
    vcpu::{self, Pause},
};
use anyhow::{Context, Result, anyhow, bail, ensure};
use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_MAX_CPUID_ENTRIES, KVM_MEM_LOG_DIRTY_PAGES, KVM_PIT_SPEAKER_DUMMY, kvm_enable_cap,
    kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, Kvm, NoDatamatch, VcpuFd, VmFd};
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::Duration,
};
use vm_memory::{Address, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::{
    eventfd::{EFD_NONBLOCK, EventFd},
    signal::Killable,
};

/// Bytes of guest memory.
const MEMORY: u64 = 256 << 20;
/// The UART's line.
const SERIAL_GSI: u32 = 4;

/// A machine that is ready to run.
pub struct Machine {
    kvm: Arc<Kvm>,
    vm: Arc<VmFd>,
    vcpus: Vec<VcpuFd>,
    bus: Arc<Mutex<Bus>>,
    /// At the port, at the address.
    doorbells: [EventFd; 2],
    memory: GuestMemoryMmap,
    split: bool,
    save: Option<PathBuf>,
}

/// How a run ends.
pub enum End {
    /// The guest is off, having rung the two doorbells so often.
    Off { rung: [u64; 2] },
    /// The guest is in the files.
    Saved,
}

/// What a vCPU's thread has to say.
pub enum Event {
    /// The guest powered itself off.
    Off,
    /// The script wants the machine saved, and left if so.
    Save { leave: bool },
    /// Paused, in this state.
    Paused(u8, Box<VcpuState>),
    /// It ended.
    Failed(anyhow::Error),
}

impl Machine {
    /// Builds it and loads a guest, in the order in which Firecracker does.
    pub fn boot(config: &Config, script: Script) -> Result<Self> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)])?;
        let (devices, save) = (DevicesState::reset(config.split), config.save.clone());
        let machine = Self::bare(memory, config.cpus, devices, script, save)?;
        let supported = machine.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).context("KVM_GET_SUPPORTED_CPUID")?;
        for (id, vcpu) in (0..).zip(&machine.vcpus) {
            let cpuid = vcpu::cpuid(&supported, id, config.cpus, config.acpi());
            vcpu.set_cpuid2(&cpuid).context("KVM_SET_CPUID2")?;
        }
        let entry = boot::load(config, &machine.memory, MEMORY)?;
        vcpu::write_tables(&machine.memory)?;
        vcpu::start_at(machine.vcpus.first().context("a vCPU")?, &entry)?;
        Ok(machine)
    }

    /// Builds it as it was when it was saved.
    pub fn restore(dir: &Path, script: Script) -> Result<Self> {
        let state = State::read(dir)?;
        let memory = snapshot::map_memory(dir, MEMORY as usize)?;
        let machine = Self::bare(memory, u8::try_from(state.vcpus.len())?, state.devices, script, None)?;
        for (vcpu, state) in machine.vcpus.iter().zip(&state.vcpus) {
            snapshot::restore_vcpu(vcpu, state)?;
        }
        snapshot::restore_vm(&machine.vm, &state.vm)?;
        Ok(machine)
    }

    /// The machine as it is bought.
    fn bare(
        memory: GuestMemoryMmap,
        cpus: u8,
        devices: DevicesState,
        script: Script,
        save: Option<PathBuf>,
    ) -> Result<Self> {
        let kvm = Arc::new(Kvm::new().context("opening /dev/kvm")?);
        let vm = Arc::new(kvm.create_vm().context("KVM_CREATE_VM")?);
        for (slot, region) in memory.iter().enumerate() {
            let region = kvm_userspace_memory_region {
                slot: slot as u32,
                flags: if save.is_some() { KVM_MEM_LOG_DIRTY_PAGES } else { 0 },
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: `Machine` keeps the memory for as long as the VM.
            unsafe { vm.set_user_memory_region(region) }.context("KVM_SET_USER_MEMORY_REGION")?;
        }
        vm.set_tss_address(0xfffb_d000).context("KVM_SET_TSS_ADDR")?;
        let split = devices.split();
        if split {
            let mut cap = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
            cap.args[0] = 24;
            vm.enable_cap(&cap).context("KVM_CAP_SPLIT_IRQCHIP")?;
        } else {
            vm.create_irq_chip().context("KVM_CREATE_IRQCHIP")?;
            let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
            vm.create_pit2(pit).context("KVM_CREATE_PIT2")?;
        }
        let create = |id| vm.create_vcpu(id).context("KVM_CREATE_VCPU");
        let vcpus = (0..cpus.into()).map(create).collect::<Result<_>>()?;
        let line = EventFd::new(EFD_NONBLOCK)?;
        vm.register_irqfd(&line, SERIAL_GSI).context("KVM_IRQFD")?;
        let doorbells = [EventFd::new(EFD_NONBLOCK)?, EventFd::new(EFD_NONBLOCK)?];
        let at = [IoEventAddress::Pio(DOORBELL_PORT.into()), IoEventAddress::Mmio(DOORBELL_ADDRESS)];
        for (doorbell, at) in doorbells.iter().zip(&at) {
            vm.register_ioevent(doorbell, at, NoDatamatch).context("KVM_IOEVENTFD")?;
        }
        let bus = Arc::new(Mutex::new(Bus::new(vm.clone(), line, devices, script)?));
        Ok(Self { kvm, vm, vcpus, bus, doorbells, memory, split, save })
    }

    /// Runs until the guest is off or saved. The vCPUs' threads end with the process.
    pub fn run(mut self) -> Result<End> {
        vcpu::catch_kicks()?;
        let (sender, events) = channel();
        let pause = Arc::new(Pause::default());
        let mut threads = Vec::new();
        for (id, vcpu) in (0..).zip(std::mem::take(&mut self.vcpus)) {
            threads.push(self.start(id, vcpu, &pause, &sender));
        }
        let mut saved = false;
        let end = loop {
            match events.recv().context("the vCPUs ended without a word")? {
                Event::Off => break self.off(),
                Event::Save { leave } => {
                    self.save(&threads, &events, saved)?;
                    if leave {
                        break Ok(End::Saved);
                    }
                    saved = true;
                    pause.end();
                }
                Event::Paused(id, _) => bail!("vCPU {id} pauses unasked"),
                Event::Failed(error) => break Err(error),
            }
        };
        // The memory goes with the process: other vCPUs may still be in the guest.
        std::mem::forget(self);
        end
    }

    fn off(&self) -> Result<End> {
        let bus = self.bus.lock().map_err(|_| anyhow!("a vCPU's thread failed"))?;
        ensure!(bus.finished(), "the guest is off before it answered everything");
        Ok(End::Off { rung: self.doorbells.each_ref().map(|doorbell| doorbell.read().unwrap_or(0)) })
    }

    fn start(&self, id: u8, mut vcpu: VcpuFd, pause: &Arc<Pause>, sender: &Sender<Event>) -> JoinHandle<()> {
        let (kvm, vm, bus) = (self.kvm.clone(), self.vm.clone(), self.bus.clone());
        let (pause, sender) = (pause.clone(), sender.clone());
        std::thread::spawn(move || {
            let tell = |event| sender.send(event).map_err(|_| anyhow!("nobody listens"));
            loop {
                let event = match vcpu::run(&mut vcpu, &bus, &pause) {
                    Ok(vcpu::Stop::Off) => Event::Off,
                    Ok(vcpu::Stop::Save { leave }) => Event::Save { leave },
                    Ok(vcpu::Stop::Paused) => match snapshot::save_vcpu(&kvm, &vm, &vcpu) {
                        Ok(state) => Event::Paused(id, Box::new(state)),
                        Err(error) => Event::Failed(error),
                    },
                    Err(error) => Event::Failed(error),
                };
                let paused = matches!(event, Event::Paused(..));
                let last = matches!(event, Event::Off | Event::Failed(_));
                if tell(event).is_err() || last {
                    return;
                }
                if paused {
                    pause.wait_for_end();
                    // A guest without a kvmclock has nothing to be told.
                    let _ = vcpu.kvmclock_ctrl();
                }
            }
        })
    }

    /// Writes the machine down: all of it, or what is new since the last time.
    fn save(&self, threads: &[JoinHandle<()>], events: &Receiver<Event>, again: bool) -> Result<()> {
        let mut vcpus: Vec<Option<VcpuState>> = threads.iter().map(|_| None).collect();
        while vcpus.iter().any(Option::is_none) {
            // Again and again: a signal may come just before KVM_RUN.
            for (thread, _) in threads.iter().zip(&vcpus).filter(|(_, state)| state.is_none()) {
                thread.kill(vcpu::kick()).context("pthread_kill")?;
            }
            match events.recv_timeout(Duration::from_millis(5)) {
                Ok(Event::Paused(id, state)) => vcpus[usize::from(id)] = Some(*state),
                Ok(Event::Failed(error)) => return Err(error),
                Ok(_) => bail!("the guest should be paused"),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("the vCPUs ended without a word"),
            }
        }
        let dir = self.save.as_deref().context("where to")?;
        std::fs::create_dir_all(dir)?;
        if again {
            let pages = snapshot::save_dirty(&self.vm, &self.memory, MEMORY as usize, dir)?;
            ensure!(pages > 0, "a guest that ran has written nothing");
            println!("\nvmm: {pages} pages were written since");
        } else {
            snapshot::save_memory(&self.vm, &self.memory, MEMORY as usize, dir)?;
        }
        let devices = self.bus.lock().map_err(|_| anyhow!("a vCPU's thread failed"))?.state();
        let vm = snapshot::save_vm(&self.vm, self.split)?;
        State { vcpus: vcpus.into_iter().flatten().collect(), vm, devices }.write(dir)
    }
}
