//! KVM_RUN: reads what user space left in the `kvm_run` page, runs the vCPU, and writes why it came back
//! (KVM API document, 4.10 and section 5).
//!
//! User space may write the page at any time. So every field is looked at once, here, and never again.

use crate::sync;
use crate::uapi::run::{IO_IN, IO_OUT, PIO_DATA_OFFSET, RUN_X86_SMM, at, exit, reason};
use host::{Errno, Host, PAGE_SIZE, PageCells, SharedPage};
use vm::{Answer, Ctx, Next, Pending, RunRequest, UserExit};

/// How a KVM_RUN went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ran {
    /// It is over.
    Done,
    /// It is to be called again, with the VM in whatever engine it is then; user space takes no notice.
    HandOver,
}

/// One KVM_RUN. Errors: EINVAL (CR8, register sets), and those of [`Ctx::run`]. Whatever comes of it, the page says how things
/// stand.
pub fn run<H: Host>(ctx: &mut Ctx<'_, H>) -> Result<Ran, Errno> {
    let [page, ..] = &ctx.me.pages;
    let sets = sync::sets(page);
    let next = if ctx.resumes() {
        // The page has been looked at.
        ctx.go_on()
    } else {
        match asked(ctx, page, sets) {
            Ok((request, answer)) => ctx.run(request, answer),
            Err(errno) => Next::Fail(errno, UserExit::Unchanged),
        }
    };
    let (why, result) = match &next {
        Next::User(why) => (why, Ok(Ran::Done)),
        Next::Fail(errno, why) => (why, Err(*errno)),
        // User space takes no notice: the page stays as it is.
        Next::HandOver => return Ok(Ran::HandOver),
        // Nobody leaves the loop to go on with it.
        Next::Resume => (&UserExit::Interrupted, Err(Errno::EINTR)),
    };
    // `ready_for_interrupt_injection`, `if_flag` and `flags`.
    let flags = if ctx.in_smm() { RUN_X86_SMM } else { 0 };
    let state = u32::from(ctx.ready_for_interrupt()) | u32::from(ctx.if_flag()) << 8 | u32::from(flags) << 16;
    report(page, why, &ctx.core.exit_words, state);
    page.set_word(at::CR8 / 8, ctx.cr8());
    page.set_word(at::APIC_BASE / 8, ctx.apic_base());
    sync::give(ctx, page, sets.0);
    result
}

/// What user space wants of this run, and its reply to the last exit.
#[inline]
fn asked<H: Host>(
    ctx: &mut Ctx<'_, H>,
    page: &impl SharedPage,
    sets: (u64, u64),
) -> Result<(RunRequest, Answer), Errno> {
    let asked = page.word(0);
    let mut request = RunRequest {
        interrupt_window: asked >> (8 * at::REQUEST_INTERRUPT_WINDOW) & 0xff != 0,
        immediate_exit: asked >> (8 * at::IMMEDIATE_EXIT) & 0xff != 0,
        cr8: 0,
    };
    sync::take(ctx, page, sets)?;
    if ctx.core.fast.lapic.is_none() {
        request.cr8 = page.word(at::CR8 / 8);
        if request.cr8 > 15 {
            return Err(Errno::EINVAL);
        }
    }
    Ok((request, answer(page.cells(), ctx.pending())))
}

/// User space's reply to the last exit.
fn answer(page: &PageCells, pending: Pending) -> Answer {
    match pending {
        Pending::None | Pending::MmioWrite | Pending::Memory => Answer::Done,
        Pending::PioIn { .. } | Pending::PioOut | Pending::FastPioIn { .. } | Pending::FastPioOut => Answer::Done,
        Pending::MmioRead { .. } => {
            let mut data = [0; 8];
            page.read(exit::MMIO_DATA, &mut data);
            Answer::Mmio(data)
        }
        Pending::Rdmsr | Pending::Wrmsr => {
            Answer::Msr { data: page.u64(exit::MSR_DATA), error: page.u8(exit::MSR_ERROR) != 0 }
        }
        Pending::Hypercall => Answer::Hypercall { ret: page.u64(exit::HYPERCALL_RET) },
        Pending::HypervCall => Answer::Hypercall { ret: page.u64(exit::HYPERV_HCALL_RESULT) },
        Pending::Syndbg => {
            Answer::Syndbg { index: page.u32(exit::HYPERV_WORDS), status: page.u64(exit::HYPERV_SYNDBG_STATUS) }
        }
    }
}

/// Writes the exit reason with its part of the union, and `state`, the four bytes after it. Word by word.
#[inline]
fn report(page: &impl SharedPage, why: &UserExit, words: &[u64; 8], state: u32) {
    let code = match *why {
        UserExit::Unchanged => return page.cells().set_u32(at::READY_FOR_INTERRUPT_INJECTION, state),
        UserExit::Io { input, size, port, count } => {
            let [p0, p1] = port.to_le_bytes();
            let [c0, c1, c2, c3] = count.to_le_bytes();
            let direction = if input { IO_IN } else { IO_OUT };
            page.set_word(exit::IO_DIRECTION / 8, u64::from_le_bytes([direction, size, p0, p1, c0, c1, c2, c3]));
            page.set_word(exit::IO_DATA_OFFSET / 8, PIO_DATA_OFFSET);
            reason::IO
        }
        UserExit::Mmio { gpa, data, len, write } => {
            page.set_word(exit::MMIO_PHYS_ADDR / 8, gpa);
            page.set_word(exit::MMIO_DATA / 8, u64::from_le_bytes(data));
            page.set_word(exit::MMIO_LEN / 8, u64::from(len) | u64::from(write) << 32);
            reason::MMIO
        }
        ref rare => report_rare(page.cells(), rare, words),
    };
    page.set_word(at::EXIT_REASON / 8, u64::from(state) << 32 | u64::from(code));
}

// The words hold what the fields above them say.
const _: () = {
    assert!(at::EXIT_REASON == 8 && at::READY_FOR_INTERRUPT_INJECTION == 12 && at::IF_FLAG == 13 && at::FLAGS == 14);
    assert!(at::REQUEST_INTERRUPT_WINDOW < 8 && at::IMMEDIATE_EXIT < 8 && at::CR8 % 8 == 0 && at::APIC_BASE % 8 == 0);
    assert!(exit::IO_DIRECTION == 32 && exit::IO_SIZE == 33 && exit::IO_PORT == 34 && exit::IO_COUNT == 36);
    assert!(exit::IO_DATA_OFFSET == 40 && exit::MMIO_PHYS_ADDR == 32 && exit::MMIO_DATA == 40);
    assert!(exit::MMIO_LEN == 48 && exit::MMIO_IS_WRITE == 52);
};

#[cold]
fn report_rare(page: &PageCells, why: &UserExit, words: &[u64; 8]) -> u32 {
    match *why {
        UserExit::Io { .. } | UserExit::Mmio { .. } | UserExit::Unchanged => reason::UNKNOWN,
        UserExit::Hlt => reason::HLT,
        UserExit::IrqWindowOpen => reason::IRQ_WINDOW_OPEN,
        UserExit::SetTpr => reason::SET_TPR,
        UserExit::TprAccess { rip, write } => {
            page.set_u64(exit::TPR_ACCESS_RIP, rip);
            page.set_u32(exit::TPR_ACCESS_IS_WRITE, write.into());
            reason::TPR_ACCESS
        }
        UserExit::Shutdown => reason::SHUTDOWN,
        UserExit::Interrupted => reason::INTR,
        UserExit::FailEntry { reason: hardware, cpu } => {
            page.set_u64(exit::FAIL_ENTRY_REASON, hardware);
            page.set_u32(exit::FAIL_ENTRY_CPU, cpu);
            reason::FAIL_ENTRY
        }
        UserExit::InternalError { suberror, ndata } => {
            page.set_u32(exit::INTERNAL_SUBERROR, suberror);
            page.set_u32(exit::INTERNAL_NDATA, ndata.min(words.len() as u32));
            put_words(page, exit::INTERNAL_DATA, words.iter().take(ndata as usize));
            reason::INTERNAL_ERROR
        }
        UserExit::IoapicEoi { vector } => {
            page.set_u8(exit::EOI_VECTOR, vector);
            reason::IOAPIC_EOI
        }
        UserExit::Msr { write, reason: why, index, data } => {
            page.set_u8(exit::MSR_ERROR, 0);
            page.write(exit::MSR_ERROR + 1, &[0; 7]);
            page.set_u32(exit::MSR_REASON, why);
            page.set_u32(exit::MSR_INDEX, index);
            page.set_u64(exit::MSR_DATA, data);
            if write { reason::X86_WRMSR } else { reason::X86_RDMSR }
        }
        UserExit::Hypercall { nr, longmode } => {
            page.set_u64(exit::HYPERCALL_NR, nr);
            put_words(page, exit::HYPERCALL_ARGS, words.iter().take(6));
            page.set_u64(exit::HYPERCALL_RET, 0);
            page.set_u64(exit::HYPERCALL_FLAGS, longmode.into());
            reason::HYPERCALL
        }
        UserExit::Debug { exception, pc, dr6, dr7 } => {
            page.set_u32(exit::DEBUG_EXCEPTION, exception);
            page.set_u64(exit::DEBUG_PC, pc);
            page.set_u64(exit::DEBUG_DR6, dr6);
            page.set_u64(exit::DEBUG_DR7, dr7);
            reason::DEBUG
        }
        UserExit::SystemEvent { kind } => {
            page.set_u32(exit::SYSTEM_EVENT_TYPE, kind);
            page.set_u32(exit::SYSTEM_EVENT_NDATA, 0);
            reason::SYSTEM_EVENT
        }
        UserExit::Hyperv { kind } => {
            page.set_u64(exit::HYPERV_TYPE, kind.into());
            put_words(page, exit::HYPERV_WORDS, words.iter().take(6));
            reason::HYPERV
        }
        UserExit::DirtyRingFull => reason::DIRTY_RING_FULL,
        UserExit::MemoryFault { gpa } => {
            // No flags: there is no private memory.
            page.set_u64(exit::MEMORY_FAULT_FLAGS, 0);
            page.set_u64(exit::MEMORY_FAULT_GPA, gpa & !(PAGE_SIZE as u64 - 1));
            page.set_u64(exit::MEMORY_FAULT_SIZE, PAGE_SIZE as u64);
            reason::MEMORY_FAULT
        }
    }
}

fn put_words<'a>(page: &PageCells, at: usize, words: impl Iterator<Item = &'a u64>) {
    for (i, w) in words.enumerate() {
        page.set_u64(at + 8 * i, *w);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arch::HostPa;
    use core::sync::atomic::AtomicU8;
    use std::boxed::Box;

    struct Page(Box<PageCells>);

    impl SharedPage for Page {
        fn cells(&self) -> &PageCells {
            &self.0
        }
        fn pa(&self) -> HostPa {
            HostPa(0)
        }
    }

    impl core::ops::Deref for Page {
        type Target = PageCells;
        fn deref(&self) -> &PageCells {
            &self.0
        }
    }

    fn page() -> Page {
        Page(Box::new(PageCells([const { AtomicU8::new(0xee) }; 4096])))
    }

    #[test]
    fn port_and_mmio_exits() {
        let p = page();
        report(&p, &UserExit::Io { input: true, size: 2, port: 0x3f8, count: 3 }, &[0; 8], 0);
        assert_eq!(p.u32(8), 2);
        assert_eq!((p.u8(32), p.u8(33), p.u16(34), p.u32(36), p.u64(40)), (0, 2, 0x3f8, 3, 4096));
        let data = [1, 2, 3, 4, 5, 6, 7, 8];
        report(&p, &UserExit::Mmio { gpa: 0xfee0_0000, data, len: 4, write: true }, &[0; 8], 0);
        assert_eq!(p.u32(8), 6);
        assert_eq!((p.u64(32), p.u64(40), p.u32(48), p.u8(52)), (0xfee0_0000, u64::from_le_bytes(data), 4, 1));
    }

    #[test]
    fn an_internal_error_never_claims_more_data_than_there_is() {
        let p = page();
        report(&p, &UserExit::InternalError { suberror: 1, ndata: 99 }, &[0, 1, 2, 3, 4, 5, 6, 7], 0);
        assert_eq!((p.u32(8), p.u32(32), p.u32(36)), (17, 1, 8));
        assert_eq!((p.u64(40), p.u64(40 + 7 * 8)), (0, 7));
        assert_eq!(p.u8(40 + 8 * 8), 0xee);
    }

    #[test]
    fn a_memory_fault_is_about_a_page() {
        let p = page();
        report(&p, &UserExit::MemoryFault { gpa: 0x9123 }, &[0; 8], 0);
        assert_eq!((p.u32(8), p.u64(32), p.u64(40), p.u64(48)), (39, 0, 0x9000, 4096));
    }

    #[test]
    fn msr_exits_clear_the_answer_first() {
        let p = page();
        report(&p, &UserExit::Msr { write: false, reason: 2, index: 0x35, data: 0 }, &[0; 8], 0);
        assert_eq!((p.u32(8), p.u64(32), p.u32(40), p.u32(44), p.u64(48)), (29, 0, 2, 0x35, 0));
        p.set_u64(48, 77);
        p.set_u8(32, 1);
        assert_eq!(answer(&p, Pending::Rdmsr), Answer::Msr { data: 77, error: true });
    }

    #[test]
    fn answers_come_from_the_field_of_the_question() {
        let p = page();
        p.write(40, &[9; 8]);
        p.set_u64(88, 5);
        assert_eq!(answer(&p, Pending::MmioRead { len: 4 }), Answer::Mmio([9; 8]));
        assert_eq!(answer(&p, Pending::Hypercall), Answer::Hypercall { ret: 5 });
        for nothing in [Pending::None, Pending::MmioWrite, Pending::PioOut, Pending::PioIn { size: 1, count: 1 }] {
            assert_eq!(answer(&p, nothing), Answer::Done);
        }
    }

    #[test]
    fn an_exit_that_waits_is_still_there_after_an_immediate_one() {
        let p = page();
        report(&p, &UserExit::Io { input: true, size: 2, port: 0x3f8, count: 3 }, &[0; 8], 0);
        report(&p, &UserExit::Unchanged, &[0; 8], 0x101);
        assert_eq!((p.u32(at::EXIT_REASON), p.u16(34)), (2, 0x3f8));
        assert_eq!((p.u8(12), p.u8(13), p.u16(14)), (1, 1, 0));
    }

    #[test]
    fn every_reason_reaches_the_page() {
        let rare = [
            (UserExit::Hlt, 5),
            (UserExit::IrqWindowOpen, 7),
            (UserExit::SetTpr, 11),
            (UserExit::TprAccess { rip: 1, write: true }, 12),
            (UserExit::Shutdown, 8),
            (UserExit::FailEntry { reason: 1 << 40, cpu: 3 }, 9),
            (UserExit::Interrupted, 10),
            (UserExit::IoapicEoi { vector: 0x31 }, 26),
            (UserExit::Msr { write: true, reason: 1, index: 2, data: 3 }, 30),
            (UserExit::Hypercall { nr: 12, longmode: true }, 3),
            (UserExit::Debug { exception: 1, pc: 2, dr6: 3, dr7: 4 }, 4),
            (UserExit::SystemEvent { kind: 1 }, 24),
            (UserExit::Hyperv { kind: 1 }, 27),
            (UserExit::DirtyRingFull, 31),
            (UserExit::MemoryFault { gpa: 0x1234 }, 39),
        ];
        for (why, code) in rare {
            let p = page();
            report(&p, &why, &[1, 2, 3, 4, 5, 6, 0, 0], 0);
            assert_eq!((p.u32(at::EXIT_REASON), why.reason()), (code, code), "{why:?}");
        }
    }
}
