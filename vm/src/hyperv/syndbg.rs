//! The synthetic debugger (TLFS has none of it; Hyper-V's interface as KVM knows it): registers that user space serves.

use super::number::*;
use crate::Ctx;
use host::Host;

/// The registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Syndbg {
    control: u64,
    pub status: u64,
    send_page: u64,
    recv_page: u64,
    pending_page: u64,
    options: u64,
}

::state::state! {
    value Syndbg { control, status, send_page, recv_page, pending_page, options }
}

impl Syndbg {
    pub fn read(&self, index: u32) -> u64 {
        match index {
            SYNDBG_CONTROL => self.control,
            SYNDBG_STATUS => self.status,
            SYNDBG_SEND_BUFFER => self.send_page,
            SYNDBG_RECV_BUFFER => self.recv_page,
            SYNDBG_PENDING_BUFFER => self.pending_page,
            SYNDBG_OPTIONS => self.options,
            _ => 0,
        }
    }

    /// Some: user space has to be told, with these words (`struct kvm_hyperv_exit`, KVM API document section 5).
    pub fn write(&mut self, index: u32, value: u64) -> Option<[u64; 6]> {
        let place = match index {
            SYNDBG_CONTROL => &mut self.control,
            SYNDBG_STATUS => &mut self.status,
            SYNDBG_SEND_BUFFER => &mut self.send_page,
            SYNDBG_RECV_BUFFER => &mut self.recv_page,
            SYNDBG_PENDING_BUFFER => &mut self.pending_page,
            SYNDBG_OPTIONS => &mut self.options,
            _ => return None,
        };
        *place = value;
        let Self { control, status, send_page, recv_page, pending_page, .. } = *self;
        let tells = matches!(index, SYNDBG_CONTROL | SYNDBG_PENDING_BUFFER);
        tells.then_some([index.into(), control, status, send_page, recv_page, pending_page])
    }

    /// Is the debugger reached by hypercalls?
    pub fn uses_calls(&self) -> bool {
        self.options & SYNDBG_USE_HCALLS != 0
    }
}

impl<H: Host> Ctx<'_, H> {
    /// May the guest's kernel be debugged?
    pub(super) fn has_debugger(&self) -> bool {
        self.core.hyperv.as_ref().and_then(|hv| hv.features).is_some_and(|f| f.syndbg)
    }

    /// User space comes back from KVM_EXIT_HYPERV_SYNDBG of MSR `index`.
    pub(crate) fn complete_syndbg(&mut self, index: u32, status: u64) {
        if index == SYNDBG_CONTROL {
            self.vm.partition.msrs.lock().syndbg.status = status;
        }
    }
}
