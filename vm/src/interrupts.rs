//! Interrupts between vCPUs, devices and user space: IPIs, MSIs, KVM_INTERRUPT, NMI, and the local APIC's ioctls.

use crate::run::Next;
use crate::user::UserExit;
use crate::{Ctx, Vcpu, Vm};
use core::sync::atomic::Ordering::{AcqRel, Relaxed, Release};
use host::{Errno, Host, Request, Snapshot, Trace, VcpuThread, try_box};
use irqchip::{Accept, Chip, ChipMode, Effect, Eoi, IOAPIC_PINS, Message, MsiFormat, Route, RoutingTable, Target};

impl<H: Host> Vcpu<H> {
    /// Asks the vCPU to look at its pending events.
    pub(crate) fn thread_ring_event(&self) {
        self.thread.requests().make_request(Request::Event);
        self.thread.wake();
    }

    /// Delivers what a message means for this vCPU. False if its APIC refuses it. Any thread.
    pub(crate) fn deliver(&self, what: Accept) -> bool {
        match what {
            Accept::Refused => return false,
            Accept::Interrupt { vector, level } => {
                if !self.pir.post(vector, level) {
                    return true;
                }
            }
            // Never above two: `process_interrupts` latches no more.
            Accept::Nmi => {
                let _ = self.pending_events.nmi_queued.fetch_update(AcqRel, Relaxed, |n| Some((n + 1).min(2)));
            }
            Accept::Init => self.pending_events.init_sipi.init(),
            Accept::Startup { vector } => self.pending_events.init_sipi.sipi(vector),
            Accept::Unhalt => self.pending_events.pv_unhalted.store(true, Release),
            Accept::Smi => self.pending_events.smi.store(true, Release),
        }
        self.thread_ring_event();
        true
    }
}

impl<H: Host> Vm<H> {
    /// How the addresses of messages are read (KVM_CAP_X2APIC_API).
    pub fn msi_format(&self) -> MsiFormat {
        MsiFormat {
            x2apic_format: self.config.x2apic_format.load(Relaxed),
            broadcast_quirk_disabled: self.config.broadcast_quirk_disabled.load(Relaxed),
        }
    }

    /// KVM_SIGNAL_MSI. Ok: number of vCPUs reached; 0 if it was blocked or matched nobody. Errors: ENXIO (no
    /// in-kernel irqchip).
    pub fn signal_msi(&self, address: u64, data: u32) -> Result<i32, Errno> {
        if self.chip_mode() == ChipMode::None {
            return Err(Errno::ENXIO);
        }
        self.host.tell(|| Trace::MsiSetIrq { address, data });
        let m = Message::from_msi(address, data, self.msi_format());
        Ok(self.send(&m, None).map_or(-1, |n| n as i32))
    }

    /// KVM_SET_GSI_ROUTING. Errors: EINVAL, ENOMEM, ENXIO (no in-kernel irqchip).
    pub fn set_routing(&self, routes: &[Route]) -> Result<(), Errno> {
        let mode = self.chip_mode();
        if mode == ChipMode::None {
            return Err(Errno::EINVAL);
        }
        let table =
            RoutingTable::build(routes, mode, self.config.x2apic_format.load(Relaxed)).map_err(|e| match e {
                irqchip::RoutingError::Invalid => Errno::EINVAL,
                irqchip::RoutingError::NoMemory => Errno::ENOMEM,
            })?;
        let pins = ioapic_gsis(&table);
        let table = try_box(|| table)?;
        // By GSI, whatever the order that user space names them in: of several that lead to one source the last hears of its end.
        for route in table.routes() {
            if let Target::HvSint { vp_index, sint } = route.target {
                self.route_synic(vp_index, sint, route.gsi);
            }
        }
        let before = self.routing.replace(Some(table));
        // Of the IOAPIC's entries here only who waits for a pin depends on the table.
        if mode == ChipMode::Split || before.is_none_or(|before| ioapic_gsis(&before) != pins) {
            self.ring_all(Request::ScanIoapic);
        }
        Ok(())
    }
}

/// The GSI that leads to each pin of the IOAPIC.
pub(crate) fn ioapic_gsis(routes: &RoutingTable) -> [Option<u32>; IOAPIC_PINS] {
    core::array::from_fn(|pin| routes.gsi_of(Chip::Ioapic, pin as u8))
}

impl<H: Host> Ctx<'_, H> {
    /// Carries out what a write to the local APIC means outside of it.
    pub(crate) fn apply_effect(&mut self, effect: Effect) -> Next {
        match effect {
            Effect::None => {}
            Effect::Timer(t) => self.apply_timer(t),
            Effect::Ipi(m) => {
                self.vm.send(&m, Some(self.me.index));
            }
            Effect::AddressChanged => self.publish_address(),
            Effect::Eoi(eoi) => return self.after_eoi(eoi),
        }
        Next::Resume
    }

    /// EOI of a vector that an IOAPIC waits for goes there; to user space, if it has the IOAPIC.
    pub(crate) fn after_eoi(&mut self, eoi: Eoi) -> Next {
        if !self.core.fast.ioapic_eoi.contains(eoi.vector) {
            return Next::Resume;
        }
        if self.core.hyperv.is_some() && self.eoi_of_source(eoi.vector) {
            return Next::Resume;
        }
        match self.vm.chips() {
            Some(chips) => self.eoi_to_chips(chips, eoi),
            None => {
                // It may have been awaited only because it was in service.
                self.me.thread.requests().make_request(Request::ScanIoapic);
                return Next::User(UserExit::IoapicEoi { vector: eoi.vector });
            }
        }
        Next::Resume
    }

    pub(crate) fn publish_address(&mut self) {
        if let Some(lapic) = &self.core.fast.lapic {
            self.vm.publish(self.me, lapic.address());
            self.vm.publish_lint0(self.me, lapic.lint0());
            if lapic.enabled() {
                self.pages_may_be_told();
            }
        }
        // Destinations of userspace IOAPIC routes are matched against the address.
        self.scan_ioapic();
    }

    /// Computes anew which vectors' EOIs an IOAPIC waits for.
    pub(crate) fn scan_ioapic(&mut self) {
        if let Some(chips) = self.vm.chips() {
            self.scan_chips(chips);
        } else if let Some(lapic) = &mut self.core.fast.lapic {
            // What was posted is awaited even if it is no longer meant for this vCPU.
            self.me.pir.drain_into(lapic);
            let lapic = &*lapic;
            let pins = self.vm.reserved_pins();
            let format = self.vm.msi_format();
            let waits = |routes: &RoutingTable| routes.eoi_exit_bitmap(pins, lapic, format);
            self.core.fast.ioapic_eoi = self.vm.routing.read(|routes| routes.map(waits)).unwrap_or_default();
        }
        if let Some(hv) = &mut self.core.hyperv {
            self.core.fast.ioapic_eoi = hv.awaited_vectors(self.core.fast.ioapic_eoi);
        }
    }

    /// KVM_INTERRUPT: a vector from an interrupt controller in user space. Without a local APIC in the kernel it takes the place
    /// of one that waits, as on stock, whatever the document says; with one it waits until LINT0 lets it through. Errors: EINVAL
    /// (above 255), ENXIO (the irqchip is in the kernel), EEXIST (with a split irqchip: the last one has not been taken).
    pub fn interrupt(&mut self, vector: u32) -> Result<(), Errno> {
        let vector = u8::try_from(vector).map_err(|_| Errno::EINVAL)?;
        match self.vm.chip_mode() {
            ChipMode::Kernel => return Err(Errno::ENXIO),
            ChipMode::Split if self.core.inject.external.is_some() => return Err(Errno::EEXIST),
            ChipMode::Split | ChipMode::None => {}
        }
        self.core.inject.external = Some(vector);
        Ok(())
    }

    /// KVM_NMI.
    pub fn nmi(&mut self) {
        self.me.deliver(Accept::Nmi);
    }

    /// KVM_GET_LAPIC. Errors: EINVAL (no in-kernel local APIC).
    pub fn get_lapic(&mut self, out: &mut [u8; 1024]) -> Result<(), Errno> {
        self.process_interrupts();
        let now = self.vm.host.now_ns();
        let format = self.vm.config.x2apic_format.load(Relaxed);
        let lapic = self.core.fast.lapic.as_ref().ok_or(Errno::EINVAL)?;
        lapic.get_state(out, now, format);
        Ok(())
    }

    /// KVM_SET_LAPIC. Errors: EINVAL (no in-kernel local APIC, or an ID that is not this vCPU's).
    pub fn set_lapic(&mut self, regs: &[u8; 1024]) -> Result<(), Errno> {
        let now = self.vm.host.now_ns();
        let format = self.vm.config.x2apic_format.load(Relaxed);
        let lapic = self.core.fast.lapic.as_mut().ok_or(Errno::EINVAL)?;
        self.me.pir.clear();
        let effect = lapic.set_state(regs, now, format).map_err(|_| Errno::EINVAL)?;
        self.publish_address();
        self.restore_rtc();
        self.apply_timer(effect);
        self.me.thread_ring_event();
        Ok(())
    }

    /// IA32_APIC_BASE, from the guest or (`host`) user space. Errors: EINVAL (an illegal value or transition).
    pub(crate) fn set_apic_base(&mut self, value: u64, host: bool) -> Result<(), Errno> {
        let flags = self.core.cpuid.flags();
        let (reserved, x2apic) = (flags.reserved_gpa_bits, flags.x2apic);
        let Some(lapic) = &mut self.core.fast.lapic else {
            let old = self.core.apic_base;
            irqchip::checked_base(old, value, host, x2apic, reserved).map_err(|_| Errno::EINVAL)?;
            self.core.apic_base = value;
            self.update_cpuid();
            return Ok(());
        };
        let before = lapic.base();
        lapic.set_base(value, host, reserved).map_err(|_| Errno::EINVAL)?;
        if before != value {
            self.update_cpuid();
            self.publish_address();
        }
        Ok(())
    }
}
