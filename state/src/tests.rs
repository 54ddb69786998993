//! What is written is read, older versions with what stands for the missing, newer ones not at all, and nothing else at all.

use super::*;
use std::format;
use std::vec::Vec;

const KIND: Section = Section::new(*b"test", 1);
const LATER: Section = Section::new(*b"test", 3);

#[derive(Clone, Debug, Default, PartialEq)]
struct Old {
    a: u8,
    list: Vec<u32>,
    maybe: Option<(bool, u64)>,
}
state! { value Old { a, list, maybe } }

/// The same of a later engine.
#[derive(Clone, Debug, PartialEq)]
struct New {
    a: u8,
    list: Vec<u32>,
    maybe: Option<(bool, u64)>,
    third: u16,
    second: Kind,
}
state! { value New { a, list, maybe, second since 2 = Kind::Plain, third since 3 = 7 } }

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Plain,
    With { n: u32, on: bool },
    Of(u8),
    Later,
}
tagged! { Kind { 0 = Plain, 1 = With { n, on }, 5 = Of(x), 6 since 3 = Later } }

#[derive(Clone, Copy, Debug, PartialEq)]
enum Unit {
    A,
    B,
    Later,
}
units! { Unit { A, B, Later since 2 } }

struct InPlace {
    big: [u64; 600],
    kept: &'static str,
}
state! { place InPlace { big; not kept } }

fn one(kind: Section, state: &impl State) -> Vec<u8> {
    let mut w = Writer::new(1 << 20);
    w.section(kind, 3, state);
    w.finish().expect("memory")
}

fn read<T: Value>(kind: Section, bytes: &[u8]) -> Result<T, Refused> {
    let mut s = Sections::new(bytes)?;
    let mut r = s.next(kind, 3)?;
    let value = r.value()?;
    r.end()?;
    s.end()?;
    Ok(value)
}

fn old() -> Old {
    Old { a: 9, list: [1, 2, 3].into(), maybe: Some((true, 1 << 40)) }
}

fn new(second: Kind, third: u16) -> New {
    let Old { a, list, maybe } = old();
    New { a, list, maybe, second, third }
}

#[test]
fn it_never_grows_and_says_what_it_takes() {
    let written = |room: usize| {
        let mut w = Writer::new(room);
        w.section(KIND, 0, &[1u64, 2, 3]);
        w.finish()
    };
    let needs = 12 + HEADER + 24;
    assert_eq!(written(0), Err(NoRoom { needs }));
    assert_eq!(written(needs - 1), Err(NoRoom { needs }));
    assert_eq!(written(needs).map(|bytes| bytes.len()), Ok(needs));
}

#[test]
fn what_is_written_is_read() {
    assert_eq!(read::<Old>(KIND, &one(KIND, &old())), Ok(old()));
    for second in [Kind::Plain, Kind::With { n: 4, on: true }, Kind::Of(3), Kind::Later] {
        assert_eq!(read::<New>(LATER, &one(LATER, &new(second, 8))), Ok(new(second, 8)));
    }
    for unit in [Unit::A, Unit::B, Unit::Later] {
        assert_eq!(read::<Unit>(LATER, &one(LATER, &unit)), Ok(unit));
    }
}

#[test]
fn older_ones_are_read_with_what_stands_for_the_missing() {
    assert_eq!(read::<New>(LATER, &one(KIND, &old())), Ok(new(Kind::Plain, 7)));
}

#[test]
fn the_way_back_is_open_as_long_as_nothing_newer_is_in_use() {
    assert_eq!(one(LATER, &new(Kind::Plain, 7)), one(KIND, &old()), "byte for byte");
    assert_eq!(read::<Old>(KIND, &one(LATER, &new(Kind::Plain, 7))), Ok(old()));
    for (second, third, has) in [(Kind::Of(1), 7, 2), (Kind::Plain, 8, 3), (Kind::Later, 7, 3)] {
        let refused = read::<Old>(KIND, &one(LATER, &new(second, third))).unwrap_err();
        assert_eq!(refused.why, Why::Newer { has, known: 1 });
        assert_eq!(
            format!("{refused}"),
            format!("section test 3: it uses what came with version {has}, and this engine knows version 1")
        );
    }
}

/// A variant without fields that came later is told from one that is none.
#[test]
fn a_later_unit_is_refused_as_newer() {
    let refused = |unit: Unit| read::<u16>(KIND, &one(LATER, &unit)).map_err(|refused| refused.why);
    assert_eq!(refused(Unit::B), Ok(1));
    assert_eq!(refused(Unit::Later), Err(Why::Newer { has: 2, known: 1 }));
}

/// Whatever part of a section it is that is newer, and whoever forgets what: nothing is left out.
#[test]
fn the_version_follows_from_what_is_written() {
    let by = |kind: Section, second: Kind, unit: Unit| {
        let mut w = Writer::new(1 << 20);
        w.section_by(kind, 3, |w| {
            5u64.save(w);
            new(second, 7).save(w);
            [(unit, Some(second))].save(w);
        });
        w.section(kind, 3, &9u8);
        let bytes = w.finish().unwrap();
        let mut s = Sections::new(&bytes)?;
        let mut r = s.next(LATER, 3)?;
        let version = r.version();
        let mut pair = [(Unit::A, None)];
        let (five, value): (u64, New) = r.value()?;
        r.load(&mut pair)?;
        r.end()?;
        assert_eq!((five, value, pair), (5, new(second, 7), [(unit, Some(second))]));
        // The next one begins anew.
        let mut r = s.next(KIND, 3)?;
        assert_eq!((r.version(), r.value()), (1, Ok(9u8)));
        s.end()?;
        Ok::<_, Refused>(version)
    };
    assert_eq!(by(LATER, Kind::Plain, Unit::B), Ok(1));
    assert_eq!(by(LATER, Kind::Plain, Unit::Later), Ok(2));
    assert_eq!(by(LATER, Kind::Of(1), Unit::A), Ok(2));
    assert_eq!(by(LATER, Kind::Later, Unit::Later), Ok(3));
    // The constant was not raised with the field: refused, and not lost.
    assert_eq!(by(KIND, Kind::Later, Unit::B), Ok(3));
    assert_eq!(read::<New>(KIND, &one(KIND, &new(Kind::Later, 7))).unwrap_err().why, Why::Newer { has: 3, known: 1 });
    // The room that is asked for is that of the version.
    let written = |room: usize| {
        let mut w = Writer::new(room);
        w.section(LATER, 3, &new(Kind::Later, 8));
        w.finish()
    };
    let needs = one(LATER, &new(Kind::Later, 8)).len();
    assert_eq!(written(0), Err(NoRoom { needs }));
    assert_eq!(written(needs - 1), Err(NoRoom { needs }));
    assert_eq!(written(needs).map(|bytes| bytes.len()), Ok(needs));
}

#[test]
fn in_place_and_only_what_is_state() {
    let was = InPlace { big: core::array::from_fn(|n| n as u64), kept: "old" };
    let mut is = InPlace { big: [0; 600], kept: "new" };
    let bytes = one(KIND, &was);
    Sections::new(&bytes).unwrap().load(KIND, 3, &mut is).unwrap();
    assert_eq!((is.big, is.kept), (was.big, "new"));
}

#[test]
fn sections_come_in_order() {
    let other = Section::new(*b"more", 1);
    let mut w = Writer::new(1 << 20);
    w.section(KIND, 3, &1u8);
    w.section(other, 0, &2u8);
    let bytes = w.finish().unwrap();
    let mut s = Sections::new(&bytes).unwrap();
    assert!(s.optional(other, 0).unwrap().is_none(), "not yet");
    assert_eq!(
        s.clone().next(other, 0).map(drop).unwrap_err(),
        Refused { section: Some((KIND.id, 3)), why: Why::Unknown }
    );
    assert_eq!(
        s.clone().next(KIND, 2).map(drop).unwrap_err(),
        Refused { section: Some((KIND.id, 2)), why: Why::Missing }
    );
    let mut n = 0u8;
    s.load(KIND, 3, &mut n).unwrap();
    let left = s.clone().end().unwrap_err();
    assert_eq!(format!("{left}"), "section more: this engine does not know such a section");
    assert_eq!(s.load(other, 0, &mut 0u16).unwrap_err().why, Why::Short);
    let mut s = Sections::new(&bytes).unwrap();
    s.load(KIND, 3, &mut n).unwrap();
    assert_eq!(s.load(other, 0, &mut [0u8; 0]).unwrap_err().why, Why::Long);
    assert_eq!(Sections::new(&bytes[..7]).map(drop).unwrap_err().why, Why::NoState);
    let mut later = bytes.clone();
    later[8] = 2;
    let refused = Sections::new(&later).map(drop).unwrap_err();
    assert_eq!(format!("{refused}"), "the state is of format 2, and this engine knows format 1");
}

/// Each prefix, and each state with one bit turned over, is either refused or something that is written as it was read.
#[test]
fn damaged_states_are_refused_or_read_cleanly() {
    let bytes = one(LATER, &new(Kind::With { n: 4, on: true }, 8));
    for n in 0..bytes.len() {
        assert!(read::<New>(LATER, &bytes[..n]).is_err(), "{n} bytes");
    }
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        if let Ok(value) = read::<New>(LATER, &damaged) {
            assert_eq!(read::<New>(LATER, &one(LATER, &value)), Ok(value));
        }
    }
}

#[test]
fn a_count_that_lies_allocates_nothing() {
    let mut w = Writer::new(1 << 20);
    w.section_by(KIND, 3, |w| w.count(u32::MAX as usize));
    assert_eq!(read::<Vec<u64>>(KIND, &w.finish().unwrap()).unwrap_err().why, Why::Short);
}
