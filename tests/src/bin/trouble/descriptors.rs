//! Files that cannot be made, eventfds that are taken, and a vCPU's file that is asked for what it is.

use crate::{
    errno,
    memory::{SOON, nothing},
};
use anyhow::{Context, Result, bail, ensure};
use kvm_bindings::kvm_create_device;
use std::os::fd::AsRawFd;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::thread;
use std::time::Duration;
use tests::client::{Client, assemble};
use vmm_sys_util::eventfd::EventFd;

/// Runs `f` while this process may open no more files.
fn without_descriptors<T>(f: impl FnOnce() -> T) -> Result<T> {
    let open = std::fs::File::open("/dev/null")?;
    let lowest = open.as_raw_fd() as u64;
    drop(open);
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a struct of ours.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    let none = libc::rlimit { rlim_cur: lowest, ..limit };
    // SAFETY: as above.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &none) };
    let result = f();
    // SAFETY: as above.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
    Ok(result)
}

pub fn files_that_cannot_be_made() -> Result<()> {
    const GET_STATS_FD: u64 = 0xaece;
    const VFIO: u32 = 4;
    let client = Client::new(8 << 20, false)?;
    client.split_irqchip()?;
    let first = client.vm.create_vcpu(0)?;
    let refused = without_descriptors(|| client.vm.create_vcpu(7).map(|_| ()))?;
    ensure!(refused.is_err_and(|e| e.errno() == libc::EMFILE), "KVM_CREATE_VCPU: {refused:?}");
    client.vm.create_vcpu(7).context("the vCPU that was refused a file")?;
    let refused = without_descriptors(|| client.kvm.create_vm().map(|_| ()))?;
    ensure!(refused.is_err_and(|e| e.errno() == libc::EMFILE), "KVM_CREATE_VM: {refused:?}");
    let mut wanted = kvm_create_device { type_: VFIO, fd: 0, flags: 0 };
    let refused = without_descriptors(|| client.vm.create_device(&mut wanted).map(|_| ()))?;
    ensure!(refused.is_err_and(|e| e.errno() == libc::EMFILE), "KVM_CREATE_DEVICE: {refused:?}");
    // There is one of it at most.
    client.vm.create_device(&mut wanted).context("the device that was refused a file")?;
    for fd in [client.vm.as_raw_fd(), first.as_raw_fd()] {
        // SAFETY: no argument.
        let (got, error) = without_descriptors(|| (unsafe { libc::ioctl(fd, GET_STATS_FD) }, errno()))?;
        ensure!((got, error) == (-1, libc::EMFILE), "KVM_GET_STATS_FD: {got}, {error}");
    }
    Ok(())
}

/// The host kernel's version, such as (6, 12).
fn kernel() -> Result<(u32, u32)> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split('.').map(|part| part.trim().parse());
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => bail!("a kernel of the name {release:?}"),
    }
}

/// An eventfd raises one interrupt of a VM; since Linux 6.17 one of all VMs, because nobody else is woken by it any more.
pub fn eventfds_that_are_taken() -> Result<()> {
    const LINE: u32 = 5;
    let event = EventFd::new(libc::EFD_NONBLOCK)?;
    let clients = [Client::new(1 << 20, false)?, Client::new(1 << 20, false)?];
    for client in &clients {
        client.split_irqchip()?;
    }
    let [first, second] = &clients;
    let bind = |client: &Client| client.vm.register_irqfd(&event, LINE).map_err(|error| error.errno());
    ensure!(bind(first) == Ok(()), "KVM_IRQFD");
    let again = bind(first);
    ensure!(again == Err(libc::EBUSY), "the same VM again: {again:?}");
    let expected = if kernel()? >= (6, 17) { Err(libc::EBUSY) } else { Ok(()) };
    let other = bind(second);
    ensure!(other == expected, "another VM: {other:?}");
    first.vm.unregister_irqfd(&event, LINE)?;
    if other.is_err() {
        ensure!(bind(second) == Ok(()), "another VM, once the eventfd is free");
    }
    // A VM whose file is closed lives on by its vCPU, and its eventfd is free nonetheless.
    let (closed, event) = (Client::new(1 << 20, false)?, EventFd::new(libc::EFD_NONBLOCK)?);
    closed.split_irqchip()?;
    let vcpu = closed.vcpu(0)?;
    closed.vm.register_irqfd(&event, LINE)?;
    drop(closed);
    let after = second.vm.register_irqfd(&event, LINE).map_err(|error| error.errno());
    ensure!(after == Ok(()), "once the VM's file is closed: {after:?}");
    drop(vcpu);
    Ok(())
}

/// isatty() and the like ask any descriptor: that does not wait for whoever is in KVM_RUN.
pub fn others_ask_a_vcpu_that_runs() -> Result<()> {
    let mut client = Client::new(8 << 20, true)?;
    client.load(assemble(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.jmp(again)
    })?)?;
    let mut vcpu = client.vcpu(0)?;
    let fd = vcpu.as_raw_fd();
    let (started, runner) = std::sync::mpsc::channel();
    let (done, over) = (AtomicU32::new(0), AtomicU32::new(0));
    let answer = thread::scope(|scope| {
        scope.spawn(|| {
            // SAFETY: it only says who this is.
            let _ = started.send(unsafe { libc::pthread_self() });
            while done.load(SeqCst) == 0 && vcpu.run().is_err() {}
            over.store(1, SeqCst);
        });
        let runner = runner.recv()?;
        let (asked, answer) = std::sync::mpsc::channel();
        scope.spawn(move || {
            // So long that the guest is running.
            thread::sleep(Duration::from_millis(300));
            // SAFETY: nothing of that name is known here, so that nothing is written.
            let answer = unsafe { libc::ioctl(fd, libc::TCGETS, 0) };
            let _ = asked.send((answer, errno()));
        });
        let answer = answer.recv_timeout(SOON);
        done.store(1, SeqCst);
        // SAFETY: the handler touches nothing; the thread is not joined before the end of the scope.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as *const () as usize;
            libc::sigaction(libc::SIGUSR1, &action, null_mut());
            while over.load(SeqCst) == 0 {
                libc::pthread_kill(runner, libc::SIGUSR1);
                thread::sleep(Duration::from_millis(10));
            }
        }
        anyhow::Ok(answer)
    })?;
    ensure!(answer == Ok((-1, libc::EINVAL)), "TCGETS of a vCPU: {answer:?}");
    Ok(())
}
