//! Why a state was not taken.

use crate::Id;
use core::fmt;

/// Where reading ended, and why. It prints as one line for the operator.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// The section; none: what is around them.
    pub section: Option<(Id, u32)>,
    /// The reason.
    pub why: Why,
}

/// The reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It does not begin as a state does.
    NoState,
    /// The frame is of another version.
    Frame(u32),
    /// It ends too early.
    Short,
    /// Bytes are left that nothing stands for.
    Long,
    /// The section holds what came later than this engine.
    Newer {
        /// The version that it was written in.
        has: u16,
        /// The latest that is known here.
        known: u16,
    },
    /// Nobody here knows such a section.
    Unknown,
    /// The section is missing, or not where it belongs.
    Missing,
    /// A value that is none of its type, or none that fits the rest: of what.
    Value(&'static str),
    /// This machine, or this engine, cannot do it: what.
    Cannot(&'static str),
    /// Somebody uses it.
    Busy,
    /// No memory.
    NoMemory,
}

impl Refused {
    /// Outside of any section.
    pub const fn frame(why: Why) -> Self {
        Self { section: None, why }
    }

    /// No memory, wherever.
    pub const NO_MEMORY: Self = Self::frame(Why::NoMemory);

    /// This machine, or this engine, cannot do it.
    pub const fn cannot(what: &'static str) -> Self {
        Self::frame(Why::Cannot(what))
    }
}

impl fmt::Debug for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((id, number)) = self.section {
            write!(f, "section {id}")?;
            if number != 0 {
                write!(f, " {number}")?;
            }
            f.write_str(": ")?;
        }
        match self.why {
            Why::NoState => f.write_str("this is no state of a VM"),
            Why::Frame(has) => write!(f, "the state is of format {has}, and this engine knows format {}", crate::FRAME),
            Why::Short => f.write_str("it ends too early"),
            Why::Long => f.write_str("it is longer than what it holds"),
            Why::Newer { has, known } => {
                write!(f, "it uses what came with version {has}, and this engine knows version {known}")
            }
            Why::Unknown => f.write_str("this engine does not know such a section"),
            Why::Missing => f.write_str("it is missing"),
            Why::Value(what) => write!(f, "{what} cannot have this value"),
            Why::Cannot(what) => f.write_str(what),
            Why::Busy => f.write_str("somebody uses a vCPU"),
            Why::NoMemory => f.write_str("no memory"),
        }
    }
}
