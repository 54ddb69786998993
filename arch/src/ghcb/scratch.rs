//! The scratch area: where the operands of string I/O and MMIO are.

use super::{Refusal, Version};

/// The shared buffer inside of the page.
const BUFFER: core::ops::Range<u64> = 0x800..0xff0;
/// The most that is taken from elsewhere in guest memory, which version 1 allows.
pub const MAX: u64 = 16 * 1024;

/// A scratch area that is where it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scratch {
    /// In the page: its bytes are part of the copy. Offset 0x800..0xff0 and length.
    Page { offset: u16, len: u16 },
    /// Elsewhere in guest memory: guest physical address and length, up to [`MAX`].
    Memory { gpa: u64, len: u16 },
}

impl Scratch {
    /// The area at `gpa`, which the guest named in SW_SCRATCH, of the page at `page`.
    pub fn check(gpa: u64, len: u64, page: u64, version: Version) -> Result<Self, Refusal> {
        const BAD: Refusal = Refusal::ScratchArea;
        let end = gpa.checked_add(len).ok_or(BAD)?;
        let page_end = page.checked_add(4096).ok_or(BAD)?;
        if len == 0 || len > MAX {
            return Err(BAD);
        }
        let len = len as u16;
        if gpa >= page_end || end <= page {
            return if version == Version::V1 { Ok(Self::Memory { gpa, len }) } else { Err(BAD) };
        }
        // It touches the page, so all of it has to be in the buffer there.
        let (from, to) = (gpa.checked_sub(page).ok_or(BAD)?, end.wrapping_sub(page));
        if from < BUFFER.start || to > BUFFER.end {
            return Err(BAD);
        }
        Ok(Self::Page { offset: from as u16, len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 0x5000;

    #[test]
    fn an_area_that_touches_the_page_is_in_its_buffer() {
        for from in (0..4096).step_by(crate::STRIDE) {
            for len in [1, 2, 7, 8, 100, 2032, 2033, 4096] {
                for version in [Version::V1, Version::V2] {
                    let good = from >= 0x800 && from + len <= 0xff0;
                    let expected = Scratch::Page { offset: from as u16, len: len as u16 };
                    let expected = if good { Ok(expected) } else { Err(Refusal::ScratchArea) };
                    assert_eq!(Scratch::check(PAGE + from, len, PAGE, version), expected, "{from:#x} {len}");
                }
            }
        }
        assert!(Scratch::check(PAGE - 1, 2, PAGE, Version::V1).is_err(), "across the start of the page");
    }

    #[test]
    fn elsewhere_is_for_version_1_and_bounded() {
        let check = |gpa, len| Scratch::check(gpa, len, PAGE, Version::V1);
        for gpa in [0, PAGE - 8, PAGE + 4096, u64::MAX - 8] {
            assert_eq!(check(gpa, 8), Ok(Scratch::Memory { gpa, len: 8 }));
            assert_eq!(Scratch::check(gpa, 8, PAGE, Version::V2), Err(Refusal::ScratchArea));
        }
        assert!(check(0x10000, MAX).is_ok());
        for (gpa, len) in [(0x10000, MAX + 1), (0x10000, 0), (u64::MAX, 2), (0x10000, u64::MAX)] {
            assert_eq!(check(gpa, len), Err(Refusal::ScratchArea));
        }
        assert!(Scratch::check(0, 8, !0xfff, Version::V1).is_err(), "a page at the end of the world");
    }
}
