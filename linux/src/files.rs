//! System calls on /dev/kvm and the files of VMs and vCPUs: who owns what, and on to `kvm`.
//!
//! The kernel keeps a file's object alive during a call on the file. Who else holds a VM: `object`.

use crate::{Linux, newfile::NewFile, object::VmObject, object::VmRef, shim, shim::KMm};
use abi::{
    DeviceReply, Ran, SystemReply, VcpuReply, VmReply,
    uapi::ioctl::{KVM_CREATE_VCPU, KVM_RUN},
};
use alloc::boxed::Box;
use core::ffi::c_long;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use host::{Errno, SharedPage, try_box};

type Vm = vm::Vm<Linux>;
type Vcpu = vm::Vcpu<Linux>;

/// What files hold is used by any thread at once.
const fn shared_by_threads<T: Sync>() {}
const _: () = {
    shared_by_threads::<VmObject>();
    shared_by_threads::<VmRef>();
    shared_by_threads::<VcpuFile>();
    shared_by_threads::<StatsFile>();
    shared_by_threads::<DeviceFile>();
};

/// A file that reads as the statistics of a VM, or of one of its vCPUs.
pub struct StatsFile {
    owner: VmRef,
    vcpu: Option<usize>,
}

/// The file of a vCPU.
pub struct VcpuFile {
    owner: VmRef,
    index: usize,
    mask: SignalMask,
}

impl VcpuFile {
    #[inline]
    fn vcpu(&self) -> Option<&Vcpu> {
        self.owner.vm.vcpu(self.index)
    }
}

/// KVM_SET_SIGNAL_MASK.
#[derive(Default)]
struct SignalMask {
    on: AtomicBool,
    blocked: AtomicU64,
}

impl SignalMask {
    /// SIGKILL and SIGSTOP cannot be blocked.
    const NEVER: u64 = 1 << (9 - 1) | 1 << (19 - 1);

    fn set(&self, mask: Option<u64>) {
        self.blocked.store(mask.unwrap_or(0) & !Self::NEVER, Relaxed);
        self.on.store(mask.is_some(), Release);
    }

    /// Puts the mask in place of the thread's own until the guard is dropped.
    #[inline]
    fn apply(&self) -> Masked {
        let on = self.on.load(Acquire);
        if on {
            shim::hsave_sigmask_set(self.blocked.load(Relaxed));
        }
        Masked(on)
    }
}

/// See [`SignalMask::apply`].
struct Masked(bool);

impl Drop for Masked {
    #[inline]
    fn drop(&mut self) {
        if self.0 {
            shim::hsave_sigmask_restore();
        }
    }
}

/// What a system call returns.
#[inline]
fn result(r: Result<i64, Errno>) -> c_long {
    r.unwrap_or_else(|e| -i64::from(e as i32))
}

/// ioctl on /dev/kvm.
#[unsafe(no_mangle)]
extern "C" fn hsave_system_ioctl(cmd: u32, arg: u64) -> c_long {
    result(abi::system_ioctl(&Linux, cmd, arg).and_then(|reply| match reply {
        SystemReply::Value(v) => Ok(v),
        SystemReply::NewVm => {
            let file = NewFile::new(|| shim::hsave_vm_file())?;
            let vm = VmRef::new()?;
            // SAFETY: `hsave_vm_release` takes what the file is given.
            Ok(unsafe { file.give(try_box(|| vm)?) })
        }
    }))
}

/// ioctl on a VM's file, from the address space `mm`.
///
/// # Safety
/// `file` is what the file was given, and the file is open.
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_vm_ioctl(file: *const VmRef, cmd: u32, arg: u64, mm: *const KMm) -> c_long {
    // SAFETY: by contract.
    let object = unsafe { &*file };
    result(vm_ioctl(object, cmd, arg, mm, abi::vm_ioctl))
}

/// The same from a 32-bit program.
///
/// # Safety
/// As [`hsave_vm_ioctl`].
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_vm_compat_ioctl(file: *const VmRef, cmd: u32, arg: u64, mm: *const KMm) -> c_long {
    // SAFETY: by contract.
    let object = unsafe { &*file };
    result(vm_ioctl(object, cmd, arg, mm, abi::vm_compat_ioctl))
}

/// What an ioctl means, by the layout of the caller's structs.
type Meaning = fn(&Vm, u32, u64) -> Result<VmReply, Errno>;

fn vm_ioctl(object: &VmRef, cmd: u32, arg: u64, mm: *const KMm, meaning: Meaning) -> Result<i64, Errno> {
    if !object.belongs_to(mm) {
        return Err(Errno::EIO);
    }
    if cmd == KVM_CREATE_VCPU {
        return create_vcpu(object, arg);
    }
    match meaning(&object.vm, cmd, arg)? {
        VmReply::Value(v) => Ok(v),
        VmReply::Stats => stats_file(object, None),
        VmReply::NewDevice => vfio_device(object, arg),
        // Not reached: `create_vcpu` is for these.
        VmReply::NewVcpu { .. } => Err(Errno::EINVAL),
        VmReply::Irqfd(i) if i.assign => {
            let vm = &raw const *object.vm;
            // SAFETY: the VM outlives the list, which goes first (`VmObject`).
            unsafe { object.irqfds.assign(i, vm) }.map(|()| 0)
        }
        VmReply::Irqfd(i) => object.irqfds.deassign(i.fd, i.gsi).map(|()| 0),
    }
}

/// A vCPU and its file.
fn create_vcpu(object: &VmRef, arg: u64) -> Result<i64, Errno> {
    // The id is checked with the rest; here it is part of a name.
    let file = NewFile::new(|| shim::hsave_vcpu_file(arg as u32))?;
    let mut handle = try_box(|| VcpuFile { owner: object.clone(), index: 0, mask: SignalMask::default() })?;
    let VmReply::NewVcpu { index } = abi::vm_ioctl(&object.vm, KVM_CREATE_VCPU, arg)? else {
        return Err(Errno::EINVAL);
    };
    handle.index = index;
    // SAFETY: `hsave_vcpu_release` takes what the file is given.
    Ok(unsafe { file.give(handle) })
}

/// The file of a VM's VFIO device.
pub struct DeviceFile {
    owner: VmRef,
}

impl DeviceFile {
    /// Errors: EBUSY (there is one).
    fn new(owner: &VmRef) -> Result<Self, Errno> {
        owner.vfio.create()?;
        Ok(Self { owner: owner.clone() })
    }
}

impl Drop for DeviceFile {
    fn drop(&mut self) {
        self.owner.vfio.remove(&self.owner);
    }
}

/// The VFIO device and its file. Errors: EBUSY (there is one), EFAULT, ENOMEM, those of opening a file.
fn vfio_device(owner: &VmRef, arg: u64) -> Result<i64, Errno> {
    let file = NewFile::new(|| shim::hsave_device_file())?;
    let device = DeviceFile::new(owner)?;
    let device = try_box(|| device)?;
    abi::tell_device_fd(&Linux, arg, file.fd())?;
    // SAFETY: `hsave_device_release` takes what the file is given.
    unsafe { file.give(device) };
    Ok(0)
}

/// ioctl on the file of a VM's VFIO device, from the address space `mm`.
///
/// # Safety
/// `file` is what the file was given, and the file is open.
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_device_ioctl(file: *const DeviceFile, cmd: u32, arg: u64, mm: *const KMm) -> c_long {
    // SAFETY: by contract.
    let vm = unsafe { &(*file).owner };
    if !vm.belongs_to(mm) {
        return result(Err(Errno::EIO));
    }
    result(abi::device_ioctl(&Linux, cmd, arg).and_then(|reply| match reply {
        DeviceReply::Done => Ok(0),
        // SAFETY: the device's file holds the VM.
        DeviceReply::Add(fd) => unsafe { vm.vfio.add(vm, fd) }.map(|()| 0),
        DeviceReply::Del(fd) => vm.vfio.del(vm, fd).map(|()| 0),
    }))
}

/// The file of a VFIO device is closed. Process context.
///
/// # Safety
/// `file` is what the file was given; nobody uses it any more.
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_device_release(file: *mut [DeviceFile; 1]) {
    // SAFETY: by contract; it came from `NewFile::give`.
    drop(unsafe { Box::from_raw(file) });
}

/// The VM's file is closed. Process context.
///
/// # Safety
/// `file` is what the file was given; nobody uses it any more.
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_vm_release(file: *mut [VmRef; 1]) {
    // SAFETY: by contract; it came from `NewFile::give`.
    drop(unsafe { Box::from_raw(file) });
}

/// ioctl on a vCPU's file, from the address space `mm`.
///
/// # Safety
/// `file` is what the file was given, and the file is open.
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_vcpu_ioctl(file: *const VcpuFile, cmd: u32, arg: u64, mm: *const KMm) -> c_long {
    // SAFETY: by contract.
    let file = unsafe { &*file };
    result(vcpu_ioctl(file, cmd, arg, mm))
}

#[inline]
fn vcpu_ioctl(file: &VcpuFile, cmd: u32, arg: u64, mm: *const KMm) -> Result<i64, Errno> {
    if !file.owner.belongs_to(mm) {
        return Err(Errno::EIO);
    }
    let vm = &file.owner.vm;
    let vcpu = file.vcpu().ok_or(Errno::EIO)?;
    if cmd == KVM_RUN {
        let _running = vcpu.thread.running(vm)?;
        #[cfg(feature = "panics")]
        let arg = crate::on_purpose::asked(arg);
        let _masked = file.mask.apply();
        // There is no other engine to go to.
        while abi::vcpu_run(vm, vcpu, arg)? == Ran::HandOver {}
        return Ok(0);
    }
    match abi::vcpu_ioctl(vm, vcpu, cmd, arg)? {
        VcpuReply::Value(v) => Ok(v),
        VcpuReply::Stats => stats_file(&file.owner, Some(file.index)),
        VcpuReply::SignalMask(mask) => {
            file.mask.set(mask);
            Ok(0)
        }
    }
}

/// The vCPU's file is closed. Process context.
///
/// # Safety
/// `file` is what the file was given; nobody uses it any more.
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_vcpu_release(file: *mut [VcpuFile; 1]) {
    // SAFETY: by contract; it came from `NewFile::give`.
    drop(unsafe { Box::from_raw(file) });
}

/// A new statistics file. Errors: those of opening a file, ENOMEM.
fn stats_file(owner: &VmRef, vcpu: Option<usize>) -> Result<i64, Errno> {
    let id = vcpu.and_then(|index| owner.vm.vcpu(index)).map_or(-1, |v| v.id.into());
    let file = NewFile::new(|| shim::hsave_stats_file(id))?;
    let stats = try_box(|| StatsFile { owner: owner.clone(), vcpu })?;
    // SAFETY: `hsave_stats_release` takes what the file is given.
    Ok(unsafe { file.give(stats) })
}

/// read of a statistics file: number of bytes, or a negative errno.
///
/// # Safety
/// `file` is what the file was given, and the file is open.
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_stats_read(file: *const StatsFile, to: u64, len: u64, pos: u64) -> c_long {
    // SAFETY: by contract.
    let StatsFile { owner, vcpu } = unsafe { &*file };
    let vm = &owner.vm;
    result(abi::read_stats(vm, vcpu.and_then(|n| vm.vcpu(n)), owner.pid, to, len, pos).map(|n| n as i64))
}

/// A statistics file is closed. Process context.
///
/// # Safety
/// `file` is what the file was given; nobody uses it any more.
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_stats_release(file: *mut [StatsFile; 1]) {
    // SAFETY: by contract; it came from `NewFile::give`.
    drop(unsafe { Box::from_raw(file) });
}

/// How many pages of a vCPU file's mapping are its dirty ring, which begins at [`DIRTY_LOG_PAGE_OFFSET`](vm::DIRTY_LOG_PAGE_OFFSET).
///
/// # Safety
/// `file` is what the file was given, and the file is open.
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_vcpu_ring_pages(file: *const VcpuFile) -> usize {
    // SAFETY: by contract.
    unsafe { &*file }.owner.vm.dirty_ring_pages()
}

/// The physical address of page `index` of a vCPU file's mapping; 0: there is none.
///
/// # Safety
/// `file` is what the file was given, and the file is open or mapped.
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_vcpu_page(file: *const VcpuFile, index: usize) -> u64 {
    // SAFETY: by contract.
    let file = unsafe { &*file };
    let page = file.vcpu().and_then(|v| file.owner.vm.vcpu_page(v, index));
    page.map_or(0, |p| p.pa().0)
}
