//! `./x prove`: what is proved of the world switch, and what is caught, with the time it takes.

use crate::{env::Env, i386, kernels, module, object, proc, test, ui};
use anyhow::{Result, ensure};
use std::time::Instant;

/// Fewer broken variants than this, and the checker's tests do not say what they catch any more.
const LEAST_CAUGHT: usize = 100;

pub fn run(env: &Env) -> Result<()> {
    let cargo = |words: &[&str]| proc::run(env.cargo().arg("test").args(words));
    // What all of hsave needs as well is built before the clock starts.
    ui::step("building the tests", || {
        cargo(&["--quiet", "--no-run", "-p", "arch", "-p", "switch", "-p", "sim", "-p", "tests", "-p", "verify"])
    })?;
    let object = object::build(env)?;
    let mut modules = Vec::new();
    for kernel in kernels::ALL {
        let unpacked = kernels::fetch(env, kernel)?;
        let out = module::default_out(env, &unpacked.release);
        module::build_with(env, &unpacked.headers, &out, &object)?;
        modules.push((kernel, out));
    }

    let start = Instant::now();
    ui::step("the native model, SEV-ES, the GHCB protocol, arch", || {
        cargo(&["--quiet", "-p", "arch", "-p", "switch", "-p", "sim"])
    })?;
    ui::step("all scenarios through the assembly", || cargo(&["--quiet", "-p", "tests", "through_the_assembly"]))?;
    let checked = ui::step("the checker on broken variants", || {
        cargo(&["--quiet", "-p", "verify", "--", "--nocapture", "--test-threads=1"])
    })?;
    i386::run(env)?;
    for (kernel, out) in &modules {
        ui::step(&format!("the checker on the module for {kernel}"), || test::proved(env, out))?;
    }
    let seconds = start.elapsed().as_secs_f32();

    let caught: Vec<&str> = checked.lines().filter_map(|line| Some(line.split_once("caught: ")?.1)).collect();
    ensure!(caught.len() >= LEAST_CAUGHT, "only {} broken variants are reported as caught", caught.len());
    println!("{}\n{} broken variants caught; all of it took {seconds:.0} s", caught.join("\n"), caught.len());
    Ok(())
}
