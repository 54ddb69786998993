//! VMRUN of the simulated processor, where the world switch executes it: what is in the VMCB is loaded, the script runs,
//! what the processor changes is stored.
//!
//! A processor may keep what the clean bits (APM 15.15) say has not changed, and translations by ASID until they are
//! flushed. This one finds out: a group of fields that did change, or an ASID that has another guest's translations, is a
//! panic; a translation that should have been flushed is used.

use crate::SimCpu;
use crate::tlb::Tlb;
use arch::vmcb::tlb_control;
use arch::{CleanBits, HostPa, Segment, Vmcb};
use std::cell::RefCell;
use std::collections::HashMap;
use std::mem::{swap, take};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use switch::model::Turn;

thread_local! {
    /// The translations that the CPU of this thread has, by ASID, and whose they are. A thread that ends takes them along,
    /// which is as good as a flush.
    static TLBS: RefCell<HashMap<u32, (u64, Tlb)>> = RefCell::default();
}

/// What is known of a vCPU's last VMRUN.
pub(crate) struct Loaded {
    /// Which vCPU this is.
    id: u64,
    /// CPU and ASID. None: it has not run.
    place: Option<(u64, u32)>,
    /// The VMCB's groups as #VMEXIT left them.
    groups: [[u64; 11]; 11],
}

impl Default for Loaded {
    fn default() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { id: NEXT.fetch_add(1, SeqCst), place: None, groups: Default::default() }
    }
}

/// The fields behind each clean bit, in the order of the bits.
fn groups(Vmcb { control: c, save: s, .. }: &Vmcb) -> [[u64; 11]; 11] {
    let low = |s: &Segment| u64::from(s.limit) << 32 | u64::from(s.attrib.0) << 16 | u64::from(s.selector);
    let pair = |a: u16, b: u16| u64::from(a) << 16 | u64::from(b);
    let mut all = [[0; 11]; 11];
    let mut put = |n: usize, fields: &[u64]| all[n][..fields.len()].copy_from_slice(fields);
    put(
        0,
        &[
            pair(c.intercept_cr_read, c.intercept_cr_write),
            pair(c.intercept_dr_read, c.intercept_dr_write),
            c.intercept_exceptions.into(),
            c.intercept_3.into(),
            c.intercept_4.into(),
            c.intercept_5.into(),
            pair(c.pause_filter_count, c.pause_filter_threshold),
            c.tsc_offset,
        ],
    );
    put(1, &[c.iopm_base_pa, c.msrpm_base_pa]);
    put(2, &[c.asid.into()]);
    put(3, &[c.int_ctl.into(), c.int_vector.into()]);
    put(4, &[c.nested_cr3, c.np_control, s.g_pat]);
    put(5, &[s.cr0, s.cr3, s.cr4, s.efer]);
    put(6, &[s.dr6, s.dr7]);
    put(7, &[s.gdtr.base, s.gdtr.limit.into(), s.idtr.base, s.idtr.limit.into()]);
    let [cs, ds, ss, es] = [&s.cs, &s.ds, &s.ss, &s.es];
    let bases = [cs, ds, ss, es].map(|s| s.base);
    put(8, &[&bases[..], &[low(cs), low(ds), low(ss), low(es), s.cpl.into()]].concat());
    put(9, &[s.cr2]);
    put(10, &[s.dbgctl, s.br_from, s.br_to, s.last_excp_from, s.last_excp_to]);
    all
}

impl Drop for Loaded {
    /// Nobody is going to use the translations: only whose they were stays known.
    fn drop(&mut self) {
        let forget = |tlbs: &RefCell<HashMap<u32, (u64, Tlb)>>| {
            let mut tlbs = tlbs.borrow_mut();
            let mine = tlbs.values_mut().filter(|(owner, _)| *owner == self.id);
            mine.for_each(|(_, tlb)| *tlb = Tlb::default());
        };
        let _ = TLBS.try_with(forget);
    }
}

impl Loaded {
    /// What the clean bits promise is so.
    fn check(&self, vmcb: &Vmcb, cpu: u64) {
        let clean = vmcb.control.clean;
        let here = self.place.is_some_and(|(last, _)| last == cpu);
        assert!(here || clean == 0, "clean bits {clean:#x} on a processor that does not have the VMCB");
        for (n, (now, then)) in groups(vmcb).iter().zip(&self.groups).enumerate() {
            let bit = CleanBits::from_bits_retain(1 << n);
            assert!(clean & bit.bits() == 0 || now == then, "{bit:?} is clean but changed: {then:x?} -> {now:x?}");
        }
    }
}

impl SimCpu {
    /// The guest's turn, from VMRUN to #VMEXIT.
    pub(crate) fn vmrun(&mut self, loaded: &mut Loaded, turn: Turn<'_>) {
        let Turn { regs, vmcb, extra, interrupt, cpu } = turn;
        self.vmruns += 1;
        loaded.check(vmcb, cpu);
        let (asid, how) = (vmcb.control.asid, vmcb.control.tlb_control);
        assert_ne!(asid, 0, "the host's ASID");
        let fresh = loaded.place != Some((cpu, asid));
        TLBS.with_borrow_mut(|tlbs| {
            match how {
                tlb_control::FLUSH_ALL_ASID => tlbs.clear(),
                tlb_control::FLUSH_ASID => drop(tlbs.remove(&asid)),
                _ => assert_eq!(how, tlb_control::DO_NOTHING),
            }
            let (owner, tlb) = tlbs.remove(&asid).unwrap_or((loaded.id, Tlb::default()));
            assert_eq!(owner, loaded.id, "an ASID with the translations of another guest");
            self.tlb = tlb;
        });
        (loaded.place, self.flush) = (Some((cpu, asid)), fresh || how != tlb_control::DO_NOTHING);
        self.extra = *extra;
        (self.root, self.exit_at_once) = (HostPa(vmcb.control.nested_cr3), interrupt);
        let event = vmcb.control.event_inj;
        self.exchange(regs, vmcb);
        let (code, info1, info2) = self.guest_runs();
        self.exchange(regs, vmcb);
        *extra = self.extra;
        let c = &mut vmcb.control;
        // Nothing is to rest on #VMEXIT clearing it.
        c.event_inj = event;
        (c.exit_code, c.exit_info_1, c.exit_info_2) = (code, info1, info2);
        loaded.groups = groups(vmcb);
        TLBS.with_borrow_mut(|tlbs| tlbs.insert(asid, (loaded.id, take(&mut self.tlb))));
    }

    /// What is in the VMCB and the registers goes into the processor, or back.
    fn exchange(&mut self, regs: &mut [u64; 16], vmcb: &mut Vmcb) {
        swap(&mut self.gprs, regs);
        swap(&mut *self.save, &mut vmcb.save);
        swap(&mut *self.control, &mut vmcb.control);
    }
}
