//! `./x bench --profile KIND`: which functions the host's instructions of one VM exit are in.
//!
//! While the bench runs, the emulator translates one instruction at a time and logs each; once with few
//! rounds and once with many, and the difference is the exits' own.

use crate::{
    env::Env,
    host::{self, Boot, Flavour, Machine},
    kernels::Kernel,
    payload, proc, ui,
};
use anyhow::{Result, bail, ensure};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::ExitCode,
    time::Duration,
};

/// Rounds of the bench in the two runs; it does each number twice.
const ROUNDS: [u32; 2] = [100, 400];
const EXITS: f64 = 2.0 * (ROUNDS[1] - ROUNDS[0]) as f64;

pub fn run(env: &Env, kernel: Kernel, flavour: Flavour, kind: &str) -> Result<ExitCode> {
    let machine = Machine::new(env)?;
    let program = payload::file(&payload::build(env)?, "bench")?;
    let ours = if flavour == Flavour::Ours { Some(host::our_modules(env, kernel)?) } else { None };
    let dir = env.cache.join("runs").join(format!("{}-profile", std::process::id()));
    fs::create_dir_all(&dir)?;
    let mut boot = Boot::new(kernel, flavour, &script(kind));
    (boot.ours, boot.smp, boot.icount, boot.timeout) = (ours, 1, true, Duration::from_secs(1200));
    boot.files.push(program);
    for (id, option) in [("sync", "-serial"), ("monitor", "-mon")] {
        let socket = format!("socket,id={id},path={},server=on,wait=off", dir.join(id).display());
        boot.qemu.extend(["-chardev".to_owned(), socket]);
        boot.qemu.extend([
            option.to_owned(),
            if option == "-mon" { format!("chardev={id}") } else { format!("chardev:{id}") },
        ]);
    }
    let output = ui::step(&format!("profiling {kind}"), || {
        std::thread::scope(|scope| {
            let log = scope.spawn(|| log_windows(&dir));
            let outcome = machine.boot(env, &boot)?;
            if !outcome.passed() {
                bail!("{}\n{}\n{}", outcome.explain(), proc::tail(&outcome.output), proc::tail(&outcome.log));
            }
            log.join().map_err(|_| anyhow::anyhow!("the log keeper panicked"))??;
            Ok(outcome.output)
        })
    })?;
    let symbols = symbols(&output);
    let counts = [count(&dir.join("0"), &symbols)?, count(&dir.join("1"), &symbols)?];
    proc::remove_dir(&dir)?;
    show(&counts);
    Ok(ExitCode::SUCCESS)
}

/// Runs the bench twice, each time between two messages on the fourth serial port that are answered.
fn script(kind: &str) -> String {
    let mut script = "stty -F /dev/ttyS3 raw -echo; exec 3<>/dev/ttyS3; grep ' [tTwW] ' /proc/kallsyms\n".to_owned();
    for rounds in ROUNDS {
        script +=
            &format!("echo on >&3; read x <&3; /payload/bench {kind} {rounds} || exit 1; echo off >&3; read x <&3\n");
    }
    script
}

/// Answers the script's messages, switching the log on and off; files are called 0 and 1.
fn log_windows(dir: &Path) -> Result<()> {
    let mut sync = BufReader::new(connect(&dir.join("sync"))?);
    let mut monitor = connect(&dir.join("monitor"))?;
    prompt(&mut monitor)?;
    let mut command = |text: String| -> Result<()> {
        writeln!(monitor, "{text}")?;
        prompt(&mut monitor)
    };
    for window in 0..ROUNDS.len() {
        let mut line = String::new();
        sync.read_line(&mut line)?;
        command(format!("logfile {}", dir.join(window.to_string()).display()))?;
        command("one-insn-per-tb on".to_owned())?;
        command("log exec,nochain".to_owned())?;
        writeln!(sync.get_mut())?;
        sync.read_line(&mut line)?;
        command("log none".to_owned())?;
        command("one-insn-per-tb off".to_owned())?;
        writeln!(sync.get_mut())?;
        ensure!(line == "on\noff\n", "the script said {line:?}");
    }
    Ok(())
}

/// QEMU makes its sockets when it starts.
fn connect(path: &Path) -> Result<UnixStream> {
    for _ in 0..200 {
        if let Ok(stream) = UnixStream::connect(path) {
            return Ok(stream);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    bail!("cannot connect to {}", path.display())
}

/// Reads up to the monitor's next prompt.
fn prompt(monitor: &mut UnixStream) -> Result<()> {
    let (mut text, mut byte) = (Vec::new(), [0]);
    while !text.ends_with(b"(qemu) ") {
        ensure!(monitor.read(&mut byte)? == 1, "QEMU closed its monitor");
        text.push(byte[0]);
    }
    Ok(())
}

/// Addresses of functions, as the script printed them.
fn symbols(output: &str) -> BTreeMap<u64, String> {
    let symbol = |line: &str| {
        let mut words = line.split_whitespace();
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        let name = words.nth(1)?;
        Some((address, format!("{:#} {}", rustc_demangle::demangle(name), words.next().unwrap_or(""))))
    };
    output.lines().filter_map(symbol).collect()
}

/// Instructions per function in one log.
fn count(log: &Path, symbols: &BTreeMap<u64, String>) -> Result<BTreeMap<String, u64>> {
    let mut counts = BTreeMap::new();
    for line in BufReader::new(File::open(log)?).lines() {
        let line = line?;
        // Trace CPU: TRANSLATED [CS_BASE/PC/FLAGS/...]
        let pc = line.split_once('[').and_then(|(_, rest)| rest.split('/').nth(1));
        let Some(pc) = pc.and_then(|pc| u64::from_str_radix(pc, 16).ok()) else { continue };
        let name = match pc {
            // The upper half is the kernel's.
            0x8000_0000_0000_0000.. => symbols.range(..=pc).next_back().map_or("?", |(_, name)| name),
            _ => "(user space and guest)",
        };
        *counts.entry(name.to_owned()).or_default() += 1;
    }
    Ok(counts)
}

fn show(counts: &[BTreeMap<String, u64>; 2]) {
    let of = |window: usize, name: &str| counts[window].get(name).copied().unwrap_or(0) as f64;
    let mut rows: Vec<(f64, &str)> =
        counts[1].keys().map(|name| ((of(1, name) - of(0, name)) / EXITS, name.as_str())).collect();
    rows.sort_by(|a, b| b.0.total_cmp(&a.0));
    println!("{:8.1} instructions per exit", rows.iter().map(|(count, _)| count).sum::<f64>());
    for (count, name) in rows.iter().filter(|(count, _)| *count >= 0.5) {
        println!("{count:8.1} {name}");
    }
}
