//! CPUID of a vCPU (KVM API document 4.20, 4.46, 4.57).

use crate::codec::{Abi, Field, get, get_array};
use crate::system::put_cpuid;
use crate::uapi::*;
use host::{Errno, Host, try_push};
use vm::{CpuidEntry, Ctx};

extern crate alloc;
use alloc::vec::Vec;

/// KVM_SET_CPUID2. Errors: E2BIG (more than 256), EINVAL (a change after the first KVM_RUN), ENOMEM, EFAULT.
pub fn set_cpuid2<H: Host>(ctx: &mut Ctx<'_, H>, arg: u64) -> Result<(), Errno> {
    set(ctx, arg, |e: kvm_cpuid_entry2| CpuidEntry {
        function: e.function,
        index: e.index,
        flags: e.flags,
        regs: [e.eax, e.ebx, e.ecx, e.edx],
    })
}

/// KVM_SET_CPUID: the same, without subleaves.
pub fn set_cpuid<H: Host>(ctx: &mut Ctx<'_, H>, arg: u64) -> Result<(), Errno> {
    set(ctx, arg, |e: kvm_cpuid_entry| CpuidEntry {
        function: e.function,
        index: 0,
        flags: 0,
        regs: [e.eax, e.ebx, e.ecx, e.edx],
    })
}

/// Both structs begin with the same header.
fn set<H: Host, T: Abi>(ctx: &mut Ctx<'_, H>, arg: u64, plain: fn(T) -> CpuidEntry) -> Result<(), Errno> {
    let host = &ctx.vm.host;
    let n = get::<H, kvm_cpuid2>(host, arg)?.nent as usize;
    if n > MAX_CPUID_ENTRIES {
        return Err(Errno::E2BIG);
    }
    let mut entries = Vec::new();
    for e in get_array::<H, T>(host, arg, kvm_cpuid2::SIZE, n)? {
        try_push(&mut entries, plain(e))?;
    }
    ctx.set_cpuid(&entries)
}

/// KVM_GET_CPUID2. Errors: E2BIG (not enough room).
pub fn get_cpuid2<H: Host>(ctx: &Ctx<'_, H>, arg: u64) -> Result<(), Errno> {
    put_cpuid(&ctx.vm.host, arg, ctx.cpuid_entries(), 0).map(|_| ())
}

/// KVM_GET_SUPPORTED_HV_CPUID on a vCPU: without what wants a local APIC in the kernel where there is none. Errors: E2BIG.
pub fn get_supported_hv_cpuid<H: Host>(ctx: &Ctx<'_, H>, arg: u64) -> Result<(), Errno> {
    let host = &ctx.vm.host;
    let leaves = vm::hyperv::supported_hv_cpuid(host, ctx.core.fast.lapic.is_some());
    put_cpuid(host, arg, &leaves, 1).map(|_| ())
}
