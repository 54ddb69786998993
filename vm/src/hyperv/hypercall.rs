//! Hypercalls (TLFS, "Hypercall Interface"): their input in registers or memory, their status, and those that are user
//! space's. None is done in parts: whatever the guest repeats is done at once.

use super::EXIT_HCALL;
use super::number::*;
use crate::Ctx;
use crate::memory::fault_outcome;
use crate::run::Next;
use crate::user::{Pending, UserExit};
use arch::{Exception, Gpa, cr::Cr0};
use emulator::Known;
use host::{Cpu, Fpu, Host, Stop as HostStop};
use mmu::PhysError;

/// XMM registers that carry input.
const XMM: u8 = 6;
/// Words in them.
pub(super) const XMM_WORDS: usize = 2 * XMM as usize;
/// Bits of the input value that have to be zero.
const RESERVED: u64 = 0x1f << 27 | 0xf << 44 | 0xf << 60;
/// Where the status holds how many repetitions are done.
pub(super) const REPS_DONE: u32 = 32;

/// Why a hypercall is not done.
pub(super) enum Refused {
    /// The guest gets this status.
    Status(u64),
    /// KVM_RUN is left first, or the instruction begins anew.
    Leave(Next),
}

impl Refused {
    /// HV_STATUS_INVALID_HYPERCALL_INPUT.
    pub const INPUT: Self = Self::Status(status::INVALID_HYPERCALL_INPUT);
}

/// What the guest has asked for.
pub(super) struct Call {
    /// The input value.
    value: u64,
    pub code: u16,
    /// The input is in registers.
    pub fast: bool,
    /// Words of input that the header says are there beside those that always are.
    pub var_count: u16,
    /// Repetitions, and the first that is not done.
    pub reps: u16,
    first: u16,
    /// Where the input is, or the first word of it.
    pub input: u64,
    /// Where the output goes, or the second word of the input.
    pub output: u64,
    /// What XMM0 to XMM5 hold, for the calls that use them.
    pub xmm: [u64; XMM_WORDS],
}

impl Call {
    fn repeats(&self) -> bool {
        self.reps != 0 || self.first != 0
    }

    fn in_xmm(&self) -> bool {
        use call::*;
        self.fast
            && matches!(
                self.code,
                FLUSH_ADDRESS_SPACE | FLUSH_ADDRESS_LIST | FLUSH_ADDRESS_SPACE_EX | FLUSH_ADDRESS_LIST_EX | SEND_IPI_EX
            )
    }

    /// Err unless the call is neither repeated nor has words beside its own.
    fn plain(&self) -> Result<(), Refused> {
        if self.repeats() || self.var_count != 0 { Err(Refused::INPUT) } else { Ok(()) }
    }
}

impl<H: Host> Ctx<'_, H> {
    /// VMMCALL of a guest whose hypercalls are Hyper-V's.
    #[cold]
    pub(crate) fn hyperv_call(&mut self) -> Next {
        if self.core.cpu.save().cpl != 0 || self.core.cr0() & Cr0::PE.bits() == 0 {
            return self.fault(Exception::UD);
        }
        let mut call = self.call();
        match self.do_call(&mut call) {
            Ok(status) | Err(Refused::Status(status)) => self.complete_hyperv_call(status),
            Err(Refused::Leave(next)) => next,
        }
    }

    /// The call's result, from here or user space.
    pub(crate) fn complete_hyperv_call(&mut self, result: u64) -> Next {
        if self.in_64bit_mode() {
            self.core.cpu.set_gpr(0, result);
        } else {
            self.core.cpu.set_gpr(0, result & 0xffff_ffff);
            self.core.cpu.set_gpr(2, result >> 32);
        }
        self.skip(Known::Vmmcall)
    }

    fn call(&self) -> Call {
        let gpr = |n| self.core.cpu.gpr(n);
        let pair = |high, low| gpr(high) << 32 | gpr(low) & 0xffff_ffff;
        // RCX, RDX and R8; or EDX:EAX, EBX:ECX and EDI:ESI.
        let (value, input, output) =
            if self.in_64bit_mode() { (gpr(1), gpr(2), gpr(8)) } else { (pair(2, 0), pair(3, 1), pair(7, 6)) };
        Call {
            value,
            code: value as u16,
            fast: value & 1 << 16 != 0,
            var_count: (value >> 17) as u16 & 0x3ff,
            reps: (value >> 32) as u16 & 0xfff,
            first: (value >> 48) as u16 & 0xfff,
            input,
            output,
            xmm: [0; XMM_WORDS],
        }
    }

    fn do_call(&mut self, call: &mut Call) -> Result<u64, Refused> {
        use call::*;
        let Some((features, enforce)) = self.core.hyperv.as_ref().and_then(|hv| hv.features.map(|f| (f, hv.enforce)))
        else {
            return Err(Refused::Status(status::INVALID_HYPERCALL_CODE));
        };
        if enforce && !features.has_call(call.code) {
            return Err(Refused::Status(status::ACCESS_DENIED));
        }
        if call.value & RESERVED != 0 {
            return Err(Refused::INPUT);
        }
        if call.in_xmm() {
            if enforce && features.others & feature::XMM_INPUT == 0 {
                return Err(Refused::Leave(self.fault(Exception::UD)));
            }
            self.read_xmm(call);
        }
        match call.code {
            NOTIFY_LONG_SPIN_WAIT => {
                call.plain()?;
                self.yield_to_others();
                Ok(status::SUCCESS)
            }
            SIGNAL_EVENT => {
                call.plain()?;
                match self.signal_event(call)? {
                    // Perhaps user space knows it.
                    status::INVALID_PORT_ID => self.call_user_space(call, true),
                    status => Ok(status),
                }
            }
            POST_MESSAGE => self.call_user_space(call, true),
            FLUSH_ADDRESS_LIST | FLUSH_ADDRESS_LIST_EX if call.reps == 0 || call.first != 0 => Err(Refused::INPUT),
            FLUSH_ADDRESS_SPACE | FLUSH_ADDRESS_SPACE_EX | SEND_IPI | SEND_IPI_EX if call.repeats() => {
                Err(Refused::INPUT)
            }
            FLUSH_ADDRESS_LIST | FLUSH_ADDRESS_SPACE | SEND_IPI if call.var_count != 0 => Err(Refused::INPUT),
            FLUSH_ADDRESS_LIST | FLUSH_ADDRESS_SPACE => self.flush(call),
            FLUSH_ADDRESS_LIST_EX | FLUSH_ADDRESS_SPACE_EX => self.flush_ex(call),
            SEND_IPI => self.send_ipi(call),
            SEND_IPI_EX => self.send_ipi_ex(call),
            POST_DEBUG_DATA | RETRIEVE_DEBUG_DATA if call.fast => Err(Refused::Status(status::INVALID_PARAMETER)),
            POST_DEBUG_DATA..=RESET_DEBUG_SESSION => {
                if !features.syndbg {
                    return Err(Refused::Status(status::INVALID_HYPERCALL_CODE));
                }
                if !self.vm.partition.msrs.lock().syndbg.uses_calls() {
                    return Err(Refused::Status(status::OPERATION_DENIED));
                }
                self.call_user_space(call, false)
            }
            EXTENDED_FIRST..=EXTENDED_LAST if call.fast => Err(Refused::Status(status::INVALID_PARAMETER)),
            EXTENDED_FIRST..=EXTENDED_LAST => self.call_user_space(call, false),
            _ => Err(Refused::Status(status::INVALID_HYPERCALL_CODE)),
        }
    }

    /// KVM_EXIT_HYPERV_HCALL. With `messages`, only a user space that has switched the interrupt controller on serves it.
    fn call_user_space(&mut self, call: &Call, messages: bool) -> Result<u64, Refused> {
        if messages {
            call.plain()?;
            if !self.synic_active() {
                return Err(Refused::INPUT);
            }
        }
        self.core.exit_words = [call.value, 0, call.input, call.output, 0, 0, 0, 0];
        self.core.pending = Pending::HypervCall;
        Err(Refused::Leave(Next::User(UserExit::Hyperv { kind: EXIT_HCALL })))
    }

    /// HvCallSignalEvent: the connection's eventfd. The number of the flag has to be zero.
    fn signal_event(&mut self, call: &Call) -> Result<u64, Refused> {
        let mut parameter = [call.input];
        if !call.fast {
            if call.input % 8 != 0 {
                return Ok(status::INVALID_ALIGNMENT);
            }
            match self.read_input(call.input, &mut parameter) {
                Err(Refused::Status(_)) => return Ok(status::INVALID_ALIGNMENT),
                done => done?,
            }
        }
        let [parameter] = parameter;
        if parameter & 0xffff_0000_0000 != 0 {
            return Ok(status::INVALID_PORT_ID);
        }
        match u32::try_from(parameter) {
            Ok(id) if id & !super::connection::CONN_ID_MASK == 0 => {
                let known = self.vm.partition.connections.signal(id);
                Ok(if known { status::SUCCESS } else { status::INVALID_PORT_ID })
            }
            _ => Ok(status::INVALID_HYPERCALL_INPUT),
        }
    }

    fn read_xmm(&mut self, call: &mut Call) {
        self.core.need_fpu();
        for (n, words) in (0..XMM).zip(call.xmm.chunks_exact_mut(2)) {
            let register = self.core.fpu.vector(n);
            for (word, bytes) in words.iter_mut().zip(register.chunks_exact(8)) {
                *word = bytes.first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
            }
        }
    }

    /// Words of input in guest memory.
    pub(super) fn read_input(&self, gpa: u64, words: &mut [u64]) -> Result<(), Refused> {
        let memory = self.shared_memory().guest_memory();
        let mut at = gpa;
        for word in words {
            let mut bytes = [0; 8];
            memory.read(Gpa(at), &mut bytes).map_err(|e| match e {
                PhysError::NoSlot(_) | PhysError::Host { stop: HostStop::Fault, .. } => Refused::INPUT,
                PhysError::Host { stop, .. } => Refused::Leave(fault_outcome(Gpa(at), stop)),
            })?;
            *word = u64::from_le_bytes(bytes);
            at = at.wrapping_add(8);
        }
        Ok(())
    }
}
