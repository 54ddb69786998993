//! A flush that was asked for is done by a VMRUN that gets past its checks, or asked for again.

use super::run::{ROOT, last_entry, machine};
use crate::{
    Svm,
    model::{
        hardware::{Bench, hw},
        kernel::{Handler, Kernel, set_rebooting},
    },
};
use arch::{
    CleanBits, Exit,
    exit::code,
    vmcb::tlb_control::{DO_NOTHING, FLUSH_ALL_ASID, FLUSH_ASID},
};
use host::{Cpu, VcpuRequests};
use std::boxed::Box;

const CLEAN: u32 = 1 << 5;
const BY_ASID: u32 = 1 << 6;

/// Ways in which an entry does not become one.
const REFUSED: [u64; 2] = [code::INVALID, 0xffff_ffff];

fn refuse(exit: u64) {
    hw().guest = Box::new(move |_, vmcb| vmcb.control.exit_code = exit);
}

fn accept() {
    hw().guest = Box::new(|_, vmcb| vmcb.control.exit_code = code::HLT);
}

fn enter(cpu: &mut Svm<Kernel>) -> Exit {
    cpu.enter(&VcpuRequests::new(), &mut Handler::none())
}

#[test]
fn a_vmcb_that_is_refused_keeps_its_flush_and_nothing_of_it_is_clean() {
    for exit in REFUSED {
        let b = Bench::new();
        let mut cpu = Svm::new(machine(&b, CLEAN | BY_ASID), &ROOT).unwrap();
        enter(&mut cpu);
        cpu.flush_tlb();
        refuse(exit);
        assert_eq!(enter(&mut cpu), Exit::Invalid);
        assert_eq!(last_entry(), (CleanBits::all(), FLUSH_ASID, 1));
        // Refused again, and again it was not done.
        enter(&mut cpu);
        assert_eq!(last_entry(), (CleanBits::empty(), FLUSH_ASID, 1));
        accept();
        enter(&mut cpu);
        assert_eq!(last_entry(), (CleanBits::empty(), FLUSH_ASID, 1));
        enter(&mut cpu);
        assert_eq!(last_entry(), (CleanBits::all(), DO_NOTHING, 1));
    }
}

#[test]
fn a_generation_whose_flush_was_refused_is_not_handed_out() {
    for exit in REFUSED {
        let b = Bench::new();
        let m = machine(&b, BY_ASID); // ASIDs 1 to 3.
        let [mut one, mut two] = [(); 2].map(|()| Svm::new(m, &ROOT).unwrap());
        refuse(exit);
        enter(&mut one);
        assert_eq!(last_entry(), (CleanBits::empty(), FLUSH_ALL_ASID, 1));
        accept();
        // ASID 2 may have translations from before the wrap.
        enter(&mut two);
        assert_eq!(last_entry(), (CleanBits::empty(), FLUSH_ALL_ASID, 1));
        enter(&mut one);
        assert_eq!(last_entry(), (CleanBits::empty(), DO_NOTHING, 2));
    }
}

#[test]
fn a_vmrun_that_faults_keeps_its_flush() {
    let b = Bench::new();
    let m = machine(&b, BY_ASID);
    let [mut one, mut two] = [(); 2].map(|()| Svm::new(m, &ROOT).unwrap());
    set_rebooting(true);
    hw().svm_off = true;
    enter(&mut one);
    hw().svm_off = false;
    set_rebooting(false);
    enter(&mut two);
    assert_eq!((last_entry().1, last_entry().2), (FLUSH_ALL_ASID, 1), "nobody has opened this generation");
}
