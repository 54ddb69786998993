//! The PC's interrupt hardware as KVM presents it: local APIC, IOAPIC, the two 8259 PICs, the 8254 PIT and the GSI
//! routing table, as pure state machines.
//!
//! Nothing here knows a clock, a lock or another vCPU. Time is passed in (`now_ns`, the host's monotonic nanoseconds),
//! and whatever must happen outside a machine comes back as a value: an [`Effect`] of a register write, a [`Message`]
//! to be delivered, a [`TimerEffect`]. The caller carries it out.
//!
//! An interrupt travels so: a route, a pin or an ICR write yields a [`Message`]; for every vCPU the sender asks its
//! [`Address`] whether the message [`matches`](Address::matches) and what it [`would do`](Address::accept); a plain
//! interrupt is [posted](Pir::post) to the vCPU's [`Pir`], which the owner of the [`Lapic`] drains before guest entry.
//!
//! Sources: AMD64 APM volume 2 chapter 16 (local APIC, x2APIC), the 8259A and 8254 data sheets, the 82093AA
//! (IOAPIC) data sheet, and the KVM API document for layouts and for what KVM leaves out.
#![no_std]
#![forbid(unsafe_code)]

mod address;
mod bits;
pub mod ioapic;
pub mod lapic;
mod lines;
mod map;
mod message;
pub mod pic;
mod pir;
pub mod pit;
pub mod routing;
mod states;

pub use address::{Accept, Address, AddressCell};
pub use bits::Bits256;
pub use ioapic::{EoiPin, Ioapic, IoapicWrite, Line, PinMessage};
pub use lapic::{
    APIC_BASE_BSP, Config, Effect, Eoi, Features, Gp, InvalidState, Lapic, Lint0, Lvt, Mode, TimerEffect, Vapic,
    checked_base,
};
pub use map::{ApicMap, Candidates};
pub use message::{DeliveryMode, Message, MsiFormat, Shorthand, pick_lowest};
pub use pic::{Pic, PicAck, PicChip, PicWrite};
pub use pir::Pir;
pub use pit::{Pit, PitTick};
pub use routing::{Chip, ChipMode, IOAPIC_PINS, MAX_ROUTES, Route, RoutingError, RoutingTable, Target};
