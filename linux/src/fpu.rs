//! The guest's FPU.

use crate::{errno::check, lend::lend, shim, shim::KFpu};
use core::ptr::NonNull;
use host::{Errno, Fpu, try_filled};

/// A counted reference to the kernel's `struct fpu_guest`.
pub struct KernelFpu(NonNull<KFpu>);

// SAFETY: the object is used by whoever holds `&mut` or `&`, of the one reference that is used; the kernel ties it to no task while it
// is not loaded, and it is loaded and put within one KVM_RUN.
unsafe impl Send for KernelFpu {}

/// Offsets in the XSAVE area (APM vol 2, 11.5.9; the same as FXSAVE up to 512).
const MXCSR: usize = 24;
const XSTATE_BV: usize = 512;
/// Reset values.
const FCW_RESET: u16 = 0x37f;
const MXCSR_RESET: u32 = 0x1f80;
/// x87 and SSE state.
const FP_SSE: u64 = 3;

impl KernelFpu {
    /// In reset state. Errors: ENOMEM.
    pub fn new() -> Result<Self, Errno> {
        NonNull::new(shim::hsave_fpu_new()).map(Self).ok_or(Errno::ENOMEM)
    }

    /// `buf` holds at least `user_size` bytes.
    fn set_all(&mut self, buf: &[u8], xcr0: u64, pkru: &mut u32) -> Result<(), Errno> {
        // SAFETY: the kernel reads at most `user_size` bytes.
        check(unsafe { shim::hsave_fpu_set(self.0.as_ptr(), buf.as_ptr(), xcr0, pkru) }).map(|_| ())
    }
}

lend!(KernelFpu, Fpu, hsave_fpu_hold);

impl Fpu for KernelFpu {
    #[inline]
    fn load(&mut self) {
        // SAFETY: alive until `drop`; `put` follows in the same task.
        unsafe { shim::hsave_fpu_swap(self.0.as_ptr(), true) }
    }

    #[inline]
    fn put(&mut self) {
        // SAFETY: as above, after `load`.
        unsafe { shim::hsave_fpu_swap(self.0.as_ptr(), false) }
    }

    fn user_size(&self) -> usize {
        // SAFETY: alive until `drop`.
        unsafe { shim::hsave_fpu_user_size(self.0.as_ptr()) }
    }

    fn get(&self, buf: &mut [u8], xcr0: u64, pkru: u32) {
        let size = buf.len().min(self.user_size()) as u32;
        // SAFETY: the kernel writes at most `size` bytes. It only reads the object.
        unsafe { shim::hsave_fpu_get(self.0.as_ptr(), buf.as_mut_ptr(), size, xcr0 | FP_SSE, pkru) }
    }

    fn set(&mut self, buf: &[u8], supported_xcr0: u64, pkru: &mut u32) -> Result<(), Errno> {
        let size = self.user_size();
        if buf.len() >= size {
            return self.set_all(buf, supported_xcr0, pkru);
        }
        let mut padded = try_filled(0, size)?;
        for (to, from) in padded.iter_mut().zip(buf) {
            *to = *from;
        }
        self.set_all(&padded, supported_xcr0, pkru)
    }

    fn vector(&self, n: u8) -> [u8; 32] {
        let mut out = [0; 32];
        // SAFETY: 32 bytes; the caller has the state loaded.
        unsafe { shim::hsave_fpu_vector_get((n & 15).into(), out.as_mut_ptr()) };
        out
    }

    fn set_vector(&mut self, n: u8, value: &[u8; 32], vex: bool) {
        // SAFETY: 32 bytes; the caller has the state loaded.
        unsafe { shim::hsave_fpu_vector_set((n & 15).into(), value.as_ptr(), vex) }
    }

    fn x87_control(&self) -> u16 {
        // SAFETY: the caller has the state loaded.
        unsafe { shim::hsave_fpu_x87_control() }
    }

    fn x87_status(&self) -> u16 {
        // SAFETY: as above.
        unsafe { shim::hsave_fpu_x87_status() }
    }

    fn mmx(&mut self, n: u8) -> u64 {
        // SAFETY: as above, and no x87 exception waits, which this would raise.
        unsafe { shim::hsave_fpu_mmx_get((n & 7).into()) }
    }

    fn set_mmx(&mut self, n: u8, value: u64) {
        // SAFETY: as above.
        unsafe { shim::hsave_fpu_mmx_set((n & 7).into(), value) }
    }

    fn reset(&mut self) -> Result<(), Errno> {
        // Components that the header does not name go to their initial state.
        let mut image = try_filled(0u8, self.user_size())?;
        let fields: [(usize, &[u8]); 3] =
            [(0, &FCW_RESET.to_le_bytes()), (MXCSR, &MXCSR_RESET.to_le_bytes()), (XSTATE_BV, &FP_SSE.to_le_bytes())];
        for (at, bytes) in fields {
            for (to, from) in image.iter_mut().skip(at).zip(bytes) {
                *to = *from;
            }
        }
        self.set_all(&image, FP_SSE, &mut 0)
    }
}

impl Drop for KernelFpu {
    fn drop(&mut self) {
        // SAFETY: our reference; it is not loaded: KVM_RUN pairs `load` and `put`.
        unsafe { shim::hsave_fpu_free(self.0.as_ptr()) }
    }
}
