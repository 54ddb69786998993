//! How the interrupt controllers are written into the state of a VM.

use crate::bits::Bits256;
use crate::lapic::{Config, Features};
use crate::lines::Lines;
use crate::routing::{Chip, Route, Target};
use state::{Reader, Refused, State, Writer};

::state::state! {
    wrap Bits256
    value Config { vcpu_id, bsp, bus_cycle_ns, min_period_ns, lint0_reenabled }
    value Features { x2apic, tsc_deadline, directed_eoi }
    value Route { gsi, target }
}

::state::tagged! {
    Target { 0 = Pin { chip, pin }, 1 = Msi { address, data }, 2 = HvSint { vp_index, sint } }
}

::state::units! { Chip { PicMaster, PicSlave, Ioapic } }

impl<const N: usize> State for Lines<N> {
    fn save(&self, w: &mut Writer) {
        self.0.save(w);
    }
    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), Refused> {
        self.0.load(r)
    }
}
