//! `./x bench`: host instructions per exit, ours beside stock kvm-amd, in the same emulated machine.
//!
//! Virtual time counts instructions there (`-icount`), so the figures are exact and repeatable; they
//! are no cycles. The program `bench` of the crate `tests` prints `BENCH KIND INSTRUCTIONS` lines.

use crate::{
    breakdown, engines,
    env::Env,
    host::{self, Boot, Flavour, Machine},
    image,
    kernels::{self, Kernel},
    outside, payload, plot, proc, profile,
    strict::{self, Processor},
    trace::Counts,
    ui,
};
use anyhow::{Context, Result, bail, ensure};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::ExitCode,
    time::Duration,
};

/// The whole bench in one machine takes this long on a slow day.
pub const PATIENCE: Duration = Duration::from_secs(1800);
/// Part of the names of the kinds that need two processors. They have a boot of their own: one processor makes all others
/// exactly repeatable.
pub const OF_TWO: &str = "migration";
/// What needs a second engine, once the host has settled.
const ENGINES: &str = "insmod /modules/hsave_0_2.ko && sleep 20 && /payload/bench upgrade && rmmod hsave_0_2";
/// What is aimed at: the part of stock's figure that ours takes at most.
type Bars = &'static [(&'static str, f64)];
/// On the strict processor.
const BARS: Bars = &[
    ("cpuid", 0.10),
    ("rdmsr", 0.10),
    ("wrmsr", 0.10),
    ("x2apic-eoi", 0.10),
    ("tsc-deadline-set", 0.10),
    ("vmmcall", 0.35),
    ("wbinvd", 0.35),
    ("pio-in-kernel", 0.35),
    ("pio-ioeventfd", 0.35),
    ("mmio-in-kernel", 0.35),
    ("mmio-ioeventfd", 0.35),
    ("x2apic-read", 0.35),
    ("cr0-toggle", 0.35),
    ("cr4-toggle", 0.35),
    ("wrmsr-faults", 0.35),
    ("pio-out-to-user", 0.45),
    ("pio-in-from-user", 0.45),
    ("mmio-write-to-user", 0.45),
    ("mmio-read-from-user", 0.45),
    ("npf-first-touch-4k", 0.35),
    ("npf-first-touch-2m", 0.35),
    ("npf-after-dirty-log", 0.35),
    ("x2apic-self-ipi", 0.30),
    ("x2apic-self-ipi-hlt", 0.30),
    ("tsc-deadline-taken", 0.30),
    ("tsc-deadline-hlt", 0.30),
    ("ipi-and-wake", 0.40),
    ("irqfd-interrupt", 0.40),
    ("create-vcpu", 0.35),
    ("run-immediate-exit", 0.50),
    ("create-vm-vcpu-destroy", 0.01),
    ("memory-per-vm", 0.15),
];
/// On the plain one.
const PLAIN_BARS: Bars = &[
    ("cpuid", 0.20),
    ("rdmsr", 0.20),
    ("wrmsr", 0.20),
    ("pio-in-kernel", 0.20),
    ("x2apic-eoi", 0.20),
    ("x2apic-self-ipi", 0.20),
    ("tsc-deadline-set", 0.20),
    ("tsc-deadline-taken", 0.50),
    ("tsc-deadline-hlt", 0.50),
    ("x2apic-read", 0.50),
    ("pio-ioeventfd", 0.50),
    ("irqfd-interrupt", 0.50),
    ("pio-out-to-user", 0.40),
    ("pio-in-from-user", 0.40),
    ("mmio-write-to-user", 0.40),
    ("mmio-read-from-user", 0.40),
    ("npf-first-touch-4k", 0.40),
    ("x2apic-self-ipi-hlt", 0.40),
    ("ipi-and-wake", 0.40),
    ("hv-stimer-set", 0.50),
    ("hv-stimer-taken", 0.50),
    ("hv-ipi", 0.50),
    ("hv-flush-8", 0.50),
    ("create-vm-vcpu-destroy", 0.20),
    ("memory-per-vm", 0.25),
];
/// Instructions that a VM may stand still in an upgrade: 300,000, and 100,000 for each vCPU but one.
const PAUSES: Bars =
    &[("upgrade-1-vcpu", 300_000.0), ("upgrade-4-vcpus", 600_000.0), ("upgrade-16-vcpus", 1_800_000.0)];
const UPGRADES: &str = "\n`upgrade-` kinds are hsave's alone: how long a VM stands still whose vCPUs all run, from the first that is asked to \
     leave the guest\nto the last that may go on (`pause_ns`), the one in the middle of 41 upgrades (docs/upgrade.md).\n\n";
const COSTLY: &str = "## Costly operations per exit\n\nCounted in a trace of the host kernel's instructions, stock / hsave. \
     LOCK is a bus-locked instruction; CR access and DR access are moves to and from control and debug registers; IPI is an interrupt sent to another processor or itself. TLB flushes \
     that VMRUN does (TLB_CONTROL) are logged by the strict processor alone.\n\n";
const NRIPS: &str = "## An estimate with next-RIP saving\n\nThe emulated processor does not say how long an intercepted \
     instruction is, so both hypervisors have to look at it. Without the instructions that this takes, on both \
     sides. Exits that hsave handles before the guest is left, where the processor says it, are not handled so here:\n\n";

/// What is wanted beside the first table.
pub struct Options {
    /// On whose figures.
    pub processor: Processor,
    pub most: Option<f64>,
    pub with_nrips: bool,
}

fn bars(processor: Processor) -> Bars {
    match processor {
        Processor::Strict => BARS,
        Processor::Plain => PLAIN_BARS,
    }
}

/// Kinds in the order in which they were measured, and their figures.
pub type Figures = Vec<(String, f64)>;

/// Runs both and writes docs/performance.md; fails if ours takes more than `most` of stock anywhere.
pub fn run(env: &Env, kernel: Kernel, options: &Options) -> Result<ExitCode> {
    let (stock, ours) = both(|flavour| measure(env, options.processor, kernel, flavour))?;
    let bars = bars(options.processor);
    let mut text = table(bars, &stock, &ours)? + &handler(&stock, &ours) + &pauses(&ours);
    print!("{text}");
    let traced = both(|flavour| profile::measure(env, options.processor, kernel, flavour, ""))?;
    let mut more = format!("\n{COSTLY}{}", costly(&stock, &traced));
    if options.with_nrips {
        more += &format!("\n{NRIPS}{}", with_nrips(bars, &stock, &ours, &traced)?);
    }
    more += &breakdown::table(&missed(bars, &stock, &ours), &traced.1);
    println!("{more}");
    text += &more;
    let release = kernels::fetch(env, kernel)?.release;
    let file = env.root.join("docs/performance.md");
    let old = fs::read_to_string(&file)?;
    let page = page(&old, options.processor, &release, &text);
    proc::write_if_changed(&file, page.as_bytes())?;
    plot::draw(&env.root.join("docs/performance.svg"), &page)?;
    ui::note("written to docs/performance.md, and drawn in docs/performance.svg");
    let worst = stock.iter().filter_map(|(kind, stock)| Some(find(&ours, kind)? / stock)).fold(0.0, f64::max);
    if let Some(most) = options.most.filter(|most| worst > *most) {
        println!("the worst ratio is {worst:.2}, more than {most:.2}");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// Stock and ours, side by side.
fn both<T: Send>(f: impl Fn(Flavour) -> Result<T> + Sync) -> Result<(T, T)> {
    std::thread::scope(|scope| {
        let stock = scope.spawn(|| f(Flavour::Stock));
        let ours = f(Flavour::Ours);
        let stock = stock.join().map_err(|_| anyhow::anyhow!("the stock run panicked"))?;
        Ok((stock?, ours?))
    })
}

fn measure(env: &Env, processor: Processor, kernel: Kernel, flavour: Flavour) -> Result<Figures> {
    let machine = Machine::new(env, processor)?;
    let mut boot = Boot::new(kernel, flavour, "exec /payload/bench");
    (boot.icount, boot.smp, boot.timeout) = (true, 1, PATIENCE);
    if flavour == Flavour::Ours {
        boot.ours = Some(host::our_modules(env, kernel)?);
    }
    boot.files.push(payload::file(&payload::build(env)?, "bench")?);
    let mut two = Boot { smp: 2, ..boot.clone() };
    // The host settles first, as the program itself waits for when it measures everything.
    two.script = format!("sleep 20; exec /payload/bench {OF_TWO}");
    ui::step(&format!("measuring {flavour:?}"), || {
        let mut figures = parse(&output(&machine, env, &boot)?)?;
        figures.extend(parse(&output(&machine, env, &two)?)?);
        figures.extend(outside::measure(env, &machine, &boot)?);
        if flavour == Flavour::Ours {
            // In a boot of its own: a second engine is memory of the kernel's.
            let mut engines = Boot { script: ENGINES.to_owned(), ..boot };
            engines.files.extend(engines::files(env, kernel)?);
            figures.extend(parse(&output(&machine, env, &engines)?)?);
        }
        Ok(figures)
    })
}

/// What the script of a boot that has to pass prints.
pub fn output(machine: &Machine, env: &Env, boot: &Boot) -> Result<String> {
    let outcome = machine.boot(env, boot)?;
    if !outcome.passed() {
        bail!("{}\n{}\n{}", outcome.explain(), proc::tail(&outcome.output), proc::tail(&outcome.log));
    }
    Ok(outcome.output)
}

fn parse(output: &str) -> Result<Figures> {
    let mut figures = Figures::new();
    for line in output.lines().filter_map(|line| line.strip_prefix("BENCH ")) {
        let (kind, figure) = line.trim().rsplit_once(' ').context("a BENCH line has a kind and a figure")?;
        figures.push((kind.to_owned(), figure.parse().with_context(|| format!("BENCH {line}"))?));
    }
    ensure!(!figures.is_empty(), "the bench printed no BENCH line:\n{}", proc::tail(output));
    Ok(figures)
}

fn find(figures: &Figures, kind: &str) -> Option<f64> {
    figures.iter().find_map(|(name, figure)| (name == kind).then_some(*figure))
}

fn table(bars: Bars, stock: &Figures, ours: &Figures) -> Result<String> {
    let mut table = "| | stock kvm-amd | hsave | ratio | aim |\n|---|---:|---:|---:|---:|\n".to_owned();
    for (kind, stock) in stock {
        let ours = find(ours, kind).with_context(|| format!("ours printed nothing for {kind}"))?;
        let ratio = ours / stock;
        let aim = match bars.iter().find(|(name, _)| name == kind) {
            Some((_, bar)) if ratio <= *bar => format!("{bar:.2}"),
            Some((_, bar)) => format!("{bar:.2}, missed"),
            None => String::new(),
        };
        table += &format!("| {kind} | {stock:.0} | {ours:.0} | {ratio:.2} | {aim} |\n");
    }
    Ok(table)
}

/// Kinds for which more is aimed at.
fn missed<'a>(bars: Bars, stock: &'a Figures, ours: &Figures) -> Vec<&'a str> {
    let misses = |kind: &str, stock: f64| {
        let bar = bars.iter().find(|(name, _)| *name == kind)?.1;
        Some(find(ours, kind)? / stock > bar)
    };
    stock.iter().filter(|(kind, stock)| misses(kind, *stock) == Some(true)).map(|(kind, _)| kind.as_str()).collect()
}

/// What of an external interrupt is the hypervisor's: the figure contains the host's own handler.
fn handler(stock: &Figures, ours: &Figures) -> String {
    let of = |figures: &Figures| {
        let (all, host) = (find(figures, "external-interrupt")?, find(figures, "calibration-timer-tick")?);
        Some((host, all - host))
    };
    let (Some((stock_host, stock)), Some((ours_host, ours))) = (of(stock), of(ours)) else { return String::new() };
    format!(
        "\n`external-interrupt` is the host's timer tick under a guest that spins. Most of it is the host's own handler, which \
         takes {stock_host:.0} /\n{ours_host:.0} instructions under a program that spins without a guest \
         (`calibration-timer-tick`, stock / hsave). Without it, {stock:.0} / {ours:.0} remain, a ratio of {:.2}.\n",
        ours / stock
    )
}

/// Of what stock cannot do, a table of its own.
fn pauses(ours: &Figures) -> String {
    let mut table = format!("{UPGRADES}| | hsave | aim |\n|---|---:|---:|\n");
    for (kind, bar) in PAUSES {
        let Some(pause) = find(ours, kind) else { return String::new() };
        let missed = if pause <= *bar { "" } else { ", missed" };
        table += &format!("| {kind} | {pause:.0} | {bar:.0}{missed} |\n");
    }
    table
}

/// A column per operation that occurs, a row per kind.
fn costly(kinds: &Figures, (stock, ours): &(BTreeMap<String, Counts>, BTreeMap<String, Counts>)) -> String {
    let all = || stock.values().chain(ours.values());
    let operations: BTreeSet<&str> =
        all().flat_map(|c| &c.costly).filter(|(_, count)| **count >= 0.05).map(|(name, _)| *name).collect();
    let mut table = format!("| |{}\n|---|", operations.iter().map(|name| format!(" {name} |")).collect::<String>());
    table += &format!("{}\n", "---:|".repeat(operations.len()));
    for (kind, _) in kinds {
        let (Some(stock), Some(ours)) = (stock.get(kind), ours.get(kind)) else { continue };
        let cell = |name: &&str| {
            let count = |counts: &Counts| {
                let count = counts.costly.get(name).copied().unwrap_or(0.0);
                let text = format!("{count:.1}");
                text.strip_suffix(".0").unwrap_or(&text).replace("-0", "0")
            };
            match (count(stock), count(ours)) {
                (stock, ours) if stock == "0" && ours == "0" => " |".to_owned(),
                (stock, ours) => format!(" {stock} / {ours} |"),
            }
        };
        table += &format!("| {kind} |{}\n", operations.iter().map(cell).collect::<String>());
    }
    table
}

fn with_nrips(
    bars: Bars,
    stock: &Figures,
    ours: &Figures,
    traced: &(BTreeMap<String, Counts>, BTreeMap<String, Counts>),
) -> Result<String> {
    let less = |figures: &Figures, traced: &BTreeMap<String, Counts>| -> Figures {
        let figure = |(kind, figure): &(String, f64)| Some((kind.clone(), figure - traced.get(kind)?.decoding));
        figures.iter().filter_map(figure).collect()
    };
    let decodes = |kind: &str| [&traced.0, &traced.1].iter().any(|t| t.get(kind).is_some_and(|c| c.decoding >= 0.5));
    let mut stock = less(stock, &traced.0);
    stock.retain(|(kind, _)| decodes(kind));
    table(bars, &stock, &less(ours, &traced.1))
}

/// Where on the page the plain processor's figures begin.
const PLAIN: &str = "\n# The same on the plain processor\n\n";

/// The page: how the figures came about, then the strict processor's, then the plain one's. Those of the other one stay as they are
/// in `old`.
fn page(old: &str, processor: Processor, release: &str, text: &str) -> String {
    let (strict, plain) = old.split_once(PLAIN).unwrap_or((old, ""));
    let taken = |model: &str| format!("Host kernel {release}, `-cpu {model}`:\n\n{text}");
    let (strict, plain) = match processor {
        Processor::Strict => {
            let about = include_str!("../scripts/performance.md").replace("@GUEST@", image::GUEST_KERNEL.name());
            (format!("{about}\n{}", taken(&strict::cpu(host::CPU, "", 0))), plain.to_owned())
        }
        Processor::Plain => (strict.to_owned(), taken(host::CPU)),
    };
    if plain.is_empty() { strict } else { strict + PLAIN + &plain }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_a_table() {
        let stock = parse("noise\nBENCH cpuid 3040\nBENCH npf 4k 8079\n").unwrap();
        let ours = parse("BENCH cpuid 1000\nBENCH npf 4k 2000.4\n").unwrap();
        let text = table(PLAIN_BARS, &stock, &ours).unwrap();
        assert!(text.contains("| cpuid | 3040 | 1000 | 0.33 | 0.20, missed |"), "{text}");
        assert!(text.contains("| npf 4k | 8079 | 2000 | 0.25 |  |"), "{text}");
        assert!(parse("nothing").is_err());
        assert!(table(BARS, &stock, &parse("BENCH cpuid 1\n").unwrap()).is_err());
    }

    #[test]
    fn each_processor_has_its_part_of_the_page() {
        let page = |old: &str, processor, text| super::page(old, processor, "6.12", text);
        let both = page(&page("", Processor::Strict, "| a |"), Processor::Plain, "| b |");
        assert!(both.find("| a |") < both.find(PLAIN) && both.find(PLAIN) < both.find("| b |"), "{both}");
        let newer = page(&both, Processor::Strict, "| c |");
        assert!(newer.contains("| c |") && newer.contains("| b |") && !newer.contains("| a |"), "{newer}");
    }

    #[test]
    fn the_hosts_own_handler_is_told_apart() {
        let figures = |all| vec![("calibration-timer-tick".to_owned(), 3000.0), ("external-interrupt".to_owned(), all)];
        let text = handler(&figures(4000.0), &figures(3400.0));
        assert!(text.contains("Without it, 1000 / 400 remain, a ratio of 0.40."), "{text}");
        assert_eq!(handler(&Figures::new(), &figures(1.0)), "");
    }

    #[test]
    fn upgrades_have_a_table_of_their_own() {
        let figures = parse("BENCH upgrade-1-vcpu 300000\nBENCH upgrade-4-vcpus 600001\nBENCH upgrade-16-vcpus 2\n");
        let text = pauses(&figures.unwrap());
        assert!(
            text.contains("| upgrade-1-vcpu | 300000 | 300000 |\n| upgrade-4-vcpus | 600001 | 600000, missed |"),
            "{text}"
        );
        assert_eq!(pauses(&Figures::new()), "");
    }

    #[test]
    fn decoding_is_taken_off_both_sides() {
        let kinds = vec![("cpuid".to_owned(), 3000.0), ("npf".to_owned(), 10.0)];
        let counts = |decoding| Counts { decoding, ..Counts::default() };
        let traced = |d| BTreeMap::from([("cpuid".to_owned(), counts(d)), ("npf".to_owned(), counts(0.0))]);
        let text = with_nrips(PLAIN_BARS, &kinds, &kinds, &(traced(1000.0), traced(2600.0))).unwrap();
        assert!(text.contains("| cpuid | 2000 | 400 | 0.20 | 0.20 |"), "{text}");
        assert!(!text.contains("npf"));
    }
}
