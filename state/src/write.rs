//! Writing.

use crate::{FRAME, HEADER, MAGIC, Section, State};
use alloc::vec::Vec;

/// There was no room for what was to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom {
    /// Bytes that it takes.
    pub needs: usize,
}

/// Collects sections. It allocates when it is made, and never while it is written to, which is done under spin locks; whether there was
/// room for all shows at the [end](Self::finish).
pub struct Writer {
    bytes: Vec<u8>,
    /// Of what was to be written up to now.
    needs: usize,
    failed: bool,
    /// Of the section that is being written.
    version: u16,
    /// The lowest that can hold what was written into it up to now.
    least: u16,
}

impl Writer {
    /// With nothing in it, and room for so many bytes. Without memory there is no room.
    pub fn new(room: usize) -> Self {
        let mut bytes = Vec::new();
        let failed = bytes.try_reserve_exact(room).is_err();
        let mut w = Self { bytes, needs: 0, failed, version: 1, least: 1 };
        w.put(&MAGIC);
        w.put(&FRAME.to_le_bytes());
        w
    }

    /// Is what came with this version of the section to be written? `used`: it is not what stands for its absence, so that an
    /// older version cannot hold it.
    pub fn since(&mut self, version: u16, used: bool) -> bool {
        if used {
            self.needs_version(version);
        }
        self.version >= version
    }

    /// What is written came with this version of the section.
    pub fn needs_version(&mut self, version: u16) {
        self.least = self.least.max(version);
    }

    /// Appends a section with number `number`.
    pub fn section(&mut self, kind: Section, number: u32, state: &(impl State + ?Sized)) {
        self.section_by(kind, number, |w| state.save(w));
    }

    /// The same for what is no single value: `f` writes. It is called once more where what it wrote has turned out to need a later
    /// version: none is chosen that would leave something out, not even if the engine itself says that it knows no such.
    pub fn section_by(&mut self, kind: Section, number: u32, mut f: impl FnMut(&mut Self)) {
        let (begin, needs) = (self.bytes.len(), self.needs);
        (self.version, self.least) = (1, 1);
        loop {
            self.one_section(kind, number, &mut f);
            if self.least == self.version {
                return;
            }
            self.version = self.least;
            self.bytes.truncate(begin);
            self.needs = needs;
        }
    }

    fn one_section(&mut self, kind: Section, number: u32, f: &mut impl FnMut(&mut Self)) {
        self.put(&kind.id.0);
        self.put(&number.to_le_bytes());
        self.put(&self.version.to_le_bytes());
        self.put(&[0; 2]);
        let length = self.bytes.len();
        self.put(&[0; 4]);
        f(self);
        let body = self.bytes.len().saturating_sub(length).saturating_sub(4);
        match (u32::try_from(body), self.bytes.get_mut(length..).and_then(<[u8]>::first_chunk_mut::<4>)) {
            (Ok(body), Some(place)) => *place = body.to_le_bytes(),
            _ => self.failed = true,
        }
    }

    /// Appends bytes.
    pub fn put(&mut self, bytes: &[u8]) {
        self.needs = self.needs.saturating_add(bytes.len());
        // Looked at here, so that no path that would grow is compiled.
        if !self.failed && self.bytes.capacity().wrapping_sub(self.bytes.len()) >= bytes.len() {
            self.bytes.extend_from_slice(bytes);
        } else {
            self.failed = true;
        }
    }

    /// Appends a number of elements.
    pub fn count(&mut self, n: usize) {
        match u32::try_from(n) {
            Ok(n) => self.put(&n.to_le_bytes()),
            Err(_) => self.failed = true,
        }
    }

    /// What was written.
    pub fn finish(self) -> Result<Vec<u8>, NoRoom> {
        if self.failed { Err(NoRoom { needs: self.needs }) } else { Ok(self.bytes) }
    }
}

// A header is what `section_by` writes.
const _: () = assert!(HEADER == 16);
