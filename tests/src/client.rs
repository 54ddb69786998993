//! A small KVM client on `/dev/kvm`: one VM whose guest starts in 64-bit mode with memory identity-mapped.
//!
//! It is written against the KVM API alone (crate `kvm-ioctls`), so that the same program runs on stock KVM and ours.

use anyhow::{Context, Result, anyhow};
use iced_x86::code_asm::CodeAssembler;
use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, KVM_MEM_LOG_DIRTY_PAGES, kvm_enable_cap, kvm_pit_config, kvm_regs, kvm_segment,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use memmap2::{MmapMut, MmapOptions};
use std::os::fd::AsRawFd;

/// Where guest code is put.
pub const CODE: u64 = 0x10_0000;
/// Top of the guest's stack.
pub const STACK: u64 = 0x9_0000;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
/// CPUID Fn0000_0001_ECX: the local APIC's timer has the TSC-deadline mode.
const TSC_DEADLINE: u32 = 1 << 24;
/// The page directories that follow map this many GiB.
const GIB: u64 = 4;

/// A VM with one piece of memory from guest physical address 0.
pub struct Client {
    /// `/dev/kvm`.
    pub kvm: Kvm,
    /// The VM.
    pub vm: VmFd,
    memory: MmapMut,
}

impl Client {
    /// A VM with `bytes` of memory; `populate` has the host allocate it at once.
    pub fn new(bytes: usize, populate: bool) -> Result<Self> {
        let kvm = Kvm::new().context("opening /dev/kvm")?;
        let vm = kvm.create_vm().context("KVM_CREATE_VM")?;
        let mut options = MmapOptions::new();
        options.len(bytes);
        if populate {
            options.populate();
        }
        let mut client = Self { kvm, vm, memory: options.map_anon()? };
        client.map(0, 0, client.memory.as_ptr() as u64, bytes as u64)?;
        client.page_tables();
        Ok(client)
    }

    /// KVM_SET_USER_MEMORY_REGION without flags; `size` 0 deletes the slot.
    pub fn map(&self, slot: u32, gpa: u64, hva: u64, size: u64) -> Result<()> {
        self.map_with(slot, 0, gpa, hva, size)
    }

    /// KVM_SET_USER_MEMORY_REGION with KVM_MEM_* `flags`.
    pub fn map_with(&self, slot: u32, flags: u32, gpa: u64, hva: u64, size: u64) -> Result<()> {
        let region =
            kvm_userspace_memory_region { slot, flags, guest_phys_addr: gpa, memory_size: size, userspace_addr: hva };
        // SAFETY: The caller's mapping outlives the VM: `Client` drops `vm` before `memory`, and other mappings are
        // the tests' own, which expect the guest to write to them.
        unsafe { self.vm.set_user_memory_region(region) }.context("KVM_SET_USER_MEMORY_REGION")
    }

    /// All interrupt controllers and the PIT in the kernel.
    pub fn full_irqchip(&self) -> Result<()> {
        self.vm.create_irq_chip().context("KVM_CREATE_IRQCHIP")?;
        self.vm.create_pit2(kvm_pit_config::default()).context("KVM_CREATE_PIT2")
    }

    /// Starts or stops the dirty log of all memory.
    pub fn dirty_log(&self, on: bool) -> Result<()> {
        let flags = if on { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
        self.map_with(0, flags, 0, self.memory.as_ptr() as u64, self.memory.len() as u64)
    }

    /// The in-kernel local APIC, with the other interrupt controllers left to user space.
    pub fn split_irqchip(&self) -> Result<()> {
        let mut cap = kvm_enable_cap { cap: kvm_bindings::KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
        cap.args[0] = 24;
        self.vm.enable_cap(&cap).context("KVM_CAP_SPLIT_IRQCHIP")
    }

    /// Makes the host use 4 KiB pages behind all of the memory: drops what is there, and populates it anew.
    pub fn small_pages(&mut self) -> Result<()> {
        self.memory.advise(memmap2::Advice::NoHugePage)?;
        self.renew(memmap2::Advice::NoHugePage)
    }

    /// Makes the host use 2 MiB pages where it can.
    pub fn huge_pages(&mut self) -> Result<()> {
        self.renew(memmap2::Advice::HugePage)
    }

    fn renew(&mut self, advice: memmap2::Advice) -> Result<()> {
        // Pages that are populated already may be of the other size: a new mapping takes their place.
        let mut options = MmapOptions::new();
        let fresh = options.len(self.memory.len()).map_anon()?;
        fresh.advise(advice)?;
        fresh.advise(memmap2::Advice::PopulateWrite)?;
        self.map(0, 0, 0, 0)?;
        self.map(0, 0, fresh.as_ptr() as u64, fresh.len() as u64)?;
        self.memory = fresh;
        self.page_tables();
        Ok(())
    }

    /// Guest memory, to look at and to fill.
    pub fn memory(&mut self) -> &mut [u8] {
        &mut self.memory
    }

    /// Copies `bytes` into guest memory, whatever the guest does with it meanwhile. Panics if they do not fit.
    pub fn poke(&self, at: u64, bytes: &[u8]) {
        assert!(at as usize + bytes.len() <= self.memory.len());
        let to = self.memory.as_ptr().cast_mut();
        // SAFETY: it is mapped, writable and that long; to the guest and to whoever holds it by `&` it is memory that
        // changes at any time, of which nobody has a reference while a storm is on.
        unsafe { to.add(at as usize).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    /// Eight bytes of guest memory.
    pub fn peek(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.memory[at as usize..at as usize + 8].try_into().unwrap_or_default())
    }

    pub(crate) fn put(&mut self, at: u64, value: u64) {
        self.memory[at as usize..at as usize + 8].copy_from_slice(&value.to_le_bytes());
    }

    /// Identity-maps the first 4 GiB with 2 MiB pages.
    fn page_tables(&mut self) {
        self.put(PML4, PDPT | 3);
        for g in 0..GIB {
            self.put(PDPT + 8 * g, (PD + 0x1000 * g) | 3);
            for n in 0..512 {
                self.put(PD + 0x1000 * g + 8 * n, (g << 30 | n << 21) | 0x83);
            }
        }
    }

    /// Assembles `code` at [`CODE`].
    pub fn load(&mut self, code: CodeAssembler) -> Result<()> {
        self.load_at(CODE, code)
    }

    /// Assembles `code` at `gpa`.
    pub fn load_at(&mut self, gpa: u64, mut code: CodeAssembler) -> Result<()> {
        let bytes = code.assemble(gpa)?;
        self.memory[gpa as usize..gpa as usize + bytes.len()].copy_from_slice(&bytes);
        Ok(())
    }

    /// A vCPU in 64-bit mode, at [`CODE`], with the CPUID that KVM supports.
    pub fn vcpu(&self, id: u64) -> Result<VcpuFd> {
        let vcpu = self.vm.create_vcpu(id).context("KVM_CREATE_VCPU")?;
        let mut cpuid = self.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).context("KVM_GET_SUPPORTED_CPUID")?;
        // As clients do with KVM_CAP_TSC_DEADLINE_TIMER: the bit is for them to set.
        cpuid.as_mut_slice().iter_mut().filter(|e| e.function == 1).for_each(|e| e.ecx |= TSC_DEADLINE);
        vcpu.set_cpuid2(&cpuid).context("KVM_SET_CPUID2")?;
        let mut s = vcpu.get_sregs().context("KVM_GET_SREGS")?;
        let flat =
            kvm_segment { limit: !0, type_: 3, present: 1, s: 1, g: 1, db: 1, selector: 16, ..Default::default() };
        (s.ds, s.es, s.ss, s.fs, s.gs) = (flat, flat, flat, flat, flat);
        s.cs = kvm_segment { type_: 11, l: 1, db: 0, selector: 8, ..flat };
        s.cr3 = PML4;
        s.cr4 = 0x20 | 0x600;
        s.cr0 = 0x8005_0033;
        s.efer = 0x500;
        vcpu.set_sregs(&s).context("KVM_SET_SREGS")?;
        let regs = kvm_regs { rip: CODE, rsp: STACK, rflags: 2, ..Default::default() };
        vcpu.set_regs(&regs).context("KVM_SET_REGS")?;
        Ok(vcpu)
    }
}

/// Assembles a guest program.
pub fn assemble(f: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> Result<CodeAssembler> {
    let mut a = CodeAssembler::new(64).map_err(|e| anyhow!("assembler: {e}"))?;
    f(&mut a).map_err(|e| anyhow!("assembling the guest: {e}"))?;
    Ok(a)
}

/// An ioctl with a number as its argument: what it returns, or minus the errno.
pub fn number(fd: &impl AsRawFd, request: u64, arg: u64) -> i64 {
    // SAFETY: none of the requests here writes through its argument but where it is a live struct's address.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request as libc::Ioctl, arg) };
    match result {
        -1 => -i64::from(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)),
        n => n.into(),
    }
}
