//! The privileged instructions that the switch executes itself, one function each.
//!
//! Where a fault is possible and harmless the instruction is in the kernel's exception table with the next one as
//! the place to go on: SVM instructions while the machine reboots (what follows meets the same fault in the
//! assembly, which decides), and registers with a value that the guest chose.

use crate::extable::extable;
use arch::HostPa;
use core::arch::asm;

/// One instruction, skipped if it faults.
macro_rules! skip_if_faults {
    ($insn:literal) => {
        concat!(
            "771: ",
            $insn,
            "\n772:\n",
            extable!(),
            "\n.balign 4\n.long 771b - .\n.long 772b - .\n.long 1\n.popsection" // EX_TYPE_DEFAULT
        )
    };
}

/// Clears the global interrupt flag: nothing, not even an NMI, is taken until [`stgi`].
///
/// # Safety
/// SVM is on on this CPU; [`stgi`] follows soon.
#[inline(always)]
pub unsafe fn clgi() {
    // SAFETY: by contract; memory accesses are not moved across it.
    unsafe { asm!(skip_if_faults!("clgi"), options(nostack, preserves_flags)) }
}

/// Sets the global interrupt flag.
///
/// # Safety
/// Pairs with [`clgi`].
#[inline(always)]
pub unsafe fn stgi() {
    // SAFETY: by contract.
    unsafe { asm!(skip_if_faults!("stgi"), options(nostack, preserves_flags)) }
}

/// Sets RFLAGS.IF. With GIF clear nothing is taken; but VMRUN lets physical interrupts end the guest only if it is
/// set (APM 15.21.1).
///
/// # Safety
/// GIF is clear.
#[inline(always)]
pub unsafe fn sti() {
    // SAFETY: by contract.
    unsafe { asm!("sti", options(nostack)) }
}

/// Clears RFLAGS.IF.
///
/// # Safety
/// GIF is clear.
#[inline(always)]
pub unsafe fn cli() {
    // SAFETY: by contract.
    unsafe { asm!("cli", options(nostack)) }
}

/// Saves FS, GS, TR, LDTR and the system-call MSRs to the VMCB-shaped page at `area`.
///
/// # Safety
/// The page is the switch's own.
#[inline(always)]
pub unsafe fn vmsave(area: HostPa) {
    // SAFETY: by contract.
    unsafe { asm!(skip_if_faults!("vmsave rax"), in("rax") area.0, options(nostack, preserves_flags)) }
}

/// The selector in LDTR.
#[inline(always)]
pub fn sldt() -> u16 {
    let ldt: u16;
    // SAFETY: reads a register.
    unsafe { asm!("sldt {0:x}", out(reg) ldt, options(nostack, nomem, preserves_flags)) }
    ldt
}

/// Writes an MSR; a value that the processor refuses is not written.
///
/// # Safety
/// The value leaves the host able to run.
#[inline(always)]
pub unsafe fn wrmsr(msr: u32, value: u64) {
    // SAFETY: by contract.
    unsafe {
        asm!(skip_if_faults!("wrmsr"), in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32,
             options(nostack, preserves_flags));
    }
}

/// Reads an MSR that exists; 0 if it does not.
#[inline(always)]
pub fn rdmsr(msr: u32) -> u64 {
    let (lo, hi): (u32, u32);
    // SAFETY: reading the MSRs that the switch names has no effect.
    unsafe {
        asm!(skip_if_faults!("rdmsr"), in("ecx") msr, inout("eax") 0 => lo, inout("edx") 0 => hi,
             options(nostack, nomem, preserves_flags));
    }
    lo as u64 | (hi as u64) << 32
}

/// The SPEC_CTRL that the host runs with now: the kernel's per-CPU `x86_spec_ctrl_current`; 0 without the MSR.
#[inline(always)]
pub fn host_spec_ctrl() -> u64 {
    let v: u64;
    // SAFETY: reads a variable of this CPU.
    unsafe {
        asm!("mov {}, qword ptr gs:[rip + x86_spec_ctrl_current]", out(reg) v,
             options(nostack, readonly, preserves_flags));
    }
    v
}

/// XCR0.
///
/// # Safety
/// CR4.OSXSAVE is set.
#[inline(always)]
pub unsafe fn xgetbv() -> u64 {
    let (lo, hi): (u32, u32);
    // SAFETY: by contract.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") lo, out("edx") hi, options(nostack, nomem, preserves_flags));
    }
    lo as u64 | (hi as u64) << 32
}

/// Writes XCR0; a value that the processor refuses is not written.
///
/// # Safety
/// CR4.OSXSAVE is set; the host's value is written back before the host uses the FPU.
#[inline(always)]
pub unsafe fn xsetbv(value: u64) {
    // SAFETY: by contract.
    unsafe {
        asm!(skip_if_faults!("xsetbv"), in("ecx") 0, in("eax") value as u32, in("edx") (value >> 32) as u32,
             options(nostack, preserves_flags));
    }
}

/// PKRU.
///
/// # Safety
/// CR4.PKE is set.
#[inline(always)]
pub unsafe fn rdpkru() -> u32 {
    let v: u32;
    // SAFETY: by contract.
    unsafe { asm!("rdpkru", in("ecx") 0, out("eax") v, out("edx") _, options(nostack, nomem, preserves_flags)) }
    v
}

/// Writes PKRU.
///
/// # Safety
/// CR4.PKE is set; the host's value is written back before user memory is touched.
#[inline(always)]
pub unsafe fn wrpkru(value: u32) {
    // SAFETY: by contract.
    unsafe { asm!("wrpkru", in("ecx") 0, in("eax") value, in("edx") 0, options(nostack, preserves_flags)) }
}

/// Writes DR0..DR3.
///
/// # Safety
/// The breakpoints of the host are given back afterwards; none is enabled (DR7) meanwhile.
#[inline(always)]
pub unsafe fn set_debug_addresses(dr: &[u64; 4]) {
    // SAFETY: by contract. CR4.DE has no say in DR0..DR3.
    unsafe {
        asm!("mov dr7, {4}", "mov dr0, {0}", "mov dr1, {1}", "mov dr2, {2}", "mov dr3, {3}",
             in(reg) dr[0], in(reg) dr[1], in(reg) dr[2], in(reg) dr[3], in(reg) arch::cr::DR7_RESET,
             options(nostack, preserves_flags));
    }
}
