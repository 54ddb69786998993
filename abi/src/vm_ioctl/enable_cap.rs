//! KVM_ENABLE_CAP on a VM (KVM API document 4.37 and section 7).

use crate::caps;
use crate::uapi::{cap, kvm_enable_cap};
use core::sync::atomic::Ordering::Relaxed;
use host::{Errno, Host};
use vm::Vm;

/// Switches a capability. Errors: EINVAL (it is absent or cannot be switched; unknown flags or arguments), and what
/// the capability itself documents.
pub fn enable_cap<H: Host>(vm: &Vm<H>, c: &kvm_enable_cap) -> Result<(), Errno> {
    let [arg, ..] = c.args;
    let config = &vm.config;
    let rings = matches!(c.cap, cap::DIRTY_LOG_RING | cap::DIRTY_LOG_RING_ACQ_REL);
    if c.flags != 0 && !rings {
        return Err(Errno::EINVAL);
    }
    match c.cap {
        cap::SPLIT_IRQCHIP => vm.enable_split_irqchip(arg)?,
        cap::MANUAL_DIRTY_LOG_PROTECT2 => vm.mmu.set_manual_dirty_log(arg)?,
        // As on stock, flags mean nothing here, and a size has 32 bits.
        cap::DIRTY_LOG_RING | cap::DIRTY_LOG_RING_ACQ_REL => vm.use_dirty_rings(arg as u32)?,
        cap::MAX_VCPU_ID => vm.set_max_vcpu_id(arg)?,
        cap::X86_APIC_BUS_CYCLES_NS => vm.set_apic_bus_cycle(arg)?,
        cap::X2APIC_API => {
            within(arg, caps::X2APIC_API)?;
            // Each can be switched on only.
            if arg & 1 != 0 {
                vm.use_32bit_ids();
            }
            if arg & 2 != 0 {
                vm.disable_broadcast_quirk();
            }
        }
        // The older form takes what it knows and leaves the rest.
        cap::DISABLE_QUIRKS => vm.disable_quirks(arg & vm::quirks::all(&vm.host))?,
        cap::DISABLE_QUIRKS2 => vm.disable_quirks(arg)?,
        cap::X86_DISABLE_EXITS => vm.disable_exits(arg)?,
        cap::HALT_POLL => config.set_halt_poll(u32::try_from(arg).map_err(|_| Errno::EINVAL)?),
        cap::EXCEPTION_PAYLOAD => config.exception_payload.store(arg != 0, Relaxed),
        cap::X86_TRIPLE_FAULT_EVENT => config.triple_fault_event.store(arg != 0, Relaxed),
        // The argument says whether guests can read it.
        cap::MSR_PLATFORM_INFO => vm.msrs.platform_info_hidden.store(arg == 0, Relaxed),
        cap::X86_USER_SPACE_MSR => {
            within(arg, caps::MSR_EXIT_REASONS)?;
            config.user_space_msr.store(arg as u32, Relaxed);
        }
        cap::EXIT_HYPERCALL => {
            within(arg, caps::EXIT_HYPERCALLS)?;
            config.exit_hypercall.store(arg, Relaxed);
        }
        // It is reported absent, and nothing comes of it: but as on stock nobody is refused who does not want it (1) or does (2).
        cap::X86_BUS_LOCK_EXIT if arg <= 2 => {}
        cap::EXIT_ON_EMULATION_FAILURE => {
            within(arg, 1)?;
            config.exit_on_emulation_error.store(arg != 0, Relaxed);
        }
        _ => return Err(Errno::EINVAL),
    }
    Ok(())
}

fn within(arg: u64, mask: u64) -> Result<(), Errno> {
    if arg & !mask != 0 { Err(Errno::EINVAL) } else { Ok(()) }
}
