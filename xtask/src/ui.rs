//! Telling what happens: one line per step, with a spinner and the time on a terminal.

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

/// Does `work`, telling that it is under way and how long it took.
pub fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let bar = if std::io::stderr().is_terminal() {
        let bar = ProgressBar::new_spinner().with_message(what.to_owned());
        let style =
            ProgressStyle::with_template("{spinner} {msg} ({elapsed})").unwrap_or(ProgressStyle::default_spinner());
        bar.set_style(style);
        bar.enable_steady_tick(Duration::from_millis(120));
        Some(bar)
    } else {
        eprintln!("   {what} ...");
        None
    };
    step_quietly(what, || {
        let result = work();
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        result
    })
}

/// Does `work` and tells how long it took.
fn step_quietly<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let result = work();
    let seconds = start.elapsed().as_secs_f32();
    match &result {
        Ok(_) => eprintln!("ok {what} ({seconds:.1} s)"),
        Err(_) => eprintln!("!! {what}: failed after {seconds:.1} s"),
    }
    result
}

/// A step that tells how far it is: `work` gets a function that takes how much is done, and of how much.
pub fn progress<T>(what: &str, work: impl FnOnce(&dyn Fn(u32, u32)) -> Result<T>) -> Result<T> {
    if std::io::stderr().is_terminal() {
        let bar = ProgressBar::new(0).with_message(what.to_owned());
        let style = ProgressStyle::with_template("{msg} {bar:30} {pos}/{len} ({elapsed})");
        bar.set_style(style.unwrap_or(ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_millis(500));
        let tell = |done: u32, all: u32| {
            bar.set_length(all.into());
            bar.set_position(done.into());
        };
        let result = step_quietly(what, || work(&tell));
        bar.finish_and_clear();
        return result;
    }
    eprintln!("   {what} ...");
    let told = std::cell::Cell::new(0);
    step_quietly(what, || {
        work(&|done: u32, all: u32| {
            let tenths = u64::from(done) * 10 / u64::from(all.max(1));
            if tenths > told.get() {
                told.set(tenths);
                eprintln!("   {what}: {done} of {all}");
            }
        })
    })
}

/// One line that is not a step.
pub fn note(text: &str) {
    eprintln!("   {text}");
}
