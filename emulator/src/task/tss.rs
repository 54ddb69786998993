//! What a TSS holds of a task, and where (APM vol. 2, 12.2).

use crate::insn::Seg;
use crate::machine::{Access, Machine, Stop};

/// The segments in a TSS.
pub const IN_ORDER: [Seg; 6] = [Seg::Es, Seg::Cs, Seg::Ss, Seg::Ds, Seg::Fs, Seg::Gs];

/// Where a TSS keeps what (APM vol. 2, figures 12-4 and 12-5), in bytes.
#[derive(Clone, Copy)]
pub struct Layout {
    /// Of each field.
    pub size: u64,
    /// CR3; only the 32-bit TSS has it.
    pub cr3: Option<u64>,
    /// Instruction pointer, flags, eight registers, then the segments.
    pub ip: u64,
    /// ES, CS, SS, DS and perhaps FS, GS.
    pub segments: usize,
    pub ldt: u64,
    /// The T bit.
    pub trap: Option<u64>,
    /// Least limit.
    pub limit: u32,
}

const TSS32: Layout =
    Layout { size: 4, cr3: Some(0x1c), ip: 0x20, segments: 6, ldt: 0x60, trap: Some(0x64), limit: 0x67 };
const TSS16: Layout = Layout { size: 2, cr3: None, ip: 0x0e, segments: 4, ldt: 0x2a, trap: None, limit: 0x2b };

impl Layout {
    /// By the type in the descriptor.
    pub const fn of(kind: u16) -> Self {
        if kind & 8 != 0 { TSS32 } else { TSS16 }
    }

    /// Where register `n` is, in the order of their numbers.
    pub const fn register(&self, n: u64) -> u64 {
        self.ip + (2 + n) * self.size
    }

    /// Where selector `n` is.
    pub const fn segment(&self, n: u64) -> u64 {
        self.register(8 + n)
    }
}

/// A task's state as its TSS holds it.
#[derive(Clone, Copy, Default)]
pub struct Image {
    pub cr3: Option<u64>,
    pub ip: u64,
    pub flags: u64,
    pub registers: [u64; 8],
    pub segments: [u16; 6],
    pub ldt: u16,
    pub trap: bool,
}

impl Image {
    /// The selector of a segment.
    pub fn of(&self, seg: Seg) -> u16 {
        IN_ORDER.into_iter().zip(self.segments).find(|(s, _)| *s == seg).map_or(0, |(_, selector)| selector)
    }
}

/// A field of a descriptor table or a TSS, as the processor itself reads it.
pub fn read<M: Machine>(m: &mut M, linear: u64, size: usize) -> Result<u64, Stop> {
    let mut bytes = [0; 8];
    let Some(part) = bytes.get_mut(..size) else { return Err(Stop::Unhandleable) };
    m.read(linear & 0xffff_ffff, part, Access::System)?;
    Ok(u64::from_le_bytes(bytes))
}

/// The same way back.
pub fn write<M: Machine>(m: &mut M, linear: u64, value: u64, size: usize) -> Result<(), Stop> {
    let bytes = value.to_le_bytes();
    m.write(linear & 0xffff_ffff, bytes.get(..size).unwrap_or(&bytes), Access::System)
}

/// What the TSS at `base` holds.
pub fn load<M: Machine>(m: &mut M, base: u64, l: &Layout) -> Result<Image, Stop> {
    let mut field = |at: u64| read(m, base.wrapping_add(at), l.size as usize);
    let mut image = Image { ip: field(l.ip)?, flags: field(l.ip + l.size)?, ..Image::default() };
    image.cr3 = l.cr3.map(&mut field).transpose()?;
    for (n, r) in image.registers.iter_mut().enumerate() {
        *r = field(l.register(n as u64))?;
    }
    for (n, s) in image.segments.iter_mut().enumerate().take(l.segments) {
        *s = field(l.segment(n as u64))? as u16;
    }
    image.ldt = field(l.ldt)? as u16;
    image.trap = l.trap.map(&mut field).transpose()?.is_some_and(|t| t & 1 != 0);
    Ok(image)
}

/// What the current task is, when it goes on at `ip`.
pub fn current<M: Machine>(m: &M, ip: u64, flags: u64) -> Image {
    let mut image = Image { ip, flags, ..Image::default() };
    for (n, r) in image.registers.iter_mut().enumerate() {
        *r = m.gpr(n as u8);
    }
    for (s, seg) in image.segments.iter_mut().zip(IN_ORDER) {
        *s = m.segment(seg).selector;
    }
    image
}

/// What a switch writes to the old TSS: not CR3, LDT and the stacks of the inner levels.
pub fn save<M: Machine>(m: &mut M, base: u64, l: &Layout, i: &Image) -> Result<(), Stop> {
    let size = l.size as usize;
    write(m, base.wrapping_add(l.ip), i.ip, size)?;
    write(m, base.wrapping_add(l.ip + l.size), i.flags, size)?;
    for (n, r) in i.registers.iter().enumerate() {
        write(m, base.wrapping_add(l.register(n as u64)), *r, size)?;
    }
    for (n, s) in i.segments.iter().enumerate().take(l.segments) {
        write(m, base.wrapping_add(l.segment(n as u64)), (*s).into(), size)?;
    }
    Ok(())
}
