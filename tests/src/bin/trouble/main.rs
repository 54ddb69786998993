//! What a VMM meets when things go wrong around it: memory that does not come or that fails, files that cannot be made, an
//! eventfd that is taken, a thread that asks a vCPU's file for what it is; and VMMs of 32 bits.

mod descriptors;
mod memory;

use anyhow::{Context, Result, ensure};
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_dirty_log};
use memory::{PAGE, PAGES, Pages, WINDOW};
use std::arch::asm;
use std::os::fd::{AsRawFd, RawFd};
use tests::check;
use tests::client::Client;

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// ioctl as a 32-bit program calls it: the result, or the negative errno.
fn ioctl_32(fd: RawFd, cmd: u32, arg: u64) -> i32 {
    let result: i64;
    // SAFETY: the kernel's other entry for system calls; the arguments are numbers and an address below 4 GiB.
    unsafe {
        asm!(
            "xchg {fd:r}, rbx", "int 0x80", "xchg {fd:r}, rbx",
            fd = inout(reg) fd as u64 => _,
            inlateout("rax") 54u64 => result,
            in("rcx") u64::from(cmd),
            in("rdx") arg,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    result as i32
}

fn callers_of_32_bits() -> Result<()> {
    const GET_DIRTY_LOG: u32 = 0x4010_ae42;
    const CLEAR_DIRTY_LOG: u32 = 0xc018_aec0;
    const SET_MSR_FILTER: u32 = 0x4104_aec6;
    const GET_API_VERSION: u32 = 0xae00;
    const SET_SIGNAL_MASK: u32 = 0x4004_ae8b;
    const RUBBISH: u32 = 0xdead_beef;
    let low = Pages::new(libc::MAP_32BIT | libc::MAP_POPULATE)?;
    let (arg, bitmap) = (low.address(), low.address() + PAGE as u64);
    ensure!(arg >> 32 == 0, "memory below 4 GiB");
    let put = |words: &[u32]| {
        // SAFETY: the first page is ours, and large enough.
        unsafe { (arg as *mut u32).copy_from_nonoverlapping(words.as_ptr(), words.len()) };
        arg
    };
    let window = Pages::new(0)?;
    let client = Client::new(8 << 20, false)?;
    let fd = client.vm.as_raw_fd();
    if ioctl_32(client.kvm.as_raw_fd(), GET_API_VERSION, 0) != 12 {
        println!("a kernel that runs no 32-bit programs");
        return Ok(());
    }
    client.map_with(1, KVM_MEM_LOG_DIRTY_PAGES, WINDOW, window.address(), (PAGES * PAGE) as u64)?;
    let got = ioctl_32(fd, GET_DIRTY_LOG, put(&[1, RUBBISH, bitmap as u32, RUBBISH]));
    ensure!(got == 0, "KVM_GET_DIRTY_LOG: {got}");
    let native = kvm_dirty_log::default();
    ensure!(size_of_val(&native) == 16, "the struct of either size");
    let mut cap = kvm_bindings::kvm_enable_cap { cap: 168, ..Default::default() };
    cap.args[0] = 1;
    client.vm.enable_cap(&cap).context("KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2")?;
    let got = ioctl_32(fd, CLEAR_DIRTY_LOG, put(&[1, PAGES as u32, 0, 0, bitmap as u32, RUBBISH]));
    ensure!(got == 0, "KVM_CLEAR_DIRTY_LOG: {got}");
    // Flags; flags, number, first MSR, bitmap.
    let mut filter = [0u32; 65];
    filter[..5].copy_from_slice(&[1, 3, 8, 0x174, bitmap as u32]);
    let got = ioctl_32(fd, SET_MSR_FILTER, put(&filter));
    ensure!(got == 0, "KVM_X86_SET_MSR_FILTER: {got}");
    let vcpu = client.vm.create_vcpu(0)?;
    let got = ioctl_32(vcpu.as_raw_fd(), SET_SIGNAL_MASK, put(&[8, 0, 0]));
    ensure!(got == 0, "KVM_SET_SIGNAL_MASK: {got}");
    let got = ioctl_32(vcpu.as_raw_fd(), SET_SIGNAL_MASK, put(&[4, 0, 0]));
    ensure!(got == -libc::EINVAL, "KVM_SET_SIGNAL_MASK of another length: {got}");
    Ok(())
}

fn main() -> Result<()> {
    check::run(&[
        ("memory-that-does-not-come", memory::does_not_come),
        ("memory-that-fails", memory::fails),
        ("files-that-cannot-be-made", descriptors::files_that_cannot_be_made),
        ("eventfds-that-are-taken", descriptors::eventfds_that_are_taken),
        ("others-ask-a-vcpu-that-runs", descriptors::others_ask_a_vcpu_that_runs),
        ("callers-of-32-bits", callers_of_32_bits),
    ])
}
