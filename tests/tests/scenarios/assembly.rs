//! All scenarios once more with the world switch of the module, assembly included, between hypervisor and script.

use sim::arch::exit::code;
use tests::scenario::{Machine, all_through_the_assembly, is_through_the_assembly};

#[test]
fn all_others_through_the_assembly() {
    all_through_the_assembly("all_others_through_the_assembly");
}

#[test]
fn it_is_the_assembly_that_enters() {
    let m = Machine::new();
    m.long(0, &[0x0f, 0x09]); // wbinvd
    m.exit(0, code::WBINVD);
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(m.inside(0, |c| c.core.cpu.vmruns), if is_through_the_assembly() { 2 } else { 0 });
    m.end();
}
