//! Eventfds that raise a level interrupt, and are told when the guest has ended it (KVM_CAP_IRQFD_RESAMPLE).

use super::Source;
use crate::Vm;
use core::sync::atomic::Ordering::Relaxed;
use host::{Errno, EventFd, Host, Request, try_push};

/// Most irqfds with a resample eventfd in a VM: each end of an interrupt looks through them.
const MOST_RESAMPLERS: usize = 1000;

/// An eventfd that is told when the interrupt of a GSI ended.
pub(crate) struct Resampler<E> {
    pub(crate) gsi: u32,
    pub(crate) event: E,
}

impl<H: Host> Vm<H> {
    /// The interrupt of `gsi` ended.
    pub(crate) fn resample(&self, gsi: u32) {
        if self.is_resampled(gsi) {
            self.drive_gsi(gsi, Source::Resample, false);
            self.signal_resamplers(Some(gsi));
        }
    }

    /// Is somebody told when the interrupt of `gsi` ends?
    pub(super) fn is_resampled(&self, gsi: u32) -> bool {
        self.resamplers_used.load(Relaxed) && self.resamplers.read().iter().any(|r| r.gsi == gsi)
    }

    /// Asks them to look at their devices. Task context, no spin lock held: there may be many eventfds, and signalling one
    /// takes a lock of the kernel's that sleeps on PREEMPT_RT. Only a sleeping lock is held meanwhile, as stock is in an
    /// SRCU section.
    pub(super) fn signal_resamplers(&self, gsi: Option<u32>) {
        for r in self.resamplers.read().iter().filter(|r| Some(r.gsi) == gsi) {
            r.event.signal();
        }
    }

    /// From now on `event` is signalled when the guest ends the interrupt of `gsi`. Errors: ENOSPC, ENOMEM.
    pub fn add_resampler(&self, gsi: u32, event: H::EventFd) -> Result<(), Errno> {
        let mut list = self.resamplers.write();
        if list.len() >= MOST_RESAMPLERS {
            return Err(Errno::ENOSPC);
        }
        try_push(&mut list, Resampler { gsi, event })?;
        drop(list);
        self.resamplers_used.store(true, Relaxed);
        self.ring_all(Request::ScanIoapic);
        Ok(())
    }

    /// The reverse, for one that [`add_resampler`](Self::add_resampler) took; the last of a GSI lowers it.
    pub fn remove_resampler(&self, gsi: u32, event: &H::EventFd) {
        let gone = {
            let mut list = self.resamplers.write();
            let at = list.iter().position(|r| r.gsi == gsi && r.event.same(event));
            at.and_then(|at| host::take_at(&mut list, at))
        };
        drop(gone);
        if !self.resamplers.read().iter().any(|r| r.gsi == gsi) {
            self.drive_gsi(gsi, Source::Resample, false);
        }
    }
}
