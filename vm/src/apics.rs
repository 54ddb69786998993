//! Who a message is for: from destinations to vCPUs, through the tables of [`ApicMap`] where they tell.

use crate::{Vcpu, Vm};
use core::sync::atomic::Ordering::Relaxed;
use host::{Errno, Host, rank};
use irqchip::{Address, ApicMap, Message, pick_lowest};
use lock_api::Mutex;

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
        let _one_at_a_time = self.apics.rebuilding.lock();
        self.apics.map.rebuild(self.vcpus().map(|v| (v.index, v.address.load())), wide);
    }

    /// Sends a message to every vCPU that it matches. Returns how many took it. None if it matched nobody, and all had to
    /// be looked at to know that: as on stock, where the tables alone tell, nobody is 0. `sender` is the index of the
    /// vCPU that sent it.
    pub fn send(&self, m: &Message, sender: Option<usize>) -> Option<u32> {
        self.send_noting(m, sender, |_| {})
    }

    /// The same; `took` is called for each vCPU that takes it.
    pub(crate) fn send_noting(&self, m: &Message, sender: Option<usize>, took: impl Fn(&Vcpu<H>)) -> Option<u32> {
        match self.apics.map.candidates(m, sender) {
            Some(c) => {
                let taken = self.send_to(m, sender, took, || c.iter().filter_map(|n| self.vcpu(n)));
                taken.or_else(|| self.has_vcpus().then_some(0))
            }
            None => self.send_to(m, sender, took, || self.vcpus()),
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

    fn send_to<'a, I: Iterator<Item = &'a Vcpu<H>>>(
        &self,
        m: &Message,
        sender: Option<usize>,
        took: impl Fn(&Vcpu<H>),
        some: impl Fn() -> I,
    ) -> Option<u32> {
        let matching = || some().filter(|v| v.address.load().matches(m, sender == Some(v.index)));
        let take = |v: &Vcpu<H>| {
            let taken = v.deliver(v.address.load().accept(m));
            if taken {
                took(v);
            }
            u32::from(taken)
        };
        if m.lowest {
            let n = matching().count();
            // INDEX: steps through an iterator that ends.
            return matching().nth(pick_lowest(m.vector, n)).map(take);
        }
        matching().fold(None, |sum, v| Some(sum.unwrap_or(0) + take(v)))
    }
}
