//! What is known of the processor at a point of a path.

use crate::module::Place;

/// What a register or a stack slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    /// What this register (by encoding) held at the entry: an argument, or the caller's.
    Initial(u8),
    /// A field of the vCPU.
    Field(i64),
    /// The physical address of the host save area.
    HsavePa,
    /// Its address for the host.
    HsaveVa,
    /// The host's SPEC_CTRL.
    HostSpecCtrl,
    /// Bits 63:32 of the host's (true) or the guest's SPEC_CTRL.
    SpecCtrlHigh(bool),
    /// What RDMSR of SPEC_CTRL gave: bits 31:0 (false) or 63:32.
    ReadBack(bool),
    /// A constant.
    Const(u64),
    /// The guest's register.
    Guest(u8),
    /// Computed from something of the guest's.
    Tainted,
    /// Anything of the host's.
    Unknown,
}

/// What the flags are the result of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Flags {
    /// CMP of the host's SPEC_CTRL with the guest's.
    SpecCtrl,
    /// TEST of the flag argument: is the guest's SPEC_CTRL to be read back?
    ReadBack,
    /// Something of the guest's.
    Guest,
    /// Anything else.
    #[default]
    Other,
}

/// What the MSR holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SpecCtrl {
    /// The host's, and nobody has looked at the guest's yet.
    Host,
    /// The guest's was compared with it: they differ, and a write is due.
    WriteDue,
    /// The guest's (or the same value).
    Guest,
    /// After the guest: the host's has to come back.
    Dirty,
    /// Compared: they differ, and the write of the host's is due.
    RestoreDue,
    /// The host's again.
    Back,
}

/// How far the way through the guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Before VMLOAD of the guest.
    Entry,
    /// The guest's VMLOAD state is loaded.
    GuestLoaded,
    /// The guest has run.
    Ran,
    /// Its VMLOAD state is saved.
    Saved,
    /// The host's is back.
    HostLoaded,
    /// The return stack is the host's.
    RsbClean,
    /// Return prediction is the host's.
    Untrained,
}

/// The state of one path at one point.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// The guest's registers are encrypted: the processor swaps them.
    pub encrypted: bool,
    /// The host save area's general registers, by encoding (SEV-ES only): what nobody stored is nobody's word.
    pub area: [Value; 16],
    /// The next instruction.
    pub at: Place,
    /// Inside replacements of alternatives: where each ends, and where the path goes on then.
    pub resume: Vec<(Place, Place)>,
    /// By encoding.
    pub regs: [Value; 16],
    pub flags: Flags,
    /// Innermost last; the return address is not on it.
    pub stack: Vec<Value>,
    pub stage: Stage,
    pub spec_ctrl: SpecCtrl,
    /// The flag argument was asked whether it has to be read back.
    pub asked: bool,
    /// Halves of the guest's SPEC_CTRL that have to be read from the MSR and stored, a bit each.
    pub read_back: u8,
    /// Guest registers that are stored in the vCPU, a bit each.
    pub stored: u16,
    /// CPU buffers are cleared as the CPU needs it.
    pub buffers_clear: bool,
    /// The piece of the mitigations that the path is in.
    pub piece: Option<&'static str>,
    /// The vCPU says that compiled code is not to be entered: there was no exit.
    pub no_fast: bool,
    /// How deep the stack was when its pointer was stored in the vCPU.
    pub stack_noted: Option<usize>,
    /// The stack pointer is that of compiled code until it is loaded from there.
    pub stack_lost: bool,
    /// An SVM instruction has faulted: SVM is off, so all others do as well.
    pub faulted: bool,
}

impl State {
    pub fn new(at: Place, encrypted: bool) -> Self {
        Self {
            encrypted,
            area: [Value::Tainted; 16],
            at,
            resume: Vec::new(),
            regs: core::array::from_fn(|n| Value::Initial(n as u8)),
            flags: Flags::Other,
            stack: Vec::new(),
            stage: Stage::Entry,
            spec_ctrl: SpecCtrl::Host,
            asked: false,
            read_back: 0,
            stored: 0,
            buffers_clear: false,
            piece: None,
            no_fast: false,
            stack_noted: None,
            stack_lost: false,
            faulted: false,
        }
    }

    /// GS is the guest's. (If SVM is off it never became so.)
    pub fn gs_is_the_guests(&self) -> bool {
        !self.faulted && (Stage::GuestLoaded..Stage::HostLoaded).contains(&self.stage)
    }

    /// No RET and no indirect branch: SPEC_CTRL may be the guest's, or prediction is.
    pub fn prediction_is_restricted(&self) -> bool {
        match self.stage {
            Stage::Entry => self.spec_ctrl != SpecCtrl::Host,
            Stage::Untrained => self.spec_ctrl != SpecCtrl::Back,
            _ => true,
        }
    }
}
