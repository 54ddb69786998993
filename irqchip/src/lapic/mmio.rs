//! Access to the register page (xAPIC mode). APM volume 2 section 16.3.2: registers are 32 bits wide, 16 bytes apart.

use super::{Effect, Gp, Lapic, Mode};

impl Lapic {
    /// Reads `data.len()` bytes at `offset` in the page. An access may be narrower than a register but must stay inside
    /// its 4 bytes; otherwise, and where no register is, it reads as zero. In the other modes the page is a hole that
    /// reads as ones (KVM_X86_QUIRK_LAPIC_MMIO_HOLE).
    pub fn mmio_read(&mut self, offset: u32, data: &mut [u8], now_ns: u64) {
        if self.mode() != Mode::XApic {
            data.fill(0xff);
            return;
        }
        data.fill(0);
        let skip = (offset & 0xf) as usize;
        if skip + data.len() > 4 {
            return;
        }
        match self.read(offset & !0xf, now_ns) {
            Some(value) => {
                for (to, from) in data.iter_mut().zip(value.to_le_bytes().iter().skip(skip)) {
                    *to = *from;
                }
            }
            None => self.illegal_register(),
        }
    }

    /// Writes at `offset` in the page. Only aligned 4-byte writes reach a register; all others are dropped, and so are
    /// writes to read-only registers.
    pub fn mmio_write(&mut self, offset: u32, data: &[u8], now_ns: u64) -> Effect {
        let Ok(bytes) = <[u8; 4]>::try_from(data) else {
            return Effect::None;
        };
        if self.mode() != Mode::XApic || offset & 0xf != 0 {
            return Effect::None;
        }
        self.write(offset, u32::from_le_bytes(bytes), now_ns).unwrap_or_else(|Gp| {
            if self.read(offset, now_ns).is_none() {
                self.illegal_register();
            }
            Effect::None
        })
    }
}
