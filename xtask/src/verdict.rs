//! How a boot of the emulated host ended: the script's own exit status, a host kernel that complained (always a
//! failure), or the emulator's failure.

use crate::host::STARTED;

/// How a run ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The script's exit status, and a host kernel that had nothing to complain about.
    Exit(i32),
    /// The host kernel's complaints.
    HostKernel(Vec<String>),
    /// What the strict processor would not forgive (docs/strict.md).
    Processor(Vec<String>),
    /// The host died without a word, or QEMU did.
    Died(String),
    Timeout,
}

/// What a run leaves.
pub struct Outcome {
    pub verdict: Verdict,
    /// What the script printed.
    pub output: String,
    /// The host kernel's log since the modules were loaded, and its console.
    pub log: String,
    /// How often a failure of the emulator's own made us start again.
    pub retries: u32,
    /// How long the last start took, from power-on to power-off.
    pub seconds: f32,
}

impl Outcome {
    pub fn passed(&self) -> bool {
        self.verdict == Verdict::Exit(0)
    }

    /// One line, and what is worth seeing of the log.
    pub fn explain(&self) -> String {
        match &self.verdict {
            Verdict::Exit(0) => "passed".to_owned(),
            Verdict::Exit(124) => "the modules could not be unloaded afterwards".to_owned(),
            Verdict::Exit(125) => "a module could not be loaded".to_owned(),
            Verdict::Exit(status) => format!("the script exited with {status}"),
            Verdict::HostKernel(lines) => format!("the host kernel complained:\n  {}", lines.join("\n  ")),
            Verdict::Processor(lines) => format!("the strict processor reports:\n  {}", lines.join("\n  ")),
            Verdict::Died(what) => format!("the host died: {what}"),
            Verdict::Timeout => "took too long and was stopped".to_owned(),
        }
    }
}

/// What the emulator did wrong, if the outcome is its doing and nobody else's, by what QEMU said (`errors`) and what the
/// host logged.
///
/// Seen with stock modules as well: QEMU's own abort; a host that does not come as far as the modules; a CPU that
/// executes a breakpoint which the kernel has already taken out of its text again (it patches itself while it runs, and
/// the emulator translated the old byte); and an idle CPU that the interrupt of its timer does not reach, as the test
/// program `heartbeat` reports. The last makes any outcome void, and so does a script that says so (`hsave: void`).
pub fn emulator_failure(verdict: &Verdict, errors: &str, log: &str) -> Option<&'static str> {
    if matches!(verdict, Verdict::Processor(_)) {
        return None;
    }
    let unfinished = !matches!(verdict, Verdict::Exit(_)) && !log.is_empty();
    if errors.contains("bql_locked") {
        Some("QEMU aborted")
    } else if unfinished && !log.contains(STARTED) {
        Some("the host did not start")
    } else if unfinished && is_stale_breakpoint(log) {
        Some("a CPU executed a breakpoint that was gone")
    } else if log.lines().any(|line| line.starts_with("hsave: CPU") && line.ends_with("through its timer")) {
        Some("the interrupt of a CPU's timer was lost")
    } else if log.lines().any(|line| line.starts_with("hsave: void")) {
        Some("the script found the host unfit for it")
    } else {
        None
    }
}

/// The strict processor's reports in what QEMU said.
pub fn reports(errors: &str) -> Vec<String> {
    errors.lines().filter_map(|line| line.strip_prefix("strict: ")).map(str::to_owned).collect()
}

/// The kernel met an `int3`, and the byte before where it stopped (marked in the line `Code:`) is none.
fn is_stale_breakpoint(log: &str) -> bool {
    let Some((_, oops)) = log.split_once("Oops: int3") else { return false };
    let code = oops.lines().find_map(|line| line.split_once("Code: ")?.1.split_once(" <"));
    code.is_some_and(|(before, _)| !before.ends_with("cc"))
}

/// What a healthy host kernel never prints, at the start of a message or anywhere in it.
pub fn is_complaint(line: &str) -> bool {
    let message = line.split_once("] ").map_or(line, |(_, message)| message);
    let starts = [
        "BUG:",
        "[ BUG:",
        "WARNING:",
        "INFO: trying to register",
        "INFO: lockdep is turned off",
        "Oops",
        "Kernel panic",
        "general protection fault",
        "Call Trace:",
        "UBSAN:",
    ];
    let anywhere = ["watchdog: BUG", "detected stall", "blocked for more than", "refcount_t:", "unchecked MSR access"];
    starts.iter().any(|mark| message.starts_with(mark)) || anywhere.iter().any(|mark| message.contains(mark))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn died(log: &str) -> bool {
        emulator_failure(&Verdict::HostKernel(Vec::new()), "", log).is_some()
    }

    #[test]
    fn what_happens_before_the_modules_is_the_emulators() {
        assert!(died("[    2.3] Kernel panic - not syncing"));
        assert!(!died("[    4.8] hsave: modules\n[    5.0] Kernel panic - not syncing"));
        assert!(emulator_failure(&Verdict::Exit(1), "", "").is_none());
        assert!(emulator_failure(&Verdict::Exit(1), "assertion failed: (bql_locked())", "").is_some());
    }

    #[test]
    fn a_lost_timer_makes_any_outcome_void() {
        let lost = "hsave: CPU 1 slept for 21 s through its timer\nhsave: exit 0";
        assert!(emulator_failure(&Verdict::Exit(0), "", lost).is_some());
        assert!(emulator_failure(&Verdict::Timeout, "", &format!("hsave: modules\n{lost}")).is_some());
        assert!(emulator_failure(&Verdict::Exit(0), "", "hsave: void\nhsave: exit 0").is_some());
        assert!(emulator_failure(&Verdict::Exit(0), "", "hsave: exit 0").is_none());
    }

    #[test]
    fn a_report_is_a_failure_whatever_else_happened() {
        let reports = reports("qemu: warning: that\nstrict: rule 1: cpu 0: this\n");
        assert_eq!(reports, ["rule 1: cpu 0: this"]);
        let verdict = Verdict::Processor(reports);
        assert!(emulator_failure(&verdict, "", "hsave: CPU 1 slept for 21 s through its timer").is_none());
    }

    #[test]
    fn a_breakpoint_counts_only_if_it_is_not_there() {
        let oops =
            |code: &str| format!("hsave: modules\n[ 9.1] Oops: int3: 0000 [#1] SMP\n[ 9.2] Code: {code} 44 00\n");
        assert!(died(&oops("ff ff 0f <1f>")));
        assert!(!died(&oops("ff ff cc <1f>")));
        assert!(!died("hsave: modules\n[ 9.1] Oops: 0002 [#1] SMP\n[ 9.2] Code: 0f <1f> 44"));
    }
}
