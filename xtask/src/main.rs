//! Everything one types in this project, behind the bootstrap script `./x`.
//!
//! Each command lives in the file of its name; what they share is in [`env`] (where things lie),
//! [`proc`] (running programs), [`ui`] (telling what happens) and [`debs`] (Debian packages).

mod args;
mod backports;
mod bench;
mod bochs;
mod border;
mod breakdown;
mod chroots;
mod compare;
mod compiler;
mod cpio;
mod crate_tests;
mod debian;
mod debs;
mod debug;
mod differences;
mod disk;
mod drive;
mod engines;
mod env;
mod expected;
mod files;
mod foreign;
mod fuzz;
mod guest_time;
mod here;
mod host;
mod i386;
mod i386_guests;
mod image;
mod imports;
mod initrd;
mod job;
mod kernels;
mod listing;
mod miri;
mod mitigations;
mod module;
mod modules;
mod object;
mod observe;
mod oldest;
mod operator;
mod outside;
mod package;
mod packaged;
mod panicking;
mod panics;
mod payload;
mod plot;
mod proc;
mod profile;
mod progress;
mod prove;
mod run;
mod rust_src;
mod scenarios;
mod secure_boot;
mod selection;
mod selftests;
mod strict;
mod strict_checks;
mod sysroot;
mod tally;
mod test;
mod tidy;
mod trace;
mod ui;
mod verdict;
mod verify;
mod wait;
mod without;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    match args::Args::parse().command.run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("\nx: {error:#}");
            ExitCode::FAILURE
        }
    }
}
