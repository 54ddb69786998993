//! A VMM on a simulated machine: it talks to the hypervisor through ioctls alone, with structs in its own memory, and
//! looks inside only to see what reached the processor.
//!
//! Long because: one machine.

pub mod anything;
mod assembly;
mod handover;
mod hyperv;
mod left;
mod lines;
mod modes;
mod rich;

pub use assembly::{all_handed_over_through_the_assembly, all_through_the_assembly, is_through_the_assembly};
pub use handover::{all_handed_over_everywhere, flushed, is_handed_over_everywhere};
pub use left::Left;
pub use modes::{CODE, PML4, STACK};

use crate::plain::Plain;
use abi::uapi::ioctl::*;
use abi::uapi::run::at;
use abi::{SystemReply, VcpuReply, VmReply};
use kvm_bindings::*;
use parking_lot::{MappedRwLockReadGuard, RwLock, RwLockReadGuard};
use sim::alloc::{counted, uncounted};
use sim::arch::exit::code;
use sim::arch::{EventInj, Hva};
use sim::host::{CpuFeatures, Errno, Host, OneBox};
use sim::{HVA_BASE, Outcome, Page, Sim, SimCpu, SimPage};
use std::sync::atomic::AtomicUsize;
use vm::{Ctx, Vcpu, Vm};

/// Bytes of guest memory, from guest physical address 0.
pub const RAM: u64 = 4 << 20;
/// Where guest memory lies in the VMM.
pub const RAM_HVA: u64 = HVA_BASE + (2 << 20);
/// Where the VMM keeps arguments.
pub const ARG: u64 = HVA_BASE;
/// Where it keeps what arguments point to.
pub const DATA: u64 = HVA_BASE + 0x4_0000;
/// No memory of the VMM's.
pub const NOWHERE: u64 = 0x1000;
/// Guest physical addresses from here on are nobody's.
pub const MMIO: u64 = 0xd000_0000;

/// A processor like those of the first generations: what newer ones add, tests ask for.
pub const PLAIN: CpuFeatures = CpuFeatures {
    nrips: false,
    decode_assists: false,
    flush_by_asid: true,
    vmcb_clean: true,
    vgif: false,
    v_spec_ctrl: false,
    virt_ssbd: false,
    ts_guards_fpu: true,
    tsc_scaling: false,
    pause_filter: false,
    pause_filter_threshold: false,
    spec_ctrl: false,
    tsc_aux: false,
    page_1g: false,
    nx: true,
    phys_bits: 40,
};

/// One VM on a machine of its own.
pub struct Machine {
    /// The machine.
    pub sim: Sim,
    /// The VM behind the file.
    vm: RwLock<OneBox<Vm<Sim>>>,
    handovers: AtomicUsize,
}

impl Machine {
    /// A VM with nothing in it.
    pub fn bare(features: CpuFeatures) -> Result<Self, Errno> {
        let sim = uncounted(|| Sim::new(((RAM_HVA - HVA_BASE + 2 * RAM) / 4096) as usize, features));
        if is_through_the_assembly() {
            sim.through_the_assembly();
        }
        assert_eq!(counted(|| abi::system_ioctl(&sim, KVM_CREATE_VM, 0)), Ok(SystemReply::NewVm));
        let vm = counted(|| Vm::new(sim.clone()))?;
        if is_handed_over_everywhere() {
            sim.hand_over_everywhere();
        }
        Ok(Self { sim, vm: RwLock::new(vm), handovers: AtomicUsize::new(0) })
    }

    /// A VM with memory, the split irqchip and a vCPU that has all of the supported CPUID.
    pub fn new() -> Self {
        Self::on(PLAIN)
    }

    /// The same on another processor.
    pub fn on(features: CpuFeatures) -> Self {
        let m = Self::without_vcpu_on(features, true);
        m.add_vcpu(0).expect("a vCPU");
        m
    }

    /// The same without irqchip: interrupts are user space's.
    pub fn without_irqchip() -> Self {
        let m = Self::without_vcpu(false);
        m.add_vcpu(0).expect("a vCPU");
        m
    }

    /// A VM with memory, and perhaps the split irqchip.
    pub fn without_vcpu(split: bool) -> Self {
        Self::without_vcpu_on(PLAIN, split)
    }

    fn without_vcpu_on(features: CpuFeatures, split: bool) -> Self {
        let m = Self::bare(features).expect("a VM");
        if split {
            assert_eq!(m.enable(KVM_CAP_SPLIT_IRQCHIP, 24), Ok(0));
        }
        assert_eq!(m.region(0, 0, 0, RAM, RAM_HVA), Ok(0));
        m
    }

    /// KVM_CREATE_VCPU alone.
    pub fn add_vcpu_without_cpuid(&self, id: u64) -> Result<usize, Errno> {
        match counted(|| abi::vm_ioctl(&self.engine(), KVM_CREATE_VCPU, id))? {
            VmReply::NewVcpu { index } => Ok(index),
            other => panic!("{other:?}"),
        }
    }

    /// The same and KVM_SET_CPUID2 with what is supported.
    pub fn add_vcpu(&self, id: u64) -> Result<usize, Errno> {
        let index = self.add_vcpu_without_cpuid(id)?;
        self.put_at(DATA, &[256u32, 0]);
        self.system(KVM_GET_SUPPORTED_CPUID, DATA)?;
        self.vcpu(index, KVM_SET_CPUID2, DATA)?;
        Ok(index)
    }

    /// An ioctl on /dev/kvm.
    pub fn system(&self, cmd: u32, arg: u64) -> Result<i64, Errno> {
        match counted(|| abi::system_ioctl(&self.sim, cmd, arg))? {
            SystemReply::Value(v) => Ok(v),
            other => panic!("{other:?}"),
        }
    }

    /// An ioctl on the VM; those that make something else than a number are not for this.
    pub fn vm(&self, cmd: u32, arg: u64) -> Result<i64, Errno> {
        let reply = counted(|| abi::vm_ioctl(&self.engine(), cmd, arg));
        self.handed_over();
        match reply? {
            VmReply::Value(v) => Ok(v),
            VmReply::Stats => Ok(0),
            other => panic!("{other:?}"),
        }
    }

    /// An ioctl on a vCPU.
    pub fn vcpu(&self, vcpu: usize, cmd: u32, arg: u64) -> Result<i64, Errno> {
        if cmd == KVM_RUN {
            return self.run_to_user(vcpu, arg);
        }
        let reply = counted(|| abi::vcpu_ioctl(&self.engine(), &self.cpu(vcpu), cmd, arg));
        self.handed_over();
        match reply? {
            VcpuReply::Value(v) => Ok(v),
            VcpuReply::SignalMask(_) | VcpuReply::Stats => Ok(0),
        }
    }

    /// A VM ioctl whose argument points to a struct.
    pub fn vm_with<T: Plain>(&self, cmd: u32, value: &T) -> Result<i64, Errno> {
        self.put_at(ARG, value);
        self.vm(cmd, ARG)
    }

    /// A vCPU ioctl whose argument points to a struct. (Each vCPU has a place of its own for it.)
    pub fn vcpu_with<T: Plain>(&self, vcpu: usize, cmd: u32, value: &T) -> Result<i64, Errno> {
        let at = ARG + 0x1_0000 * (1 + vcpu as u64);
        self.put_at(at, value);
        self.vcpu(vcpu, cmd, at)
    }

    /// What a vCPU ioctl that succeeds gives back.
    pub fn vcpu_get<T: Plain>(&self, vcpu: usize, cmd: u32) -> T {
        let at = ARG + 0x1_0000 * (1 + vcpu as u64);
        assert_eq!(self.vcpu(vcpu, cmd, at), Ok(0));
        self.get_at(at)
    }

    /// Puts a struct into the VMM's memory.
    pub fn put_at<T: Plain>(&self, at: u64, value: &T) {
        uncounted(|| self.sim.write_user(Hva(at), &value.bytes())).expect("memory of the VMM");
    }

    /// Gets a struct from the VMM's memory.
    pub fn get_at<T: Plain>(&self, at: u64) -> T {
        uncounted(|| {
            let mut bytes = vec![0; size_of::<T>()];
            self.sim.read_user(Hva(at), &mut bytes).expect("memory of the VMM");
            T::from_bytes(&bytes)
        })
    }

    /// Puts bytes into guest memory, through the VMM's mapping.
    pub fn write_ram(&self, gpa: u64, bytes: &[u8]) {
        uncounted(|| self.sim.write_user(Hva(RAM_HVA + gpa), bytes)).expect("guest memory");
    }

    /// Reads a struct from guest memory.
    pub fn read_ram<T: Plain>(&self, gpa: u64) -> T {
        self.get_at(RAM_HVA + gpa)
    }

    /// KVM_ENABLE_CAP on the VM.
    pub fn enable(&self, cap: u32, arg: u64) -> Result<i64, Errno> {
        self.vm_with(KVM_ENABLE_CAP, &kvm_enable_cap { cap, args: [arg, 0, 0, 0], ..Default::default() })
    }

    /// KVM_SET_USER_MEMORY_REGION.
    pub fn region(&self, slot: u32, flags: u32, gpa: u64, size: u64, hva: u64) -> Result<i64, Errno> {
        let region =
            kvm_userspace_memory_region { slot, flags, guest_phys_addr: gpa, memory_size: size, userspace_addr: hva };
        self.vm_with(KVM_SET_USER_MEMORY_REGION, &region)
    }

    /// The vCPU with this index.
    pub fn cpu(&self, vcpu: usize) -> MappedRwLockReadGuard<'_, Vcpu<Sim>> {
        RwLockReadGuard::map(self.engine(), |vm| vm.vcpu(vcpu).expect("the vCPU exists"))
    }

    /// The engine that has the VM.
    pub fn engine(&self) -> RwLockReadGuard<'_, OneBox<Vm<Sim>>> {
        self.vm.read_recursive()
    }

    /// Its `kvm_run` page.
    pub fn page(&self, vcpu: usize) -> SimPage {
        let [page, ..] = &self.cpu(vcpu).pages;
        page.clone()
    }

    /// Its page of port data.
    pub fn port_data(&self, vcpu: usize) -> SimPage {
        let [_, data] = &self.cpu(vcpu).pages;
        data.clone()
    }

    /// Looks inside.
    pub fn inside<R>(&self, vcpu: usize, f: impl FnOnce(&mut Ctx<'_, Sim>) -> R) -> R {
        self.engine().with_vcpu(&self.cpu(vcpu), f).expect("nobody is killed")
    }

    /// KVM_RUN. Err: the errno, and what the page says nonetheless.
    pub fn run(&self, vcpu: usize) -> Result<Left, (Errno, Left)> {
        let result = self.vcpu(vcpu, KVM_RUN, 0);
        self.sim.clear_signal();
        let left = uncounted(|| Left::read(&self.page(vcpu)));
        result.map(|_| left.clone()).map_err(|e| (e, left))
    }

    /// KVM_RUN to the end of the script.
    pub fn run_out(&self, vcpu: usize) {
        assert_eq!(self.run(vcpu), Err((Errno::EINTR, Left::Intr)));
        assert_eq!(self.sim.steps_left(vcpu), 0, "the script is not over");
    }

    /// KVM_RUN with `immediate_exit`, which has to come straight back and to leave the exit that it completed.
    pub fn settle(&self, vcpu: usize) {
        let before = uncounted(|| Left::read(&self.page(vcpu)));
        self.page(vcpu).set_u8(at::IMMEDIATE_EXIT, 1);
        assert_eq!(self.run(vcpu), Err((Errno::EINTR, before)));
        self.page(vcpu).set_u8(at::IMMEDIATE_EXIT, 0);
    }

    /// The guest's next instruction exits with this code.
    pub fn exit(&self, vcpu: usize, code: u64) {
        self.sim.step(vcpu, move |_| (code, 0, 0));
    }

    /// The guest's next access to `gpa` is a nested fault, as the hardware reports it.
    pub fn npf(&self, vcpu: usize, gpa: u64, write: bool) {
        self.sim.step(vcpu, move |_| (code::NPF, 1 << 32 | 4 | u64::from(write) << 1, gpa));
    }

    /// The guest runs with RFLAGS.IF set (or not) from here on.
    pub fn interrupt_flag(&self, vcpu: usize, on: bool) {
        self.sim.act(vcpu, move |c| {
            let flags = &mut c.guest().rflags;
            *flags = if on { *flags | 0x200 } else { *flags & !0x200 };
            Outcome::Next
        });
    }

    /// The guest does something that needs no exit.
    pub fn does(&self, vcpu: usize, mut f: impl FnMut(&mut SimCpu) + Send + 'static) {
        self.sim.act(vcpu, move |c| {
            f(c);
            Outcome::Next
        });
    }

    /// The guest writes 8 bytes of memory; nested faults are up to the hypervisor.
    pub fn store(&self, vcpu: usize, gpa: u64, value: u64) {
        self.sim.act(vcpu, move |c| match c.store(gpa, value) {
            Ok(()) => Outcome::Next,
            Err(fault) => fault,
        });
    }

    /// The guest reads 8 bytes of memory and has to find `want`.
    pub fn load(&self, vcpu: usize, gpa: u64, want: u64) {
        self.sim.act(vcpu, move |c| match c.load(gpa) {
            Ok(v) => {
                assert_eq!(v, want, "guest memory at {gpa:#x}");
                Outcome::Next
            }
            Err(fault) => fault,
        });
    }

    /// The guest accesses 8 bytes; a nested fault is an exit, and whatever becomes of it is the end of the access.
    pub fn tries(&self, vcpu: usize, gpa: u64, write: bool) {
        self.sim.act(vcpu, move |c| match if write { c.store(gpa, 0) } else { c.load(gpa).map(drop) } {
            Ok(()) => Outcome::Next,
            Err(Outcome::Again(code, info1, info2)) => Outcome::Exit(code, info1, info2),
            Err(other) => other,
        });
    }

    /// Events that EVENTINJ carried into the guest so far.
    pub fn injected(&self, vcpu: usize) -> Vec<EventInj> {
        self.inside(vcpu, |c| c.core.cpu.injected.iter().map(|(e, _)| *e).collect())
    }

    /// The return addresses that they pushed.
    pub fn returns(&self, vcpu: usize) -> Vec<u64> {
        self.inside(vcpu, |c| c.core.cpu.injected.iter().map(|(_, rip)| *rip).collect())
    }

    /// Virtual interrupts that the guest took so far.
    pub fn taken(&self, vcpu: usize) -> Vec<u8> {
        self.inside(vcpu, |c| c.core.cpu.taken.clone())
    }

    /// KVM_GET_REGS.
    pub fn regs(&self, vcpu: usize) -> kvm_regs {
        self.vcpu_get(vcpu, KVM_GET_REGS)
    }

    /// KVM_SET_REGS.
    pub fn set_regs(&self, vcpu: usize, r: &kvm_regs) {
        assert_eq!(self.vcpu_with(vcpu, KVM_SET_REGS, r), Ok(0));
    }

    /// Changes some registers.
    pub fn with_regs(&self, vcpu: usize, f: impl FnOnce(&mut kvm_regs)) {
        let mut r = self.regs(vcpu);
        f(&mut r);
        self.set_regs(vcpu, &r);
    }

    /// KVM_GET_MSRS of one, which has to exist.
    pub fn msr(&self, vcpu: usize, index: u32) -> u64 {
        self.put_at(DATA, &[1, 0, index, 0, 0, 0]);
        assert_eq!(self.vcpu(vcpu, KVM_GET_MSRS, DATA), Ok(1));
        self.get_at(DATA + 16)
    }

    /// KVM_SET_MSRS of one: the number of MSRs that were set.
    pub fn set_msr(&self, vcpu: usize, index: u32, value: u64) -> Result<i64, Errno> {
        self.put_at(DATA, &[1, 0, index, 0, value as u32, (value >> 32) as u32]);
        self.vcpu(vcpu, KVM_SET_MSRS, DATA)
    }

    /// The host takes pages of guest memory away (or brings them back), with the notifier's calls around it.
    pub fn host_changes(&self, gpa: u64, pages: u64, how: Page) {
        let (start, end) = (Hva(RAM_HVA + gpa), Hva(RAM_HVA + gpa + 4096 * pages));
        self.engine().mmu_invalidate_start(start, end, true);
        for n in 0..pages {
            self.sim.set_page(start.0 + 4096 * n, how);
        }
        self.engine().mmu_invalidate_end(start, end);
    }

    /// Ends the VM: nothing of it may be left on the machine.
    pub fn end(self) {
        let Self { sim, vm, .. } = self;
        drop(vm);
        assert_eq!(sim.tables_live(), 0, "page tables are left");
        assert_eq!(sim.page_references(), 0, "pages are held");
        assert_eq!(sim.event_references(), 0, "eventfds are held");
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}
