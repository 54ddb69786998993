//! Random numbers for tests.

/// A small generator (xorshift64*), so that a failure can be repeated.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// A value at which arithmetic is interesting as often as not.
    pub fn value(&mut self) -> u64 {
        let edges = [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff];
        match self.below(4) {
            0 => edges[self.below(11) as usize],
            1 => edges[self.below(11) as usize].wrapping_neg() ^ (self.below(2) << 63),
            2 => self.next() >> self.below(64),
            _ => self.next(),
        }
    }
}
