//! A virtual CPU for tests: registers in arrays, memory as a map of pages, MMIO and ports that a test answers. It also
//! holds the emulator to its side of the contract: reads first, one write per step.
//!
//! Long because: one implementation of one trait.
#![allow(dead_code, unused_imports)] // each test uses a part of it

mod rng;
mod run;

pub use rng::Rng;
pub use run::{fault, ok, run};

use emulator::{Access, Exception, Machine, Seg, Segment, Stop, Table, TableReg};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

pub const PAGE: u64 = 4096;

/// An access that userspace has to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    Memory { linear: u64, size: usize },
    Port { port: u16, size: u8, count: usize },
}

/// A posted write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Posted {
    Memory { linear: u64, data: Vec<u8> },
    Port { port: u16, data: Vec<u8> },
}

#[derive(Clone)]
pub struct Fake {
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    pub segments: [Segment; 8],
    pub gdtr: TableReg,
    pub idtr: TableReg,
    pub cpl: u8,
    pub cr: [u64; 16],
    pub dr: [u64; 8],
    pub efer: u64,
    pub xcr0: u64,
    pub la57: bool,
    pub ymm: [[u8; 32]; 16],
    pub mmx: [u64; 8],
    pub x87: (u16, u16),
    pub pages: BTreeMap<u64, Vec<u8>>,
    pub read_only: BTreeSet<u64>,
    pub mmio: Range<u64>,
    /// Answers from userspace, in order, and how many have been used in this `emulate` call.
    pub log: Vec<Vec<u8>>,
    pub used: usize,
    pub wanted: Option<Wanted>,
    pub posted: Vec<Posted>,
    pub invalidated: Vec<u64>,
    pub pause: bool,
    /// The next this many `cmpxchg` calls lose.
    pub lose: u32,
    pub commits: u32,
    /// A change has been made in this step.
    changed: bool,
}

pub const CODE64: u16 = 0xa9b;
pub const CODE32: u16 = 0xc9b;
pub const CODE16: u16 = 0x09b;
pub const DATA32: u16 = 0xc93;
pub const DATA16: u16 = 0x093;

impl Fake {
    fn bare(code: Segment, data: Segment) -> Fake {
        let mut segments = [data; 8];
        segments[Seg::Cs as usize] = code;
        segments[Seg::Ldtr as usize] = Segment::default();
        segments[Seg::Tr as usize] = Segment { selector: 0x40, base: 0, limit: 0xffff, attr: 0x8b };
        Fake {
            gpr: [0; 16],
            rip: 0,
            rflags: 2,
            segments,
            gdtr: TableReg::default(),
            idtr: TableReg::default(),
            cpl: 0,
            cr: [0; 16],
            dr: [0, 0, 0, 0, 0, 0, 0xffff_0ff0, 0x400],
            efer: 0,
            xcr0: 7,
            la57: false,
            ymm: [[0; 32]; 16],
            mmx: [0; 8],
            x87: (0x37f, 0),
            pages: BTreeMap::new(),
            read_only: BTreeSet::new(),
            mmio: 0..0,
            log: Vec::new(),
            used: 0,
            wanted: None,
            posted: Vec::new(),
            invalidated: Vec::new(),
            pause: false,
            lose: 0,
            commits: 0,
            changed: false,
        }
    }

    /// 64-bit mode, CPL 0, flat.
    pub fn long() -> Fake {
        let code = Segment { selector: 8, base: 0, limit: u32::MAX, attr: CODE64 };
        let data = Segment { selector: 0x10, base: 0, limit: u32::MAX, attr: DATA32 };
        let mut m = Fake::bare(code, data);
        m.cr[0] = 0x8000_0033;
        m.cr[4] = 0x4_0620;
        m.efer = 0xd00;
        m
    }

    /// 32-bit protected mode, CPL 0, flat.
    pub fn prot32() -> Fake {
        let code = Segment { selector: 8, base: 0, limit: u32::MAX, attr: CODE32 };
        let data = Segment { selector: 0x10, base: 0, limit: u32::MAX, attr: DATA32 };
        let mut m = Fake::bare(code, data);
        m.cr[0] = 0x33;
        m.cr[4] = 0x600;
        m
    }

    /// Real mode, all segments at 0.
    pub fn real() -> Fake {
        let code = Segment { selector: 0, base: 0, limit: 0xffff, attr: CODE16 };
        let data = Segment { selector: 0, base: 0, limit: 0xffff, attr: DATA16 };
        let mut m = Fake::bare(code, data);
        m.cr[0] = 0x10;
        m
    }

    /// Virtual-8086 mode.
    pub fn v86() -> Fake {
        let mut m = Fake::real();
        m.cr[0] = 0x31;
        m.cpl = 3;
        m.rflags |= 1 << 17;
        m.segments[..6].fill(Segment { selector: 0, base: 0, limit: 0xffff, attr: 0xf3 });
        m
    }

    /// Maps zeroed memory.
    pub fn map(&mut self, at: u64, len: u64) -> &mut Self {
        for page in at / PAGE..(at + len).div_ceil(PAGE) {
            self.pages.entry(page).or_insert_with(|| vec![0; PAGE as usize]);
        }
        self
    }

    /// Puts bytes into mapped memory.
    pub fn poke(&mut self, at: u64, data: &[u8]) {
        for (n, byte) in data.iter().enumerate() {
            let at = at.wrapping_add(n as u64);
            self.pages.get_mut(&(at / PAGE)).expect("mapped")[(at % PAGE) as usize] = *byte;
        }
    }

    pub fn peek(&self, at: u64, len: usize) -> Vec<u8> {
        (0..len as u64).map(|n| self.pages[&((at + n) / PAGE)][((at + n) % PAGE) as usize]).collect()
    }

    pub fn peek_u64(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.peek(at, 8).try_into().expect("8 bytes"))
    }

    pub fn seg(&mut self, seg: Seg) -> &mut Segment {
        &mut self.segments[seg as usize]
    }

    /// What the caller does before each `emulate`.
    pub fn begin(&mut self) {
        self.used = 0;
        self.wanted = None;
        self.changed = false;
    }

    fn answer(&mut self, wanted: Wanted, buf: &mut [u8]) -> Result<(), Stop> {
        match self.log.get(self.used) {
            Some(data) => {
                assert_eq!(data.len(), buf.len(), "the same reads in the same order");
                buf.copy_from_slice(data);
                self.used += 1;
                Ok(())
            }
            None => {
                self.wanted = Some(wanted);
                Err(Stop::NeedUser)
            }
        }
    }

    fn is_mmio(&self, linear: u64) -> bool {
        self.mmio.contains(&linear)
    }

    fn page_fault(&self, linear: u64, write: bool, access: Access) -> Stop {
        let present = u32::from(self.pages.contains_key(&(linear / PAGE)));
        let user = u32::from(self.cpl == 3 && access != Access::System) << 2;
        Exception::pf(present | u32::from(write) << 1 | user, linear).into()
    }

    /// The pages under an access are there (and may be written).
    fn check(&self, linear: u64, len: usize, write: bool, access: Access) -> Result<(), Stop> {
        for n in 0..len as u64 {
            let at = linear.wrapping_add(n);
            let page = at / PAGE;
            if !self.pages.contains_key(&page) || write && self.read_only.contains(&page) {
                return Err(self.page_fault(at, write, access));
            }
        }
        Ok(())
    }

    fn one_change(&mut self) {
        assert!(!self.changed, "one write per step");
        self.changed = true;
    }
}

impl Machine for Fake {
    fn gpr(&self, index: u8) -> u64 {
        self.gpr[usize::from(index)]
    }
    fn set_gpr(&mut self, index: u8, value: u64) {
        self.gpr[usize::from(index)] = value;
    }
    fn rip(&self) -> u64 {
        self.rip
    }
    fn set_rip(&mut self, value: u64) {
        self.rip = value;
    }
    fn rflags(&self) -> u64 {
        self.rflags
    }
    fn set_rflags(&mut self, value: u64) {
        assert!(value & 2 != 0);
        self.rflags = value;
    }
    fn segment(&self, seg: Seg) -> Segment {
        self.segments[seg as usize]
    }
    fn set_segment(&mut self, seg: Seg, value: Segment) {
        self.segments[seg as usize] = value;
    }
    fn table(&self, which: Table) -> TableReg {
        if which == Table::Gdt { self.gdtr } else { self.idtr }
    }
    fn set_table(&mut self, which: Table, value: TableReg) {
        *if which == Table::Gdt { &mut self.gdtr } else { &mut self.idtr } = value;
    }
    fn cpl(&self) -> u8 {
        self.cpl
    }
    fn cr(&self, n: u8) -> u64 {
        assert!(matches!(n, 0 | 2 | 3 | 4 | 8));
        self.cr[usize::from(n)]
    }
    fn set_cr(&mut self, n: u8, value: u64) -> Result<(), Stop> {
        assert!(matches!(n, 0 | 2 | 3 | 4 | 8));
        // Paging without protection: a value that is refused.
        if n == 0 && value & 0x8000_0001 == 0x8000_0000 {
            return Err(Exception::gp(0).into());
        }
        self.one_change();
        self.cr[usize::from(n)] = value;
        Ok(())
    }
    fn dr(&self, n: u8) -> u64 {
        self.dr[usize::from(n)]
    }
    fn set_dr(&mut self, n: u8, value: u64) -> Result<(), Stop> {
        if n >= 6 && value >> 32 != 0 {
            return Err(Exception::gp(0).into());
        }
        self.one_change();
        self.dr[usize::from(n)] = value;
        Ok(())
    }
    fn efer(&self) -> u64 {
        self.efer
    }
    fn xcr0(&self) -> u64 {
        self.xcr0
    }
    fn has_la57(&self) -> bool {
        self.la57
    }
    fn fetch(&mut self, linear: u64, buf: &mut [u8]) -> Result<(), Stop> {
        assert!(!buf.is_empty() && buf.len() <= 15);
        assert_eq!(linear / PAGE, (linear + buf.len() as u64 - 1) / PAGE, "a fetch stays within a page");
        self.read(linear, buf, Access::Data)
    }
    fn read(&mut self, linear: u64, buf: &mut [u8], access: Access) -> Result<(), Stop> {
        assert!(!self.changed, "reads come before the write");
        assert!(!buf.is_empty());
        if self.is_mmio(linear) {
            return self.answer(Wanted::Memory { linear, size: buf.len() }, buf);
        }
        self.check(linear, buf.len(), access == Access::Modify, access)?;
        for (n, byte) in buf.iter_mut().enumerate() {
            let at = linear.wrapping_add(n as u64);
            *byte = self.pages[&(at / PAGE)][(at % PAGE) as usize];
        }
        Ok(())
    }
    fn write(&mut self, linear: u64, data: &[u8], access: Access) -> Result<(), Stop> {
        assert!(!data.is_empty() && data.len() <= 1024);
        if self.is_mmio(linear) {
            self.one_change();
            self.posted.push(Posted::Memory { linear, data: data.to_vec() });
            return Ok(());
        }
        self.check(linear, data.len(), true, access)?;
        self.one_change();
        self.poke(linear, data);
        Ok(())
    }
    fn check_write(&mut self, linear: u64, len: usize, several: bool, access: Access) -> Result<(), Stop> {
        assert!(len <= 4 || linear % PAGE + len as u64 <= PAGE, "within a page");
        match self.is_mmio(linear) {
            true if several => Err(Stop::Unhandleable),
            true => Ok(()),
            false => self.check(linear, len, true, access),
        }
    }
    fn cmpxchg(&mut self, linear: u64, size: u8, old: u128, new: u128, access: Access) -> Result<u128, Stop> {
        let len = usize::from(size);
        let bytes = new.to_le_bytes();
        if self.is_mmio(linear) {
            self.write(linear, &bytes[..len], access)?;
            return Ok(old);
        }
        self.check(linear, len, true, access)?;
        if self.lose > 0 {
            self.lose -= 1;
            return Ok(!old);
        }
        let mut now = [0; 16];
        now[..len].copy_from_slice(&self.peek(linear, len));
        let now = u128::from_le_bytes(now);
        if now == old {
            // Marking a descriptor as accessed is not the instruction's own change.
            let accessed = old ^ new == 1 << 40;
            if !accessed {
                self.one_change();
            }
            self.poke(linear, &bytes[..len]);
        }
        Ok(now)
    }
    fn pio_in(&mut self, port: u16, size: u8, buf: &mut [u8]) -> Result<(), Stop> {
        assert!(!self.changed && matches!(size, 1 | 2 | 4) && buf.len() % usize::from(size) == 0 && buf.len() <= 1024);
        self.answer(Wanted::Port { port, size, count: buf.len() / usize::from(size) }, buf)
    }
    fn port_answered(&self, _port: u16, size: u8) -> Option<u32> {
        self.log.get(self.used).map(|data| data.len() as u32 / u32::from(size))
    }
    fn pio_out(&mut self, port: u16, data: &[u8]) -> Result<(), Stop> {
        assert!(matches!(data.len(), 1 | 2 | 4));
        self.one_change();
        self.posted.push(Posted::Port { port, data: data.to_vec() });
        Ok(())
    }
    fn ymm(&mut self, index: u8) -> [u8; 32] {
        self.ymm[usize::from(index)]
    }
    fn set_xmm(&mut self, index: u8, value: &[u8; 16]) {
        self.ymm[usize::from(index)][..16].copy_from_slice(value);
    }
    fn set_ymm(&mut self, index: u8, value: &[u8; 32]) {
        self.ymm[usize::from(index)] = *value;
    }
    fn x87_control(&mut self) -> u16 {
        self.x87.0
    }
    fn x87_status(&mut self) -> u16 {
        self.x87.1
    }
    fn mmx(&mut self, index: u8) -> u64 {
        self.mmx[usize::from(index)]
    }
    fn set_mmx(&mut self, index: u8, value: u64) {
        self.mmx[usize::from(index)] = value;
    }
    fn invlpg(&mut self, linear: u64) {
        self.invalidated.push(linear);
    }
    fn commit(&mut self) {
        self.log.clear();
        self.used = 0;
        self.changed = false;
        self.commits += 1;
    }
    fn pause(&self) -> bool {
        self.pause || !self.posted.is_empty()
    }
}
