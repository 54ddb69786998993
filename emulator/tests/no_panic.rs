//! Nothing that a guest can put in front of the emulator makes it panic: arbitrary bytes, registers, segments, modes.
//! Overflow checks are on in tests, so arithmetic is covered too.

mod fake;

use emulator::{Known, Mode, Stop, emulate, fetch, len_of, mode_of};
use fake::{Fake, Rng};

#[test]
fn arbitrary_bytes_in_arbitrary_states() {
    let mut rng = Rng(0x1234_5678_9abc_def1);
    let (mut done, mut faults, mut unhandled, mut user) = (0_u32, 0_u32, 0_u32, 0_u32);
    let mut modes = [0_u32; 5];
    for round in 0..200_000 {
        let mut m = match round % 5 {
            0 => Fake::real(),
            1 => Fake::v86(),
            2 => Fake::prot32(),
            3 => {
                let mut m = Fake::prot32();
                m.seg(emulator::Seg::Cs).attr &= !0x400;
                m.seg(emulator::Seg::Ss).attr &= !0x400;
                m
            }
            _ => Fake::long(),
        };
        m.map(0, 0x20000);
        for gpr in &mut m.gpr {
            *gpr = if rng.below(2) == 0 { rng.below(0x20000) } else { rng.value() };
        }
        m.rip = rng.below(0xfff0);
        m.rflags = rng.next() & 0x3f_7fd5 | 2 | m.rflags & (1 << 17);
        if m.rflags & (1 << 17) != 0 && round % 5 != 1 {
            m.rflags &= !(1 << 17);
        }
        if round % 5 > 1 {
            m.cpl = (rng.below(2) * 3) as u8;
        }
        if rng.below(4) == 0 {
            for s in &mut m.segments {
                s.base = rng.next() >> rng.below(64);
                s.limit = rng.next() as u32;
                s.attr ^= 1 << rng.below(12);
                s.attr &= 0xfff;
            }
        }
        m.gdtr = emulator::TableReg { base: rng.value(), limit: rng.next() as u16 };
        m.mmio = 0x8000..0xa000;
        m.cr[0] |= rng.next() & 0x4_000e;
        let mode = mode_of(&m);
        modes[mode as usize] += 1;

        let mut bytes: Vec<u8> = Vec::new();
        let prefixes = [0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x64, 0x48, 0x0f];
        for _ in 0..rng.below(4) {
            bytes.push(prefixes[rng.below(8) as usize]);
        }
        while bytes.len() < 15 {
            bytes.extend(rng.next().to_le_bytes());
        }
        bytes.truncate(15);
        len_of(&bytes, mode, Known::Cpuid);
        match fetch(&mut m, &bytes) {
            Ok(insn) => {
                // Userspace answers a few times.
                for _ in 0..4 {
                    m.begin();
                    match emulate(&mut m, &insn) {
                        Ok(_) => {
                            done += 1;
                            break;
                        }
                        Err(Stop::NeedUser) => {
                            user += 1;
                            let size = match m.wanted {
                                Some(fake::Wanted::Memory { size, .. }) => size,
                                Some(fake::Wanted::Port { size, count, .. }) => usize::from(size) * count,
                                None => panic!("NeedUser without an access"),
                            };
                            m.log.push(vec![rng.next() as u8; size]);
                        }
                        Err(Stop::Fault(_)) => {
                            faults += 1;
                            break;
                        }
                        Err(Stop::Unhandleable) => {
                            unhandled += 1;
                            break;
                        }
                    }
                }
            }
            Err(Stop::Fault(_)) => faults += 1,
            Err(_) => unhandled += 1,
        }
    }
    println!("{done} done, {faults} faults, {unhandled} unhandled, {user} to userspace; modes {modes:?}");
    assert!(done > 50_000 && faults > 10_000 && user > 1_000);
    assert!(modes.iter().all(|n| *n > 10_000), "every mode was met: {modes:?}, in the order of {:?}", Mode::Real);
}
