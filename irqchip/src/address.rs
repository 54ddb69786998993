//! What other threads may know of a vCPU's local APIC: its identity, its mode and whether it takes interrupts, packed
//! into one word that the owner publishes. Destination matching works on this word alone, so sending an interrupt
//! never touches another vCPU's [`Lapic`](crate::Lapic).
//! APM volume 2 sections 16.6.1 (destination modes), 16.14 (x2APIC logical ID).

use core::sync::atomic::{AtomicU64, Ordering};

use crate::message::{DeliveryMode, Message, Shorthand};

/// Identity and mode of one local APIC. See [`Lapic::address`](crate::Lapic::address).
///
/// Layout: bits 31:0 x2APIC ID, 39:32 xAPIC ID, 47:40 xAPIC logical ID, then the flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address(u64);

const FLAT: u64 = 1 << 48;
const CLUSTER: u64 = 1 << 49;
const HW_ENABLED: u64 = 1 << 50;
const X2APIC: u64 = 1 << 51;
const SW_ENABLED: u64 = 1 << 52;

/// What a target does with a message that matched it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accept {
    /// Nothing: disabled APIC, level de-assert, illegal vector, or a mode that no CPU takes as a message (ExtInt).
    Refused,
    /// Goes to IRR: post it to the target's [`Pir`](crate::Pir).
    Interrupt {
        /// 16 to 255.
        vector: u8,
        /// Level-triggered: an EOI goes to the IOAPIC.
        level: bool,
    },
    /// NMI becomes pending.
    Nmi,
    /// SMI becomes pending.
    Smi,
    /// INIT becomes pending.
    Init,
    /// A startup IPI: execution starts at `vector << 12`.
    Startup {
        /// Page number of the entry point.
        vector: u8,
    },
    /// PV unhalt (KVM_HC_KICK_CPU): the target leaves HLT.
    Unhalt,
}

/// Everything an [`Address`] is made of.
pub(crate) struct Parts {
    pub x2apic_id: u32,
    pub xapic_id: u8,
    pub logical_id: u8,
    pub dfr: u32,
    pub hw_enabled: bool,
    pub x2apic: bool,
    pub sw_enabled: bool,
}

/// The x2APIC logical ID of an APIC: cluster number in bits 31:16, one bit of 16 below. APM volume 2 section 16.14.
pub(crate) fn x2apic_logical_id(id: u32) -> u32 {
    (id >> 4) << 16 | 1 << (id & 15)
}

impl Address {
    /// No local APIC: nothing matches.
    pub const NONE: Address = Address(0);

    pub(crate) fn new(p: Parts) -> Address {
        let flag = |on: bool, bit: u64| if on { bit } else { 0 };
        Address(
            u64::from(p.x2apic_id)
                | u64::from(p.xapic_id) << 32
                | u64::from(p.logical_id) << 40
                // Bits 27:0 of DFR read as ones; models other than these two match nothing.
                | flag(p.dfr >> 28 == 0xf, FLAT)
                | flag(p.dfr >> 28 == 0, CLUSTER)
                | flag(p.hw_enabled, HW_ENABLED)
                | flag(p.x2apic, X2APIC)
                | flag(p.sw_enabled, SW_ENABLED),
        )
    }

    /// IA32_APIC_BASE.EN.
    pub fn hw_enabled(self) -> bool {
        self.0 & HW_ENABLED != 0
    }

    /// SVR bit 8. Without it NMI, INIT, SMI and startup are still taken, interrupts are not.
    pub fn sw_enabled(self) -> bool {
        self.0 & SW_ENABLED != 0
    }

    /// x2APIC mode.
    pub fn x2apic(self) -> bool {
        self.0 & X2APIC != 0
    }

    /// The x2APIC ID, which is the vCPU id in every mode.
    pub fn x2apic_id(self) -> u32 {
        self.0 as u32
    }

    /// The ID of xAPIC mode, which the guest may change.
    pub fn xapic_id(self) -> u8 {
        (self.0 >> 32) as u8
    }

    /// The logical ID of xAPIC mode.
    pub(crate) fn logical_id(self) -> u8 {
        (self.0 >> 40) as u8
    }

    /// DFR selects the flat model.
    pub(crate) fn is_flat(self) -> bool {
        self.0 & FLAT != 0
    }

    /// DFR selects the cluster model.
    pub(crate) fn is_cluster(self) -> bool {
        self.0 & CLUSTER != 0
    }

    /// Whether this APIC is among the addressees of `m`. `is_sender`: it sent the message itself (for shorthands).
    /// A hardware-disabled APIC is never addressed, a software-disabled one never by a message for one receiver of several.
    #[inline]
    pub fn matches(self, m: &Message, is_sender: bool) -> bool {
        self.hw_enabled()
            && (self.sw_enabled() || !m.lowest || !m.logical && !self.is_broadcast(m))
            && match m.shorthand {
                Shorthand::SelfOnly => is_sender,
                Shorthand::AllIncludingSelf => true,
                Shorthand::AllExcludingSelf => !is_sender,
                Shorthand::None => self.matches_dest(m),
            }
    }

    fn matches_dest(self, m: &Message) -> bool {
        let dest = m.dest;
        if self.is_broadcast(m) {
            return true;
        }
        if !m.logical {
            // A vCPU whose ID does not fit 8 bits is reachable by its x2APIC ID even while it is in xAPIC mode:
            // hot-plugged vCPUs start so.
            return if self.x2apic() || dest > 0xff {
                dest == self.x2apic_id()
            } else {
                dest == u32::from(self.xapic_id())
            };
        }
        if self.x2apic() {
            let own = x2apic_logical_id(self.x2apic_id());
            return own >> 16 == dest >> 16 && own & dest & 0xffff != 0;
        }
        let own = u32::from(self.logical_id());
        if self.is_flat() {
            own & dest != 0
        } else if self.is_cluster() {
            own >> 4 == dest >> 4 && own & dest & 0xf != 0
        } else {
            false
        }
    }

    fn is_broadcast(self, m: &Message) -> bool {
        if self.x2apic() { m.dest == u32::MAX || m.dest == 0xff && m.ff_is_broadcast } else { m.dest == 0xff }
    }

    /// What this APIC does with `m`, provided that it [`matches`](Self::matches).
    #[inline]
    pub fn accept(self, m: &Message) -> Accept {
        if !self.hw_enabled() {
            return Accept::Refused;
        }
        match m.mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                // Vectors 0 to 15 are illegal (APM volume 2 section 16.4.6): never delivered.
                if !self.sw_enabled() || m.level && !m.assert || m.vector < 16 {
                    Accept::Refused
                } else {
                    Accept::Interrupt { vector: m.vector, level: m.level }
                }
            }
            DeliveryMode::Smi => Accept::Smi,
            DeliveryMode::RemoteRead => Accept::Unhalt,
            DeliveryMode::Nmi => Accept::Nmi,
            DeliveryMode::Init if m.level && !m.assert => Accept::Refused,
            DeliveryMode::Init => Accept::Init,
            DeliveryMode::Startup => Accept::Startup { vector: m.vector },
            DeliveryMode::ExtInt => Accept::Refused,
        }
    }
}

/// An [`Address`] that its owner publishes and senders read.
#[derive(Debug)]
pub struct AddressCell(AtomicU64);

impl AddressCell {
    /// Starts with `address`.
    pub const fn new(address: Address) -> Self {
        AddressCell(AtomicU64::new(address.0))
    }

    /// The last published address.
    #[inline]
    pub fn load(&self) -> Address {
        Address(self.0.load(Ordering::Acquire))
    }

    /// Publishes `address`.
    pub fn store(&self, address: Address) {
        self.0.store(address.0, Ordering::Release);
    }
}
