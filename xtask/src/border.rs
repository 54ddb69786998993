//! The border between the Rust object and the C shim has one source, the Rust text in `linux/src`. From it comes
//! `border.h`, which every file of the shim includes, so that the C compiler refuses a function whose signature is not
//! the one that Rust calls, and a call whose arguments are not those that Rust expects.
//!
//! What is read is a restricted form, and everything else is an error: in `shim.rs` a function, a constant or an opaque
//! type on its own line, elsewhere functions behind `#[unsafe(no_mangle)]`.

use crate::{env::Env, proc};
use anyhow::{Context, Result, bail, ensure};
use std::{fs, path::Path};
use walkdir::WalkDir;

/// The header's path in the directory where the modules are built.
pub const HEADER: &str = "include/border.h";

/// Objects of Rust's that C only holds pointers to.
const OWN: &[&str] = &[
    "c_void",
    "Vm",
    "vm::Vm<Linux>",
    "VmRef",
    "[VmRef; 1]",
    "VcpuFile",
    "[VcpuFile; 1]",
    "StatsFile",
    "[StatsFile; 1]",
    "Irqfds",
    "VmObject",
    "DeviceFile",
    "[DeviceFile; 1]",
];

/// Writes the header for the sources of this checkout below `to`.
pub fn write(env: &Env, to: &Path) -> Result<()> {
    let sources = env.root.join("linux/src");
    let shim = fs::read_to_string(sources.join("shim.rs")).context("the Rust side of the border is missing")?;
    let percpu = fs::read_to_string(env.root.join("switch/src/percpu.rs"))?;
    let mut exports = String::new();
    for entry in WalkDir::new(&sources).sort_by_file_name() {
        let entry = entry?;
        if entry.path().extension().is_some_and(|extension| extension == "rs") {
            exports += &fs::read_to_string(entry.path())?;
        }
    }
    proc::write_if_changed(&to.join(HEADER), header(&shim, &exports, &percpu)?.as_bytes())
}

/// The whole header: what C offers (`shim`), what Rust offers (`exports`) and the struct that both know (`percpu`).
fn header(shim: &str, exports: &str, percpu: &str) -> Result<String> {
    let types = Types { opaque: opaque(shim)? };
    let mut text = "/* Made by xtask/src/border.rs from linux/src and switch/src/percpu.rs. */\n\
                    #ifndef HSAVE_BORDER_H\n#define HSAVE_BORDER_H\n\n#include <linux/types.h>\n\n"
        .to_owned();
    for (_, name) in &types.opaque {
        text += &format!("{name};\n");
    }
    text += "\n";
    for (name, value) in constants(shim)? {
        text += &format!("#define HSAVE_{name} {value}\n");
    }
    text += &cpu_data(&types, percpu)?;
    text += "\n/* Defined by the shim, called by Rust. */\n";
    for declared in imports(shim) {
        text += &prototype(&types, &declared)?;
    }
    text += "\n/* Defined by Rust, called by the shim. */\n";
    for defined in exported(exports)? {
        text += &prototype(&types, &defined)?;
    }
    text += "\n#endif\n";
    Ok(text)
}

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

/// The functions that `shim.rs` declares, each without `pub` and `safe`, up to its semicolon.
fn imports(shim: &str) -> Vec<String> {
    let Some((_, body)) = shim.split_once("extern \"C\" {") else { return Vec::new() };
    let code: String =
        body.lines().filter(|line| !line.trim_start().starts_with("//")).map(|line| format!("{line} ")).collect();
    code.split(';').filter_map(|item| Some(item.split_once("fn ")?.1.to_owned())).collect()
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

/// `struct hsave_cpu_data`: the public fields of `CpuData`, and room for what the switch keeps to itself.
fn cpu_data(types: &Types, percpu: &str) -> Result<String> {
    let size =
        percpu.lines().find_map(|line| line.strip_prefix("pub const CPU_DATA_SIZE: usize = ")?.strip_suffix(';'));
    let size: usize = size.context("CPU_DATA_SIZE is missing")?.parse()?;
    let body = percpu.split_once("pub struct CpuData {\n").and_then(|(_, rest)| rest.split_once("\n}"));
    let (body, _) = body.context("CpuData is missing")?;
    let (mut text, mut offsets, mut at) = ("\nstruct hsave_cpu_data {\n".to_owned(), String::new(), 0);
    for line in body.lines().map(str::trim) {
        if line.starts_with("///") {
            continue;
        }
        let Some(field) = line.strip_prefix("pub ").and_then(|field| field.strip_suffix(',')) else { break };
        let (name, kind) = field.split_once(": ").context("a field has a type")?;
        let kind = kind.strip_prefix("Cell<").and_then(|kind| kind.strip_suffix('>')).unwrap_or(kind);
        let kind = if kind == "HostPa" { "u64" } else { kind };
        let bytes = match kind {
            "u8" | "bool" => 1,
            "u32" | "i32" => 4,
            "u64" | "usize" => 8,
            pointer if pointer.starts_with('*') => 8,
            other => bail!("how many bytes has a {other} in CpuData?"),
        };
        at = usize::next_multiple_of(at, bytes);
        text += &format!("\t{};\n", declaration(&types.c(kind)?, name));
        offsets += &format!("static_assert(offsetof(struct hsave_cpu_data, {name}) == {at});\n");
        at += bytes;
    }
    ensure!(at > 0 && at < size, "CpuData has no public fields in front, or only those");
    text += &format!("\tu8 rest[{}];\n}} __aligned(64);\n", size - at);
    Ok(format!("{text}{offsets}static_assert(sizeof(struct hsave_cpu_data) == {size});\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const SHIM: &str = "
opaque! {
    /// A thing.
    KThing = \"struct thing\"
}
/// How many.
pub const MANY: u32 = 3;
unsafe extern \"C\" {
    // a.c; and a comment with fn in it;
    pub fn hsave_a(t: *mut KThing, at: u64, text: *const u8) -> i32;
    pub safe fn hsave_b();
}
";
    const EXPORTS: &str = "
#[unsafe(no_mangle)]
extern \"C\" fn hsave_c(
    vm: *const Vm,
    yes: bool,
) -> c_long {
}

#[unsafe(no_mangle)]
#[unsafe(link_section = \".text\")]
unsafe extern \"C\" fn hsave_d(vcpu: *mut Unknown) -> ! {
}
";
    const PERCPU: &str = "
pub const CPU_DATA_SIZE: usize = 64;
pub struct CpuData {
    /// Itself.
    pub this: *mut CpuData,
    pub number: u32,
    pub pa: Cell<HostPa>,
    pub(crate) own: Cell<u64>,
}
";

    /// What of the kernel's headers `border.h` needs.
    const TYPES: &str = "
#include <stdbool.h>
#include <stddef.h>
#define static_assert _Static_assert
#define __aligned(n) __attribute__((aligned(n)))
typedef unsigned char u8; typedef unsigned int u32; typedef unsigned long long u64;
";

    /// Does a file of the shim with this text compile, as the kernel's build compiles it?
    fn compiles(name: &str, c: &str) -> bool {
        let dir = std::env::temp_dir().join(format!("hsave-border-{}-{name}", std::process::id()));
        fs::create_dir_all(dir.join("linux")).unwrap();
        fs::write(dir.join("linux/types.h"), TYPES).unwrap();
        fs::write(dir.join("border.h"), header(SHIM, EXPORTS, PERCPU).unwrap()).unwrap();
        fs::write(dir.join("a.c"), format!("#include <border.h>\n{c}\n")).unwrap();
        let mut cc = Command::new("cc");
        cc.args(["-fsyntax-only", "-Wmissing-prototypes", "-Werror", "-I"]).arg(&dir).arg(dir.join("a.c"));
        let output = proc::output(&mut cc).unwrap();
        fs::remove_dir_all(&dir).unwrap();
        output.status.success()
    }

    #[test]
    fn only_the_signature_that_rust_calls_compiles() {
        let body = "{ return t && text ? (int)at : HSAVE_MANY; }";
        assert!(compiles("same", &format!("int hsave_a(struct thing *t, u64 at, const u8 *text) {body}")));
        for (name, other) in [
            ("narrow", "int hsave_a(struct thing *t, u32 at, const u8 *text)"),
            ("long", "int hsave_a(struct thing *t, unsigned long at, const u8 *text)"),
            ("result", "long hsave_a(struct thing *t, u64 at, const u8 *text)"),
            ("const", "int hsave_a(const struct thing *t, u64 at, const u8 *text)"),
            ("fewer", "int hsave_a(struct thing *t, u64 at)"),
            ("undeclared", "int hsave_unknown(struct thing *t, u64 at, const u8 *text)"),
        ] {
            assert!(!compiles(name, &format!("{other} {body}")), "{other}");
        }
    }

    #[test]
    fn only_calls_that_rust_expects_compile() {
        assert!(compiles("call", "long f(void *vm); long f(void *vm) { return hsave_c(vm, true); }"));
        assert!(!compiles("arguments", "long f(void *vm); long f(void *vm) { return hsave_c(vm); }"));
        assert!(!compiles("unknown", "long f(void *vm); long f(void *vm) { return hsave_d(vm); }"));
    }

    #[test]
    fn the_shared_struct_has_its_offsets() {
        let text = header(SHIM, EXPORTS, PERCPU).unwrap();
        assert!(text.contains("static_assert(offsetof(struct hsave_cpu_data, pa) == 16);"), "{text}");
        assert!(text.contains("u8 rest[40];") && !text.contains("own"), "{text}");
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        assert!(header(&SHIM.replace("*const u8", "*const Strange"), EXPORTS, PERCPU).is_err());
        assert!(header(&SHIM.replace(" = 3;", " = OTHER;"), EXPORTS, PERCPU).is_err());
        assert!(header(SHIM, &EXPORTS.replace("bool", "Option<u8>"), PERCPU).is_err());
        assert!(header(SHIM, "\n#[unsafe(no_mangle)]\nstatic HSAVE: u32 = 1;\n", PERCPU).is_err());
        assert!(header(SHIM, EXPORTS, &PERCPU.replace("number: u32", "number: [u32; 2]")).is_err());
    }
}
