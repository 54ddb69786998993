//! The border between the base (C) and its engines (Rust, with a little C around it) has one source, the Rust text in
//! `linux/src`, with the numbers and the struct of the crates above by which engines understand each other. From it comes `border.h`, which every C file includes: the C compiler refuses a function whose signature is not
//! the one that Rust calls, and a call whose arguments are not those that Rust expects. It has the table of what the base calls
//! in an engine, and a hash of all of it, by which a base knows an engine that was made for another. And from it comes
//! `exports.c`, with what the base offers to engines.
//!
//! What is read is a restricted form, and everything else is an error: in `shim.rs` a function, a variable, a constant, a struct or an
//! opaque type on its own line, elsewhere functions behind `#[unsafe(no_mangle)]`, structs, and enums whose variants have numbers.

use crate::{env::Env, proc};
use anyhow::{Context, Result, bail, ensure};
use std::{fs, path::Path};
use walkdir::WalkDir;

/// The header's path in the directory where the modules are built.
pub const HEADER: &str = "include/border.h";
/// That of what the base exports.
pub const EXPORTS: &str = "kvm/exports.c";

/// Objects of Rust's that C only holds pointers to.
const OWN: &[&str] = &["c_void", "Vm", "vm::Vm<Linux>"];

/// Enums whose numbers both sides know, or two engines: what they are called in C, the file, and the name in it.
const NUMBERS: &[(&str, &str, &str)] = &[
    ("REQUEST", "host/src/requests.rs", "Request"),
    ("HRTIMER", "host/src/machine.rs", "Hrtimer"),
    ("LENT_KIND", "host/src/lend.rs", "LentKind"),
    ("LENT_FOR", "host/src/lend.rs", "LentFor"),
];

/// The Rust sources that it is made of.
struct Sources {
    /// What C offers.
    shim: String,
    /// What Rust offers: all of the crate.
    exports: String,
    /// The CPUs' data.
    percpu: String,
    /// What goes from one engine to the next in the last step.
    moved: String,
    /// The files of [`NUMBERS`].
    numbers: Vec<String>,
}

impl Sources {
    fn read(env: &Env) -> Result<Self> {
        let read = |path: &str| fs::read_to_string(env.root.join(path)).with_context(|| format!("{path} is missing"));
        let mut exports = String::new();
        for entry in WalkDir::new(env.root.join("linux/src")).sort_by_file_name() {
            let entry = entry?;
            if entry.path().extension().is_some_and(|extension| extension == "rs") {
                exports += &fs::read_to_string(entry.path())?;
            }
        }
        Ok(Self {
            shim: read("linux/src/shim.rs")?,
            exports,
            percpu: read("switch/src/percpu.rs")?,
            moved: read("mmu/src/handover.rs")?,
            numbers: NUMBERS.iter().map(|(_, path, _)| read(path)).collect::<Result<_>>()?,
        })
    }
}

/// Writes the header for the sources of this checkout below `to`, and what the base exports.
pub fn write(env: &Env, to: &Path) -> Result<()> {
    let sources = Sources::read(env)?;
    proc::write_if_changed(&to.join(HEADER), header(&sources)?.as_bytes())?;
    proc::write_if_changed(&to.join(EXPORTS), exported_by_the_base(&sources.shim).as_bytes())
}

/// HSAVE_INTERFACE_HASH of this checkout.
pub fn hash(env: &Env) -> Result<u64> {
    let text = header(&Sources::read(env)?)?;
    let digits = text.split_once("HSAVE_INTERFACE_HASH 0x").and_then(|(_, rest)| rest.split_once("ull"));
    Ok(u64::from_str_radix(digits.context("the header has no hash")?.0, 16)?)
}

/// The whole header.
fn header(sources: &Sources) -> Result<String> {
    let Sources { shim, exports, percpu, moved, numbers } = sources;
    let types = Types { opaque: opaque(shim)? };
    let mut text = "/* Made by xtask/src/border.rs from linux/src, and what that names of other crates. */\n\
                    #ifndef HSAVE_BORDER_H\n#define HSAVE_BORDER_H\n\n#include <linux/build_bug.h>\n#include <linux/stddef.h>\n#include <linux/types.h>\n\n"
        .to_owned();
    let begins = text.len();
    for (_, name) in &types.opaque {
        text += &format!("{name};\n");
    }
    text += "\n";
    for (name, value) in constants(shim)? {
        text += &format!("#define HSAVE_{name} {value}\n");
    }
    for ((prefix, path, name), source) in NUMBERS.iter().zip(numbers) {
        for (variant, value) in enumeration(source, name).with_context(|| (*path).to_owned())? {
            text += &format!("#define HSAVE_{prefix}_{variant} {value}\n");
        }
    }
    text += REQUESTS;
    text += &structure(&types, shim, "ThreadShared", "hsave_thread_shared", None)?;
    text += &structure(&types, shim, "Parcel", "hsave_parcel", None)?;
    text += &structure(&types, moved, "Moved", "hsave_moved", None)?;
    text += "static_assert(sizeof(struct hsave_moved) == HSAVE_MOVED * sizeof(u64));\n";
    let size =
        percpu.lines().find_map(|line| line.strip_prefix("pub const CPU_DATA_SIZE: usize = ")?.strip_suffix(';'));
    let size: usize = size.context("CPU_DATA_SIZE is missing")?.parse()?;
    text += &structure(&types, percpu, "CpuData", "hsave_cpu_data", Some(size))?;
    let [base, own] = imports(shim);
    text += "\n/* Defined by the base, called by engines. */\n";
    for declared in &base {
        text += &prototype(&types, declared)?;
    }
    text += "\n/* Variables of the base, looked at by engines. */\n";
    for declared in &variables(shim) {
        text += &variable(declared)?;
    }
    text += "\n/* Defined by Rust, called by the base through the table. */\n";
    let (mut pointers, mut entries) = (String::new(), String::new());
    for defined in exported(exports)? {
        let declared = prototype(&types, &defined)?;
        let name = defined.split('(').next().unwrap_or_default();
        let short = name.strip_prefix("hsave_").with_context(|| format!("{name} is not named hsave_..."))?;
        pointers += &format!("\t{}", declared.replacen(name, &format!("(*{short})"), 1));
        entries += &format!("\t.{short} = {name}, \\\n");
        text += &declared;
    }
    text += &format!("\nstruct hsave_engine_ops {{\n{pointers}}};\n");
    let hash = fnv(&text[begins..]);
    text += &format!(
        "\n#define HSAVE_INTERFACE_HASH {hash:#x}ull\n#define HSAVE_VERSION \"{}\"\n",
        env!("CARGO_PKG_VERSION")
    );
    text += &format!("#define HSAVE_ENGINE_OPS {{ \\\n{entries}}}\n");
    text += "\n/* Defined by each engine's C, called by its Rust. */\n";
    for declared in &own {
        text += &prototype(&types, declared)?;
    }
    text += "\n#endif\n";
    Ok(text)
}

/// FNV-1a: by it a base knows that an engine was made for the same border.
fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// The C file that exports what `shim` declares, by that name and to modules under the GPL.
fn exported_by_the_base(shim: &str) -> String {
    let mut text =
        "// SPDX-License-Identifier: GPL-2.0-only\n/* Made by xtask/src/border.rs from linux/src/shim.rs. */\n\
                    #include <linux/export.h>\n#include <hsave.h>\n\n"
            .to_owned();
    let [functions, _] = imports(shim);
    let variables = variables(shim);
    for declared in functions.iter().chain(&variables) {
        let name = declared.split(['(', ':']).next().unwrap_or_default();
        text += &format!("EXPORT_SYMBOL_GPL({name});\n");
    }
    text
}

/// `host::VcpuRequests`, whose fields no C file but the base's own may touch.
const REQUESTS: &str = "
struct hsave_requests {
\tu64 pending;
\tu32 mode;
};
static_assert(sizeof(struct hsave_requests) == 16);
";

/// Which C type stands for a Rust type.
struct Types {
    /// Kernel structs by the name they have in Rust.
    opaque: Vec<(String, String)>,
}

impl Types {
    fn c(&self, rust: &str) -> Result<String> {
        let plain = match rust {
            "()" => "void",
            "bool" | "u8" | "u16" | "u32" | "u64" => rust,
            "i32" => "int",
            "i64" => "s64",
            "usize" => "unsigned long",
            "c_long" => "long",
            _ => "",
        };
        if !plain.is_empty() {
            return Ok(plain.to_owned());
        }
        let pointers = [("*const ", "const "), ("*mut ", "")];
        for (prefix, qualifier) in pointers {
            if let Some(target) = rust.strip_prefix(prefix) {
                return Ok(format!("{qualifier}{} *", self.target(target)?));
            }
        }
        bail!("xtask/src/border.rs knows no C type for `{rust}`")
    }

    fn target(&self, rust: &str) -> Result<String> {
        if let Some((_, name)) = self.opaque.iter().find(|(known, _)| known == rust) {
            return Ok(name.clone());
        }
        match rust {
            "CpuData" => Ok("struct hsave_cpu_data".to_owned()),
            "Parcel" => Ok("struct hsave_parcel".to_owned()),
            own if OWN.contains(&own) => Ok("void".to_owned()),
            other => self.c(other),
        }
    }
}

/// `KThread = "struct hsave_thread"` in `opaque!`.
fn opaque(shim: &str) -> Result<Vec<(String, String)>> {
    let body = shim.split_once("\nopaque! {\n").and_then(|(_, rest)| rest.split_once("\n}"));
    let (body, _) = body.context("shim.rs has no opaque! {...}")?;
    let lines = body.lines().map(str::trim).filter(|line| !line.starts_with("///"));
    lines
        .map(|line| {
            let (name, c) = line.split_once(" = ").with_context(|| format!("not a name and its C type: {line}"))?;
            Ok((name.to_owned(), c.trim_matches('"').to_owned()))
        })
        .collect()
}

/// `pub const NAME: TYPE = VALUE;`
fn constants(shim: &str) -> Result<Vec<(String, String)>> {
    let lines = shim.lines().filter_map(|line| line.strip_prefix("pub const "));
    lines
        .map(|line| {
            let (name, rest) = line.split_once(": ").context("a constant has a type")?;
            let value = rest.split_once(" = ").and_then(|(_, value)| value.strip_suffix(';'));
            let value = value.with_context(|| format!("the value of {name} is not on its line"))?;
            ensure!(value.parse::<u64>().is_ok(), "{name} is not a plain number");
            Ok((name.to_owned(), value.to_owned()))
        })
        .collect()
}

/// The variants of the enum `name` in `source`, as C writes names, and their numbers.
fn enumeration(source: &str, name: &str) -> Result<Vec<(String, u64)>> {
    let body = source.split_once(&format!("pub enum {name} {{\n")).and_then(|(_, rest)| rest.split_once("\n}"));
    let (body, _) = body.with_context(|| format!("{name} is missing"))?;
    let lines = body.lines().map(str::trim).filter(|line| !line.starts_with("///"));
    lines
        .map(|line| {
            let variant = line.strip_suffix(',').and_then(|line| line.split_once(" = "));
            let (variant, value) = variant.with_context(|| format!("no variant with a number: {line}"))?;
            let mut upper = String::new();
            for (n, c) in variant.char_indices() {
                if n > 0 && c.is_ascii_uppercase() {
                    upper.push('_');
                }
                upper.push(c.to_ascii_uppercase());
            }
            Ok((upper, value.parse().with_context(|| format!("the number of {variant}"))?))
        })
        .collect()
}

/// The variables of the base that `shim.rs` declares: `name: type`.
fn variables(shim: &str) -> Vec<String> {
    let body = shim.split("extern \"C\" {").nth(1).and_then(|rest| rest.split("\n}").next()).unwrap_or_default();
    let lines = body.lines().map(str::trim).filter(|line| !line.starts_with("//"));
    lines.filter_map(|line| Some(line.strip_suffix(';')?.split_once("static ")?.1.to_owned())).collect()
}

/// The C declaration of such a one.
fn variable(declared: &str) -> Result<String> {
    let (name, kind) = declared.split_once(": ").with_context(|| format!("{declared} has no type"))?;
    let kind = match kind {
        "AtomicU32" => "atomic_t",
        "AtomicU8" => "u8",
        other => bail!("xtask/src/border.rs knows no C type for a variable `{other}`"),
    };
    Ok(format!("extern {};\n", declaration(kind, name)))
}

/// The functions that `shim.rs` declares, each without `pub` and `safe`, up to its semicolon: those of the base, and those that
/// each engine has in C.
fn imports(shim: &str) -> [Vec<String>; 2] {
    let mut blocks = shim.split("extern \"C\" {").skip(1).map(|rest| {
        let body = rest.split("\n}").next().unwrap_or_default();
        let lines = body.lines().filter(|line| !line.trim_start().starts_with("//") && !line.contains(" static "));
        let code: String = lines.map(|line| format!("{line} ")).collect();
        code.split(';').filter_map(|item| Some(item.split_once("fn ")?.1.to_owned())).collect()
    });
    [blocks.next().unwrap_or_default(), blocks.next().unwrap_or_default()]
}

/// The functions that Rust offers, in the same form; but those that do not return, which only assembly jumps to.
fn exported(sources: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for item in sources.split("\n#[unsafe(no_mangle)]\n").skip(1) {
        let code: String =
            item.lines().skip_while(|line| line.starts_with("#[")).map(|line| format!("{} ", line.trim())).collect();
        let signature = code.strip_prefix("unsafe ").unwrap_or(&code).strip_prefix("extern \"C\" fn ");
        let signature = signature.and_then(|text| text.split_once(" {"));
        let (signature, _) =
            signature.with_context(|| format!("not a function that C can call: {}", &code[..code.len().min(80)]))?;
        if !signature.ends_with("-> !") {
            found.push(signature.to_owned());
        }
    }
    Ok(found)
}

/// The C prototype of `name(argument: type, ...) -> type`.
fn prototype(types: &Types, signature: &str) -> Result<String> {
    let (head, result) = signature.split_once("->").map_or((signature, "()"), |(head, result)| (head, result.trim()));
    let parts = head.split_once('(').and_then(|(name, rest)| Some((name, rest.trim().strip_suffix(')')?)));
    let (name, arguments) = parts.with_context(|| format!("not a signature: {signature}"))?;
    let mut list = Vec::new();
    for argument in arguments.split(',').map(str::trim).filter(|argument| !argument.is_empty()) {
        let (name, kind) = argument.split_once(": ").with_context(|| format!("{argument} has no type: {signature}"))?;
        list.push(declaration(&types.c(kind).with_context(|| format!("in {signature}"))?, name));
    }
    let list = if list.is_empty() { "void".to_owned() } else { list.join(", ") };
    Ok(format!("{}({list});\n", declaration(&types.c(result)?, name)))
}

fn declaration(kind: &str, name: &str) -> String {
    if kind.ends_with('*') { format!("{kind}{name}") } else { format!("{kind} {name}") }
}

/// The C struct `name` with the fields of the Rust struct `rust` in `source`; with `size` it has as many bytes, aligned to 64.
fn structure(types: &Types, source: &str, rust: &str, name: &str, size: Option<usize>) -> Result<String> {
    let body = source.split_once(&format!("pub struct {rust} {{\n")).and_then(|(_, rest)| rest.split_once("\n}"));
    let (body, _) = body.with_context(|| format!("{rust} is missing"))?;
    let (mut text, mut offsets, mut at) = (format!("\nstruct {name} {{\n"), String::new(), 0_usize);
    for line in body.lines().map(str::trim).filter(|line| !line.starts_with("///")) {
        let field = line.strip_prefix("pub ").and_then(|field| field.strip_suffix(','));
        let (field, kind) =
            field.and_then(|field| field.split_once(": ")).with_context(|| format!("no public field: {line}"))?;
        let kind = kind.strip_prefix("Cell<").and_then(|kind| kind.strip_suffix('>')).unwrap_or(kind);
        let (kind, bytes, aligned) = match kind {
            "u8" | "bool" => (types.c(kind)?, 1, 1),
            "AtomicBool" => ("bool".to_owned(), 1, 1),
            "u32" | "i32" => (types.c(kind)?, 4, 4),
            "u64" | "usize" => (types.c(kind)?, 8, 8),
            "HostPa" | "PageIns" => ("u64".to_owned(), 8, 8),
            "VcpuRequests" => ("struct hsave_requests".to_owned(), 16, 8),
            pointer if pointer.starts_with('*') => (types.c(kind)?, 8, 8),
            list if list.starts_with("[u64; ") => {
                let n = list.trim_start_matches("[u64; ").trim_end_matches(']');
                let n: usize = n.parse().with_context(|| format!("how many are {list} in {rust}?"))?;
                text += &format!("\tu64 {field}[{n}];\n");
                offsets += &format!("static_assert(offsetof(struct {name}, {field}) == {});\n", at.next_multiple_of(8));
                at = at.next_multiple_of(8) + 8 * n;
                continue;
            }
            other => bail!("how many bytes has a {other} in {rust}?"),
        };
        at = usize::next_multiple_of(at, aligned);
        text += &format!("\t{};\n", declaration(&kind, field));
        offsets += &format!("static_assert(offsetof(struct {name}, {field}) == {at});\n");
        at += bytes;
    }
    ensure!(at > 0, "{rust} has no fields");
    let Some(size) = size else { return Ok(format!("{text}}};\n{offsets}")) };
    ensure!(at < size, "{rust} is larger than {size} bytes");
    text += &format!("\tu8 rest[{}];\n}} __aligned(64);\n", size - at);
    Ok(format!("{text}{offsets}static_assert(sizeof(struct {name}) == {size});\n"))
}

#[cfg(test)]
mod tests;
