//! Guests made up from a seed, that do things at the edges of what a processor and a hypervisor take: states within and just outside
//! of what VMRUN accepts, instructions at devices and at the borders of pages, events that wait, slots that change, memory that
//! the host takes away. Each step is a line: what was done, how it left, and what the vCPU was then. The same program runs on
//! stock kvm-amd and on ours, and every line is compared.
//!
//! `guests FROM..TO` does the seeds of a range, `guests SEED.STEP` one step, with all that is known of it.

mod instruction;
mod leave;
mod registers;
mod world;

use anyhow::{Context, Result, ensure};
use tests::random::Random;
use world::World;

/// Steps of a guest.
const STEPS: u64 = 24;

fn main() -> Result<()> {
    let word = std::env::args().nth(1).unwrap_or("1..25".to_owned());
    let (from, to, only) = match word.split_once("..") {
        Some((from, to)) => (from.parse()?, to.parse()?, None),
        None => {
            let (seed, step) = word.split_once('.').context("guests FROM..TO, or guests SEED.STEP")?;
            let seed: u64 = seed.parse()?;
            (seed, seed + 1, Some(step.parse::<u64>()?))
        }
    };
    ensure!(from < to, "there is no seed in {word}");
    for seed in from..to {
        // Each step's numbers are its own, so that one which comes out differently does not change what follows.
        let mut random = Random((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut world = World::new(&mut random)?;
        for step in 0..STEPS {
            let mut random = random.fork();
            let line = world.step(&mut random, only == Some(step))?;
            if only.is_none_or(|only| only == step) {
                println!("{seed}.{step} {line}");
            }
        }
    }
    Ok(())
}
