//! What eventfds and timers of the machine do to a VM's interrupt lines, as whoever has the VM does it for them.

use super::Machine;
use sim::alloc::counted;
use sim::host::{Host, Hrtimer};
use vm::{Context, Later};

impl Machine {
    /// A timer of the devices expires, and what it leaves for later is done.
    pub fn expire(&self, which: Hrtimer) {
        counted(|| {
            if self.engine().hrtimer_expired(which) == Err(Later) {
                self.engine().hrtimer_late(which);
            }
        });
    }

    /// Each timer whose time has come expires.
    pub fn expire_all(&self) {
        loop {
            let due = self.engine().hrtimers.due(self.sim.now_ns());
            let Some(which) = due else { return };
            self.expire(which);
        }
    }

    /// An eventfd with resampling is signalled.
    pub fn raise_until_eoi(&self, gsi: u32) {
        counted(|| {
            if self.engine().raise_until_eoi(Context::Any, gsi) == Err(Later) {
                assert_eq!(self.engine().raise_until_eoi(Context::Task, gsi), Ok(()));
            }
        });
    }
}
