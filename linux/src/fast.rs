//! `hsave_fast`: what the assembly of the world switch jumps to after each #VMEXIT.

use crate::platform::Kernel;
use core::arch::asm;
use switch::VcpuCtx;

/// Handles the exit, or leaves it to the way back to the host; see [`switch::handle_fast`].
/// Does not return, so that there is no RET to be predicted by what the guest trained.
///
/// # Safety
/// Reached by the jump in `hsave_vcpu_run` only, with its argument.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".noinstr.text")]
unsafe extern "C" fn hsave_fast(vcpu: *mut VcpuCtx) -> ! {
    // SAFETY: by contract. Both labels want the vCPU pointer in RDI and restore the stack pointer themselves.
    unsafe {
        if switch::handle_fast::<Kernel>(vcpu) {
            asm!("jmp hsave_fast_again", in("rdi") vcpu, options(noreturn))
        }
        asm!("jmp hsave_fast_leave", in("rdi") vcpu, options(noreturn))
    }
}
