//! Exit codes (APM appendix C) and the decoded exit.

use crate::{EventInj, Gpa};

/// Exit codes, as numbers.
pub mod code {
    #![allow(missing_docs)]
    pub const CR0_READ: u64 = 0x000;
    pub const CR4_READ: u64 = 0x004;
    pub const CR15_WRITE: u64 = 0x01f;
    pub const DR0_READ: u64 = 0x020;
    pub const DR15_WRITE: u64 = 0x03f;
    pub const EXCP0: u64 = 0x040;
    pub const EXCP31: u64 = 0x05f;
    pub const INTR: u64 = 0x060;
    pub const NMI: u64 = 0x061;
    pub const SMI: u64 = 0x062;
    pub const INIT: u64 = 0x063;
    pub const VINTR: u64 = 0x064;
    pub const CR0_SEL_WRITE: u64 = 0x065;
    pub const IDTR_READ: u64 = 0x066;
    pub const TR_WRITE: u64 = 0x06d;
    pub const RDTSC: u64 = 0x06e;
    pub const RDPMC: u64 = 0x06f;
    pub const PUSHF: u64 = 0x070;
    pub const POPF: u64 = 0x071;
    pub const CPUID: u64 = 0x072;
    pub const RSM: u64 = 0x073;
    pub const IRET: u64 = 0x074;
    pub const SWINT: u64 = 0x075;
    pub const INVD: u64 = 0x076;
    pub const PAUSE: u64 = 0x077;
    pub const HLT: u64 = 0x078;
    pub const INVLPG: u64 = 0x079;
    pub const INVLPGA: u64 = 0x07a;
    pub const IOIO: u64 = 0x07b;
    pub const MSR: u64 = 0x07c;
    pub const TASK_SWITCH: u64 = 0x07d;
    pub const FERR_FREEZE: u64 = 0x07e;
    pub const SHUTDOWN: u64 = 0x07f;
    pub const VMRUN: u64 = 0x080;
    pub const VMMCALL: u64 = 0x081;
    pub const VMLOAD: u64 = 0x082;
    pub const VMSAVE: u64 = 0x083;
    pub const STGI: u64 = 0x084;
    pub const CLGI: u64 = 0x085;
    pub const SKINIT: u64 = 0x086;
    pub const RDTSCP: u64 = 0x087;
    pub const ICEBP: u64 = 0x088;
    pub const WBINVD: u64 = 0x089;
    pub const MONITOR: u64 = 0x08a;
    pub const MWAIT: u64 = 0x08b;
    pub const MWAIT_COND: u64 = 0x08c;
    pub const XSETBV: u64 = 0x08d;
    pub const RDPRU: u64 = 0x08e;
    pub const EFER_WRITE_TRAP: u64 = 0x08f;
    pub const INVLPGB: u64 = 0x0a0;
    pub const INVPCID: u64 = 0x0a2;
    pub const NPF: u64 = 0x400;
    pub const VMGEXIT: u64 = 0x403;
    pub const INVALID: u64 = u64::MAX;
}

/// What ended a run of the guest, decoded once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The guest was not entered.
    None,
    /// Read of a control register. `gpr` only with decode assists.
    CrRead { n: u8, gpr: Option<u8> },
    /// Write of a control register.
    CrWrite { n: u8, gpr: Option<u8> },
    /// Selective CR0 write (other bits than TS and MP).
    Cr0SelWrite { gpr: Option<u8> },
    /// Read of a debug register.
    DrRead { n: u8, gpr: Option<u8> },
    /// Write of a debug register.
    DrWrite { n: u8, gpr: Option<u8> },
    /// An intercepted exception. For #PF `info2` holds CR2.
    Exception { vector: u8, error_code: u32, info2: u64 },
    /// A physical interrupt, already taken by the host.
    Intr,
    /// A physical NMI, already taken by the host.
    Nmi,
    /// A physical SMI, already taken.
    Smi,
    /// INIT.
    Init,
    /// The guest can take a virtual interrupt now.
    Vintr,
    /// RDTSC.
    Rdtsc,
    /// RDTSCP.
    Rdtscp,
    /// RDPMC.
    Rdpmc,
    /// CPUID.
    Cpuid,
    /// IRET (about to execute).
    Iret,
    /// RSM.
    Rsm,
    /// INVD.
    Invd,
    /// WBINVD or WBNOINVD.
    Wbinvd,
    /// PAUSE.
    Pause,
    /// HLT.
    Hlt,
    /// INVLPG; the linear address with decode assists.
    Invlpg { addr: Option<u64> },
    /// INVPCID.
    Invpcid,
    /// IN, OUT, INS, OUTS.
    Io(IoExit),
    /// RDMSR.
    Rdmsr,
    /// WRMSR.
    Wrmsr,
    /// Task switch.
    TaskSwitch { info1: u64, info2: u64 },
    /// Triple fault; the VMCB's guest state is undefined.
    Shutdown,
    /// VMMCALL.
    Vmmcall,
    /// VMRUN, VMLOAD, VMSAVE, STGI, CLGI, SKINIT, INVLPGA: SVM's own, with the exit code.
    Svm { code: u16 },
    /// MONITOR.
    Monitor,
    /// MWAIT.
    Mwait,
    /// XSETBV.
    Xsetbv,
    /// RDPRU.
    Rdpru,
    /// Nested page fault.
    Npf { gpa: Gpa, code: NpfCode },
    /// VMRUN refused the VMCB.
    Invalid,
    /// A code that this table does not know or that was never asked for.
    Unknown { code: u64, info1: u64, info2: u64 },
}

/// Raw exit information of the control area.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitInfo {
    /// EXITCODE.
    pub code: u64,
    /// EXITINFO1.
    pub info1: u64,
    /// EXITINFO2.
    pub info2: u64,
    /// EXITINTINFO: the event whose delivery the exit interrupted.
    pub int_info: EventInj,
}

/// An IOIO intercept (APM 15.10.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoExit {
    /// EXITINFO1.
    pub info: u64,
    /// RIP of the next instruction (EXITINFO2; present on every processor).
    pub next_rip: u64,
}

impl IoExit {
    /// First port.
    pub const fn port(self) -> u16 {
        (self.info >> 16) as u16
    }
    /// IN or INS.
    pub const fn input(self) -> bool {
        self.info & 1 != 0
    }
    /// INS or OUTS.
    pub const fn string(self) -> bool {
        self.info & 4 != 0
    }
    /// With a REP prefix.
    pub const fn rep(self) -> bool {
        self.info & 8 != 0
    }
    /// Operand size in bytes: 1, 2 or 4.
    pub const fn size(self) -> u8 {
        match self.info >> 4 & 7 {
            1 => 1,
            2 => 2,
            _ => 4,
        }
    }
}

/// Error code of a nested page fault (APM 15.25.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NpfCode(pub u64);

impl NpfCode {
    /// The nested translation was present.
    pub const fn present(self) -> bool {
        self.0 & 1 != 0
    }
    /// A write.
    pub const fn write(self) -> bool {
        self.0 & 2 != 0
    }
    /// A reserved bit was set in a nested entry.
    pub const fn reserved(self) -> bool {
        self.0 & 8 != 0
    }
    /// An instruction fetch.
    pub const fn fetch(self) -> bool {
        self.0 & 16 != 0
    }
    /// On the final guest physical address.
    pub const fn final_access(self) -> bool {
        self.0 & 1 << 32 != 0
    }
    /// While walking the guest's page tables.
    pub const fn table_walk(self) -> bool {
        self.0 & 1 << 33 != 0
    }
}

impl Exit {
    /// Decodes an exit; `assists` says whether EXITINFO1 has operands (decode assists).
    #[inline]
    pub fn decode(i: &ExitInfo, assists: bool) -> Self {
        match i.code {
            code::NPF => Exit::Npf { gpa: Gpa(i.info2), code: NpfCode(i.info1) },
            code::IOIO => Exit::Io(IoExit { info: i.info1, next_rip: i.info2 }),
            code::MSR if i.info1 & 1 == 0 => Exit::Rdmsr,
            code::MSR => Exit::Wrmsr,
            code::INTR => Exit::Intr,
            code::HLT => Exit::Hlt,
            _ => Self::decode_rare(i, assists),
        }
    }

    /// What comes less often.
    #[cold]
    fn decode_rare(i: &ExitInfo, assists: bool) -> Self {
        let gpr = if assists && i.info1 >> 63 != 0 { Some((i.info1 & 15) as u8) } else { None };
        let dr_gpr = if assists { Some((i.info1 & 15) as u8) } else { None };
        let n = (i.code & 15) as u8;
        match i.code {
            code::CPUID => Exit::Cpuid,
            code::VINTR => Exit::Vintr,
            code::VMMCALL => Exit::Vmmcall,
            code::CR0_READ..=0x00f => Exit::CrRead { n, gpr },
            0x010..=code::CR15_WRITE => Exit::CrWrite { n, gpr },
            code::DR0_READ..=0x02f => Exit::DrRead { n, gpr: dr_gpr },
            0x030..=code::DR15_WRITE => Exit::DrWrite { n, gpr: dr_gpr },
            code::EXCP0..=code::EXCP31 => {
                Exit::Exception { vector: (i.code & 31) as u8, error_code: i.info1 as u32, info2: i.info2 }
            }
            code::NMI => Exit::Nmi,
            code::SMI => Exit::Smi,
            code::INIT => Exit::Init,
            code::CR0_SEL_WRITE => Exit::Cr0SelWrite { gpr },
            code::RDTSC => Exit::Rdtsc,
            code::RDTSCP => Exit::Rdtscp,
            code::RDPMC => Exit::Rdpmc,
            code::IRET => Exit::Iret,
            code::RSM => Exit::Rsm,
            code::INVD => Exit::Invd,
            code::WBINVD => Exit::Wbinvd,
            code::PAUSE => Exit::Pause,
            code::INVLPG => Exit::Invlpg { addr: if assists { Some(i.info1) } else { None } },
            code::INVPCID => Exit::Invpcid,
            code::TASK_SWITCH => Exit::TaskSwitch { info1: i.info1, info2: i.info2 },
            code::SHUTDOWN => Exit::Shutdown,
            code::VMRUN | code::VMLOAD..=code::SKINIT | code::INVLPGA => Exit::Svm { code: i.code as u16 },
            code::MONITOR => Exit::Monitor,
            code::MWAIT | code::MWAIT_COND => Exit::Mwait,
            code::XSETBV => Exit::Xsetbv,
            code::RDPRU => Exit::Rdpru,
            code::INVALID | 0xffff_ffff => Exit::Invalid,
            code => Exit::Unknown { code, info1: i.info1, info2: i.info2 },
        }
    }
}
