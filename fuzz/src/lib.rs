//! Programs of bytes for what outsiders reach: ioctls, instructions, page tables, interrupt controllers, states of VMs. Any bytes
//! are a program, and none may do harm.
//!
//! A [`Target`] takes bytes and does with one part of the hypervisor what they say, on `sim` or on a machine of the part's own
//! tests. What must not happen is a panic: of an assertion of this crate or of `sim` (lock order, stale translations, what is left
//! behind), of an overflow, of an index. [`run`] adds that the heap is as it was before.
//!
//! The same function is called by libFuzzer (`./x fuzz`), which makes the bytes up and is guided by what they reach; by
//! `cargo test`, with the inputs in `corpus` and some that are random; and by the program `replay`.
#![forbid(unsafe_code)]

mod chips;
#[path = "../../emulator/tests/fake/mod.rs"]
mod fake;
mod ghcb;
mod input;
mod instructions;
mod ioctls;
#[path = "../../irqchip/tests/common/lapic_holds.rs"]
mod lapic_holds;
mod states;
mod walk;
#[path = "../../mmu/src/tests/walk_model.rs"]
mod walk_model;

use mmu::{Kind, Paging, Translation};
use sim::alloc;

/// A part of the hypervisor, and how bytes become what it is given.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// What `./x fuzz --target` calls it, and the folder of its inputs.
    pub name: &'static str,
    /// For people.
    pub what: &'static str,
    /// Bytes that make sense at most.
    pub longest: usize,
    run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: [Target; 7] = [
    Target { name: "ioctls", what: "ioctls, guests and the host around them", longest: 4096, run: ioctls::run },
    Target {
        name: "emulator",
        what: "instructions against the emulator's contract",
        longest: 256,
        run: instructions::run,
    },
    Target { name: "walk", what: "guest page tables against the model", longest: 128, run: walk::run },
    Target { name: "lapic", what: "the local APIC, and its state", longest: 1024, run: chips::lapic },
    Target { name: "chips", what: "IOAPIC, PIC, PIT and routing, and their states", longest: 1024, run: chips::others },
    Target { name: "states", what: "states of VMs that an engine takes over", longest: 4096, run: states::run },
    Target { name: "ghcb", what: "requests of guests with encrypted state", longest: 512, run: ghcb::run },
];

/// The target with this name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|t| t.name == name)
}

/// Does what the bytes say. Panics if it must not come out like that.
pub fn run(target: &Target, bytes: &[u8]) {
    let mut grown = 0;
    // What is made once and kept does not grow again.
    for _ in 0..3 {
        let before = alloc::live();
        (target.run)(bytes);
        grown = alloc::live() - before;
        if grown == 0 {
            return;
        }
    }
    panic!("{grown} bytes are left each time");
}
