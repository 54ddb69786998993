//! Who a message is for: from destinations to vCPUs, through the tables of [`ApicMap`] where they tell.

use crate::{Vcpu, Vm};
use core::sync::atomic::Ordering::Relaxed;
use host::{Errno, Host, rank};
use irqchip::{Accept, Address, ApicMap, Candidates, Message, pick_lowest};
use lock_api::{Mutex, MutexGuard};

/// Where an interrupt is raised, which says how much may be done for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Context {
    /// In a task, with interrupts on.
    Task,
    /// Anywhere, perhaps with interrupts off: no more vCPUs are looked at than a destination has in tables
    /// ([`Candidates::MOST`]), or the VM has altogether. Guests choose the destinations of their devices.
    Any,
}

/// This is for more vCPUs than [`Context::Any`] allows. None has been told: to be done in a task.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Later;

/// The tables, and who may rebuild them.
pub(crate) struct Apics<H: Host> {
    map: ApicMap,
    rebuilding: Mutex<H::RawSpin<{ rank::APICS }>, ()>,
}

impl<H: Host> Apics<H> {
    /// Of a VM without vCPUs.
    pub const fn new() -> Self {
        Self { map: ApicMap::new(), rebuilding: Mutex::new(()) }
    }

    /// Makes room for a vCPU with this id, which is below [`MAX_VCPU_ID`](crate::MAX_VCPU_ID). Errors: ENOMEM.
    pub fn reserve(&self, id: u32) -> Result<(), Errno> {
        const { assert!(crate::MAX_VCPU_ID <= ApicMap::LIMIT) };
        self.map.reserve(id).ok_or(Errno::ENOMEM)
    }
}

impl<H: Host> Apics<H> {
    /// A vCPU, for which there is room, can be found by its id.
    pub fn insert(&self, id: u32, index: usize) {
        self.map.insert(id, index);
    }

    /// One at a time looks at all vCPUs for what others then find without doing so.
    pub fn look_at_all(&self) -> MutexGuard<'_, H::RawSpin<{ rank::APICS }>, ()> {
        self.rebuilding.lock()
    }
}

impl<H: Host> Vm<H> {
    /// The vCPU with this id.
    #[inline]
    pub fn vcpu_by_id(&self, id: u32) -> Option<&Vcpu<H>> {
        self.vcpu(self.apics.map.by_id(id)?)
    }

    /// A new vCPU, for which room was made, can be addressed.
    pub(crate) fn vcpu_appeared(&self, id: u32, index: usize) {
        self.apics.map.insert(id, index);
        self.rebuild_apics();
        self.look_for_extint();
    }

    /// KVM_X2APIC_API_USE_32BIT_IDS.
    pub fn use_32bit_ids(&self) {
        self.config.x2apic_format.store(true, Relaxed);
        self.rebuild_apics();
    }

    /// What others may know of a vCPU's local APIC has changed.
    pub(crate) fn publish(&self, v: &Vcpu<H>, address: Address) {
        if v.address.load() != address {
            v.address.store(address);
            self.rebuild_apics();
        }
    }

    /// Looks at every vCPU once; who stores an address and calls this afterwards is in the tables when it returns.
    pub(crate) fn rebuild_apics(&self) {
        let wide = self.config.x2apic_format.load(Relaxed);
        let _one_at_a_time = self.apics.look_at_all();
        self.apics.map.rebuild(self.vcpus().map(|v| (v.index, v.address.load())), wide);
    }

    /// The VM has so few vCPUs that all of them may be looked at in any context.
    pub(crate) fn has_few_vcpus(&self) -> bool {
        self.count.load(Relaxed) <= Candidates::MOST
    }

    /// The vCPUs that a message may be for; None: all of them.
    #[inline]
    pub(crate) fn candidates(
        &self,
        context: Context,
        m: &Message,
        sender: Option<usize>,
    ) -> Result<Option<Candidates>, Later> {
        let some = self.apics.map.candidates(m, sender);
        if some.is_none() && context == Context::Any && !self.has_few_vcpus() { Err(Later) } else { Ok(some) }
    }

    /// Sends a message to every vCPU that it matches. Returns how many took it. None if it matched nobody, and all had to
    /// be looked at to know that: as on stock, where the tables alone tell, nobody is 0. `sender` is the index of the
    /// vCPU that sent it.
    pub fn send(&self, m: &Message, sender: Option<usize>) -> Option<u32> {
        self.send_among(self.apics.map.candidates(m, sender), m, sender, |_| {}, || {})
    }

    /// The same where [`candidates`](Self::candidates) are known. `took` is called for each vCPU that takes it, right before it
    /// does, and `pause` each time that as many were looked at as a destination has in tables, if they do not know this one:
    /// whoever has interrupts off lets them come.
    #[inline]
    pub(crate) fn send_among(
        &self,
        candidates: Option<Candidates>,
        m: &Message,
        sender: Option<usize>,
        took: impl Fn(&Vcpu<H>),
        pause: impl FnMut(),
    ) -> Option<u32> {
        match candidates {
            Some(c) => {
                let some = c.iter().filter_map(|n| self.vcpu(n));
                let taken = Self::send_to(m, sender, took, some, || {});
                taken.or_else(|| self.has_vcpus().then_some(0))
            }
            None => Self::send_to(m, sender, took, self.vcpus(), pause),
        }
    }

    /// KVM_HC_SEND_IPI: sends `icr` to the vCPUs whose ids are `min` plus the numbers of the bits set in `masks`, each
    /// of `width` bits (KVM's hypercalls document). The hypercall's result: the number of vCPUs that took it, or
    /// -EINVAL.
    pub(crate) fn send_pv_ipi(&self, masks: [u64; 2], min: u64, icr: u32, width: u32) -> u64 {
        const EINVAL: u64 = -22i64 as u64;
        let Some(m) = Message::from_pv_ipi(icr) else { return EINVAL };
        let mut taken = 0;
        for (mask, first) in masks.into_iter().zip([0, width]) {
            for n in (0..width).filter(|n| mask >> n & 1 != 0) {
                let id = min.saturating_add(u64::from(first + n));
                let target = u32::try_from(id).ok().and_then(|id| self.vcpu_by_id(id));
                taken += target.map_or(0, |v| u64::from(v.deliver(v.address.load().accept(&m))));
            }
        }
        taken
    }

    fn send_to<'a>(
        m: &Message,
        sender: Option<usize>,
        took: impl Fn(&Vcpu<H>),
        some: impl Iterator<Item = &'a Vcpu<H>> + Clone,
        mut pause: impl FnMut(),
    ) -> Option<u32> {
        let matches = |v: &&Vcpu<H>| v.address.load().matches(m, sender == Some(v.index));
        let take = |v: &Vcpu<H>| {
            let what = v.address.load().accept(m);
            if what != Accept::Refused {
                // Before it can be over.
                took(v);
            }
            u32::from(v.deliver(what))
        };
        let mut looked = 0usize;
        let mut look = |_: &&Vcpu<H>| {
            looked += 1;
            if looked % Candidates::MOST == 0 {
                pause();
            }
        };
        if m.lowest {
            let n = some.clone().inspect(&mut look).filter(matches).count();
            // INDEX: steps through an iterator that ends.
            return some.inspect(look).filter(matches).nth(pick_lowest(m.vector, n)).map(take);
        }
        some.inspect(look).filter(matches).fold(None, |sum, v| Some(sum.unwrap_or(0) + take(v)))
    }
}
