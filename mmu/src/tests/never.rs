//! The parts of a machine that the mmu never asks for, as types without values.

use arch::{CleanBits, ControlArea, EventInj, Exit, Intercepts, NestedRoot, SaveArea};
use host::{
    Cpu, Errno, EventFd, ExtraRegs, Fpu, Hrtimer, Hrtimers, Lend, LentKind, OneBox, PageIns, Snapshot, VcpuRequests,
    VcpuThread,
};

pub enum Never {}

macro_rules! never {
    ($($trait:ident { $(fn $name:ident $(<$f:ident: $bound:path>)? ($($arg:tt)*) $(-> $ret:ty)?;)* })*) => {$(
        impl $trait for Never {
            $(fn $name$(<$f: $bound>)?($($arg)*) $(-> $ret)? { unreachable!() })*
        }
    )*};
}
impl<T> Snapshot<T> for Never {
    fn none() -> Self {
        unreachable!()
    }
    fn read<R>(&self, _: impl FnOnce(Option<&T>) -> R) -> R {
        unreachable!()
    }
    fn replace(&self, _: Option<OneBox<T>>) -> Option<OneBox<T>> {
        unreachable!()
    }
}

impl Lend for Never {
    const KIND: LentKind = LentKind::Plain;

    fn number(&self) -> u64 {
        unreachable!()
    }
    fn of_number(_: u64) -> Option<Self> {
        unreachable!()
    }
}

never! {
    Cpu {
        fn gpr(&self, _: u8) -> u64;
        fn set_gpr(&mut self, _: u8, _: u64);
        fn save(&self) -> &SaveArea;
        fn save_mut(&mut self, _: CleanBits) -> &mut SaveArea;
        fn control(&self) -> &ControlArea;
        fn set_event_inj(&mut self, _: EventInj);
        fn set_virq(&mut self, _: u8, _: u8, _: bool);
        fn clear_virq(&mut self);
        fn set_vtpr(&mut self, _: u8);
        fn set_interrupt_shadow(&mut self, _: bool);
        fn set_intercept(&mut self, _: Intercepts, _: bool);
        fn set_cr_intercepts(&mut self, _: u16, _: u16);
        fn set_exception_intercepts(&mut self, _: u32);
        fn set_invpcid_intercept(&mut self, _: bool);
        fn set_msr_intercept(&mut self, _: u32, _: bool, _: bool);
        fn set_pause_filter(&mut self, _: u16);
        fn exit_after_injection(&mut self);
        fn set_tsc_offset(&mut self, _: u64);
        fn set_next_rip(&mut self, _: u64);
        fn set_root(&mut self, _: NestedRoot);
        fn flush_tlb(&mut self);
        fn extra(&self) -> &ExtraRegs;
        fn extra_mut(&mut self) -> &mut ExtraRegs;
        fn begin(&mut self);
        fn end(&mut self);
        fn tell_entry(&mut self, _: Option<u32>);
        fn enter<F: host::FastExits>(&mut self, _: &VcpuRequests, _: &mut F) -> Exit;
        fn save_state(&mut self, _: &mut state::Writer);
        fn load_state(&mut self, _: &mut state::Reader<'_>) -> Result<(), state::Refused>;
        fn last_cpu(&self) -> u32;
        fn broken(&self) -> Option<Errno>;
    }
    VcpuThread {
        fn requests(&self) -> &VcpuRequests;
        fn kick(&self);
        fn wake(&self);
        fn block(&self);
        fn is_blocked(&self) -> bool;
        fn yield_to(&self) -> Option<bool>;
        fn note_preemption(&self, _: Option<arch::Hva>);
        fn preemptible(&self, _: bool);
        fn arm_timer(&self, _: u64);
        fn cancel_timer(&self);
        fn wbinvd(&self);
        fn page_ins(&self) -> &PageIns;
        fn start_page_in(&self, _: arch::Hva, _: bool, _: u8) -> Result<(), Errno>;
        fn forget_page_ins(&self);
    }
    Hrtimers {
        fn arm(&self, _: Hrtimer, _: u64);
        fn cancel(&self, _: Hrtimer);
    }
    EventFd {
        fn signal(&self);
        fn same(&self, _: &Self) -> bool;
    }
    Fpu {
        fn load(&mut self);
        fn put(&mut self);
        fn user_size(&self) -> usize;
        fn get(&self, _: &mut [u8], _: u64, _: u32);
        fn set(&mut self, _: &[u8], _: u64, _: &mut u32) -> Result<(), Errno>;
        fn vector(&self, _: u8) -> [u8; 32];
        fn set_vector(&mut self, _: u8, _: &[u8; 32], _: bool);
        fn x87_control(&self) -> u16;
        fn x87_status(&self) -> u16;
        fn mmx(&mut self, _: u8) -> u64;
        fn set_mmx(&mut self, _: u8, _: u64);
        fn reset(&mut self) -> Result<(), Errno>;
    }
}
