//! Bytes as a source of choices. When they are over, all choices are 0.

/// What is left of the bytes.
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Is there anything left?
    pub fn more(&self) -> bool {
        !self.0.is_empty()
    }

    /// The rest.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let n = N.min(self.0.len());
        let (now, rest) = self.0.split_at(n);
        self.0 = rest;
        let mut bytes = [0; N];
        bytes[..n].copy_from_slice(now);
        bytes
    }

    pub fn u8(&mut self) -> u8 {
        let [byte] = self.bytes();
        byte
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.bytes())
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes())
    }

    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes())
    }

    pub fn bool(&mut self) -> bool {
        self.u8() & 1 != 0
    }

    /// A number below `limit`, which is at most 256.
    pub fn below(&mut self, limit: usize) -> usize {
        usize::from(self.u8()) % limit
    }

    /// One of them.
    pub fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[if choices.len() <= 256 { self.below(choices.len()) } else { usize::from(self.u16()) % choices.len() }]
    }

    /// A number of any size: the first byte says how many there are to it, so that small ones are short.
    pub fn number(&mut self) -> u64 {
        match self.u8() {
            n @ 0..192 => n.into(),
            192..208 => self.u16().into(),
            208..224 => self.u32().into(),
            224..240 => self.u64(),
            // A bit, and all below a bit.
            _ => {
                let n = self.u8();
                let bit = 1 << (n & 63);
                if n & 64 == 0 { bit } else { bit - 1 }
            }
        }
    }
}
