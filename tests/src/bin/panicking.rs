//! Has the module panic, which has to be built for that (`linux/src/on_purpose.rs`). `loop`: in a vCPU's loop, and sees what becomes of
//! the VM. `lock`: with a spin lock held. `fresh`: a VM that has nothing to do with it.

use anyhow::{Result, bail, ensure};
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::os::fd::AsRawFd;
use std::time::Duration;
use tests::client::{Client, assemble};

const KVM_RUN: libc::Ioctl = 0xae80;
const IN_THE_LOOP: u64 = 0xdead_0001;
const UNDER_A_LOCK: u64 = 0xdead_0002;

/// A guest that halts, and one that leaves.
fn guest(halts: bool) -> Result<Client> {
    let mut client = Client::new(4 << 20, false)?;
    client.split_irqchip()?;
    client.load(assemble(|a| {
        use iced_x86::code_asm::*;
        if halts {
            // With the guest's state in the registers.
            a.fninit()?;
            a.hlt()
        } else {
            a.out(0x80, al)
        }
    })?)?;
    Ok(client)
}

fn left(vcpu: &mut VcpuFd) -> String {
    match vcpu.run() {
        Ok(exit) => format!("{exit:?}"),
        Err(e) => format!("errno {}", e.errno()),
    }
}

extern "C" fn panics_in_the_loop(fd: *mut libc::c_void) -> libc::c_int {
    // SAFETY: no memory is involved.
    unsafe { libc::ioctl(fd as libc::c_int, KVM_RUN, IN_THE_LOOP) }
}

/// A process with our memory dies in KVM_RUN of the vCPU at `fd`.
fn dies(fd: i32) -> Result<()> {
    let mut stack = vec![0u64; 8192];
    let top = stack.as_mut_ptr_range().end.cast();
    let flags = libc::CLONE_VM | libc::SIGCHLD;
    // SAFETY: the child does one system call on a stack of its own, which outlives it.
    let pid = unsafe { libc::clone(panics_in_the_loop, top, flags, fd as usize as *mut libc::c_void) };
    ensure!(pid > 0, "clone");
    let mut status = 0;
    // SAFETY: `status` is a valid place for the result.
    ensure!(unsafe { libc::waitpid(pid, &mut status, 0) } == pid, "waitpid");
    ensure!(libc::WIFSIGNALED(status), "it was not killed: {status:x}");
    Ok(())
}

fn in_the_loop() -> Result<()> {
    let client = guest(true)?;
    let (first, mut second) = (client.vcpu(0)?, client.vcpu(1)?);
    let other = std::thread::spawn(move || {
        let before = left(&mut second);
        (before, left(&mut second))
    });
    std::thread::sleep(Duration::from_millis(500));
    dies(first.as_raw_fd())?;
    let (running, again) = other.join().map_err(|_| anyhow::anyhow!("the other thread panicked"))?;
    ensure!(running == format!("errno {}", libc::EIO), "who was in KVM_RUN: {running}");
    ensure!(again == format!("errno {}", libc::EIO), "who calls KVM_RUN: {again}");
    Ok(())
}

fn main() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("loop") => in_the_loop(),
        Some("lock") => {
            let client = guest(false)?;
            let vcpu = client.vcpu(0)?;
            // SAFETY: no memory is involved.
            unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_RUN, UNDER_A_LOCK) };
            bail!("it did not panic");
        }
        _ => {
            let client = guest(false)?;
            match client.vcpu(0)?.run()? {
                VcpuExit::IoOut(0x80, _) => Ok(()),
                other => bail!("{other:?}"),
            }
        }
    }
}
