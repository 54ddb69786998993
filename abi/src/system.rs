//! ioctls on /dev/kvm (KVM API document, section 4, "Type: system ioctl").

use crate::caps;
use crate::codec::{Field, get, get_array, put, put_array};
use crate::uapi::ioctl::*;
use crate::uapi::*;
use host::{Errno, Host, PAGE_SIZE, try_push};
use vm::CpuidEntry;

extern crate alloc;
use alloc::vec::Vec;

/// KVM_API_VERSION.
const API_VERSION: i64 = 12;
/// Pages of a vCPU file: `kvm_run`, port data, the ring of coalesced MMIO.
const VCPU_PAGES: usize = 3;

/// What the caller has to do after [`system_ioctl`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SystemReply {
    /// Return this number.
    Value(i64),
    /// Make a VM and return its file.
    NewVm,
}

/// One ioctl on /dev/kvm. Errors: as each ioctl documents; EINVAL for those that do not exist here, as on stock.
pub fn system_ioctl<H: Host>(host: &H, cmd: u32, arg: u64) -> Result<SystemReply, Errno> {
    let value = match cmd {
        KVM_CREATE_VM if arg == 0 => return Ok(SystemReply::NewVm),
        // Only the default machine type: no protected VMs.
        KVM_CREATE_VM => return Err(Errno::EINVAL),
        KVM_GET_API_VERSION if arg == 0 => API_VERSION,
        KVM_GET_VCPU_MMAP_SIZE if arg == 0 => (VCPU_PAGES * PAGE_SIZE) as i64,
        KVM_CHECK_EXTENSION => caps::check_extension(host, arg),
        KVM_GET_SUPPORTED_CPUID => put_cpuid(host, arg, &vm::cpuid::supported_cpuid(host)?, 1)?,
        KVM_GET_EMULATED_CPUID => emulated_cpuid(host, arg)?,
        KVM_GET_SUPPORTED_HV_CPUID => put_cpuid(host, arg, &vm::hyperv::supported_hv_cpuid(host, true), 1)?,
        KVM_GET_MSR_INDEX_LIST => put_indices(host, arg, |each| vm::msr::msr_index_list(host, &mut |i| each(i)))?,
        KVM_GET_MSR_FEATURE_INDEX_LIST => {
            put_indices(host, arg, |each| vm::msr::feature_index_list(host, &mut |i| each(i)))?
        }
        KVM_GET_MSRS => get_msrs(host, arg, |index| vm::msr::feature_msr(host, index))?,
        KVM_X86_GET_MCE_CAP_SUPPORTED => {
            put(host, arg, &vm::msr::MCE_CAP_SUPPORTED)?;
            0
        }
        KVM_GET_DEVICE_ATTR => attribute(host, arg, true)?,
        KVM_HAS_DEVICE_ATTR => attribute(host, arg, false)?,
        _ => return Err(Errno::EINVAL),
    };
    Ok(SystemReply::Value(value))
}

/// Writes CPUID entries and their number, if user space has room for all of them and for `least`. Errors: E2BIG.
pub fn put_cpuid<H: Host>(host: &H, arg: u64, entries: &[CpuidEntry], least: usize) -> Result<i64, Errno> {
    let mut header: kvm_cpuid2 = get(host, arg)?;
    if (header.nent as usize) < entries.len().max(least) {
        return Err(Errno::E2BIG);
    }
    put_array(host, arg, kvm_cpuid2::SIZE, entries.iter().map(to_abi))?;
    header.nent = entries.len() as u32;
    put(host, arg, &header)?;
    Ok(0)
}

fn to_abi(e: &CpuidEntry) -> kvm_cpuid_entry2 {
    let [eax, ebx, ecx, edx] = e.regs;
    kvm_cpuid_entry2 { function: e.function, index: e.index, flags: e.flags, eax, ebx, ecx, edx, padding: [0; 3] }
}

/// KVM_GET_EMULATED_CPUID: the padding of the entries handed in has to be zero, so that it can get a meaning. As on
/// stock there has to be room for one more, with which the extended functions would begin. Errors: E2BIG, EINVAL (the
/// padding, also where it cannot be read).
fn emulated_cpuid<H: Host>(host: &H, arg: u64) -> Result<i64, Errno> {
    let header: kvm_cpuid2 = get(host, arg)?;
    let n = (header.nent as usize).min(MAX_CPUID_ENTRIES);
    if n == 0 {
        return Err(Errno::E2BIG);
    }
    let given: Vec<kvm_cpuid_entry2> = match get_array(host, arg, kvm_cpuid2::SIZE, n) {
        Err(Errno::EFAULT) => return Err(Errno::EINVAL),
        given => given?,
    };
    if given.iter().any(|e| e.padding != [0; 3]) {
        return Err(Errno::EINVAL);
    }
    let entries = vm::cpuid::emulated_cpuid(host)?;
    put_cpuid(host, arg, &entries, entries.len().saturating_add(1))
}

/// Writes the number of indices, then, if user space has room, the indices. Errors: E2BIG.
fn put_indices<H: Host>(host: &H, arg: u64, list: impl FnOnce(&mut dyn FnMut(u32))) -> Result<i64, Errno> {
    let room = get::<H, kvm_msr_list>(host, arg)?.nmsrs as usize;
    let mut indices = Vec::new();
    let mut full = Ok(());
    list(&mut |index| {
        if full.is_ok() {
            full = try_push(&mut indices, index);
        }
    });
    full?;
    put(host, arg, &kvm_msr_list { nmsrs: indices.len() as u32 })?;
    if room < indices.len() {
        return Err(Errno::E2BIG);
    }
    put_array(host, arg, kvm_msr_list::SIZE, indices.iter().copied())?;
    Ok(0)
}

/// KVM_GET_MSRS: reads entries, fills them until one cannot be read, which gets zero, and returns how many were.
/// Errors: E2BIG.
pub fn get_msrs<H: Host>(host: &H, arg: u64, mut read: impl FnMut(u32) -> Option<u64>) -> Result<i64, Errno> {
    let mut entries = msr_entries(host, arg)?;
    let mut done = 0;
    for e in &mut entries {
        let data = read(e.index);
        e.data = data.unwrap_or(0);
        if data.is_none() {
            break;
        }
        done += 1;
    }
    put_array(host, arg, kvm_msrs::SIZE, entries.iter().copied())?;
    Ok(done)
}

/// The entries of KVM_GET/SET_MSRS. Errors: E2BIG (256 and more).
pub fn msr_entries<H: Host>(host: &H, arg: u64) -> Result<Vec<kvm_msr_entry>, Errno> {
    let n = get::<H, kvm_msrs>(host, arg)?.nmsrs as usize;
    if n >= MAX_IO_MSRS {
        return Err(Errno::E2BIG);
    }
    get_array(host, arg, kvm_msrs::SIZE, n)
}

/// KVM_CAP_SYS_ATTRIBUTES: the one attribute is the XCR0 that guests may have.
fn attribute<H: Host>(host: &H, arg: u64, read: bool) -> Result<i64, Errno> {
    let attr: kvm_device_attr = get(host, arg)?;
    if attr.group != KVM_X86_GRP_SYSTEM || attr.attr != KVM_X86_XCOMP_GUEST_SUPP {
        return Err(Errno::ENXIO);
    }
    if read {
        put(host, attr.addr, &caps::guest_xcr0(host))?;
    }
    Ok(0)
}
