//! What a guest with encrypted state asks for: through the MSR, and in the page.

use crate::input::Input;
use arch::ghcb::protocol::Request;
use arch::ghcb::{Event, Field, PROTOCOL_VERSION, Scratch, Snapshot, VALID_BITMAP, Version};

const FIELDS: [Field; 11] = [
    Field::Cpl,
    Field::Xss,
    Field::Rax,
    Field::Rcx,
    Field::Rdx,
    Field::Rbx,
    Field::ExitCode,
    Field::ExitInfo1,
    Field::ExitInfo2,
    Field::Scratch,
    Field::Xcr0,
];

pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let version = input.of(&[Version::V1, Version::V2]);
    let msr = input.number();
    match Request::decode(msr, version) {
        Some(Request::Page(gpa)) => assert_eq!(gpa & 0xfff, 0),
        Some(Request::Cpuid { register, .. }) => assert!(register < 4),
        Some(Request::Terminate { set, .. }) => assert!(set < 16),
        Some(Request::ApResetHold | Request::Features) => assert_eq!(version, Version::V2),
        Some(Request::SevInfo) | None => {}
    }
    let page = input.number() << 12;
    let mut buffer = [0; 4096];
    let snapshot = Snapshot::take(&mut buffer, |bytes| {
        bytes[PROTOCOL_VERSION] = version as u8;
        while input.more() {
            let field = input.of(&FIELDS) as usize;
            if input.u8() != 0 {
                bytes[VALID_BITMAP + field / 64] |= 1 << (field / 8 % 8);
            }
            let value = exit_code(&mut input, page);
            let size = if field == Field::Cpl as usize { 1 } else { 8 };
            bytes[field..field + size].copy_from_slice(&value.to_le_bytes()[..size]);
        }
        Ok::<(), ()>(())
    });
    let Ok(snapshot) = snapshot else { return };
    let Ok(event) = Event::decode(&snapshot, page, version) else { return };
    match event {
        Event::Vmmcall { cpl, .. } => assert!(cpl < 4),
        Event::Terminate { set, .. } => assert!(set < 16),
        Event::StringIo { scratch, .. } | Event::MmioRead { scratch, .. } | Event::MmioWrite { scratch, .. } => {
            fits(scratch, page);
        }
        _ => {}
    }
}

/// Numbers that are events, or addresses in the page.
fn exit_code(input: &mut Input<'_>, page: u64) -> u64 {
    match input.u8() % 4 {
        0 => 0x8000_0000 | input.number(),
        1 => page.wrapping_add(0x800) + u64::from(input.u16() & 0x7ff),
        _ => input.number(),
    }
}

/// The scratch area is where it may be, and not longer than what is copied.
fn fits(scratch: Scratch, page: u64) {
    match scratch {
        Scratch::Page { offset, len } => assert!(offset >= 0x800 && offset + len <= 0xff0, "{scratch:x?}"),
        Scratch::Memory { gpa, len } => {
            let end = gpa.checked_add(len.into()).expect("it does not wrap");
            assert!(end <= page || gpa - page >= 4096, "{scratch:x?}");
        }
    }
}
