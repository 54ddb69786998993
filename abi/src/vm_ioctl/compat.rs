//! ioctls of a 32-bit program on a 64-bit host: those whose structs hold a pointer of the caller's size. In all others
//! addresses are 64-bit numbers, and the layout is the same for both.

use super::{VmReply, filter, memory, vm_ioctl};
use crate::codec::{Field, get, read};
use crate::uapi::ioctl::*;
use crate::uapi::*;
use host::{Errno, Host};
use vm::Vm;

/// Of a pointer in a union with a 64-bit number a 32-bit program writes the lower half only.
fn pointer(word: u64) -> u64 {
    word & 0xffff_ffff
}

/// As [`vm_ioctl`].
pub fn vm_compat_ioctl<H: Host>(vm: &Vm<H>, cmd: u32, arg: u64) -> Result<VmReply, Errno> {
    vm.check_alive()?;
    let host = &vm.host;
    match cmd {
        KVM_GET_DIRTY_LOG => {
            let log: kvm_dirty_log = get(host, arg)?;
            memory::get_dirty_log(vm, &kvm_dirty_log { dirty_bitmap: pointer(log.dirty_bitmap), ..log })?;
        }
        KVM_CLEAR_DIRTY_LOG => {
            let log: kvm_clear_dirty_log = get(host, arg)?;
            memory::clear_dirty_log(vm, &kvm_clear_dirty_log { dirty_bitmap: pointer(log.dirty_bitmap), ..log })?;
        }
        KVM_X86_SET_MSR_FILTER_COMPAT => {
            let mut bytes = [0; MSR_FILTER_COMPAT_SIZE];
            read(host, arg, &mut bytes)?;
            filter::set_msr_filter(vm, &wider(&bytes))?;
        }
        _ => return vm_ioctl(vm, cmd, arg),
    }
    Ok(VmReply::Value(0))
}

/// The struct as 64-bit programs have it.
fn wider(bytes: &[u8; MSR_FILTER_COMPAT_SIZE]) -> kvm_msr_filter {
    let [flags, ref ranges @ ..] = <[u32; MSR_FILTER_COMPAT_SIZE / 4]>::take(bytes);
    let mut filter = kvm_msr_filter { flags, ..Default::default() };
    for (to, from) in filter.ranges.iter_mut().zip(ranges.chunks_exact(4)) {
        if let [flags, nmsrs, base, bitmap] = *from {
            *to = kvm_msr_filter_range { flags, nmsrs, base, bitmap: bitmap.into() };
        }
    }
    filter
}
