//! `./x tidy`: the project's rules that a compiler does not know, each in a file of its own.

mod arrows;
mod layout;
mod links;
mod nospec;
mod panicking;
mod text;
mod trusted;
mod unsafety;

use crate::{differences, env::Env, i386, package::parameters, proc, rust_src, ui};
use anyhow::{Context, Result, bail};
use std::{fs, path::PathBuf};
use walkdir::WalkDir;

/// The crates that end up in the module.
const MODULE_CRATES: &[&str] = &["state", "arch", "host", "switch", "mmu", "emulator", "irqchip", "vm", "abi", "linux"];

/// One text file of the checkout.
struct Source {
    /// Relative to the checkout, with `/`.
    path: String,
    text: String,
}

impl Source {
    fn extension(&self) -> &str {
        self.path.rsplit_once('.').map_or("", |(_, ext)| ext)
    }

    /// The top folder, which names the crate.
    fn folder(&self) -> &str {
        self.path.split('/').next().unwrap_or("")
    }

    fn in_module(&self) -> bool {
        MODULE_CRATES.contains(&self.folder())
    }

    /// The syntax tree of a Rust file.
    fn parse(&self) -> Result<syn::File> {
        syn::parse_file(&self.text).with_context(|| format!("{}: cannot parse", self.path))
    }
}

/// Whether attributes say that an item is compiled for tests only.
fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let tokens = match &attribute.meta {
            syn::Meta::List(list) => list.tokens.to_string(),
            _ => String::new(),
        };
        attribute.path().is_ident("test")
            || attribute.path().is_ident("cfg")
                && (tokens == "test" || tokens.starts_with("any (test") || tokens.starts_with("all (test"))
    })
}

/// What was found, one line each: `path:line: what is wrong`.
type Findings = Vec<String>;

/// All rules; fails with every finding.
pub fn run(env: &Env) -> Result<()> {
    ui::step("tidy", || {
        let sources = sources(env)?;
        let mut findings = arrows::check(env)?;
        for source in &sources {
            findings.extend(text::check(source));
            if source.extension() == "rs" {
                findings.extend(rust_rules(source)?);
            }
        }
        findings.extend(text::architecture(&sources));
        findings.extend(links::check(&env.root, &sources));
        findings.extend(unsafety::forbidden_where_it_should_be(&sources));
        findings.extend(differences::check(env)?);
        findings.extend(parameters::check(env)?);
        findings.extend(formatting(env)?);
        if !findings.is_empty() {
            findings.sort();
            bail!("{}\n{} findings", findings.join("\n"), findings.len());
        }
        Ok(())
    })
}

/// What is not formatted, where the compiler's release has a formatter.
fn formatting(env: &Env) -> Result<Findings> {
    let mut findings = Findings::new();
    if !rust_src::component(env, "cargo-fmt", "rustfmt", "rustfmt")? {
        ui::note("formatting is not looked at: there is no rustfmt of this compiler's release");
        return Ok(findings);
    }
    if let Err(error) = proc::run(env.cargo().args(["fmt", "--all", "--", "--check", "-l"])) {
        findings.push(format!("not formatted; run `cargo fmt --all`:\n{error:#}"));
    }
    if let Err(error) = i386::formatted(env) {
        findings.push(format!("not formatted; run `rustfmt --edition 2024` on the first of these:\n{error:#}"));
    }
    Ok(findings)
}

fn rust_rules(source: &Source) -> Result<Findings> {
    let file = source.parse()?;
    let mut findings = unsafety::check(source, &file);
    findings.extend(layout::check(source, &file));
    findings.extend(trusted::check(source));
    if source.in_module() {
        findings.extend(panicking::check(source, &file));
        findings.extend(nospec::check(source, &file));
    }
    Ok(findings)
}

/// Every text file that belongs to the project.
fn sources(env: &Env) -> Result<Vec<Source>> {
    let skipped = |name: &str| matches!(name, "target" | ".git" | ".cache" | "Cargo.lock");
    let walk = WalkDir::new(&env.root).sort_by_file_name().into_iter();
    let mut sources = Vec::new();
    for entry in walk.filter_entry(|entry| !skipped(&entry.file_name().to_string_lossy())) {
        let entry = entry?;
        if !entry.file_type().is_file() {
            continue;
        }
        let path: PathBuf = entry.path().strip_prefix(&env.root)?.to_owned();
        if let Ok(text) = fs::read_to_string(entry.path()) {
            sources.push(Source { path: path.to_string_lossy().into_owned(), text });
        }
    }
    Ok(sources)
}
