//! What a guest begins with: registers of each mode, what may be wrong with them, and events.

use crate::world::{CODE, DATA, GDT, IDT, IDT64, Mode, PAE, RAM, READ_ONLY, SEGMENTS, STACK, TSS, World};
use kvm_bindings::*;
use tests::client::number;
use tests::random::Random;

impl World {
    /// Numbers that are addresses more often than not.
    pub fn registers(&self, random: &mut Random, mode: Mode, rip: u64) -> kvm_regs {
        let places =
            [DATA, DATA + 0xffd, RAM - 3, RAM, RAM + 0x20, READ_ONLY, READ_ONLY + 0xffc, READ_ONLY - 2, 0xd000_0000];
        let mut any = |real: u64| match random.below(10) {
            0 => random.any(),
            1 => random.below(0x1000),
            2 => 0xffff_8000_0000_0000 | random.below(0x1000),
            _ if mode == Mode::Real => real,
            _ => random.of(&places),
        };
        let mut regs = kvm_regs {
            rax: any(0x2000),
            rbx: any(0x100),
            rdx: any(0x3f8),
            rsi: any(0x200),
            rdi: any(0xfffd),
            rbp: any(0x400),
            r8: any(8),
            r15: any(15),
            rsp: STACK,
            ..Default::default()
        };
        regs.rcx = match random.below(4) {
            0 => msr(random).into(),
            1 => random.any(),
            _ => random.below(4),
        };
        regs.rip = if mode == Mode::Real { rip - CODE } else { rip };
        regs.rflags = 2 | random.of(&[0, 0, 0x200, 0x3000, 0x100, 0x4_0000, 0x1_0000, 0x400, 0x8d5]);
        regs
    }

    pub fn system_registers(&self, mode: Mode, user: bool) -> kvm_sregs {
        let mut s = self.start.sregs;
        let long = matches!(mode, Mode::Long | Mode::Compatible);
        let level = if user { 3 } else { 0 };
        let (code, data) = match (mode, user) {
            (Mode::Real, _) => (0, 0),
            (Mode::Long, false) => (0x38, 0x10),
            (Mode::Long, true) => (0x43, 0x23),
            (_, false) => (8, 0x10),
            (_, true) => (0x1b, 0x23),
        };
        let flat = kvm_segment {
            limit: !0,
            type_: 3,
            present: 1,
            s: 1,
            g: 1,
            db: 1,
            dpl: level,
            selector: data,
            ..Default::default()
        };
        let flat = if mode == Mode::Real { kvm_segment { limit: 0xffff, g: 0, db: 0, ..flat } } else { flat };
        (s.ds, s.es, s.ss, s.fs, s.gs) = (flat, flat, flat, flat, flat);
        s.cs = kvm_segment { type_: 11, selector: code, ..flat };
        match mode {
            Mode::Real => {
                (s.cs.selector, s.cs.base) = ((CODE >> 4) as u16, CODE);
                (s.ds.selector, s.ds.base) = ((DATA >> 4) as u16, DATA);
                (s.es.selector, s.es.base) = (0xf000, 0xf_0000);
            }
            Mode::Long => (s.cs.l, s.cs.db) = (1, 0),
            _ => {}
        }
        s.gdt = kvm_dtable { base: GDT, limit: 8 * SEGMENTS.len() as u16 - 1, ..Default::default() };
        s.idt = match mode {
            Mode::Real => kvm_dtable { base: 0, limit: 0x3ff, ..Default::default() },
            _ if long => kvm_dtable { base: IDT64, limit: 0xfff, ..Default::default() },
            _ => kvm_dtable { base: IDT, limit: 0x7ff, ..Default::default() },
        };
        // The emulator of the processor aborts at a stack switch by a TSS of 32 bits that is busy.
        let type_ = if long { 11 } else { 9 };
        s.tr = kvm_segment { base: TSS, limit: 0x67, type_, present: 1, selector: 0x48, ..Default::default() };
        s.ldt = kvm_segment { unusable: 1, ..Default::default() };
        s.cr2 = 0;
        s.cr8 = 0;
        (s.cr0, s.cr3, s.cr4, s.efer) = match mode {
            Mode::Real => (0x10, 0, 0, 0),
            Mode::Protected => (0x33, 0, 0x600, 0),
            Mode::Paged => (0x8005_0033, PAE, 0x620, 0),
            Mode::Long | Mode::Compatible => (0x8005_0033, 0x1000, 0x620, 0x500),
        };
        s
    }

    /// Something waits for the guest.
    pub fn event(&self, random: &mut Random) -> String {
        let mut e = self.start.events;
        let what = match random.below(7) {
            0 => {
                e.exception.injected = 1;
                // Not those that come from an instruction (3 and 4): it would have to be there (`state`); nor #VC (29),
                // which stock does not inject again when its delivery was cut short.
                e.exception.nr =
                    random.of(&[0, 1, 2, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 21, 30, 31, 32, 33]);
                // What has one always has it: the emulator pushes whatever is there.
                let has = matches!(e.exception.nr, 8 | 10..=14 | 17 | 21 | 30);
                e.exception.has_error_code = random.below(2) as u8 | u8::from(has);
                e.exception.error_code = random.below(8) as u32;
                format!("exception {}/{}", e.exception.nr, e.exception.has_error_code)
            }
            1 => {
                e.interrupt.injected = 1;
                e.interrupt.nr = 0x20 + random.below(8) as u8;
                format!("interrupt {}", e.interrupt.nr)
            }
            2 => {
                e.nmi.pending = 1;
                e.flags |= KVM_VCPUEVENT_VALID_NMI_PENDING;
                "nmi".to_owned()
            }
            3 => {
                e.interrupt.shadow = random.of(&[1, 2]);
                e.flags |= KVM_VCPUEVENT_VALID_SHADOW;
                "shadow".to_owned()
            }
            4 => {
                let answer = number(&self.vcpu, 0x4004_ae86, &raw const *Box::new(0x31u32) as u64);
                return format!(" + KVM_INTERRUPT {answer}");
            }
            5 => {
                e.nmi.masked = 1;
                "nmi masked".to_owned()
            }
            _ => return format!(" + KVM_NMI {}", number(&self.vcpu, 0xae9a, 0)),
        };
        match self.vcpu.set_vcpu_events(&e) {
            Ok(()) => format!(" + {what}"),
            Err(e) => format!(" + {what} {e}"),
        }
    }
}

/// One bit, or one field, that need not be what a processor takes; what was done, in words.
pub fn outside(random: &mut Random, s: &mut kvm_sregs) -> String {
    match random.below(8) {
        0 => {
            let bit = random.below(32);
            s.cr0 ^= 1 << bit;
            format!(" cr0 bit {bit}")
        }
        1 => {
            let bit =
                random.of(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16, 17, 18, 20, 21, 22, 23, 24, 32, 63]);
            s.cr4 ^= 1 << bit;
            format!(" cr4 bit {bit}")
        }
        2 => {
            // Not LMSLE (13), which stock allows where it has nested virtualisation.
            let bit = random.of(&[0, 8, 10, 11, 14, 15, 20, 63]);
            s.efer ^= 1 << bit;
            format!(" efer bit {bit}")
        }
        3 => {
            // With the four entries of PAE where there is no memory a guest never comes out of stock's KVM_RUN.
            let pae = s.efer & 0x400 == 0 && s.cr4 & 0x20 != 0;
            let bit = if pae { random.below(20) } else { random.below(64) };
            s.cr3 ^= 1 << bit;
            format!(" cr3 bit {bit}")
        }
        4 => {
            s.cs.type_ = random.below(16) as u8;
            (s.cs.l, s.cs.db) = (random.below(2) as u8, random.below(2) as u8);
            format!(" cs {:x} {} {}", s.cs.type_, s.cs.l, s.cs.db)
        }
        5 => {
            s.ss.dpl = random.below(4) as u8;
            s.ss.present = random.below(2) as u8;
            format!(" ss {} {}", s.ss.dpl, s.ss.present)
        }
        6 => {
            s.ds.limit = random.of(&[0, 0xfff, 0xffff, 0xffff_fffe]);
            s.ds.base = random.of(&[0, 1, 0xffff_ffff, 1 << 47]);
            format!(" ds {:x} {:x}", s.ds.base, s.ds.limit)
        }
        _ => {
            s.cr8 = random.below(20);
            format!(" cr8 {}", s.cr8)
        }
    }
}

/// MSRs that are the same on both sides but for what is the guest's: none of time, and none of those of which `policy` tells.
fn msr(random: &mut Random) -> u32 {
    let known = [
        0x174,
        0x175,
        0x176,
        0x277,
        0x200,
        0x201,
        0x20f,
        0x250,
        0x26f,
        0x2ff,
        0x8b,
        0xfe,
        0x179,
        0xc000_0080,
        0xc000_0081,
        0xc000_0082,
        0xc000_0084,
        0xc000_0100,
        0xc000_0101,
        0xc000_0102,
        0xc001_0015,
        0xc001_0010,
        0xc001_001f,
        0xc001_0114,
        0xc001_0117,
        0x400,
        0x40b,
        0x17a,
        0x17b,
    ];
    if random.below(8) == 0 { random.any() as u32 & 0xffff } else { random.of(&known) }
}
