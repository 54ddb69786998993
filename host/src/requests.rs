//! A vCPU's requests and mode: what other threads ask of it (`kvm_make_request`), and whether a kick needs an IPI.
//!
//! The protocol is the store-buffer pattern. The vCPU publishes "in guest" and then looks at the requests; a
//! requester publishes the request and then looks at the mode. Both sides use sequentially consistent accesses, so
//! at least one of them sees the other: a request made before VMRUN is either seen before entry or kicked out.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};

/// Things that have to be done by the vCPU's own thread before it enters the guest again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Request {
    /// An interrupt, NMI, INIT or SIPI is waiting.
    Event = 0,
    /// The local APIC timer expired.
    Timer = 1,
    /// The TLB of this vCPU's nested mappings is stale.
    TlbFlush = 2,
    /// The paravirtual clock page needs an update.
    ClockUpdate = 4,
    /// A page that was waited for has come in.
    ApfReady = 3,
    /// The set of userspace IOAPIC vectors changed.
    ScanIoapic = 5,
    /// The MSR filter changed.
    MsrFilter = 6,
    /// The thread has got a CPU after it had lost one, or another one than before: steal time, and clocks that differ
    /// between CPUs. The thread itself makes it.
    StealUpdate = 7,
    /// The VM is dead: leave with EIO.
    VmDead = 8,
    /// Only leave guest mode; whoever asked looks at something else.
    Kick = 9,
    /// A guest of Hyper-V's: a synthetic timer has to be looked at, or user space to be told something.
    Hyperv = 10,
    /// The dirty ring is nearly full: leave until user space has emptied it.
    DirtyRingFull = 11,
    /// What is traced of it has changed ([`TraceSet`](crate::TraceSet)): leave KVM_RUN as for a handover, and go on with it at once.
    Trace = 12,
    /// Leave KVM_RUN between two instructions of the guest, to go on with it later: the VM goes to another engine. Served
    /// after all others.
    HandOver = 31,
}

/// KVM_RUN is left for them and goes on, and nobody is told.
const LEAVES_QUIETLY: u64 = 1 << Request::HandOver as u8 | 1 << Request::Trace as u8;

const OUTSIDE: u32 = 0;
const IN_GUEST: u32 = VcpuRequests::IN_GUEST;

/// Requests and mode of one vCPU. Lock-free; any thread, any context. Engines that hand a vCPU on to each other, and the base
/// under them, share it: the requests' bits are at offset 0, the mode at 8.
#[derive(Default)]
#[repr(C)]
pub struct VcpuRequests {
    requests: AtomicU64,
    mode: AtomicU32,
}

const _: () = {
    assert!(core::mem::offset_of!(VcpuRequests, requests) == 0);
    assert!(core::mem::offset_of!(VcpuRequests, mode) == 8);
};

impl VcpuRequests {
    /// The mode of a vCPU that may be in its guest.
    pub const IN_GUEST: u32 = 1;

    /// Nothing is asked for, and the vCPU is outside of the guest.
    pub const fn new() -> Self {
        Self { requests: AtomicU64::new(0), mode: AtomicU32::new(OUTSIDE) }
    }

    /// Asks for something. The caller kicks or wakes the vCPU afterwards.
    #[inline]
    pub fn make_request(&self, r: Request) {
        self.requests.fetch_or(1 << r as u8, SeqCst);
    }

    /// True if anything at all is asked for.
    #[inline]
    pub fn pending(&self) -> bool {
        self.requests.load(Relaxed) != 0
    }

    /// Takes all requests at once.
    #[inline]
    pub fn take_all(&self) -> Requests {
        Requests(if self.pending() { self.requests.swap(0, SeqCst) } else { 0 })
    }

    /// True if anything is asked for but what the guest takes no notice of: a handover, or another set of trace events.
    #[inline]
    pub fn pending_for_guest(&self) -> bool {
        self.requests.load(Relaxed) & !LEAVES_QUIETLY != 0
    }

    /// The word that holds a bit for each request, to be looked at.
    pub fn word(&self) -> &AtomicU64 {
        &self.requests
    }

    /// Looks at one request and leaves it.
    #[inline]
    pub fn test_request(&self, r: Request) -> bool {
        self.requests.load(SeqCst) & 1 << r as u8 != 0
    }

    /// vCPU side, interrupts off, last thing before entry: true if it may enter; otherwise the mode is unchanged.
    #[inline]
    pub fn try_enter(&self) -> bool {
        self.mode.swap(IN_GUEST, SeqCst);
        if self.requests.load(SeqCst) == 0 {
            return true;
        }
        self.mode.store(OUTSIDE, Release);
        false
    }

    /// vCPU side, right after #VMEXIT, interrupts still off.
    #[inline]
    pub fn leave(&self) {
        self.mode.store(OUTSIDE, Release);
    }

    /// Requester side, after [`make_request`](Self::make_request): true if the vCPU may be in the guest and needs an IPI.
    #[inline]
    pub fn needs_ipi(&self) -> bool {
        self.mode.load(SeqCst) == IN_GUEST
    }
}

/// A set of requests that was taken from [`VcpuRequests`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests(u64);

impl Requests {
    /// True if the set holds `r`.
    #[inline]
    pub fn has(self, r: Request) -> bool {
        self.0 & 1 << r as u8 != 0
    }

    /// True if KVM_RUN is to be left, and to go on without anybody having been told.
    #[inline]
    pub fn leaves_quietly(self) -> bool {
        self.0 & LEAVES_QUIETLY != 0
    }

    /// True if there is none.
    #[inline]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}
