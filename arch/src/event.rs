//! Events: exceptions and the EVENTINJ / EXITINTINFO encoding (APM 8.2, 15.20).

/// Exception vectors.
pub mod vector {
    #![allow(missing_docs)]
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const MC: u8 = 18;
    pub const XF: u8 = 19;
}

/// An exception to be delivered to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Vector, 0..32.
    pub vector: u8,
    /// Error code, if the vector pushes one.
    pub error_code: Option<u32>,
    /// CR2 for #PF, DR6 bits for #DB.
    pub payload: Option<u64>,
}

impl Exception {
    /// An exception without error code.
    pub const fn plain(vector: u8) -> Self {
        Self { vector, error_code: None, payload: None }
    }
    /// #GP(code).
    pub const fn gp(code: u32) -> Self {
        Self { vector: vector::GP, error_code: Some(code), payload: None }
    }
    /// #UD.
    pub const UD: Self = Self::plain(vector::UD);
    /// #PF with the faulting linear address.
    pub const fn pf(code: u32, cr2: u64) -> Self {
        Self { vector: vector::PF, error_code: Some(code), payload: Some(cr2) }
    }
    /// Does delivery of this vector push an error code (APM table 8-1)?
    pub const fn pushes_error_code(vector: u8) -> bool {
        matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30)
    }
}

/// Kind of an event in EVENTINJ / EXITINTINFO bits 10:8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EventType {
    /// External or virtual interrupt.
    Intr = 0,
    /// NMI.
    Nmi = 2,
    /// Exception.
    Exception = 3,
    /// Software interrupt (INTn).
    Soft = 4,
}

/// EVENTINJ or EXITINTINFO.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct EventInj(pub u64);

impl crate::Zero for EventInj {
    const ZERO: Self = Self::NONE;
}

impl EventInj {
    /// Nothing to inject.
    pub const NONE: Self = Self(0);
    const V: u64 = 1 << 31;
    const EV: u64 = 1 << 11;

    /// Encodes an event.
    pub const fn new(kind: EventType, vector: u8, error_code: Option<u32>) -> Self {
        let base = vector as u64 | (kind as u64) << 8 | Self::V;
        match error_code {
            Some(code) => Self(base | Self::EV | (code as u64) << 32),
            None => Self(base),
        }
    }
    /// Is there an event?
    pub const fn valid(self) -> bool {
        self.0 & Self::V != 0
    }
    /// Its vector.
    pub const fn vector(self) -> u8 {
        self.0 as u8
    }
    /// Its kind; None for the reserved encodings.
    pub const fn kind(self) -> Option<EventType> {
        match self.0 >> 8 & 7 {
            0 => Some(EventType::Intr),
            2 => Some(EventType::Nmi),
            3 => Some(EventType::Exception),
            4 => Some(EventType::Soft),
            _ => None,
        }
    }
    /// Its error code.
    pub const fn error_code(self) -> Option<u32> {
        if self.0 & Self::EV != 0 { Some((self.0 >> 32) as u32) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_is_encoded_as_the_manual_has_it_and_decoded_again() {
        for kind in [EventType::Intr, EventType::Nmi, EventType::Exception, EventType::Soft] {
            for vector in 0..=u8::MAX {
                for code in [None, Some(0), Some(1), Some(0xffff), Some(u32::MAX)] {
                    let e = EventInj::new(kind, vector, code);
                    assert!(e.valid());
                    assert_eq!((e.kind(), e.vector(), e.error_code()), (Some(kind), vector, code));
                    assert_eq!(e.0 & 0xff, vector as u64);
                    assert_eq!(e.0 >> 8 & 7, kind as u64);
                    assert_eq!(e.0 >> 11 & 1, code.is_some() as u64);
                    assert_eq!(e.0 >> 12 & 0x7_ffff, 0, "reserved bits");
                    assert_eq!(e.0 >> 32, code.unwrap_or(0) as u64);
                }
            }
        }
        assert!(!EventInj::NONE.valid());
    }

    #[test]
    fn a_reserved_kind_is_none_whatever_the_other_bits() {
        for low in 0..1u64 << 12 {
            let e = EventInj(low | 1 << 31);
            assert_eq!(e.kind().is_none(), matches!(low >> 8 & 7, 1 | 5 | 6 | 7));
        }
    }
}
