//! Comparing what a script printed on our modules with what it printed on stock kvm-amd.

use std::collections::BTreeMap;

/// What a kernel says when something took it longer than it should: how fast the machine is, not what runs on it. It is no
/// difference, but counted. Those about lockups have lines that follow: they are kept away by the kernel's command line.
const SLOW: &[&str] = &[
    "soft lockup",
    "hard LOCKUP",
    "detected stall",
    "kthread starved",
    "blocked for more than",
    "interrupt took",
    "handler took too long",
    "hogged CPU",
    "RT throttling activated",
    "timekeeping watchdog",
    "clocksource: Long readout",
    "clocksource: wd-",
    "Marking clocksource",
    "Marking TSC unstable",
    "hpet: Lost",
    "Unstable clock detected",
    "timed out waiting for CPU",
    "DL replenish lagged too much",
    "Spurious ACK on isa0060",
];

/// Kernel messages that carry a measured time or depend on what happens first: they differ between two runs on stock kvm-amd
/// as well.
const UNSTEADY: &[&str] = &[
    "kvm-clock: using sched offset",
    "audit: type=2000",
    "clocksource: ",
    "sched_clock: Marking",
    "tsc: ",
    "Calibrating delay loop",
    // Without a clock that needs no calibration, as under Hyper-V.
    "APIC calibration not consistent",
    "PM-Timer had inconsistent results",
    "APIC delta adjusted",
    "calibrate_delay_direct()",
    "Probably due to long platform interrupts",
    "smpboot: Total of",
    "node 0 deferred pages",
    "Memory: ",
    "Freeing initrd memory",
    "setting system clock",
    "random: crng init done",
    "workingset: ",
    "raid6: ",
    "xor: ",
    // Devices are numbered as they are found, in parallel.
    "input: AT Translated Set 2 keyboard as",
    // A packet that the guest happens to send while it restarts meets a device that is shut down.
    "Unexpected TXQ",
    // A slow PCI quirk, and how slow it was.
    " usecs",
    // Follow the line about an unstable clock.
    "If you want to keep using the local clock",
    "\"trace_clock=local\"",
    "on the kernel command line",
];

/// Lines that only one of the two runs printed, marked `-` (stock) and `+` (ours). The order of lines
/// is not compared: the kernel initialises in parallel.
pub fn differences(stock: &str, ours: &str) -> Vec<String> {
    let mut count: BTreeMap<String, i32> = BTreeMap::new();
    for line in stock.lines().filter_map(steady) {
        *count.entry(line).or_default() -= 1;
    }
    for line in ours.lines().filter_map(steady) {
        *count.entry(line).or_default() += 1;
    }
    let marked = |(line, count): (String, i32)| match count {
        0 => None,
        ..0 => Some(format!("- {line}")),
        _ => Some(format!("+ {line}")),
    };
    count.into_iter().filter_map(marked).collect()
}

/// Says a line that something was slow?
pub fn is_about_time(line: &str) -> bool {
    SLOW.iter().any(|mark| line.contains(mark))
}

/// How many lines of a text say that.
pub fn about_time(text: &str) -> usize {
    text.lines().filter(|line| is_about_time(line)).count()
}

/// The line as it should be in every run, if it is such a line.
fn steady(line: &str) -> Option<String> {
    let line = line.trim_end();
    if line.is_empty() || is_about_time(line) || UNSTEADY.iter().any(|mark| line.contains(mark)) {
        return None;
    }
    Some(line.split(' ').map(|word| if is_uuid(word) { "UUID" } else { word }).collect::<Vec<_>>().join(" "))
}

/// File systems get a new one each time.
fn is_uuid(word: &str) -> bool {
    let word = word.trim_end_matches('.');
    word.len() == 36 && word.matches('-').count() == 4 && word.chars().all(|c| c == '-' || c.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_order_do_not_matter_but_content_does() {
        let stock = "a 1\ntsc: Detected 1 MHz\nfs 0f2d369a-0000-1111-2222-333344445555 r/w\nb\n";
        let ours = "b\nfs 1f2d369a-0000-1111-2222-333344445555 r/w\ntsc: Detected 2 MHz\na 1\n";
        assert!(differences(stock, ours).is_empty());
        assert_eq!(differences("a\nb\nb\n", "a\nb\nc\n"), ["- b", "+ c"]);
    }

    #[test]
    fn what_is_said_about_time_is_counted_and_no_difference() {
        let slow = "watchdog: BUG: soft lockup - CPU#1 stuck for 23s! [swapper/1:0]\n\
             perf: interrupt took too long (2504 > 2500), lowering kernel.perf_event_max_sample_rate to 79750\n\
             clocksource: timekeeping watchdog on CPU0: Marking clocksource 'tsc' as unstable because the skew is too large:\n\
             hrtimer: interrupt took 3366176 ns\n";
        assert!(differences(slow, "").is_empty());
        assert_eq!((about_time(slow), about_time("tsc: Detected 2 MHz TSC\n")), (4, 0));
    }
}
