//! Interrupt messages: one value for what an ICR write, an MSI and an IOAPIC pin put on the APIC bus.
//! APM volume 2 section 16.5 (interrupt command register), KVM API document "KVM_SIGNAL_MSI", KVM_CAP_X2APIC_API.

/// What the receiver does with a message. The numbers are those of ICR, LVT, MSI data and IOAPIC bits 10:8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum DeliveryMode {
    /// The vector is set in IRR.
    Fixed = 0,
    /// As Fixed, at one of the addressed CPUs.
    LowestPriority = 1,
    /// System management interrupt.
    Smi = 2,
    /// Obsolete in hardware; KVM wakes the target (PV unhalt).
    RemoteRead = 3,
    /// Non-maskable interrupt; the vector does not matter.
    Nmi = 4,
    /// INIT, or its level de-assert, which is ignored.
    Init = 5,
    /// Startup IPI.
    Startup = 6,
    /// The vector comes from the 8259.
    ExtInt = 7,
}

impl DeliveryMode {
    /// From bits 10:8 of ICR, LVT, MSI data or an IOAPIC entry, passed in bits 2:0.
    pub const fn from_bits(bits: u32) -> DeliveryMode {
        match bits & 7 {
            0 => DeliveryMode::Fixed,
            1 => DeliveryMode::LowestPriority,
            2 => DeliveryMode::Smi,
            3 => DeliveryMode::RemoteRead,
            4 => DeliveryMode::Nmi,
            5 => DeliveryMode::Init,
            6 => DeliveryMode::Startup,
            _ => DeliveryMode::ExtInt,
        }
    }
}

/// ICR bits 19:18.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shorthand {
    /// The destination field decides.
    None,
    /// The sender only.
    SelfOnly,
    /// Every CPU.
    AllIncludingSelf,
    /// Every CPU but the sender.
    AllExcludingSelf,
}

/// One interrupt message on its way to the vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// What the receiver does.
    pub mode: DeliveryMode,
    /// The vector; for Startup the page number of the entry point.
    pub vector: u8,
    /// Level-triggered (true) or edge-triggered.
    pub level: bool,
    /// Assert (true) or de-assert; matters for level-triggered messages only.
    pub assert: bool,
    /// Logical (true) or physical destination.
    pub logical: bool,
    /// Destination: 8 bits, or 32 bits from an x2APIC ICR and from extended MSI destinations.
    pub dest: u32,
    /// Overrides the destination.
    pub shorthand: Shorthand,
    /// Exactly one of the matching CPUs receives it: mode LowestPriority, or the redirection hint of an MSI.
    pub lowest: bool,
    /// Destination 0xff addresses everyone in x2APIC mode too: true for device messages unless
    /// KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK was enabled; false for IPIs.
    pub ff_is_broadcast: bool,
}

/// How the VM reads an MSI address: the two flags of KVM_CAP_X2APIC_API.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MsiFormat {
    /// KVM_X2APIC_API_USE_32BIT_IDS: bits 63:40 of the address extend the destination.
    pub x2apic_format: bool,
    /// KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK.
    pub broadcast_quirk_disabled: bool,
}

impl Message {
    /// Decodes the interrupt command register; `dest` is already widened by the caller.
    pub(crate) fn from_icr(low: u32, dest: u32) -> Message {
        let mode = DeliveryMode::from_bits(low >> 8);
        let logical = low & 1 << 11 != 0;
        Message {
            mode,
            vector: low as u8,
            level: low & 1 << 15 != 0,
            assert: low & 1 << 14 != 0,
            logical,
            dest,
            shorthand: match low >> 18 & 3 {
                0 => Shorthand::None,
                1 => Shorthand::SelfOnly,
                2 => Shorthand::AllIncludingSelf,
                _ => Shorthand::AllExcludingSelf,
            },
            lowest: wants_one(mode, logical, dest),
            ff_is_broadcast: false,
        }
    }

    /// The command of KVM_HC_SEND_IPI, an ICR value whose receivers are named in another way. None: it names them
    /// itself (shorthand or logical destination).
    pub fn from_pv_ipi(icr: u32) -> Option<Message> {
        let ipi = Self::from_icr(icr, 0);
        (!ipi.logical && ipi.shorthand == Shorthand::None).then_some(ipi)
    }

    /// Decodes an MSI. `address` holds address_hi in bits 63:32, as in `struct kvm_msi`. Destination bits 7:0 are
    /// address bits 19:12; with `x2apic_format` bits 31:8 are bits 63:40.
    pub fn from_msi(address: u64, data: u32, format: MsiFormat) -> Message {
        let low = address as u32;
        let high = (address >> 32) as u32;
        let mut dest = low >> 12 & 0xff;
        if format.x2apic_format {
            dest |= high & 0xffff_ff00;
        }
        let mode = DeliveryMode::from_bits(data >> 8);
        let logical = low & 1 << 2 != 0;
        Message {
            mode,
            vector: data as u8,
            level: data & 1 << 15 != 0,
            assert: true,
            logical,
            dest,
            shorthand: Shorthand::None,
            lowest: wants_one(mode, logical, dest) || low & 1 << 3 != 0,
            ff_is_broadcast: !format.broadcast_quirk_disabled,
        }
    }
}

/// Lowest priority asks for one receiver, except that a physical broadcast stays a broadcast.
pub(crate) fn wants_one(mode: DeliveryMode, logical: bool, dest: u32) -> bool {
    mode == DeliveryMode::LowestPriority && (logical || dest != 0xff)
}

/// Which of `candidates` matching vCPUs, counted in vCPU order, takes a lowest-priority message: the vector picks,
/// so that different vectors spread over the CPUs. 0 when there is no candidate.
pub fn pick_lowest(vector: u8, candidates: usize) -> usize {
    usize::from(vector).checked_rem(candidates).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn msi_fields() {
        let format = MsiFormat { x2apic_format: true, broadcast_quirk_disabled: true };
        let m = Message::from_msi(0x0001_0200_fee3_4004, 0x0000_c151, format);
        assert_eq!(m.dest, 0x0001_0234);
        assert!(m.logical && m.level && m.assert && m.lowest && !m.ff_is_broadcast);
        assert_eq!((m.mode, m.vector), (DeliveryMode::LowestPriority, 0x51));
        // Without the 32-bit format the high half is no destination.
        let m = Message::from_msi(0x0001_0200_fee3_4000, 0x0051, MsiFormat::default());
        assert_eq!(m.dest, 0x34);
        assert!(!m.logical && !m.level && !m.lowest && m.ff_is_broadcast);
        // The redirection hint asks for one receiver with mode Fixed too.
        assert!(Message::from_msi(0xfee0_0008, 0x0051, MsiFormat::default()).lowest);
    }

    #[test]
    fn every_mode_round_trips() {
        for bits in 0..8 {
            assert_eq!(DeliveryMode::from_bits(bits) as u32, bits);
        }
    }

    #[test]
    fn lowest_spreads_over_the_candidates() {
        assert_eq!(pick_lowest(0x31, 0), 0);
        let mut hits = [0; 3];
        for vector in 0x30..0x60 {
            hits[pick_lowest(vector, 3)] += 1;
        }
        assert_eq!(hits, [16; 3]);
    }
}
