//! The header compiles, and refuses what does not fit.

use super::*;
use std::process::Command;

const SHIM: &str = "
opaque! {
    /// A thing.
    KThing = \"struct thing\"
}
/// How many.
pub const MANY: u32 = 3;
pub const MOVED: usize = 3;
pub struct ThreadShared {
    pub requests: VcpuRequests,
    pub blocked: AtomicBool,
}
pub struct Parcel {
    /// Bytes.
    pub state: *mut u8,
    pub state_len: usize,
}
unsafe extern \"C\" {
    // a.c; and a comment with fn in it;
    pub fn hsave_a(t: *mut KThing, at: u64, text: *const u8) -> i32;
    pub safe fn hsave_b();
    /// Whether fn or not;
    #[expect(dead_code, reason = \"it is\")]
    pub safe static hsave_v: AtomicU32;
    pub safe fn hsave_e() -> u32;
    pub safe static hsave_w: AtomicU8;
}
unsafe extern \"C\" {
    pub safe fn hsave_own(n: u32);
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
}
";

const MOVED: &str = "
pub struct Moved {
    /// First.
    pub gone: u64,
    pub ranges: [u64; 2],
}
";
/// All enums are these.
const ENUMS: &str = "
pub enum Request {
    /// A thing.
    HandOver = 31,
    Kick = 9,
}
pub enum Hrtimer {
    Pit = 0,
}
pub enum LentKind {
    Page = 1,
}
pub enum LentFor {
    RunPage = 2,
}
";

fn sources() -> Sources {
    let [shim, exports, percpu, moved] = [SHIM, EXPORTS, PERCPU, MOVED].map(str::to_owned);
    Sources { shim, exports, percpu, moved, numbers: NUMBERS.iter().map(|_| ENUMS.to_owned()).collect() }
}

/// The same with something else in place of what occurs in it once, at least.
fn with(from: &str, to: &str) -> Sources {
    let mut all = sources();
    let mut found = false;
    let Sources { shim, exports, percpu, moved, numbers } = &mut all;
    for text in [shim, exports, percpu, moved].into_iter().chain(numbers) {
        found |= text.contains(from);
        *text = text.replace(from, to);
    }
    assert!(found, "{from}");
    all
}

/// What of the kernel's headers `border.h` needs.
const TYPES: &str = "
#include <stdbool.h>
#include <stddef.h>
#define static_assert _Static_assert
#define __aligned(n) __attribute__((aligned(n)))
typedef unsigned char u8; typedef unsigned int u32; typedef unsigned long long u64; typedef struct { int n; } atomic_t;
";

/// Does a file of the shim with this text compile, as the kernel's build compiles it?
fn compiles(name: &str, c: &str) -> bool {
    let dir = std::env::temp_dir().join(format!("hsave-border-{}-{name}", std::process::id()));
    fs::create_dir_all(dir.join("linux")).unwrap();
    fs::write(dir.join("linux/types.h"), TYPES).unwrap();
    ["build_bug", "stddef"].iter().for_each(|name| fs::write(dir.join(format!("linux/{name}.h")), "").unwrap());
    fs::write(dir.join("border.h"), header(&sources()).unwrap()).unwrap();
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
    let text = header(&sources()).unwrap();
    assert!(text.contains("static_assert(offsetof(struct hsave_cpu_data, pa) == 16);"), "{text}");
    assert!(text.contains("u8 rest[40];"), "{text}");
    assert!(text.contains("static_assert(offsetof(struct hsave_thread_shared, blocked) == 16);"), "{text}");
}

#[test]
fn an_engine_is_called_through_the_table_alone() {
    assert!(compiles("table", "struct hsave_engine_ops ops; struct hsave_engine_ops ops = HSAVE_ENGINE_OPS;"));
    let text = header(&sources()).unwrap();
    assert!(text.contains("\tlong (*c)(const void *vm, bool yes);\n"), "{text}");
    assert!(!text.contains("hsave_d"), "{text}");
}

#[test]
fn whatever_the_sides_have_to_agree_about_is_in_the_hash() {
    let hash = |sources: &Sources| {
        let text = header(sources).unwrap();
        text.split_once("HSAVE_INTERFACE_HASH ").unwrap().1.lines().next().unwrap().to_owned()
    };
    let here = hash(&sources());
    for (from, to) in [
        ("at: u64", "at: u32"),
        ("MANY: u32 = 3;", "MANY: u32 = 4;"),
        ("yes: bool", "yes: u8"),
        ("number: u32", "number: u64"),
        ("hsave_w: AtomicU8", "hsave_w: AtomicU32"),
        ("hsave_v", "hsave_x"),
        // What two engines have to, whatever the base is.
        ("Kick = 9", "Kick = 10"),
        ("HandOver = 31", "HandOver = 30"),
        ("Pit = 0", "Pit = 1"),
        ("Page = 1", "Page = 2"),
        ("    Page = 1", "    Paper = 1"),
        ("RunPage = 2", "RunPage = 3"),
        ("gone", "going"),
    ] {
        assert_ne!(hash(&with(from, to)), here, "{from}");
    }
    assert_ne!(hash(&with("    Kick = 9,\n", "")), here);
    assert_eq!(hash(&with("n: u32)", "n: u64)")), here, "the engine's own");
    assert_eq!(hash(&with("/// A thing.\n    Hand", "/// Another.\n    Hand")), here, "words");
}

#[test]
fn numbers_are_called_what_c_calls_them() {
    let text = header(&sources()).unwrap();
    for line in ["REQUEST_HAND_OVER 31", "REQUEST_KICK 9", "HRTIMER_PIT 0", "LENT_KIND_PAGE 1", "LENT_FOR_RUN_PAGE 2"] {
        assert!(text.contains(&format!("\n#define HSAVE_{line}\n")), "{text}");
    }
    assert!(
        text.contains("\tu64 ranges[2];\n") && text.contains("offsetof(struct hsave_moved, ranges) == 8"),
        "{text}"
    );
}

/// The enums and the struct are where they are looked for, in the form that is read.
#[test]
fn the_sources_of_this_checkout() {
    let env = Env::new().unwrap();
    let text = header(&Sources::read(&env).unwrap()).unwrap();
    for name in ["REQUEST_TLB_FLUSH", "REQUEST_HAND_OVER", "HRTIMER_PIT", "LENT_KIND_THREAD", "LENT_FOR_NESTED_ROOT"] {
        assert!(text.contains(&format!("#define HSAVE_{name} ")), "{name}");
    }
    assert!(text.contains("extern atomic_t hsave_listened;\nextern u8 hsave_rebooting;\n"));
}

#[test]
fn the_base_exports_what_engines_call() {
    let text = exported_by_the_base(SHIM);
    let names = ["a", "b", "e", "v", "w"].map(|name| format!("EXPORT_SYMBOL_GPL(hsave_{name});\n"));
    assert!(text.ends_with(&format!("\n{}", names.concat())), "{text}");
}

#[test]
fn a_variable_is_what_rust_takes_it_for() {
    assert!(compiles("atomic", "atomic_t hsave_v; u8 hsave_w;"));
    assert!(!compiles("plain", "int hsave_v;"));
    assert!(!compiles("signed", "signed char hsave_w;"));
}

#[test]
fn what_is_not_understood_is_an_error() {
    for (from, to) in [
        ("*const u8", "*const Strange"),
        ("MANY: u32 = 3;", "MANY: u32 = OTHER;"),
        ("yes: bool", "yes: Option<u8>"),
        ("number: u32", "number: [u32; 2]"),
        ("[u64; 2]", "[u64; MANY]"),
        ("Kick = 9", "Kick"),
        ("Kick = 9", "Kick = 1 + 8"),
        ("enum LentFor", "enum LentTo"),
        ("struct Moved", "struct Going"),
        ("AtomicU8", "AtomicU16"),
    ] {
        assert!(header(&with(from, to)).is_err(), "{from}");
    }
    let exports = "\n#[unsafe(no_mangle)]\nstatic HSAVE: u32 = 1;\n".to_owned();
    assert!(header(&Sources { exports, ..sources() }).is_err());
}
