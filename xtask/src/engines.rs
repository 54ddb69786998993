//! Engines beside the first, for scenarios.

use crate::{
    env::Env,
    kernels::{self, Kernel},
    module, package, ui,
};
use anyhow::{Result, ensure};
use std::{fs, path::PathBuf};

/// The name of the second engine.
pub const SECOND: &str = "hsave_0_2";

/// `modules/hsave_0_2.ko`, `bin/hsavectl`, which hands VMs over to it, and `modules/stranger.ko`, which is the same but that it says that it was made for another base.
pub fn files(env: &Env, kernel: Kernel) -> Result<Vec<(String, PathBuf)>> {
    let unpacked = kernels::fetch(env, kernel)?;
    let out = module::default_out(env, &unpacked.release);
    let second = module::build_engine(env, &unpacked.headers, &out, SECOND)?;
    let (mut bytes, hash) = (fs::read(&second)?, module::interface_hash(env)?.to_le_bytes());
    let places: Vec<usize> =
        bytes.windows(hash.len()).enumerate().filter(|(_, w)| **w == hash).map(|(n, _)| n).collect();
    ensure!(places.len() == 1, "{} has the hash of its interface {} times", second.display(), places.len());
    for place in places {
        bytes[place] ^= 1;
    }
    let stranger = out.join("stranger.ko");
    fs::write(&stranger, bytes)?;
    let command = ui::step("hsavectl", || package::command(env))?;
    Ok(vec![
        (format!("modules/{SECOND}.ko"), second),
        ("modules/stranger.ko".to_owned(), stranger),
        ("bin/hsavectl".to_owned(), command),
    ])
}
