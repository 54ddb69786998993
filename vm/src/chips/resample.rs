//! Eventfds that raise a level interrupt, and are told when the guest has ended it (KVM_CAP_IRQFD_RESAMPLE).

use super::Source;
use crate::Vm;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::Relaxed;
use host::{Errno, EventFd, Host, Request, try_push};

/// Most irqfds with a resample eventfd in a VM: each end of an interrupt looks through them.
const MOST_RESAMPLERS: usize = 1000;

/// An eventfd that is told when the interrupt of a GSI ended.
pub(crate) struct Resampler<E> {
    pub(super) gsi: u32,
    event: E,
}

impl<H: Host> Vm<H> {
    /// The interrupt of `gsi` ended.
    pub(super) fn resample(&self, gsi: u32) {
        if self.is_resampled(gsi) {
            self.drive_gsi(gsi, Source::Resample, false);
            self.signal_resamplers(Some(gsi));
        }
    }

    /// Is somebody told when the interrupt of `gsi` ends?
    pub(super) fn is_resampled(&self, gsi: u32) -> bool {
        self.resamplers_used.load(Relaxed) && self.resamplers.lock().iter().any(|r| r.gsi == gsi)
    }

    /// Asks them to look at their devices.
    pub(super) fn signal_resamplers(&self, gsi: Option<u32>) {
        for r in self.resamplers.lock().iter().filter(|r| Some(r.gsi) == gsi) {
            r.event.signal();
        }
    }

    /// From now on `event` is signalled when the guest ends the interrupt of `gsi`. Errors: ENOSPC, ENOMEM.
    pub fn add_resampler(&self, gsi: u32, event: H::EventFd) -> Result<(), Errno> {
        let mut list = Vec::new();
        let _shape = self.shape.lock();
        // Room is made outside of the lock that interrupts take.
        let len = self.resamplers.lock().len();
        if len >= MOST_RESAMPLERS {
            return Err(Errno::ENOSPC);
        }
        list.try_reserve_exact(len.saturating_add(1)).map_err(|_| Errno::ENOMEM)?;
        let mut now = self.resamplers.lock();
        core::mem::swap(&mut *now, &mut list);
        for r in list.drain(..) {
            try_push(&mut now, r)?;
        }
        try_push(&mut now, Resampler { gsi, event })?;
        drop(now);
        drop(list);
        self.resamplers_used.store(true, Relaxed);
        self.ring_all(Request::ScanIoapic);
        Ok(())
    }

    /// The reverse, for one that [`add_resampler`](Self::add_resampler) took; the last of a GSI lowers it.
    pub fn remove_resampler(&self, gsi: u32, event: &H::EventFd) {
        let gone = {
            let mut list = self.resamplers.lock();
            let at = list.iter().position(|r| r.gsi == gsi && r.event.same(event));
            at.and_then(|at| host::take_at(&mut list, at))
        };
        drop(gone);
        if !self.resamplers.lock().iter().any(|r| r.gsi == gsi) {
            self.drive_gsi(gsi, Source::Resample, false);
        }
    }
}
