//! Guest memory as instructions see it: linear addresses through the guest's page tables, then RAM or a device.

use crate::Ctx;
use crate::quirks::LAPIC_MMIO_HOLE;
use crate::run::Next;
use crate::user::UserExit;
use arch::Gpa;
use arch::cr::{Cr0, Rflags};
use emulator::{Access, Exception, Stop};
use host::{Cpu, Errno, Host, Stop as HostStop};
use mmu::{Kind, Memory, Paging, PhysError};

/// What becomes of an instruction because the VMM's memory behind a guest page cannot be used.
pub(crate) fn fault_outcome(gpa: Gpa, stop: HostStop) -> Next {
    match stop {
        HostStop::Fault | HostStop::ReadOnly => Next::Fail(Errno::EFAULT, UserExit::MemoryFault { gpa: gpa.0 }),
        // The thread has SIGBUS pending, which ends KVM_RUN before the guest is entered: its handler tells the guest of
        // the error (a machine check), or gives it another page. The instruction then begins anew, and so reads again
        // what user space has answered to it before: the handler may send the guest elsewhere, so it cannot be held on to.
        HostStop::Poison => Next::Resume,
        HostStop::Errno(e) => Next::Fail(e, UserExit::Interrupted),
    }
}

/// What an access touches.
enum Place {
    /// The local APIC's page, at this offset.
    Apic(u32),
    /// Memory, or user space's devices.
    Other,
}

impl<'a, H: Host> Ctx<'a, H> {
    /// The guest's paging mode now.
    pub(crate) fn paging(&self) -> Paging {
        let save = self.core.cpu.save();
        Paging {
            cr0: self.core.cr0(),
            cr3: save.cr3,
            cr4: self.core.guest_cr4,
            efer: save.efer,
            cpl: emulator::Machine::cpl(self),
            ac: save.rflags & Rflags::AC.bits() != 0,
            pkru: self.core.cpu.extra().pkru,
            phys_bits: self.core.cpuid.flags().phys_bits,
        }
    }

    /// Translates one linear address. Err: #PF, or the host's own failure.
    fn translate_for(&mut self, linear: u64, kind: Kind, access: Access) -> Result<Gpa, Stop> {
        let paging = self.paging();
        let memory = self.memory_for(access);
        let walked = self.memory_view().walk_in(&memory, &paging, linear, kind);
        drop(memory);
        match walked {
            Ok(t) => Ok(t.gpa),
            Err(mmu::WalkError::Fault { code }) => Err(Stop::Fault(Exception::pf(code, linear))),
            Err(mmu::WalkError::Host { gpa, stop }) => Err(self.host_failed(gpa, stop)),
        }
    }

    /// The same for the data of an instruction.
    fn translate_data(&mut self, linear: u64, kind: Kind, access: Access) -> Result<Gpa, Stop> {
        let known = match kind {
            Kind::Read => self.core.mmio_fragments.faulted_at(linear, false),
            Kind::Write => self.core.mmio_fragments.faulted_at(linear, true),
            _ => None,
        };
        known.map_or_else(|| self.translate_for(linear, kind, access), Ok)
    }

    /// The access cannot be done because of the VMM's memory behind `gpa`: the instruction ends, KVM_RUN fails.
    fn host_failed(&mut self, gpa: Gpa, stop: HostStop) -> Stop {
        self.core.mmio_fragments.wanted = None;
        self.core.awaited = Some(gpa);
        self.core.host_stop = Some(fault_outcome(gpa, stop));
        Stop::NeedUser
    }

    /// Up to 15 bytes of code at a linear address; how many could be read.
    pub(crate) fn fetch_code(&mut self, linear: u64, buf: &mut [u8; 15]) -> usize {
        let paging = self.paging();
        self.memory_view().fetch(&paging, linear, buf)
    }

    pub(crate) fn fetch_linear(&mut self, linear: u64, buf: &mut [u8]) -> Result<(), Stop> {
        let gpa = self.translate_for(linear, Kind::Fetch, Access::Data)?;
        match self.memory_view().guest_memory().read(gpa, buf) {
            Ok(()) => Ok(()),
            // Code in device memory cannot be emulated.
            Err(PhysError::NoSlot(_)) => Err(Stop::Unhandleable),
            Err(PhysError::Host { gpa, stop }) => Err(self.host_failed(gpa, stop)),
        }
    }

    pub(crate) fn read_linear(&mut self, linear: u64, buf: &mut [u8], access: Access) -> Result<(), Stop> {
        let kind = match access {
            Access::Data => Kind::Read,
            Access::Modify | Access::Final => Kind::Write,
            Access::System => Kind::SystemRead,
        };
        let (now, later) = split(linear, buf.len());
        // Both pages have to be accessible before anything is read.
        let first = self.translate_data(linear, kind, access)?;
        let second = match later {
            0 => None,
            _ => Some(self.translate_data(linear.wrapping_add(now as u64), kind, access)?),
        };
        let (a, b) = buf.split_at_mut(now.min(buf.len()));
        self.read_gpa(first, a, access)?;
        second.map_or(Ok(()), |gpa| self.read_gpa(gpa, b, access))
    }

    /// Memory, or the guest's tables on the way to it, for an access of the guest's own, which a signal may interrupt. Not so
    /// what the processor does with its tables for an instruction: it may have changed some of them already.
    fn memory_for(&self, access: Access) -> Memory<'a, H> {
        let view = self.memory_view();
        if matches!(access, Access::System | Access::Final) { view.memory() } else { view.guest_memory() }
    }

    fn read_gpa(&mut self, gpa: Gpa, buf: &mut [u8], access: Access) -> Result<(), Stop> {
        if self.core.mmio_fragments.answer_to(gpa.0, buf.len().min(8)).is_some() {
            // Asked for once, and read once by the device: so it is, whatever is at this address by now.
            return self.read_device(gpa, buf);
        }
        if let Place::Apic(offset) = self.place(gpa) {
            let now = self.vm.host.now_ns();
            if let Some(lapic) = &mut self.core.fast.lapic {
                lapic.mmio_read(offset, buf, now);
            }
            if self.core.trace.set.any() {
                self.trace_apic_page(offset, false, buf, 0);
            }
            self.note_tpr_access(offset, false);
            return Ok(());
        }
        let done = self.memory_for(access).read(gpa, buf);
        match done {
            Ok(()) => Ok(()),
            Err(PhysError::NoSlot(_)) => self.read_device(gpa, buf),
            Err(PhysError::Host { gpa, stop }) => Err(self.host_failed(gpa, stop)),
        }
    }

    /// A device in the kernel or in user space, in pieces of at most 8 bytes, wherever they begin.
    fn read_device(&mut self, gpa: Gpa, buf: &mut [u8]) -> Result<(), Stop> {
        let (mut at, mut rest) = (gpa.0, buf);
        while !rest.is_empty() {
            let len = rest.len().min(8);
            let (piece, later) = rest.split_at_mut(len);
            if !self.core.mmio_fragments.take_answer(at, piece) && !self.device_read(at, piece) {
                self.core.mmio_fragments.want(at, len);
                return Err(Stop::NeedUser);
            }
            at = at.wrapping_add(len as u64);
            rest = later;
        }
        Ok(())
    }

    pub(crate) fn write_linear(&mut self, linear: u64, data: &[u8], access: Access) -> Result<(), Stop> {
        let (now, later) = split(linear, data.len());
        let kind = write_kind(access);
        let first = self.translate_data(linear, kind, access)?;
        let second = match later {
            0 => None,
            _ => Some(self.translate_data(linear.wrapping_add(now as u64), kind, access)?),
        };
        let (a, b) = data.split_at(now.min(data.len()));
        self.write_gpa(first, a, access)?;
        // The first half is written: it may be what the instruction has read, so it cannot begin anew.
        second.map_or(Ok(()), |gpa| self.write_gpa(gpa, b, Access::Final))
    }

    fn write_gpa(&mut self, gpa: Gpa, data: &[u8], access: Access) -> Result<(), Stop> {
        if let Place::Apic(offset) = self.place(gpa) {
            let now = self.vm.host.now_ns();
            if let Some(lapic) = &mut self.core.fast.lapic {
                let isr_max = lapic.isr_max();
                let effect = lapic.mmio_write(offset, data, now);
                if self.core.trace.set.any() {
                    self.trace_apic_page(offset, true, data, isr_max);
                }
                // MOVS may have read TPR before: the end of an interrupt goes first, since nobody else would tell of it.
                if let tells @ Next::User(_) = self.apply_effect(effect) {
                    self.core.device_exit = tells;
                }
                self.note_tpr_access(offset, true);
            }
            return Ok(());
        }
        let done = self.memory_for(access).write(gpa, data);
        match done {
            Ok(()) => Ok(()),
            Err(PhysError::NoSlot(_)) if self.device_write(gpa.0, data) => Ok(()),
            Err(PhysError::NoSlot(_)) if self.core.mmio_fragments.post_answer(gpa.0, data.len()) => Ok(()),
            Err(PhysError::NoSlot(_)) if self.core.mmio_fragments.post(gpa.0, data) => Ok(()),
            Err(PhysError::NoSlot(_)) => Err(Stop::Unhandleable),
            Err(PhysError::Host { gpa, stop }) => Err(self.host_failed(gpa, stop)),
        }
    }

    pub(crate) fn check_linear_write(
        &mut self,
        linear: u64,
        len: usize,
        several: bool,
        access: Access,
    ) -> Result<(), Stop> {
        let (now, later) = split(linear, len);
        let kind = write_kind(access);
        let gpa = self.translate_data(linear, kind, access)?;
        // Memory takes the elements of REP INS together, a device one by one.
        if several && (matches!(self.place(gpa), Place::Apic(_)) || !self.memory_view().is_memory(gpa, true)) {
            return Err(Stop::Unhandleable);
        }
        if later != 0 {
            self.translate_data(linear.wrapping_add(now as u64), kind, access)?;
        }
        Ok(())
    }

    /// LOCK CMPXCHG and its kin. Across a page or on 16 bytes it is done without atomicity, which real processors
    /// forbid software to rely on for device memory and which no guest uses for RAM that faults here.
    pub(crate) fn cmpxchg_linear(
        &mut self,
        linear: u64,
        size: u8,
        old: u128,
        new: u128,
        access: Access,
    ) -> Result<u128, Stop> {
        let bytes = new.to_le_bytes();
        let data = bytes.get(..size.into()).unwrap_or(&bytes);
        if split(linear, size.into()).1 == 0 && size <= 8 {
            let gpa = self.translate_data(linear, write_kind(access), access)?;
            if matches!(self.place(gpa), Place::Other) {
                match self.memory_view().cmpxchg_phys(gpa, size, old as u64, new as u64) {
                    Ok(seen) => return Ok(seen.into()),
                    Err(PhysError::NoSlot(_)) => {}
                    Err(PhysError::Host { gpa, stop }) => return Err(self.host_failed(gpa, stop)),
                }
            }
        }
        self.write_linear(linear, data, access)?;
        Ok(old)
    }

    /// A write that something in the kernel takes.
    #[inline]
    pub(crate) fn device_write(&self, gpa: u64, data: &[u8]) -> bool {
        let done = self.vm.device_mmio_write(gpa, data);
        if done && self.core.trace.set.any() {
            self.trace_mmio(gpa, true, data);
        }
        done
    }

    /// A read that something in the kernel answers.
    #[inline]
    pub(crate) fn device_read(&self, gpa: u64, data: &mut [u8]) -> bool {
        let done = self.vm.device_mmio_read(gpa, data);
        if done && self.core.trace.set.any() {
            self.trace_mmio(gpa, false, data);
        }
        done
    }

    fn place(&self, gpa: Gpa) -> Place {
        match &self.core.fast.lapic {
            Some(l) if gpa.0 & !0xfff == l.base_gpa() => match l.mode() {
                irqchip::Mode::XApic => Place::Apic((gpa.0 & 0xfff) as u32),
                _ if self.vm.config.has_quirk(LAPIC_MMIO_HOLE) => Place::Apic((gpa.0 & 0xfff) as u32),
                _ => Place::Other,
            },
            _ => Place::Other,
        }
    }

    /// Is it in the page of the local APIC?
    pub(crate) fn is_apic(&self, gpa: u64) -> bool {
        matches!(self.place(Gpa(gpa)), Place::Apic(_))
    }

    /// KVM_TRANSLATE: physical address, valid, writable, user.
    pub fn translate(&mut self, linear: u64) -> (u64, bool, bool, bool) {
        let paging = self.paging();
        if !Cr0::from_bits_retain(paging.cr0).contains(Cr0::PG) {
            // As it is, also where the guest could not form it; the last one of all is nowhere.
            return (linear, linear != !0, true, true);
        }
        match self.memory_view().translate(&paging, linear) {
            Some(t) => (t.gpa.0, true, t.writable, t.user),
            None => (!0, false, false, false),
        }
    }
}

/// The permissions that a write needs.
const fn write_kind(access: Access) -> Kind {
    if matches!(access, Access::System) { Kind::SystemWrite } else { Kind::Write }
}

/// How many of `len` bytes lie in the page of `linear`, and how many after it.
fn split(linear: u64, len: usize) -> (usize, usize) {
    let now = (4096 - (linear & 0xfff) as usize).min(len);
    (now, len - now)
}
