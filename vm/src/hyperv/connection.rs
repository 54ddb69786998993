//! Connections whose events become eventfd signals (KVM_HYPERV_EVENTFD, KVM API document 4.112).

use crate::Vm;
use alloc::vec::Vec;
use host::{Errno, EventFd, Host, rank, take_at, try_insert};
use lock_api::RwLock;

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
