//! The save area as bytes, and where each register is in it.

use arch::smram::{SMRAM_SIZE, Smram32, Smram64};
use arch::{Segment, SegmentAttr};
use core::mem::offset_of;

/// Numbers of LDTR and TR among the segment registers ([`Core::segment`](crate::Core)), of which TR is the last.
const LDTR: u8 = 6;
/// See [`LDTR`].
pub const TR: u8 = 7;

/// A save area. Every place is that of a field, so every access is inside.
pub struct Area([u8; SMRAM_SIZE]);

impl Area {
    /// All zero.
    pub fn new() -> Self {
        Self([0; SMRAM_SIZE])
    }
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
    pub fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        for (d, s) in bytes.iter_mut().zip(self.0.iter().skip(at)) {
            *d = *s;
        }
        bytes
    }
    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        for (d, s) in self.0.iter_mut().skip(at).zip(bytes) {
            *d = *s;
        }
    }
    pub fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.get(at))
    }
    pub fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.get(at))
    }
    pub fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.get(at))
    }
    pub fn put32(&mut self, at: usize, value: u64) {
        self.put(at, &(value as u32).to_le_bytes());
    }
    pub fn put64(&mut self, at: usize, value: u64) {
        self.put(at, &value.to_le_bytes());
    }

    /// A segment as 16 bytes: selector, attributes, limit, base.
    pub fn put_segment64(&mut self, at: usize, s: &Segment) {
        self.put(at, &s.selector.to_le_bytes());
        self.put(at + 2, &((spread(s.attrib) >> 8) as u16).to_le_bytes());
        self.put32(at + 4, s.limit.into());
        self.put64(at + 8, s.base);
    }
    pub fn segment64(&self, at: usize) -> Segment {
        let attrib = packed(u32::from(self.u16(at + 2)) << 8);
        Segment { selector: self.u16(at), attrib, limit: self.u32(at + 4), base: self.u64(at + 8) }
    }

    /// A segment as three words, the selector elsewhere.
    pub fn put_segment32(&mut self, at: usize, selector: usize, s: &Segment) {
        self.put32(selector, s.selector.into());
        self.put32(at, spread(s.attrib).into());
        self.put32(at + 4, s.limit.into());
        self.put32(at + 8, s.base);
    }
    pub fn segment32(&self, at: usize, selector: usize) -> Segment {
        let selector = self.u32(selector) as u16;
        Segment { selector, attrib: packed(self.u32(at)), limit: self.u32(at + 4), base: self.u32(at + 8).into() }
    }
}

/// Attributes as in the upper half of a descriptor: type in bits 11:8, P in 15, G in 23.
fn spread(a: SegmentAttr) -> u32 {
    (u32::from(a.0) & 0xff) << 8 | (u32::from(a.0) & 0xf00) << 12
}

/// The reverse.
fn packed(word: u32) -> SegmentAttr {
    SegmentAttr((word >> 8 & 0xff | word >> 12 & 0xf00) as u16)
}

/// The places of a segment register (0 ES to 7 TR) in the area of a processor without long mode: its words, its selector.
pub fn places32(n: u8) -> (usize, usize) {
    let selector = offset_of!(Smram32, selectors) + 4 * usize::from(n);
    let words = match n {
        0..=2 => offset_of!(Smram32, code) + 12 * usize::from(n),
        3..=5 => offset_of!(Smram32, data) + 12 * usize::from(n - 3),
        LDTR => offset_of!(Smram32, ldtr),
        _ => offset_of!(Smram32, tr),
    };
    (words, selector)
}

/// The place of a segment register in the area of a processor with it.
pub fn place64(n: u8) -> usize {
    match n {
        0..=5 => offset_of!(Smram64, segments) + 16 * usize::from(n),
        LDTR => offset_of!(Smram64, ldtr),
        _ => offset_of!(Smram64, tr),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 4 GiB, for reading and writing.
    const FLAT: SegmentAttr = SegmentAttr(SegmentAttr::P | SegmentAttr::S | SegmentAttr::G | 3);

    #[test]
    fn attributes_go_there_and_back() {
        for bits in 0..1 << 12 {
            let a = SegmentAttr(bits);
            assert_eq!(packed(spread(a)), a);
            assert_eq!(spread(a) & !0x00f0_ff00, 0, "the bits that a descriptor has them in");
        }
        assert_eq!(spread(FLAT), 0x0080_9300);
        for word in [0, !0, 0x1234_5678] {
            assert_eq!(packed(word).0 >> 12, 0);
        }
    }

    #[test]
    fn no_field_lies_on_another() {
        let mut area = Area::new();
        for n in 0..=TR {
            let base = u64::from(n) << 40 | 0x1234;
            let s = Segment { selector: n.into(), attrib: FLAT, limit: 0xffff_0000 | u32::from(n), base };
            area.put_segment64(place64(n), &s);
        }
        for n in 0..=TR {
            let s = area.segment64(place64(n));
            assert_eq!((s.selector, s.base), (n.into(), u64::from(n) << 40 | 0x1234));
        }
        let mut area = Area::new();
        for n in 0..=TR {
            let (words, selector) = places32(n);
            let s = Segment { selector: n.into(), attrib: FLAT, limit: 0xffff_0000 | u32::from(n), base: n.into() };
            area.put_segment32(words, selector, &s);
        }
        for n in 0..=TR {
            let (words, selector) = places32(n);
            let s = area.segment32(words, selector);
            assert_eq!((s.selector, s.base, s.attrib), (n.into(), n.into(), FLAT));
        }
        assert_eq!(area.get::<8>(600), [0; 8], "nothing is beyond it");
    }
}
