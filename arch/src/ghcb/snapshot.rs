//! The shared page, copied once.

/// Bytes in the page.
pub const SIZE: usize = 4096;

/// Registers and exit fields in the page: their offsets. A quadword each; CPL is one byte of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
#[allow(missing_docs)]
pub enum Field {
    Cpl = 0x0cb,
    Xss = 0x140,
    Rax = 0x1f8,
    Rcx = 0x308,
    Rdx = 0x310,
    Rbx = 0x318,
    ExitCode = 0x390,
    ExitInfo1 = 0x398,
    ExitInfo2 = 0x3a0,
    Scratch = 0x3a8,
    Xcr0 = 0x3e8,
}

/// The valid bitmap: a bit for each of the first 128 quadwords of the page.
pub const VALID_BITMAP: usize = 0x3f0;
/// Protocol version, two bytes.
pub const PROTOCOL_VERSION: usize = 0xffa;
/// Usage, four bytes: 0 is this protocol.
pub const USAGE: usize = 0xffc;

/// What the guest is told in SW_EXITINFO2 when SW_EXITINFO1 is 2: its request was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Refusal {
    /// The usage field is of another protocol, or the version is not one that was agreed on.
    Usage = 2,
    /// The scratch area is not where it may be.
    ScratchArea = 3,
    /// A field that the event needs is not marked valid.
    MissingInput = 4,
    /// A field has a value that it cannot have.
    InvalidInput = 5,
    /// The event does not exist, or not in this version.
    InvalidEvent = 6,
}

/// The page as it was at one moment. There is no way back to the guest's memory from here.
pub struct Snapshot<'a>(&'a [u8; SIZE]);

impl<'a> Snapshot<'a> {
    /// Calls `fetch` once, which copies the guest's page; errors are those of the copy.
    pub fn take<E>(
        buffer: &'a mut [u8; SIZE],
        fetch: impl FnOnce(&mut [u8; SIZE]) -> Result<(), E>,
    ) -> Result<Self, E> {
        fetch(buffer)?;
        Ok(Self(buffer))
    }

    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        self.0.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
    }

    /// A field, if the guest marked it valid.
    pub fn get(&self, field: Field) -> Result<u64, Refusal> {
        let (at, bit) = (field as usize, field as usize / 8);
        let [valid] = self.bytes(VALID_BITMAP + bit / 8);
        match (valid >> (bit % 8) & 1, field) {
            (0, _) => Err(Refusal::MissingInput),
            (_, Field::Cpl) => Ok(u64::from(u8::from_le_bytes(self.bytes(at)))),
            _ => Ok(u64::from_le_bytes(self.bytes(at))),
        }
    }

    /// The version that the guest speaks.
    pub fn version(&self) -> u16 {
        u16::from_le_bytes(self.bytes(PROTOCOL_VERSION))
    }

    /// The protocol: 0 is this one.
    pub fn usage(&self) -> u32 {
        u32::from_le_bytes(self.bytes(USAGE))
    }
}

/// A page for tests.
#[cfg(test)]
pub(crate) struct Page(pub [u8; SIZE]);

#[cfg(test)]
impl Page {
    pub fn new(version: u16) -> Self {
        let mut page = [0; SIZE];
        page[PROTOCOL_VERSION..][..2].copy_from_slice(&version.to_le_bytes());
        Self(page)
    }
    /// Writes a field and marks it valid.
    pub fn set(&mut self, field: Field, value: u64) -> &mut Self {
        let at = field as usize;
        if field == Field::Cpl {
            self.0[at] = value as u8;
        } else {
            self.0[at..][..8].copy_from_slice(&value.to_le_bytes());
        }
        self.0[VALID_BITMAP + at / 64] |= 1 << (at / 8 % 8);
        self
    }
    pub fn unset(&mut self, field: Field) -> &mut Self {
        let at = field as usize;
        self.0[VALID_BITMAP + at / 64] &= !(1 << (at / 8 % 8));
        self
    }
    pub fn set_usage(&mut self, usage: u32) -> &mut Self {
        self.0[USAGE..].copy_from_slice(&usage.to_le_bytes());
        self
    }
}
