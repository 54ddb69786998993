//! Prints a C file that compares this crate's ABI with the kernel's own headers at compile time. The module's build
//! compiles it with the headers of the kernel it is built for.

use kvm::abi::{LAYOUTS, cap, ioctl};

/// Structs that older kernels lack, and the macro that came with them.
const NEWER: &[(&str, &str)] = &[
    ("kvm_userspace_memory_region2", "KVM_SET_USER_MEMORY_REGION2"),
    ("kvm_pre_fault_memory", "KVM_PRE_FAULT_MEMORY"),
];

/// Structs that end with text whose length only the kernel's own headers know.
const OPEN: &[&str] = &["kvm_stats_desc"];

fn main() {
    println!("#include <linux/stddef.h>\n#include <linux/kvm.h>\n");
    for layout in LAYOUTS {
        let name = layout.name;
        let guard = NEWER.iter().find(|(n, _)| *n == name).map(|(_, guard)| guard);
        if let Some(guard) = guard {
            println!("#ifdef {guard}");
        }
        if !OPEN.contains(&name) {
            println!("_Static_assert(sizeof(struct {name}) == {}, \"{name}\");", layout.size);
        }
        for (field, offset) in layout.fields {
            // A keyword of Rust, with an underscore here.
            let field = field.strip_suffix('_').unwrap_or(field);
            println!("_Static_assert(__builtin_offsetof(struct {name}, {field}) == {offset}, \"{name}.{field}\");");
        }
        if guard.is_some() {
            println!("#endif");
        }
    }
    for (name, number) in ioctl::ALL.iter().chain(cap::ALL) {
        println!("#ifdef {name}\n_Static_assert({name} == {number}u, \"{name}\");\n#endif");
    }
}
