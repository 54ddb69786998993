//! Costs per exit and per ioctl, in nanoseconds of the clock. Under an instruction-counting emulator (`-icount shift=0`) a
//! nanosecond is one host instruction. Each kind prints `BENCH <kind> <count>`; for exits, an empty round is taken off.
//!
//! `bench [KIND [ROUNDS]]` limits the run to the kinds whose name contains KIND.

mod guest;
mod hyperv;
mod interrupt;
mod kinds;
mod memory;
mod migrate;
mod outside;
mod pair;
mod upgrade;
mod window;

use anyhow::{Context, Result};
use std::time::Duration;
use tests::client::Client;

/// One measurement.
pub struct Kind {
    pub name: &'static str,
    pub measure: Box<dyn Fn(u32) -> Result<f64>>,
}

fn main() -> Result<()> {
    let only = std::env::args().nth(1).unwrap_or_default();
    let rounds = std::env::args().nth(2).map_or(Ok(4000), |n| n.parse()).context("ROUNDS")?;
    let kinds = [kinds::all(&only), pair::all(), memory::all(), outside::all(), migrate::all(), upgrade::all()];
    let kinds = kinds.into_iter().flatten();
    // Loading a module starts work in the background (the kernel tests its ciphers, for one): let it end.
    if only.is_empty() {
        std::thread::sleep(Duration::from_secs(20));
    }
    // With it, nanoseconds are cycles.
    println!("TSC {} kHz", Client::new(1 << 20, false)?.vcpu(0)?.get_tsc_khz().context("KVM_GET_TSC_KHZ")?);
    for kind in kinds.filter(|kind| kind.name.contains(&only)) {
        window::name(kind.name);
        println!("BENCH {} {:.0}", kind.name, (kind.measure)(rounds).with_context(|| kind.name)?);
    }
    Ok(())
}
