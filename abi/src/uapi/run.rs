//! `struct kvm_run`, the page that a vCPU shares with user space (KVM API document, section 5): offsets and exit
//! reasons. The page is reached through volatile cells, so there is no struct to overlay.

/// Offsets of the fields outside of the union.
pub mod at {
    #![allow(missing_docs)]
    pub const REQUEST_INTERRUPT_WINDOW: usize = 0;
    pub const IMMEDIATE_EXIT: usize = 1;
    pub const EXIT_REASON: usize = 8;
    pub const READY_FOR_INTERRUPT_INJECTION: usize = 12;
    pub const IF_FLAG: usize = 13;
    pub const FLAGS: usize = 14;
    pub const CR8: usize = 16;
    pub const APIC_BASE: usize = 24;
    /// Start of the union.
    pub const EXIT: usize = 32;
    pub const VALID_REGS: usize = 288;
    pub const DIRTY_REGS: usize = 296;
    pub const SYNC_REGS: usize = 304;
    pub const SYNC_SREGS: usize = 448;
    pub const SYNC_EVENTS: usize = 760;
}

/// KVM_SYNC_X86_*: the register sets of KVM_CAP_SYNC_REGS.
pub mod sync {
    #![allow(missing_docs)]
    pub const REGS: u64 = 1;
    pub const SREGS: u64 = 1 << 1;
    pub const EVENTS: u64 = 1 << 2;
    pub const ALL: u64 = REGS | SREGS | EVENTS;
}

/// Offsets in the union, counted from the start of the page.
pub mod exit {
    #![allow(missing_docs)]
    pub const IO_DIRECTION: usize = 32;
    pub const IO_SIZE: usize = 33;
    pub const IO_PORT: usize = 34;
    pub const IO_COUNT: usize = 36;
    pub const IO_DATA_OFFSET: usize = 40;
    pub const MMIO_PHYS_ADDR: usize = 32;
    pub const MMIO_DATA: usize = 40;
    pub const MMIO_LEN: usize = 48;
    pub const MMIO_IS_WRITE: usize = 52;
    pub const HYPERCALL_NR: usize = 32;
    pub const HYPERCALL_ARGS: usize = 40;
    pub const HYPERCALL_RET: usize = 88;
    pub const HYPERCALL_FLAGS: usize = 96;
    pub const MSR_ERROR: usize = 32;
    pub const MSR_REASON: usize = 40;
    pub const MSR_INDEX: usize = 44;
    pub const MSR_DATA: usize = 48;
    pub const DEBUG_EXCEPTION: usize = 32;
    pub const DEBUG_PC: usize = 40;
    pub const DEBUG_DR6: usize = 48;
    pub const DEBUG_DR7: usize = 56;
    pub const FAIL_ENTRY_REASON: usize = 32;
    pub const FAIL_ENTRY_CPU: usize = 40;
    pub const INTERNAL_SUBERROR: usize = 32;
    pub const INTERNAL_NDATA: usize = 36;
    pub const INTERNAL_DATA: usize = 40;
    pub const SYSTEM_EVENT_TYPE: usize = 32;
    pub const SYSTEM_EVENT_NDATA: usize = 36;
    pub const EOI_VECTOR: usize = 32;
    pub const HYPERV_TYPE: usize = 32;
    /// What is told of the kind; the MSR, where it is about one.
    pub const HYPERV_WORDS: usize = 40;
    pub const HYPERV_HCALL_RESULT: usize = 48;
    pub const HYPERV_SYNDBG_STATUS: usize = 56;
    pub const TPR_ACCESS_RIP: usize = 32;
    pub const TPR_ACCESS_IS_WRITE: usize = 40;
    pub const MEMORY_FAULT_FLAGS: usize = 32;
    pub const MEMORY_FAULT_GPA: usize = 40;
    pub const MEMORY_FAULT_SIZE: usize = 48;
}

/// KVM_EXIT_*.
pub mod reason {
    #![allow(missing_docs)]
    pub const UNKNOWN: u32 = 0;
    pub const IO: u32 = 2;
    pub const HYPERCALL: u32 = 3;
    pub const DEBUG: u32 = 4;
    pub const HLT: u32 = 5;
    pub const MMIO: u32 = 6;
    pub const IRQ_WINDOW_OPEN: u32 = 7;
    pub const SHUTDOWN: u32 = 8;
    pub const FAIL_ENTRY: u32 = 9;
    pub const INTR: u32 = 10;
    pub const SET_TPR: u32 = 11;
    pub const TPR_ACCESS: u32 = 12;
    pub const INTERNAL_ERROR: u32 = 17;
    pub const SYSTEM_EVENT: u32 = 24;
    pub const IOAPIC_EOI: u32 = 26;
    pub const HYPERV: u32 = 27;
    pub const X86_RDMSR: u32 = 29;
    pub const X86_WRMSR: u32 = 30;
    pub const DIRTY_RING_FULL: u32 = 31;
    pub const MEMORY_FAULT: u32 = 39;
}

/// `kvm_run.flags`: KVM_RUN_X86_SMM.
pub const RUN_X86_SMM: u16 = 1;

/// KVM_EXIT_IO_IN and KVM_EXIT_IO_OUT.
pub const IO_IN: u8 = 0;
/// See [`IO_IN`].
pub const IO_OUT: u8 = 1;
/// Where user space finds port data: the second page of the vCPU's mapping.
pub const PIO_DATA_OFFSET: u64 = 4096;
/// `sizeof(struct kvm_run)`; the rest of the page is zero.
pub const SIZE: usize = 2352;

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;
    use kvm_bindings::*;

    #[test]
    fn fields_as_in_the_header() {
        assert_eq!(size_of::<kvm_run>(), SIZE);
        assert_eq!(offset_of!(kvm_run, request_interrupt_window), at::REQUEST_INTERRUPT_WINDOW);
        assert_eq!(offset_of!(kvm_run, immediate_exit), at::IMMEDIATE_EXIT);
        assert_eq!(offset_of!(kvm_run, exit_reason), at::EXIT_REASON);
        assert_eq!(offset_of!(kvm_run, ready_for_interrupt_injection), at::READY_FOR_INTERRUPT_INJECTION);
        assert_eq!(offset_of!(kvm_run, if_flag), at::IF_FLAG);
        assert_eq!(offset_of!(kvm_run, flags), at::FLAGS);
        assert_eq!(offset_of!(kvm_run, cr8), at::CR8);
        assert_eq!(offset_of!(kvm_run, apic_base), at::APIC_BASE);
        assert_eq!(offset_of!(kvm_run, kvm_valid_regs), at::VALID_REGS);
        assert_eq!(offset_of!(kvm_run, kvm_dirty_regs), at::DIRTY_REGS);
        assert_eq!(offset_of!(kvm_run, s.regs.regs), at::SYNC_REGS);
        assert_eq!(offset_of!(kvm_run, s.regs.sregs), at::SYNC_SREGS);
        assert_eq!(offset_of!(kvm_run, s.regs.events), at::SYNC_EVENTS);
    }

    macro_rules! same {
        ($($($path:ident).+ => $at:ident)*) => {
            $(assert_eq!(offset_of!(kvm_run, __bindgen_anon_1.$($path).+), exit::$at);)*
        };
    }

    #[test]
    fn unions_as_in_the_header() {
        same! {
            io.direction => IO_DIRECTION
            io.size => IO_SIZE
            io.port => IO_PORT
            io.count => IO_COUNT
            io.data_offset => IO_DATA_OFFSET
            mmio.phys_addr => MMIO_PHYS_ADDR
            mmio.data => MMIO_DATA
            mmio.len => MMIO_LEN
            mmio.is_write => MMIO_IS_WRITE
            hypercall.nr => HYPERCALL_NR
            hypercall.args => HYPERCALL_ARGS
            hypercall.ret => HYPERCALL_RET
            hypercall.__bindgen_anon_1.flags => HYPERCALL_FLAGS
            msr.error => MSR_ERROR
            msr.reason => MSR_REASON
            msr.index => MSR_INDEX
            msr.data => MSR_DATA
            debug.arch.exception => DEBUG_EXCEPTION
            debug.arch.pc => DEBUG_PC
            debug.arch.dr6 => DEBUG_DR6
            debug.arch.dr7 => DEBUG_DR7
            fail_entry.hardware_entry_failure_reason => FAIL_ENTRY_REASON
            fail_entry.cpu => FAIL_ENTRY_CPU
            internal.suberror => INTERNAL_SUBERROR
            internal.ndata => INTERNAL_NDATA
            internal.data => INTERNAL_DATA
            system_event.type_ => SYSTEM_EVENT_TYPE
            system_event.ndata => SYSTEM_EVENT_NDATA
            eoi.vector => EOI_VECTOR
            hyperv.type_ => HYPERV_TYPE
            hyperv.u.synic.msr => HYPERV_WORDS
            hyperv.u.hcall.input => HYPERV_WORDS
            hyperv.u.hcall.result => HYPERV_HCALL_RESULT
            hyperv.u.syndbg.msr => HYPERV_WORDS
            hyperv.u.syndbg.status => HYPERV_SYNDBG_STATUS
            tpr_access.rip => TPR_ACCESS_RIP
            tpr_access.is_write => TPR_ACCESS_IS_WRITE
            memory_fault.flags => MEMORY_FAULT_FLAGS
            memory_fault.gpa => MEMORY_FAULT_GPA
            memory_fault.size => MEMORY_FAULT_SIZE
        }
    }

    #[test]
    fn reasons_as_in_the_header() {
        let pairs = [
            (reason::IO, KVM_EXIT_IO),
            (reason::HYPERCALL, KVM_EXIT_HYPERCALL),
            (reason::DEBUG, KVM_EXIT_DEBUG),
            (reason::HLT, KVM_EXIT_HLT),
            (reason::MMIO, KVM_EXIT_MMIO),
            (reason::IRQ_WINDOW_OPEN, KVM_EXIT_IRQ_WINDOW_OPEN),
            (reason::SHUTDOWN, KVM_EXIT_SHUTDOWN),
            (reason::FAIL_ENTRY, KVM_EXIT_FAIL_ENTRY),
            (reason::INTR, KVM_EXIT_INTR),
            (reason::SET_TPR, KVM_EXIT_SET_TPR),
            (reason::TPR_ACCESS, KVM_EXIT_TPR_ACCESS),
            (reason::INTERNAL_ERROR, KVM_EXIT_INTERNAL_ERROR),
            (reason::SYSTEM_EVENT, KVM_EXIT_SYSTEM_EVENT),
            (reason::IOAPIC_EOI, KVM_EXIT_IOAPIC_EOI),
            (reason::HYPERV, KVM_EXIT_HYPERV),
            (reason::X86_RDMSR, KVM_EXIT_X86_RDMSR),
            (reason::X86_WRMSR, KVM_EXIT_X86_WRMSR),
            (reason::DIRTY_RING_FULL, KVM_EXIT_DIRTY_RING_FULL),
            (reason::MEMORY_FAULT, KVM_EXIT_MEMORY_FAULT),
            (reason::UNKNOWN, KVM_EXIT_UNKNOWN),
        ];
        for (ours, theirs) in pairs {
            assert_eq!(ours, theirs);
        }
        assert_eq!(u32::from(RUN_X86_SMM), KVM_RUN_X86_SMM);
    }
}
