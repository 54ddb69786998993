//! The I/O permission map (APM 15.10.1): a bit per port, 12 KiB because a wide access at port 0xffff looks beyond.

/// Bytes in the map.
pub const IOPM_SIZE: usize = 3 * 4096;

/// Byte and bit of a port; the byte is below 8192.
pub const fn bit(port: u16) -> (usize, u8) {
    (port as usize / 8, 1 << (port % 8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_has_its_own_bit_and_a_wide_access_at_the_last_stays_in_the_map() {
        let mut map = [0u8; IOPM_SIZE];
        for port in 0..=u16::MAX {
            let (byte, bit) = bit(port);
            assert_eq!(bit.count_ones(), 1);
            assert_eq!(map[byte] & bit, 0, "port {port:#x} shares a bit");
            // The processor looks at bit `port` of the map as one string of bits.
            assert_eq!(byte * 8 + bit.trailing_zeros() as usize, port as usize);
            map[byte] |= bit;
        }
        assert!(map[..8192].iter().all(|b| *b == 0xff) && map[8192..].iter().all(|b| *b == 0));
        assert!((u16::MAX as usize + 4) / 8 < IOPM_SIZE);
    }
}
