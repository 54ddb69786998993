//! The vCPU as the emulator sees it (`emulator::Machine`), and the ways in which emulation ends.

use crate::Ctx;
use crate::cpuid::Feature;
use crate::exits::internal_error;
use crate::mmio::{Faulted, Wanted};
use crate::run::Next;
use crate::user::{Pending, UserExit, suberror};
use arch::cr::{Cr0, Cr4, Efer, Rflags};
use arch::event::vector;
use arch::{CleanBits, SegmentAttr};
use core::sync::atomic::Ordering::Relaxed;
use emulator::{Access, Done, Insn, Machine, Op, Seg, Segment, Shadow, Stop, Table, TableReg};
use host::{Cpu, Errno, Fpu, Host, SharedPage};

/// A race that is lost more often than this is none.
const RACES: u32 = 100;

impl<H: Host> Ctx<'_, H> {
    /// Is the guest in 64-bit mode (not compatibility mode)?
    #[inline]
    pub(crate) fn in_64bit_mode(&self) -> bool {
        let save = self.core.cpu.save();
        save.efer & Efer::LMA.bits() != 0 && save.cs.attrib.has(SegmentAttr::L)
    }

    /// The linear address of the instruction at RIP.
    pub(crate) fn linear_rip(&self) -> u64 {
        let save = self.core.cpu.save();
        if self.in_64bit_mode() { save.rip } else { save.cs.base.wrapping_add(save.rip) & 0xffff_ffff }
    }

    /// Carries out the instruction at RIP.
    pub(crate) fn emulate(&mut self) -> Next {
        self.me.stats.insn_emulation.count();
        self.core.mmio_fragments.clear();
        match emulator::fetch(self, &[]) {
            Ok(insn) => self.step(insn),
            Err(stop) => self.stopped(stop),
        }
    }

    /// The same after a nested page fault; `faulted` is the access.
    pub(crate) fn emulate_access(&mut self, faulted: Option<Faulted>) -> Next {
        self.me.stats.insn_emulation.count();
        self.core.mmio_fragments.clear();
        let place = match self.decode() {
            Ok(place) => place,
            Err(stop) => return self.stopped(stop),
        };
        let Some(insn) = self.core.decoded.get(place).copied() else { return self.unhandleable() };
        if let Some(next) = faulted.and_then(|f| self.plain_move(&insn, f)) {
            return next;
        }
        self.core.mmio_fragments.faulted = faulted.filter(|_| insn.touches_only_its_operand());
        self.step(insn)
    }

    /// One call of the emulator, and what follows from its result.
    pub(crate) fn step(&mut self, insn: Insn) -> Next {
        let mut races = 0;
        loop {
            self.core.mmio_fragments.rewind();
            self.core.mmio_fragments.insn = Some(insn);
            self.core.device_exit = Next::Resume;
            match emulator::emulate(self, &insn) {
                // A descriptor was changed while the instruction marked it. User space is not asked anew for what it has read.
                // What has taken the place of a device, though, is not what the device said, however often it is looked at.
                Ok(done) if done.lost_race && races < RACES && self.races_for_a_descriptor(&insn) => {
                    races += 1;
                    self.vm.host.cond_resched();
                }
                Ok(done) => {
                    self.core.mmio_fragments.forget();
                    return self.completed(done);
                }
                Err(_) if self.has_to_wait() => {
                    if let Some(gpa) = self.core.awaited {
                        self.memory_view().wait_for_page(gpa);
                    }
                    self.vm.host.cond_resched();
                }
                Err(stop) => return self.stopped(stop),
            }
        }
    }

    fn races_for_a_descriptor(&self, insn: &Insn) -> bool {
        self.core.mmio_fragments.answered() && !insn.lock && insn.op != Op::Xchg
    }

    /// A signal ended the wait for memory of the VMM's. An instruction that has done nothing yet begins anew with the next
    /// KVM_RUN; but what user space answered to its reads would be lost, and who moves the vCPU then (KVM_RUN with
    /// `immediate_exit` has to complete it before) would lose it, too. So that one goes on waiting, as on stock, in a way
    /// that the signal, which is still pending, does not end at once.
    fn has_to_wait(&mut self) -> bool {
        let waits = matches!(self.core.host_stop, Some(Next::Fail(Errno::EINTR, _)))
            && self.core.mmio_fragments.answered()
            && !self.vm.host.killed();
        if waits {
            self.core.host_stop = None;
        }
        waits
    }

    fn completed(&mut self, done: Done) -> Next {
        if !done.lost_race {
            self.core.mmio_fragments.insn = None;
            self.core.cpu.set_interrupt_shadow(matches!(done.shadow, Some(Shadow::Sti | Shadow::MovSs)));
        }
        if done.single_step {
            // Of the debugger's, who sees it when the instruction has done all that it does.
            self.core.mmio_fragments.step_ends = self.core.debug.steps();
            // A load of SS holds the guest's own trap off: it comes after the next instruction.
            if !self.core.mmio_fragments.step_ends && done.shadow != Some(Shadow::MovSs) {
                self.single_step();
            }
        }
        self.flush_writes()
    }

    pub(crate) fn stopped(&mut self, stop: Stop) -> Next {
        // What the instruction has read is read again, or was for nothing.
        self.core.device_exit = Next::Resume;
        match stop {
            Stop::NeedUser => match self.core.mmio_fragments.wanted {
                Some(Wanted::Mmio { gpa, len }) => {
                    self.me.stats.mmio_exits.count();
                    self.core.pending = Pending::MmioRead { len };
                    Next::User(UserExit::Mmio { gpa, data: [0; 8], len, write: false })
                }
                Some(Wanted::Port { port, size, count }) => {
                    self.core.pending = Pending::PioIn { size, count };
                    Next::User(UserExit::Io { input: true, size, port, count })
                }
                None => {
                    let why = self.core.host_stop.take();
                    // What has been read once cannot be read again: the instruction goes on as soon as the memory is there.
                    if matches!(why, Some(Next::Fail(Errno::EFAULT, _))) && self.core.mmio_fragments.answered() {
                        self.core.pending = Pending::Memory;
                    } else {
                        self.core.mmio_fragments.give_up();
                    }
                    why.unwrap_or_else(|| self.unhandleable())
                }
            },
            Stop::Fault(e) => {
                self.core.mmio_fragments.give_up();
                self.fault(from_emulator(e))
            }
            Stop::Unhandleable => {
                self.core.mmio_fragments.give_up();
                self.unhandleable()
            }
        }
    }

    /// KVM_INTERNAL_ERROR_EMULATION: flags, instruction bytes, then the exit that led here (KVM API document, section
    /// 5, `emulation_failure`). User code of the guest gets #UD and no more, so that it cannot end its own VM.
    pub(crate) fn unhandleable(&mut self) -> Next {
        self.me.stats.insn_emulation_fail.count();
        if !self.vm.config.exit_on_emulation_error.load(Relaxed) {
            // The guest's kernel finds it, too, if user space goes on.
            let next = self.fault(arch::Exception::UD);
            if self.core.cpu.save().cpl != 0 || self.core.inject.triple_fault {
                return next;
            }
        }
        let info = self.core.cpu.control().exit_info();
        let code_of = info.int_info.error_code().unwrap_or(0).into();
        let info = [info.code & 0xffff_ffff, info.info1, info.info2, info.int_info.0 & 0xffff_ffff, code_of];
        let mut code = [0u8; 15];
        let got = self.fetch_code(self.linear_rip(), &mut code);
        let [a, b, c, d, e] = info;
        if got == 0 {
            return internal_error(self, suberror::EMULATION, [0, a, b, c, d, e]);
        }
        // What could not be fetched is filled up with NOPs, as on stock.
        let mut bytes = [0x90u8; 16];
        bytes[0] = got as u8;
        for (d, s) in bytes.iter_mut().skip(1).zip(code.iter().take(got)) {
            *d = *s;
        }
        let (low, high) = bytes.split_at(8);
        let word = |b: &[u8]| b.iter().rev().fold(0u64, |w, x| w << 8 | u64::from(*x));
        internal_error(self, suberror::EMULATION, [1, word(low), word(high), a, b, c, d, e])
    }
}

impl<H: Host> Machine for Ctx<'_, H> {
    fn gpr(&self, index: u8) -> u64 {
        self.core.cpu.gpr(index)
    }
    fn set_gpr(&mut self, index: u8, value: u64) {
        self.core.cpu.set_gpr(index, value);
    }
    fn rip(&self) -> u64 {
        self.core.cpu.save().rip
    }
    fn set_rip(&mut self, value: u64) {
        self.core.cpu.save_mut(CleanBits::empty()).rip = value;
    }
    fn rflags(&self) -> u64 {
        self.core.cpu.save().rflags
    }
    fn set_rflags(&mut self, value: u64) {
        self.core.cpu.save_mut(CleanBits::empty()).rflags = value | Rflags::FIXED.bits();
    }
    fn segment(&self, seg: Seg) -> Segment {
        let s = self.core.segment(seg as u8);
        Segment { selector: s.selector, base: s.base, limit: s.limit, attr: s.attrib.0 }
    }
    fn set_segment(&mut self, seg: Seg, value: Segment) {
        let Segment { selector, base, limit, attr } = value;
        self.core.set_segment(seg as u8, arch::Segment { selector, attrib: SegmentAttr(attr), limit, base });
    }
    fn table(&self, which: Table) -> TableReg {
        let save = self.core.cpu.save();
        let s = match which {
            Table::Gdt => &save.gdtr,
            Table::Idt => &save.idtr,
        };
        TableReg { base: s.base, limit: s.limit as u16 }
    }
    fn set_table(&mut self, which: Table, value: TableReg) {
        let save = self.core.cpu.save_mut(CleanBits::DT);
        let s = match which {
            Table::Gdt => &mut save.gdtr,
            Table::Idt => &mut save.idtr,
        };
        (s.base, s.limit) = (value.base, value.limit.into());
    }
    fn cpl(&self) -> u8 {
        let save = self.core.cpu.save();
        match () {
            () if save.cr0 & Cr0::PE.bits() == 0 => 0,
            () if save.rflags & Rflags::VM.bits() != 0 => 3,
            () => save.cpl,
        }
    }
    fn cr(&self, n: u8) -> u64 {
        match n {
            0 => self.core.cr0(),
            2 => self.core.cpu.save().cr2,
            3 => self.core.cpu.save().cr3,
            4 => self.core.guest_cr4,
            _ => self.cr8(),
        }
    }
    fn set_cr(&mut self, n: u8, value: u64) -> Result<(), Stop> {
        self.write_cr(n, value).map_err(to_emulator)
    }
    fn dr(&self, n: u8) -> u64 {
        self.read_dr(n)
    }
    fn set_dr(&mut self, n: u8, value: u64) -> Result<(), Stop> {
        self.write_dr(n, value).map_err(to_emulator)
    }
    fn efer(&self) -> u64 {
        self.core.cpu.save().efer & !Efer::SVME.bits()
    }
    fn xcr0(&self) -> u64 {
        if self.core.guest_cr4 & Cr4::OSXSAVE.bits() != 0 { self.core.cpu.extra().xcr0 } else { 0 }
    }
    fn has_la57(&self) -> bool {
        self.core.cpuid.caps().has(Feature::LA57)
    }

    fn fetch(&mut self, linear: u64, buf: &mut [u8]) -> Result<(), Stop> {
        self.fetch_linear(linear, buf)
    }
    fn read(&mut self, linear: u64, buf: &mut [u8], access: Access) -> Result<(), Stop> {
        self.read_linear(linear, buf, access)
    }
    fn write(&mut self, linear: u64, data: &[u8], access: Access) -> Result<(), Stop> {
        self.write_linear(linear, data, access)
    }
    fn check_write(&mut self, linear: u64, len: usize, several: bool, access: Access) -> Result<(), Stop> {
        self.check_linear_write(linear, len, several, access)
    }
    fn cmpxchg(&mut self, linear: u64, size: u8, old: u128, new: u128, access: Access) -> Result<u128, Stop> {
        self.cmpxchg_linear(linear, size, old, new, access)
    }

    fn pio_in(&mut self, port: u16, size: u8, buf: &mut [u8]) -> Result<(), Stop> {
        let count = (buf.len() / usize::from(size.max(1))) as u32;
        let want = Wanted::Port { port, size, count };
        if self.core.mmio_fragments.port_answered == Some(want) {
            self.me.pio_page().cells().read(0, buf);
            return Ok(());
        }
        let mut first = [0; 4];
        if let Some(f) = first.get_mut(..size.into()) {
            if self.vm.device_port_read(port, f) {
                let mut chunks = buf.chunks_mut(size.max(1).into());
                if let Some(c) = chunks.next() {
                    c.copy_from_slice(f.get(..c.len()).unwrap_or(&[]));
                }
                for c in chunks {
                    self.vm.device_port_read(port, c);
                }
                // It cannot be read again, and the memory that this goes to may have to be waited for.
                self.me.pio_page().cells().write(0, buf);
                self.core.mmio_fragments.port_answered = Some(want);
                return Ok(());
            }
        }
        self.core.mmio_fragments.wanted = Some(want);
        Err(Stop::NeedUser)
    }
    fn port_answered(&self, port: u16, size: u8) -> Option<u32> {
        match self.core.mmio_fragments.port_answered {
            Some(Wanted::Port { port: p, size: s, count }) if (p, s) == (port, size) => Some(count),
            _ => None,
        }
    }
    fn pio_out(&mut self, port: u16, data: &[u8]) -> Result<(), Stop> {
        if self.vm.device_port_write(port, data) || self.core.mmio_fragments.post_port(port, data) {
            return Ok(());
        }
        Err(Stop::Unhandleable)
    }

    fn ymm(&mut self, index: u8) -> [u8; 32] {
        self.core.need_fpu();
        self.core.fpu.vector(index)
    }
    fn set_xmm(&mut self, index: u8, value: &[u8; 16]) {
        let mut wide = [0; 32];
        for (d, s) in wide.iter_mut().zip(value) {
            *d = *s;
        }
        self.core.need_fpu();
        self.core.fpu.set_vector(index, &wide, false);
    }
    fn set_ymm(&mut self, index: u8, value: &[u8; 32]) {
        self.core.need_fpu();
        self.core.fpu.set_vector(index, value, true);
    }
    fn x87_control(&mut self) -> u16 {
        self.core.need_fpu();
        self.core.fpu.x87_control()
    }
    fn x87_status(&mut self) -> u16 {
        self.core.need_fpu();
        self.core.fpu.x87_status()
    }
    fn mmx(&mut self, index: u8) -> u64 {
        self.core.need_fpu();
        self.core.fpu.mmx(index)
    }
    fn set_mmx(&mut self, index: u8, value: u64) {
        self.core.need_fpu();
        self.core.fpu.set_mmx(index, value);
    }
    fn invlpg(&mut self, _linear: u64) {
        // One page's guest translations cannot be dropped from here without INVLPGA in the guest's ASID.
        self.core.cpu.flush_tlb();
    }
    fn commit(&mut self) {
        self.core.mmio_fragments.forget();
    }
    fn pause(&self) -> bool {
        self.core.mmio_fragments.has_writes()
            || !matches!(self.core.device_exit, Next::Resume)
            // Each iteration may take an entry, and what finds none left is not recorded.
            || self.me.dirty_ring.as_ref().is_some_and(|ring| ring.soft_full())
    }
}

/// An exception of the emulator's in our form.
pub(crate) fn from_emulator(e: emulator::Exception) -> arch::Exception {
    let payload = matches!(e.vector, vector::PF | vector::DB).then_some(e.payload);
    arch::Exception { vector: e.vector, error_code: e.error_code, payload }
}

/// An exception of ours as the emulator passes it on.
pub(crate) fn to_emulator(e: arch::Exception) -> Stop {
    Stop::Fault(emulator::Exception { vector: e.vector, error_code: e.error_code, payload: e.payload.unwrap_or(0) })
}
