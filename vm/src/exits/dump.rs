//! A VMCB in the kernel log, line by line under stock's names, for who sets the parameter `dump_invalid_vmcb`.

use crate::Ctx;
use host::{Cpu, Host};

/// Writes the control area (APM appendix B) and the save area, if that is wanted.
#[cold]
pub fn vmcb<H: Host>(ctx: &Ctx<'_, H>) {
    let host = &ctx.vm.host;
    if !host.dumps_invalid_vmcb() {
        return;
    }
    let (c, s) = (ctx.core.cpu.control(), ctx.core.cpu.save());
    for (name, value) in [
        ("cr_read:", c.intercept_cr_read.into()),
        ("cr_write:", c.intercept_cr_write.into()),
        ("dr_read:", c.intercept_dr_read.into()),
        ("dr_write:", c.intercept_dr_write.into()),
        ("exceptions:", u64::from(c.intercept_exceptions)),
        ("intercepts:", u64::from(c.intercept_3) | u64::from(c.intercept_4) << 32),
        ("iopm_base_pa:", c.iopm_base_pa),
        ("msrpm_base_pa:", c.msrpm_base_pa),
        ("tsc_offset:", c.tsc_offset),
        ("asid:", c.asid.into()),
        ("tlb_ctl:", c.tlb_control.into()),
        ("int_ctl:", c.int_ctl.into()),
        ("int_vector:", c.int_vector.into()),
        ("int_state:", c.int_state),
        ("exit_code:", c.exit_code),
        ("exit_info1:", c.exit_info_1),
        ("exit_info2:", c.exit_info_2),
        ("exit_int_info:", c.exit_int_info.0),
        ("nested_ctl:", c.np_control),
        ("nested_cr3:", c.nested_cr3),
        ("event_inj:", c.event_inj.0),
        ("next_rip:", c.next_rip),
    ] {
        host.dump_field(name, value);
    }
    for (name, segment) in [
        ("es:", &s.es),
        ("cs:", &s.cs),
        ("ss:", &s.ss),
        ("ds:", &s.ds),
        ("fs:", &s.fs),
        ("gs:", &s.gs),
        ("gdtr:", &s.gdtr),
        ("ldtr:", &s.ldtr),
        ("idtr:", &s.idtr),
        ("tr:", &s.tr),
    ] {
        host.dump_segment(name, segment);
    }
    for (name, value) in [
        ("cpl:", s.cpl.into()),
        ("efer:", s.efer),
        ("cr0:", s.cr0),
        ("cr2:", s.cr2),
        ("cr3:", s.cr3),
        ("cr4:", s.cr4),
        ("dr6:", s.dr6),
        ("dr7:", s.dr7),
        ("rip:", s.rip),
        ("rflags:", s.rflags),
        ("rsp:", s.rsp),
        ("rax:", s.rax),
        ("gpat:", s.g_pat),
    ] {
        host.dump_field(name, value);
    }
}
