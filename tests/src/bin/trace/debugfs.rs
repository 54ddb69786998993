//! /sys/kernel/debug/kvm and uevents of VMs, without numbers that depend on the run.

use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tests::client::{Client, assemble};

const DEBUGFS: &str = "/sys/kernel/debug/kvm";

/// Files below, with their modes and whether what they hold is a number.
fn list(dir: &Path, shown: &str) -> Result<()> {
    let mut names: Vec<_> = fs::read_dir(dir)?.flatten().map(|entry| entry.path()).collect();
    names.sort();
    for path in names {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let data = fs::metadata(&path)?;
        if data.is_dir() {
            // A VM's own name is not for comparing.
            let name = if name.contains('-') { "VM".to_owned() } else { name };
            println!("directory {shown}{name}");
            list(&path, &format!("{shown}{name}/"))?;
            continue;
        }
        let mode = data.permissions().mode() & 0o777;
        let text = fs::read_to_string(&path).with_context(|| name.clone())?;
        let kind = match text.trim().parse::<i128>() {
            Ok(_) if text.ends_with('\n') => "number",
            _ if text.is_empty() => "empty",
            _ => "text",
        };
        println!("file {shown}{name} {mode:o} {kind}");
    }
    Ok(())
}

/// A socket that the kernel's uevents come through.
fn uevents() -> Result<OwnedFd> {
    // SAFETY: plain system calls; the address is a whole one.
    unsafe {
        let fd = libc::socket(libc::AF_NETLINK, libc::SOCK_DGRAM | libc::SOCK_NONBLOCK, libc::NETLINK_KOBJECT_UEVENT);
        ensure!(fd >= 0, "no socket for uevents");
        let fd = OwnedFd::from_raw_fd(fd);
        let mut address: libc::sockaddr_nl = std::mem::zeroed();
        (address.nl_family, address.nl_groups) = (libc::AF_NETLINK as u16, 1);
        let size = size_of_val(&address) as u32;
        ensure!(libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size) == 0, "no uevents");
        Ok(fd)
    }
}

/// Prints those that are about KVM, one variable a word; process ids are not for comparing.
fn show(events: &OwnedFd, when: &str) -> usize {
    let (mut buffer, mut seen) = ([0u8; 8192], 0);
    loop {
        // SAFETY: the buffer is that long.
        let n = unsafe { libc::recv(events.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        let Some(text) = usize::try_from(n).ok().and_then(|n| buffer.get(..n)) else { return seen };
        let text = String::from_utf8_lossy(text);
        if !text.contains("DEVNAME=kvm") {
            continue;
        }
        let pid = std::process::id().to_string();
        let words = text.split('\0').filter(|w| !w.is_empty() && !w.starts_with("SEQNUM="));
        let words: Vec<String> = words.map(|w| w.replace(&pid, "PID")).collect();
        println!("uevent {when}: {}", words.join(" "));
        seen += 1;
    }
}

fn value(path: &Path) -> Result<i128> {
    fs::read_to_string(path)?.trim().parse().with_context(|| path.display().to_string())
}

pub fn main() -> Result<()> {
    let root = Path::new(DEBUGFS);
    list(root, "")?;
    let events = uevents()?;
    let mut client = Client::new(8 << 20, true)?;
    client.split_irqchip()?;
    // One that exits with a shutdown, and one that does nothing.
    client.load(assemble(|a| a.ud2())?)?;
    let mut vcpu = client.vcpu(0)?;
    let _other = client.vcpu(3)?;
    vcpu.run()?;
    list(root, "")?;
    show(&events, "create");
    let vm = fs::read_dir(root)?.flatten().map(|e| e.path()).find(|p| p.is_dir()).context("no directory of a VM")?;
    for name in ["exits", "pages_4k", "tlb_flush"] {
        ensure!(value(&vm.join(name))? == value(&root.join(name))?, "{name}: one VM is all VMs");
    }
    ensure!(value(&vm.join("exits"))? > 0, "no exits");
    if fs::write(vm.join("exits"), "1").is_ok() {
        bail!("a count was set");
    }
    fs::write(root.join("exits"), "0")?;
    ensure!(value(&vm.join("exits"))? == 0 && value(&root.join("exits"))? == 0, "not cleared");
    ensure!(value(&vm.join("vcpu0/tsc-offset"))? != 0, "no TSC offset");
    drop((vcpu, _other, client));
    list(root, "")?;
    ensure!(show(&events, "destroy") > 0, "nobody was told of the end");
    Ok(())
}
