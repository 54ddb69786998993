//! `./x test --here`: scenarios on this very machine, an AMD one, on stock's modules and on ours, and a report of it
//! (`xtask/scripts/here.sh` runs them, and puts back what was loaded, whatever happens).

use crate::{
    compare::differences,
    env::Env,
    expected, host, image,
    image::Tools,
    kernels::{ALL, Kernel},
    modules, payload, proc, run,
    scenarios::{self, Scenario},
    selection::Selection,
    ui,
    verdict::is_complaint,
};
use anyhow::{Context, Result, ensure};
use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

/// The scenario that measures: nanoseconds of each kind of exit.
const COSTS: &str = "exits-in-cycles";

/// Those that take the whole machine with them, or want one that is about nothing else: reason why they are not for one that somebody uses.
const NOT_HERE: &[(&str, &str)] = &[
    ("reboot", "restarts the machine"),
    ("crash", "crashes the machine"),
    ("kexec", "starts another kernel"),
    ("suspend", "suspends the machine"),
    ("hotplug", "takes processors away"),
    ("stress", "takes processors away"),
    ("faults", "is for a kernel that makes allocations fail"),
    ("memory", "fills swap"),
    ("here", "is this"),
];

/// The script.
pub fn script(env: &Env) -> PathBuf {
    env.root.join("xtask/scripts/here.sh")
}

/// Mounts what programs need into DIR/root, and starts the script, so that nothing of it is left to be unmounted.
const ENTER: &str = "for d in proc sys dev; do mkdir -p \"$1/root/$d\" && mount --rbind /$d \"$1/root/$d\" || exit 2; done; \
     mkdir -p \"$1/root/tmp\" && mount -t tmpfs tmpfs \"$1/root/tmp\" || exit 2; exec sh \"$0\" \"$1\"";

/// Megabytes that a machine is taken to have for it.
const MEMORY: u32 = 4096;

/// Whether a machine as it is can run it: with its own processor, kernel, command line and disks. What is admitted is given by
/// [`prepare`]. Every field is named, so that somebody decides about a new one.
fn is_for_any_machine(scenario: &Scenario) -> bool {
    let Scenario {
        name,
        kernels,
        script: _,
        compare: _,
        expected: _,
        payloads: _,
        load,
        modules,
        loaded,
        debian,
        packaged,
        i386_guests,
        qemu_backports,
        engines,
        installed,
        vmlinux: _,
        secure_boot,
        observe,
        here,
        slow: _,
        cpu,
        strict,
        plain,
        unchecked: _,
        cmdline,
        smp: _,
        memory,
        qemu,
        icount: _,
        timeout: _,
        seconds: _,
    } = *scenario;
    let kernel = ALL.iter().any(|kernel| kernels.contains(kernel)) && cmdline.is_empty();
    let machine = cpu == host::CPU && !strict && !plain && memory <= MEMORY && qemu.is_empty();
    let given = load && modules.is_empty() && loaded.is_empty() && debian.is_empty() && packaged.is_empty();
    let built = !(i386_guests || qemu_backports || engines || installed || secure_boot || observe || here);
    kernel && machine && given && built && !NOT_HERE.iter().any(|(not, _)| name.contains(not))
}

/// What is selected of those, each once.
fn scenarios(selection: &Selection) -> Result<Vec<&'static Scenario>> {
    let all = scenarios::every()?.filter(|scenario| is_for_any_machine(scenario));
    let quick = |scenario: &Scenario| selection.all || !scenario.slow.contains(&Kernel::V6_12);
    Ok(all.filter(|s| selection.wants(s.name) && (quick(s) || selection.names(s.name))).collect())
}

pub fn run(env: &Env, selection: &Selection) -> Result<ExitCode> {
    run::can_be_here()?;
    let scenarios = scenarios(selection)?;
    let (release, ours) = run::modules_for_here(env)?;
    let dir = env.target().join("here");
    proc::remove_dir(&dir)?;
    prepare(env, &dir, &scenarios)?;
    modules_into(&dir, &ours, &release, &Tools::fetch(env)?)?;
    // What they need is there afterwards, whoever is loaded.
    for module in ["irqbypass", "ccp"] {
        let _ = proc::output(Command::new("modprobe").arg(module));
    }
    ui::note(&format!(
        "{} scenarios, each on stock's modules and on ours; what was loaded is put back whatever happens",
        scenarios.len()
    ));
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--propagation", "private", "sh", "-c", ENTER]).arg(script(env)).arg(&dir);
    let status = unshare.stdin(Stdio::null()).status().context("cannot run unshare (is util-linux installed?)")?;
    let results = read(&dir)?;
    let (text, [passed, failed]) = report(&dir, &scenarios, &results, &machine(&release));
    let path = dir.join("report.md");
    fs::write(&path, text)?;
    ui::note(&format!("the report is {}; docs/hardware.md says what it is for", path.display()));
    println!("{passed} passed, {failed} failed");
    ensure!(status.success(), "what was loaded is not back");
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The file system that the scenarios run in, their scripts and programs, all but the modules.
fn prepare(env: &Env, dir: &Path, scenarios: &[&Scenario]) -> Result<()> {
    let tools = Tools::fetch(env)?;
    let root = dir.join("root");
    for part in ["root/modules", "root/stock", "root/payload", "stock", "ours", "scripts", "out"] {
        fs::create_dir_all(dir.join(part))?;
    }
    let mut unpack = Command::new(tools.busybox());
    unpack.args(["cpio", "-idmu"]).current_dir(&root).stdin(fs::File::open(image::base(env, &tools)?)?);
    ensure!(unpack.stdout(Stdio::null()).status()?.success(), "cannot unpack the scenarios' file system");
    proc::run(Command::new("chroot").arg(&root).args(["/bin/busybox", "--install", "-s", "/bin"]))?;
    let programs = payload::build(env)?;
    let mut list = String::new();
    for scenario in scenarios {
        for name in scenario.payloads {
            let (to, from) = payload::file(&programs, name)?;
            fs::copy(from, root.join(to))?;
        }
        if scenario.vmlinux {
            fs::copy(image::vmlinux(env)?, root.join("guest/vmlinux"))?;
        }
        // There the emulated host reports and logs, and somebody else's devices may be here.
        let script = scenario.script.replace("/dev/ttyS2", "/tmp/report").replace("/dev/ttyS0", "/tmp/log.serial");
        fs::write(dir.join("scripts").join(scenario.name), script)?;
        writeln!(list, "{} {}", scenario.name, scenario.timeout.as_secs())?;
    }
    let (to, from) = payload::file(&programs, "bench")?;
    fs::copy(from, root.join(to))?;
    fs::write(dir.join("scripts").join(COSTS), "exec /payload/bench\n")?;
    writeln!(list, "{COSTS} 600")?;
    Ok(fs::write(dir.join("list"), list)?)
}

/// Ours and the running kernel's own, as files.
fn modules_into(dir: &Path, ours: &Path, release: &str, tools: &Tools) -> Result<()> {
    let kernels = Path::new("/lib/modules").join(release).join("kernel/arch/x86/kvm");
    for name in ["kvm.ko", "kvm-amd.ko"] {
        let stock =
            ["", ".xz", ".zst"].iter().map(|ext| kernels.join(format!("{name}{ext}"))).find(|path| path.exists());
        let stock = stock.with_context(|| format!("this kernel has no {name} of its own in {}", kernels.display()))?;
        let content = modules::read(tools, &stock)?;
        fs::write(dir.join("stock").join(name), &content)?;
        fs::write(dir.join("root/stock").join(name), &content)?;
        fs::copy(ours.join(name), dir.join("ours").join(name))?;
    }
    for part in ["modules", "stock"] {
        fs::write(dir.join("root").join(part).join("kvm"), "kvm\nkvm-amd")?;
    }
    Ok(())
}

/// How one scenario went on one side.
#[derive(Debug, PartialEq, Eq)]
struct Ran {
    name: String,
    whose: String,
    status: i32,
    seconds: u32,
}

/// What the script wrote down; less than all if it was stopped.
fn read(dir: &Path) -> Result<Vec<Ran>> {
    let text = fs::read_to_string(dir.join("results")).unwrap_or_default();
    text.lines().map(|line| ran(line).with_context(|| format!("a result reads {line}"))).collect()
}

fn ran(line: &str) -> Option<Ran> {
    let mut words = line.split(' ');
    let mut word = || words.next().map(str::to_owned);
    Some(Ran { name: word()?, whose: word()?, status: word()?.parse().ok()?, seconds: word()?.parse().ok()? })
}

/// Processor, microcode, features and kernel, for whoever reads the report.
fn machine(release: &str) -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.split('\t').next() == Some(name)).unwrap_or_default();
        line.split_once(": ").map_or("?", |(_, value)| value).to_owned()
    };
    let mut text = format!("- kernel: {release}\n");
    for name in ["model name", "cpu family", "model", "stepping", "microcode", "flags", "bugs"] {
        let _ = writeln!(text, "- {name}: {}", field(name));
    }
    let processors = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let _ = writeln!(text, "- processors: {processors}");
    text
}

/// What is wrong with the kernel's log of a scenario on our modules: complaints, or that a part of it is lost.
fn wrong_in(log: &str, name: &str) -> Vec<String> {
    let mark = format!("hsave: here, {name} ours");
    let whole = log.lines().next().is_some_and(|line| line.ends_with(&mark));
    let lost = (!whole).then(|| "the beginning of the kernel's log is lost".to_owned());
    lost.into_iter().chain(log.lines().filter(|line| is_complaint(line)).map(str::to_owned)).collect()
}

/// The report, and how many scenarios passed and failed, the one that measures among them.
fn report(dir: &Path, scenarios: &[&Scenario], results: &[Ran], machine: &str) -> (String, [usize; 2]) {
    let printed = |name: &str, what: &str| {
        String::from_utf8_lossy(&fs::read(dir.join("out").join(format!("{name}.{what}"))).unwrap_or_default())
            .into_owned()
    };
    let of = |name: &str, whose: &str| results.iter().find(|ran| ran.name == name && ran.whose == whose);
    let said = |ran: Option<&Ran>| ran.map_or("not run".to_owned(), |ran| format!("{}, {} s", ran.status, ran.seconds));
    let mut text =
        format!("# hsave on a real machine\n\n{machine}\n| scenario | on stock | on ours | |\n|---|---|---|---|\n");
    let mut details = String::new();
    let mut counts = [0; 2];
    for (name, scenario) in scenarios.iter().map(|scenario| (scenario.name, Some(scenario))).chain([(COSTS, None)]) {
        let (stock, ours) = (of(name, "stock"), of(name, "ours"));
        let mut wrong = wrong_in(&printed(name, "ours.log"), name);
        if let Some(scenario) = scenario.filter(|scenario| scenario.compare) {
            let mut others = differences(&printed(name, "stock"), &printed(name, "ours"));
            expected::take_out(scenario.expected, &mut others);
            wrong.extend(others);
        }
        let good = wrong.is_empty() && ours.is_some_and(|ran| ran.status == 0);
        counts[usize::from(!good)] += 1;
        let _ = writeln!(text, "| {name} | {} | {} | {} |", said(stock), said(ours), if good { "" } else { "FAILED" });
        if !good {
            let output = printed(name, "ours");
            let _ = writeln!(details, "\n## {name}\n\n```\n{}\n---\n{}\n```", wrong.join("\n"), proc::tail(&output));
        }
    }
    text += &costs(&printed(COSTS, "stock"), &printed(COSTS, "ours"));
    (text + &details, counts)
}

/// What a line of `bench` says: kind and nanoseconds.
fn cost(line: &str) -> Option<(&str, f64)> {
    let (kind, nanoseconds) = line.strip_prefix("BENCH ")?.rsplit_once(' ')?;
    Some((kind, nanoseconds.parse().ok()?))
}

/// Exits in cycles of the TSC, stock's and ours.
fn costs(stock: &str, ours: &str) -> String {
    let khz = ours.lines().find_map(|line| line.strip_prefix("TSC ")?.strip_suffix(" kHz")?.parse::<f64>().ok());
    let cycles = |nanoseconds: f64| khz.map_or("?".to_owned(), |khz| format!("{:.0}", nanoseconds * khz / 1e6));
    let mut text = "\n| exit or ioctl | cycles on stock | on ours | of stock |\n|---|---|---|---|\n".to_owned();
    for (kind, on_ours) in ours.lines().filter_map(cost) {
        let on_stock = stock.lines().filter_map(cost).find(|(known, _)| *known == kind).map(|(_, n)| n);
        let (of, on_stock) =
            on_stock.map_or((String::new(), "?".to_owned()), |n| (format!("{:.2}", on_ours / n), cycles(n)));
        let _ = writeln!(text, "| {kind} | {on_stock} | {} | {of} |", cycles(on_ours));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_has_four_words() {
        let want = Ran { name: "exits".to_owned(), whose: "ours".to_owned(), status: 124, seconds: 7 };
        assert_eq!(ran("exits ours 124 7"), Some(want));
        assert_eq!(ran("exits ours"), None);
    }

    #[test]
    fn what_takes_the_machine_with_it_is_not_run_here() {
        let selection =
            Selection { all: true, only: None, kernel: None, processor: crate::strict::Processor::Plain, slow: false };
        let names: Vec<&str> = scenarios(&selection).unwrap().iter().map(|scenario| scenario.name).collect();
        assert!(names.contains(&"exits") && names.contains(&"boot-microvm"), "{names:?}");
        for (not, _) in NOT_HERE {
            assert!(!names.iter().any(|name| name.contains(not)), "{not}");
        }
        // Each of these takes the machine, or what is given it, for the emulated host.
        for not in
            ["libvirt", "gvisor", "passthrough", "qemu-backports", "old-linux", "run-disk-efi", "guests", "upgrade"]
        {
            assert!(!names.contains(&not), "{not}");
        }
    }

    #[test]
    fn what_is_given_to_the_emulated_host_alone_is_not_for_any_machine() {
        let plain = scenarios::scenario("any", "true");
        assert!(is_for_any_machine(&plain));
        let any = || scenarios::scenario("any", "true");
        for (what, scenario) in [
            ("debian", Scenario { debian: &["runsc"], ..any() }),
            ("i386_guests", Scenario { i386_guests: true, ..any() }),
            ("qemu_backports", Scenario { qemu_backports: true, ..any() }),
            ("loaded", Scenario { loaded: &["vfio-pci"], ..any() }),
            ("plain", Scenario { plain: true, ..any() }),
            ("strict", Scenario { strict: true, ..any() }),
            ("memory", Scenario { memory: 6144, ..any() }),
            ("here", Scenario { here: true, ..any() }),
            ("kernels", Scenario { kernels: &[Kernel::V6_12Debug], ..any() }),
        ] {
            assert!(!is_for_any_machine(&scenario), "{what}");
        }
    }

    #[test]
    fn costs_are_cycles_of_the_tsc() {
        let text = costs("BENCH cpuid 1000\n", "TSC 2000000 kHz\nBENCH cpuid 500\nBENCH hlt 3\n");
        assert!(text.contains("| cpuid | 2000 | 1000 | 0.50 |") && text.contains("| hlt | ? | 6 |  |"), "{text}");
    }

    #[test]
    fn a_scenario_that_was_not_run_has_failed() {
        let exits = scenarios::ALL.iter().find(|scenario| scenario.name == "exits").unwrap();
        let dir = std::env::temp_dir().join(format!("here-{}", std::process::id()));
        fs::create_dir_all(dir.join("out")).unwrap();
        for name in ["exits", COSTS] {
            fs::write(dir.join("out").join(format!("{name}.ours.log")), format!("[ 1.0] hsave: here, {name} ours\n"))
                .unwrap();
        }
        let results = |exits, costs| {
            [("exits", exits), (COSTS, costs)].map(|(name, status)| ran(&format!("{name} ours {status} 1")).unwrap())
        };
        let counts = |results: &[Ran]| report(&dir, &[exits], results, "").1;
        assert_eq!(counts(&results(0, 0)), [2, 0]);
        assert_eq!(counts(&results(124, 0)), [1, 1]);
        assert_eq!(counts(&results(0, 1)), [1, 1]);
        assert_eq!(counts(&[]), [0, 2]);
        // Overwritten, so that nobody knows what was in it.
        fs::write(dir.join("out/exits.ours.log"), "").unwrap();
        assert_eq!(counts(&results(0, 0)), [1, 1]);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_log_is_whole_or_wrong() {
        assert_eq!(wrong_in("[ 1.0] hsave: here, exits ours\n[ 2.0] kvm: hsave\n", "exits"), [""; 0]);
        let wrong = wrong_in("[ 2.0] WARNING: CPU: 1\n", "exits");
        assert_eq!(wrong, ["the beginning of the kernel's log is lost", "[ 2.0] WARNING: CPU: 1"]);
    }
}
