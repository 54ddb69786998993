//! Guest memory that is mapped before the guest touches it.

use crate::Ctx;
use arch::{Gpa, NpfCode};
use host::{Errno, Host, Stop, Work};
use mmu::RetPf;

/// A read.
const READ: NpfCode = NpfCode(0);

impl<H: Host> Ctx<'_, H> {
    /// Maps `[gpa, gpa + size)`, both page aligned, as if the guest had read it (KVM_PRE_FAULT_MEMORY, KVM API
    /// document 4.143). Returns what is left of the range, with the reason if that is all of it: EINTR (a signal),
    /// EAGAIN (the dirty ring is full), ENOENT (no memory there), EFAULT, ENOMEM, EIO. Memory that has failed is a signal: SIGBUS.
    pub fn pre_fault(&mut self, gpa: u64, size: u64) -> (u64, u64, Result<(), Errno>) {
        let (mut at, end) = (gpa, gpa.saturating_add(size));
        let mut result = Ok(());
        while at < end && result.is_ok() {
            match self.pre_fault_one(Gpa(at)) {
                Ok(next) => at = next.min(end),
                Err(errno) => result = Err(errno),
            }
        }
        if at != gpa {
            result = Ok(());
        }
        (at, end.saturating_sub(at), result)
    }

    /// Maps what the page at `gpa` is a part of, and returns where that ends.
    fn pre_fault_one(&mut self, gpa: Gpa) -> Result<u64, Errno> {
        loop {
            if self.vm.host.do_work() == Work::Signal {
                return Err(Errno::EINTR);
            }
            if self.me.dirty_ring.as_ref().is_some_and(|ring| ring.full()) {
                return Err(Errno::EAGAIN);
            }
            let view = self.memory_view();
            match view.page_fault(&mut self.core.tables, gpa, READ) {
                Ok(RetPf::Fixed) => return Ok(view.mapping_end(gpa).0),
                // The slots or the VMM's memory are changing; or SIGBUS is pending.
                Ok(RetPf::Retry | RetPf::Late(_)) | Err(Stop::Poison) => self.vm.host.cond_resched(),
                Ok(RetPf::Emulate) => return Err(Errno::ENOENT),
                Err(Stop::Fault | Stop::ReadOnly) => return Err(Errno::EFAULT),
                Err(Stop::Errno(e)) => return Err(e),
            }
        }
    }
}
