//! The format in which one engine hands the state of a VM to the next (docs/decisions/0034).
//!
//! A [`Writer`] makes a sequence of sections, [`Sections`] reads it. A section has an [`Id`], a number (of the vCPU, where
//! there are several), a version and a length; each crate writes and reads its own. What is in it is written field by
//! field, little-endian, without names or padding: [`State`] says how, and the macros [`state!`], [`tagged!`] and [`units!`]
//! derive it. They name every field of a type, so that one which somebody adds and forgets here does not compile.
//!
//! # Versions
//! The version of a section belongs to it alone. A field that came with a later one is declared `since` that version with the
//! value that stands for its absence. A writer uses the lowest version that can hold what there is to write, which it learns
//! from what is written ([`Writer::since`]): so an older engine reads what a newer one has written as long as nothing newer is
//! in use, and refuses it otherwise, with the section, the version that it has and the one that it would need. A section that
//! is newer as a whole is left out while it holds nothing.
//!
//! # Safety
//! Reading copies out of a slice and never beyond it, allocates only fallibly and never more than there are bytes to fill it,
//! does not recurse, and fails with a [`Refused`] that says where and why. What was read is as good as what an ioctl brings:
//! whoever takes it checks what memory safety hangs on.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod derive;
mod read;
mod refused;
#[cfg(test)]
mod tests;
mod values;
mod write;

pub use read::{Reader, Sections};
pub use refused::{Refused, Why};
pub use write::{NoRoom, Writer};

/// Something that is written into a section and read from it, in place: nothing large is moved over the stack.
pub trait State {
    /// Appends it. What came after version 1 of the section asks [`Writer::since`].
    fn save(&self, w: &mut Writer);
    /// Becomes what was written. Errors: after one it is anything.
    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), Refused>;
    /// [`save`](Self::save) of several, one after the other.
    fn save_all(all: &[Self], w: &mut Writer)
    where
        Self: Sized,
    {
        all.iter().for_each(|x| x.save(w));
    }
    /// The same for [`load`](Self::load).
    fn load_all(all: &mut [Self], r: &mut Reader<'_>) -> Result<(), Refused>
    where
        Self: Sized,
    {
        all.iter_mut().try_for_each(|x| x.load(r))
    }
}

/// A [`State`] that is small enough to be made anew.
pub trait Value: State + Sized {
    /// What was written.
    fn read(r: &mut Reader<'_>) -> Result<Self, Refused>;
}

/// The name of a section: four letters, or fewer and spaces.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Id(pub [u8; 4]);

impl core::fmt::Debug for Id {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(self, f)
    }
}

impl core::fmt::Display for Id {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        use core::fmt::Write as _;
        let letters = self.0.iter().filter(|b| **b != b' ');
        letters.into_iter().try_for_each(|b| f.write_char(if b.is_ascii_graphic() { char::from(*b) } else { '?' }))
    }
}

/// One kind of section, as the code that it is compiled with knows it.
#[derive(Clone, Copy, Debug)]
pub struct Section {
    /// Its name.
    pub id: Id,
    /// The latest version that is known.
    pub version: u16,
}

impl Section {
    /// A kind of section.
    pub const fn new(id: [u8; 4], version: u16) -> Self {
        Self { id: Id(id), version }
    }
}

/// What every state begins with.
const MAGIC: [u8; 8] = *b"hsavestt";
/// Version of the frame around the sections.
const FRAME: u32 = 1;
/// Bytes of a section's header: name, number, version, zeros, length.
const HEADER: usize = 4 + 4 + 2 + 2 + 4;
