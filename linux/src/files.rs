//! System calls on /dev/kvm and the files of VMs and vCPUs: on to `abi`. The files themselves, and who holds a VM, are the
//! base's (linux/shim/kvm/file.c, vm.c), which sees to it that what is called here is alive, and that one thread at a time
//! uses a vCPU.

use crate::{Linux, debugfs, errno::check, newfile::NewFile, shim, shim::KVcpu, shim::KVm};
use abi::{
    DeviceReply, Irqfd, Ran, SystemReply, VcpuReply, VmReply,
    uapi::ioctl::{KVM_CREATE_VCPU, KVM_CREATE_VM},
};
use alloc::boxed::Box;
use core::ffi::c_long;
use core::ptr::without_provenance_mut;
use host::{Errno, SharedPage};

type Vm = vm::Vm<Linux>;
type Vcpu = vm::Vcpu<Linux>;

/// Files are used from any thread, and the compiler does not see it: what they lead to are addresses.
const _: () = {
    const fn any_thread<T: Send + Sync>() {}
    any_thread::<Vm>();
    any_thread::<Vcpu>();
};

/// What a system call returns.
#[inline]
fn result(r: Result<i64, Errno>) -> c_long {
    r.unwrap_or_else(|e| -i64::from(e as i32))
}

/// ioctl on /dev/kvm, but for KVM_CREATE_VM.
#[unsafe(no_mangle)]
extern "C" fn hsave_system_ioctl(cmd: u32, arg: u64) -> c_long {
    result(abi::system_ioctl(&Linux, cmd, arg).and_then(|reply| match reply {
        SystemReply::Value(v) => Ok(v),
        // Not reached: `hsave_vm_new` is for these.
        SystemReply::NewVm => Err(Errno::EINVAL),
    }))
}

/// KVM_CREATE_VM with `arg`, by the current process: the engine's part of a VM. Else an errno, as the kernel returns them as
/// pointers.
///
/// # Safety
/// `base` is the base's part, and lives until [`hsave_vm_free`] returns.
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_vm_new(base: *mut KVm, arg: u64) -> *mut Vm {
    let made = abi::system_ioctl(&Linux, KVM_CREATE_VM, arg).and_then(|_| Vm::new(Linux));
    match made {
        Err(e) => without_provenance_mut((e as i32 as usize).wrapping_neg()),
        Ok(vm) => {
            let vm = Box::into_raw(vm.into_inner()).cast::<Vm>();
            // SAFETY: just made, and nobody else has it; by contract the base outlives the timers.
            unsafe { (*vm).hrtimers.bind(base) };
            vm
        }
    }
}

/// The VM ends. Process context.
///
/// # Safety
/// `vm` is what [`hsave_vm_new`] returned; nobody uses it any more, but its timers, which this waits for.
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_vm_free(vm: *mut Vm) {
    // SAFETY: by contract; it came from a box of an array of one.
    drop(unsafe { Box::from_raw(vm.cast::<[Vm; 1]>()) });
}

/// ioctl on a VM's file, but for KVM_CREATE_VCPU.
///
/// # Safety
/// Here and below: `vm` is what [`hsave_vm_new`] returned and not freed, and `base` is its base's part.
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_vm_ioctl(vm: *const Vm, base: *mut KVm, cmd: u32, arg: u64) -> c_long {
    // SAFETY: by contract.
    result(vm_ioctl(unsafe { &*vm }, base, cmd, arg, abi::vm_ioctl))
}

/// The same from a 32-bit program.
///
/// # Safety
/// As [`hsave_vm_ioctl`].
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_vm_compat_ioctl(vm: *const Vm, base: *mut KVm, cmd: u32, arg: u64) -> c_long {
    // SAFETY: by contract.
    result(vm_ioctl(unsafe { &*vm }, base, cmd, arg, abi::vm_compat_ioctl))
}

/// What an ioctl means, by the layout of the caller's structs.
type Meaning = fn(&Vm, u32, u64) -> Result<VmReply, Errno>;

fn vm_ioctl(vm: &Vm, base: *mut KVm, cmd: u32, arg: u64, meaning: Meaning) -> Result<i64, Errno> {
    match meaning(vm, cmd, arg)? {
        VmReply::Value(v) => Ok(v),
        VmReply::Stats => stats_file(base, None),
        VmReply::NewDevice => vfio_device(base, arg),
        // Not reached: `hsave_vcpu_new` is for these.
        VmReply::NewVcpu { .. } => Err(Errno::EINVAL),
        VmReply::Irqfd(i) => irqfd(base, &i).map(i64::from),
    }
}

/// KVM_CREATE_VCPU: its place among the VM's vCPUs, or a negative errno.
///
/// # Safety
/// As [`hsave_vm_ioctl`].
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_vcpu_new(vm: *const Vm, base: *mut KVm, arg: u64) -> c_long {
    // SAFETY: by contract.
    let vm = unsafe { &*vm };
    result(abi::vm_ioctl(vm, KVM_CREATE_VCPU, arg).and_then(|reply| match reply {
        VmReply::NewVcpu { index } => {
            // SAFETY: by contract.
            unsafe { debugfs::add_vcpu(base, vm, index) };
            Ok(index as i64)
        }
        _ => Err(Errno::EINVAL),
    }))
}

/// KVM_IRQFD. Errors: those of the base.
fn irqfd(base: *mut KVm, i: &Irqfd) -> Result<i32, Errno> {
    // SAFETY: the base's part is alive in a call on its file.
    check(unsafe {
        if i.assign {
            shim::hsave_irqfd_assign(base, i.fd, i.gsi, i.resample.is_some(), i.resample.unwrap_or(-1))
        } else {
            shim::hsave_irqfd_deassign(base, i.fd, i.gsi)
        }
    })
}

/// The VFIO device and its file. Errors: EBUSY (there is one), EFAULT, ENOMEM, those of opening a file.
fn vfio_device(base: *mut KVm, arg: u64) -> Result<i64, Errno> {
    // SAFETY: as above.
    let file = NewFile::new(|| unsafe { shim::hsave_device_file(base) })?;
    abi::tell_device_fd(&Linux, arg, file.fd())?;
    file.install();
    Ok(0)
}

/// ioctl on the file of a VM's VFIO device.
///
/// # Safety
/// As [`hsave_vm_ioctl`].
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_device_ioctl(vm: *const Vm, base: *mut KVm, cmd: u32, arg: u64) -> c_long {
    // SAFETY: by contract.
    result(abi::device_ioctl(unsafe { &*vm }, cmd, arg).and_then(|reply| match reply {
        DeviceReply::Done => Ok(0),
        // SAFETY: by contract.
        DeviceReply::Add(fd) => check(unsafe { shim::hsave_vfio_add(base, fd) }).map(i64::from),
        // SAFETY: as above.
        DeviceReply::Del(fd) => check(unsafe { shim::hsave_vfio_del(base, fd) }).map(i64::from),
    }))
}

/// Devices of the host's that the guest uses do, or do not, keep the caches right ([`vm::Vm::set_noncoherent_dma`]).
///
/// # Safety
/// As [`hsave_vm_ioctl`].
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_set_noncoherent_dma(vm: *const Vm, yes: bool) {
    // SAFETY: by contract.
    unsafe { &*vm }.set_noncoherent_dma(yes);
}

/// KVM_RUN: 0, [`RAN_HAND_OVER`](shim::RAN_HAND_OVER) or a negative errno.
///
/// # Safety
/// As [`hsave_vm_ioctl`]; nobody else uses the vCPU.
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_run(vm: *const Vm, index: usize, arg: u64) -> c_long {
    // SAFETY: by contract.
    result(run(unsafe { &*vm }, index, arg))
}

#[inline]
fn run(vm: &Vm, index: usize, arg: u64) -> Result<i64, Errno> {
    let vcpu: &Vcpu = vm.vcpu(index).ok_or(Errno::EIO)?;
    let _running = vcpu.thread.running(vm);
    #[cfg(feature = "panics")]
    let arg = crate::on_purpose::asked(arg);
    Ok(if abi::vcpu_run(vm, vcpu, arg)? == Ran::HandOver { shim::RAN_HAND_OVER } else { 0 })
}

/// Another ioctl on a vCPU's file.
///
/// # Safety
/// As [`hsave_run`]; `file` is the vCPU's.
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_vcpu_ioctl(
    vm: *const Vm,
    base: *mut KVm,
    index: usize,
    file: *mut KVcpu,
    cmd: u32,
    arg: u64,
) -> c_long {
    // SAFETY: by contract.
    result(vcpu_ioctl(unsafe { &*vm }, base, index, file, cmd, arg))
}

fn vcpu_ioctl(vm: &Vm, base: *mut KVm, index: usize, file: *mut KVcpu, cmd: u32, arg: u64) -> Result<i64, Errno> {
    let vcpu: &Vcpu = vm.vcpu(index).ok_or(Errno::EIO)?;
    match abi::vcpu_ioctl(vm, vcpu, cmd, arg)? {
        VcpuReply::Value(v) => Ok(v),
        VcpuReply::Stats => stats_file(base, Some((index, vcpu.id))),
        VcpuReply::SignalMask(mask) => {
            // SAFETY: the file is alive in a call on it, and nobody else uses the vCPU.
            unsafe { shim::hsave_vcpu_set_mask(file, mask.is_some(), mask.unwrap_or(0)) };
            Ok(0)
        }
    }
}

/// A new statistics file, of a vCPU by its place and id or of the VM. Errors: those of opening a file, ENOMEM.
fn stats_file(base: *mut KVm, vcpu: Option<(usize, u32)>) -> Result<i64, Errno> {
    let (index, id) = vcpu.map_or((-1, -1), |(index, id)| (index as i64, id.into()));
    // SAFETY: the base's part is alive in a call on its file.
    let file = NewFile::new(|| unsafe { shim::hsave_stats_file(base, index, id) })?;
    Ok(file.install())
}

/// read of a statistics file, of a vCPU by its place or (negative) of the VM, which the process `pid` made: number of bytes, or
/// a negative errno.
///
/// # Safety
/// As [`hsave_vm_ioctl`].
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_stats_read(vm: *const Vm, vcpu: i64, pid: u32, to: u64, len: u64, pos: u64) -> c_long {
    // SAFETY: by contract.
    let vm = unsafe { &*vm };
    let vcpu = usize::try_from(vcpu).ok().and_then(|n| vm.vcpu(n));
    result(abi::read_stats(vm, vcpu, pid, to, len, pos).map(|n| n as i64))
}

/// How many pages of a vCPU file's mapping are its dirty ring, which begins at [`DIRTY_LOG_PAGE_OFFSET`](vm::DIRTY_LOG_PAGE_OFFSET).
///
/// # Safety
/// As [`hsave_vm_ioctl`].
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_vcpu_ring_pages(vm: *const Vm) -> usize {
    // SAFETY: by contract.
    unsafe { &*vm }.dirty_ring_pages()
}

/// The physical address of page `page` of a vCPU file's mapping; 0: there is none.
///
/// # Safety
/// As [`hsave_vm_ioctl`].
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_vcpu_page(vm: *const Vm, index: usize, page: usize) -> u64 {
    // SAFETY: by contract.
    let vm = unsafe { &*vm };
    let page = vm.vcpu(index).and_then(|v| vm.vcpu_page(v, page));
    page.map_or(0, |p| p.pa().0)
}
