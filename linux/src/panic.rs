//! Panics, which are never acceptable: file and line go to the kernel log, and then
//!
//! - the machine stops, if the thread holds what others would spin for, or has interrupts off: as the kernel's own BUG in such
//!   a place stops it, only at once;
//! - else the thread dies, as by BUG. If it is in KVM_RUN it is taken out of it first, so that nothing of the kernel's points
//!   into the VM when its files are closed, and every other KVM_RUN of the VM ends with EIO. What sleeps for a lock that the
//!   thread held sleeps for ever.

use crate::{shim, thread};
use core::panic::PanicInfo;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let (file, line) = info.location().map_or(("?", 0), |l| (l.file(), l.line()));
    // SAFETY: the text is valid for its length. This thread uses nothing of what it is taken out of any more. The last call
    // does not return, but the shim does not say so; `ud2` tells objtool that nothing follows.
    unsafe {
        shim::hsave_panicked(file.as_ptr(), file.len(), line);
        shim::hsave_fpu_abandon();
        thread::abandon(shim::hsave_thread_abandon());
        shim::hsave_bug();
        core::arch::asm!("ud2", options(noreturn));
    }
}
