//! What the hardware could hand over, or the rest of the program ask for, as far as it is too much to be enumerated (what
//! is not, the unit tests enumerate).

use arch::{EventInj, EventType, Exit, ExitInfo, exit::code, msrpm};
use proptest::prelude::*;

fn kind() -> impl Strategy<Value = EventType> {
    prop_oneof![Just(EventType::Intr), Just(EventType::Nmi), Just(EventType::Exception), Just(EventType::Soft)]
}

proptest! {
    /// Every exit is decoded, and an unknown one says so with all that it came with.
    #[test]
    fn exits(exit in prop_oneof![0u64..0x500, any::<u64>()], info1: u64, info2: u64, assists: bool) {
        let info = ExitInfo { code: exit, info1, info2, int_info: EventInj::NONE };
        match Exit::decode(&info, assists) {
            Exit::Unknown { code, info1: a, info2: b } => prop_assert_eq!((code, a, b), (exit, info1, info2)),
            Exit::Io(io) => {
                prop_assert_eq!(exit, code::IOIO);
                prop_assert!(matches!(io.size(), 1 | 2 | 4));
                prop_assert_eq!((u64::from(io.port()), io.next_rip), (info1 >> 16 & 0xffff, info2));
            }
            Exit::CrRead { n, gpr } | Exit::CrWrite { n, gpr } | Exit::DrRead { n, gpr } | Exit::DrWrite { n, gpr } => {
                prop_assert!(n < 16 && gpr.is_none_or(|r| r < 16 && assists));
            }
            Exit::Npf { gpa, code } => prop_assert_eq!((gpa.0, code.0), (info2, info1)),
            _ => {}
        }
    }

    /// EVENTINJ and EXITINTINFO: what goes in comes out, and what is no event is none.
    #[test]
    fn events(kind in kind(), vector: u8, error_code: Option<u32>, any: u64) {
        let e = EventInj::new(kind, vector, error_code);
        prop_assert!(e.valid());
        prop_assert_eq!((e.kind(), e.vector(), e.error_code()), (Some(kind), vector, error_code));
        let any = EventInj(any);
        prop_assert_eq!(any.valid(), any.0 >> 31 & 1 != 0);
        prop_assert_eq!(any.error_code(), (any.0 >> 11 & 1 != 0).then_some((any.0 >> 32) as u32));
    }

    /// An MSR is in the map exactly if it is in one of the three ranges, and its bits are its own.
    #[test]
    fn msrs(a: u32, near in 0u32..0x2000, range in 0usize..3) {
        let b = [0, 0xc000_0000, 0xc001_0000][range] + near;
        prop_assert!(msrpm::position(b).is_some_and(|(byte, bit)| byte < msrpm::MSRPM_SIZE && bit % 2 == 0 && bit < 8));
        if a != b {
            prop_assert_ne!(msrpm::position(a), msrpm::position(b));
        }
    }
}
