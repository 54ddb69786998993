//! A TLB that keeps whatever a processor may keep: every translation, and every table, that the nested tables led to at
//! any time since the last flush.
//!
//! It walks the tables at each point where a vCPU could: before and after each call, wherever the machine lets others
//! in, and right after a flush. So what it holds is the most that the TLBs of any vCPUs could hold.

use super::fake::Fake;
use crate::{Mmu, Space};
use arch::HostPa;
use host::Host;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::vec::Vec;

/// What one entry maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Translation {
    /// First guest frame, with its address space, and the level of the entry.
    pub gfn: u64,
    pub level: u8,
    /// First host frame.
    pub pfn: u64,
    pub write: bool,
}

impl Translation {
    pub fn pages(&self) -> u64 {
        1 << (9 * (u32::from(self.level) - 1))
    }
}

/// What the nested tables hold now.
pub struct Tables {
    pub leaves: BTreeMap<(u64, u8), Translation>,
    pub tables: BTreeSet<u64>,
}

impl Tables {
    /// Do they map all that the translation maps, to the same memory and with as many rights?
    pub fn map(&self, t: &Translation) -> bool {
        let (mut at, end) = (t.gfn, t.gfn + t.pages());
        while at < end {
            // An entry that begins further up may be larger than what is asked for.
            let first = |level: u8| at & !((1 << (9 * (u32::from(level) - 1))) - 1);
            let Some(n) = (1..=3).find_map(|level| self.leaves.get(&(first(level), level))) else { return false };
            if n.pfn + (at - n.gfn) != t.pfn + (at - t.gfn) || t.write && !n.write {
                return false;
            }
            at = n.gfn + n.pages();
        }
        true
    }
}

/// Reads all of the nested tables, as the APM describes them and apart from the code under test.
pub fn read(mmu: &Mmu<Fake>, host: &Fake) -> Tables {
    let levels = if host.five_levels() { 5 } else { 4 };
    let mut found = Tables { leaves: BTreeMap::new(), tables: BTreeSet::new() };
    for space in Space::ALL {
        read_table(host, mmu.root(space).pa(), levels, space.gfn(0), true, &mut found);
    }
    found
}

fn read_table(host: &Fake, table: HostPa, level: u8, base: u64, writable: bool, found: &mut Tables) {
    found.tables.insert(table.0);
    let cells = host.table(table).expect("an entry names a page that is no table");
    for (n, cell) in cells.0.iter().enumerate() {
        let e = cell.load(std::sync::atomic::Ordering::SeqCst);
        if e & 1 == 0 {
            continue;
        }
        let gfn = base + ((n as u64) << (9 * (u32::from(level) - 1)));
        let (pa, write) = (e & 0x000f_ffff_ffff_f000, writable && e & 2 != 0);
        if level == 1 || e & 0x80 != 0 {
            found.leaves.insert((gfn, level), Translation { gfn, level, pfn: pa >> 12, write });
        } else {
            read_table(host, HostPa(pa), level - 1, gfn, write, found);
        }
    }
}

/// The TLB.
#[derive(Default)]
pub struct ModelTlb(Mutex<BTreeSet<Translation>>);

impl ModelTlb {
    /// A vCPU may look at everything now.
    pub fn fill(&self, mmu: &Mmu<Fake>, host: &Fake) {
        let now = read(mmu, host);
        self.0.lock().unwrap().extend(now.leaves.into_values());
        host.0.walked.lock().unwrap().extend(now.tables);
    }

    /// All vCPUs have left the guest and enter it again.
    pub fn flush(&self, mmu: &Mmu<Fake>, host: &Fake) {
        self.0.lock().unwrap().clear();
        host.0.walked.lock().unwrap().clear();
        self.fill(mmu, host);
    }

    /// What it holds and the tables do not, or not with as many rights: nothing, if whoever took it away has flushed. A
    /// large page that was split is still there as long as all of its parts are.
    pub fn stale(&self, now: &Tables) -> Vec<Translation> {
        self.0.lock().unwrap().iter().filter(|t| !now.map(t)).copied().collect()
    }

    /// Does it lead to one of the host's frames?
    pub fn reaches(&self, pfns: &BTreeSet<u64>) -> bool {
        let reaches = |t: &Translation| pfns.range(t.pfn..t.pfn + t.pages()).next().is_some();
        self.0.lock().unwrap().iter().any(reaches)
    }
}
