//! One instruction in any state: no panic, and what the emulator promises its callers.

use crate::fake::{Fake, Wanted};
use crate::input::Input;
use emulator::{Known, Seg, Stop, TableReg, emulate, fetch, len_of, mode_of};

/// So many times a repeated instruction is begun again.
const MOST_TURNS: usize = 300;
/// More than the reads of any step.
const MOST_READS: usize = 64;

pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let head = input.u8();
    let mut m = match head & 7 {
        0 => Fake::real(),
        1 => Fake::v86(),
        2 => Fake::prot32(),
        3 => {
            let mut m = Fake::prot32();
            m.seg(Seg::Cs).attr &= !0x400;
            m.seg(Seg::Ss).attr &= !0x400;
            m
        }
        _ => Fake::long(),
    };
    m.map(0, 0x20000);
    m.mmio = 0x8000..0xa000;
    state(&mut m, &mut input, head);
    let code: [u8; 15] = input.bytes();
    m.rip &= 0xfff0;
    // Memory that the instruction finds: descriptors, operands.
    while input.more() {
        let at = u64::from(input.u16() & 0x7ff8);
        m.poke(at, &input.number().to_le_bytes());
    }
    len_of(&code, mode_of(&m), Known::Cpuid);
    let Ok(insn) = fetch(&mut m, &code) else { return };
    execute(&mut m, &insn);
}

/// Registers, and what the mode leaves open.
fn state(m: &mut Fake, input: &mut Input<'_>, head: u8) {
    for gpr in &mut m.gpr {
        *gpr = input.number();
    }
    m.rip = u64::from(input.u16());
    m.rflags = u64::from(input.u32()) & 0x3d_7fd5 | 2 | m.rflags & (1 << 17);
    let protected = head & 7 > 1;
    if protected && input.bool() {
        m.cpl = 3;
    }
    if head & 8 != 0 {
        for s in &mut m.segments {
            s.base = input.number();
            s.limit = input.number() as u32;
            s.attr ^= input.u16() & 0xfff;
        }
    }
    m.gdtr = TableReg { base: input.number(), limit: input.u16() };
    m.idtr = TableReg { base: input.number(), limit: input.u16() };
    m.cr[0] |= u64::from(input.u32()) & 0x4_000e;
    m.cr[4] ^= u64::from(input.u32()) & 0x800;
    m.xcr0 = 1 | input.number() & 6;
    if head & 16 != 0 {
        m.read_only.extend([1, 2, 9]);
    }
    m.lose = u32::from(head >> 5 & 1);
    m.pause = head & 64 != 0;
}

/// What must not change by a step that stops.
fn seen(m: &Fake) -> ([u64; 16], u64, u64, [emulator::Segment; 8]) {
    (m.gpr, m.rip, m.rflags, m.segments)
}

fn execute(m: &mut Fake, insn: &emulator::Insn) {
    let mut reads = 0;
    for _ in 0..MOST_TURNS {
        m.begin();
        let (before, commits, posted) = (seen(m), m.commits, m.posted.len());
        match emulate(m, insn) {
            Ok(done) => {
                // One that has lost a race for a location is done again.
                let again = done.more && seen(m) == before && m.posted.len() == posted;
                assert!(m.commits > commits || again, "a step that is over is committed");
                m.posted.clear();
                reads = 0;
                if !done.more {
                    return;
                }
                assert_eq!(m.rip, before.1, "there is more of it");
            }
            Err(stop) => {
                let same = m.commits == commits;
                reads = if same { reads + 1 } else { 0 };
                assert!(reads < MOST_READS, "it does not come to an end");
                assert!(!same || seen(m) == before, "{stop:?}: a step that stops changes nothing");
                assert!(!same || m.posted.len() == posted, "{stop:?}: it has written");
                match stop {
                    Stop::NeedUser => {
                        let size = match m.wanted {
                            Some(Wanted::Memory { size, .. }) => size,
                            Some(Wanted::Port { size, count, .. }) => usize::from(size) * count,
                            None => panic!("user space is asked for nothing"),
                        };
                        assert!((1..=1024).contains(&size), "{size} bytes");
                        m.log.push(vec![0x5a; size]);
                        m.posted.clear();
                    }
                    Stop::Fault(e) => {
                        assert!(e.vector < 32 && e.vector != 2, "{e:?}");
                        return;
                    }
                    Stop::Unhandleable => return,
                }
            }
        }
    }
}
