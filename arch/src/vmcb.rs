//! The virtual machine control block (APM appendix B).

use crate::{EventInj, ExitInfo, Segment};

bitflags::bitflags! {
    /// Clean bits (APM 15.15.3): a set bit lets the processor keep the group cached.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct CleanBits: u32 {
        /// Intercepts, TSC offset, pause filter.
        const I = 1 << 0;
        /// IOPM and MSRPM addresses.
        const IOPM = 1 << 1;
        /// ASID.
        const ASID = 1 << 2;
        /// V_TPR, V_IRQ, ... (the virtual interrupt word).
        const TPR = 1 << 3;
        /// Nested paging: NCR3, G_PAT.
        const NP = 1 << 4;
        /// CR0, CR3, CR4, EFER.
        const CRX = 1 << 5;
        /// DR6, DR7.
        const DRX = 1 << 6;
        /// GDT, IDT.
        const DT = 1 << 7;
        /// CS, DS, SS, ES, CPL.
        const SEG = 1 << 8;
        /// CR2.
        const CR2 = 1 << 9;
        /// DBGCTL, BR_FROM, ...
        const LBR = 1 << 10;
        /// AVIC.
        const AVIC = 1 << 11;
    }

    /// Intercept vectors 3 and 4 (control area offsets 0x00c and 0x010) as one number, vector 3 in the low half.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Intercepts: u64 {
        const INTR = 1 << 0; const NMI = 1 << 1; const SMI = 1 << 2; const INIT = 1 << 3; const VINTR = 1 << 4;
        const CR0_SEL_WRITE = 1 << 5; const IDTR_READ = 1 << 6; const GDTR_READ = 1 << 7; const LDTR_READ = 1 << 8;
        const TR_READ = 1 << 9; const IDTR_WRITE = 1 << 10; const GDTR_WRITE = 1 << 11; const LDTR_WRITE = 1 << 12;
        const TR_WRITE = 1 << 13; const RDTSC = 1 << 14; const RDPMC = 1 << 15; const PUSHF = 1 << 16; const POPF = 1 << 17;
        const CPUID = 1 << 18; const RSM = 1 << 19; const IRET = 1 << 20; const INTN = 1 << 21; const INVD = 1 << 22;
        const PAUSE = 1 << 23; const HLT = 1 << 24; const INVLPG = 1 << 25; const INVLPGA = 1 << 26;
        const IOIO_PROT = 1 << 27; const MSR_PROT = 1 << 28; const TASK_SWITCH = 1 << 29; const FERR_FREEZE = 1 << 30;
        const SHUTDOWN = 1 << 31; const VMRUN = 1 << 32; const VMMCALL = 1 << 33; const VMLOAD = 1 << 34;
        const VMSAVE = 1 << 35; const STGI = 1 << 36; const CLGI = 1 << 37; const SKINIT = 1 << 38; const RDTSCP = 1 << 39;
        const ICEBP = 1 << 40; const WBINVD = 1 << 41; const MONITOR = 1 << 42; const MWAIT = 1 << 43;
        const MWAIT_COND = 1 << 44; const XSETBV = 1 << 45; const RDPRU = 1 << 46; const EFER_WRITE_TRAP = 1 << 47;
    }
}

/// Bit of intercept vector 5 (control area offset 0x014).
pub const INTERCEPT_INVPCID: u32 = 1 << 2;

/// Bits of `int_ctl` (control area offset 0x060).
pub mod int_ctl {
    #![allow(missing_docs)]
    pub const V_TPR: u32 = 0xff;
    pub const V_IRQ: u32 = 1 << 8;
    pub const V_GIF: u32 = 1 << 9;
    pub const V_INTR_PRIO: u32 = 0xf << 16;
    pub const V_IGN_TPR: u32 = 1 << 20;
    pub const V_INTR_MASKING: u32 = 1 << 24;
    pub const V_GIF_ENABLE: u32 = 1 << 25;
}

/// TLB_CONTROL values (APM 15.16.1).
pub mod tlb_control {
    #![allow(missing_docs)]
    pub const DO_NOTHING: u8 = 0;
    pub const FLUSH_ALL_ASID: u8 = 1;
    pub const FLUSH_ASID: u8 = 3;
}

/// `int_state` bit 0: the guest is in an interrupt shadow.
pub const INT_SHADOW: u64 = 1;
/// `np_control` bit 0: nested paging.
pub const NP_ENABLE: u64 = 1;

layout! {
    /// The control area (APM table B-1).
    pub struct ControlArea: 0x400 {
        /// CR read intercepts, a bit per register.
        0x000 => pub intercept_cr_read: u16,
        /// CR write intercepts.
        0x002 => pub intercept_cr_write: u16,
        /// DR read intercepts.
        0x004 => pub intercept_dr_read: u16,
        /// DR write intercepts.
        0x006 => pub intercept_dr_write: u16,
        /// Exception intercepts, a bit per vector.
        0x008 => pub intercept_exceptions: u32,
        /// Instruction intercepts, vector 3: low half of [`Intercepts`].
        0x00c => pub intercept_3: u32,
        /// Instruction intercepts, vector 4: high half of [`Intercepts`].
        0x010 => pub intercept_4: u32,
        /// Instruction intercepts, vector 5.
        0x014 => pub intercept_5: u32,
        0x018 => reserved_018: [u8; 0x24],
        /// PAUSE filter threshold.
        0x03c => pub pause_filter_threshold: u16,
        /// PAUSE filter count.
        0x03e => pub pause_filter_count: u16,
        /// Physical address of the I/O permission map.
        0x040 => pub iopm_base_pa: u64,
        /// Physical address of the MSR permission map.
        0x048 => pub msrpm_base_pa: u64,
        /// Added to the TSC.
        0x050 => pub tsc_offset: u64,
        /// Guest ASID.
        0x058 => pub asid: u32,
        /// TLB control.
        0x05c => pub tlb_control: u8,
        0x05d => reserved_05d: [u8; 3],
        /// Virtual interrupt control, bits 31:0.
        0x060 => pub int_ctl: u32,
        /// V_INTR_VECTOR.
        0x064 => pub int_vector: u32,
        /// Interrupt shadow, guest interrupt mask.
        0x068 => pub int_state: u64,
        /// EXITCODE.
        0x070 => pub exit_code: u64,
        /// EXITINFO1.
        0x078 => pub exit_info_1: u64,
        /// EXITINFO2.
        0x080 => pub exit_info_2: u64,
        /// EXITINTINFO.
        0x088 => pub exit_int_info: EventInj,
        /// Nested paging enable, SEV enables.
        0x090 => pub np_control: u64,
        /// AVIC APIC_BAR.
        0x098 => pub avic_apic_bar: u64,
        /// GHCB guest physical address.
        0x0a0 => pub ghcb_gpa: u64,
        /// EVENTINJ.
        0x0a8 => pub event_inj: EventInj,
        /// N_CR3.
        0x0b0 => pub nested_cr3: u64,
        /// LBR virtualization, virtual VMLOAD/VMSAVE.
        0x0b8 => pub virt_ext: u64,
        /// Clean bits.
        0x0c0 => pub clean: u32,
        0x0c4 => reserved_0c4: u32,
        /// Next sequential RIP.
        0x0c8 => pub next_rip: u64,
        /// Number of bytes fetched (decode assists).
        0x0d0 => pub insn_len: u8,
        /// The bytes.
        0x0d1 => pub insn_bytes: [u8; 15],
        /// AVIC backing page.
        0x0e0 => pub avic_backing_page: u64,
        0x0e8 => reserved_0e8: u64,
        /// AVIC logical table.
        0x0f0 => pub avic_logical_id: u64,
        /// AVIC physical table.
        0x0f8 => pub avic_physical_id: u64,
        0x100 => reserved_100: u64,
        /// VMSA pointer.
        0x108 => pub vmsa_pa: u64,
        0x110 => reserved_110: [u8; 0x2f0],
    }
}

layout! {
    /// The state save area (APM table B-2), at offset 0x400 of the VMCB.
    pub struct SaveArea: 0xc00 {
        /// ES.
        0x000 => pub es: Segment,
        /// CS.
        0x010 => pub cs: Segment,
        /// SS.
        0x020 => pub ss: Segment,
        /// DS.
        0x030 => pub ds: Segment,
        /// FS.
        0x040 => pub fs: Segment,
        /// GS.
        0x050 => pub gs: Segment,
        /// GDTR (base and limit only).
        0x060 => pub gdtr: Segment,
        /// LDTR.
        0x070 => pub ldtr: Segment,
        /// IDTR (base and limit only).
        0x080 => pub idtr: Segment,
        /// TR.
        0x090 => pub tr: Segment,
        0x0a0 => reserved_0a0: [u8; 0x2b],
        /// CPL, 0..4.
        0x0cb => pub cpl: u8,
        0x0cc => reserved_0cc: u32,
        /// EFER (SVME must be set).
        0x0d0 => pub efer: u64,
        0x0d8 => reserved_0d8: [u8; 0x70],
        /// CR4.
        0x148 => pub cr4: u64,
        /// CR3.
        0x150 => pub cr3: u64,
        /// CR0.
        0x158 => pub cr0: u64,
        /// DR7.
        0x160 => pub dr7: u64,
        /// DR6.
        0x168 => pub dr6: u64,
        /// RFLAGS.
        0x170 => pub rflags: u64,
        /// RIP.
        0x178 => pub rip: u64,
        0x180 => reserved_180: [u8; 0x58],
        /// RSP.
        0x1d8 => pub rsp: u64,
        /// S_CET.
        0x1e0 => pub s_cet: u64,
        /// SSP.
        0x1e8 => pub ssp: u64,
        /// ISST_ADDR.
        0x1f0 => pub isst_addr: u64,
        /// RAX.
        0x1f8 => pub rax: u64,
        /// STAR.
        0x200 => pub star: u64,
        /// LSTAR.
        0x208 => pub lstar: u64,
        /// CSTAR.
        0x210 => pub cstar: u64,
        /// SFMASK.
        0x218 => pub sfmask: u64,
        /// KernelGSBase.
        0x220 => pub kernel_gs_base: u64,
        /// SYSENTER_CS.
        0x228 => pub sysenter_cs: u64,
        /// SYSENTER_ESP.
        0x230 => pub sysenter_esp: u64,
        /// SYSENTER_EIP.
        0x238 => pub sysenter_eip: u64,
        /// CR2.
        0x240 => pub cr2: u64,
        0x248 => reserved_248: [u8; 0x20],
        /// The guest's PAT.
        0x268 => pub g_pat: u64,
        /// DBGCTL.
        0x270 => pub dbgctl: u64,
        /// BR_FROM.
        0x278 => pub br_from: u64,
        /// BR_TO.
        0x280 => pub br_to: u64,
        /// LASTEXCPFROM.
        0x288 => pub last_excp_from: u64,
        /// LASTEXCPTO.
        0x290 => pub last_excp_to: u64,
        0x298 => reserved_298: [u8; 0x48],
        /// SPEC_CTRL where it is virtualised.
        0x2e0 => pub spec_ctrl: u64,
        0x2e8 => reserved_2e8: [u8; 0x918],
    }
}

layout! {
    /// The VMCB: a page.
    pub struct Vmcb: 0x1000 {
        /// Control area.
        0x000 => pub control: ControlArea,
        /// State save area.
        0x400 => pub save: SaveArea,
    }
}

impl ControlArea {
    /// The exit as the hardware reported it.
    #[inline]
    pub fn exit_info(&self) -> ExitInfo {
        ExitInfo {
            code: self.exit_code,
            info1: self.exit_info_1,
            info2: self.exit_info_2,
            int_info: self.exit_int_info,
        }
    }
    /// The instruction bytes that decode assists fetched; at most 15.
    pub fn insn(&self) -> &[u8] {
        self.insn_bytes.get(..self.insn_len as usize & 15).unwrap_or(&[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Zero;

    #[test]
    fn the_instruction_bytes_never_reach_beyond_the_fifteen() {
        let mut c = ControlArea::ZERO;
        c.insn_bytes = core::array::from_fn(|n| n as u8 + 1);
        for len in 0..=u8::MAX {
            c.insn_len = len;
            let bytes = c.insn();
            // Bits 7:4 of the field are reserved (APM table B-1).
            assert_eq!(bytes.len(), (len & 15) as usize);
            assert!(bytes.iter().zip(1..).all(|(b, n)| *b == n));
        }
    }

    #[test]
    fn the_exit_is_read_from_its_four_fields() {
        let mut c = ControlArea::ZERO;
        (c.exit_code, c.exit_info_1, c.exit_info_2, c.exit_int_info) = (1, 2, 3, EventInj(4));
        let i = c.exit_info();
        assert_eq!((i.code, i.info1, i.info2, i.int_info), (1, 2, 3, EventInj(4)));
    }
}
