//! The state-save area of system management mode, 512 bytes at SMBASE + FE00h (APM volume 2, 10.2.3, table 10-1), and the one of
//! a processor without long mode, which KVM's guests know as that of the P6 family.
//!
//! Only the places count: the area is guest memory, and is read and written byte by byte. Fields that nothing here uses are
//! named by their offset.

use crate::segment::Segment;

/// Bytes of either area.
pub const SMRAM_SIZE: usize = 512;
/// Where it begins, from SMBASE on.
pub const SMRAM_OFFSET: u64 = 0xfe00;
/// Where the handler begins, from SMBASE on.
pub const SMM_ENTRY: u64 = 0x8000;
/// SMBASE after reset.
pub const SMBASE_RESET: u32 = 0x3_0000;
/// Revision of the 64-bit layout: no I/O instruction restart, SMBASE can be moved.
pub const REVISION_64: u32 = 0x2_0064;
/// Revision of the 32-bit layout.
pub const REVISION_32: u32 = 0x2_0000;

layout! {
    /// The area of a processor with long mode. Segments as in the VMCB, but their attributes are spread as in a descriptor.
    pub struct Smram64: 512 {
        /// ES, CS, SS, DS, FS, GS.
        0x000 => pub segments: [Segment; 6],
        /// GDTR.
        0x060 => pub gdtr: Segment,
        /// LDTR.
        0x070 => pub ldtr: Segment,
        /// IDTR.
        0x080 => pub idtr: Segment,
        /// TR.
        0x090 => pub tr: Segment,
        0x0a0 => _0a0: [u8; 43],
        /// Interrupt shadow (KVM_X86_SHADOW_INT_*): KVM's own, where the APM has nothing.
        0x0cb => pub int_shadow: u8,
        0x0cc => _0cc: [u8; 4],
        /// EFER.
        0x0d0 => pub efer: u64,
        0x0d8 => _0d8: [u8; 36],
        /// Revision.
        0x0fc => pub revision: u32,
        /// SMBASE: RSM takes it from here.
        0x100 => pub smbase: u32,
        0x104 => _104: [u8; 68],
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
        /// RFLAGS, of which 32 bits count.
        0x170 => pub rflags: u64,
        /// RIP.
        0x178 => pub rip: u64,
        /// The general registers, R15 first and RAX last.
        0x180 => pub gprs: [u64; 16],
    }
}

layout! {
    /// The area of a processor without long mode. Segments are three words: attributes as in a descriptor's upper half,
    /// limit, base.
    pub struct Smram32: 512 {
        0x000 => _000: [u8; 248],
        /// SMBASE.
        0x0f8 => pub smbase: u32,
        /// Revision.
        0x0fc => pub revision: u32,
        0x100 => _100: [u8; 20],
        /// CR4.
        0x114 => pub cr4: u32,
        0x118 => _118: [u8; 2],
        /// See [`Smram64::int_shadow`].
        0x11a => pub int_shadow: u8,
        0x11b => _11b: [u8; 17],
        /// DS, FS, GS.
        0x12c => pub data: [[u32; 3]; 3],
        /// IDTR.
        0x150 => pub idtr: [u32; 3],
        /// TR.
        0x15c => pub tr: [u32; 3],
        0x168 => _168: u32,
        /// GDTR.
        0x16c => pub gdtr: [u32; 3],
        /// LDTR.
        0x178 => pub ldtr: [u32; 3],
        /// ES, CS, SS.
        0x184 => pub code: [[u32; 3]; 3],
        /// ES, CS, SS, DS, FS, GS, LDTR, TR.
        0x1a8 => pub selectors: [u32; 8],
        /// DR7.
        0x1c8 => pub dr7: u32,
        /// DR6.
        0x1cc => pub dr6: u32,
        /// EAX, ECX, EDX, EBX, ESP, EBP, ESI, EDI.
        0x1d0 => pub gprs: [u32; 8],
        /// EIP.
        0x1f0 => pub eip: u32,
        /// EFLAGS.
        0x1f4 => pub eflags: u32,
        /// CR3.
        0x1f8 => pub cr3: u32,
        /// CR0.
        0x1fc => pub cr0: u32,
    }
}
