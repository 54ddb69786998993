//! Code that the kernel changes when it loads the module: alternatives, which replace instructions where the CPU has (or
//! lacks) a feature, and the sites of tracing and static branches, which have no place in the world switch.

use crate::module::{Module, Place, Target};
use anyhow::{Result, ensure};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The flag of a feature that must be absent: in 6.1 a bit of the number itself, later one of the flags.
const NOT_IN_NUMBER: u16 = 1 << 15;
const NOT_IN_FLAGS: u16 = 1;
/// Sections whose relocations name instructions that the kernel may rewrite at run time.
const LIVE_PATCHED: [&str; 5] =
    ["__jump_table", ".static_call_sites", "__mcount_loc", "__patchable_function_entries", ".retpoline_sites"];
/// Sites of paravirtual calls, where these are no alternatives yet: entries of an address and three bytes.
const PARAVIRT: &str = ".parainstructions";

/// One way to replace the instructions at a site.
#[derive(Clone, Debug)]
pub struct Alternative {
    pub feature: u16,
    /// The feature has to be absent.
    pub not: bool,
    /// Bytes at the site.
    pub site_len: u64,
    pub replacement: Place,
    pub replacement_len: u64,
}

/// All of them.
pub struct Patches {
    sites: HashMap<Place, Vec<Alternative>>,
    live: BTreeMap<Place, &'static str>,
    /// Calls of the kernel's operations for hypervisors, which it replaces by direct ones.
    paravirt: BTreeSet<Place>,
}

/// A choice of features.
pub type Features = BTreeSet<u16>;

impl Patches {
    pub fn read(module: &Module) -> Result<Self> {
        let mut sites: HashMap<Place, Vec<Alternative>> = HashMap::new();
        for (section, data) in module.sections_named(".altinstructions") {
            let at = |offset: usize| Place { section, offset: offset as u64 };
            // An entry begins with two relative pointers; the format after them depends on the kernel.
            let size = [12, 14].into_iter().find(|size| data.len() % size == 0 && module.pointer(at(*size)).is_some());
            let size = size.unwrap_or(if data.len() == 14 { 14 } else { 12 });
            ensure!(data.len() % size == 0, "the format of .altinstructions is unknown");
            for n in 0..data.len() / size {
                let entry = n * size;
                let (Some(Target::Here(site)), Some(Target::Here(replacement))) =
                    (module.pointer(at(entry)), module.pointer(at(entry + 4)))
                else {
                    continue;
                };
                let number = u16::from_le_bytes([data[entry + 8], data[entry + 9]]);
                let (not, lengths) = match size {
                    12 => (number & NOT_IN_NUMBER != 0, entry + 10),
                    _ => (u16::from_le_bytes([data[entry + 10], data[entry + 11]]) & NOT_IN_FLAGS != 0, entry + 12),
                };
                sites.entry(site).or_default().push(Alternative {
                    feature: if size == 12 { number & !NOT_IN_NUMBER } else { number },
                    not,
                    site_len: data[lengths].into(),
                    replacement,
                    replacement_len: data[lengths + 1].into(),
                });
            }
        }
        let mut live = BTreeMap::new();
        for name in LIVE_PATCHED {
            for (section, data) in module.sections_named(name) {
                for offset in (0..data.len() as u64).step_by(4) {
                    if let Some(Target::Here(site)) = module.pointer(Place { section, offset }) {
                        live.insert(site, name);
                    }
                }
            }
        }
        let mut paravirt = BTreeSet::new();
        for (section, data) in module.sections_named(PARAVIRT) {
            for offset in (0..data.len() as u64).step_by(8) {
                if let Some(Target::Here(site)) = module.pointer(Place { section, offset }) {
                    paravirt.insert(site);
                }
            }
        }
        Ok(Self { sites, live, paravirt })
    }

    /// What the instructions at `place` are replaced by, with these features: the last that applies.
    pub fn at(&self, place: Place, features: &Features) -> Option<&Alternative> {
        self.sites.get(&place)?.iter().rev().find(|a| features.contains(&a.feature) != a.not)
    }

    /// Features that decide about the instructions at `place`.
    pub fn features_at(&self, place: Place) -> impl Iterator<Item = u16> + '_ {
        self.sites.get(&place).into_iter().flatten().map(|a| a.feature)
    }

    /// The kernel replaces the instruction at `place` when it loads the module.
    pub fn is_site(&self, place: Place) -> bool {
        self.sites.contains_key(&place) || self.paravirt.contains(&place)
    }

    /// Why the instruction at `place` may be rewritten at run time.
    pub fn live(&self, place: Place) -> Option<&'static str> {
        self.live.get(&place).copied()
    }
}
