//! A machine in two files, as Firecracker has it: the state of vCPUs, controllers and devices in one, memory in the other,
//! which a new process maps privately. The calls, their order and arguments are Firecracker's.

use crate::bus::DevicesState;
use anyhow::{Context, Result, ensure};
use kvm_bindings::{
    CpuId, KVM_CLOCK_TSC_STABLE, KVM_MAX_CPUID_ENTRIES, Msrs, Xsave, kvm_clock_data, kvm_debugregs, kvm_irqchip,
    kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_pit_state2, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use std::{
    fs::{File, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

const STATE: &str = "state";
const MEMORY: &str = "memory";
const PAGE: usize = 4096;
/// MSR_IA32_TSC_DEADLINE, which means something only once the time-stamp counter is set.
const TSC_DEADLINE: u32 = 0x6e0;
/// The synthetic MSRs of Hyper-V, which this guest was not offered.
const HYPER_V: std::ops::Range<u32> = 0x4000_0000..0x4000_1000;
/// Entries of one KVM_SET_MSRS.
const CHUNK: usize = 256;

/// One vCPU.
#[derive(Serialize, Deserialize)]
pub struct VcpuState {
    cpuid: CpuId,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: Xsave,
    xcrs: kvm_xcrs,
    debug_regs: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
    tsc_khz: u32,
}

/// The controllers in the kernel, and the clock.
#[derive(Serialize, Deserialize)]
pub struct VmState {
    /// None of both with a split irqchip.
    pit: Option<kvm_pit_state2>,
    irqchips: Vec<kvm_irqchip>,
    clock: kvm_clock_data,
}

/// Everything but memory.
#[derive(Serialize, Deserialize)]
pub struct State {
    /// By index.
    pub vcpus: Vec<VcpuState>,
    /// The VM's own.
    pub vm: VmState,
    /// User space's.
    pub devices: DevicesState,
}

impl State {
    /// Writes it into `dir`.
    pub fn write(&self, dir: &Path) -> Result<()> {
        Ok(serde_json::to_writer(File::create(dir.join(STATE))?, self)?)
    }

    /// Reads it back.
    pub fn read(dir: &Path) -> Result<Self> {
        Ok(serde_json::from_slice(&std::fs::read(dir.join(STATE))?)?)
    }
}

/// The state of a vCPU that is paused.
pub fn save_vcpu(kvm: &Kvm, vm: &VmFd, vcpu: &VcpuFd) -> Result<VcpuState> {
    // First, as it may make KVM take a pending INIT or SIPI.
    let mp_state = vcpu.get_mp_state().context("KVM_GET_MP_STATE")?;
    let size = usize::try_from(vm.check_extension_int(Cap::Xsave2))?;
    ensure!(size >= PAGE, "KVM_CAP_XSAVE2: {size}");
    let mut xsave = Xsave::new((size - PAGE).div_ceil(4)).map_err(|error| anyhow::anyhow!("{error:?}"))?;
    // SAFETY: the buffer has the size that KVM asks for; no XSTATE was permitted since.
    unsafe { vcpu.get_xsave2(&mut xsave) }.context("KVM_GET_XSAVE2")?;
    Ok(VcpuState {
        mp_state,
        regs: vcpu.get_regs().context("KVM_GET_REGS")?,
        sregs: vcpu.get_sregs().context("KVM_GET_SREGS")?,
        xsave,
        xcrs: vcpu.get_xcrs().context("KVM_GET_XCRS")?,
        debug_regs: vcpu.get_debug_regs().context("KVM_GET_DEBUGREGS")?,
        lapic: vcpu.get_lapic().context("KVM_GET_LAPIC")?,
        tsc_khz: vcpu.get_tsc_khz().context("KVM_GET_TSC_KHZ")?,
        cpuid: vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).context("KVM_GET_CPUID2")?,
        msrs: save_msrs(kvm, vcpu)?,
        events: vcpu.get_vcpu_events().context("KVM_GET_VCPU_EVENTS")?,
    })
}

fn save_msrs(kvm: &Kvm, vcpu: &VcpuFd) -> Result<Vec<kvm_msr_entry>> {
    let list = kvm.get_msr_index_list().context("KVM_GET_MSR_INDEX_LIST")?;
    let indices = list.as_slice().iter().filter(|index| !HYPER_V.contains(index));
    let wanted: Vec<_> = indices.map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
    let mut saved = Vec::new();
    for chunk in wanted.chunks(CHUNK) {
        let mut msrs = Msrs::from_entries(chunk).map_err(|error| anyhow::anyhow!("{error:?}"))?;
        let count = vcpu.get_msrs(&mut msrs).context("KVM_GET_MSRS")?;
        ensure!(count == chunk.len(), "KVM_GET_MSRS stops at {:#x?}", chunk.get(count).map(|msr| msr.index));
        saved.extend_from_slice(msrs.as_slice());
    }
    // The deadline last.
    saved.sort_by_key(|msr| msr.index == TSC_DEADLINE);
    Ok(saved)
}

/// Gives a new vCPU that state.
pub fn restore_vcpu(vcpu: &VcpuFd, state: &VcpuState) -> Result<()> {
    let khz = vcpu.get_tsc_khz().context("KVM_GET_TSC_KHZ")?;
    ensure!(khz == state.tsc_khz, "saved with a TSC of {} kHz, restored with one of {khz}", state.tsc_khz);
    vcpu.set_cpuid2(&state.cpuid).context("KVM_SET_CPUID2")?;
    vcpu.set_mp_state(state.mp_state).context("KVM_SET_MP_STATE")?;
    vcpu.set_regs(&state.regs).context("KVM_SET_REGS")?;
    vcpu.set_sregs(&state.sregs).context("KVM_SET_SREGS")?;
    // SAFETY: KVM wrote this buffer with the same size.
    unsafe { vcpu.set_xsave2(&state.xsave) }.context("KVM_SET_XSAVE")?;
    vcpu.set_xcrs(&state.xcrs).context("KVM_SET_XCRS")?;
    vcpu.set_debug_regs(&state.debug_regs).context("KVM_SET_DEBUGREGS")?;
    vcpu.set_lapic(&state.lapic).context("KVM_SET_LAPIC")?;
    for chunk in state.msrs.chunks(CHUNK) {
        let msrs = Msrs::from_entries(chunk).map_err(|error| anyhow::anyhow!("{error:?}"))?;
        let count = vcpu.set_msrs(&msrs).context("KVM_SET_MSRS")?;
        ensure!(count == chunk.len(), "KVM_SET_MSRS stops at {:#x?}", chunk.get(count));
    }
    vcpu.set_vcpu_events(&state.events).context("KVM_SET_VCPU_EVENTS")
}

/// The VM's own state, vCPUs paused.
pub fn save_vm(vm: &VmFd, split: bool) -> Result<VmState> {
    let mut clock = vm.get_clock().context("KVM_GET_CLOCK")?;
    // What the flag says is of this process's counter, and cannot be set.
    clock.flags &= !KVM_CLOCK_TSC_STABLE;
    if split {
        return Ok(VmState { pit: None, irqchips: Vec::new(), clock });
    }
    let mut irqchips = Vec::new();
    // Both 8259s and the I/O APIC.
    for chip_id in 0..3 {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        vm.get_irqchip(&mut chip).context("KVM_GET_IRQCHIP")?;
        irqchips.push(chip);
    }
    Ok(VmState { pit: Some(vm.get_pit2().context("KVM_GET_PIT2")?), irqchips, clock })
}

/// Gives a new VM that state, after its vCPUs have theirs.
pub fn restore_vm(vm: &VmFd, state: &VmState) -> Result<()> {
    if let Some(pit) = &state.pit {
        vm.set_pit2(pit).context("KVM_SET_PIT2")?;
    }
    vm.set_clock(&state.clock).context("KVM_SET_CLOCK")?;
    for chip in &state.irqchips {
        vm.set_irqchip(chip).context("KVM_SET_IRQCHIP")?;
    }
    Ok(())
}

/// Writes all memory into `dir`, and begins the dirty log of slot 0 anew.
pub fn save_memory(vm: &VmFd, memory: &GuestMemoryMmap, size: usize, dir: &Path) -> Result<()> {
    vm.get_dirty_log(0, size).context("KVM_GET_DIRTY_LOG")?;
    let file = File::create(dir.join(MEMORY))?;
    let mut page = [0; PAGE];
    for at in (0..size).step_by(PAGE) {
        memory.read_slice(&mut page, GuestAddress(at as u64))?;
        if page != [0; PAGE] {
            file.write_all_at(&page, at as u64)?;
        }
    }
    Ok(file.set_len(size as u64)?)
}

/// Writes what the dirty log says into the file that is there already, and returns the number of pages. What the log does
/// not say must not have changed.
pub fn save_dirty(vm: &VmFd, memory: &GuestMemoryMmap, size: usize, dir: &Path) -> Result<usize> {
    let log = vm.get_dirty_log(0, size).context("KVM_GET_DIRTY_LOG")?;
    let file = OpenOptions::new().read(true).write(true).open(dir.join(MEMORY))?;
    let (mut page, mut before, mut written) = ([0; PAGE], [0; PAGE], 0);
    for number in 0..size / PAGE {
        let at = (number * PAGE) as u64;
        memory.read_slice(&mut page, GuestAddress(at))?;
        if log.get(number / 64).is_some_and(|word| word >> (number % 64) & 1 != 0) {
            file.write_all_at(&page, at)?;
            written += 1;
        } else {
            file.read_exact_at(&mut before, at)?;
            ensure!(page == before, "the page at {at:#x} has changed, but is not in the dirty log");
        }
    }
    Ok(written)
}

/// Memory as it was saved, mapped from the file, which stays as it is.
pub fn map_memory(dir: &Path, size: usize) -> Result<GuestMemoryMmap> {
    let file = FileOffset::new(File::open(dir.join(MEMORY))?, 0);
    let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_NORESERVE);
    let region = GuestRegionMmap::new(MmapRegion::build(Some(file), size, access, flags)?, GuestAddress(0));
    Ok(GuestMemoryMmap::from_regions(vec![region.context("memory beyond the last address")?])?)
}
