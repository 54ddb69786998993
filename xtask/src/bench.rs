//! `./x bench`: host instructions per exit, ours beside stock kvm-amd, in the same emulated machine.
//!
//! Virtual time counts instructions there (`-icount`), so the figures are exact and repeatable; they
//! are no cycles. The program `bench` of the crate `tests` prints `BENCH KIND INSTRUCTIONS` lines.

use crate::{
    env::Env,
    host::{self, Boot, Flavour, Machine},
    kernels::{self, Kernel},
    payload, proc, ui,
};
use anyhow::{Context, Result, bail, ensure};
use std::{collections::BTreeMap, path::PathBuf, process::ExitCode, time::Duration};

const SCRIPT: &str = "exec /payload/bench";

/// Runs both and writes docs/performance.md; fails if ours takes more than `most` of stock anywhere.
pub fn run(env: &Env, kernel: Kernel, most: Option<f64>) -> Result<ExitCode> {
    let machine = Machine::new(env)?;
    let payloads = payload::build(env)?;
    let ours = host::our_modules(env, kernel)?;
    let program = payload::file(&payloads, "bench")?;
    let measure = |flavour: Flavour, name: &str| {
        let mut boot = Boot::new(kernel, flavour, SCRIPT);
        (boot.icount, boot.smp, boot.timeout) = (true, 1, Duration::from_secs(900));
        boot.ours = Some(PathBuf::clone(&ours));
        boot.files.push(program.clone());
        ui::step(&format!("measuring {name}"), || {
            let outcome = machine.boot(env, &boot)?;
            if !outcome.passed() {
                bail!("{}\n{}\n{}", outcome.explain(), proc::tail(&outcome.output), proc::tail(&outcome.log));
            }
            parse(&outcome.output)
        })
    };
    let (stock, ours) = std::thread::scope(|scope| {
        let stock = scope.spawn(|| measure(Flavour::Stock, "stock kvm-amd"));
        let ours = measure(Flavour::Ours, "ours");
        (stock.join(), ours)
    });
    let (stock, ours) = (stock.map_err(|_| anyhow::anyhow!("the stock run panicked"))??, ours?);
    let table = table(&stock, &ours)?;
    println!("{table}");
    let release = kernels::fetch(env, kernel)?.release;
    proc::write_if_changed(&env.root.join("docs/performance.md"), page(&release, &table).as_bytes())?;
    ui::note("written to docs/performance.md");
    let worst = stock.iter().filter_map(|(kind, stock)| Some(ours.get(kind)? / stock)).fold(0.0, f64::max);
    if let Some(most) = most.filter(|most| worst > *most) {
        println!("the worst ratio is {worst:.2}, more than {most:.2}");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn parse(output: &str) -> Result<BTreeMap<String, f64>> {
    let mut figures = BTreeMap::new();
    for line in output.lines().filter_map(|line| line.strip_prefix("BENCH ")) {
        let (kind, figure) = line.trim().rsplit_once(' ').context("a BENCH line has a kind and a figure")?;
        figures.insert(kind.to_owned(), figure.parse().with_context(|| format!("BENCH {line}"))?);
    }
    ensure!(!figures.is_empty(), "the bench printed no BENCH line:\n{}", proc::tail(output));
    Ok(figures)
}

fn table(stock: &BTreeMap<String, f64>, ours: &BTreeMap<String, f64>) -> Result<String> {
    let mut table = "| exit | stock kvm-amd | hsave | ratio |\n|---|---:|---:|---:|\n".to_owned();
    for (kind, stock) in stock {
        let ours = ours.get(kind).with_context(|| format!("ours printed nothing for {kind}"))?;
        table += &format!("| {kind} | {stock:.0} | {ours:.0} | {:.2} |\n", ours / stock);
    }
    Ok(table)
}

fn page(release: &str, table: &str) -> String {
    format!(
        "# Host instructions per VM exit\n\nWritten by `./x bench`. Host kernel {release}, one processor emulated \
         by QEMU's TCG (`-cpu {}`) with\n`-icount shift=0,sleep=off`, where virtual nanoseconds are instructions. \
         Each figure is one round of a guest loop around that\nexit, less an empty round; it includes what the guest, \
         and for exits to user space the client, does. Mitigations are as\nthe host kernel sets them, the same for both. \
         These are instruction counts, not cycles.\n\n{table}",
        host::CPU
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_a_table() {
        let stock = parse("noise\nBENCH cpuid 3040\nBENCH npf 4k 8079\n").unwrap();
        let ours = parse("BENCH cpuid 1000\nBENCH npf 4k 2000.4\n").unwrap();
        assert!(table(&stock, &ours).unwrap().contains("| cpuid | 3040 | 1000 | 0.33 |"));
        assert!(parse("nothing").is_err());
        assert!(table(&stock, &parse("BENCH cpuid 1\n").unwrap()).is_err());
    }
}
