//! What one instruction needs from the virtual CPU that executes it, as a trait, and why it may stop.
//!
//! The contract (restart, reads before writes, one write per step) is in the crate documentation.

use crate::insn::Seg;

/// An exception for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Vector, 0 to 31.
    pub vector: u8,
    /// Error code, for the vectors that push one.
    pub error_code: Option<u32>,
    /// CR2 for #PF, the DR6 bits to set for #DB, else 0.
    pub payload: u64,
}

impl Exception {
    /// #DE, divide error.
    pub const DE: Exception = Exception { vector: 0, error_code: None, payload: 0 };
    /// #DB for an access to a debug register while DR7.GD is set (DR6.BD).
    pub const DB_ACCESS: Exception = Exception { vector: 1, error_code: None, payload: 1 << 13 };
    /// #UD, invalid opcode.
    pub const UD: Exception = Exception { vector: 6, error_code: None, payload: 0 };
    /// #NM, device not available.
    pub const NM: Exception = Exception { vector: 7, error_code: None, payload: 0 };
    /// #MF, x87 floating point.
    pub const MF: Exception = Exception { vector: 16, error_code: None, payload: 0 };
    /// #AC(0), alignment check.
    pub const AC: Exception = Exception { vector: 17, error_code: Some(0), payload: 0 };

    /// #NP, segment not present.
    pub const fn np(error_code: u32) -> Exception {
        Exception { vector: 11, error_code: Some(error_code), payload: 0 }
    }

    /// #SS, stack.
    pub const fn ss(error_code: u32) -> Exception {
        Exception { vector: 12, error_code: Some(error_code), payload: 0 }
    }

    /// #GP, general protection.
    pub const fn gp(error_code: u32) -> Exception {
        Exception { vector: 13, error_code: Some(error_code), payload: 0 }
    }

    /// #PF at `cr2`.
    pub const fn pf(error_code: u32, cr2: u64) -> Exception {
        Exception { vector: 14, error_code: Some(error_code), payload: cr2 }
    }
}

/// Why an instruction (or a decode) did not complete. Nothing of the step that stopped has been committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Inject this exception; RIP still points at the instruction.
    Fault(Exception),
    /// The machine has noted an access that only userspace can answer: leave to userspace, keep its answer in the read
    /// log and emulate the same instruction again.
    NeedUser,
    /// Not an instruction, or not a case, that this crate can execute: KVM_EXIT_INTERNAL_ERROR / EMULATION.
    Unhandleable,
}

impl From<Exception> for Stop {
    fn from(e: Exception) -> Stop {
        Stop::Fault(e)
    }
}

/// What kind of access a linear address is used for: decides permission checks and the #PF error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// By the instruction, at the current CPL.
    Data,
    /// A read that the same instruction will follow by a write to the same place: check write permission too, and
    /// report #PF as a write.
    Modify,
    /// By the processor itself (descriptor tables, TSS): supervisor whatever the CPL (APM vol. 2, 5.6.1).
    System,
    /// A write at the current CPL, by what cannot begin anew any more.
    Final,
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Segment {
    /// Visible selector.
    pub selector: u16,
    /// Base address (64 bits for FS, GS, LDTR and TR).
    pub base: u64,
    /// Limit in bytes, granularity applied.
    pub limit: u32,
    /// Attributes as in the VMCB (APM vol. 2, 15.5.1): type 3:0, S 4, DPL 6:5, P 7, AVL 8, L 9, D/B 10, G 11.
    pub attr: u16,
}

impl Segment {
    /// Present: a null selector in protected mode has this clear.
    pub const fn present(&self) -> bool {
        self.attr & 0x80 != 0
    }

    /// Code (as opposed to data) segment.
    pub const fn code(&self) -> bool {
        self.attr & 0x8 != 0
    }

    /// Data segment that may be written.
    pub const fn writable(&self) -> bool {
        self.attr & 0xa == 2
    }

    /// Data segment, or code segment that may be read.
    pub const fn readable(&self) -> bool {
        self.attr & 0xa != 8
    }

    /// Data segment that grows down: valid offsets are above the limit.
    pub const fn expand_down(&self) -> bool {
        self.attr & 0xc == 4
    }

    /// The D/B bit: 32-bit code or stack.
    pub const fn big(&self) -> bool {
        self.attr & 0x400 != 0
    }

    /// The L bit: 64-bit code.
    pub const fn long(&self) -> bool {
        self.attr & 0x200 != 0
    }

    /// Descriptor privilege level.
    pub const fn dpl(&self) -> u8 {
        ((self.attr >> 5) & 3) as u8
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// GDTR.
    Gdt,
    /// IDTR.
    Idt,
}

/// Contents of GDTR or IDTR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TableReg {
    /// Linear base address.
    pub base: u64,
    /// Offset of the last byte.
    pub limit: u16,
}

/// The virtual CPU an instruction acts on.
///
/// Register accessors cannot fail. Linear addresses are final: segmentation, canonical form and alignment have been
/// checked, paging has not. Accesses may cross a page; then either both pages are accessible or nothing happens.
pub trait Machine {
    /// General purpose register 0 (RAX) to 15 (R15), all 64 bits.
    fn gpr(&self, index: u8) -> u64;
    /// Sets a general purpose register; `value` is what all 64 bits become.
    fn set_gpr(&mut self, index: u8, value: u64);
    /// RIP, an offset into CS (in 64-bit mode: the linear address).
    fn rip(&self) -> u64;
    /// Sets RIP.
    fn set_rip(&mut self, value: u64);
    /// RFLAGS.
    fn rflags(&self) -> u64;
    /// Sets RFLAGS; bit 1 is already set in `value`.
    fn set_rflags(&mut self, value: u64);
    /// A segment register with its hidden part.
    fn segment(&self, seg: Seg) -> Segment;
    /// Loads a segment register; all checks have been made.
    fn set_segment(&mut self, seg: Seg, value: Segment);
    /// GDTR or IDTR.
    fn table(&self, which: Table) -> TableReg;
    /// Loads GDTR or IDTR.
    fn set_table(&mut self, which: Table, value: TableReg);
    /// Current privilege level: 0 in real mode, 3 in virtual-8086 mode.
    fn cpl(&self) -> u8;
    /// Control register 0, 2, 3, 4 or 8. Others are never asked for.
    fn cr(&self, n: u8) -> u64;
    /// Writes control register 0, 2, 3, 4 or 8 with everything that follows from it (mode switch, TLB, PDPTEs), or
    /// refuses the value with the fault that the processor would raise.
    fn set_cr(&mut self, n: u8, value: u64) -> Result<(), Stop>;
    /// Debug register 0 to 3, 6 or 7. Aliases, CR4.DE and DR7.GD have been dealt with.
    fn dr(&self, n: u8) -> u64;
    /// Writes debug register 0 to 3, 6 or 7, or refuses the value.
    fn set_dr(&mut self, n: u8, value: u64) -> Result<(), Stop>;
    /// EFER.
    fn efer(&self) -> u64;
    /// XCR0, for the checks of VEX instructions.
    fn xcr0(&self) -> u64;
    /// Can the processor use page tables of five levels, whatever CR4.LA57 is and the guest was told?
    fn has_la57(&self) -> bool;

    /// Reads `buf.len()` (1 to 15) instruction bytes at `linear`, with execute permission checked. The range does not
    /// cross a page.
    fn fetch(&mut self, linear: u64, buf: &mut [u8]) -> Result<(), Stop>;
    /// Reads memory. If a part is MMIO that userspace serves: answer from the read log, or note the access and return
    /// [`Stop::NeedUser`].
    fn read(&mut self, linear: u64, buf: &mut [u8], access: Access) -> Result<(), Stop>;
    /// Writes memory. MMIO writes are posted: put on a queue that goes to userspace after the instruction; that is a
    /// success. Naturally aligned writes of up to 8 bytes must be single accesses.
    fn write(&mut self, linear: u64, data: &[u8], access: Access) -> Result<(), Stop>;
    /// Would `write` of `len` bytes with this `access` succeed? No effect but the fault. Up to 4 bytes may cross a page, more (up to 1024)
    /// do not. `several` elements of `REP INS` are
    /// [`Stop::Unhandleable`] if they go to MMIO: a device gets them one by one.
    fn check_write(&mut self, linear: u64, len: usize, several: bool, access: Access) -> Result<(), Stop>;
    /// Atomically replaces `old` by `new` if memory still holds `old`; returns what memory held. `size` is 1, 2, 4, 8
    /// or 16. The place has been read with [`Access::Modify`] or [`Access::System`] in this step, whichever `access` is;
    /// [`Access::Data`] is the same as the former. On MMIO there is nothing to be atomic with:
    /// post the write of `new` and return `old`.
    fn cmpxchg(&mut self, linear: u64, size: u8, old: u128, new: u128, access: Access) -> Result<u128, Stop>;

    /// Reads `buf.len() / size` times from `port`, `size` (1, 2, 4) bytes each, permission checked. Userspace ports:
    /// answer from the read log, or note the access (it becomes one KVM_EXIT_IO with that count) and return
    /// [`Stop::NeedUser`].
    fn pio_in(&mut self, port: u16, size: u8, buf: &mut [u8]) -> Result<(), Stop>;
    /// For how many elements userspace has been asked in this step, if there is its answer to such a port read.
    fn port_answered(&self, port: u16, size: u8) -> Option<u32>;
    /// Writes 1, 2 or 4 bytes to `port`; posted like MMIO writes.
    fn pio_out(&mut self, port: u16, data: &[u8]) -> Result<(), Stop>;

    /// All 256 bits of YMM `index` (0 to 15).
    fn ymm(&mut self, index: u8) -> [u8; 32];
    /// Sets bits 127:0 of a vector register and leaves the others (legacy SSE).
    fn set_xmm(&mut self, index: u8, value: &[u8; 16]);
    /// Sets bits 255:0 of a vector register and clears those above (VEX).
    fn set_ymm(&mut self, index: u8, value: &[u8; 32]);

    /// The x87 control word (FCW).
    fn x87_control(&mut self) -> u16;
    /// The x87 status word (FSW); an exception that waits for the next instruction that looks is its ES, bit 7.
    fn x87_status(&mut self) -> u16;
    /// MMX register `index` (0 to 7). As any MMX instruction does, the access makes all x87 registers valid and TOP 0.
    fn mmx(&mut self, index: u8) -> u64;
    /// Sets an MMX register; the same applies.
    fn set_mmx(&mut self, index: u8, value: u64);

    /// Drops translations of the page at `linear`.
    fn invlpg(&mut self, linear: u64);

    /// A step (an instruction, or one iteration of a repeated one) is complete: forget the read log.
    fn commit(&mut self);
    /// Should a repeated string instruction pause now? True when the queue of posted writes is (nearly) full or must go
    /// out, or an event waits. Asked after each iteration but the last.
    fn pause(&self) -> bool;
}
