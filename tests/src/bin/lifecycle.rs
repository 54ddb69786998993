//! Births and deaths that a VMM can go through: killed, forked, closed under its own feet. After all of them the host has
//! the memory that it had before, and the module can be unloaded.

use anyhow::{Context, Result, bail, ensure};
use kvm_ioctls::VcpuExit;
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use tests::check;
use tests::client::{Client, assemble};
use tests::pace::{leaves_out, limit};

const DONE: u16 = 0xf4;
const MEMORY: usize = 32 << 20;

/// A guest that touches all its memory for ever and says each time that it has.
fn busy() -> Result<Client> {
    let mut client = Client::new(MEMORY, false)?;
    client.split_irqchip()?;
    client.load(assemble(|a| {
        use iced_x86::code_asm::*;
        let (mut again, mut touch) = (a.create_label(), a.create_label());
        a.set_label(&mut again)?;
        a.mov(r14, 0x40_0000u64)?;
        a.mov(r12, ((MEMORY >> 12) - 0x400) as u64)?;
        a.set_label(&mut touch)?;
        a.inc(dword_ptr(r14))?;
        a.add(r14, 4096)?;
        a.sub(r12, 1)?;
        a.jnz(touch)?;
        a.mov(dx, u32::from(DONE))?;
        a.out(dx, al)?;
        a.jmp(again)
    })?)?;
    Ok(client)
}

/// Runs the busy guest for `rounds` of its loops (0: for ever).
fn run_busy(rounds: u32) -> Result<()> {
    let client = busy()?;
    let mut vcpu = client.vcpu(0)?;
    let mut n = 0;
    loop {
        match vcpu.run()? {
            VcpuExit::IoOut(DONE, _) => n += 1,
            other => bail!("the guest left with {other:?}"),
        }
        if n == rounds {
            return Ok(());
        }
    }
}

fn spawn_busy() -> Result<Child> {
    Ok(Command::new(std::env::current_exe()?).arg("--busy").stdout(Stdio::null()).spawn()?)
}

/// Kibibytes of memory that the kernel holds for itself or anybody: everything that is neither free nor cache.
fn used_kib() -> Result<i64> {
    std::fs::write("/proc/sys/vm/drop_caches", "3").context("drop_caches")?;
    std::thread::sleep(Duration::from_millis(200));
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let field = |name: &str| -> Result<i64> {
        let line = text.lines().find(|l| l.starts_with(name)).with_context(|| format!("{name} in meminfo"))?;
        Ok(line.split_whitespace().nth(1).context("a number")?.parse()?)
    };
    Ok(field("MemTotal:")? - field("MemFree:")? - field("Cached:")? - field("Buffers:")?)
}

/// Runs `f` in batches of ten and compares the memory in use before and after. The host's own caches grow now and then;
/// a leak grows in every batch.
fn leaks_nothing(f: impl Fn() -> Result<()>) -> Result<()> {
    f()?;
    let mut grown = 0;
    for _ in 0..6 {
        let before = used_kib()?;
        for _ in 0..10 {
            f()?;
        }
        grown = used_kib()? - before;
        // One VM of these holds over 150 KiB of tables, VMCB and FPU state and 32 MiB of memory.
        if grown < 1200 {
            return Ok(());
        }
    }
    bail!("{grown} KiB are missing after ten rounds, six times in a row")
}

fn killed() -> Result<()> {
    leaks_nothing(|| {
        let mut child = spawn_busy()?;
        std::thread::sleep(Duration::from_millis(120));
        child.kill()?;
        child.wait()?;
        Ok(())
    })
}

fn exits_normally() -> Result<()> {
    leaks_nothing(|| run_busy(2))
}

fn vcpu_outlives_vm() -> Result<()> {
    leaks_nothing(|| {
        let client = busy()?;
        let mut vcpu = client.vcpu(0)?;
        let Client { vm, .. } = &client;
        // The VM's descriptor goes; the vCPU keeps the VM.
        // SAFETY: `dup2` replaces the descriptor by one of /dev/null, so that its owner may close it as usual.
        let null = std::fs::File::open("/dev/null")?;
        ensure!(unsafe { libc::dup2(null.as_raw_fd(), vm.as_raw_fd()) } >= 0, "dup2");
        match vcpu.run()? {
            VcpuExit::IoOut(DONE, _) => Ok(()),
            other => bail!("the guest left with {other:?}"),
        }
    })
}

fn closed_by_another_thread() -> Result<()> {
    leaks_nothing(|| {
        let client = busy()?;
        let mut vcpu = client.vcpu(0)?;
        let fd = vcpu.as_raw_fd();
        let (tell, told) = mpsc::channel();
        let runner = std::thread::spawn(move || -> Result<u32> {
            let mut rounds = 0;
            loop {
                match vcpu.run() {
                    Ok(VcpuExit::IoOut(DONE, _)) => rounds += 1,
                    Ok(other) => bail!("the guest left with {other:?}"),
                    // The descriptor is /dev/null by now: ENOTTY.
                    Err(e) if e.errno() == libc::ENOTTY => return Ok(rounds),
                    Err(e) => bail!("KVM_RUN: {e}"),
                }
                let _ = tell.send(());
            }
        });
        told.recv()?;
        let null = std::fs::File::open("/dev/null")?;
        // SAFETY: as above.
        ensure!(unsafe { libc::dup2(null.as_raw_fd(), fd) } >= 0, "dup2");
        let rounds = runner.join().map_err(|_| anyhow::anyhow!("the runner panicked"))??;
        ensure!(rounds > 0, "the guest never ran");
        Ok(())
    })
}

fn forked_child_is_refused() -> Result<()> {
    let client = busy()?;
    let vcpu = client.vcpu(0)?;
    // SAFETY: the child only makes system calls on what it inherited and leaves with `_exit`.
    let pid = unsafe { libc::fork() };
    ensure!(pid >= 0, "fork");
    if pid == 0 {
        let eio = |r: Result<(), kvm_ioctls::Error>| r.is_err_and(|e| e.errno() == libc::EIO);
        let vm_refused = eio(client.vm.set_tss_address(0xfffb_d000));
        let vcpu_refused = eio(vcpu.get_regs().map(|_| ()));
        // SAFETY: ends the child without running destructors that the parent will run.
        unsafe { libc::_exit(if vm_refused && vcpu_refused { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: `status` is a valid place for the result.
    ensure!(unsafe { libc::waitpid(pid, &mut status, 0) } == pid, "waitpid");
    ensure!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "a forked child could use the VM");
    Ok(())
}

/// `delete_module` without waiting.
fn unload(name: &str) -> i32 {
    let name = std::ffi::CString::new(name).unwrap_or_default();
    // SAFETY: the name is a string that ends with zero.
    match unsafe { libc::syscall(libc::SYS_delete_module, name.as_ptr(), libc::O_NONBLOCK) } {
        0 => 0,
        _ => std::io::Error::last_os_error().raw_os_error().unwrap_or(-1),
    }
}

fn unload_is_refused() -> Result<()> {
    let client = busy()?;
    let _vcpu = client.vcpu(0)?;
    let why = unload("kvm_amd");
    ensure!(why == libc::EWOULDBLOCK || why == libc::EBUSY, "unloading with a VM alive: errno {why}");
    Ok(())
}

/// SIGUSR1 does nothing but end system calls.
fn take_signals() {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: the handler does nothing, and the action is complete.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
        libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut());
    }
}

fn signal_ends_run() -> Result<()> {
    let mut client = Client::new(MEMORY, false)?;
    client.split_irqchip()?;
    client.load(assemble(|a| a.hlt())?)?;
    let mut vcpu = client.vcpu(0)?;
    take_signals();
    // SAFETY: names this very thread, which outlives the other.
    let me = unsafe { libc::pthread_self() } as usize;
    let other = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(150));
        // SAFETY: the thread is still in `vcpu.run` below, or joins us afterwards.
        unsafe { libc::pthread_kill(me as libc::pthread_t, libc::SIGUSR1) };
    });
    let left = vcpu.run().map(|e| format!("{e:?}"));
    let _ = other.join();
    match left {
        Err(e) if e.errno() == libc::EINTR => Ok(()),
        other => bail!("a halted vCPU with a signal: {other:?}"),
    }
}

/// KVM_RUN of the vCPU at `fd`.
extern "C" fn run(fd: *mut libc::c_void) -> libc::c_int {
    const KVM_RUN: libc::Ioctl = 0xae80;
    // SAFETY: no memory is involved.
    unsafe { libc::ioctl(fd as libc::c_int, KVM_RUN, 0) }
}

/// KVM_GET_REGS of the vCPU at `fd`.
extern "C" fn get_regs(fd: *mut libc::c_void) -> libc::c_int {
    const KVM_GET_REGS: libc::Ioctl = 0x8090_ae81;
    let mut regs = [0u64; 18];
    // SAFETY: as large as the ioctl has it.
    unsafe { libc::ioctl(fd as libc::c_int, KVM_GET_REGS, regs.as_mut_ptr()) }
}

/// A process with our memory does something with a vCPU that is running: does it die before the vCPU is free?
fn dies_while_it_waits(fd: i32, call: extern "C" fn(*mut libc::c_void) -> libc::c_int) -> Result<bool> {
    let mut stack = vec![0u64; 8192];
    let top = stack.as_mut_ptr_range().end.cast();
    let flags = libc::CLONE_VM | libc::CLONE_FILES | libc::SIGCHLD;
    // SAFETY: the child does one system call on a stack of its own, which outlives it, or this process.
    let pid = unsafe { libc::clone(call, top, flags, fd as usize as *mut libc::c_void) };
    ensure!(pid > 0, "clone");
    std::thread::sleep(Duration::from_millis(200));
    let reaped = |flags| {
        let mut status = 0;
        // SAFETY: `status` is a valid place for the result.
        unsafe { libc::waitpid(pid, &mut status, flags) == pid }
    };
    ensure!(!reaped(libc::WNOHANG), "it did not wait");
    // SAFETY: the child is ours.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    for _ in 0..30 {
        if reaped(libc::WNOHANG) {
            return Ok(true);
        }
        std::thread::sleep(limit(Duration::from_millis(100)));
    }
    std::mem::forget(stack);
    Ok(false)
}

fn who_waits_can_be_killed() -> Result<()> {
    let mut client = Client::new(MEMORY, false)?;
    client.split_irqchip()?;
    client.load(assemble(|a| a.hlt())?)?;
    let mut vcpu = client.vcpu(0)?;
    take_signals();
    let fd = vcpu.as_raw_fd();
    // SAFETY: names this very thread, which outlives the other.
    let me = unsafe { libc::pthread_self() } as usize;
    let other = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(150));
        let died = [get_regs, run].map(|call| dies_while_it_waits(fd, call));
        // SAFETY: the thread is still in `vcpu.run` below, or joins us afterwards.
        unsafe { libc::pthread_kill(me as libc::pthread_t, libc::SIGUSR1) };
        died
    });
    ensure!(vcpu.run().is_err_and(|e| e.errno() == libc::EINTR), "a halted vCPU with a signal");
    for died in other.join().map_err(|_| anyhow::anyhow!("the other thread panicked"))? {
        ensure!(died?, "who waits for a vCPU cannot be killed");
    }
    Ok(())
}

fn hotplug() -> Result<()> {
    if leaves_out("takes a processor away") {
        return Ok(());
    }
    let online = "/sys/devices/system/cpu/cpu1/online";
    if !std::path::Path::new(online).exists() {
        println!("   (one CPU: nothing to unplug)");
        return Ok(());
    }
    let mut child = spawn_busy()?;
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(100));
        std::fs::write(online, "0").context("taking CPU 1 away")?;
        std::thread::sleep(Duration::from_millis(100));
        std::fs::write(online, "1").context("bringing CPU 1 back")?;
    }
    let alive = child.try_wait()?.is_none();
    child.kill()?;
    child.wait()?;
    ensure!(alive, "the guest died");
    Ok(())
}

fn main() -> Result<()> {
    if std::env::args().nth(1).as_deref() == Some("--busy") {
        return run_busy(0);
    }
    check::run(&[
        ("exits-normally", exits_normally),
        ("killed", killed),
        ("vcpu-outlives-vm", vcpu_outlives_vm),
        ("closed-by-another-thread", closed_by_another_thread),
        ("forked-child-is-refused", forked_child_is_refused),
        ("unload-is-refused", unload_is_refused),
        ("signal-ends-run", signal_ends_run),
        ("who-waits-can-be-killed", who_waits_can_be_killed),
        ("hotplug", hotplug),
    ])
}
