//! Every event against every set of fields that a guest may have marked valid.

use super::{super::snapshot::Page, event::*, *};
use crate::exit::code::*;
extern crate std;
use std::vec::Vec;

const AT: u64 = 0x7000;

fn decode(page: &Page, version: Version) -> Result<Event, Refusal> {
    let mut buffer = [0; 4096];
    let snapshot = Snapshot::take(&mut buffer, |to| {
        *to = page.0;
        Ok::<(), ()>(())
    });
    Event::decode(&snapshot.unwrap(), AT, version)
}

/// A page with all fields valid.
fn full(version: Version, exit: u64, info1: u64, info2: u64) -> Page {
    let mut page = Page::new(version as u16);
    page.set(Field::ExitCode, exit).set(Field::ExitInfo1, info1).set(Field::ExitInfo2, info2);
    for (field, value) in [
        (Field::Rax, 0xd),
        (Field::Rbx, 2),
        (Field::Rcx, 1),
        (Field::Rdx, 4),
        (Field::Cpl, 3),
        (Field::Xcr0, 7),
        (Field::Xss, 8),
        (Field::Scratch, AT + 0x800),
    ] {
        page.set(field, value);
    }
    page
}

/// Event code, information 1 and 2, and what it needs beside those three.
fn table() -> Vec<(u64, u64, u64, &'static [Field], Event)> {
    use Field::*;
    let scratch = |len| super::Scratch::Page { offset: 0x800, len };
    std::vec![
        (0x27, 0, 0, &[], Event::Dr7Read),
        (0x37, 0, 0, &[Rax], Event::Dr7Write { value: 0xd }),
        (RDTSC, 0, 0, &[], Event::Rdtsc),
        (RDTSCP, 0, 0, &[], Event::Rdtscp),
        (RDPMC, 0, 0, &[Rcx], Event::Rdpmc { counter: 1 }),
        (CPUID, 0, 0, &[Rax, Rcx, Xcr0], Event::Cpuid { leaf: 0xd, subleaf: 1, xcr0: Some(7), xss: Some(8) }),
        (INVD, 0, 0, &[], Event::Invd),
        (WBINVD, 0, 0, &[], Event::Wbinvd),
        (IOIO, 0x11, 0, &[], Event::Io { info: 0x11, rax: None }),
        (IOIO, 0x10, 0, &[Rax], Event::Io { info: 0x10, rax: Some(0xd) }),
        (IOIO, 0x25, 3, &[Scratch], Event::StringIo { info: 0x25, count: 3, scratch: scratch(6) }),
        (IOIO, 0x44, 3, &[Scratch], Event::StringIo { info: 0x44, count: 3, scratch: scratch(12) }),
        (MSR, 0, 0, &[Rcx], Event::MsrRead { msr: 1 }),
        (MSR, 1, 0, &[Rcx, Rax, Rdx], Event::MsrWrite { msr: 1, value: 4 << 32 | 0xd }),
        (VMMCALL, 0, 0, &[Rax, Cpl], Event::Vmmcall { rax: 0xd, cpl: 3 }),
        (MONITOR, 0, 0, &[Rax, Rcx, Rdx], Event::Monitor { address: 0xd, extensions: 1, hints: 4 }),
        (MWAIT, 0, 0, &[Rax, Rcx], Event::Mwait { hints: 0xd, extensions: 1 }),
        (MMIO_READ, 9, 8, &[Scratch], Event::MmioRead { gpa: 9, scratch: scratch(8) }),
        (MMIO_WRITE, 9, 4, &[Scratch], Event::MmioWrite { gpa: 9, scratch: scratch(4) }),
        (NMI_COMPLETE, 0, 0, &[], Event::NmiComplete),
        (AP_RESET_HOLD, 0, 0, &[], Event::ApResetHold),
        (AP_JUMP_TABLE, 0, 5, &[], Event::SetApJumpTable { gpa: 5 }),
        (AP_JUMP_TABLE, 1, 0, &[], Event::GetApJumpTable),
        (FEATURES, 0, 0, &[], Event::Features),
        (TERMINATE, 0x123, 0, &[], Event::Terminate { set: 3, code: 0x12 }),
        (UNSUPPORTED, 6, 7, &[], Event::Unsupported { code: 6, info: 7 }),
    ]
}

#[test]
fn every_event_needs_its_fields_and_no_others() {
    use Field::*;
    let all = [Cpl, Xss, Rax, Rcx, Rdx, Rbx, ExitCode, ExitInfo1, ExitInfo2, Scratch, Xcr0];
    for (exit, info1, info2, needed, event) in table() {
        assert_eq!(decode(&full(Version::V2, exit, info1, info2), Version::V2), Ok(event));
        let required = [needed, &[ExitCode, ExitInfo1, ExitInfo2]].concat();
        // Every set of valid fields.
        for set in (0..1 << all.len()).step_by(crate::STRIDE) {
            let valid = |field: &Field| set >> all.iter().position(|f| f == field).unwrap() & 1 != 0;
            let mut page = full(Version::V2, exit, info1, info2);
            for field in all.iter().filter(|f| !valid(f)) {
                page.unset(*field);
            }
            let answer = decode(&page, Version::V2);
            if required.iter().all(valid) {
                assert!(answer.is_ok(), "{exit:#x} with {set:#b}");
            } else {
                assert_eq!(answer, Err(Refusal::MissingInput), "{exit:#x} with {set:#b}");
            }
        }
    }
}

#[test]
fn version_1_has_neither_features_nor_termination_and_no_exit_code_but_those_exists() {
    for exit in (0..0x1000).chain(0x8000_0000..0x8001_0000).step_by(crate::STRIDE) {
        for version in [Version::V1, Version::V2] {
            let exists = table().iter().any(|row| row.0 == exit);
            let exists = exists && !(version == Version::V1 && [FEATURES, TERMINATE].contains(&exit));
            // Information that fits none but also is refused for what it is, not for the event.
            let refused = decode(&full(version, exit, 0, 0), version) == Err(Refusal::InvalidEvent);
            assert_eq!(refused, !exists, "{exit:#x} {version:?}");
        }
    }
}

#[test]
fn operands_that_cannot_be_are_refused() {
    for (exit, info1, info2) in [
        (IOIO, 0x04, 1),
        (IOIO, 0x34, 1),
        (IOIO, 0x00, 0),
        (IOIO, 0x44, u64::MAX),
        (MSR, 2, 0),
        (MMIO_READ, 0, 3),
        (MMIO_WRITE, 0, 16),
        (MMIO_READ, 0, 0),
        (AP_JUMP_TABLE, 2, 0),
    ] {
        assert_eq!(decode(&full(Version::V2, exit, info1, info2), Version::V2), Err(Refusal::InvalidInput));
    }
    let mut page = full(Version::V2, VMMCALL, 0, 0);
    assert_eq!(decode(page.set(Field::Cpl, 4), Version::V2), Err(Refusal::InvalidInput));
    // The scratch area ends where the buffer does.
    for (count, good) in [(508, true), (509, false), (0, false)] {
        let answer = decode(&full(Version::V2, IOIO, 0x44, count), Version::V2);
        assert_eq!(answer.is_ok(), good, "{count}: {answer:?}");
    }
    assert_eq!(decode(full(Version::V2, RDTSC, 0, 0).set_usage(1), Version::V2), Err(Refusal::Usage));
    assert_eq!(decode(&full(Version::V1, RDTSC, 0, 0), Version::V2), Err(Refusal::Usage));
}

#[test]
fn the_page_is_fetched_once_and_what_the_guest_does_to_it_later_has_no_effect() {
    let mut guest = full(Version::V2, MMIO_READ, 9, 8);
    let (mut buffer, mut fetches) = ([0; 4096], 0);
    let snapshot = Snapshot::take(&mut buffer, |to| {
        *to = guest.0;
        fetches += 1;
        Ok::<(), ()>(())
    });
    let snapshot = snapshot.unwrap();
    let before = Event::decode(&snapshot, AT, Version::V2);
    guest.set(Field::Scratch, 0).set(Field::ExitInfo2, 4096);
    assert_eq!(Event::decode(&snapshot, AT, Version::V2), before);
    assert_eq!(fetches, 1);
    assert!(Snapshot::take(&mut [0; 4096], |_| Err(())).is_err(), "a page that is not there");
}
