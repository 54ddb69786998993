//! Interrupt controllers and timer in the kernel, and coalesced writes (KVM API document 4.26, 4.27, 4.72 to 4.74, 4.116).

use crate::codec::{get, put};
use crate::uapi::*;
use arch::Hva;
use host::{Errno, Host};
use vm::Vm;
use vm::chips::PIT_STATE;
use vm::coalesced::Zone;

/// KVM_GET_IRQCHIP. Errors: ENXIO (no irqchip), EINVAL (no such controller), EFAULT.
pub fn get_irqchip<H: Host>(vm: &Vm<H>, arg: u64) -> Result<(), Errno> {
    let mut chip: kvm_irqchip = get(&vm.host, arg)?;
    vm.get_irqchip(chip.chip_id, &mut chip.chip)?;
    put(&vm.host, arg, &chip)
}

/// KVM_SET_IRQCHIP. Errors: as for KVM_GET_IRQCHIP.
pub fn set_irqchip<H: Host>(vm: &Vm<H>, arg: u64) -> Result<(), Errno> {
    let chip: kvm_irqchip = get(&vm.host, arg)?;
    vm.set_irqchip(chip.chip_id, &chip.chip)
}

/// Size of `struct kvm_pit_state`, with which `struct kvm_pit_state2` begins.
const OLD_PIT_STATE: usize = 72;

fn get_state<H: Host>(vm: &Vm<H>, arg: u64, size: usize) -> Result<(), Errno> {
    let state = vm.get_pit()?;
    // INDEX: the size of one of two structs.
    vm.host.write_user(Hva(arg), state.get(..size).unwrap_or(&state)).map_err(|_| Errno::EFAULT)
}

/// With the old struct the flags stay as they are.
fn set_state<H: Host>(vm: &Vm<H>, arg: u64, size: usize) -> Result<(), Errno> {
    let mut new = [0; PIT_STATE];
    // INDEX: the size of one of two structs.
    let part = new.get_mut(..size).ok_or(Errno::EINVAL)?;
    vm.host.read_user(Hva(arg), part).map_err(|_| Errno::EFAULT)?;
    let old = vm.get_pit()?;
    for (to, from) in new.iter_mut().zip(old).skip(size) {
        *to = from;
    }
    vm.set_pit(&new)
}

/// KVM_GET_PIT, whose struct is read first, as on stock. Errors: EFAULT, ENXIO (no PIT).
pub fn get_pit<H: Host>(vm: &Vm<H>, arg: u64) -> Result<(), Errno> {
    get::<H, kvm_pit_state>(&vm.host, arg)?;
    get_state(vm, arg, OLD_PIT_STATE)
}

/// KVM_SET_PIT. Errors: ENXIO (no PIT), EFAULT.
pub fn set_pit<H: Host>(vm: &Vm<H>, arg: u64) -> Result<(), Errno> {
    set_state(vm, arg, OLD_PIT_STATE)
}

/// KVM_GET_PIT2. Errors: ENXIO (no PIT), EFAULT.
pub fn get_pit2<H: Host>(vm: &Vm<H>, arg: u64) -> Result<(), Errno> {
    get_state(vm, arg, PIT_STATE)
}

/// KVM_SET_PIT2. Errors: ENXIO (no PIT), EFAULT.
pub fn set_pit2<H: Host>(vm: &Vm<H>, arg: u64) -> Result<(), Errno> {
    set_state(vm, arg, PIT_STATE)
}

/// A zone of coalesced writes. Errors: EINVAL (neither memory nor ports).
pub fn zone(z: &kvm_coalesced_mmio_zone) -> Result<Zone, Errno> {
    match z.pio {
        pio @ 0..=1 => Ok(Zone { addr: z.addr, size: z.size, pio: pio == 1 }),
        _ => Err(Errno::EINVAL),
    }
}
