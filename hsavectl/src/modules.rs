//! Which pair of modules is in memory, which are on disk, and which of them modprobe takes.

use crate::{base, system::Result, system::System};
use std::fmt;

/// A pair of kvm.ko and kvm-amd.ko.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pair {
    /// The kernel's own.
    Stock,
    Hsave,
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stock => "stock",
            Self::Hsave => "hsave",
        })
    }
}

/// The pair's modules, by their names as files.
pub const MODULES: [&str; 2] = ["kvm", "kvm-amd"];

/// Where the modules of a pair may lie under `/lib/modules/RELEASE`: dkms' place first, then where `make modules_install` puts them.
fn places(pair: Pair) -> &'static [&'static str] {
    match pair {
        Pair::Stock => &["kernel/arch/x86/kvm"],
        Pair::Hsave => &["updates/dkms", "updates"],
    }
}

/// The pair in memory; None if there is no kvm.ko.
pub fn loaded(system: &System) -> Option<Pair> {
    if !system.exists("/sys/module/kvm") {
        return None;
    }
    let ours = base::is_there(system) || has_our_symbols(system);
    Some(if ours { Pair::Hsave } else { Pair::Stock })
}

/// hsave's modules of before `/sys/kernel/hsave` are known by the names of their functions.
fn has_our_symbols(system: &System) -> bool {
    let symbols = system.text("/proc/kallsyms").unwrap_or_default();
    symbols.lines().any(|line| line.ends_with("\t[kvm]") && line.contains(" hsave_"))
}

/// The modules in memory that stand on kvm.ko: a vendor's module, engines, and whatever else there is.
pub fn above_kvm(system: &System) -> Vec<String> {
    system.names("/sys/module/kvm/holders")
}

/// Kernels whose modules are installed, in order of their names.
pub fn kernels(system: &System) -> Vec<String> {
    let names = system.names("/lib/modules").into_iter();
    names.filter(|name| system.exists(&format!("/lib/modules/{name}/kernel"))).collect()
}

/// Where the pair lies for that kernel, under `/lib/modules/RELEASE`. None unless both of its modules are there.
pub fn place(system: &System, pair: Pair, release: &str) -> Option<&'static str> {
    let both = |place: &&str| {
        let names = system.names(&format!("/lib/modules/{release}/{place}"));
        MODULES.iter().all(|module| names.iter().any(|name| stem(name) == Some(module)))
    };
    places(pair).iter().copied().find(both)
}

/// A module file's name without `.ko` and what it is compressed by.
fn stem(file: &str) -> Option<&str> {
    let (stem, rest) = file.split_once(".ko")?;
    ["", ".xz", ".zst", ".gz"].contains(&rest).then_some(stem)
}

/// The file that modprobe takes for a module of that kernel, under `/lib/modules/RELEASE`.
pub fn chosen_file(system: &System, release: &str, module: &str) -> Option<String> {
    let table = system.text(&format!("/lib/modules/{release}/modules.dep"))?;
    let files = table.lines().filter_map(|line| line.split_once(':')).map(|(file, _)| file);
    let of = |file: &&str| stem(file.rsplit('/').next().unwrap_or(file)) == Some(module);
    files.filter(of).map(str::to_owned).next()
}

/// The pair that modprobe takes for that kernel. None if there is none, or one from each.
pub fn chosen(system: &System, release: &str) -> Option<Pair> {
    let pair = |module: &&str| {
        let file = chosen_file(system, release, module)?;
        let (place, _) = file.rsplit_once('/')?;
        [Pair::Stock, Pair::Hsave].into_iter().find(|pair| places(*pair).contains(&place))
    };
    let [first, second] = MODULES.map(|module| pair(&module));
    first.filter(|_| first == second)
}

/// Whether what is in memory is what lies at that place. None if the modules do not say what they are.
pub fn is_what_is_on_disk(system: &System, release: &str, place: &str) -> Option<bool> {
    let directory = format!("/lib/modules/{release}/{place}");
    let mut same = None;
    for file in system.names(&directory) {
        let Some(module) = stem(&file).filter(|stem| MODULES.contains(stem)) else { continue };
        let path = system.path(&format!("{directory}/{file}"));
        for field in ["version", "srcversion"] {
            let loaded = system.text(&format!("/sys/module/{}/{field}", module.replace('-', "_")));
            let Some(loaded) = loaded else { continue };
            let said = system.run("modinfo", &["-F", field, &path.to_string_lossy()]).ok()?;
            if said.success {
                same = Some(same.unwrap_or(true) && said.output.trim() == loaded);
            }
        }
    }
    same
}

/// The processor can run hsave, or why not.
pub fn processor_fits(system: &System) -> Result<()> {
    let info = system.text("/proc/cpuinfo").unwrap_or_default();
    let flags = info.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
    if !has("svm") {
        return Err(
            "this processor has no SVM, or the firmware has switched it off: hsave needs an AMD processor with \
                    it (look for \"SVM\" in the firmware's setup)"
                .to_owned(),
        );
    }
    if !has("npt") {
        return Err("this processor has no nested paging, without which hsave does not run".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    #[test]
    fn what_is_in_memory_is_told_apart() {
        let fake = Fake::new();
        assert_eq!(loaded(&fake.system()), None);
        fake.dir("sys/module/kvm");
        fake.file("proc/kallsyms", "0 t svm_hsave\t[kvm_amd]\n0 T kvm_init\t[kvm]\n");
        assert_eq!(loaded(&fake.system()), Some(Pair::Stock));
        fake.file("proc/kallsyms", "0 t x\t[kvm]\n0 T hsave_start\t[kvm]\n");
        assert_eq!(loaded(&fake.system()), Some(Pair::Hsave));
        fake.file("proc/kallsyms", "");
        fake.dir("sys/kernel/hsave");
        assert_eq!(loaded(&fake.system()), Some(Pair::Hsave));
    }

    #[test]
    fn a_pair_needs_both_modules_in_one_place() {
        let fake = Fake::new();
        let dep = "lib/modules/6.12/modules.dep";
        fake.file("lib/modules/6.12/updates/dkms/kvm.ko.xz", "");
        fake.file(dep, "updates/dkms/kvm.ko.xz: a.ko\nkernel/arch/x86/kvm/kvm-amd.ko.xz: updates/dkms/kvm.ko.xz\n");
        assert_eq!(place(&fake.system(), Pair::Hsave, "6.12"), None);
        assert_eq!(chosen(&fake.system(), "6.12"), None, "one from each");
        fake.file("lib/modules/6.12/updates/dkms/kvm-amd.ko", "");
        fake.file(dep, "updates/dkms/kvm.ko.xz:\nupdates/dkms/kvm-amd.ko: updates/dkms/kvm.ko.xz\n");
        assert_eq!(place(&fake.system(), Pair::Hsave, "6.12"), Some("updates/dkms"));
        assert_eq!(chosen(&fake.system(), "6.12"), Some(Pair::Hsave));
        assert_eq!(chosen_file(&fake.system(), "6.12", "kvm-amd").as_deref(), Some("updates/dkms/kvm-amd.ko"));
        assert_eq!(stem("kvm.ko.new"), None);
    }
}
