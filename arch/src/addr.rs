//! Addresses that must not be mixed up.

macro_rules! address {
    ($($(#[$m:meta])* $name:ident;)*) => {$(
        $(#[$m])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(pub u64);
    )*};
}
address! {
    /// Host physical address, in bytes.
    HostPa;
    /// Host virtual address in the VMM's memory, in bytes.
    Hva;
    /// Guest physical address, in bytes.
    Gpa;
    /// Guest frame number: guest physical address divided by 4096.
    Gfn;
}

impl Gpa {
    /// The frame that holds it.
    pub const fn gfn(self) -> Gfn {
        Gfn(self.0 >> 12)
    }
    /// Its offset in the frame, 0..4096.
    pub const fn offset(self) -> usize {
        (self.0 & 0xfff) as usize
    }
}

impl Gfn {
    /// The first byte of the frame.
    pub const fn gpa(self) -> Gpa {
        Gpa(self.0 << 12)
    }
}

/// Bytes in a page.
pub const PAGE: u64 = 4096;
