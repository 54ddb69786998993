//! Segment registers as the VMCB stores them (APM 15.5.1, figure 15-2).

layout! {
    /// A segment register in the VMCB save area.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Segment: 16 {
        /// Selector.
        0 => pub selector: u16,
        /// Attributes, packed: see [`SegmentAttr`].
        2 => pub attrib: SegmentAttr,
        /// Limit in bytes (expanded, not in granules).
        4 => pub limit: u32,
        /// Base.
        8 => pub base: u64,
    }
}

/// Segment attributes: descriptor bits 55:52 (G, D/B, L, AVL) and 47:40 (P, DPL, S, type) in 12 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct SegmentAttr(pub u16);

impl crate::Zero for SegmentAttr {
    const ZERO: Self = Self(0);
}

impl SegmentAttr {
    /// Present.
    pub const P: u16 = 1 << 7;
    /// Code or data (not system).
    pub const S: u16 = 1 << 4;
    /// Privilege level, 2 bits.
    pub const DPL: u16 = 3 << 5;
    /// Available for software.
    pub const AVL: u16 = 1 << 8;
    /// 64-bit code.
    pub const L: u16 = 1 << 9;
    /// Default size 32 bits.
    pub const DB: u16 = 1 << 10;
    /// Limit counted in pages.
    pub const G: u16 = 1 << 11;

    /// Packs the fields as `struct kvm_segment` names them.
    #[allow(clippy::too_many_arguments)] // One per field of the descriptor.
    pub const fn new(kind: u8, s: u8, dpl: u8, p: u8, avl: u8, l: u8, db: u8, g: u8) -> Self {
        Self(
            (kind as u16 & 15)
                | (s as u16 & 1) << 4
                | (dpl as u16 & 3) << 5
                | (p as u16 & 1) << 7
                | (avl as u16 & 1) << 8
                | (l as u16 & 1) << 9
                | (db as u16 & 1) << 10
                | (g as u16 & 1) << 11,
        )
    }
    /// Type, 0..16.
    pub const fn kind(self) -> u8 {
        (self.0 & 15) as u8
    }
    /// Descriptor privilege level, 0..4.
    pub const fn dpl(self) -> u8 {
        (self.0 >> 5 & 3) as u8
    }
    /// True if all bits of `mask` are set.
    pub const fn has(self, mask: u16) -> bool {
        self.0 & mask == mask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_of_attributes_goes_there_and_back() {
        for bits in 0..1u16 << 12 {
            let one = |mask| (bits & mask != 0) as u8;
            let a = SegmentAttr(bits);
            let (s, p, avl) = (one(SegmentAttr::S), one(SegmentAttr::P), one(SegmentAttr::AVL));
            let (l, db, g) = (one(SegmentAttr::L), one(SegmentAttr::DB), one(SegmentAttr::G));
            assert_eq!(SegmentAttr::new(a.kind(), s, a.dpl(), p, avl, l, db, g), a);
            assert!(a.kind() < 16 && a.dpl() < 4);
            // As the bits of a descriptor, 55:52 and 47:40, next to each other.
            let descriptor = (bits as u64 & 0xff) << 40 | (bits as u64 >> 8) << 52;
            assert_eq!(descriptor >> 45 & 3, a.dpl() as u64);
            assert_eq!(descriptor >> 40 & 15, a.kind() as u64);
            for (mask, at) in [(SegmentAttr::S, 44), (SegmentAttr::P, 47), (SegmentAttr::AVL, 52)].into_iter().chain([
                (SegmentAttr::L, 53),
                (SegmentAttr::DB, 54),
                (SegmentAttr::G, 55),
            ]) {
                assert_eq!(a.has(mask), descriptor >> at & 1 != 0);
            }
        }
    }

    #[test]
    fn a_field_that_is_too_wide_reaches_no_other() {
        let bits = |n: usize, v: u8| {
            let mut f = [0; 8];
            f[n] = v;
            SegmentAttr::new(f[0], f[1], f[2], f[3], f[4], f[5], f[6], f[7]).0
        };
        let masks = [15, 1 << 4, 3 << 5, 1 << 7, 1 << 8, 1 << 9, 1 << 10, 1 << 11];
        for (n, mask) in masks.into_iter().enumerate() {
            for v in 0..=u8::MAX {
                assert_eq!(bits(n, v) & !mask, 0, "field {n} with {v:#x}");
            }
        }
    }
}
