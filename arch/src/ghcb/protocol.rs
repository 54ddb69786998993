//! The MSR protocol: requests and responses in the value of the GHCB MSR, told apart by bits 11:0.

use super::Version;

/// The GHCB MSR.
pub const GHCB: u32 = 0xc001_0130;
/// What the MSR holds after reset is [`sev_info`].
const INFO: u64 = 0xfff;

/// What the guest wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// 0x000: the guest physical address of the shared page, aligned to a page; VMGEXIT is about what is in it.
    Page(u64),
    /// 0x002: which versions there are; answered by [`sev_info`].
    SevInfo,
    /// 0x004: one register (0 EAX, 1 EBX, 2 ECX, 3 EDX) of a CPUID function; answered by [`cpuid`].
    Cpuid { function: u32, register: u8 },
    /// 0x006: this processor waits for INIT-SIPI-SIPI; answered by [`ap_reset_hold`]. Version 2.
    ApResetHold,
    /// 0x080: what the hypervisor offers; answered by [`features`]. Version 2.
    Features,
    /// 0x100: the guest gives up; reason set 0..16 and code.
    Terminate { set: u8, code: u8 },
}

impl Request {
    /// None: the value is no request of this version, or has reserved bits set. There is no way to tell the guest: it
    /// is to be stopped.
    pub const fn decode(value: u64, version: Version) -> Option<Self> {
        let v2 = matches!(version, Version::V2);
        match value & INFO {
            0x000 => Some(Self::Page(value)),
            0x002 if value >> 12 == 0 => Some(Self::SevInfo),
            0x004 if value >> 12 & 0x3_ffff == 0 => {
                Some(Self::Cpuid { function: (value >> 32) as u32, register: (value >> 30 & 3) as u8 })
            }
            0x006 if v2 && value >> 12 == 0 => Some(Self::ApResetHold),
            0x080 if v2 && value >> 12 == 0 => Some(Self::Features),
            0x100 if value >> 24 == 0 => {
                Some(Self::Terminate { set: (value >> 12 & 15) as u8, code: (value >> 16) as u8 })
            }
            _ => None,
        }
    }
}

/// 0x001: the greatest and the least version, and the number of the bit that marks an encrypted page.
pub const fn sev_info(max: Version, min: Version, encryption_bit: u8) -> u64 {
    (max as u64) << 48 | (min as u64) << 32 | (encryption_bit as u64) << 24 | 0x001
}

/// 0x005: the value of the register that was asked for (taken modulo 4).
pub const fn cpuid(register: u8, value: u32) -> u64 {
    (value as u64) << 32 | (register as u64 & 3) << 30 | 0x005
}

/// 0x007: the processor was started (true), or woke up for another reason.
pub const fn ap_reset_hold(started: bool) -> u64 {
    (started as u64) << 12 | 0x007
}

/// 0x081: the features as a bitmap of 52 bits; those above do not exist.
pub const fn features(bitmap: u64) -> u64 {
    bitmap << 12 | 0x081
}

#[cfg(test)]
mod tests {
    use super::{Request::*, *};

    #[test]
    fn every_request_number_is_one_of_the_protocol_or_refused() {
        for number in (0..0x1000).step_by(crate::STRIDE) {
            let known = |version| match number {
                0x000 | 0x002 | 0x004 | 0x100 => true,
                0x006 | 0x080 => version == Version::V2,
                _ => false,
            };
            for version in [Version::V1, Version::V2] {
                assert_eq!(Request::decode(number, version).is_some(), known(version), "{number:#x} {version:?}");
            }
        }
    }

    #[test]
    fn the_fields_are_where_they_are_and_reserved_bits_are_refused() {
        let v = Version::V2;
        assert_eq!(Request::decode(0x1234_5000, v), Some(Page(0x1234_5000)));
        assert_eq!(
            Request::decode(0x8000_001f << 32 | 2 << 30 | 4, v),
            Some(Cpuid { function: 0x8000_001f, register: 2 })
        );
        assert_eq!(Request::decode(0x2a_3100, v), Some(Terminate { set: 3, code: 0x2a }));
        for bit in 12..64 {
            for (number, reserved) in
                [(0x002, 12..64), (0x004, 12..30), (0x006, 12..64), (0x080, 12..64), (0x100, 24..64)]
            {
                let refused = Request::decode(number | 1 << bit, v).is_none();
                assert_eq!(refused, reserved.contains(&bit), "{number:#x} bit {bit}");
            }
        }
    }

    #[test]
    fn responses_are_encoded() {
        assert_eq!(sev_info(Version::V2, Version::V1, 51), 0x0002_0001_3300_0001);
        assert_eq!(cpuid(3, 0xdead_beef), 0xdead_beef_c000_0005);
        assert_eq!([ap_reset_hold(true), ap_reset_hold(false), features(1)], [0x1007, 7, 0x1081]);
    }
}
