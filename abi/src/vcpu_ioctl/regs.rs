//! General and system registers (KVM API document 4.11 to 4.15, 4.134).

use crate::codec::{get, put};
use crate::uapi::*;
use arch::cr::{Cr0, Cr4, Efer};
use arch::{Segment, SegmentAttr};
use host::{Errno, Host};
use vm::{Ctx, Regs, Sregs};

/// KVM_GET_REGS.
pub fn get_regs<H: Host>(ctx: &Ctx<'_, H>) -> kvm_regs {
    let Regs { gpr: [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15], rip, rflags } =
        ctx.get_regs();
    kvm_regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags }
}

/// KVM_SET_REGS.
pub fn set_regs<H: Host>(ctx: &mut Ctx<'_, H>, r: &kvm_regs) -> Result<(), Errno> {
    let gpr =
        [r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15];
    ctx.set_regs(&Regs { gpr, rip: r.rip, rflags: r.rflags });
    Ok(())
}

/// A segment register for user space. The VMCB does not keep all that user space may hand to another processor's
/// KVM, so G follows the limit, and a present data segment is accessed, as on stock.
fn segment(s: Segment, data: bool) -> kvm_segment {
    let has = |bit| u8::from(s.attrib.has(bit));
    let present = has(SegmentAttr::P);
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: s.attrib.kind() | u8::from(data && present != 0),
        present,
        dpl: s.attrib.dpl(),
        db: has(SegmentAttr::DB),
        s: has(SegmentAttr::S),
        l: has(SegmentAttr::L),
        g: (s.limit > 0xf_ffff).into(),
        avl: has(SegmentAttr::AVL),
        unusable: 1 - present,
        padding: 0,
    }
}

fn from_segment(s: &kvm_segment) -> Segment {
    let present = if s.unusable == 0 { s.present } else { 0 };
    let attrib = SegmentAttr::new(s.type_, s.s, s.dpl, present, s.avl, s.l, s.db, s.g);
    Segment { selector: s.selector, attrib, limit: s.limit, base: s.base }
}

fn table((base, limit): (u64, u16)) -> kvm_dtable {
    kvm_dtable { base, limit, padding: [0; 3] }
}

/// KVM_GET_SREGS.
pub fn get_sregs<H: Host>(ctx: &mut Ctx<'_, H>) -> kvm_sregs {
    let s = ctx.get_sregs();
    to_sregs(&s)
}

fn to_sregs(s: &Sregs) -> kvm_sregs {
    let [es, cs, ss, ds, fs, gs] = s.seg;
    let mut tr = segment(s.tr, false);
    // A task register is always busy.
    tr.type_ |= 2;
    let mut interrupt_bitmap = [0; 4];
    if let Some(v) = s.interrupt {
        // INDEX: a vector has 8 bits, so this is below 4.
        if let Some(word) = interrupt_bitmap.get_mut(usize::from(v / 64)) {
            *word = 1 << (v % 64);
        }
    }
    kvm_sregs {
        cs: segment(cs, false),
        ds: segment(ds, true),
        es: segment(es, true),
        fs: segment(fs, true),
        gs: segment(gs, true),
        // Its privilege level is the CPL already.
        ss: segment(ss, false),
        tr,
        ldt: segment(s.ldtr, false),
        gdt: table(s.gdt),
        idt: table(s.idt),
        cr0: s.cr0,
        cr2: s.cr2,
        cr3: s.cr3,
        cr4: s.cr4,
        cr8: s.cr8,
        efer: s.efer,
        apic_base: s.apic_base,
        interrupt_bitmap,
    }
}

/// KVM_GET_SREGS2.
pub fn get_sregs2<H: Host>(ctx: &mut Ctx<'_, H>) -> kvm_sregs2 {
    let s = ctx.get_sregs();
    let kvm_sregs { cs, ds, es, fs, gs, ss, tr, ldt, gdt, idt, cr0, cr2, cr3, cr4, cr8, efer, apic_base, .. } =
        to_sregs(&s);
    let pdptrs = ctx.pdptrs();
    let flags = if pdptrs.is_some() { KVM_SREGS2_FLAGS_PDPTRS_VALID } else { 0 };
    let pdptrs = pdptrs.unwrap_or([0; 4]);
    kvm_sregs2 { cs, ds, es, fs, gs, ss, tr, ldt, gdt, idt, cr0, cr2, cr3, cr4, cr8, efer, apic_base, flags, pdptrs }
}

/// KVM_SET_SREGS. Errors: EINVAL (registers that no processor could hold).
pub fn set_sregs<H: Host>(ctx: &mut Ctx<'_, H>, s: &kvm_sregs) -> Result<(), Errno> {
    let words = s.interrupt_bitmap.iter().zip(0u32..);
    let mut pending = words.filter(|(w, _)| **w != 0).map(|(w, i)| (i * 64 + w.trailing_zeros()) as u8);
    let sregs = Sregs {
        seg: [s.es, s.cs, s.ss, s.ds, s.fs, s.gs].map(|s| from_segment(&s)),
        tr: from_segment(&s.tr),
        ldtr: from_segment(&s.ldt),
        gdt: (s.gdt.base, s.gdt.limit),
        idt: (s.idt.base, s.idt.limit),
        cr0: s.cr0,
        cr2: s.cr2,
        cr3: s.cr3,
        cr4: s.cr4,
        cr8: s.cr8,
        efer: s.efer,
        apic_base: s.apic_base,
        interrupt: pending.next(),
    };
    ctx.set_sregs(&sregs)
}

/// KVM_SET_SREGS2. Errors: EINVAL (as KVM_SET_SREGS; unknown flags; PDPTEs outside of PAE paging). The PDPTEs
/// themselves are not taken: with nested paging the processor loads them from memory (APM 15.25.10).
pub fn set_sregs2<H: Host>(ctx: &mut Ctx<'_, H>, s: &kvm_sregs2) -> Result<(), Errno> {
    let pae = s.cr0 & Cr0::PG.bits() != 0 && s.cr4 & Cr4::PAE.bits() != 0 && s.efer & Efer::LMA.bits() == 0;
    if s.flags & !KVM_SREGS2_FLAGS_PDPTRS_VALID != 0 || s.flags & KVM_SREGS2_FLAGS_PDPTRS_VALID != 0 && !pae {
        return Err(Errno::EINVAL);
    }
    let &kvm_sregs2 { cs, ds, es, fs, gs, ss, tr, ldt, gdt, idt, cr0, cr2, cr3, cr4, cr8, efer, apic_base, .. } = s;
    let interrupt_bitmap = [0; 4];
    let old = kvm_sregs {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr,
        ldt,
        gdt,
        idt,
        cr0,
        cr2,
        cr3,
        cr4,
        cr8,
        efer,
        apic_base,
        interrupt_bitmap,
    };
    set_sregs(ctx, &old)
}

/// KVM_TRANSLATE.
pub fn translate<H: Host>(ctx: &mut Ctx<'_, H>, arg: u64) -> Result<(), Errno> {
    let mut t: kvm_translation = get(&ctx.vm.host, arg)?;
    let (physical, valid, _, _) = ctx.translate(t.linear_address);
    t.physical_address = physical;
    t.valid = valid.into();
    // As on stock, the permissions are not reported.
    t.writeable = 1;
    t.usermode = 0;
    put(&ctx.vm.host, arg, &t)
}
