//! The next RIP where the processor does not save it.

use super::run::{ROOT, machine};
use crate::Svm;
use crate::model::hardware::{Bench, hw};
use crate::model::kernel::{Handler, Kernel};
use arch::cr::Efer;
use arch::{CleanBits, HostPa, SegmentAttr, exit::code};
use core::ptr::NonNull;
use host::{Cpu, SEEN_WORDS, SeenCode, VcpuRequests};
use std::boxed::Box;

/// CPUID Fn8000_000A_EDX: next RIP is saved.
const NRIPS: u32 = 1 << 3;
const RIP: u64 = 0x1234;

/// Guest memory: words that lead to an instruction.
struct Words(Box<[u64; SEEN_WORDS]>);

impl Words {
    fn at(&mut self, n: usize) -> NonNull<u64> {
        NonNull::from(&mut self.0[n])
    }

    fn code(&mut self) -> SeenCode {
        let words = std::array::from_fn(|n| (HostPa(self.at(n).as_ptr().expose_provenance() as u64), self.0[n]));
        SeenCode { words, len: 3, code: [0; 15] }
    }
}

/// A guest at [`RIP`] in 64-bit mode that exits with `exit`, and what NEXT_RIP is then.
fn next_rip(cpu: &mut Svm<Kernel>, exit: u64) -> u64 {
    hw().guest = Box::new(move |_, vmcb| vmcb.control.exit_code = exit);
    cpu.enter(&VcpuRequests::new(), &mut Handler::none());
    cpu.control().next_rip
}

fn guest(bench: &Bench, svm: u32) -> Svm<Kernel> {
    let mut cpu = Svm::new(machine(bench, svm), &ROOT).unwrap();
    let save = cpu.save_mut(CleanBits::all());
    (save.rip, save.cr3) = (RIP, 0x1000);
    save.efer |= Efer::LMA.bits();
    save.cs.attrib = SegmentAttr(SegmentAttr::L);
    cpu
}

#[test]
fn an_instruction_that_was_seen_has_a_length_until_a_word_of_its_walk_changes() {
    let b = Bench::new();
    let mut cpu = guest(&b, 0);
    let mut memory = Words(Box::new([1, 2, 3, 4, 5, 6]));
    assert_eq!(next_rip(&mut cpu, code::CPUID), 0);
    cpu.seen(&memory.code());
    assert_eq!(next_rip(&mut cpu, code::CPUID), RIP + 3);
    assert_eq!(next_rip(&mut cpu, code::MSR), RIP + 3);
    let emulated = [code::NPF, code::CR0_READ, code::CR15_WRITE, code::DR0_READ, code::DR15_WRITE, code::CR0_SEL_WRITE];
    for exit in emulated {
        assert_eq!(next_rip(&mut cpu, exit), RIP + 3, "{exit:#x}: it may have to be emulated");
    }
    for exit in [code::INTR, code::IOIO, code::INVALID, code::EXCP0, code::EXCP0 + 14] {
        assert_eq!(next_rip(&mut cpu, exit), 0, "{exit:#x} is no instruction's, or says it itself");
    }
    for n in 0..SEEN_WORDS {
        // SAFETY: our own memory, reached as the switch does.
        unsafe { memory.at(n).write_volatile(99) };
        assert_eq!(next_rip(&mut cpu, code::CPUID), 0, "word {n}");
        // SAFETY: as above.
        unsafe { memory.at(n).write_volatile(n as u64 + 1) };
        assert_eq!(next_rip(&mut cpu, code::CPUID), RIP + 3);
    }
}

#[test]
fn it_is_another_one_at_another_rip_under_another_cr3_and_in_another_mode() {
    let b = Bench::new();
    let mut cpu = guest(&b, 0);
    let mut memory = Words(Box::new([1; SEEN_WORDS]));
    cpu.seen(&memory.code());
    for (rip, cr3) in [(RIP + 1, 0x1000), (RIP, 0x2000), (RIP + 64, 0x1000)] {
        let save = cpu.save_mut(CleanBits::empty());
        (save.rip, save.cr3) = (rip, cr3);
        assert_eq!(next_rip(&mut cpu, code::CPUID), 0);
    }
    let save = cpu.save_mut(CleanBits::empty());
    (save.rip, save.cr3) = (RIP, 0x1000);
    assert_eq!(next_rip(&mut cpu, code::CPUID), RIP + 3);
    cpu.save_mut(CleanBits::SEG).cs.attrib = SegmentAttr(0);
    assert_eq!(next_rip(&mut cpu, code::CPUID), 0, "compatibility mode");
}

#[test]
fn a_flush_forgets_it_but_not_the_guests_own() {
    let b = Bench::new();
    let mut cpu = guest(&b, 0);
    let mut memory = Words(Box::new([1; SEEN_WORDS]));
    let changes: [fn(&mut Svm<Kernel>); 2] = [|cpu| cpu.flush_tlb(), |cpu| cpu.set_root(ROOT.root)];
    for change in changes {
        cpu.seen(&memory.code());
        assert_eq!(next_rip(&mut cpu, code::CPUID), RIP + 3);
        change(&mut cpu);
        assert_eq!(next_rip(&mut cpu, code::CPUID), 0);
    }
    cpu.seen(&memory.code());
    cpu.flush_guest_tlb();
    cpu.save_mut(CleanBits::CRX).cr0 ^= 1 << 16;
    assert_eq!(next_rip(&mut cpu, code::CPUID), RIP + 3);
}

#[test]
fn a_processor_that_saves_it_is_believed() {
    let b = Bench::new();
    let mut cpu = guest(&b, NRIPS);
    let mut memory = Words(Box::new([1; SEEN_WORDS]));
    cpu.seen(&memory.code());
    hw().guest = Box::new(|_, vmcb| (vmcb.control.exit_code, vmcb.control.next_rip) = (code::CPUID, RIP + 9));
    cpu.enter(&VcpuRequests::new(), &mut Handler::none());
    assert_eq!(cpu.control().next_rip, RIP + 9);
}

#[test]
fn two_that_want_the_same_place_get_one_each() {
    let b = Bench::new();
    let mut cpu = guest(&b, 0);
    let mut memory = Words(Box::new([1; SEEN_WORDS]));
    let at = |cpu: &mut Svm<Kernel>, rip| {
        cpu.save_mut(CleanBits::empty()).rip = rip;
        next_rip(cpu, code::CPUID)
    };
    for rip in [RIP, RIP + 64] {
        assert_eq!(at(&mut cpu, rip), 0);
        cpu.seen(&memory.code());
    }
    // A third takes the second's, not the first's.
    assert_eq!([at(&mut cpu, RIP), at(&mut cpu, RIP + 64), at(&mut cpu, RIP + 128)], [RIP + 3, RIP + 67, 0]);
    cpu.seen(&memory.code());
    assert_eq!([at(&mut cpu, RIP), at(&mut cpu, RIP + 64), at(&mut cpu, RIP + 128)], [RIP + 3, 0, RIP + 131]);
}
