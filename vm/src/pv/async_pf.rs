//! Asynchronous page faults (KVM's MSR document: MSR_KVM_ASYNC_PF_EN, _INT and _ACK): the guest does something else while
//! the host brings in a page of its memory, from swap, a file or user space.
//!
//! The fault becomes a #PF with a token in CR2 ("page not present"), which the guest answers by running another task.
//! When the page is there, the token goes into guest memory and an interrupt says so ("page ready"). A guest that cannot
//! be told, or that touches the page again, is halted until then, or until an interrupt gives it something to do.

use super::ENABLED;
use crate::Ctx;
use crate::run::Next;
use crate::spin::DISABLE_HLT;
use crate::state::MpState;
use crate::vcpu::Core;
use arch::cr::Cr0;
use arch::{CleanBits, Exception, Gpa, Hva, NpfCode};
use core::sync::atomic::Ordering::Relaxed;
use host::{Cpu, Host, OneBox, PageIns, Request, Trace, VcpuThread, try_box};
use irqchip::Accept;

/// KVM_ASYNC_PF_SEND_ALWAYS: the guest may be told at CPL 0, too.
const SEND_ALWAYS: u64 = 1 << 1;
/// KVM_ASYNC_PF_DELIVERY_AS_PF_VMEXIT: a nested hypervisor would get an exit; there are none.
pub(crate) const DELIVERY_AS_PF_VMEXIT: u64 = 1 << 2;
/// KVM_ASYNC_PF_DELIVERY_AS_INT: "page ready" is an interrupt. Without it nothing is told at all.
pub(crate) const DELIVERY_AS_INT: u64 = 1 << 3;
/// Bits of the MSR that have to be zero.
pub(crate) const RESERVED: u64 = 3 << 4;

/// Offsets in `struct kvm_vcpu_pv_apf_data`, which is 64 bytes, aligned.
const FLAGS: u64 = 0;
const TOKEN: u64 = 4;
/// KVM_PV_REASON_PAGE_NOT_PRESENT.
const NOT_PRESENT: u32 = 1;
/// The token that wakes every task that waits.
const WAKE_ALL: u32 = !0;

/// One page that is waited for.
#[derive(Clone, Copy)]
struct Wait {
    gpa: Gpa,
    code: NpfCode,
    token: u32,
    /// The guest knows the token.
    told: bool,
}

/// The pages that one vCPU waits for, by the number of their page-in.
type Waits = [Option<Wait>; PageIns::LIMIT];

/// One vCPU's part.
#[derive(Default)]
pub(crate) struct AsyncPf {
    /// Made when the first page is waited for.
    waits: Option<OneBox<Waits>>,
    /// Upper part of the last token.
    tokens: u32,
    /// The guest has enabled it, perhaps on another host before: what it waits for is void.
    wake_all: bool,
    /// It sleeps until a page has come.
    halted: bool,
    /// Whose turn it is to be told of.
    turn: u8,
}

::state::state! {
    value Wait { gpa, code, token, told }
}

/// The list is there if a page was ever waited for.
impl ::state::State for AsyncPf {
    fn save(&self, w: &mut ::state::Writer) {
        let Self { waits, tokens, wake_all, halted, turn } = self;
        waits.is_some().save(w);
        if let Some(waits) = waits {
            waits.save(w);
        }
        tokens.save(w);
        wake_all.save(w);
        halted.save(w);
        turn.save(w);
    }
    fn load(&mut self, r: &mut ::state::Reader<'_>) -> Result<(), ::state::Refused> {
        self.waits = None;
        if r.value()? {
            let mut waits = try_box(|| [None; PageIns::LIMIT]).map_err(|_| r.refuse(::state::Why::NoMemory))?;
            waits.load(r)?;
            self.waits = Some(waits);
        }
        self.tokens.load(r)?;
        self.wake_all.load(r)?;
        self.halted.load(r)?;
        self.turn.load(r)?;
        // Below the number of places, whatever it says.
        self.turn &= 63;
        Ok(())
    }
}

impl AsyncPf {
    /// Forgets every page. The caller sees to the page-ins.
    fn clear(&mut self) {
        if let Some(waits) = &mut self.waits {
            waits.fill(None);
        }
        (self.wake_all, self.halted) = (false, false);
    }

    fn waits_for(&self, gpa: Gpa) -> bool {
        let mut all = self.waits.iter().flat_map(|w| w.iter()).flatten();
        all.any(|w| w.gpa.gfn() == gpa.gfn())
    }

    /// A number that no page-in has. None: there are too many, or there is no memory.
    fn free_number(&mut self) -> Option<u8> {
        if self.waits.is_none() {
            self.waits = try_box(|| [None; PageIns::LIMIT]).ok();
        }
        self.waits.as_ref()?.iter().position(Option::is_none).map(|n| n as u8)
    }

    fn place(&mut self, n: u8) -> Option<&mut Option<Wait>> {
        self.waits.as_mut()?.get_mut(usize::from(n))
    }

    /// A token that is not zero: a count, and below it the vCPU's number.
    fn new_token(&mut self, vcpu: u32) -> u32 {
        self.tokens = self.tokens.wrapping_add(1);
        if self.tokens << 12 == 0 {
            self.tokens = 1;
        }
        self.tokens << 12 | vcpu
    }
}

impl<H: Host> Core<H> {
    /// Does the guest want to be told?
    fn tells_pages(&self) -> bool {
        const BOTH: u64 = ENABLED | DELIVERY_AS_INT;
        self.msr.async_pf & BOTH == BOTH
    }

    /// Can it be told with a #PF now? One without paging is spared: its real-mode vector 14 is for something else.
    fn takes_absent_page(&self) -> bool {
        let at_cpl = self.msr.async_pf & SEND_ALWAYS != 0 || self.cpu.save().cpl != 0;
        self.tells_pages() && at_cpl && self.guest_cr0 & Cr0::PG.bits() != 0
    }

    /// It goes on with something else than waiting for a page.
    pub(crate) fn end_page_halt(&mut self) {
        self.pv.async_pf.halted = false;
    }

    /// INIT and reset: the guest does not know of any page any more.
    pub(super) fn reset_async_pf(&mut self) {
        (self.msr.async_pf, self.msr.async_pf_vector) = (0, 0);
        self.pv.async_pf.clear();
    }
}

impl<H: Host> Ctx<'_, H> {
    /// KVM_ASYNC_PF_EN. False: the value is refused, because no memory is there that can be written.
    pub(crate) fn set_async_pf(&mut self, value: u64) -> bool {
        self.core.msr.async_pf = value;
        if !self.core.tells_pages() {
            self.forget_pages();
            return true;
        }
        if !self.shared_memory().is_memory(self.page_word(FLAGS), true) {
            return false;
        }
        // Tasks may wait since before the guest was moved here: nobody else will wake them.
        self.core.pv.async_pf.wake_all = !self.me.thread.page_ins().any();
        self.me.thread.requests().make_request(Request::ApfReady);
        true
    }

    /// Nothing is waited for any more.
    pub(crate) fn forget_pages(&mut self) {
        self.core.pv.async_pf.clear();
        self.me.thread.forget_page_ins();
    }

    /// Paging or the local APIC was switched on: what could not be told before may be now.
    pub(crate) fn pages_may_be_told(&self) {
        if self.core.tells_pages() {
            self.me.thread.requests().make_request(Request::ApfReady);
        }
    }

    fn page_word(&self, offset: u64) -> Gpa {
        Gpa((self.core.msr.async_pf & !0x3f) + offset)
    }

    /// A nested fault met a page, at `hva` of the VMM's memory, that the host has to bring in first. None: the vCPU has to
    /// wait for it, because it could neither be told nor be halted, or there is no room or memory.
    pub(crate) fn wait_aside(&mut self, gpa: Gpa, code: NpfCode, hva: Hva) -> Option<Next> {
        if !self.can_wait_aside() {
            return None;
        }
        let (gva, gfn) = (gpa.0, gpa.gfn().0);
        self.vm.host.tell(|| Trace::TryAsyncGetPage { gva, gfn });
        if self.core.pv.async_pf.waits_for(gpa) {
            self.vm.host.tell(|| Trace::AsyncPfRepeatedFault { gva, gfn });
            return Some(self.halt_for_page());
        }
        let n = self.core.pv.async_pf.free_number()?;
        self.me.thread.start_page_in(hva, code.write(), n).ok()?;
        let token = self.core.pv.async_pf.new_token(self.me.id);
        self.vm.host.tell(|| Trace::AsyncPfNotPresent { token: token.into(), gva });
        let told = self.tell_absent(token);
        if let Some(place) = self.core.pv.async_pf.place(n) {
            *place = Some(Wait { gpa, code, token, told });
        }
        Some(if told { Next::Resume } else { self.halt_for_page() })
    }

    /// Is nothing being delivered, and could an interrupt end the wait? Where HLT does not exit, being halted has no meaning.
    fn can_wait_aside(&self) -> bool {
        let core = &*self.core;
        let halts = self.vm.config.disabled_exits.load(Relaxed) & DISABLE_HLT == 0;
        core.fast.lapic.is_some()
            && !core.smm.active()
            && !core.inject.busy()
            && core.interruptible()
            && (halts || core.takes_absent_page())
    }

    /// "Page not present".
    fn tell_absent(&mut self, token: u32) -> bool {
        let can = self.core.takes_absent_page()
            && self.shared_memory().write_phys(self.page_word(FLAGS), &NOT_PRESENT.to_le_bytes()).is_ok();
        if can {
            // At once, so that the token is saved with the registers if the vCPU is moved before the #PF is delivered.
            self.core.cpu.save_mut(CleanBits::CR2).cr2 = token.into();
            self.me.stats.pf_guest.count();
            self.core.inject.queue(Exception::pf(0, token.into()));
        }
        can
    }

    /// Sleeps until a page has come, or there is something else for the guest to do.
    fn halt_for_page(&mut self) -> Next {
        self.core.pv.async_pf.halted = true;
        self.wait_for_page()
    }

    /// The same after a handover, if one came while it slept.
    pub(crate) fn still_waits_for_page(&mut self) -> Next {
        if self.core.pv.async_pf.halted { self.wait_for_page() } else { Next::Resume }
    }

    fn wait_for_page(&mut self) -> Next {
        let next = loop {
            match self.service_requests() {
                // It goes on sleeping afterwards, unless what came before ends that.
                Err(Next::HandOver) => return Next::HandOver,
                Err(next) => break next,
                Ok(()) => {}
            }
            // Interrupts and NMIs that a debugger keeps from the guest give it nothing to do: it would touch the page again.
            let blocked = self.core.debug.control & crate::debug::BLOCKIRQ != 0;
            let goes_on = !self.core.pv.async_pf.halted || self.core.mp_state != MpState::Runnable;
            if goes_on || !blocked && self.has_events() {
                break Next::Resume;
            }
            if let Err(next) = self.sleep() {
                break next;
            }
        };
        self.core.pv.async_pf.halted = false;
        next
    }

    /// [`Request::ApfReady`], and KVM_ASYNC_PF_ACK: tells the guest of pages that have come, one after the other: the
    /// next one when it has taken the token of the one before.
    pub(crate) fn tell_pages(&mut self) {
        while self.takes_ready_page() {
            if core::mem::take(&mut self.core.pv.async_pf.wake_all) {
                self.tell_ready(WAKE_ALL);
                continue;
            }
            let turn = self.core.pv.async_pf.turn;
            let Some(n) = self.me.thread.page_ins().take(turn) else { return };
            self.core.pv.async_pf.turn = n.wrapping_add(1) & 63;
            self.core.pv.async_pf.halted = false;
            let Some(wait) = self.core.pv.async_pf.place(n).and_then(Option::take) else { continue };
            // It is mapped here, waiting if it has gone again, so that the guest gets ahead in any case. A failure is for
            // the guest's own access to meet.
            if self.shared_memory().page_fault(&mut self.core.tables, wait.gpa, wait.code) == Ok(mmu::RetPf::Fixed) {
                self.me.stats.pf_fixed.count();
            }
            self.vm.host.tell(|| Trace::AsyncPfReady { token: wait.token.into(), gva: wait.gpa.0 });
            if wait.told {
                self.tell_ready(wait.token);
            }
        }
    }

    /// Is there something to tell, and room for its token? A guest that is not told needs none.
    fn takes_ready_page(&self) -> bool {
        if !self.core.pv.async_pf.wake_all && !self.me.thread.page_ins().any() {
            return false;
        }
        if !self.core.tells_pages() {
            return true;
        }
        let mut token = [0; 4];
        self.core.fast.lapic.as_ref().is_some_and(|l| l.enabled())
            && self.shared_memory().read_phys(self.page_word(TOKEN), &mut token).is_ok()
            && token == [0; 4]
    }

    /// "Page ready".
    fn tell_ready(&mut self, token: u32) {
        if self.core.tells_pages()
            && self.shared_memory().write_phys(self.page_word(TOKEN), &token.to_le_bytes()).is_ok()
        {
            self.me.deliver(Accept::Interrupt { vector: self.core.msr.async_pf_vector, level: false });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_token_is_zero() {
        let mut a = AsyncPf::default();
        assert_eq!([a.new_token(0), a.new_token(3)], [0x1000, 0x2003]);
        a.tokens = 0xf_ffff;
        assert_eq!(a.new_token(0), 0x1000);
    }

    #[test]
    fn as_many_as_page_ins() {
        let mut a = AsyncPf::default();
        for n in 0..PageIns::LIMIT as u8 {
            assert_eq!(a.free_number(), Some(n));
            let wait = Wait { gpa: Gpa(u64::from(n) << 12 | 0x123), code: NpfCode(0), token: 1, told: true };
            *a.place(n).unwrap() = Some(wait);
        }
        assert_eq!(a.free_number(), None);
        assert!(a.waits_for(Gpa(0x5fff)) && !a.waits_for(Gpa(0x40000)));
        *a.place(7).unwrap() = None;
        assert_eq!((a.free_number(), a.waits_for(Gpa(0x7000))), (Some(7), false));
        a.clear();
        assert_eq!(a.free_number(), Some(0));
    }
}
