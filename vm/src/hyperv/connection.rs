//! Connections whose events become eventfd signals (KVM_HYPERV_EVENTFD, KVM API document 4.112).

use crate::Vm;
use crate::handover::handle;
use alloc::vec::Vec;
use host::{Errno, EventFd, Host, Lent, LentFor, Numbers, in_turns, rank, take_at, try_insert, try_push};
use lock_api::RwLock;
use state::{Reader, Refused, State, Writer};

/// Bits of a connection's number.
pub const CONN_ID_MASK: u32 = 0x00ff_ffff;

struct Connection<E> {
    id: u32,
    event: E,
}

/// Those of a VM, by number.
pub(super) struct Connections<H: Host>(RwLock<H::RawRwSem<{ rank::TABLES }>, Vec<Connection<H::EventFd>>>);

impl<H: Host> Connections<H> {
    pub fn new() -> Self {
        Self(RwLock::new(Vec::new()))
    }

    /// Is there any?
    pub fn is_used(&self) -> bool {
        !self.0.read().is_empty()
    }

    /// Signals the eventfd of a connection. False: it has none.
    pub fn signal(&self, id: u32) -> bool {
        let all = self.0.read();
        let found = all.binary_search_by_key(&id, |c| c.id).ok().and_then(|at| {
            // INDEX: a place that the search has found.
            all.get(at)
        });
        if let Some(connection) = found {
            connection.event.signal();
        }
        found.is_some()
    }
}

/// The numbers are written; the eventfds are lent, in the same order.
impl<H: Host> Connections<H> {
    pub fn save(&self, host: &H, w: &mut Writer) {
        let all = self.0.read();
        w.count(all.len());
        in_turns(host, all.iter()).for_each(|c| c.id.save(w));
    }

    pub fn lend(&self, host: &H, to: &mut Numbers) -> Result<(), Errno> {
        in_turns(host, self.0.read().iter()).try_for_each(|c| to.lend(LentFor::Connection, &c.event))
    }

    /// Errors: no memory; a number that is none, or not in order.
    pub fn load(&mut self, host: &H, r: &mut Reader<'_>, lent: &mut Lent<'_>) -> Result<(), Refused> {
        let all = self.0.get_mut();
        for _ in in_turns(host, 0..r.count()?) {
            let id: u32 = r.value()?;
            if id & !CONN_ID_MASK != 0 || all.last().is_some_and(|last| last.id >= id) {
                return Err(r.bad("the number of a connection"));
            }
            try_push(all, Connection { id, event: handle(lent, LentFor::Connection)? })
                .map_err(|_| Refused::NO_MEMORY)?;
        }
        Ok(())
    }
}

impl<H: Host> Vm<H> {
    /// KVM_HYPERV_EVENTFD: binds an eventfd to the connection. Errors: EBADF, EINVAL (no eventfd, or no such number),
    /// EEXIST (it has one), ENOMEM.
    pub fn bind_connection(&self, id: u32, fd: i32) -> Result<(), Errno> {
        if id & !CONN_ID_MASK != 0 {
            return Err(Errno::EINVAL);
        }
        let event = self.host.eventfd(fd)?;
        let mut all = self.partition.connections.0.write();
        let at = match all.binary_search_by_key(&id, |c| c.id) {
            Ok(_) => return Err(Errno::EEXIST),
            Err(at) => at,
        };
        try_insert(&mut all, at, Connection { id, event })
    }

    /// The reverse. Errors: EINVAL (no such number), ENOENT (it has none).
    pub fn unbind_connection(&self, id: u32) -> Result<(), Errno> {
        if id & !CONN_ID_MASK != 0 {
            return Err(Errno::EINVAL);
        }
        let mut all = self.partition.connections.0.write();
        let at = all.binary_search_by_key(&id, |c| c.id).map_err(|_| Errno::ENOENT)?;
        let gone = take_at(&mut all, at);
        drop(all);
        drop(gone);
        Ok(())
    }
}
