//! KVM_GET_LAPIC and KVM_SET_LAPIC: `struct kvm_lapic_state`, the first 1024 bytes of the register page.
//! KVM API document sections 4.57 and 4.58; for the ID in x2APIC mode also KVM_CAP_X2APIC_API.

use super::regs::*;
use super::timer::TimerMode;
use super::{Lapic, Mode, TimerEffect};

/// KVM_SET_LAPIC answers EINVAL: 32-bit IDs are enabled and the ID is not the vCPU's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidState;

impl Lapic {
    /// Fills `out` with the registers; the rest is zero. `x2apic_format` (KVM_X2APIC_API_USE_32BIT_IDS) decides whether
    /// the ID of x2APIC mode is shown whole or in bits 31:24. Drain the [`Pir`](crate::Pir) first.
    pub fn get_state(&self, out: &mut [u8; 1024], now_ns: u64, x2apic_format: bool) {
        out.fill(0);
        for (i, word) in out.chunks_exact_mut(16).enumerate() {
            let offset = i as u32 * 16;
            let value = match offset {
                ID if self.mode() == Mode::X2Apic && !x2apic_format => self.cfg.vcpu_id << 24,
                DFR => self.dfr,
                ICR_HIGH => self.icr_high,
                _ => self.read(offset, now_ns).unwrap_or(0),
            };
            for (to, from) in word.iter_mut().zip(value.to_le_bytes()) {
                *to = from;
            }
        }
    }

    /// Takes over the registers in `regs`; set IA32_APIC_BASE first. In x2APIC mode the ID and the logical ID are
    /// fixed: with `x2apic_format` a different ID is an error, without it is ignored. The timer continues from its
    /// current count. Bits that no register has are dropped. Afterwards publish [`address`](Self::address).
    pub fn set_state(
        &mut self,
        regs: &[u8; 1024],
        now_ns: u64,
        x2apic_format: bool,
    ) -> Result<TimerEffect, InvalidState> {
        let get = |offset: u32| {
            // INDEX: a constant of ours.
            let bytes = regs.get(offset as usize..).and_then(<[u8]>::first_chunk::<4>);
            u32::from_le_bytes(bytes.copied().unwrap_or_default())
        };
        if self.mode() == Mode::X2Apic {
            if x2apic_format && get(ID) != self.cfg.vcpu_id {
                return Err(InvalidState);
            }
        } else {
            self.xapic_id = (get(ID) >> 24) as u8;
            self.logical_id = (get(LDR) >> 24) as u8;
        }
        let old_mode = TimerMode::of(self.lvt(Lvt::Timer));
        self.tpr = get(TPR) as u8;
        self.dfr = get(DFR) | 0x0fff_ffff;
        self.svr = get(SVR) & (0x3ff | SVR_DIRECTED_EOI);
        (self.esr, self.errors) = (get(ESR) & 0xff, 0);
        self.icr_low = get(ICR);
        self.icr_high = get(ICR_HIGH);
        for index in 0..LVT_ENTRIES {
            // A saved TSC-deadline mode is kept even before CPUID allows it.
            let mode = if index == Lvt::Timer as usize { LVT_TSC_DEADLINE } else { 0 };
            let value = get(LVT + index as u32 * 16) & (self.lvt_mask(index) | mode);
            if let Some(lvt) = self.lvt.get_nospec_mut(index) {
                *lvt = value;
            }
        }
        for i in 0..8u32 {
            self.isr.set_register(i as usize, get(ISR + i * 16));
            self.tmr.set_register(i as usize, get(TMR + i * 16));
            self.irr.set_register(i as usize, get(IRR + i * 16));
        }
        self.recount();
        self.timer.initial = get(TIMER_INITIAL);
        self.timer.divide = get(TIMER_DIVIDE) & 0xb;
        Ok(self.restore_timer(get(TIMER_CURRENT), old_mode, now_ns))
    }
}
