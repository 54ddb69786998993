//! Nested page faults (APM 15.25.6): map and resume, or emulate an access to a device.

use crate::Ctx;
use crate::memory::fault_outcome;
use crate::mmio::Faulted;
use crate::run::Next;
use arch::{Gpa, NpfCode};
use host::{Cpu, Host};
use mmu::RetPf;

pub fn handle<H: Host>(ctx: &mut Ctx<'_, H>, gpa: Gpa, code: NpfCode) -> Next {
    let stats = &ctx.me.stats;
    stats.pf_taken.count();
    let view = ctx.memory_view();
    let mut result = view.page_fault_nowait(&mut ctx.core.tables, gpa, code);
    if let Ok(RetPf::Late(hva)) = result {
        if let Some(next) = ctx.wait_aside(gpa, code, hva) {
            return next;
        }
        result = view.page_fault(&mut ctx.core.tables, gpa, code);
    }
    match result {
        Ok(RetPf::Fixed) => {
            match ctx.core.tables.before() {
                mmu::Before::Absent => stats.pf_fixed.count(),
                mmu::Before::ReadOnly => {
                    stats.pf_fixed.count();
                    stats.pf_fast.count();
                }
                mmu::Before::Mapped => stats.pf_spurious.count(),
            }
            Next::Resume
        }
        Ok(RetPf::Retry | RetPf::Late(_)) => Next::Resume,
        Ok(RetPf::Emulate) => {
            stats.pf_emulate.count();
            if ctx.core.cpu.control().exit_int_info.valid() {
                return super::undeliverable(ctx, gpa, code.0);
            }
            ctx.emulate_access(Faulted::new(gpa, code))
        }
        Err(stop) => fault_outcome(gpa, stop),
    }
}
