//! Prints what KVM offers and what it lets one do: capabilities, CPUID, MSRs, clocks, memslots. The same program runs on stock
//! kvm-amd and on ours, and every line is compared; so nothing here depends on the time or on the run. `policy
//! guest-reads` and `policy user-writes` print that part alone.

mod calls;
mod devices;
mod hidden;
mod hyperv;
mod memslots;
mod msrs;
mod offered;
mod time;

use anyhow::Result;

fn main() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("guest-reads") => return msrs::guest_reads(),
        Some("user-writes") => return msrs::user_space_writes(),
        _ => {}
    }
    offered::capabilities()?;
    offered::cpuid()?;
    offered::msr_lists()?;
    msrs::initial_values()?;
    msrs::user_space_writes()?;
    msrs::guest_reads()?;
    time::frequencies()?;
    time::steps()?;
    calls::cpuid_checks()?;
    calls::machine_checks()?;
    calls::paravirtual()?;
    devices::all()?;
    hidden::components()?;
    hidden::rdtscp()?;
    hyperv::leaves()?;
    hyperv::capabilities()?;
    hyperv::registers()?;
    hyperv::calls()?;
    memslots::limits()
}
