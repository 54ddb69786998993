//! The events that a guest names in the shared page, with their operands.

use super::{Field, Refusal, Scratch, Snapshot};
use crate::exit::code;

/// A version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
#[allow(missing_docs)]
pub enum Version {
    V1 = 1,
    V2 = 2,
}

/// Exit codes that exist in this protocol only.
pub mod event {
    #![allow(missing_docs)]
    pub const MMIO_READ: u64 = 0x8000_0001;
    pub const MMIO_WRITE: u64 = 0x8000_0002;
    pub const NMI_COMPLETE: u64 = 0x8000_0003;
    pub const AP_RESET_HOLD: u64 = 0x8000_0004;
    pub const AP_JUMP_TABLE: u64 = 0x8000_0005;
    pub const FEATURES: u64 = 0x8000_fffd;
    pub const TERMINATE: u64 = 0x8000_fffe;
    pub const UNSUPPORTED: u64 = 0x8000_ffff;
}

/// DR7 is read or written: the exit codes of VMRUN's intercepts.
const DR7_READ: u64 = code::DR0_READ + 7;
const DR7_WRITE: u64 = code::DR0_READ + 0x10 + 7;

/// A request, decoded and checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Event {
    Dr7Read,
    Dr7Write {
        value: u64,
    },
    Rdtsc,
    Rdtscp,
    Rdpmc {
        counter: u64,
    },
    /// XCR0 comes with leaf 0xd only, XSS where it was offered with subleaf 1 of it.
    Cpuid {
        leaf: u32,
        subleaf: u32,
        xcr0: Option<u64>,
        xss: Option<u64>,
    },
    Invd,
    Wbinvd,
    /// EXITINFO1 of IN and OUT, with RAX of an OUT.
    Io {
        info: u64,
        rax: Option<u64>,
    },
    /// INS and OUTS: `count` times the operand size from or to the scratch area.
    StringIo {
        info: u64,
        count: u64,
        scratch: Scratch,
    },
    MsrRead {
        msr: u32,
    },
    MsrWrite {
        msr: u32,
        value: u64,
    },
    Vmmcall {
        rax: u64,
        cpl: u8,
    },
    Monitor {
        address: u64,
        extensions: u64,
        hints: u64,
    },
    Mwait {
        hints: u64,
        extensions: u64,
    },
    MmioRead {
        gpa: u64,
        scratch: Scratch,
    },
    MmioWrite {
        gpa: u64,
        scratch: Scratch,
    },
    NmiComplete,
    ApResetHold,
    SetApJumpTable {
        gpa: u64,
    },
    GetApJumpTable,
    Features,
    Terminate {
        set: u8,
        code: u8,
    },
    /// The guest met an exit that it does not know.
    Unsupported {
        code: u64,
        info: u64,
    },
}

impl Event {
    /// What the page at guest physical address `page` asks for; `version` is the one agreed on. A field that is not
    /// marked valid is not looked at.
    pub fn decode(s: &Snapshot, page: u64, version: Version) -> Result<Self, Refusal> {
        if s.usage() != 0 || s.version() != version as u16 {
            return Err(Refusal::Usage);
        }
        let exit = s.get(Field::ExitCode)?;
        let (info1, info2) = (s.get(Field::ExitInfo1)?, s.get(Field::ExitInfo2)?);
        let scratch = |len| Scratch::check(s.get(Field::Scratch)?, len, page, version);
        Ok(match exit {
            DR7_READ => Self::Dr7Read,
            DR7_WRITE => Self::Dr7Write { value: s.get(Field::Rax)? },
            code::RDTSC => Self::Rdtsc,
            code::RDTSCP => Self::Rdtscp,
            code::RDPMC => Self::Rdpmc { counter: s.get(Field::Rcx)? },
            code::CPUID => cpuid(s, version)?,
            code::INVD => Self::Invd,
            code::WBINVD => Self::Wbinvd,
            code::IOIO => io(s, info1, info2, scratch)?,
            code::MSR => msr(s, info1)?,
            code::VMMCALL => Self::Vmmcall {
                rax: s.get(Field::Rax)?,
                cpl: u8::try_from(s.get(Field::Cpl)?).ok().filter(|cpl| *cpl < 4).ok_or(Refusal::InvalidInput)?,
            },
            code::MONITOR => {
                Self::Monitor { address: s.get(Field::Rax)?, extensions: s.get(Field::Rcx)?, hints: s.get(Field::Rdx)? }
            }
            code::MWAIT => Self::Mwait { hints: s.get(Field::Rax)?, extensions: s.get(Field::Rcx)? },
            event::MMIO_READ => Self::MmioRead { gpa: info1, scratch: scratch(mmio_len(info2)?)? },
            event::MMIO_WRITE => Self::MmioWrite { gpa: info1, scratch: scratch(mmio_len(info2)?)? },
            event::NMI_COMPLETE => Self::NmiComplete,
            event::AP_RESET_HOLD => Self::ApResetHold,
            event::AP_JUMP_TABLE if info1 == 0 => Self::SetApJumpTable { gpa: info2 },
            event::AP_JUMP_TABLE if info1 == 1 => Self::GetApJumpTable,
            event::AP_JUMP_TABLE => return Err(Refusal::InvalidInput),
            event::FEATURES if version >= Version::V2 => Self::Features,
            event::TERMINATE if version >= Version::V2 => {
                Self::Terminate { set: (info1 & 15) as u8, code: (info1 >> 4) as u8 }
            }
            event::UNSUPPORTED => Self::Unsupported { code: info1, info: info2 },
            _ => return Err(Refusal::InvalidEvent),
        })
    }
}

/// MMIO of 1 to 8 bytes.
fn mmio_len(len: u64) -> Result<u64, Refusal> {
    if matches!(len, 1 | 2 | 4 | 8) { Ok(len) } else { Err(Refusal::InvalidInput) }
}

fn cpuid(s: &Snapshot, version: Version) -> Result<Event, Refusal> {
    let (leaf, subleaf) = (s.get(Field::Rax)? as u32, s.get(Field::Rcx)? as u32);
    let xcr0 = if leaf == 0xd { Some(s.get(Field::Xcr0)?) } else { None };
    let xss = if leaf == 0xd && subleaf == 1 && version >= Version::V2 { s.get(Field::Xss).ok() } else { None };
    Ok(Event::Cpuid { leaf, subleaf, xcr0, xss })
}

/// EXITINFO1 is that of the intercept (APM 15.10.2): bit 0 IN, bit 2 string, bits 6:4 the size in bytes.
fn io(
    s: &Snapshot,
    info: u64,
    count: u64,
    scratch: impl FnOnce(u64) -> Result<Scratch, Refusal>,
) -> Result<Event, Refusal> {
    let size = info >> 4 & 7;
    if !matches!(size, 1 | 2 | 4) {
        return Err(Refusal::InvalidInput);
    }
    if info & 1 << 2 != 0 {
        let len = count.checked_mul(size).ok_or(Refusal::InvalidInput)?;
        return Ok(Event::StringIo { info, count, scratch: scratch(len)? });
    }
    let rax = if info & 1 == 0 { Some(s.get(Field::Rax)?) } else { None };
    Ok(Event::Io { info, rax })
}

fn msr(s: &Snapshot, info: u64) -> Result<Event, Refusal> {
    let msr = s.get(Field::Rcx)? as u32;
    match info {
        0 => Ok(Event::MsrRead { msr }),
        1 => {
            let half = |field| Ok(s.get(field)? & 0xffff_ffff);
            Ok(Event::MsrWrite { msr, value: half(Field::Rax)? | half(Field::Rdx)? << 32 })
        }
        _ => Err(Refusal::InvalidInput),
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
