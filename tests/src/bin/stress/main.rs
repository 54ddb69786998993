//! Guests and VMMs that do with the interrupt controllers what they like, at random: storms of messages, timers that never
//! stop, any register, eventfds that come and go. Nobody may suffer but they: no call fails in a way that is not documented,
//! and everything ends in time. `stress SEED` repeats a run as far as threads let it.

mod deeds;
mod guest;
mod life;
mod outside;
mod state;
mod storm;

use anyhow::{Result, bail, ensure};
use deeds::Area;
use std::time::Duration;
use storm::{Kind, Storm};
use tests::random::Random;

/// How long a storm lasts.
const TIME: Duration = Duration::from_millis(2500);

const CALM: Kind = Kind { areas: &[], full: false, x2apic: false, state: false };

/// A storm that nobody takes part in from outside.
fn alone(kind: Kind, random: Random) -> Result<()> {
    let mut storm = Storm::start(kind, random)?;
    storm.rage(TIME, |_, _| Ok(()))?;
    storm.end().map(drop)
}

fn ipis(random: Random) -> Result<()> {
    alone(Kind { areas: &[Area::Ipi], ..CALM }, random)
}

fn ipis_x2apic(random: Random) -> Result<()> {
    alone(Kind { areas: &[Area::Ipi], x2apic: true, ..CALM }, random)
}

fn timers(random: Random) -> Result<()> {
    alone(Kind { areas: &[Area::Timer], ..CALM }, random)
}

fn timers_x2apic(random: Random) -> Result<()> {
    alone(Kind { areas: &[Area::Timer, Area::Timer, Area::Ipi], x2apic: true, ..CALM }, random)
}

fn registers(random: Random) -> Result<()> {
    alone(Kind { areas: &[Area::Apic, Area::Chips], full: true, ..CALM }, random)
}

fn state(random: Random) -> Result<()> {
    alone(Kind { areas: &[Area::Ipi, Area::Timer, Area::Apic, Area::Chips], full: true, state: true, ..CALM }, random)
}

fn messages(random: Random) -> Result<()> {
    let mut storm = Storm::start(Kind { areas: &[Area::Ipi, Area::Chips], full: true, ..CALM }, random)?;
    storm.rage(TIME, |client, random| {
        match random.below(8) {
            0 => outside::routes(client, random)?,
            1 | 2 => outside::line(client, random)?,
            _ => outside::message(client, random)?,
        }
        Ok(())
    })?;
    storm.end().map(drop)
}

fn irqfds(random: Random) -> Result<()> {
    let mut storm = Storm::start(Kind { areas: &[Area::Chips, Area::Ipi], full: true, ..CALM }, random)?;
    let mut irqfds = outside::Irqfds::default();
    storm.rage(TIME, |client, random| irqfds.step(client, random))?;
    storm.end().map(drop)
}

fn ioeventfds(random: Random) -> Result<()> {
    let mut storm = Storm::start(Kind { areas: &[Area::Doorbell], ..CALM }, random)?;
    let mut doorbells = outside::Doorbells::default();
    storm.rage(TIME, |client, random| doorbells.step(client, random))?;
    ensure!(doorbells.rung > 0, "nobody rang");
    println!("  rung {} times", doorbells.rung);
    storm.end().map(drop)
}

type Check = (&'static str, fn(Random) -> Result<()>);

const CHECKS: &[Check] = &[
    ("ipis", ipis),
    ("ipis-x2apic", ipis_x2apic),
    ("timers", timers),
    ("timers-x2apic", timers_x2apic),
    ("registers", registers),
    ("state", state),
    ("messages", messages),
    ("irqfds", irqfds),
    ("ioeventfds", ioeventfds),
    ("creation", life::creation),
    ("teardown", life::teardown),
];

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [life::VICTIM, seed] = args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        return life::victim(seed.parse()?);
    }
    let seed = match args.first() {
        Some(seed) => seed.parse()?,
        None => std::time::UNIX_EPOCH.elapsed()?.as_nanos() as u64,
    };
    println!("seed {seed}");
    let mut random = Random(seed | 1);
    let only = args.get(1).map_or("", String::as_str);
    let mut failed = 0;
    for (name, check) in CHECKS {
        let random = random.fork();
        if !name.contains(only) {
            continue;
        }
        match check(random) {
            Ok(()) => println!("ok {name}"),
            Err(e) => {
                println!("FAIL {name}: {e:#}");
                failed += 1;
            }
        }
    }
    if failed > 0 { bail!("{failed} checks failed") } else { Ok(()) }
}
