//! Writes by the guest that become eventfd signals without leaving to user space (KVM API document, 4.59).

use crate::handover::handle;
use alloc::vec::Vec;
use host::{Errno, EventFd, Host, Lent, LentFor, Numbers, in_turns, take_at, try_insert, try_push};
use state::{Reader, Refused, State, Why, Writer};

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

/// The ioeventfds of a VM, sorted by bus, address, value (first those that take any) and length.
pub struct IoEvents<H: Host> {
    entries: Vec<Entry<H::EventFd>>,
}

impl<H: Host> Default for IoEvents<H> {
    fn default() -> Self {
        Self { entries: Vec::new() }
    }
}

impl IoEventSpec {
    fn key(&self) -> (bool, u64) {
        (self.pio, self.addr)
    }

    fn order(&self) -> ((bool, u64), Option<u64>, u32) {
        (self.key(), self.datamatch, self.len)
    }

    /// The lengths that match, each a bit.
    fn lengths(&self) -> u32 {
        if self.len == 0 { 1 | 2 | 4 | 8 } else { self.len }
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
            && self.lengths() & other.lengths() != 0
            && (self.datamatch.is_none() || other.datamatch.is_none() || self.datamatch == other.datamatch)
    }
}

impl<H: Host> IoEvents<H> {
    /// Writes what they match.
    pub(crate) fn save(&self, host: &H, w: &mut Writer) {
        w.count(self.entries.len());
        in_turns(host, &self.entries).for_each(|e| e.spec.save(w));
    }

    /// Lends their eventfds, in the same order. Errors: ENOMEM.
    pub(crate) fn lend(&self, host: &H, to: &mut Numbers) -> Result<(), Errno> {
        in_turns(host, &self.entries).try_for_each(|e| to.lend(LentFor::IoEvent, &e.event))
    }

    /// Becomes what was written and lent; it is empty. They come in order, so that each is compared with the one before alone, and
    /// with what those of its place match that take any value.
    pub(crate) fn load(&mut self, host: &H, r: &mut Reader<'_>, lent: &mut Lent<'_>) -> Result<(), Refused> {
        let mut any_value = 0;
        for _ in in_turns(host, 0..r.count()?) {
            let spec: IoEventSpec = r.value()?;
            let before = self.entries.last().map(|e| e.spec);
            if before.is_none_or(|before| before.key() != spec.key()) {
                any_value = 0;
            }
            let in_order = before.is_none_or(|before| before.order() < spec.order());
            let apart = before.is_none_or(|before| !before.collides(&spec)) && spec.lengths() & any_value == 0;
            if !matches!(spec.len, 0 | 1 | 2 | 4 | 8) || !in_order || !apart {
                return Err(r.bad("an ioeventfd"));
            }
            if spec.datamatch.is_none() {
                any_value |= spec.lengths();
            }
            let event = handle(lent, LentFor::IoEvent)?;
            try_push(&mut self.entries, Entry { spec, event }).map_err(|_| r.refuse(Why::NoMemory))?;
        }
        Ok(())
    }

    /// Those of one place.
    fn at(&self, pio: bool, addr: u64) -> impl Iterator<Item = &Entry<H::EventFd>> {
        let first = self.entries.partition_point(|e| e.spec.key() < (pio, addr));
        self.entries.iter().skip(first).take_while(move |e| e.spec.key() == (pio, addr))
    }

    /// Adds one. There is no limit but memory: each keeps an eventfd open, and a VMM with many queues needs thousands.
    /// Errors: EEXIST (a write would match two), ENOMEM.
    pub fn assign(&mut self, spec: IoEventSpec, event: H::EventFd) -> Result<(), Errno> {
        if self.at(spec.pio, spec.addr).any(|e| e.spec.collides(&spec)) {
            return Err(Errno::EEXIST);
        }
        let at = self.entries.partition_point(|e| e.spec.order() <= spec.order());
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
        for e in self.at(pio, addr) {
            if e.spec.takes(data) {
                e.event.signal();
                return true;
            }
        }
        false
    }
}
