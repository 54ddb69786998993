//! ABI structs from and to bytes, and bytes from and to user memory.
//!
//! A struct is never reinterpreted in place: it is read field by field from a copy that the caller can no longer
//! change, and written into zeroed bytes, so that no padding of ours reaches user space.

use arch::Hva;
use host::{Errno, Host, Stop, try_push};

extern crate alloc;
use alloc::vec::Vec;

/// Something with a fixed place in an ABI struct.
pub trait Field: Copy {
    /// Bytes in the ABI.
    const SIZE: usize;
    /// Reads it from the start of `b`; missing bytes are zero.
    fn take(b: &[u8]) -> Self;
    /// Writes it to the start of `b`.
    fn give(&self, b: &mut [u8]);
}

/// A whole ABI struct.
pub trait Abi: Field {
    /// Its image.
    type Bytes: AsRef<[u8]> + AsMut<[u8]>;
    /// An image of zeros.
    const ZERO: Self::Bytes;
}

macro_rules! integers {
    ($($t:ty)*) => {$(
        impl Field for $t {
            const SIZE: usize = size_of::<$t>();
            #[inline]
            fn take(b: &[u8]) -> Self {
                b.first_chunk().map_or(0, |b| <$t>::from_le_bytes(*b))
            }
            #[inline]
            fn give(&self, b: &mut [u8]) {
                if let Some(b) = b.first_chunk_mut() {
                    *b = self.to_le_bytes();
                }
            }
        }
        impl Abi for $t {
            type Bytes = [u8; size_of::<$t>()];
            const ZERO: Self::Bytes = [0; size_of::<$t>()];
        }
    )*};
}
integers! { u8 u16 u32 u64 i32 }

impl<T: Field, const N: usize> Field for [T; N] {
    const SIZE: usize = T::SIZE * N;
    #[inline]
    fn take(b: &[u8]) -> Self {
        // INDEX: the number of the element, of an array whose size is a constant.
        core::array::from_fn(|i| T::take(b.get(i * T::SIZE..).unwrap_or(&[])))
    }
    #[inline]
    fn give(&self, b: &mut [u8]) {
        for (t, b) in self.iter().zip(b.chunks_mut(T::SIZE)) {
            t.give(b);
        }
    }
}

/// Declares ABI structs with the offset of every field. In the crate's own tests each is compared with the field of
/// the same name in `kvm-bindings` (under the name after `as`, where it differs: unions and anonymous structs).
macro_rules! abi {
    ($($(#[$m:meta])* struct $name:ident $(as $theirs:ident)?: $size:literal {
        $($(#[$fm:meta])* $off:literal => $f:ident $(as $their_f:ident)?: $t:ty,)*
    })*) => {$(
        arch::layout! {
            $(#[$m])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq)]
            pub struct $name: $size { $($(#[$fm])* $off => pub $f: $t,)* }
        }
        impl $name {
            /// Name, size, and name and offset of each field, to be compared with the kernel's headers.
            pub const LAYOUT: $crate::uapi::Layout = $crate::uapi::Layout {
                name: stringify!($name),
                size: $size,
                fields: &[$((stringify!($f), $off)),*],
            };
        }
        impl Default for $name {
            fn default() -> Self {
                $crate::codec::Field::take(&[])
            }
        }
        impl $crate::codec::Field for $name {
            const SIZE: usize = $size;
            #[inline]
            fn take(b: &[u8]) -> Self {
                Self { $($f: $crate::codec::Field::take(b.get($off..).unwrap_or(&[])),)* }
            }
            #[inline]
            fn give(&self, b: &mut [u8]) {
                $(self.$f.give(b.get_mut($off..).unwrap_or(&mut []));)*
            }
        }
        impl $crate::codec::Abi for $name {
            type Bytes = [u8; $size];
            const ZERO: Self::Bytes = [0; $size];
        }
        #[cfg(test)]
        const _: () = {
            $crate::codec::abi!(@theirs $name $($theirs)?);
            assert!(size_of::<Theirs>() == $size);
            $($crate::codec::abi!(@field $off $f $($their_f)?);)*
        };
    )*};
    (@theirs $name:ident) => { type Theirs = kvm_bindings::$name; };
    (@field $off:literal $f:ident) => { assert!(core::mem::offset_of!(Theirs, $f) == $off); };
    (@field $off:literal $f:ident $theirs:ident) => { assert!(core::mem::offset_of!(Theirs, $theirs) == $off); };
    (@theirs $name:ident $theirs:ident) => { type Theirs = kvm_bindings::$theirs; };
}
pub(crate) use abi;

/// Reads a struct from user memory. Errors: EFAULT.
#[inline]
pub fn get<H: Host, T: Abi>(host: &H, at: u64) -> Result<T, Errno> {
    let mut b = T::ZERO;
    read(host, at, b.as_mut())?;
    Ok(T::take(b.as_ref()))
}

/// Writes a struct to user memory. Errors: EFAULT.
#[inline]
pub fn put<H: Host, T: Abi>(host: &H, at: u64, value: &T) -> Result<(), Errno> {
    let mut b = T::ZERO;
    value.give(b.as_mut());
    write(host, at, b.as_ref())
}

/// Address of element `n` of an array of `T` that follows `header` bytes at `at`.
fn element<T: Field>(at: u64, header: usize, n: usize) -> u64 {
    at.wrapping_add(header as u64).wrapping_add((n as u64).wrapping_mul(T::SIZE as u64))
}

/// Reads `n` structs that follow a header of `header` bytes. The caller has limited `n`. Errors: EFAULT, ENOMEM.
pub fn get_array<H: Host, T: Abi>(host: &H, at: u64, header: usize, n: usize) -> Result<Vec<T>, Errno> {
    let mut v = Vec::new();
    v.try_reserve_exact(n).map_err(|_| Errno::ENOMEM)?;
    for i in 0..n {
        try_push(&mut v, get(host, element::<T>(at, header, i))?)?;
    }
    Ok(v)
}

/// Writes structs after a header of `header` bytes. Errors: EFAULT.
pub fn put_array<H: Host, T: Abi>(
    host: &H,
    at: u64,
    header: usize,
    items: impl IntoIterator<Item = T>,
) -> Result<(), Errno> {
    for (i, item) in items.into_iter().enumerate() {
        put(host, element::<T>(at, header, i), &item)?;
    }
    Ok(())
}

/// Copies from user memory. Errors: EFAULT.
pub fn read<H: Host>(host: &H, at: u64, buf: &mut [u8]) -> Result<(), Errno> {
    host.read_user(Hva(at), buf).map_err(errno)
}

/// Copies to user memory. Errors: EFAULT.
pub fn write<H: Host>(host: &H, at: u64, buf: &[u8]) -> Result<(), Errno> {
    host.write_user(Hva(at), buf).map_err(errno)
}

fn errno(stop: Stop) -> Errno {
    match stop {
        // A copy into or out of a poisoned page is a failed copy to the caller of an ioctl.
        Stop::Fault | Stop::ReadOnly | Stop::Poison => Errno::EFAULT,
        Stop::Errno(e) => e,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uapi::*;
    use std::vec::Vec;

    /// Reads bytes that are all different, and writes them back: what is neither field nor padding comes back too.
    fn round_trip<T: Abi>(gaps: &[core::ops::Range<usize>]) {
        let image: Vec<u8> = (0..T::SIZE).map(|i| (i % 251) as u8 + 1).collect();
        let mut back = std::vec![0; T::SIZE];
        T::take(&image).give(&mut back);
        for (i, (a, b)) in image.iter().zip(&back).enumerate() {
            let want = if gaps.iter().any(|g| g.contains(&i)) { 0 } else { *a };
            assert_eq!(*b, want, "byte {i}");
        }
    }

    #[test]
    fn every_byte_has_its_place() {
        round_trip::<kvm_regs>(&[]);
        round_trip::<kvm_sregs>(&[]);
        round_trip::<kvm_sregs2>(&[]);
        round_trip::<kvm_fpu>(&[]);
        round_trip::<kvm_xcrs>(&[]);
        round_trip::<kvm_debugregs>(&[]);
        round_trip::<kvm_vcpu_events>(&[]);
        round_trip::<kvm_guest_debug>(&[]);
        round_trip::<kvm_cpuid_entry2>(&[]);
        round_trip::<kvm_ioeventfd>(&[]);
        round_trip::<kvm_clock_data>(&[]);
        round_trip::<kvm_msr_filter_range>(core::slice::from_ref(&(12..16)));
    }

    #[test]
    fn short_input_reads_as_zero() {
        let r = kvm_debugregs::take(&[1; 8]);
        assert_eq!((r.db[0], r.db[1], r.reserved), (0x0101_0101_0101_0101, 0, [0; 9]));
    }

    #[test]
    fn ioctl_numbers_known_from_traces() {
        use ioctl::*;
        assert_eq!(KVM_RUN, 0xae80);
        assert_eq!(KVM_GET_REGS, 0x8090_ae81);
        assert_eq!(KVM_SET_SREGS, 0x4138_ae84);
        assert_eq!(KVM_SET_USER_MEMORY_REGION, 0x4020_ae46);
        assert_eq!(KVM_SET_CPUID2, 0x4008_ae90);
        assert_eq!(KVM_GET_MSRS, 0xc008_ae88);
        assert_eq!(KVM_IRQFD, 0x4020_ae76);
        assert_eq!(KVM_GET_XSAVE, 0x9000_aea4);
    }
}
