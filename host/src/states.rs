//! How what is declared here is written into the state of a VM, and the section of a vCPU's processor.

use crate::{Errno, ExtraRegs, OneBox};
use arch::vmcb::{INT_SHADOW, int_ctl};
use arch::{ControlArea, SaveArea};
use state::{Reader, Refused, State, Writer};

::state::state! {
    value ExtraRegs { xcr0, xss, pkru, tsc_aux, spec_ctrl, virt_spec_ctrl, dr, load_dr, tsc_ratio }
}

::state::units! {
    Errno {
        EPERM, ENOENT, EINTR, EIO, ENXIO, E2BIG, EBADF, EAGAIN, ENOMEM, EFAULT, EBUSY, EEXIST, ENODEV, EINVAL, ENFILE, EMFILE,
        ENOTTY, ENOSPC, EOPNOTSUPP, EHWPOISON,
    }
}

impl<T: State> State for OneBox<T> {
    fn save(&self, w: &mut Writer) {
        (**self).save(w);
    }
    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), Refused> {
        (**self).load(r)
    }
}

/// Bits of `int_ctl` that are the guest's, or the run loop's; the others are the world switch's own.
const GUEST_INT_CTL: u32 = int_ctl::V_TPR | int_ctl::V_IRQ | int_ctl::V_INTR_PRIO | int_ctl::V_IGN_TPR;

/// The guest in a processor, as every world switch writes it: registers, the whole save area as the hardware has it, and of the
/// control area what is the guest's and what the last exit was about. What is intercepted is no state: it follows from the rest,
/// and the next engine may intercept something else.
pub struct GuestState<'a> {
    /// General registers but RAX and RSP.
    pub regs: &'a mut [u64; 16],
    /// The save area.
    pub save: &'a mut SaveArea,
    /// The control area.
    pub control: &'a mut ControlArea,
    /// What is switched beside the VMCB.
    pub extra: &'a mut ExtraRegs,
}

impl State for GuestState<'_> {
    fn save(&self, w: &mut Writer) {
        self.regs.save(w);
        State::save(self.save, w);
        let c = &*self.control;
        (c.int_ctl & GUEST_INT_CTL).save(w);
        c.int_vector.save(w);
        (c.int_state & INT_SHADOW).save(w);
        c.event_inj.save(w);
        c.next_rip.save(w);
        c.exit_code.save(w);
        c.exit_info_1.save(w);
        c.exit_info_2.save(w);
        c.exit_int_info.save(w);
        self.extra.save(w);
    }
    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), Refused> {
        self.regs.load(r)?;
        State::load(self.save, r)?;
        let c = &mut *self.control;
        c.int_ctl = c.int_ctl & !GUEST_INT_CTL | r.value::<u32>()? & GUEST_INT_CTL;
        c.int_vector.load(r)?;
        c.int_state = r.value::<u64>()? & INT_SHADOW;
        c.event_inj.load(r)?;
        c.next_rip.load(r)?;
        c.exit_code.load(r)?;
        c.exit_info_1.load(r)?;
        c.exit_info_2.load(r)?;
        c.exit_int_info.load(r)?;
        self.extra.load(r)
    }
}
