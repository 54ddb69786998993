//! A set of 256 vectors: the shape of IRR, ISR, TMR and of the EOI-exit bitmap.

/// A set of interrupt vectors, 0 to 255. Bit `v % 64` of word `v / 64` is vector `v`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bits256(pub(crate) [u64; 4]);

impl Bits256 {
    /// The empty set.
    pub const EMPTY: Bits256 = Bits256([0; 4]);

    /// A set from its four words, lowest vectors first.
    pub const fn from_words(words: [u64; 4]) -> Self {
        Bits256(words)
    }

    /// The four words, lowest vectors first.
    pub const fn words(&self) -> [u64; 4] {
        self.0
    }

    /// Whether `vector` is in the set.
    #[inline(always)]
    pub fn contains(&self, vector: u8) -> bool {
        self.word(vector) >> (vector & 63) & 1 != 0
    }

    /// Adds `vector`.
    #[inline]
    pub fn set(&mut self, vector: u8) {
        // INDEX: a vector has 8 bits, so this is below 4.
        if let Some(word) = self.0.get_mut(usize::from(vector >> 6)) {
            *word |= 1 << (vector & 63);
        }
    }

    /// Removes `vector`.
    #[inline(always)]
    pub fn clear(&mut self, vector: u8) {
        // INDEX: a vector has 8 bits, so this is below 4.
        if let Some(word) = self.0.get_mut(usize::from(vector >> 6)) {
            *word &= !(1 << (vector & 63));
        }
    }

    /// Adds or removes `vector`.
    #[inline]
    pub fn put(&mut self, vector: u8, value: bool) {
        if value { self.set(vector) } else { self.clear(vector) }
    }

    /// The vectors that are in either.
    pub const fn union(&self, other: &Self) -> Self {
        let ([a0, a1, a2, a3], [b0, b1, b2, b3]) = (self.0, other.0);
        Bits256([a0 | b0, a1 | b1, a2 | b2, a3 | b3])
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }

    /// The highest vector in the set: the one of highest priority.
    #[inline(always)]
    pub fn highest(&self) -> Option<u8> {
        let [a, b, c, d] = self.0;
        let (base, word) = match (d, c, b, a) {
            (0, 0, 0, 0) => return None,
            (0, 0, 0, w) => (0u8, w),
            (0, 0, w, _) => (64, w),
            (0, w, _, _) => (128, w),
            (w, _, _, _) => (192, w),
        };
        // `word` is not 0, so the number of leading zeros is 0..=63.
        Some(base | (63 - word.leading_zeros() as u8))
    }

    /// The 32-bit register `index` (0 to 7) of the eight that show the set in the APIC register page.
    pub fn register(&self, index: usize) -> u32 {
        let word = self.0.get((index & 7) / 2).copied().unwrap_or(0);
        (word >> (32 * (index & 1))) as u32
    }

    /// Sets the 32-bit register `index` (0 to 7).
    pub fn set_register(&mut self, index: usize, value: u32) {
        let shift = 32 * (index & 1);
        if let Some(word) = self.0.get_mut((index & 7) / 2) {
            *word = *word & !(0xffff_ffff << shift) | u64::from(value) << shift;
        }
    }

    #[inline(always)]
    fn word(&self, vector: u8) -> u64 {
        // INDEX: a vector has 8 bits, so this is below 4.
        self.0.get(usize::from(vector >> 6)).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn highest_is_the_maximum_of_every_pair() {
        for a in 0..=255u8 {
            for b in 0..=255u8 {
                let mut set = Bits256::EMPTY;
                set.set(a);
                set.set(b);
                assert_eq!(set.highest(), Some(a.max(b)));
                assert!(set.contains(a) && set.contains(b));
                set.clear(a);
                assert_eq!(set.highest(), if a == b { None } else { Some(b) });
            }
        }
        assert_eq!(Bits256::EMPTY.highest(), None);
    }

    #[test]
    fn registers_are_32_vectors_each() {
        let mut set = Bits256::EMPTY;
        set.set(0x20);
        set.set(0x3f);
        set.set(0xff);
        assert_eq!(set.register(1), 1 | 1 << 31);
        assert_eq!(set.register(7), 1 << 31);
        assert_eq!(set.register(8), 0);
        let mut copy = Bits256::EMPTY;
        for i in 0..8 {
            copy.set_register(i, set.register(i));
        }
        assert_eq!(copy, set);
    }
}
