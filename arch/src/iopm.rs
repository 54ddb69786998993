//! The I/O permission map (APM 15.10.1): a bit per port, 12 KiB because a wide access at port 0xffff looks beyond.

/// Bytes in the map.
pub const IOPM_SIZE: usize = 3 * 4096;

/// Byte and bit of a port; the byte is below 8192.
pub const fn bit(port: u16) -> (usize, u8) {
    (port as usize / 8, 1 << (port % 8))
}
