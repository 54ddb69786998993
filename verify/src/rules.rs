//! Names and numbers that the rules refer to.

use arch::{Vmcb, Vmsa};
use core::mem::offset_of;
use switch::{CpuData, VcpuCtx};

/// The world switch.
pub const ENTRY: &str = "hsave_vcpu_run";
/// Its SEV-ES variant, which an object need not have, and what its mitigations' names end in.
pub const ENCRYPTED: &str = "hsave_es_vcpu_run";
pub const ENCRYPTED_SUFFIX: &str = "_es";
/// The mitigations that are reached by direct jump, and the labels that they jump back to.
pub const CLEAR_BUFFERS: &str = "hsave_mitigate_entry";
pub const RSB: &str = "hsave_mitigate_exit_rsb";
pub const UNTRAIN: &str = "hsave_mitigate_exit_untrain";
/// Compiled code that handles an exit with the guest's state still loaded, and where it jumps when it is done.
pub const FAST: &str = "hsave_fast";
pub const FAST_AGAIN: &str = "hsave_fast_again";
pub const FAST_LEAVE: &str = "hsave_fast_leave";
/// Most instructions of it on one way: interrupts wait so long.
pub const MOST_FAST: usize = 400;
/// What follows the name of a piece at its way back.
pub const DONE: &str = "_done";
/// The kernel's untraining, which returns without prediction of the guest's: the only calls before the first RET.
pub const UNTRAINING: &[&str] = &[
    "entry_untrain_ret",
    "retbleed_untrain_ret",
    "srso_untrain_ret",
    "srso_alias_untrain_ret",
    "zen_untrain_ret",
    "entry_ibpb",
    "write_ibpb",
    "hsave_write_ibpb",
];
/// Functions that the caller may call with GIF clear.
pub const WITH_GIF_CLEAR: &[&str] = &["hsave_guest_enter", "hsave_guest_exit", "hsave_guest_interrupted", ENTRY];
/// Jumping there is a RET.
pub const RETURN_THUNK: &str = "__x86_return_thunk";
/// Going there is an indirect branch.
pub const INDIRECT_THUNK: &str = "__x86_indirect_";
/// The kernel's table of operations that hypervisors replace. Calls through it are made direct when the module is loaded.
pub const PARAVIRT_OPS: &str = "pv_ops";
/// The host's SPEC_CTRL, and our per-CPU data.
pub const HOST_SPEC_CTRL: &str = "x86_spec_ctrl_current";
pub const CPU_DATA: &str = "hsave_cpu_data";
/// Return address, callee-saved registers, three words of our own, and what RSB stuffing needs.
pub const MOST_STACK: usize = 8 * (1 + 6 + 3 + 4);
/// IA32_SPEC_CTRL.
pub const SPEC_CTRL: u64 = 0x48;
/// Registers that a function gives back (System V ABI): RBX, RBP, R12 to R15.
pub const CALLEE_SAVED: [u8; 6] = [3, 5, 12, 13, 14, 15];
/// Registers that carry the first three arguments: RDI, RSI, RDX.
pub const ARGUMENTS: [u8; 3] = [7, 6, 2];
/// Registers that carry arguments beyond the third: RCX, R8, R9.
pub const TOO_MANY_ARGUMENTS: [u8; 3] = [1, 8, 9];

impl Layout {
    /// The field of the vCPU at this offset; SPEC_CTRL is stored in halves.
    pub fn name_of(at: i64) -> Option<&'static str> {
        let fields = [
            ("vmcb01", Self::VMCB01),
            ("vmcb", Self::VMCB),
            ("spec_ctrl", Self::SPEC_CTRL),
            ("spec_ctrl's high half", Self::SPEC_CTRL + 4),
            ("faulted", Self::FAULTED),
            ("stack", Self::STACK),
            ("fast", Self::FAST),
        ];
        fields.iter().find(|(_, offset)| *offset == at).map(|(name, _)| *name)
    }

    /// One of the guest's registers is there.
    pub fn is_register(at: i64) -> bool {
        (Self::REGS..Self::VMCB01).contains(&at) && (at - Self::REGS) % 8 == 0
    }

    /// The field of the per-CPU data at this offset.
    pub fn cpu_name_of(at: i64) -> Option<&'static str> {
        [("hsave_pa", Self::HSAVE_PA), ("hsave_va", Self::HSAVE_VA)].iter().find(|f| f.1 == at).map(|f| f.0)
    }
}

/// Offsets in the structures of `switch`, from their types.
pub struct Layout;

impl Layout {
    pub const REGS: i64 = offset_of!(VcpuCtx, regs) as i64;
    pub const VMCB01: i64 = offset_of!(VcpuCtx, vmcb01) as i64;
    pub const VMCB: i64 = offset_of!(VcpuCtx, vmcb) as i64;
    pub const SPEC_CTRL: i64 = offset_of!(VcpuCtx, spec_ctrl) as i64;
    pub const FAULTED: i64 = offset_of!(VcpuCtx, faulted) as i64;
    pub const STACK: i64 = offset_of!(VcpuCtx, stack) as i64;
    pub const FAST: i64 = VcpuCtx::FAST as i64;
    pub const HSAVE_PA: i64 = offset_of!(CpuData, hsave_pa) as i64;
    pub const HSAVE_VA: i64 = offset_of!(CpuData, hsave_va) as i64;
    /// Where #VMEXIT of an SEV-ES guest finds the host's general registers in the host save area, by encoding; RAX and RSP
    /// the processor stores there itself.
    pub const HOST_GPRS: [Option<i64>; 16] = {
        const fn at(offset: usize) -> Option<i64> {
            Some((offset_of!(Vmcb, save) + offset) as i64)
        }
        [
            None,
            at(offset_of!(Vmsa, rcx)),
            at(offset_of!(Vmsa, rdx)),
            at(offset_of!(Vmsa, rbx)),
            None,
            at(offset_of!(Vmsa, rbp)),
            at(offset_of!(Vmsa, rsi)),
            at(offset_of!(Vmsa, rdi)),
            at(offset_of!(Vmsa, r8)),
            at(offset_of!(Vmsa, r9)),
            at(offset_of!(Vmsa, r10)),
            at(offset_of!(Vmsa, r11)),
            at(offset_of!(Vmsa, r12)),
            at(offset_of!(Vmsa, r13)),
            at(offset_of!(Vmsa, r14)),
            at(offset_of!(Vmsa, r15)),
        ]
    };
}
