//! Random state for a vCPU, between two runs.

use crate::guest;
use crate::storm::documented;
use anyhow::Result;
use kvm_bindings::kvm_mp_state;
use kvm_ioctls::VcpuFd;
use tests::client::CODE;
use tests::plain::Plain;
use tests::random::Random;

/// Changes some bytes of a struct.
fn scramble<T: Plain>(what: &T, random: &mut Random) -> T {
    let mut bytes = what.bytes();
    for _ in 0..random.below(12) {
        let at = random.below(bytes.len() as u64) as usize;
        bytes[at] = random.of(&[0, 1, 0x80, 0xff, random.0 as u8]);
    }
    T::from_bytes(&bytes)
}

/// Sets one kind of state, a little or much changed.
pub fn set_some(vcpu: &VcpuFd, random: &mut Random) -> Result<()> {
    const EINVAL: &[i32] = &[libc::EINVAL];
    match random.below(7) {
        0 => {
            let mut lapic = vcpu.get_lapic()?;
            // Its ID stays, or nothing else would ever be taken.
            for _ in 0..random.below(40) {
                let at = 0x40 + random.below(0x3c0) as usize;
                lapic.regs[at] = random.any() as i8;
            }
            documented("KVM_SET_LAPIC", vcpu.set_lapic(&lapic), EINVAL)?;
        }
        1 => {
            let events = scramble(&vcpu.get_vcpu_events()?, random);
            documented("KVM_SET_VCPU_EVENTS", vcpu.set_vcpu_events(&events), EINVAL)?;
        }
        2 => {
            let mut regs = scramble(&vcpu.get_regs()?, random);
            if guest::is_table(regs.rip) {
                regs.rip = CODE;
            }
            documented("KVM_SET_REGS", vcpu.set_regs(&regs), &[])?;
        }
        3 | 4 => {
            let sregs = scramble(&vcpu.get_sregs()?, random);
            documented("KVM_SET_SREGS", vcpu.set_sregs(&sregs), EINVAL)?;
        }
        5 => {
            let state = kvm_mp_state { mp_state: random.below(12) as u32 };
            documented("KVM_SET_MP_STATE", vcpu.set_mp_state(state), EINVAL)?;
        }
        _ => {
            documented("KVM_NMI", vcpu.nmi(), &[])?;
        }
    }
    Ok(())
}
