//! One vCPU's MSR permission map (APM 15.11).

use crate::{Platform, pages::Block};
use arch::{HostPa, msrpm::position};
use host::Errno;

/// The map. Everything is intercepted until the run loop says otherwise.
pub(crate) struct Msrpm<P: Platform>(Block<P, 1>);

impl<P: Platform> Msrpm<P> {
    /// Errors: ENOMEM.
    pub fn new() -> Result<Self, Errno> {
        let mut map = Self(Block::new()?);
        map.0.bytes().fill(0xff);
        Ok(map)
    }

    /// Physical address of the map.
    pub fn pa(&self) -> HostPa {
        self.0.pa()
    }

    /// Intercepts (true) or passes reads and writes of one MSR; MSRs outside of the map are always intercepted.
    pub fn set(&mut self, msr: u32, read: bool, write: bool) {
        let Some((byte, bit)) = position(msr) else { return };
        if let Some(b) = self.0.bytes().get_mut(byte) {
            *b = *b & !(3 << bit) | ((read as u8) | (write as u8) << 1) << bit;
        }
    }

    /// Are writes of the MSR intercepted?
    pub fn write_intercepted(&mut self, msr: u32) -> bool {
        let Some((byte, bit)) = position(msr) else { return true };
        self.0.bytes().get(byte).is_none_or(|b| b >> bit & 2 != 0)
    }
}
