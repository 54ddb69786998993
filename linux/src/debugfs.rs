//! Statistics in debugfs: linux/shim/kvm/debugfs.c.

use crate::{Linux, shim, shim::KVm};
use core::sync::atomic::Ordering::Relaxed;
use host::Host;
use vm::irqchip::ChipMode;
use vm::stats::{Kind, Stat, VcpuStats};

type Vm = vm::Vm<Linux>;

/// 1.0 as TSC ratio, which has this many bits behind the point (APM 15.30.5).
const FRACTION: u32 = 32;

/// Tells the base what statistics there are: each by its first word. It asks the engine that is loaded first.
#[unsafe(no_mangle)]
extern "C" fn hsave_name_stats() {
    let tell = |what: u32, list: &mut dyn Iterator<Item = Stat>| {
        let mut n = 0;
        for stat in list {
            let clearable = !matches!(stat.kind, Kind::Now | Kind::Flag);
            // SAFETY: a name of that length.
            unsafe { shim::hsave_debugfs_stat(stat.name.as_ptr(), stat.name.len(), what, n, clearable) };
            n += stat.words() as u32;
        }
    };
    tell(shim::VALUE_VM, &mut Vm::stat_list());
    tell(shim::VALUE_VCPU, &mut VcpuStats::ALL.iter().copied());
}

/// Makes the directory of a vCPU, in that of its VM if there is one.
///
/// # Safety
/// `base` is the base's part of the VM.
pub unsafe fn add_vcpu(base: *mut KVm, vm: &Vm, index: usize) {
    let Some(vcpu) = vm.vcpu(index) else { return };
    let (lapic, scales) = (vm.chip_mode() != ChipMode::None, Linux.features().tsc_scaling);
    // SAFETY: by contract.
    unsafe { shim::hsave_debugfs_vcpu(base, index as u32, vcpu.id, lapic, scales) }
}

/// A number of a VM; process context.
///
/// # Safety
/// `vm` is what `hsave_vm_new` returned, and not freed.
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_vm_value(vm: *const Vm, what: u32, n: u32) -> u64 {
    // SAFETY: by contract.
    let vm = unsafe { &*vm };
    let vcpu = || vm.vcpu(n as usize);
    match what {
        shim::VALUE_VM => vm.stat(n as usize),
        shim::VALUE_VCPU => vm.vcpus().fold(0, |sum, v| sum.wrapping_add(v.stat(n as usize))),
        shim::VALUE_TSC_OFFSET => vcpu().map_or(0, |v| v.tsc[0].load(Relaxed)),
        shim::VALUE_TSC_RATIO => vcpu().map_or(0, |v| match v.tsc[1].load(Relaxed) {
            0 => 1 << FRACTION,
            ratio => ratio,
        }),
        shim::VALUE_TSC_FRACTION => FRACTION.into(),
        // There are no guests of guests, and no timer fires ahead of its time.
        _ => 0,
    }
}

/// Counts begin anew; process context.
///
/// # Safety
/// As [`hsave_vm_value`].
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_vm_clear(vm: *const Vm, what: u32, n: u32) {
    // SAFETY: by contract.
    let vm = unsafe { &*vm };
    match what {
        shim::VALUE_VM => vm.clear_stat(n as usize),
        shim::VALUE_VCPU => vm.vcpus().for_each(|v| v.stats.clear(n as usize)),
        _ => {}
    }
}
