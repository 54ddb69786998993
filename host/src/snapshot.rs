//! What many read and few replace.

use crate::OneBox;

/// A value that is replaced as a whole, or none. Who reads it takes no lock, waits for nobody and sees one value to the end of
/// its look, whoever replaces it meanwhile.
pub trait Snapshot<T>: Send + Sync {
    /// None.
    fn none() -> Self;

    /// What `look` makes of the value that is there. Any context; `look` takes no lock, allocates nothing and does not sleep.
    fn read<R>(&self, look: impl FnOnce(Option<&T>) -> R) -> R;

    /// Puts `new` in its place, and gives back what was there before as soon as nobody reads it any more. Task context; sleeps,
    /// unless there was none.
    fn replace(&self, new: Option<OneBox<T>>) -> Option<OneBox<T>>;
}
