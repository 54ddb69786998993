//! Interrupt input lines shared by several sources: a line is high while any source holds it up, as on a wired-or bus.

use arch::GuestIndexed;

/// `N` lines of up to 32 sources each.
#[derive(Clone, Debug)]
pub(crate) struct Lines<const N: usize>(pub(crate) GuestIndexed<[u32; N]>);

impl<const N: usize> Lines<N> {
    pub(crate) const fn new() -> Self {
        Lines(GuestIndexed::new([0; N]))
    }

    /// `source` (0 to 31) raises or lowers `pin`. Returns whether the line is high afterwards; none for a pin that does
    /// not exist.
    pub(crate) fn set(&mut self, pin: u8, source: u8, high: bool) -> Option<bool> {
        let line = self.0.get_nospec_mut(usize::from(pin))?;
        let bit = 1 << (source & 31);
        *line = if high { *line | bit } else { *line & !bit };
        Some(*line != 0)
    }
}
