//! `./x bench --profile KIND`, and the second table of `./x bench`: which functions, and which costly instructions, the
//! host's instructions of one VM exit are in.
//!
//! While the part of a measurement that counts runs, the emulator translates one instruction at a time and logs each.

use crate::{
    bench::{OF_TWO, PATIENCE, output},
    env::Env,
    host::{self, Boot, Flavour, Machine},
    kernels::Kernel,
    payload, proc,
    strict::Processor,
    trace::{Costly, Counts, Symbols, Window},
    ui,
};
use anyhow::{Context, Result, bail, ensure};
use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::ExitCode,
    time::Duration,
};

/// Rounds of each measurement.
const ROUNDS: u32 = 20;

/// Shows where the instructions of the kinds whose name contains `kind` are.
pub fn run(env: &Env, processor: Processor, kernel: Kernel, flavour: Flavour, kind: &str) -> Result<ExitCode> {
    let profiles = measure(env, processor, kernel, flavour, kind)?;
    ensure!(!profiles.is_empty(), "no kind is called like {kind}");
    for (name, counts) in profiles {
        println!("{name}: {:.1} instructions, {:.1} of them for its length", counts.total(), counts.decoding);
        counts.show();
    }
    Ok(ExitCode::SUCCESS)
}

/// Figures per round of all kinds whose name contains `only`.
pub fn measure(
    env: &Env,
    processor: Processor,
    kernel: Kernel,
    flavour: Flavour,
    only: &str,
) -> Result<BTreeMap<String, Counts>> {
    let machine = Machine::new(env, processor)?;
    let mut boot = Boot::new(kernel, flavour, "");
    (boot.smp, boot.icount, boot.timeout) = (1, true, PATIENCE);
    if flavour == Flavour::Ours {
        boot.ours = Some(host::our_modules(env, kernel)?);
    }
    boot.files.push(payload::file(&payload::build(env)?, "bench")?);
    ui::step(&format!("tracing {flavour:?}"), || {
        let mut all = BTreeMap::new();
        if !only.contains(OF_TWO) {
            all = traced(env, &machine, &boot, only)?;
        }
        if only.is_empty() || only.contains(OF_TWO) {
            let only = if only.is_empty() { OF_TWO } else { only };
            all.extend(traced(env, &machine, &Boot { smp: 2, ..boot }, only)?);
        }
        Ok(all)
    })
}

/// Those of one boot.
fn traced(env: &Env, machine: &Machine, boot: &Boot, only: &str) -> Result<BTreeMap<String, Counts>> {
    let name = format!("{}-profile-{:?}-{}", std::process::id(), boot.flavour, boot.smp);
    let dir = env.cache.join("runs").join(name);
    fs::create_dir_all(&dir)?;
    let mut boot = Boot { script: script(only), ..boot.clone() };
    for (id, option) in [("sync", "-serial"), ("monitor", "-mon")] {
        let socket = format!("socket,id={id},path={},server=on,wait=off", dir.join(id).display());
        boot.qemu.extend(["-chardev".to_owned(), socket]);
        boot.qemu.extend([
            option.to_owned(),
            if option == "-mon" { format!("chardev={id}") } else { format!("chardev:{id}") },
        ]);
    }
    let (output, windows, costly) = std::thread::scope(|scope| {
        let log = scope.spawn(|| trace(&dir));
        let output = output(machine, env, &boot)?;
        let (windows, costly) = log.join().map_err(|_| anyhow::anyhow!("the log keeper panicked"))??;
        Ok::<_, anyhow::Error>((output, windows, costly))
    })?;
    proc::remove_dir(&dir)?;
    let symbols = Symbols::parse(&output);
    Ok(windows.into_iter().map(|w| (w.kind.clone(), w.count(&symbols, &costly))).collect())
}

/// Symbols first; the bench tells over the fourth serial port when a window opens and closes.
fn script(only: &str) -> String {
    format!(
        "stty -F /dev/ttyS3 raw -echo; grep ' [tTwW] ' /proc/kallsyms; \
         HSAVE_BENCH_WINDOW=/dev/ttyS3 /payload/bench '{only}' {ROUNDS} || exit 1; echo end >/dev/ttyS3"
    )
}

/// Answers the bench's messages, switching the log on and off.
fn trace(dir: &Path) -> Result<(Vec<Window>, Costly)> {
    let mut sync = BufReader::new(connect(&dir.join("sync"))?);
    let mut monitor = connect(&dir.join("monitor"))?;
    prompt(&mut monitor)?;
    let mut command = |text: &str| -> Result<()> {
        writeln!(monitor, "{text}")?;
        prompt(&mut monitor)
    };
    let log = dir.join("log");
    let (mut windows, mut costly) = (Vec::new(), Costly::new());
    loop {
        let mut line = String::new();
        sync.read_line(&mut line)?;
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["on", kind, rounds] => {
                windows.push(Window { kind: kind.to_owned(), rounds: rounds.parse()?, ..Window::default() });
                command(&format!("logfile {}", log.display()))?;
                command("one-insn-per-tb on")?;
                command("log exec,nochain,in_asm")?;
            }
            ["off"] => {
                command("log none")?;
                command("one-insn-per-tb off")?;
                let window = windows.last_mut().context("a window closes that was not open")?;
                window.addresses = Window::read(&log, &mut costly)?;
                fs::remove_file(&log)?;
            }
            _ => return Ok((windows, costly)),
        }
        writeln!(sync.get_mut())?;
    }
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
