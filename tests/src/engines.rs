//! VMs and the engines that they are in (docs/upgrade.md), as an operator finds them in sysfs. Stock KVM has none.

use anyhow::{Context, Result};
use kvm_ioctls::VmFd;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// The engine that is there first, and the one that the scenarios load beside it.
pub const ENGINES: [&str; 2] = ["kvm_amd", "hsave_0_2"];
const BASE: &str = "/sys/kernel/hsave";

/// Is there an engine to go to?
pub fn are_two() -> bool {
    ENGINES.iter().all(|name| Path::new(BASE).join("engines").join(name).exists())
}

/// The directory of a VM.
pub struct Directory(PathBuf);

impl Directory {
    /// Of a VM that the first thread of this process has made.
    pub fn of(vm: &VmFd) -> Self {
        Self(format!("{BASE}/vms/{}-{}", std::process::id(), vm.as_raw_fd()).into())
    }

    fn read(&self, name: &str) -> Result<String> {
        let path = self.0.join(name);
        let text = std::fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
        Ok(text.trim_end().to_owned())
    }

    /// The engine that the VM is in.
    pub fn engine(&self) -> Result<String> {
        self.read("engine")
    }

    /// Why the last attempt failed.
    pub fn error(&self) -> Result<String> {
        self.read("error")
    }

    /// How many nanoseconds it took, the last time.
    pub fn pause(&self) -> Result<u64> {
        self.read("pause_ns")?.parse().context("pause_ns")
    }

    /// Has the VM go to the engine of this name.
    pub fn upgrade(&self, to: &str) -> io::Result<()> {
        std::fs::write(self.0.join("upgrade"), to)
    }

    /// Has it go to the engine in which it is not.
    pub fn change(&self) -> Result<io::Result<()>> {
        let [first, second] = ENGINES;
        let to = if self.engine()? == first { second } else { first };
        Ok(self.upgrade(to))
    }
}
