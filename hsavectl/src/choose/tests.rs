//! Switching between the pairs on machines of files.

use super::*;
use crate::fake::{Fake, put};
use std::path::Path;

const STOCK: &str = "kernel/arch/x86/kvm";
const DKMS: &str = "updates/dkms";

/// A machine with both pairs on disk, stock's in memory, and a depmod, rmmod and modprobe that do their work.
fn machine() -> Fake {
    let fake = Fake::new();
    for place in [STOCK, DKMS] {
        for module in MODULES {
            fake.file(&format!("lib/modules/6.12/{place}/{module}.ko.xz"), "");
        }
    }
    fake.file("proc/cpuinfo", "vendor_id\t: AuthenticAMD\nflags\t\t: fpu svm npt\n");
    fake.answers(|line, root| programs(line, root, DKMS));
    programs("depmod -a 6.12", fake.system().path("/").as_path(), DKMS).unwrap();
    put_in_memory(fake.system().path("/").as_path(), STOCK);
    fake
}

fn put_in_memory(root: &Path, place: &str) {
    put(root, "sys/module/kvm/holders/kvm_amd/x", "");
    put(root, "sys/module/kvm/initstate", "live\n");
    put(root, "sys/module/kvm_amd/x", "");
    put(root, "dev/kvm", "");
    let symbol = if place == DKMS { "hsave_start" } else { "kvm_init" };
    put(root, "proc/kallsyms", &format!("0 T {symbol}\t[kvm]\n"));
}

/// What the programs do; without a choice depmod takes what lies at `preferred`.
fn programs(line: &str, root: &Path, preferred: &str) -> std::result::Result<String, String> {
    let chosen = || {
        let choice = std::fs::read_to_string(root.join(CHOICE.trim_start_matches('/'))).unwrap_or_default();
        let word = choice.lines().find_map(|line| line.strip_prefix("override kvm * ").map(str::to_owned));
        word.unwrap_or_else(|| preferred.to_owned())
    };
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        ["depmod", "-a", kernel] => {
            let place = chosen();
            let table = format!("{place}/kvm.ko.xz:\n{place}/kvm-amd.ko.xz: {place}/kvm.ko.xz\n");
            put(root, &format!("lib/modules/{kernel}/modules.dep"), &table);
        }
        ["rmmod", module] => {
            let _ = std::fs::remove_dir_all(root.join("sys/module").join(module));
            let _ = std::fs::remove_dir_all(root.join("sys/module/kvm/holders").join(module));
            let _ = std::fs::remove_file(root.join("dev/kvm"));
        }
        ["modprobe", "kvm_amd"] => put_in_memory(root, &chosen()),
        _ => return Err(format!("not expected: {line}")),
    }
    Ok(String::new())
}

fn switch(fake: &Fake, pair: Pair, next_boot: bool) -> Result<Vec<String>> {
    let mut said = Vec::new();
    run(&fake.system(), &Choice { pair, next_boot }, &mut |line| said.push(line.to_owned()))?;
    Ok(said)
}

fn asked(fake: &Fake) -> Vec<String> {
    fake.asked.borrow_mut().drain(..).collect()
}

#[test]
fn there_and_back() {
    let fake = machine();
    let said = switch(&fake, Pair::Hsave, false).unwrap();
    assert_eq!(said.last().unwrap(), "hsave serves /dev/kvm now, and will after the next boot");
    assert_eq!(asked(&fake), ["depmod -a 6.12", "rmmod kvm_amd", "rmmod kvm", "modprobe kvm_amd"]);
    assert_eq!(modules::loaded(&fake.system()), Some(Pair::Hsave));
    let said = switch(&fake, Pair::Hsave, false).unwrap();
    assert_eq!(said.last().unwrap(), "hsave serves /dev/kvm already, and will after the next boot");
    assert_eq!(asked(&fake), ["depmod -a 6.12"]);
    switch(&fake, Pair::Stock, false).unwrap();
    assert_eq!(modules::loaded(&fake.system()), Some(Pair::Stock));
    assert_eq!(modules::chosen(&fake.system(), "6.12"), Some(Pair::Stock));
}

#[test]
fn a_vm_is_not_taken_away() {
    let fake = machine();
    fake.process(42, "qemu-system-x86", &["/dev/kvm", "anon_inode:kvm-vm", "anon_inode:kvm-vcpu:0"]);
    fake.process(43, "idle", &["/dev/kvm"]);
    fake.process(44, "other", &["/dev/null"]);
    let why = switch(&fake, Pair::Hsave, false).unwrap_err();
    assert!(why.contains("process 42 (qemu-system-x86) has a VM with 1 vCPUs\n"), "{why}");
    assert!(why.contains("process 43 (idle) has /dev/kvm open\n"), "{why}");
    assert!(!why.contains("44"), "{why}");
    assert_eq!((asked(&fake).len(), fake.read("etc/depmod.d/hsave.conf")), (0, None));
    // For the next boot it may be chosen all the same.
    switch(&fake, Pair::Hsave, true).unwrap();
    assert_eq!(asked(&fake), ["depmod -a 6.12"]);
    assert_eq!(modules::loaded(&fake.system()), Some(Pair::Stock));
    assert_eq!(modules::chosen(&fake.system(), "6.12"), Some(Pair::Hsave));
}

#[test]
fn what_cannot_be_loaded_leaves_what_was() {
    let fake = machine();
    fake.answers(|line, root| {
        let hsave = std::fs::read_to_string(root.join("etc/depmod.d/hsave.conf")).is_ok_and(|text| text.contains(DKMS));
        if line == "modprobe kvm_amd" && hsave {
            return Err("modprobe: ERROR: could not insert 'kvm_amd': Key was rejected by service".to_owned());
        }
        programs(line, root, STOCK)
    });
    let why = switch(&fake, Pair::Hsave, false).unwrap_err();
    assert!(why.contains("mokutil --import") && why.ends_with("\nstock serves as before"), "{why}");
    assert_eq!(modules::loaded(&fake.system()), Some(Pair::Stock));
    assert_eq!(modules::chosen(&fake.system(), "6.12"), Some(Pair::Stock));
    assert_eq!(fake.read("etc/depmod.d/hsave.conf"), None);
}

#[test]
fn a_vm_that_comes_meanwhile_stays() {
    let fake = machine();
    fake.answers(|line, root| match line {
        "rmmod kvm_amd" => {
            put(root, "proc/50/comm", "late");
            std::fs::create_dir_all(root.join("proc/50/fd")).unwrap();
            std::os::unix::fs::symlink("/dev/kvm", root.join("proc/50/fd/3")).unwrap();
            Err("rmmod: ERROR: Module kvm_amd is in use".to_owned())
        }
        _ => programs(line, root, STOCK),
    });
    let why = switch(&fake, Pair::Hsave, false).unwrap_err();
    assert!(why.contains("it is held by process 50 (late) has /dev/kvm open"), "{why}");
    assert!(why.ends_with("stock serves as before"), "{why}");
    assert_eq!(modules::loaded(&fake.system()), Some(Pair::Stock));
}

#[test]
fn what_is_not_there_is_said() {
    let fake = machine();
    std::fs::remove_file(fake.system().path("lib/modules/6.12/updates/dkms/kvm.ko.xz")).unwrap();
    let why = switch(&fake, Pair::Hsave, false).unwrap_err();
    assert!(why.contains("apt install linux-headers-6.12"), "{why}");
    let fake = machine();
    fake.file("proc/cpuinfo", "flags\t\t: fpu vmx\n");
    assert!(switch(&fake, Pair::Hsave, false).unwrap_err().contains("no SVM"));
    std::fs::remove_file(fake.system().path("sys/module/kvm/initstate")).unwrap();
    assert!(switch(&fake, Pair::Hsave, false).unwrap_err().contains("built into the kernel"));
    fake.file("proc/self/status", "Uid:\t1000\t1000\t1000\t1000\n");
    assert!(switch(&fake, Pair::Hsave, false).unwrap_err().contains("sudo hsavectl use hsave"));
}

#[test]
fn newer_modules_on_disk_are_loaded_and_strangers_are_not_torn() {
    let fake = machine();
    switch(&fake, Pair::Hsave, false).unwrap();
    fake.file("sys/module/kvm_amd/version", "0.1.0\n");
    fake.answers(|line, root| {
        if line.starts_with("modinfo -F version ") { Ok("0.2.0\n".to_owned()) } else { programs(line, root, DKMS) }
    });
    asked(&fake);
    let said = switch(&fake, Pair::Hsave, false).unwrap();
    assert_eq!(said.last().unwrap(), "hsave serves /dev/kvm now, and will after the next boot");
    assert!(asked(&fake).contains(&"rmmod kvm".to_owned()));
    fake.dir("sys/module/kvm/holders/kvmgt");
    let why = switch(&fake, Pair::Stock, false).unwrap_err();
    assert!(why.contains("kvmgt"), "{why}");
}

#[test]
fn the_engine_goes_with_the_base() {
    let fake = machine();
    switch(&fake, Pair::Hsave, false).unwrap();
    fake.engine("kvm_amd", "0.1.0");
    asked(&fake);
    fake.answers(|line, root| {
        let done = programs(line, root, DKMS);
        if line == "rmmod kvm" {
            let _ = std::fs::remove_dir_all(root.join("sys/kernel/hsave"));
        }
        done
    });
    switch(&fake, Pair::Stock, false).unwrap();
    assert_eq!(asked(&fake)[1..3], ["rmmod kvm_amd", "rmmod kvm"]);
}

#[test]
fn several_engines_are_not_all_taken_out() {
    let fake = machine();
    switch(&fake, Pair::Hsave, false).unwrap();
    fake.engine("kvm_amd", "0.1.0");
    fake.engine("hsave_0_2", "0.2.0");
    fake.dir("sys/module/kvm/holders/hsave_0_2");
    asked(&fake);
    let why = switch(&fake, Pair::Stock, false).unwrap_err();
    assert!(why.contains("hsave_0_2, kvm_amd") && asked(&fake).is_empty(), "{why}");
}
