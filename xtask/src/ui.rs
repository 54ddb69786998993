//! Telling what happens: one line per step, with a spinner and the time on a terminal.

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

/// Does `work`, telling that it is under way and how long it took.
pub fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
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
    let result = work();
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    let seconds = start.elapsed().as_secs_f32();
    match &result {
        Ok(_) => eprintln!("ok {what} ({seconds:.1} s)"),
        Err(_) => eprintln!("!! {what}: failed after {seconds:.1} s"),
    }
    result
}

/// One line that is not a step.
pub fn note(text: &str) {
    eprintln!("   {text}");
}
