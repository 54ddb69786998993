//! States that no engine wrote: refused, or taken, and then as good as any. Such a state is as trusted as the engine that wrote it,
//! so what it says of registers is believed; what it says of memory and of itself is not.

use crate::input::Input;
use sim::alloc::{Plan, plan};
use state::{Id, Section, Sections, State, Value};
use tests::scenario::Machine;

/// Most changes.
const MOST: usize = 64;

pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let head = input.u8();
    if head & 2 != 0 {
        return anything(&mut input);
    }
    let m = if head & 0x40 != 0 { Machine::rich_hyperv() } else { Machine::rich(head & 1 != 0) };
    let bytes = damaged(m.state(), &mut input);
    if head & 4 != 0 {
        plan(Some(Plan::Once(u64::from(head >> 3))));
    }
    if m.become_state(&bytes).is_ok() {
        plan(None);
        let again = m.state();
        m.become_state(&again).expect("what was written is read");
        assert!(m.state() == again, "and is the same then");
        // What it has in memory is where its slots are, and a guest goes on in some way.
        m.store(0, 0x9000, 1);
        m.tries(0, 0x1000_2000, false);
        m.exit(0, sim::arch::exit::code::HLT);
        let _ = m.run(0);
        m.sim.drop_script(0);
        m.host_changes(0, 64, sim::Page::Absent);
    }
    plan(None);
    m.end();
}

/// Bytes that were changed, taken out, put in or repeated.
fn damaged(mut bytes: Vec<u8>, input: &mut Input<'_>) -> Vec<u8> {
    let places: Vec<usize> = sections(&bytes);
    for _ in 0..MOST {
        if !input.more() || bytes.is_empty() {
            break;
        }
        let how = input.u8();
        // From a section's beginning, or from the beginning of all.
        let from = if how & 0x80 != 0 { input.of(&places) } else { 0 };
        let at = (from + usize::from(input.u16())) % bytes.len();
        match how & 7 {
            0..3 => bytes[at] ^= input.u8(),
            3 => {
                let word = input.u64().to_le_bytes();
                let n = word.len().min(bytes.len() - at);
                bytes[at..at + n].copy_from_slice(&word[..n]);
            }
            4 => bytes.truncate(at),
            5 => {
                let n = input.below(32).min(bytes.len() - at);
                bytes.drain(at..at + n);
            }
            6 => {
                let n = input.below(32).min(bytes.len() - at);
                let piece = bytes[at..at + n].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => bytes.insert(at, input.u8()),
        }
    }
    bytes
}

/// Where sections begin.
fn sections(bytes: &[u8]) -> Vec<usize> {
    let mut all = vec![12];
    let mut at = 12;
    while let Some(length) = bytes.get(at + 12..).and_then(<[u8]>::first_chunk::<4>) {
        at += 16 + u32::from_le_bytes(*length) as usize;
        all.push(at.min(bytes.len()));
    }
    all
}

/// Values of all shapes are read from anything.
fn anything(input: &mut Input<'_>) {
    let shape = input.u8() % 6;
    let kind = Section { id: Id(*b"fuzz"), version: u16::from(input.u8() & 3) };
    let mut bytes = b"hsavestt\x01\0\0\0".to_vec();
    if input.bool() {
        let body = input.rest();
        bytes.extend(b"fuzz\x07\0\0\0\x01\0\0\0");
        bytes.extend((body.len() as u32).to_le_bytes());
        bytes.extend(body);
    } else {
        bytes.extend(input.rest());
    }
    let Ok(mut s) = Sections::new(&bytes) else { panic!("the frame is sound") };
    match shape {
        0 => read::<Vec<u32>>(&mut s, kind),
        1 => read::<(bool, u64, Option<u16>)>(&mut s, kind),
        2 => read::<Vec<(u8, Option<u64>)>>(&mut s, kind),
        3 => read::<Option<Vec<u64>>>(&mut s, kind),
        4 => read::<[u16; 9]>(&mut s, kind),
        _ => read::<Vec<Vec<u8>>>(&mut s, kind),
    }
    let _ = s.end();
}

/// What is read is written as it was.
fn read<T: State + Value>(s: &mut Sections<'_>, kind: Section) {
    let Ok(mut r) = s.next(kind, 7) else { return };
    let Ok(value) = r.value::<T>() else { return };
    if r.end().is_err() {
        return;
    }
    let mut w = state::Writer::new(1 << 20);
    w.section(kind, 7, &value);
    let bytes = w.finish().expect("memory");
    let mut again = Sections::new(&bytes).expect("a state");
    let mut r = again.next(kind, 7).expect("the section");
    assert!(r.value::<T>().is_ok() && r.end().is_ok(), "what was written is read");
}
