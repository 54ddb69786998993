//! Reading.

use crate::{FRAME, HEADER, Id, MAGIC, Refused, Section, State, Value, Why};

/// The sections of a state, one after the other.
#[derive(Clone)]
pub struct Sections<'a> {
    rest: &'a [u8],
}

/// The contents of one section.
pub struct Reader<'a> {
    rest: &'a [u8],
    version: u16,
    at: (Id, u32),
}

fn split(bytes: &[u8], n: usize) -> Option<(&[u8], &[u8])> {
    // INDEX: a length; what depends on it is a copy, and no address.
    bytes.split_at_checked(n)
}

/// A header, and where it ends.
struct Header {
    at: (Id, u32),
    version: u16,
    length: u32,
}

impl Header {
    fn read(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (id, rest) = bytes.split_first_chunk::<4>()?;
        let (number, rest) = rest.split_first_chunk::<4>()?;
        let (version, rest) = rest.split_first_chunk::<2>()?;
        let (_, rest) = rest.split_first_chunk::<2>()?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let at = (Id(*id), u32::from_le_bytes(*number));
        Some((Self { at, version: u16::from_le_bytes(*version), length: u32::from_le_bytes(*length) }, rest))
    }
}

impl<'a> Sections<'a> {
    /// Looks at the beginning. Errors: it is no state, or one of another format.
    pub fn new(bytes: &'a [u8]) -> Result<Self, Refused> {
        let no_state = Refused::frame(Why::NoState);
        let (magic, rest) = bytes.split_first_chunk::<8>().ok_or(no_state)?;
        if *magic != MAGIC {
            return Err(no_state);
        }
        let (frame, rest) = rest.split_first_chunk::<4>().ok_or(no_state)?;
        match u32::from_le_bytes(*frame) {
            FRAME => Ok(Self { rest }),
            other => Err(Refused::frame(Why::Frame(other))),
        }
    }

    /// The section that comes next, if it is of this kind and has this number. Errors: it is cut short, or newer than what is
    /// known here.
    pub fn optional(&mut self, kind: Section, number: u32) -> Result<Option<Reader<'a>>, Refused> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let (header, rest) = Header::read(self.rest).ok_or(Refused::frame(Why::Short))?;
        if header.at != (kind.id, number) {
            return Ok(None);
        }
        let refused = |why| Refused { section: Some(header.at), why };
        if header.version == 0 {
            return Err(refused(Why::Value("a version")));
        }
        if header.version > kind.version {
            return Err(refused(Why::Newer { has: header.version, known: kind.version }));
        }
        let (body, rest) = split(rest, header.length as usize).ok_or(refused(Why::Short))?;
        self.rest = rest;
        Ok(Some(Reader { rest: body, version: header.version, at: header.at }))
    }

    /// The same for one that has to be there. Errors: also if it is not.
    pub fn next(&mut self, kind: Section, number: u32) -> Result<Reader<'a>, Refused> {
        if let Some(reader) = self.optional(kind, number)? {
            return Ok(reader);
        }
        Err(match Header::read(self.rest) {
            // Something else is where it belongs: a newer engine's, or the state is damaged.
            Some((other, _)) if other.at.0 != kind.id => Refused { section: Some(other.at), why: Why::Unknown },
            _ => Refused { section: Some((kind.id, number)), why: Why::Missing },
        })
    }

    /// Reads the next section into `state`, all of it.
    pub fn load(&mut self, kind: Section, number: u32, state: &mut (impl State + ?Sized)) -> Result<(), Refused> {
        let mut r = self.next(kind, number)?;
        state.load(&mut r)?;
        r.end()
    }

    /// There are no more. Errors: there are, and nobody has asked for them.
    pub fn end(self) -> Result<(), Refused> {
        match Header::read(self.rest) {
            Some((header, _)) => Err(Refused { section: Some(header.at), why: Why::Unknown }),
            None if self.rest.is_empty() => Ok(()),
            None => Err(Refused::frame(Why::Short)),
        }
    }
}

impl Reader<'_> {
    /// The version that the section was written in.
    #[inline]
    pub fn version(&self) -> u16 {
        self.version
    }

    /// An error at this place.
    pub fn refuse(&self, why: Why) -> Refused {
        Refused { section: Some(self.at), why }
    }

    /// A value that does not fit: of what.
    pub fn bad(&self, what: &'static str) -> Refused {
        self.refuse(Why::Value(what))
    }

    /// The next `N` bytes.
    #[inline]
    pub fn take<const N: usize>(&mut self) -> Result<[u8; N], Refused> {
        match self.rest.split_first_chunk::<N>() {
            Some((bytes, rest)) => {
                self.rest = rest;
                Ok(*bytes)
            }
            None => Err(self.refuse(Why::Short)),
        }
    }

    /// The same into a slice.
    pub fn fill(&mut self, to: &mut [u8]) -> Result<(), Refused> {
        let (bytes, rest) = split(self.rest, to.len()).ok_or(self.refuse(Why::Short))?;
        to.copy_from_slice(bytes);
        self.rest = rest;
        Ok(())
    }

    /// Reads into something that is there.
    #[inline]
    pub fn load(&mut self, to: &mut (impl State + ?Sized)) -> Result<(), Refused> {
        to.load(self)
    }

    /// A value.
    #[inline]
    pub fn value<T: Value>(&mut self) -> Result<T, Refused> {
        T::read(self)
    }

    /// A number of elements, each of which takes a byte at least: no more than there are bytes left.
    pub fn count(&mut self) -> Result<usize, Refused> {
        let n = u32::from_le_bytes(self.take()?) as usize;
        if n <= self.rest.len() { Ok(n) } else { Err(self.refuse(Why::Short)) }
    }

    /// All has been read. Errors: something is left.
    pub fn end(self) -> Result<(), Refused> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.refuse(Why::Long)) }
    }
}

const _: () = assert!(HEADER == 16);
