//! Instructions that exit again and again, on processors that do not say how long they are: where the world switch may
//! look whether one is still what it was.

use crate::Mmu;
use crate::memory::Memory;
use crate::paging::{Kind, Paging};
use arch::cr::{Cr0, Efer};
use arch::{Gpa, HostPa, Hva};
use host::{Host, PAGE_SIZE, SEEN_WORDS, SeenCode, UserPage};

/// Words while they are collected.
struct Words<'a, H: Host> {
    mmu: &'a Mmu<H>,
    memory: &'a Memory<'a, H>,
    words: [(HostPa, u64); SEEN_WORDS],
    len: usize,
}

impl<H: Host> Words<'_, H> {
    /// Adds the aligned word at `gpa`. None: it is not mapped for the guest, is not plain memory, or there is no room.
    fn push(&mut self, gpa: Gpa) -> Option<()> {
        let gpa = Gpa(gpa.0 & !7);
        let value = self.memory.entry64(gpa).ok()?;
        let at = self.mmu.mapped_word(self.memory, gpa)?;
        *self.words.get_mut(self.len)? = (at, value);
        self.len += 1;
        Some(())
    }
}

impl<H: Host> Mmu<H> {
    /// The `len` bytes of code at `linear` in long mode, and the entries that lead there. None: not all of it is plain
    /// memory that the nested tables map now. Sleeps.
    ///
    /// Good until the next flush of the vCPU that asks: whoever unmaps a page flushes, and waits until the vCPU has left
    /// the guest.
    pub fn seen(&self, p: &Paging, linear: u64, len: u8) -> Option<SeenCode> {
        if !p.cr0(Cr0::PG) || !p.efer(Efer::LMA) || len == 0 || !(1..=15).contains(&len) {
            return None;
        }
        // All on one page.
        let last = linear.wrapping_add(u64::from(len) - 1);
        if (linear ^ last) & !(PAGE_SIZE as u64 - 1) != 0 {
            return None;
        }
        let memory = self.memory();
        let mut found = Words { mmu: self, memory: &memory, words: [(HostPa(0), 0); SEEN_WORDS], len: 0 };
        let mut complete = true;
        let t = self.note_walk(&memory, p, linear, Kind::Fetch, |gpa| complete &= found.push(gpa).is_some())?;
        let end = Gpa(t.gpa.0.wrapping_add(u64::from(len) - 1));
        let text = found.len;
        found.push(t.gpa)?;
        if (t.gpa.0 ^ end.0) & !7 != 0 {
            found.push(end)?;
        }
        // An instruction can reach into a third word: then there is no room for it, and `end` is not next to the first.
        if (end.0 & !7).wrapping_sub(t.gpa.0 & !7) > 8 {
            return None;
        }
        let bytes = found.words.iter().skip(text).take(2).flat_map(|(_, word)| word.to_le_bytes());
        let mut code = [0; 15];
        for (to, from) in code.iter_mut().zip(bytes.skip((t.gpa.0 & 7) as usize)).take(len.into()) {
            *to = from;
        }
        let first = *found.words.first()?;
        found.words.iter_mut().skip(found.len).for_each(|w| *w = first);
        complete.then_some(SeenCode { words: found.words, len, code })
    }

    /// Where the word at `gpa` is, if the nested tables map it and it is the kernel's plain memory.
    fn mapped_word(&self, memory: &Memory<'_, H>, gpa: Gpa) -> Option<HostPa> {
        let offset = gpa.0 & (PAGE_SIZE as u64 - 1);
        let hva = memory.read_address(gpa)?;
        let page = self.host.user_page(Hva(hva.0.wrapping_sub(offset)), false).ok()?;
        let mapped = self.maps.read().tree.page(&self.host, gpa.gfn().0);
        (page.plain() && mapped == Some(page.pa())).then_some(HostPa(page.pa().0 | offset))
    }
}
