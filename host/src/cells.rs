//! Memory that somebody else reads or writes at the same time: hardware, user space, another CPU.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

/// Bytes in a page.
pub const PAGE_SIZE: usize = 4096;

/// A nested page table: 512 entries that the hardware walker and other CPUs read while they are written.
#[repr(C, align(4096))]
pub struct TableCells(pub [AtomicU64; 512]);

/// A page shared with user space (`kvm_run` and its neighbours): user space may change any byte at any time,
/// so every read is a fresh, single look.
#[repr(C, align(4096))]
pub struct PageCells(pub [AtomicU8; PAGE_SIZE]);

impl PageCells {
    /// Copies bytes out, starting at `at`; bytes beyond the page read as zero.
    pub fn read(&self, at: usize, buf: &mut [u8]) {
        let cells = self.0.get(at..).unwrap_or(&[]);
        let mut cells = cells.iter();
        for b in buf {
            *b = cells.next().map_or(0, |c| c.load(Relaxed));
        }
    }

    /// Copies bytes in, starting at `at`; bytes beyond the page are dropped.
    pub fn write(&self, at: usize, buf: &[u8]) {
        for (c, b) in self.0.get(at..).unwrap_or(&[]).iter().zip(buf) {
            c.store(*b, Relaxed);
        }
    }
}

macro_rules! int_access {
    ($($get:ident $set:ident $t:ty;)*) => {
        impl PageCells {
            $(
                /// Reads one little-endian integer at a byte offset.
                #[inline]
                pub fn $get(&self, at: usize) -> $t {
                    let mut b = [0; size_of::<$t>()];
                    self.read(at, &mut b);
                    <$t>::from_le_bytes(b)
                }
                /// Writes one little-endian integer at a byte offset.
                #[inline]
                pub fn $set(&self, at: usize, v: $t) {
                    self.write(at, &v.to_le_bytes());
                }
            )*
        }
    };
}
int_access! { u8 set_u8 u8; u16 set_u16 u16; u32 set_u32 u32; u64 set_u64 u64; }
