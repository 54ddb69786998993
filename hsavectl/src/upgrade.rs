//! `hsavectl upgrade`: hands VMs over to another engine, one after the other.

use crate::{
    base::{self, BASE, Vm, duration},
    json::Json,
    status::{demand_base, no_such_engine},
    system::{Result, System},
};

/// What `upgrade` is asked for.
#[derive(Default)]
pub struct Upgrade {
    /// Only the VMs of this process.
    pub vm: Option<u64>,
    /// To this engine; the one that new VMs are given to, if it is not said.
    pub to: Option<String>,
    /// Say what would be done.
    pub dry_run: bool,
}

/// What came of one VM.
#[derive(PartialEq, Eq, Debug)]
enum Came {
    WouldBe,
    /// It stood still for so many nanoseconds.
    Upgraded(u64),
    /// It is where it was: why, and for how many nanoseconds it stood still for nothing, if it did.
    Failed {
        why: String,
        pause: Option<u64>,
    },
    Gone,
}

impl Came {
    /// Nanoseconds that the VM stood still.
    fn pause(&self) -> Option<u64> {
        match self {
            Self::Upgraded(pause) => Some(*pause),
            Self::Failed { pause, .. } => *pause,
            Self::WouldBe | Self::Gone => None,
        }
    }
}

/// All VMs that were looked at.
pub struct Outcome {
    rows: Vec<(Vm, Came)>,
    to: String,
}

/// Does it, telling each VM to `say` as it is done.
pub fn run(system: &System, upgrade: &Upgrade, say: &mut dyn FnMut(&str)) -> Result<Outcome> {
    demand_base(system)?;
    if !system.is_root() && !upgrade.dry_run {
        return Err("this is for root: `sudo hsavectl upgrade`".to_owned());
    }
    let to = upgrade.to.clone().or_else(|| base::current(system));
    let to = to.ok_or("no engine is there for new VMs: name one with --to, of those that `hsavectl engines` shows")?;
    if !base::engines(system).iter().any(|engine| engine.name == to) {
        return Err(no_such_engine(system, &to));
    }
    let all = base::vms(system);
    let asked: Vec<Vm> = all.into_iter().filter(|vm| upgrade.vm.is_none_or(|pid| vm.pid == pid)).collect();
    if let (Some(pid), true) = (upgrade.vm, asked.is_empty()) {
        return Err(format!("process {pid} has no VM: `hsavectl vms` shows those that have"));
    }
    let elsewhere: Vec<Vm> = asked.into_iter().filter(|vm| vm.engine != to).collect();
    if elsewhere.is_empty() {
        say(&format!("nothing to do: no VM that was asked for is on another engine than {to}"));
    }
    if let Some(vm) = elsewhere.iter().find(|vm| !system.exists(&format!("{BASE}/vms/{}/upgrade", vm.id))) {
        return Err(format!(
            "the kvm.ko that is loaded cannot hand a running VM to another engine; a VM that is shut down and started again \
             ({}, process {}) gets {}",
            vm.id,
            vm.pid,
            base::current(system).unwrap_or_else(|| "the current one".to_owned())
        ));
    }
    let count = elsewhere.len();
    let mut rows = Vec::new();
    for (index, vm) in elsewhere.into_iter().enumerate() {
        let came = if upgrade.dry_run { Came::WouldBe } else { hand_over(system, &vm, &to) };
        let Vm { pid, name, engine, .. } = &vm;
        let what = format!("[{}/{count}] {} (process {pid}, {name}) from {engine} to {to}", index + 1, vm.id);
        say(&match &came {
            Came::WouldBe => format!("{what}: would be handed over"),
            Came::Upgraded(pause) => format!("{what}: stood still for {}", duration(*pause)),
            Came::Failed { why, pause: None } => format!("{what}: FAILED: {why}"),
            Came::Failed { why, pause: Some(pause) } => {
                format!("{what}: FAILED: {why}; it stood still for {}", duration(*pause))
            }
            Came::Gone => format!("{what}: is gone"),
        });
        rows.push((vm, came));
    }
    Ok(Outcome { rows, to })
}

fn hand_over(system: &System, vm: &Vm, to: &str) -> Came {
    let written = system.write(&format!("{BASE}/vms/{}/upgrade", vm.id), to);
    let now = base::vm(system, vm.id.clone());
    let Some(now) = now else { return Came::Gone };
    let Err(error) = written else {
        // The kernel's word counts, not that the write succeeded.
        if now.engine == to {
            return Came::Upgraded(now.pause_ns);
        }
        let why = format!("the kernel took the request, and the VM is on {} still", now.engine);
        return Came::Failed { why, pause: paused(vm, &now) };
    };
    Came::Failed { why: reason(&error, to, &now), pause: paused(vm, &now) }
}

/// How long a VM stood still since it was as `before`, for nothing: what the file says is of the last attempt that got so far.
fn paused(before: &Vm, now: &Vm) -> Option<u64> {
    Some(now.pause_ns).filter(|ns| *ns != before.pause_ns)
}

/// Why the VM, which is as `now`, was not handed over to this engine.
fn reason(error: &std::io::Error, to: &str, now: &Vm) -> String {
    let detail = if now.error.is_empty() { String::new() } else { format!(": {}", now.error) };
    match error.raw_os_error() {
        Some(2) => format!("there is no engine {to} any more"),
        Some(4) => format!("interrupted by a signal; the VM is on {} still", now.engine),
        Some(12) => format!("there is not enough memory{detail}; try again when there is"),
        Some(16) => format!("it does not come to stand still{detail}; try again later"),
        // It may be an access that is over in the next moment.
        Some(95) => format!(
            "not possible{detail}; it stays on {} as long as it uses that: try again, or shut it down",
            now.engine
        ),
        _ => format!("{error}{detail}"),
    }
}

impl Outcome {
    pub fn failed(&self) -> bool {
        self.rows.iter().any(|(_, came)| matches!(came, Came::Failed { .. }))
    }

    /// One line at the end.
    pub fn summary(&self) -> Option<String> {
        let count = |wanted: fn(&Came) -> bool| self.rows.iter().filter(|(_, came)| wanted(came)).count();
        let done = count(|came| matches!(came, Came::Upgraded(_)));
        let failed = count(|came| matches!(came, Came::Failed { .. }));
        let longest = self.rows.iter().filter_map(|(_, came)| came.pause()).max();
        if done + failed == 0 {
            return None;
        }
        let longest = longest.map(|ns| format!(", the longest pause {}", duration(ns))).unwrap_or_default();
        let stayed = if failed > 0 { format!("; {failed} failed and went on where they were") } else { String::new() };
        Some(format!("{done} handed over to {}{longest}{stayed}", self.to))
    }

    pub fn json(&self) -> Json {
        let row = |(vm, came): &(Vm, Came)| {
            let (result, error) = match came {
                Came::WouldBe => ("would be upgraded", None),
                Came::Upgraded(_) => ("upgraded", None),
                Came::Failed { why, .. } => ("failed", Some(why.clone())),
                Came::Gone => ("gone", None),
            };
            Json::object([
                ("id", vm.id.clone().into()),
                ("pid", vm.pid.into()),
                ("name", vm.name.clone().into()),
                ("from", vm.engine.clone().into()),
                ("to", self.to.clone().into()),
                ("result", result.into()),
                ("pause_ns", came.pause().into()),
                ("error", error.into()),
            ])
        };
        Json::List(self.rows.iter().map(row).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    fn machine() -> Fake {
        let fake = Fake::new();
        fake.engine("kvm_amd", "0.1.0");
        fake.engine("hsave_0_2", "0.2.0");
        fake.file("sys/kernel/hsave/current", "hsave_0_2\n");
        fake.vm("42-13", "qemu", "kvm_amd");
        fake.vm("43-9", "vmm", "hsave_0_2");
        fake
    }

    fn upgrade(fake: &Fake, upgrade: &Upgrade) -> (Result<Outcome>, Vec<String>) {
        let mut said = Vec::new();
        let outcome = run(&fake.system(), upgrade, &mut |line| said.push(line.to_owned()));
        (outcome, said)
    }

    #[test]
    fn what_would_be_done_and_what_is_wrong_with_the_question() {
        let fake = machine();
        let (outcome, said) = upgrade(&fake, &Upgrade { dry_run: true, ..Upgrade::default() });
        assert_eq!(said, ["[1/1] 42-13 (process 42, qemu) from kvm_amd to hsave_0_2: would be handed over"]);
        assert!(!outcome.unwrap().failed());
        assert_eq!(fake.read("sys/kernel/hsave/vms/42-13/upgrade").unwrap(), "\n");
        let wrong = |vm, to: Option<&str>| {
            let asked = Upgrade { vm, to: to.map(str::to_owned), dry_run: false };
            upgrade(&fake, &asked).0.err().unwrap()
        };
        assert!(wrong(Some(99), None).contains("process 99 has no VM"));
        assert!(wrong(None, Some("x")).contains("no engine x; loaded are: hsave_0_2, kvm_amd"));
        let (outcome, said) = upgrade(&fake, &Upgrade { vm: Some(43), ..Upgrade::default() });
        assert!(outcome.unwrap().json() == Json::List(vec![]) && said[0].starts_with("nothing to do"));
    }

    #[test]
    fn success_is_what_the_kernel_says() {
        // Files take what is written and do nothing: the VM stays where it is, and that is not called an upgrade.
        let fake = machine();
        let (outcome, said) = upgrade(&fake, &Upgrade::default());
        let outcome = outcome.unwrap();
        assert!(outcome.failed() && said[0].contains("FAILED: the kernel took the request"), "{said:?}");
        assert_eq!(fake.read("sys/kernel/hsave/vms/42-13/upgrade").unwrap(), "hsave_0_2");
        assert!(outcome.json().text().contains("\"result\": \"failed\""));
        assert_eq!(outcome.summary().unwrap(), "0 handed over to hsave_0_2; 1 failed and went on where they were");
    }

    #[test]
    fn a_failure_is_told_with_the_kernels_reason_and_the_rest_goes_on() {
        let fake = machine();
        fake.vm("50-3", "full", "kvm_amd");
        fake.file("sys/kernel/hsave/vms/50-3/error", "lapc: version 2 is not known\n");
        let file = fake.system().path("sys/kernel/hsave/vms/50-3/upgrade");
        std::fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink("/dev/full", &file).unwrap();
        // What cannot be read as a VM any more has gone.
        fake.vm("60-3", "gone", "kvm_amd");
        let (outcome, said) = upgrade(&fake, &Upgrade { vm: Some(50), ..Upgrade::default() });
        assert!(outcome.unwrap().failed());
        assert!(
            said[0].contains("FAILED: No space left on device") && said[0].ends_with(": lapc: version 2 is not known")
        );
        let gone = base::vm(&fake.system(), "60-3".to_owned()).unwrap();
        std::fs::remove_dir_all(fake.system().path("sys/kernel/hsave/vms/60-3")).unwrap();
        assert_eq!(hand_over(&fake.system(), &gone, "hsave_0_2"), Came::Gone);
    }

    #[test]
    fn a_failure_that_cost_the_guest_time_says_so() {
        let fake = machine();
        let before = base::vm(&fake.system(), "42-13".to_owned()).unwrap();
        fake.file("sys/kernel/hsave/vms/42-13/pause_ns", "1002000000\n");
        let now = base::vm(&fake.system(), "42-13".to_owned()).unwrap();
        assert_eq!((paused(&before, &now), paused(&now, &now)), (Some(1_002_000_000), None), "of this attempt");
        let failed = |pause| Came::Failed { why: "why".to_owned(), pause };
        let outcome = |came| Outcome { rows: vec![(now.clone(), came)], to: "x".to_owned() };
        let of_one = outcome(failed(Some(1_002_000_000)));
        assert_eq!(
            of_one.summary().unwrap(),
            format!(
                "0 handed over to x, the longest pause {}; 1 failed and went on where they were",
                duration(1_002_000_000)
            )
        );
        assert!(of_one.json().text().contains("\"pause_ns\": 1002000000"));
        assert!(outcome(failed(None)).json().text().contains("\"pause_ns\": null"));
    }

    #[test]
    fn what_the_kernels_numbers_mean() {
        let fake = machine();
        fake.file("sys/kernel/hsave/vms/42-13/error", "why\n");
        let vm = base::vm(&fake.system(), "42-13".to_owned()).unwrap();
        let says = |errno| reason(&std::io::Error::from_raw_os_error(errno), "x", &vm);
        assert_eq!(says(2), "there is no engine x any more");
        assert_eq!(says(4), "interrupted by a signal; the VM is on kvm_amd still");
        assert_eq!(
            says(95),
            "not possible: why; it stays on kvm_amd as long as it uses that: try again, or shut it down"
        );
        assert_eq!(says(16), "it does not come to stand still: why; try again later");
    }
}
