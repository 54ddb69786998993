//! Prints a C file that compares this crate's ABI, and the structs of the processor that `arch` declares, with the kernel's
//! own headers at compile time. The module's build compiles it with the headers of the kernel it is built for.

use abi::uapi::{LAYOUTS, cap, ioctl};
use arch::{ControlArea, Layout, SaveArea, Vmsa, ghcb::Field};

/// Structs that older kernels lack, and the macro that came with them.
const NEWER: &[(&str, &str)] = &[
    ("kvm_userspace_memory_region2", "KVM_SET_USER_MEMORY_REGION2"),
    ("kvm_pre_fault_memory", "KVM_PRE_FAULT_MEMORY"),
];

/// Structs that end with text whose length only the kernel's own headers know.
const OPEN: &[&str] = &["kvm_stats_desc"];

/// Fields of the processor's structs that the kernel calls otherwise; those without a name it has not, or not in each version.
const ELSEWHERE: &[(&str, &str)] = &[
    ("pause_filter_threshold", "pause_filter_thresh"),
    ("tlb_control", "tlb_ctl"),
    ("avic_apic_bar", "avic_vapic_bar"),
    ("np_control", ""),
    ("virt_ext", ""),
    ("tsc_aux", ""),
];

/// The shared page of a guest with encrypted state.
const GHCB: &[(&str, Field)] = &[
    ("cpl", Field::Cpl),
    ("xss", Field::Xss),
    ("rax", Field::Rax),
    ("rcx", Field::Rcx),
    ("rdx", Field::Rdx),
    ("rbx", Field::Rbx),
    ("sw_exit_code", Field::ExitCode),
    ("sw_exit_info_1", Field::ExitInfo1),
    ("sw_exit_info_2", Field::ExitInfo2),
    ("sw_scratch", Field::Scratch),
    ("xcr0", Field::Xcr0),
];

fn at(name: &str, field: &str, offset: usize) {
    println!("_Static_assert(__builtin_offsetof(struct {name}, {field}) == {offset}, \"{name}.{field}\");");
}

/// `name` is the kernel's for `L`. The intercepts are an array there, and reserved fields have other names.
fn processor<L: Layout>(name: &str) {
    for (field, offset) in L::FIELDS {
        let named = ELSEWHERE.iter().find(|(ours, _)| ours == field).map_or(*field, |(_, theirs)| theirs);
        if !named.is_empty() && !named.starts_with("reserved") && !named.starts_with("intercept") {
            at(name, named, *offset);
        }
    }
}

fn main() {
    println!("#include <linux/stddef.h>\n#include <linux/kvm.h>\n#include <asm/svm.h>\n");
    processor::<ControlArea>("vmcb_control_area");
    at("vmcb_control_area", "intercepts", 0);
    processor::<SaveArea>("vmcb_save_area");
    processor::<Vmsa>("sev_es_save_area");
    for (field, place) in GHCB {
        at("ghcb_save_area", field, *place as usize);
    }
    at("ghcb_save_area", "valid_bitmap", arch::ghcb::VALID_BITMAP);
    at("ghcb", "protocol_version", arch::ghcb::PROTOCOL_VERSION);
    at("ghcb", "ghcb_usage", arch::ghcb::USAGE);
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
            at(name, field, *offset);
        }
        if guard.is_some() {
            println!("#endif");
        }
    }
    for (name, number) in ioctl::ALL.iter().chain(cap::ALL) {
        println!("#ifdef {name}\n_Static_assert({name} == {number}u, \"{name}\");\n#endif");
    }
}
