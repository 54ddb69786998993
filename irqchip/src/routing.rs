//! The GSI routing table: which interrupt controller pins and MSIs a GSI stands for.
//! KVM API document section 4.52 (KVM_SET_GSI_ROUTING) and KVM_CAP_SPLIT_IRQCHIP.
//!
//! A table never changes once it is built; the VM swaps whole tables.

extern crate alloc;
use alloc::vec::Vec;

use crate::bits::Bits256;
use crate::lapic::Lapic;
use crate::message::{Message, MsiFormat};
use arch::GuestIndexed;
use state::{Reader, Refused, State, Why, Writer};

/// KVM_MAX_IRQ_ROUTES: the number of routes, and of GSIs.
pub const MAX_ROUTES: usize = 4096;
/// Pins of the IOAPIC.
pub const IOAPIC_PINS: usize = 24;
/// Pins of one 8259.
const PIC_PINS: u8 = 8;

/// KVM_IRQCHIP_PIC_MASTER, _PIC_SLAVE, _IOAPIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Chip {
    /// The 8259 at ports 0x20 and 0x21.
    PicMaster = 0,
    /// The 8259 at ports 0xa0 and 0xa1.
    PicSlave = 1,
    /// The IOAPIC.
    Ioapic = 2,
}

impl Chip {
    /// From `kvm_irq_routing_irqchip.irqchip` or `kvm_irqchip.chip_id`.
    pub const fn from_id(id: u32) -> Option<Chip> {
        match id {
            0 => Some(Chip::PicMaster),
            1 => Some(Chip::PicSlave),
            2 => Some(Chip::Ioapic),
            _ => None,
        }
    }

    const fn first_pin(self) -> usize {
        match self {
            Chip::PicMaster => 0,
            Chip::PicSlave => PIC_PINS as usize,
            Chip::Ioapic => 2 * PIC_PINS as usize,
        }
    }

    const fn pins(self) -> u8 {
        match self {
            Chip::PicMaster | Chip::PicSlave => PIC_PINS,
            Chip::Ioapic => IOAPIC_PINS as u8,
        }
    }
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// KVM_IRQ_ROUTING_IRQCHIP: a pin, 0 to 7 of a PIC or 0 to 23 of the IOAPIC.
    Pin {
        /// The controller.
        chip: Chip,
        /// Its pin.
        pin: u8,
    },
    /// KVM_IRQ_ROUTING_MSI.
    Msi {
        /// address_hi in bits 63:32.
        address: u64,
        /// The data word.
        data: u32,
    },
    /// KVM_IRQ_ROUTING_HV_SINT: a source of a synthetic interrupt controller (Hyper-V).
    HvSint {
        /// The vCPU's number among the guest's (HV_X64_MSR_VP_INDEX); it need not exist.
        vp_index: u32,
        /// The source; 16 and above is none.
        sint: u32,
    },
}

/// One entry of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// 0 to 4095.
    pub gsi: u32,
    /// Where it leads.
    pub target: Target,
}

/// Which interrupt controllers the kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChipMode {
    /// None.
    None,
    /// Local APICs only (KVM_CAP_SPLIT_IRQCHIP).
    Split,
    /// Local APICs, IOAPIC and PICs (KVM_CREATE_IRQCHIP).
    Kernel,
}

/// Why a table was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoutingError {
    /// EINVAL.
    Invalid,
    /// ENOMEM.
    NoMemory,
}

/// Routes by GSI.
#[derive(Debug)]
pub struct RoutingTable {
    /// Sorted by GSI; in the caller's order within one GSI.
    routes: Vec<Route>,
    /// `starts[gsi]..starts[gsi + 1]` are the routes of `gsi`. One longer than the highest GSI plus one.
    starts: GuestIndexed<Vec<u16>>,
    /// The GSI that leads to each pin, for the way back at EOI: 8 of each PIC, then the IOAPIC's.
    gsis: GuestIndexed<[Option<u16>; PINS]>,
}

/// Pins of all controllers.
const PINS: usize = 2 * PIC_PINS as usize + IOAPIC_PINS;

impl RoutingTable {
    /// No routes: the start with KVM_CAP_SPLIT_IRQCHIP.
    pub const fn empty() -> Self {
        RoutingTable {
            routes: Vec::new(),
            starts: GuestIndexed::new(Vec::new()),
            gsis: GuestIndexed::new([None; PINS]),
        }
    }

    /// The routes after KVM_CREATE_IRQCHIP: GSI 0 to 15 lead to the IOAPIC and the PICs, 16 to 23 to the IOAPIC.
    pub fn default_kernel() -> Result<Self, RoutingError> {
        let mut routes = Vec::new();
        for gsi in 0..IOAPIC_PINS as u8 {
            push(&mut routes, Route { gsi: gsi.into(), target: Target::Pin { chip: Chip::Ioapic, pin: gsi } })?;
            let (chip, pin) = match gsi {
                0..8 => (Chip::PicMaster, gsi),
                8..16 => (Chip::PicSlave, gsi - PIC_PINS),
                _ => continue,
            };
            push(&mut routes, Route { gsi: gsi.into(), target: Target::Pin { chip, pin } })?;
        }
        Self::build(&routes, ChipMode::Kernel, false)
    }

    /// Checks and sorts `routes`. Refused are: too many routes, a GSI of 4096 or more, pins that do not exist or whose
    /// controller is not in the kernel, a GSI that leads to one controller twice or to an MSI and anything else, and,
    /// with `x2apic_format`, an MSI with bits 39:32 of the address set.
    pub fn build(routes: &[Route], mode: ChipMode, x2apic_format: bool) -> Result<Self, RoutingError> {
        if routes.len() > MAX_ROUTES || !routes.iter().all(|r| is_valid(r, mode, x2apic_format)) {
            return Err(RoutingError::Invalid);
        }
        let table = Self::sorted(routes)?;
        let clash = routes.iter().any(|r| clashes(table.lookup(r.gsi)));
        if clash { Err(RoutingError::Invalid) } else { Ok(table) }
    }

    /// The table of routes that are valid one by one.
    fn sorted(routes: &[Route]) -> Result<Self, RoutingError> {
        let gsis = routes.iter().map(|r| r.gsi as usize + 1).max().unwrap_or(0);
        let mut starts: Vec<u16> = Vec::new();
        starts.try_reserve_exact(gsis + 1).map_err(|_| RoutingError::NoMemory)?;
        starts.resize(gsis + 1, 0);
        // Counting sort. First the number of routes of each GSI, one place up; then the sums.
        for route in routes {
            // INDEX: `is_valid` bounds it; the table is written, and not with what the caller must not know.
            if let Some(count) = starts.get_mut(route.gsi as usize + 1) {
                *count = count.saturating_add(1);
            }
        }
        let mut sum = 0u16;
        for start in &mut starts {
            sum = sum.saturating_add(*start);
            *start = sum;
        }
        let mut sorted: Vec<Route> = Vec::new();
        sorted.try_reserve_exact(routes.len()).map_err(|_| RoutingError::NoMemory)?;
        sorted.extend_from_slice(routes);
        sort_by_gsi(&mut sorted, routes, &starts)?;
        let mut by_pin = GuestIndexed::new([None; PINS]);
        for route in routes {
            if let Target::Pin { chip, pin } = route.target {
                // Of several GSIs that lead to one pin the last counts, as in KVM.
                if let Some(gsi) = by_pin.get_nospec_mut(chip.first_pin() + usize::from(pin)) {
                    *gsi = Some(route.gsi as u16);
                }
            }
        }
        Ok(RoutingTable { routes: sorted, starts: GuestIndexed::new(starts), gsis: by_pin })
    }

    /// The routes of `gsi`, in the order in which userspace gave them.
    #[inline]
    pub fn lookup(&self, gsi: u32) -> &[Route] {
        let start = |i: usize| self.starts.get_nospec(i).map(|&s| usize::from(s));
        match (start(gsi as usize), start((gsi as usize).wrapping_add(1))) {
            // INDEX: from the table of starts, which was read at a clamped place.
            (Some(from), Some(to)) => self.routes.get(from..to).unwrap_or(&[]),
            _ => &[],
        }
    }

    /// The GSI that leads to `pin` of `chip`.
    pub fn gsi_of(&self, chip: Chip, pin: u8) -> Option<u32> {
        self.gsis.get_nospec(chip.first_pin() + usize::from(pin)).copied().flatten().map(u32::from)
    }

    /// All routes, by GSI.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// For a split irqchip: the vectors whose EOI on the vCPU of `lapic` ends with KVM_EXIT_IOAPIC_EOI. These are the
    /// level-triggered MSIs of the GSIs that are reserved for the IOAPIC (below `reserved_pins`, the argument of
    /// KVM_CAP_SPLIT_IRQCHIP) which address this vCPU now, or whose vector it still has to end.
    pub fn eoi_exit_bitmap(&self, reserved_pins: u32, lapic: &Lapic, format: MsiFormat) -> Bits256 {
        let address = lapic.address();
        let mut bitmap = Bits256::EMPTY;
        for route in self.routes.iter().take_while(|r| r.gsi < reserved_pins) {
            if let Target::Msi { address: msi, data } = route.target {
                let m = Message::from_msi(msi, data, format);
                if m.level && (address.matches(&m, false) || lapic.in_service_or_pending(m.vector)) {
                    bitmap.set(m.vector);
                }
            }
        }
        bitmap
    }
}

/// The table is made anew from its routes. Which GSI a pin leads back to is written, because it hangs on the order in which user
/// space gave the routes of different GSIs.
impl State for RoutingTable {
    fn save(&self, w: &mut Writer) {
        let Self { routes, starts: _, gsis } = self;
        routes.save(w);
        gsis.save(w);
    }
    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), Refused> {
        let routes: Vec<Route> = r.value()?;
        // What a switch of the VM has come to forbid since is as good as it was: only places are looked at.
        if routes.len() > MAX_ROUTES || !routes.iter().all(|route| is_valid(route, ChipMode::Kernel, false)) {
            return Err(r.bad("a route"));
        }
        *self = Self::sorted(&routes).map_err(|_| r.refuse(Why::NoMemory))?;
        self.gsis.load(r)
    }
}

fn push(routes: &mut Vec<Route>, route: Route) -> Result<(), RoutingError> {
    routes.try_reserve(1).map_err(|_| RoutingError::NoMemory)?;
    routes.push(route);
    Ok(())
}

fn is_valid(route: &Route, mode: ChipMode, x2apic_format: bool) -> bool {
    (route.gsi as usize) < MAX_ROUTES
        && match route.target {
            Target::Pin { chip, pin } => mode == ChipMode::Kernel && pin < chip.pins(),
            Target::Msi { address, .. } => !x2apic_format || address >> 32 & 0xff == 0,
            Target::HvSint { .. } => true,
        }
}

/// Puts every route of `from` at its place in `to`. Stable. `starts` as in [`RoutingTable`].
fn sort_by_gsi(to: &mut [Route], from: &[Route], starts: &[u16]) -> Result<(), RoutingError> {
    let mut next: Vec<u16> = Vec::new();
    next.try_reserve_exact(starts.len()).map_err(|_| RoutingError::NoMemory)?;
    next.extend_from_slice(starts);
    for route in from {
        // INDEX: as for the starts: the table is written.
        let place = next.get_mut(route.gsi as usize);
        // INDEX: a place that the sums of `starts` give, which are ours.
        if let Some((place, slot)) = place.and_then(|p| to.get_mut(usize::from(*p)).map(|slot| (p, slot))) {
            *slot = *route;
            *place = place.saturating_add(1);
        }
    }
    Ok(())
}

/// Whether the routes of one GSI exclude each other.
fn clashes(routes: &[Route]) -> bool {
    routes.iter().enumerate().any(|(i, a)| {
        routes.iter().skip(i + 1).any(|b| match (a.target, b.target) {
            (Target::Pin { chip: x, .. }, Target::Pin { chip: y, .. }) => x == y,
            _ => true,
        })
    })
}
