//! Machines by what their processors can do, for programs that want one and not the way there.
#![cfg(any(test, feature = "model"))]

use super::{
    cpus::own,
    kernel::{Kernel, script},
};
use crate::Machine;
use host::CpuFeatures;
use std::{boxed::Box, sync::Mutex, vec::Vec};

/// ASIDs of a CPU, the host's included: few, so that they run out.
const ASIDS: u32 = 4;

/// The machine with these features. One for all who ask, and for good.
pub fn machine(features: CpuFeatures) -> &'static Machine<Kernel> {
    static MACHINES: Mutex<Vec<&'static Machine<Kernel>>> = Mutex::new(Vec::new());
    let mut machines = MACHINES.lock().unwrap_or_else(|e| e.into_inner());
    if let Some(known) = machines.iter().find(|m| m.features() == features) {
        return known;
    }
    own();
    script(|s| {
        s.cpuid.extend(leaves(&features));
        s.virt_ssbd = features.virt_ssbd.then_some(false);
    });
    let machine: &'static Machine<Kernel> = Box::leak(Box::new(Machine::new().expect("a machine with SVM")));
    assert_eq!(machine.features(), features);
    machines.push(machine);
    machine
}

/// What CPUID says of them, (leaf, subleaf) and EAX to EDX (APM volume 3, appendix E).
fn leaves(f: &CpuFeatures) -> [((u32, u32), [u32; 4]); 4] {
    let bits = |list: &[(u32, bool)]| list.iter().map(|(n, on)| u32::from(*on) << n).sum::<u32>();
    let svm = [
        (0, true),
        (3, f.nrips),
        (4, f.tsc_scaling),
        (5, f.vmcb_clean),
        (6, f.flush_by_asid),
        (7, f.decode_assists),
        (10, f.pause_filter),
        (12, f.pause_filter_threshold),
        (16, f.vgif),
        (20, f.v_spec_ctrl),
    ];
    let xsave = std::is_x86_feature_detected!("xsave");
    [
        ((1, 0), [0, 0, bits(&[(27, xsave), (31, !f.ts_guards_fpu)]), 0]),
        ((0x8000_0001, 0), [0, 0, 1 << 2, bits(&[(20, f.nx), (26, f.page_1g), (27, f.tsc_aux)])]),
        ((0x8000_0008, 0), [f.phys_bits.into(), bits(&[(14, f.spec_ctrl)]), 0, 0]),
        ((0x8000_000a, 0), [1, ASIDS, 0, bits(&svm)]),
    ]
}
