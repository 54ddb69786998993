//! Writes by the guest that become eventfd signals without leaving to user space (KVM API document, 4.59).

use alloc::vec::Vec;
use host::{Errno, EventFd, Host, take_at, try_insert};

/// Most ioeventfds on one bus, as stock KVM limits its devices (NR_IOBUS_DEVS).
pub const MAX: usize = 1000;

/// KVM_IOEVENTFD after validation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoEventSpec {
    /// A port (else a guest physical address).
    pub pio: bool,
    /// Where.
    pub addr: u64,
    /// Bytes of the write that match: 0 (any length), 1, 2, 4 or 8.
    pub len: u32,
    /// The value that must be written, if it matters.
    pub datamatch: Option<u64>,
}

::state::state! {
    value IoEventSpec { pio, addr, len, datamatch }
}

struct Entry<E> {
    spec: IoEventSpec,
    event: E,
}

/// The ioeventfds of a VM, sorted by bus and address.
pub struct IoEvents<H: Host> {
    entries: Vec<Entry<H::EventFd>>,
}

impl<H: Host> Default for IoEvents<H> {
    fn default() -> Self {
        Self { entries: Vec::new() }
    }
}

impl IoEventSpec {
    pub(crate) fn key(&self) -> (bool, u64) {
        (self.pio, self.addr)
    }

    /// Does a write of `data` match?
    fn takes(&self, data: &[u8]) -> bool {
        let mut value = [0; 8];
        for (v, d) in value.iter_mut().zip(data) {
            *v = *d;
        }
        (self.len == 0 || self.len as usize == data.len())
            && self.datamatch.is_none_or(|want| want == u64::from_le_bytes(value))
    }

    /// Would one write match both?
    fn collides(&self, other: &Self) -> bool {
        self.key() == other.key()
            && (self.len == 0 || other.len == 0 || self.len == other.len)
            && (self.datamatch.is_none() || other.datamatch.is_none() || self.datamatch == other.datamatch)
    }
}

impl<H: Host> IoEvents<H> {
    /// What they match, in their order.
    pub(crate) fn specs(&self) -> impl ExactSizeIterator<Item = &IoEventSpec> {
        self.entries.iter().map(|e| &e.spec)
    }

    /// Room for `n`. Errors: ENOMEM.
    pub(crate) fn reserve(&mut self, n: usize) -> Result<(), Errno> {
        self.entries.try_reserve_exact(n).map_err(|_| Errno::ENOMEM)
    }

    /// Takes over the eventfds of `old`, which match what `specs` say, one for one. There is room.
    pub(crate) fn succeed(&mut self, specs: &[IoEventSpec], old: &mut Self) {
        for (spec, was) in specs.iter().zip(core::mem::take(&mut old.entries)) {
            if self.entries.len() < self.entries.capacity() {
                self.entries.push(Entry { spec: *spec, event: was.event });
            }
        }
    }

    /// Adds one. Errors: EEXIST (a write would match two), ENOSPC (too many on this bus), ENOMEM.
    pub fn assign(&mut self, spec: IoEventSpec, event: H::EventFd) -> Result<(), Errno> {
        if self.entries.iter().any(|e| e.spec.collides(&spec)) {
            return Err(Errno::EEXIST);
        }
        if self.entries.iter().filter(|e| e.spec.pio == spec.pio).count() >= MAX {
            return Err(Errno::ENOSPC);
        }
        let at = self.entries.partition_point(|e| e.spec.key() <= spec.key());
        try_insert(&mut self.entries, at, Entry { spec, event })
    }

    /// Removes the one with the same place and eventfd; it is returned to be dropped outside of the lock.
    /// Errors: ENOENT.
    pub fn deassign(&mut self, spec: &IoEventSpec, event: &H::EventFd) -> Result<H::EventFd, Errno> {
        let at = self.entries.iter().position(|e| e.spec == *spec && e.event.same(event)).ok_or(Errno::ENOENT)?;
        take_at(&mut self.entries, at).map(|e| e.event).ok_or(Errno::ENOENT)
    }

    /// A write by the guest. True if it signalled an eventfd.
    pub fn write(&self, pio: bool, addr: u64, data: &[u8]) -> bool {
        let first = self.entries.partition_point(|e| e.spec.key() < (pio, addr));
        let here = self.entries.iter().skip(first).take_while(|e| e.spec.key() == (pio, addr));
        for e in here {
            if e.spec.takes(data) {
                e.event.signal();
                return true;
            }
        }
        false
    }
}
