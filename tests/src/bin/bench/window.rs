//! Tells the emulator when the part of a measurement that counts begins and ends, so that it can log instructions there.
//!
//! On the serial port that HSAVE_BENCH_WINDOW names: `on KIND ROUNDS`, then `off`; each is answered with a line.

use anyhow::{Context, Result};
use std::fs::File;
use std::io::{Read, Write};
use std::sync::OnceLock;

struct Port {
    file: File,
    kind: std::sync::Mutex<String>,
}

fn port() -> Option<&'static Port> {
    static PORT: OnceLock<Option<Port>> = OnceLock::new();
    let open = || {
        let path = std::env::var_os("HSAVE_BENCH_WINDOW")?;
        let file = File::options().read(true).write(true).open(path).ok()?;
        Some(Port { file, kind: Default::default() })
    };
    PORT.get_or_init(open).as_ref()
}

/// Is somebody looking?
pub fn wanted() -> bool {
    port().is_some()
}

/// The kind whose windows follow.
pub fn name(kind: &str) {
    if let Some(port) = port() {
        let mut name = port.kind.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        kind.clone_into(&mut name);
    }
}

/// What counts begins here: so many rounds.
pub fn open(rounds: u32) -> Result<()> {
    let Some(port) = port() else { return Ok(()) };
    let kind = port.kind.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
    say(&port.file, &format!("on {kind} {rounds}\n"))
}

/// And ends here.
pub fn close() -> Result<()> {
    match port() {
        Some(port) => say(&port.file, "off\n"),
        None => Ok(()),
    }
}

fn say(mut port: &File, line: &str) -> Result<()> {
    port.write_all(line.as_bytes()).context("the window's serial port")?;
    let mut byte = [0];
    while byte != *b"\n" {
        port.read_exact(&mut byte).context("the window's serial port")?;
    }
    Ok(())
}
