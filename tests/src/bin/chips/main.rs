//! What the interrupt controllers and the timer in the kernel do, printed line by line. The same program runs on stock
//! kvm-amd and on ours, and every line is compared; so nothing that is printed depends on the time.

mod calls;
mod events;
mod hand;
mod ioapic;
mod pics;
mod pit;

use anyhow::Result;

fn main() -> Result<()> {
    calls::creation()?;
    calls::states()?;
    calls::messages()?;
    pics::by_hand()?;
    pics::at_random()?;
    ioapic::by_hand()?;
    ioapic::clock()?;
    ioapic::at_random()?;
    pit::registers()?;
    pit::ticks()?;
    events::resampling()?;
    events::coalescing()
}
