//! The save area of a guest with encrypted state (APM table B-4): what VMRUN loads for an SEV-ES guest and #VMEXIT
//! stores, general registers included. The host save area has the same layout from its offset 0x400.

use crate::Segment;

/// `np_control` bit 1: SEV.
pub const SEV_ENABLE: u64 = 1 << 1;
/// `np_control` bit 2: SEV-ES.
pub const SEV_ES_ENABLE: u64 = 1 << 2;

layout! {
    /// What is defined of the VMSA, which has a page to itself; as much as the host save area has room for.
    pub struct Vmsa: 0xc00 {
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
        /// GDTR.
        0x060 => pub gdtr: Segment,
        /// LDTR.
        0x070 => pub ldtr: Segment,
        /// IDTR.
        0x080 => pub idtr: Segment,
        /// TR.
        0x090 => pub tr: Segment,
        0x0a0 => reserved_0a0: [u8; 0x2b],
        /// CPL, 0..4.
        0x0cb => pub cpl: u8,
        0x0cc => reserved_0cc: u32,
        /// EFER.
        0x0d0 => pub efer: u64,
        0x0d8 => reserved_0d8: [u8; 0x68],
        /// XSS.
        0x140 => pub xss: u64,
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
        0x1e0 => reserved_1e0: [u8; 0x18],
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
        /// PAT.
        0x268 => pub g_pat: u64,
        0x270 => reserved_270: [u8; 0x78],
        /// PKRU.
        0x2e8 => pub pkru: u32,
        /// TSC_AUX.
        0x2ec => pub tsc_aux: u32,
        0x2f0 => reserved_2f0: [u8; 0x18],
        /// RCX.
        0x308 => pub rcx: u64,
        /// RDX.
        0x310 => pub rdx: u64,
        /// RBX.
        0x318 => pub rbx: u64,
        0x320 => reserved_320: u64,
        /// RBP.
        0x328 => pub rbp: u64,
        /// RSI.
        0x330 => pub rsi: u64,
        /// RDI.
        0x338 => pub rdi: u64,
        /// R8.
        0x340 => pub r8: u64,
        /// R9.
        0x348 => pub r9: u64,
        /// R10.
        0x350 => pub r10: u64,
        /// R11.
        0x358 => pub r11: u64,
        /// R12.
        0x360 => pub r12: u64,
        /// R13.
        0x368 => pub r13: u64,
        /// R14.
        0x370 => pub r14: u64,
        /// R15.
        0x378 => pub r15: u64,
        0x380 => reserved_380: [u8; 0x68],
        /// XCR0.
        0x3e8 => pub xcr0: u64,
        0x3f0 => reserved_3f0: [u8; 0x810],
    }
}

impl Vmsa {
    /// The general registers in the order of their encoding: RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub fn gprs(&self) -> [u64; 16] {
        [
            self.rax, self.rcx, self.rdx, self.rbx, self.rsp, self.rbp, self.rsi, self.rdi, self.r8, self.r9, self.r10,
            self.r11, self.r12, self.r13, self.r14, self.r15,
        ]
    }

    /// Writes them.
    pub fn set_gprs(&mut self, gprs: [u64; 16]) {
        [
            self.rax, self.rcx, self.rdx, self.rbx, self.rsp, self.rbp, self.rsi, self.rdi, self.r8, self.r9, self.r10,
            self.r11, self.r12, self.r13, self.r14, self.r15,
        ] = gprs;
    }
}
