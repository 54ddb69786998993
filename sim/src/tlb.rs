//! The guest's accesses to memory: the nested walk (APM 15.25), and a TLB that keeps what it found until it is flushed,
//! so that a flush that is missing is a wrong access.

use crate::{Outcome, SimCpu};
use arch::exit::code;
use arch::{HostPa, npt};
use std::collections::HashMap;
use std::sync::atomic::Ordering::SeqCst;

/// Translations by guest frame: physical address of the 4 KiB page, and may it be written?
#[derive(Default)]
pub(crate) struct Tlb(HashMap<u64, (HostPa, bool)>);

impl Tlb {
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

/// Bits of EXITINFO1 of a nested fault (APM 15.25.6).
const PRESENT: u64 = 1;
const WRITE: u64 = 2;
const USER: u64 = 4;
const FINAL: u64 = 1 << 32;

impl SimCpu {
    /// The guest reads 8 bytes, naturally aligned. Err: the nested fault; the step is to be done again.
    pub fn load(&mut self, gpa: u64) -> Result<u64, Outcome> {
        let pa = self.translate(gpa, false)?;
        Ok(self.shared.memory.guest_cells(pa, false).u64((gpa & 0xff8) as usize))
    }

    /// The guest writes 8 bytes, naturally aligned.
    pub fn store(&mut self, gpa: u64, value: u64) -> Result<(), Outcome> {
        let pa = self.translate(gpa, true)?;
        self.shared.memory.guest_cells(pa, true).set_u64((gpa & 0xff8) as usize, value);
        Ok(())
    }

    fn translate(&mut self, gpa: u64, write: bool) -> Result<HostPa, Outcome> {
        if let Some((pa, writable)) = self.tlb.0.get(&(gpa >> 12)) {
            if *writable || !write {
                return Ok(*pa);
            }
        }
        match self.walk(gpa, write) {
            Ok((pa, writable)) => {
                self.tlb.0.insert(gpa >> 12, (pa, writable));
                Ok(pa)
            }
            Err(present) => {
                // A processor that faults on an entry forgets it.
                self.tlb.0.remove(&(gpa >> 12));
                let why = FINAL | USER | if write { WRITE } else { 0 } | if present { PRESENT } else { 0 };
                Err(Outcome::Again(code::NPF, why, gpa))
            }
        }
    }

    /// Walks the nested tables, sets A and D. Err: was an entry present?
    fn walk(&self, gpa: u64, write: bool) -> Result<(HostPa, bool), bool> {
        let mut table = self.root;
        let mut writable = true;
        for level in (1..=4).rev() {
            let cell = &self.shared.table(table).expect("a page table").0[npt::index(gpa, level)];
            let entry = cell.load(SeqCst);
            if entry & npt::P == 0 {
                return Err(false);
            }
            assert!(entry & npt::US != 0, "a nested entry that no guest may use");
            writable &= entry & npt::RW != 0;
            if write && !writable {
                return Err(true);
            }
            if level == 1 || entry & npt::PS != 0 {
                assert!(level < 4, "a large page of 512 GiB");
                let mask = (1u64 << (12 + 9 * (u32::from(level) - 1))) - 1;
                assert_eq!(entry & npt::ADDR & mask & !(1 << 12), 0, "reserved bits in a large page");
                cell.fetch_or(npt::A | if write { npt::D } else { 0 }, SeqCst);
                return Ok((HostPa(entry & npt::ADDR & !mask | gpa & mask & !0xfff), writable));
            }
            table = HostPa(entry & npt::ADDR);
        }
        unreachable!("the last level ends the walk")
    }
}
