//! Why KVM_RUN came back, read from the `kvm_run` page as a VMM reads it.

use abi::uapi::run::{IO_IN, at, exit, reason};
use sim::host::PageCells;

/// `kvm_run.exit_reason` with its part of the union.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Left {
    /// KVM_EXIT_IO; the data lies in the second page.
    Io { input: bool, size: u8, port: u16, count: u32 },
    /// KVM_EXIT_MMIO; `data` is as long as the access.
    Mmio { gpa: u64, write: bool, data: Vec<u8> },
    /// KVM_EXIT_HLT.
    Hlt,
    /// KVM_EXIT_IRQ_WINDOW_OPEN.
    Window,
    /// KVM_EXIT_SHUTDOWN.
    Shutdown,
    /// KVM_EXIT_FAIL_ENTRY.
    FailEntry { reason: u64 },
    /// KVM_EXIT_INTERNAL_ERROR.
    Internal { suberror: u32, data: Vec<u64> },
    /// KVM_EXIT_IOAPIC_EOI.
    Eoi { vector: u8 },
    /// KVM_EXIT_X86_RDMSR.
    Rdmsr { reason: u32, index: u32 },
    /// KVM_EXIT_X86_WRMSR.
    Wrmsr { reason: u32, index: u32, data: u64 },
    /// KVM_EXIT_HYPERCALL.
    Hypercall { nr: u64, args: [u64; 6] },
    /// KVM_EXIT_DEBUG.
    Debug { exception: u32, pc: u64, dr6: u64 },
    /// KVM_EXIT_SYSTEM_EVENT.
    SystemEvent { kind: u32 },
    /// KVM_EXIT_HYPERV with the words behind its type.
    Hyperv { kind: u32, words: [u64; 6] },
    /// KVM_EXIT_INTR.
    Intr,
    /// KVM_EXIT_MEMORY_FAULT.
    MemoryFault { gpa: u64 },
    /// KVM_EXIT_UNKNOWN: only the errno says why.
    Unknown,
    /// Another one.
    Other(u32),
}

impl Left {
    /// Reads the page.
    pub fn read(page: &PageCells) -> Self {
        match page.u32(at::EXIT_REASON) {
            reason::IO => Left::Io {
                input: page.u8(exit::IO_DIRECTION) == IO_IN,
                size: page.u8(exit::IO_SIZE),
                port: page.u16(exit::IO_PORT),
                count: page.u32(exit::IO_COUNT),
            },
            reason::MMIO => {
                let mut data = vec![0; (page.u32(exit::MMIO_LEN) as usize).min(8)];
                page.read(exit::MMIO_DATA, &mut data);
                Left::Mmio { gpa: page.u64(exit::MMIO_PHYS_ADDR), write: page.u8(exit::MMIO_IS_WRITE) != 0, data }
            }
            reason::HLT => Left::Hlt,
            reason::IRQ_WINDOW_OPEN => Left::Window,
            reason::SHUTDOWN => Left::Shutdown,
            reason::FAIL_ENTRY => Left::FailEntry { reason: page.u64(exit::FAIL_ENTRY_REASON) },
            reason::INTERNAL_ERROR => {
                // User space may have written anything since.
                let n = (page.u32(exit::INTERNAL_NDATA) as usize).min(16);
                let data = (0..n).map(|i| page.u64(exit::INTERNAL_DATA + 8 * i)).collect();
                Left::Internal { suberror: page.u32(exit::INTERNAL_SUBERROR), data }
            }
            reason::IOAPIC_EOI => Left::Eoi { vector: page.u8(exit::EOI_VECTOR) },
            reason::X86_RDMSR => Left::Rdmsr { reason: page.u32(exit::MSR_REASON), index: page.u32(exit::MSR_INDEX) },
            reason::X86_WRMSR => Left::Wrmsr {
                reason: page.u32(exit::MSR_REASON),
                index: page.u32(exit::MSR_INDEX),
                data: page.u64(exit::MSR_DATA),
            },
            reason::HYPERCALL => Left::Hypercall {
                nr: page.u64(exit::HYPERCALL_NR),
                args: std::array::from_fn(|i| page.u64(exit::HYPERCALL_ARGS + 8 * i)),
            },
            reason::DEBUG => Left::Debug {
                exception: page.u32(exit::DEBUG_EXCEPTION),
                pc: page.u64(exit::DEBUG_PC),
                dr6: page.u64(exit::DEBUG_DR6),
            },
            reason::SYSTEM_EVENT => Left::SystemEvent { kind: page.u32(exit::SYSTEM_EVENT_TYPE) },
            reason::HYPERV => Left::Hyperv {
                kind: page.u32(exit::HYPERV_TYPE),
                words: std::array::from_fn(|i| page.u64(exit::HYPERV_WORDS + 8 * i)),
            },
            reason::INTR => Left::Intr,
            reason::MEMORY_FAULT => Left::MemoryFault { gpa: page.u64(exit::MEMORY_FAULT_GPA) },
            reason::UNKNOWN => Left::Unknown,
            other => Left::Other(other),
        }
    }
}
