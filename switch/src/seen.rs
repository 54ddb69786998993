//! The next RIP on processors that do not save it: instructions that were looked at before, and how to tell that they
//! are still the same.
//!
//! The walk of the guest's tables that led to an instruction is kept as the words that were read on the way. If none of
//! them has changed, and neither RIP nor CR3, a new walk would read the same words again and end at the same bytes. Guest
//! memory is read at the kernel's own addresses: what the nested tables map stays where it is until a flush was asked of
//! this vCPU, and whoever asks waits until the vCPU has left the guest. So it may be read from VMRUN until the vCPU's mode
//! is told that the guest was left, and no longer. Nothing here can fault.

use core::ptr::NonNull;
use host::SEEN_WORDS;

/// How many instructions are remembered, a power of two.
const PLACES: usize = 8;

#[derive(Clone, Copy)]
struct Word {
    at: NonNull<u64>,
    value: u64,
}

#[derive(Clone, Copy)]
struct Instruction {
    rip: u64,
    cr3: u64,
    /// 0: there is none.
    len: u8,
    words: [Word; SEEN_WORDS],
}

/// Instructions, by RIP.
pub(crate) struct Seen([Instruction; PLACES]);

impl Seen {
    /// None.
    pub fn new() -> Self {
        let word = Word { at: NonNull::dangling(), value: 0 };
        Self([Instruction { rip: 0, cr3: 0, len: 0, words: [word; SEEN_WORDS] }; PLACES])
    }

    /// Its place: neighbours get different ones. If that is another one's, it may be in the place beside it (`^ 1`). Below
    /// [`PLACES`] whatever `rip` is, also where a processor guesses.
    #[inline(always)]
    fn place(rip: u64) -> usize {
        (rip ^ rip >> 3) as usize & (PLACES - 1)
    }

    /// Remembers one of `len` bytes.
    ///
    /// # Safety
    /// Each address may be read from now until [`forget`](Self::forget), while the vCPU is in the guest as its mode
    /// has it.
    pub unsafe fn put(&mut self, rip: u64, cr3: u64, len: u8, words: [(NonNull<u64>, u64); SEEN_WORDS]) {
        let first = Self::place(rip);
        let taken = self.0.get(first).is_some_and(|i| i.len != 0 && i.rip != rip);
        if let Some(place) = self.0.get_mut(first ^ usize::from(taken)) {
            *place = Instruction { rip, cr3, len, words: words.map(|(at, value)| Word { at, value }) };
        }
    }

    /// Forgets all.
    #[cold]
    pub fn forget(&mut self) {
        for place in &mut self.0 {
            place.len = 0;
        }
    }

    /// RIP behind the instruction at `rip` in 64-bit mode; 0 if it is not known.
    ///
    /// # Safety
    /// The vCPU is in the guest as its mode has it.
    #[inline(always)]
    pub unsafe fn next_rip(&self, rip: u64, cr3: u64) -> u64 {
        let first = Self::place(rip);
        let Some(mut i) = self.0.get(first) else { return 0 };
        if i.rip != rip {
            let Some(beside) = self.0.get(first ^ 1) else { return 0 };
            i = beside;
        }
        if i.rip != rip || i.cr3 != cr3 || i.len == 0 {
            return 0;
        }
        let [a, b, c, d, e, f] = &i.words;
        let mut changed = 0;
        for word in [a, b, c, d, e, f] {
            // SAFETY: by the contract of `put`, it is readable now; other vCPUs may write it meanwhile.
            changed |= unsafe { word.at.read_volatile() } ^ word.value;
        }
        if changed != 0 { 0 } else { rip.wrapping_add(i.len.into()) }
    }
}
