//! `hsavectl`: which pair of modules serves `/dev/kvm`, what it does, and how it is replaced.
//!
//! Everything is read from and written to files of the kernel's, under a root that tests put elsewhere
//! ([`system::System`]); what is a decision is in a module per command.
#![forbid(unsafe_code)]

mod args;
mod base;
mod choose;
#[cfg(test)]
mod fake;
mod json;
mod log;
mod modules;
mod processes;
mod report;
mod status;
mod system;
mod upgrade;

use args::{Args, Command};
use std::{
    io::{ErrorKind, Write},
    process::ExitCode,
};
use system::{Result, System};

fn main() -> ExitCode {
    let done = match args::parse(std::env::args_os().skip(1)) {
        Ok(args) => run(&System::this(), args),
        Err(why) => {
            eprintln!("hsavectl: {why}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("hsavectl: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all that was asked for was done.
fn run(system: &System, Args { command, json }: Args) -> Result<bool> {
    match command {
        Command::Help => print(args::HELP)?,
        Command::Version => print(concat!("hsavectl ", env!("CARGO_PKG_VERSION")))?,
        Command::Use(choice) => choose::run(system, &choice, &mut |line| println!("{line}"))?,
        Command::Status if json => print(&status::status(system)?.text())?,
        Command::Status => print(&status::status_text(system)?)?,
        Command::Report if json => print(&report::report(system)?.text())?,
        Command::Report => print(&report::text(system)?)?,
        Command::Engines(current) => {
            status::demand_base(system)?;
            if let Some(name) = current {
                status::set_current(system, &name)?;
            }
            let engines = || json::Json::list(base::engines(system)).text();
            print(&if json { engines() } else { status::engines_text(system) })?;
        }
        Command::Vms if json => print(&status::vms(system).text())?,
        Command::Vms => print(&status::vms_text(system))?,
        Command::Upgrade(asked) => {
            // Progress is not data.
            let mut say = |line: &str| if json { eprintln!("{line}") } else { println!("{line}") };
            let outcome = upgrade::run(system, &asked, &mut say)?;
            outcome.summary().iter().for_each(|line| say(line));
            if json {
                print(&outcome.json().text())?;
            }
            return Ok(!outcome.failed());
        }
    }
    Ok(true)
}

/// Prints a text as lines. A reader that has seen enough (`| head`) is no failure.
fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(format!("cannot print: {error}")),
        _ => Ok(()),
    }
}
