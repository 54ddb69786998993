//! The synthetic interrupt controller (TLFS, "Virtual Interrupt Controller"): sixteen sources per vCPU, each with a vector of
//! the local APIC's and a slot for a message in guest memory. Event flags and messages between guests are user space's; here
//! are the registers, the interrupts, and the messages of timers.

use super::number::{EOM, PAGE_ADDRESS, PAGE_ENABLED, SCONTROL, SIEFP, SIMP, SINT0, SINT15, SVERSION};
use super::{Exit, Hyperv};
use crate::apics::{Context, Later};
use crate::msr::MsrError;
use crate::{Ctx, Vcpu, Vm};
use arch::{Gpa, GuestIndexed};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::*};
use host::{Host, Request, VcpuThread};
use irqchip::{Accept, Bits256};
use mmu::PhysError;

/// Interrupt sources of a vCPU.
const SINTS: usize = 16;
/// Bits of a source's register: its vector, that it is masked, that its interrupts have no end.
const VECTOR: u64 = 0xff;
const MASKED: u64 = 1 << 16;
const AUTO_EOI: u64 = 1 << 17;
/// SCONTROL after the controller was switched on.
const CONTROL_ENABLED: u64 = 1;
/// No GSI.
const NO_GSI: u32 = u32::MAX;
/// Not on the stack, where it is too large.
static EMPTY_PAGE: [u8; host::PAGE_SIZE] = [0; host::PAGE_SIZE];
/// EINVAL and ENOENT as stock's functions return them.
const EINVAL: i32 = -22;
const ENOENT: i32 = -2;

/// What other threads know of a vCPU's part.
pub struct Shared {
    /// The processor's number among the guest's, which user space may set.
    pub(super) vp_index: AtomicU32,
    /// KVM_CAP_HYPERV_SYNIC(2) was enabled.
    active: AtomicBool,
    sints: GuestIndexed<[AtomicU64; SINTS]>,
    /// The GSI that leads to each source: whose end is told to who waits for that of the GSI.
    gsis: GuestIndexed<[AtomicU32; SINTS]>,
}

impl Shared {
    pub(super) fn new(index: usize) -> Self {
        Self {
            vp_index: AtomicU32::new(index as u32),
            active: AtomicBool::new(false),
            sints: GuestIndexed::new([const { AtomicU64::new(MASKED) }; SINTS]),
            gsis: GuestIndexed::new([const { AtomicU32::new(NO_GSI) }; SINTS]),
        }
    }

    pub(super) fn active(&self) -> bool {
        self.active.load(Acquire)
    }

    fn sint(&self, n: usize) -> Option<u64> {
        self.sints.get_nospec(n).map(|s| s.load(Relaxed))
    }
}

/// A vCPU's own part.
#[derive(Clone, Copy, Debug)]
pub(super) struct Synic {
    control: u64,
    version: u64,
    event_page: u64,
    message_page: u64,
    /// Pages that the guest names are left as they are (KVM_CAP_HYPERV_SYNIC2).
    keeps_pages: bool,
}

impl Default for Synic {
    fn default() -> Self {
        Self { control: 0, version: 1, event_page: 0, message_page: 0, keeps_pages: false }
    }
}

/// Vectors of the local APIC that belong to sources.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Vectors {
    /// All of them.
    all: Bits256,
    /// Those whose interrupts have no end.
    pub auto_eoi: Bits256,
    /// Vectors whose end an IOAPIC waits for, sources or not.
    pub ioapic: Bits256,
}

::state::state! {
    place Shared { vp_index, active, sints, gsis }
    value Synic { control, version, event_page, message_page, keeps_pages }
    place Vectors {
        ioapic;
        // Follow from the sources.
        not all, auto_eoi
    }
}

/// A message of at most 24 bytes: `struct hv_message`.
#[derive(Clone, Copy)]
pub(super) struct Message {
    bytes: [u8; Self::SIZE],
    len: usize,
}

impl Message {
    /// Type, length of what follows, flags, and who sent it.
    const HEADER: usize = 16;
    /// Where the length is, and the flags.
    const LENGTH: usize = 4;
    const FLAGS: u64 = 5;
    /// In the flags: another message waits for the slot.
    const PENDING: u8 = 1;
    const SIZE: usize = Self::HEADER + 24;
    /// Bytes of a slot.
    const SLOT: u64 = 256;

    pub fn new(kind: u32) -> Self {
        let mut message = Self { bytes: [0; Self::SIZE], len: 0 };
        message.put(0, &kind.to_le_bytes());
        message
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    }

    /// Appends a word.
    pub fn put_u64(&mut self, value: u64) {
        self.put(Self::HEADER + self.len, &value.to_le_bytes());
        self.len += 8;
        self.put(Self::LENGTH, &[self.len as u8]);
    }
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    /// The guest has it.
    Done,
    /// There is another one in its slot.
    Occupied,
    /// There is no slot, or nobody who looks there.
    Failed,
}

impl<H: Host> Vcpu<H> {
    pub(super) fn hyperv_shared(&self) -> Option<&Shared> {
        let [shared] = self.hyperv.get()?;
        Some(shared)
    }

    /// HV_X64_MSR_VP_INDEX: the processor's number among the guest's.
    pub(super) fn vp_index(&self) -> u32 {
        self.hyperv_shared().map_or(self.index as u32, |s| s.vp_index.load(Relaxed))
    }

    /// Raises source `n`. The number of interrupts that were taken, or an error as a negative number. Any context.
    fn raise_sint(&self, n: usize) -> i32 {
        let Some(sint) = self.hyperv_shared().and_then(|s| s.sint(n)) else { return EINVAL };
        if sint & MASKED != 0 {
            return ENOENT;
        }
        self.deliver_fixed((sint & VECTOR) as u8).into()
    }

    /// An edge of this vector. False: the local APIC is switched off. Any thread.
    pub(super) fn deliver_fixed(&self, vector: u8) -> bool {
        let address = self.address.load();
        if !address.hw_enabled() || !address.sw_enabled() {
            return false;
        }
        // Lower ones are no interrupt's, and lost.
        if vector >= 16 {
            self.deliver(Accept::Interrupt { vector, level: false });
        }
        true
    }
}

impl<H: Host> Vm<H> {
    /// The vCPU that the guest knows by this number, which user space has chosen; nearly always it is the place.
    fn vcpu_by_vp_index(&self, context: Context, vp_index: u32) -> Result<Option<&Vcpu<H>>, Later> {
        let direct = self.vcpu(vp_index as usize).filter(|v| v.vp_index() == vp_index);
        if direct.is_some() || self.partition.renumbered.load(Relaxed) == 0 {
            return Ok(direct);
        }
        if context == Context::Any && !self.has_few_vcpus() {
            return Err(Later);
        }
        Ok(self.vcpus().find(|v| v.vp_index() == vp_index))
    }

    fn synic(&self, context: Context, vp_index: u32) -> Result<Option<(&Vcpu<H>, &Shared)>, Later> {
        let v = self.vcpu_by_vp_index(context, vp_index)?;
        Ok(v.and_then(|v| v.hyperv_shared().filter(|s| s.active()).map(|s| (v, s))))
    }

    /// A GSI that leads to source `sint` of the vCPU with this number goes high (KVM_IRQ_ROUTING_HV_SINT).
    pub(crate) fn raise_synic(&self, context: Context, vp_index: u32, sint: u32) -> Result<i32, Later> {
        Ok(self.synic(context, vp_index)?.map_or(EINVAL, |(v, _)| v.raise_sint(sint as usize)))
    }

    /// A GSI leads to this source from now on.
    pub(crate) fn route_synic(&self, vp_index: u32, sint: u32, gsi: u32) {
        let synic = self.synic(Context::Task, vp_index).unwrap_or_default();
        if let Some(place) = synic.and_then(|(_, s)| s.gsis.get_nospec(sint as usize)) {
            place.store(gsi, Relaxed);
        }
    }
}

impl Hyperv {
    /// Which vectors belong to sources has changed.
    pub(super) fn update_vectors(&mut self, shared: &Shared) {
        (self.vectors.all, self.vectors.auto_eoi) = (Bits256::EMPTY, Bits256::EMPTY);
        for sint in shared.sints.iter().map(|s| s.load(Relaxed)) {
            let vector = (sint & VECTOR) as u8;
            if sint & MASKED == 0 && vector >= 16 {
                self.vectors.all.set(vector);
                if sint & AUTO_EOI != 0 {
                    self.vectors.auto_eoi.set(vector);
                }
            }
        }
    }

    /// An IOAPIC waits for the end of these vectors: whose end somebody waits for at all.
    pub(crate) fn awaited_vectors(&mut self, ioapic: Bits256) -> Bits256 {
        self.vectors.ioapic = ioapic;
        ioapic.union(&self.vectors.all)
    }
}

impl<H: Host> Ctx<'_, H> {
    /// KVM_CAP_HYPERV_SYNIC and, with `keeps_pages`, _SYNIC2. Errors: ENOMEM.
    pub(super) fn switch_synic_on(&mut self, keeps_pages: bool) -> Result<(), host::Errno> {
        self.need_hyperv()?;
        if let (Some(hv), Some(shared)) = (&mut self.core.hyperv, self.me.hyperv_shared()) {
            (hv.synic.control, hv.synic.keeps_pages) = (CONTROL_ENABLED, keeps_pages);
            shared.active.store(true, Release);
        }
        Ok(())
    }

    /// Is it switched on?
    pub(super) fn synic_active(&self) -> bool {
        self.me.hyperv_shared().is_some_and(Shared::active)
    }

    pub(super) fn read_synic_msr(&self, index: u32, host: bool) -> Result<u64, MsrError> {
        let (Some(hv), Some(shared)) = (&self.core.hyperv, self.me.hyperv_shared()) else {
            return Err(MsrError::Invalid);
        };
        if !shared.active() && !host {
            return Err(MsrError::Invalid);
        }
        let synic = &hv.synic;
        Ok(match index {
            SCONTROL => synic.control,
            SVERSION => synic.version,
            SIEFP => synic.event_page,
            SIMP => synic.message_page,
            EOM => 0,
            SINT0..=SINT15 => shared.sint((index - SINT0) as usize).ok_or(MsrError::Invalid)?,
            _ => return Err(MsrError::Invalid),
        })
    }

    pub(super) fn write_synic_msr(&mut self, index: u32, value: u64, host: bool) -> Result<(), MsrError> {
        let shared = self.me.hyperv_shared().ok_or(MsrError::Invalid)?;
        // Zero may be restored where there is none.
        if !shared.active() && (!host || value != 0) {
            return Err(MsrError::Invalid);
        }
        match index {
            SIEFP | SIMP => self.clear_synic_page(value, host)?,
            EOM => return self.end_of_message(),
            SINT0..=SINT15 => return self.write_sint((index - SINT0) as usize, value, host),
            SVERSION if !host => return Err(MsrError::Invalid),
            SCONTROL | SVERSION => {}
            _ => return Err(MsrError::Invalid),
        }
        let hv = self.core.hyperv.as_mut().ok_or(MsrError::Invalid)?;
        match index {
            SCONTROL => hv.synic.control = value,
            SVERSION => hv.synic.version = value,
            SIEFP => hv.synic.event_page = value,
            _ => hv.synic.message_page = value,
        }
        if !host && index != SVERSION {
            let Synic { control, event_page, message_page, .. } = hv.synic;
            let exit = Exit::Synic([index.into(), control, event_page, message_page]);
            self.leave_for_hyperv(exit);
        }
        Ok(())
    }

    /// A page that the guest names begins empty, unless user space sees to that.
    fn clear_synic_page(&self, value: u64, host: bool) -> Result<(), MsrError> {
        let keeps = self.core.hyperv.as_ref().is_some_and(|hv| hv.synic.keeps_pages);
        if host || keeps || value & PAGE_ENABLED == 0 {
            return Ok(());
        }
        // In one write, which a dirty ring records once.
        self.shared_memory().write_phys(Gpa(value & PAGE_ADDRESS), &EMPTY_PAGE).map_err(|_| MsrError::Invalid)
    }

    /// Vectors below 16 are no interrupt's: the guest may name one only where it masks it.
    fn write_sint(&mut self, n: usize, value: u64, host: bool) -> Result<(), MsrError> {
        let (Some(hv), Some(shared)) = (&mut self.core.hyperv, self.me.hyperv_shared()) else {
            return Err(MsrError::Invalid);
        };
        if value & VECTOR < 16 && !host && value & MASKED == 0 {
            return Err(MsrError::Invalid);
        }
        if let Some(place) = shared.sints.get_nospec(n) {
            place.store(value, Relaxed);
        }
        hv.update_vectors(shared);
        self.me.thread.requests().make_request(Request::ScanIoapic);
        Ok(())
    }

    /// The guest has taken messages: slots are free.
    fn end_of_message(&mut self) -> Result<(), MsrError> {
        if self.synic_active() {
            for sint in 0..SINTS {
                self.source_ended(sint);
            }
        }
        Ok(())
    }

    /// The interrupt of a source has ended: timers may have a message for it, and somebody may wait for its GSI's end.
    fn source_ended(&mut self, sint: usize) {
        let Some(hv) = &mut self.core.hyperv else { return };
        if hv.timers.slot_is_free(sint as u8) {
            self.me.thread.requests().make_request(Request::Hyperv);
        }
        let gsi = self.me.hyperv_shared().and_then(|s| s.gsis.get_nospec(sint)).map_or(NO_GSI, |g| g.load(Relaxed));
        if gsi != NO_GSI {
            self.vm.resample(gsi);
        }
    }

    /// EOI of a vector whose end somebody waits for. True: that is all; false: an IOAPIC waits for it, too.
    pub(crate) fn eoi_of_source(&mut self, vector: u8) -> bool {
        let Some(vectors) = self.core.hyperv.as_ref().map(|hv| hv.vectors) else { return false };
        if vectors.all.contains(vector) {
            for n in 0..SINTS {
                let sint = self.me.hyperv_shared().and_then(|s| s.sint(n)).unwrap_or(MASKED);
                if sint & (MASKED | VECTOR) == vector.into() {
                    self.source_ended(n);
                }
            }
        }
        !vectors.ioapic.contains(vector)
    }

    /// Puts a message into the slot of source `sint` and raises the source.
    pub(super) fn deliver_message(&mut self, sint: u8, message: &Message) -> Delivery {
        self.try_deliver_message(sint, message).unwrap_or(Delivery::Failed)
    }

    fn try_deliver_message(&mut self, sint: u8, message: &Message) -> Result<Delivery, PhysError> {
        let page = self.core.hyperv.as_ref().map_or(0, |hv| hv.synic.message_page);
        if page & PAGE_ENABLED == 0 {
            return Ok(Delivery::Failed);
        }
        let slot = (page & PAGE_ADDRESS) + Message::SLOT * u64::from(sint);
        let memory = self.shared_memory().memory();
        let mut kind = [0; 4];
        memory.read(Gpa(slot), &mut kind)?;
        if kind != [0; 4] {
            return Ok(Delivery::Occupied);
        }
        let (bytes, _) = message.bytes.split_at(Message::HEADER + message.len.min(Message::SIZE - Message::HEADER));
        memory.write(Gpa(slot), bytes)?;
        drop(memory);
        Ok(if self.me.raise_sint(sint.into()) > 0 { Delivery::Done } else { Delivery::Failed })
    }

    /// The slot of source `sint` is occupied, and another message waits for it: the guest has to say when it is free.
    pub(super) fn note_waiting_message(&mut self, sint: u8) {
        let page = self.core.hyperv.as_ref().map_or(0, |hv| hv.synic.message_page);
        let slot = (page & PAGE_ADDRESS) + Message::SLOT * u64::from(sint);
        // If the page has gone, so has the message that was there.
        let _ = self.shared_memory().write_phys(Gpa(slot + Message::FLAGS), &[Message::PENDING]);
    }
}
