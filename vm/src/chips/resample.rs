//! Eventfds that raise a level interrupt, and are told when the guest has ended it (KVM_CAP_IRQFD_RESAMPLE).

use super::Source;
use crate::Vm;
use core::{ops::ControlFlow, sync::atomic::Ordering::Relaxed};
use host::{Errno, EventFd, Host, Request, try_push};

/// An eventfd that is told when the interrupt of a GSI ended.
pub(crate) struct Resampler<E> {
    pub(crate) gsi: u32,
    pub(crate) event: E,
}

/// So many are looked at before another task may have the CPU: there are as many as the VMM has memory for.
const AT_A_TIME: usize = 256;

impl<H: Host> Vm<H> {
    /// Shows them all to `f`, which may end it. Task context, no spin lock held.
    pub(super) fn each_resampler(&self, mut f: impl FnMut(&Resampler<H::EventFd>) -> ControlFlow<()>) {
        for (n, r) in self.resamplers.read().iter().enumerate() {
            if n % AT_A_TIME == AT_A_TIME - 1 {
                self.host.cond_resched();
            }
            if f(r).is_break() {
                return;
            }
        }
    }

    /// The interrupt of `gsi` ended.
    pub(crate) fn resample(&self, gsi: u32) {
        if self.is_resampled(gsi) {
            self.drive_gsi(gsi, Source::Resample, false);
            self.signal_resamplers(Some(gsi));
        }
    }

    /// Is somebody told when the interrupt of `gsi` ends?
    pub(super) fn is_resampled(&self, gsi: u32) -> bool {
        let mut found = false;
        if self.resamplers_used.load(Relaxed) {
            self.each_resampler(|r| {
                found = r.gsi == gsi;
                if found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
        }
        found
    }

    /// Asks them to look at their devices. Task context, no spin lock held: there may be many eventfds, and signalling one
    /// takes a lock of the kernel's that sleeps on PREEMPT_RT. Only a sleeping lock is held meanwhile, as stock is in an
    /// SRCU section.
    pub(super) fn signal_resamplers(&self, gsi: Option<u32>) {
        self.each_resampler(|r| {
            if Some(r.gsi) == gsi {
                r.event.signal();
            }
            ControlFlow::Continue(())
        });
    }

    /// From now on `event` is signalled when the guest ends the interrupt of `gsi`. Errors: ENOMEM.
    pub fn add_resampler(&self, gsi: u32, event: H::EventFd) -> Result<(), Errno> {
        try_push(&mut self.resamplers.write(), Resampler { gsi, event })?;
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
        if !self.is_resampled(gsi) {
            self.drive_gsi(gsi, Source::Resample, false);
        }
    }
}
