//! Panics: file and line in the kernel log, then BUG. Never acceptable, but the machine survives it.

use crate::shim;
use core::panic::PanicInfo;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let (file, line) = info.location().map_or(("?", 0), |l| (l.file(), l.line()));
    // SAFETY: the text is valid for its length. The call does not return, but the shim does not say so; `ud2` tells
    // objtool that nothing follows.
    unsafe {
        shim::hsave_bug(file.as_ptr(), file.len(), line);
        core::arch::asm!("ud2", options(noreturn));
    }
}
