//! `hsavectl report`: what somebody needs who is to find out what went wrong, and nothing that guests hold.
//!
//! Of processes there are id and name, not the command line, which may hold names and paths of guests.

use crate::{
    base,
    json::Json,
    log, status,
    system::{Result, System, shown},
};

/// As many of the last lines of the log.
const LINES: usize = 200;

const VULNERABILITIES: &str = "/sys/devices/system/cpu/vulnerabilities";
const LAST_EXITS: &str = "/sys/kernel/hsave/last_exits";
const DEBUGFS: &str = "/sys/kernel/debug/kvm";

/// Everything, as one object of sections.
pub fn report(system: &System) -> Result<Json> {
    Ok(Json::object([
        ("hsavectl", env!("CARGO_PKG_VERSION").into()),
        ("status", status::status(system)?),
        ("engines", Json::list(base::engines(system))),
        ("vms", status::vms(system)),
        ("last exits", last_exits(system)),
        ("processor", processor(system)),
        ("system", machine(system)),
        ("mitigations", files(system, VULNERABILITIES)),
        ("parameters", parameters(system)),
        ("packages", packages(system)),
        ("statistics", statistics(system)),
        ("log", kernel_log(system)),
    ]))
}

/// The same as text: a heading per section, and a line per value.
pub fn text(system: &System) -> Result<String> {
    let Json::Object(sections) = report(system)? else { return Ok(String::new()) };
    let mut text = String::new();
    for (name, value) in sections {
        text += &format!("== {name}\n");
        lines(&mut text, "", &value);
    }
    Ok(text)
}

fn lines(text: &mut String, path: &str, value: &Json) {
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    let label = if path.is_empty() { String::new() } else { format!("{path}: ") };
    match value {
        Json::Object(fields) => fields.iter().for_each(|(name, value)| lines(text, &below(name), value)),
        Json::List(items) if items.is_empty() => *text += &format!("{label}none\n"),
        Json::List(items) => {
            for (index, item) in items.iter().enumerate() {
                match item {
                    Json::Text(line) => *text += &format!("{label}{line}\n"),
                    _ => lines(text, &below(&index.to_string()), item),
                }
            }
        }
        Json::Text(value) => *text += &format!("{label}{value}\n"),
        Json::Null => *text += &format!("{label}-\n"),
        other => *text += &format!("{label}{}\n", other.text()),
    }
}

/// Names and contents of the files in a directory.
fn files(system: &System, directory: &str) -> Json {
    let file = |name: String| {
        let text = system.text(&format!("{directory}/{name}"))?;
        Some((name, value(&text)))
    };
    Json::Object(system.names(directory).into_iter().filter_map(file).collect())
}

fn value(text: &str) -> Json {
    text.parse().map_or_else(|_| Json::from(text), Json::Number)
}

/// The first processor; they are alike but for what the kernel complains of.
fn processor(system: &System) -> Json {
    let info = system.text("/proc/cpuinfo").unwrap_or_default();
    let first: Vec<(&str, &str)> = info
        .lines()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim(), value.trim()))
        .collect();
    let field = |name: &str| first.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
    let flags = field("flags").unwrap_or_default();
    let about_svm = [
        "svm",
        "npt",
        "lbrv",
        "svm_lock",
        "nrip_save",
        "tsc_scale",
        "vmcb_clean",
        "flushbyasid",
        "decodeassists",
        "pausefilter",
        "pfthreshold",
        "avic",
        "v_vmsave_vmload",
        "vgif",
        "v_spec_ctrl",
        "x2avic",
        "vnmi",
        "sev",
        "sev_es",
        "sev_snp",
        "hypervisor",
        "ibpb",
        "ibrs",
        "stibp",
        "ssbd",
        "ibpb_brtype",
        "sbpb",
        "la57",
    ];
    let flags: Vec<&str> = flags.split_whitespace().filter(|flag| about_svm.contains(flag)).collect();
    let microcode: std::collections::BTreeSet<&str> = info
        .lines()
        .filter_map(|line| line.strip_prefix("microcode")?.split_once(':').map(|(_, value)| value.trim()))
        .collect();
    Json::object([
        ("model", field("model name").into()),
        ("vendor", field("vendor_id").into()),
        ("family", field("cpu family").into()),
        ("number", field("model").into()),
        ("stepping", field("stepping").into()),
        ("microcode", Json::list(microcode)),
        ("processors", (info.lines().filter(|line| line.starts_with("processor")).count() as u64).into()),
        ("flags", flags.join(" ").into()),
        ("smt", system.text("/sys/devices/system/cpu/smt/control").into()),
    ])
}

fn machine(system: &System) -> Json {
    let release = system.text("/etc/os-release").unwrap_or_default();
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).map(|name| name.trim_matches('"'));
    let memory = system.text("/proc/meminfo").unwrap_or_default();
    let line = |field: &str| {
        memory.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).map(|text| text.trim().to_owned())
    };
    Json::object([
        ("distribution", name.into()),
        ("kernel", system.text("/proc/version").into()),
        ("command line", system.text("/proc/cmdline").into()),
        ("tainted", system.text("/proc/sys/kernel/tainted").into()),
        ("lockdown", system.text("/sys/kernel/security/lockdown").into()),
        ("uptime", system.text("/proc/uptime").into()),
        ("memory", line("MemTotal").into()),
        ("memory available", line("MemAvailable").into()),
        ("huge pages", system.text("/sys/kernel/mm/transparent_hugepage/enabled").into()),
    ])
}

fn parameters(system: &System) -> Json {
    let of = |module: &str| {
        let Json::Object(fields) = files(system, &format!("/sys/module/{module}/parameters")) else {
            return Vec::new();
        };
        fields.into_iter().map(|(name, value)| (format!("{module}.{name}"), value)).collect()
    };
    Json::Object(["kvm", "kvm_amd"].into_iter().flat_map(of).collect())
}

/// Of vCPUs that could not go on, whether their VMs are there still or not. Stock keeps none.
fn last_exits(system: &System) -> Json {
    match system.text(LAST_EXITS) {
        Some(text) => Json::list(text.lines().map(|line| log::without_values(&shown(line)))),
        None if system.exists(LAST_EXITS) => Json::from("not seen: run this as root"),
        None => Json::from("not kept: hsave is not loaded"),
    }
}

/// What dpkg and dkms know of hsave; another distribution has neither.
fn packages(system: &System) -> Json {
    let said = |name: &str, words: &[&str]| {
        let ran = system.run(name, words).ok()?;
        let lines: Vec<String> = ran.output.lines().map(str::to_owned).collect();
        (!lines.is_empty()).then_some(Json::list(lines))
    };
    let format = "${Package} ${Version} ${db:Status-Abbrev}\\n";
    Json::object([
        (
            "dpkg",
            said("dpkg-query", &["-W", "-f", format, "hsave-*", "qemu-system-x86", "libvirt-daemon"])
                .unwrap_or(Json::Null),
        ),
        ("dkms", said("dkms", &["status", "hsave"]).unwrap_or(Json::Null)),
    ])
}

/// What debugfs has: of all VMs, and of each.
fn statistics(system: &System) -> Json {
    if !system.exists(DEBUGFS) {
        return Json::from(if system.names("/sys/kernel/debug").is_empty() {
            "not seen: debugfs is not mounted, or this is not root"
        } else {
            "the loaded modules have none in debugfs; a VMM reads them by KVM_GET_STATS_FD (QEMU: query-stats)"
        });
    }
    let mut all = Vec::new();
    for name in system.names(DEBUGFS) {
        let path = format!("{DEBUGFS}/{name}");
        if system.path(&path).is_dir() {
            all.push((name, files(system, &path)));
        } else if let Some(text) = system.text(&path) {
            all.push((name, value(&text)));
        }
    }
    Json::Object(all)
}

fn kernel_log(system: &System) -> Json {
    match log::about_kvm(system) {
        Ok(lines) => Json::list(lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default().to_vec()),
        Err(error) => Json::from(format!("not seen: {error}; run this as root")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    #[test]
    fn it_has_what_a_bug_report_needs_and_no_command_lines() {
        let fake = Fake::new();
        fake.file(
            "proc/cpuinfo",
            "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: EPYC 9\nmicrocode\t: 0x1\nflags\t\t: fpu svm npt\n\n\
             processor\t: 1\nmicrocode\t: 0x2\n",
        );
        fake.file("proc/cmdline", "quiet mitigations=off\n");
        fake.file("sys/devices/system/cpu/vulnerabilities/retbleed", "Mitigation: untrained return thunk\n");
        fake.file("sys/module/kvm/parameters/halt_poll_ns", "200000\n");
        fake.file("sys/kernel/debug/kvm/exits", "77\n");
        fake.file("sys/kernel/debug/kvm/42-13/exits", "7\n");
        fake.file("dev/kmsg", "6,2,2000000,-;kvm: hsave: here\n");
        fake.process(42, "qemu", &["anon_inode:kvm-vm"]);
        fake.file("proc/42/cmdline", "qemu\0-name\0secret\0");
        fake.answers(|line, _| match line.split(' ').next() {
            Some("dkms") => Ok("hsave/0.1.0, 6.12, x86_64: installed\n".to_owned()),
            _ => Err("no".to_owned()),
        });
        let text = text(&fake.system()).unwrap();
        for line in [
            "== processor",
            "model: EPYC 9",
            "microcode: 0x1",
            "microcode: 0x2",
            "processors: 2",
            "flags: svm npt",
            "command line: quiet mitigations=off",
            "retbleed: Mitigation: untrained return thunk",
            "kvm.halt_poll_ns: 200000",
            "exits: 77",
            "42-13.exits: 7",
            "[    2.000000] kvm: hsave: here",
            "dkms: hsave/0.1.0, 6.12, x86_64: installed",
            "0.name: qemu",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
        assert!(!text.contains("secret"));
        assert!(report(&fake.system()).unwrap().text().contains("\"kvm.halt_poll_ns\": 200000"));
    }

    #[test]
    fn last_exits_are_told_without_addresses() {
        let fake = Fake::new();
        let exit =
            "[    1.000000] process 7 (qemu) vcpu 0 KVM_EXIT_SHUTDOWN exit 0x7f info2 0x5000 rip 0x1234 times 1\n";
        fake.file("sys/kernel/hsave/last_exits", exit);
        let told = "[    1.000000] process 7 (qemu) vcpu 0 KVM_EXIT_SHUTDOWN exit 0x7f info2 0x... rip 0x... times 1";
        assert_eq!(last_exits(&fake.system()), Json::list([told]));
    }

    #[test]
    fn what_a_process_is_called_hides_no_address_and_moves_no_cursor() {
        let fake = Fake::new();
        let exit = "[    1.000000] process 7 (\x1b[2J rip 0x1) vcpu 0 EIO info2 0x5000 rip 0x1234 times 1\n";
        fake.file("sys/kernel/hsave/last_exits", exit);
        let told = "[    1.000000] process 7 (?[2J rip 0x...) vcpu 0 EIO info2 0x... rip 0x... times 1";
        assert_eq!(last_exits(&fake.system()), Json::list([told]));
    }

    #[test]
    fn what_cannot_be_seen_is_said() {
        let fake = Fake::new();
        let text = text(&fake.system()).unwrap();
        assert!(text.contains("not kept: hsave is not loaded"), "{text}");
        assert!(text.contains("not seen: debugfs is not mounted") && text.contains("run this as root"), "{text}");
    }
}
