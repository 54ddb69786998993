//! Who has VMs: what each process has open, because that is what keeps the modules in memory.

use crate::system::System;

/// A process with VMs, or that has `/dev/kvm` open.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Holder {
    pub pid: u32,
    /// Its name, as `ps -o comm` has it.
    pub name: String,
    /// Descriptors of VMs.
    pub vms: u32,
    /// Descriptors of vCPUs.
    pub vcpus: u32,
}

impl Holder {
    /// One line for a person.
    pub fn line(&self) -> String {
        let Self { pid, name, vms, vcpus } = self;
        match (vms, vcpus) {
            (0, 0) => format!("process {pid} ({name}) has /dev/kvm open"),
            (1, _) => format!("process {pid} ({name}) has a VM with {vcpus} vCPUs"),
            _ => format!("process {pid} ({name}) has {vms} VMs with {vcpus} vCPUs"),
        }
    }
}

/// All holders, by process id. One that we may not look into does not show: see [`all_are_seen`].
pub fn holders(system: &System) -> Vec<Holder> {
    let mut pids: Vec<u32> = system.names("/proc").iter().filter_map(|name| name.parse().ok()).collect();
    pids.sort_unstable();
    pids.into_iter().filter_map(|pid| holder(system, pid)).collect()
}

fn holder(system: &System, pid: u32) -> Option<Holder> {
    let directory = format!("/proc/{pid}/fd");
    let (mut vms, mut vcpus, mut device) = (0, 0, 0);
    for fd in system.names(&directory) {
        let Some(target) = system.link(&format!("{directory}/{fd}")) else { continue };
        match target.as_str() {
            "anon_inode:kvm-vm" => vms += 1,
            "/dev/kvm" => device += 1,
            _ if target.starts_with("anon_inode:kvm-vcpu:") => vcpus += 1,
            // Statistics and devices of a VM, which keep it as well.
            _ if target.starts_with("anon_inode:kvm-") => device += 1,
            _ => {}
        }
    }
    let name = system.name(&format!("/proc/{pid}/comm")).unwrap_or_else(|| "?".to_owned());
    (vms + vcpus + device > 0).then_some(Holder { pid, name, vms, vcpus })
}

/// Whether no process can hide its descriptors from us.
pub fn all_are_seen(system: &System) -> bool {
    system.is_root()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    #[test]
    fn a_name_does_not_reach_the_terminal_as_it_is() {
        let fake = Fake::new();
        fake.process(7, "\x1b[2Jvm\nm", &["anon_inode:kvm-vm"]);
        let names: Vec<String> = holders(&fake.system()).into_iter().map(|holder| holder.name).collect();
        assert_eq!(names, ["?[2Jvm?m"]);
    }
}
