//! The kinds of `./x bench` that count a Linux guest's boot: the host's instructions up to the guest's first program,
//! apart from those that the guest executes itself.
//!
//! The clock cannot tell the two apart; a plugin of the emulator does (`scripts/outside.c`).

use crate::{
    bench::{Figures, output},
    env::{Env, key},
    host::{Boot, Machine},
    payload, proc,
};
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const SOURCE: &str = include_str!("../scripts/outside.c");
/// Once the host has settled, whose own work would count. The guest's kernel writes its log to the console, as it does when
/// nobody asks for silence; nobody keeps it.
const SCRIPT: &str = "sleep 20; exec /payload/vmm measure /guest/vmlinuz /guest/initrd bzimage split 1 >/dev/null";

/// `boot` with that script.
pub fn measure(env: &Env, machine: &Machine, boot: &Boot) -> Result<Figures> {
    let plugin = plugin(env)?;
    let dir = env.cache.join("runs").join(format!("{}-outside-{:?}", std::process::id(), boot.flavour));
    fs::create_dir_all(&dir)?;
    let log = dir.join("log");
    let mut boot = Boot { script: SCRIPT.to_owned(), ..boot.clone() };
    boot.files.push(payload::file(&payload::build(env)?, "vmm")?);
    boot.qemu.extend(["-plugin", &format!("file={}", plugin.display()), "-d", "plugin", "-D"].map(str::to_owned));
    boot.qemu.push(log.display().to_string());
    output(machine, env, &boot)?;
    let figures = between_marks(&fs::read_to_string(&log)?)?;
    proc::remove_dir(&dir)?;
    Ok(figures)
}

fn plugin(env: &Env) -> Result<PathBuf> {
    let dir = env.artifact(&format!("plugins/{}", key(&[SOURCE])), compile)?;
    Ok(dir.join("outside.so"))
}

/// It needs nothing but the emulator, not even the C library, so that of the machine does not matter.
fn compile(dir: &Path) -> Result<()> {
    let source = dir.join("outside.c");
    fs::write(&source, SOURCE)?;
    let mut cc = Command::new("cc");
    cc.args(["-O2", "-ffreestanding", "-fPIC", "-shared", "-nostdlib", "-fvisibility=hidden", "-fno-stack-protector"]);
    proc::run(cc.arg("-o").arg(dir.join("outside.so")).arg(source)).map(drop)
}

/// What lies between the last two lines `mark GUEST KERNEL USER` of the log.
fn between_marks(log: &str) -> Result<Figures> {
    let numbers = |line: &str| -> Option<[f64; 3]> {
        let mut words = line.strip_prefix("mark ")?.split(' ').map(str::parse);
        let mut next = || words.next()?.ok();
        Some([next()?, next()?, next()?])
    };
    let marks: Vec<[f64; 3]> = log.lines().filter_map(numbers).collect();
    let [.., begin, end] = marks.as_slice() else {
        return Err(anyhow::anyhow!("{log}")).context("the plugin wrote no two marks");
    };
    let [guest, kernel, user] = [0, 1, 2].map(|n| end[n] - begin[n]);
    ensure!(guest > 0.0 && kernel > 0.0 && user > 0.0, "these are no counts of a boot: {begin:?} {end:?}");
    let figure = |name: &str, count| (name.to_owned(), count);
    Ok(vec![
        figure("calibration-linux-boot-guest", guest),
        figure("linux-boot", kernel + user),
        figure("linux-boot-kernel", kernel),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_lie_between_the_last_marks() {
        let figures = between_marks("mark 1 1 1\nnoise\nmark 10 20 30\nmark 110 70 31\n").unwrap();
        let counts: Vec<f64> = figures.iter().map(|(_, count)| *count).collect();
        assert_eq!(counts, [100.0, 51.0, 50.0]);
        assert!(between_marks("mark 1 2 3\n").is_err());
        assert!(between_marks("mark 1 2 3\nmark 1 5 6\n").is_err());
    }
}
