//! Numbers that are the same in each run.

/// Xorshift of 64 bits.
pub struct Random(pub u64);

impl Random {
    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    /// Any 64 bits but 0.
    pub fn any(&mut self) -> u64 {
        self.below(u64::MAX);
        self.0
    }

    /// Another one, whose numbers follow from this one's.
    pub fn fork(&mut self) -> Self {
        Self(self.any().wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// One of them.
    pub fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}
