//! The guest's FPU as a plain XSAVE area.

use host::{Errno, Fpu};
use parking_lot::Mutex;
use std::sync::Arc;

/// Bytes of the user format.
const SIZE: usize = 4096;

/// One vCPU's FPU: a handle.
pub struct SimFpu(Arc<Mutex<Area>>);

crate::lent::lend!(SimFpu = Fpu);

impl SimFpu {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Area::new())))
    }

    /// Between `load` and `put`.
    pub fn is_loaded(&self) -> bool {
        self.0.lock().loaded
    }
}

impl Fpu for SimFpu {
    fn load(&mut self) {
        self.0.lock().load();
    }
    fn put(&mut self) {
        self.0.lock().put();
    }
    fn user_size(&self) -> usize {
        SIZE
    }
    fn get(&self, buf: &mut [u8], xcr0: u64, pkru: u32) {
        self.0.lock().get(buf, xcr0, pkru);
    }
    fn set(&mut self, buf: &[u8], supported_xcr0: u64, pkru: &mut u32) -> Result<(), Errno> {
        self.0.lock().set(buf, supported_xcr0, pkru)
    }
    fn vector(&self, n: u8) -> [u8; 32] {
        self.0.lock().vector(n)
    }
    fn set_vector(&mut self, n: u8, value: &[u8; 32], vex: bool) {
        self.0.lock().set_vector(n, value, vex);
    }
    fn x87_control(&self) -> u16 {
        self.0.lock().x87_control()
    }
    fn x87_status(&self) -> u16 {
        self.0.lock().x87_status()
    }
    fn mmx(&mut self, n: u8) -> u64 {
        self.0.lock().mmx(n)
    }
    fn set_mmx(&mut self, n: u8, value: u64) {
        self.0.lock().set_mmx(n, value);
    }
    fn reset(&mut self) -> Result<(), Errno> {
        self.0.lock().reset()
    }
}

/// What it is to.
struct Area {
    area: Box<[u8; SIZE]>,
    /// Between `load` and `put`.
    loaded: bool,
}

impl Area {
    fn new() -> Self {
        let mut area = Box::new([0; SIZE]);
        area[0..2].copy_from_slice(&0x37fu16.to_le_bytes());
        area[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
        Self { area, loaded: false }
    }
}

impl Area {
    /// TOP becomes 0, and the registers, which the area has from TOP on, keep their places; all are valid.
    fn use_mmx(&mut self) {
        assert!(self.loaded && self.x87_status() & 0x80 == 0, "not in the registers, or to be faulted");
        let top = usize::from(self.area[3] >> 3 & 7);
        self.area[3] &= !0x38;
        self.area[32..160].rotate_right(16 * top);
        self.area[4] = 0xff;
    }
}

impl Fpu for Area {
    fn load(&mut self) {
        assert!(!self.loaded, "loaded twice");
        self.loaded = true;
    }
    fn put(&mut self) {
        assert!(self.loaded, "put without load");
        self.loaded = false;
    }
    fn user_size(&self) -> usize {
        SIZE
    }
    fn get(&self, buf: &mut [u8], xcr0: u64, _pkru: u32) {
        let n = buf.len().min(SIZE);
        buf[..n].copy_from_slice(&self.area[..n]);
        if let Some(present) = buf.get_mut(512..520) {
            for (byte, kept) in present.iter_mut().zip((xcr0 | 3).to_le_bytes()) {
                *byte &= kept;
            }
        }
    }
    fn set(&mut self, buf: &[u8], supported_xcr0: u64, _pkru: &mut u32) -> Result<(), Errno> {
        let word =
            |at: usize| buf.get(at..at + 8).map_or(0, |b| u64::from_le_bytes(b.try_into().expect("eight bytes")));
        if word(512) & !supported_xcr0 != 0 || word(520) != 0 || (word(24) as u32) >> 16 != 0 {
            return Err(Errno::EINVAL);
        }
        let n = buf.len().min(SIZE);
        self.area[..n].copy_from_slice(&buf[..n]);
        Ok(())
    }
    fn vector(&self, n: u8) -> [u8; 32] {
        assert!(self.loaded, "not in the registers");
        let mut v = [0; 32];
        let at = 160 + 16 * usize::from(n & 15);
        v[..16].copy_from_slice(&self.area[at..at + 16]);
        let high = 576 + 16 * usize::from(n & 15);
        v[16..].copy_from_slice(&self.area[high..high + 16]);
        v
    }
    fn set_vector(&mut self, n: u8, value: &[u8; 32], vex: bool) {
        assert!(self.loaded, "not in the registers");
        let at = 160 + 16 * usize::from(n & 15);
        self.area[at..at + 16].copy_from_slice(&value[..16]);
        if vex {
            let high = 576 + 16 * usize::from(n & 15);
            self.area[high..high + 16].copy_from_slice(&value[16..]);
        }
    }
    fn x87_control(&self) -> u16 {
        assert!(self.loaded, "not in the registers");
        u16::from_le_bytes([self.area[0], self.area[1]])
    }
    fn x87_status(&self) -> u16 {
        assert!(self.loaded, "not in the registers");
        u16::from_le_bytes([self.area[2], self.area[3]])
    }
    fn mmx(&mut self, n: u8) -> u64 {
        self.use_mmx();
        let at = 32 + 16 * usize::from(n & 7);
        u64::from_le_bytes(self.area[at..at + 8].try_into().expect("eight bytes"))
    }
    fn set_mmx(&mut self, n: u8, value: u64) {
        self.use_mmx();
        let at = 32 + 16 * usize::from(n & 7);
        self.area[at..at + 8].copy_from_slice(&value.to_le_bytes());
        self.area[at + 8..at + 10].fill(0xff);
    }
    fn reset(&mut self) -> Result<(), Errno> {
        let loaded = self.loaded;
        *self = Self::new();
        self.loaded = loaded;
        Ok(())
    }
}
