//! The SEV-ES variant: the hardware swaps the registers through the VMSA.

use super::entry::{World, guest_in, guest_out, preserved};
use crate::{SPEC_CTRL_NOT_INTERCEPTED, model::hardware::*, model::kernel::*};
use arch::{Vmcb, Vmsa, Zero, msr::SPEC_CTRL, vmsa::SEV_ES_ENABLE};
use std::{boxed::Box, vec::Vec};

/// A world whose VMCB has SEV-ES on, with a VMSA full of guest values.
pub struct Encrypted {
    pub world: World,
    /// None: a plain guest.
    pub vmsa: Option<Box<Vmsa>>,
}

impl Encrypted {
    pub fn new() -> Self {
        let mut world = World::new();
        let mut vmsa = Box::new(Vmsa::ZERO);
        vmsa.set_gprs(core::array::from_fn(guest_in));
        world.vmcb.control.np_control |= SEV_ES_ENABLE;
        world.vmcb.control.vmsa_pa = (&raw mut *vmsa).expose_provenance() as u64;
        Self { world, vmsa: Some(vmsa) }
    }

    fn gprs(&self) -> [u64; 16] {
        self.vmsa.as_ref().expect("encrypted").gprs()
    }

    fn run(&mut self, flags: u32) -> Vec<Op> {
        self.world.run_with(crate::entry::hsave_es_vcpu_run, flags)
    }
}

#[test]
fn the_registers_go_through_the_vmsa_and_the_hosts_come_out_of_the_host_save_area() {
    let mut e = Encrypted::new();
    let host = hw().system;
    hw().guest = Box::new(|regs, _| {
        assert_eq!(*regs, core::array::from_fn(guest_in));
        *regs = core::array::from_fn(guest_out);
        hw().system = crate::model::system::System::pattern(0xeee);
    });
    let trace = e.run(SPEC_CTRL_NOT_INTERCEPTED);
    assert_eq!(e.gprs(), core::array::from_fn(guest_out));
    assert_eq!(hw().system, host, "segments and system-call registers of the host");
    // The context of the plain variant is not touched.
    assert_eq!(e.world.vcpu.regs, core::array::from_fn(guest_in));
    let Some(Op::Return(regs)) = trace.last() else { panic!("no return: {trace:?}") };
    for n in [0, 1, 2, 6, 7, 8, 9, 10, 11] {
        assert_eq!(regs[n], 0, "register {n} at the first return");
    }
    assert_eq!([3, 5, 12, 13, 14, 15].map(|n: usize| regs[n]), preserved());
}

#[test]
fn the_order_is_that_of_the_plain_variant_without_vmload() {
    let mut e = Encrypted::new();
    set_host_spec_ctrl(0, 1);
    e.world.vcpu.spec_ctrl = 2;
    hw().guest = Box::new(|_, _| {
        hw().msrs.insert(SPEC_CTRL, 3);
    });
    let trace = e.run(SPEC_CTRL_NOT_INTERCEPTED);
    let (ret, before) = trace.split_last().expect("a trace");
    let order = [
        Op::Wrmsr(SPEC_CTRL, 2),
        Op::Piece("entry"),
        Op::Vmrun(e.world.pa()),
        Op::Piece("rsb"),
        Op::Rdmsr(SPEC_CTRL),
        Op::Wrmsr(SPEC_CTRL, 1),
        Op::Piece("untrain"),
    ];
    assert_eq!(before, order);
    assert!(matches!(ret, Op::Return(_)));
    assert_eq!((e.world.vcpu.spec_ctrl, hw().msrs[&SPEC_CTRL]), (3, 1));
}

#[test]
fn a_fault_of_vmrun_is_tolerated_during_a_reboot_only() {
    let mut e = Encrypted::new();
    set_rebooting(true);
    hw().svm_off = true;
    let trace = e.run(0);
    assert_eq!(trace.iter().filter(|o| **o == Op::Fixup).count(), 1);
    assert_eq!(e.world.vcpu.faulted, 1);
    assert_eq!(e.gprs(), core::array::from_fn(guest_in));
    set_rebooting(false);
    assert!(super::entry::is_a_bug(|| {
        e.run(0);
    }));
}

#[test]
fn what_is_not_stored_in_the_host_save_area_does_not_come_back() {
    // The model itself: a register that software forgets is lost, so the tests above can fail.
    let mut e = Encrypted::new();
    e.run(0);
    // SAFETY: the area has the layout of a VMSA from there.
    let stored = unsafe { (*(&raw const e.world.host.save).cast::<Vmsa>()).gprs() };
    let vcpu = (&raw const e.world.vcpu).expose_provenance() as u64;
    assert_eq!([3, 5, 12, 13, 14, 15].map(|n: usize| stored[n]), preserved());
    assert_eq!([stored[7], stored[6]], [vcpu, 0]);
    assert_eq!([1, 2, 8, 9, 10, 11].map(|n: usize| stored[n]), [0; 6], "nothing else is kept there");
    assert_eq!(core::mem::offset_of!(Vmcb, save) + size_of::<Vmsa>(), 4096);
}
