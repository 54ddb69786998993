//! Coalesced MMIO and PIO: writes that user space looks at later, in a ring that it shares with the kernel (KVM API
//! document 4.116 and KVM_CAP_COALESCED_MMIO).

use crate::Vm;
use alloc::vec::Vec;
use arch::array_index_nospec;
use core::sync::atomic::{AtomicBool, Ordering::*};
use host::{Errno, Host, PAGE_SIZE, SharedPage, rank, try_push};
use lock_api::Mutex;

/// Most zones of a VM, as stock limits the devices of a bus.
const MOST_ZONES: usize = 1000;
/// `struct kvm_coalesced_mmio_ring`: the indices `first` (user space's) and `last` (ours), then the entries.
const FIRST: usize = 0;
const LAST: usize = 4;
const ENTRIES: usize = 8;
/// `struct kvm_coalesced_mmio`: address, length, kind, 8 bytes of data.
const ENTRY: usize = 24;
const CAPACITY: u32 = ((PAGE_SIZE - ENTRIES) / ENTRY) as u32;

/// `struct kvm_coalesced_mmio_zone`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Zone {
    /// First port or guest physical address.
    pub addr: u64,
    /// Number of bytes.
    pub size: u32,
    /// Ports (else memory).
    pub pio: bool,
}

::state::state! {
    value Zone { addr, size, pio }
}

impl Zone {
    fn contains(&self, addr: u64, len: u64) -> bool {
        let end = |start: u64, len: u64| start.checked_add(len);
        match (end(addr, len), end(self.addr, self.size.into())) {
            (Some(last), Some(limit)) => addr >= self.addr && last <= limit,
            _ => false,
        }
    }
}

/// The zones of a VM and their ring.
pub struct Coalesced<H: Host> {
    /// Page 2 of every vCPU file's mapping.
    pub page: H::SharedPage,
    pub(crate) used: AtomicBool,
    pub(crate) zones: Mutex<H::RawMutex<{ rank::TABLES }>, Vec<Zone>>,
}

impl<H: Host> Vm<H> {
    /// KVM_REGISTER_COALESCED_MMIO. Errors: ENOSPC (too many), ENOMEM.
    pub fn register_coalesced(&self, zone: Zone) -> Result<(), Errno> {
        self.coalesced.register(zone)?;
        self.has_devices.store(true, Release);
        Ok(())
    }
}

impl<H: Host> Coalesced<H> {
    /// Without zones; the ring is in this page.
    pub fn new(page: H::SharedPage) -> Self {
        Self { page, used: AtomicBool::new(false), zones: Mutex::new(Vec::new()) }
    }

    fn register(&self, zone: Zone) -> Result<(), Errno> {
        let mut zones = self.zones.lock();
        if zones.len() >= MOST_ZONES {
            return Err(Errno::ENOSPC);
        }
        try_push(&mut zones, zone)?;
        self.used.store(true, Release);
        Ok(())
    }

    /// KVM_UNREGISTER_COALESCED_MMIO: the zones that contain `zone`, if there are any.
    pub fn unregister(&self, zone: Zone) {
        self.zones.lock().retain(|z| z.pio != zone.pio || !z.contains(zone.addr, zone.size.into()));
    }

    /// A write of up to 8 bytes. False: it lies in no zone, or the ring is full, and user space has to be told now.
    #[inline]
    pub fn write(&self, pio: bool, addr: u64, data: &[u8]) -> bool {
        self.used.load(Relaxed) && self.put(pio, addr, data)
    }

    #[cold]
    fn put(&self, pio: bool, addr: u64, data: &[u8]) -> bool {
        // The lock also orders the writers of the ring.
        let zones = self.zones.lock();
        let len = data.len();
        if len > 8 || !zones.iter().any(|z| z.pio == pio && z.contains(addr, len as u64)) {
            return false;
        }
        let ring = self.page.cells();
        // User space can write both.
        let (first, last) = (ring.u32(FIRST), ring.u32(LAST));
        let next = last.wrapping_add(1).checked_rem(CAPACITY).unwrap_or(0);
        if last >= CAPACITY || next == first {
            return false;
        }
        let at = ENTRIES + ENTRY * array_index_nospec(last as usize, CAPACITY as usize);
        let mut bytes = [0; 8];
        for (to, from) in bytes.iter_mut().zip(data) {
            *to = *from;
        }
        ring.set_u64(at, addr);
        ring.set_u32(at + 8, len as u32);
        ring.set_u32(at + 12, pio.into());
        ring.write(at + 16, &bytes);
        // The entry is complete before user space sees it; x86 keeps stores in order, and so must the compiler.
        core::sync::atomic::fence(Release);
        ring.set_u32(LAST, next);
        true
    }
}
