//! Ends that a guest can bring upon itself: user space is told as documented, and the host goes on.

use anyhow::{Result, bail, ensure};
use iced_x86::code_asm::*;
use kvm_bindings::KVM_INTERNAL_ERROR_EMULATION;
use kvm_ioctls::VcpuExit;
use tests::check;
use tests::client::{Client, assemble};

fn client(f: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> Result<Client> {
    let mut client = Client::new(8 << 20, true)?;
    client.split_irqchip()?;
    client.load(assemble(f)?)?;
    Ok(client)
}

fn triple_fault() -> Result<()> {
    // No IDT: the first exception becomes a shutdown.
    let client = client(|a| a.ud2())?;
    let mut vcpu = client.vcpu(0)?;
    match vcpu.run()? {
        VcpuExit::Shutdown => Ok(()),
        other => bail!("{other:?}"),
    }
}

fn invalid_state() -> Result<()> {
    let client = client(|a| a.nop())?;
    let mut vcpu = client.vcpu(0)?;
    // Long mode active without protection: no processor takes that (APM 15.5.1), but KVM_SET_SREGS cannot know CS.
    let mut s = vcpu.get_sregs()?;
    s.cs.l = 1;
    s.cs.db = 1;
    vcpu.set_sregs(&s)?;
    match vcpu.run()? {
        VcpuExit::FailEntry(reason, _) => {
            ensure!(reason == u64::MAX || reason == u64::from(u32::MAX), "reason {reason:#x}");
            Ok(())
        }
        other => bail!("{other:?}"),
    }
}

fn emulation_failure() -> Result<()> {
    // An instruction that nobody emulates, on memory that is not there.
    let client = client(|a| {
        a.mov(rsi, 0x8000_0000u64)?;
        a.vpaddd(xmm0, xmm0, xmmword_ptr(rsi))?;
        a.hlt()
    })?;
    let mut vcpu = client.vcpu(0)?;
    let mut s = vcpu.get_sregs()?;
    s.cr4 |= 1 << 18;
    vcpu.set_sregs(&s)?;
    let mut x = vcpu.get_xcrs()?;
    x.nr_xcrs = 1;
    x.xcrs[0].value = 7;
    vcpu.set_xcrs(&x)?;
    match vcpu.run()? {
        VcpuExit::InternalError => {}
        other => bail!("{other:?}"),
    }
    // SAFETY: the exit reason says which member of the union is valid.
    let (suberror, ndata) = unsafe {
        let e = vcpu.get_kvm_run().__bindgen_anon_1.internal;
        (e.suberror, e.ndata)
    };
    ensure!(suberror == KVM_INTERNAL_ERROR_EMULATION, "suberror {suberror}");
    ensure!(ndata > 0, "no data");
    Ok(())
}

fn hole_is_mmio() -> Result<()> {
    let client = client(|a| {
        a.mov(rsi, 0x9000_0000u64)?;
        a.mov(al, byte_ptr(rsi))?;
        a.hlt()
    })?;
    let mut vcpu = client.vcpu(0)?;
    match vcpu.run()? {
        VcpuExit::MmioRead(0x9000_0000, data) if data.len() == 1 => Ok(()),
        other => bail!("{other:?}"),
    }
}

/// A store that the guest rewrites while it loops over it: each time what is there is done.
fn a_store_that_changes() -> Result<()> {
    const EVERY: u32 = 13;
    let client = client(|a| {
        let (mut store, mut stay) = (a.create_label(), a.create_label());
        a.mov(rsi, 0x9000_0000u64)?;
        a.mov(eax, 1)?;
        a.mov(ebx, 2)?;
        a.lea(rdi, byte_ptr(store))?;
        a.mov(ecx, 0)?;
        a.set_label(&mut store)?;
        a.mov(dword_ptr(rsi), eax)?;
        a.inc(ecx)?;
        a.cmp(ecx, EVERY)?;
        a.jne(stay)?;
        a.mov(ecx, 0)?;
        // The register is in bits 5:3 of the second byte: EAX and EBX take turns.
        a.xor(byte_ptr(rdi + 1), 3 << 3)?;
        a.set_label(&mut stay)?;
        a.jmp(store)
    })?;
    let mut vcpu = client.vcpu(0)?;
    for n in 0..10 * EVERY {
        let expected = 1 + n / EVERY % 2;
        match vcpu.run()? {
            VcpuExit::MmioWrite(0x9000_0000, data) if data == expected.to_le_bytes() => {}
            other => bail!("store {n}: {other:?}"),
        }
    }
    Ok(())
}

/// MMX registers to a device and back, with what that makes of the x87 state.
fn mmx_reaches_devices() -> Result<()> {
    const DEVICE: u64 = 0x9000_0000;
    const SENT: u64 = 0x0123_4567_89ab_cdef;
    const ANSWER: u64 = 0xfedc_ba98_7654_3210;
    let client = client(|a| {
        a.mov(rax, SENT)?;
        a.fld1()?; // TOP is 7 now, and MM2 not where it will be
        a.mov(rsi, DEVICE)?;
        a.movq(mm2, rax)?;
        a.fstp(st0)?; // TOP is 1
        a.movq(qword_ptr(rsi), mm2)?;
        a.fld1()?; // TOP is 7 again: all are taken, an overflow that nobody wants to hear of
        a.movq(mm5, qword_ptr(rsi + 8))?;
        a.movq(rax, mm5)?;
        a.mov(qword_ptr(rsi), rax)
    })?;
    let mut vcpu = client.vcpu(0)?;
    match vcpu.run()? {
        VcpuExit::MmioWrite(DEVICE, data) if data == SENT.to_le_bytes() => {}
        other => bail!("{other:?}"),
    }
    match vcpu.run()? {
        VcpuExit::MmioRead(at, data) if at == DEVICE + 8 && data.len() == 8 => {
            data.copy_from_slice(&ANSWER.to_le_bytes())
        }
        other => bail!("{other:?}"),
    }
    match vcpu.run()? {
        VcpuExit::MmioWrite(DEVICE, data) if data == ANSWER.to_le_bytes() => {}
        other => bail!("{other:?}"),
    }
    let fpu = vcpu.get_fpu()?;
    ensure!((fpu.fsw >> 11 & 7, fpu.ftwx) == (0, 0xff), "TOP {} tags {:#x}", fpu.fsw >> 11 & 7, fpu.ftwx);
    // The bits above are ones on a processor, but not in QEMU.
    ensure!(fpu.fpr[5][..8] == ANSWER.to_le_bytes(), "{:x?}", fpu.fpr[5]);
    Ok(())
}

/// Puts `value` into a vector register that nobody preserves, calls nothing, and returns what another one held.
fn vectors(value: u64) -> u64 {
    let held: u64;
    // SAFETY: moves between registers that are declared.
    unsafe {
        std::arch::asm!("movq {held}, xmm3", "movq xmm3, {value}", "movq xmm4, {value}",
            held = out(reg) held, value = in(reg) value, out("xmm3") _, out("xmm4") _, options(nomem, nostack));
    }
    held
}

/// Vector registers and CR0 of a guest that seldom uses its FPU, then always, then seldom again; the VMM overwrites its own
/// between any two runs.
fn fpu_is_the_guests_own() -> Result<()> {
    const SECRET: u64 = 0x0123_4567_89ab_cdef;
    const GOOD: u16 = 0xf4;
    const BAD: u16 = 0xf5;
    let client = client(|a| {
        let (mut round, mut skip, mut wrong) = (a.create_label(), a.create_label(), a.create_label());
        a.mov(rbx, SECRET)?;
        a.movq(xmm3, rbx)?;
        a.mov(r12, 400u64)?;
        a.set_label(&mut round)?;
        a.mov(dx, 0x3f0u32)?;
        a.out(dx, al)?;
        a.mov(rax, cr0)?;
        a.cmp(eax, 0x8005_0033u32 as i32)?;
        a.jne(wrong)?;
        // Every 16th round, and all where bit 7 of the count is set.
        a.mov(rcx, r12)?;
        a.mov(r8, 0x80u64)?;
        a.and(rcx, r8)?;
        a.cmp(rcx, 0x80)?;
        let mut use_it = a.create_label();
        a.je(use_it)?;
        a.test(r12b, 15)?;
        a.jnz(skip)?;
        a.set_label(&mut use_it)?;
        a.movq(rax, xmm3)?;
        a.cmp(rax, rbx)?;
        a.jne(wrong)?;
        a.add(rbx, 1)?;
        a.movq(xmm3, rbx)?;
        a.set_label(&mut skip)?;
        // CLTS and TS of its own: #NM would be a triple fault here.
        a.mov(rax, cr0)?;
        a.or(eax, 8)?;
        a.mov(cr0, rax)?;
        a.smsw(ecx)?;
        a.test(ecx, 8)?;
        a.jz(wrong)?;
        a.clts()?;
        a.sub(r12, 1)?;
        a.jnz(round)?;
        a.mov(dx, u32::from(GOOD))?;
        a.out(dx, al)?;
        a.set_label(&mut wrong)?;
        a.mov(dx, u32::from(BAD))?;
        a.out(dx, al)
    })?;
    let mut vcpu = client.vcpu(0)?;
    let mut n = 0u64;
    loop {
        vectors(!n);
        let port = match vcpu.run()? {
            VcpuExit::IoOut(port, _) => port,
            other => bail!("{other:?}"),
        };
        let held = vectors(0);
        ensure!(held & !0xffff != SECRET & !0xffff, "the guest's register is in the VMM's");
        match port {
            GOOD => break,
            BAD => bail!("round {n}: the guest saw another register, or another CR0"),
            _ => n += 1,
        }
    }
    ensure!(n == 400, "{n} rounds");
    let fpu = vcpu.get_fpu()?;
    let kept = fpu.xmm[3].iter().take(8).rev().fold(0u64, |w, b| w << 8 | u64::from(*b));
    ensure!(kept >> 16 == SECRET >> 16 && kept > SECRET, "KVM_GET_FPU: {kept:#x}");
    Ok(())
}

/// What stores, brings back and works on vector registers, each as the first such instruction of a KVM_RUN, long after the
/// state was last used: XSAVE, XRSTOR and SHA256MSG1 as well.
fn fpu_is_the_guests_own_however_it_is_used() -> Result<()> {
    const SECRET: u64 = 0x0123_4567_89ab_cdef;
    const OTHER: u64 = 0x1357_9bdf_0246_8ace;
    const ROUNDS: u64 = 200;
    const AREA: u64 = 0x20_0000;
    const GOOD: u16 = 0xf4;
    const BAD: u16 = 0xf5;
    const SAVED: u64 = AREA + 160 + 3 * 16;
    let client = client(|a| {
        let mut wrong = a.create_label();
        // OSXSAVE, and x87, SSE.
        a.mov(rax, cr4)?;
        a.or(eax, 1 << 18)?;
        a.mov(cr4, rax)?;
        a.mov(ecx, 0)?;
        a.mov(eax, 3)?;
        a.mov(edx, 0)?;
        a.xsetbv()?;
        a.mov(rbx, SECRET)?;
        a.movq(xmm3, rbx)?;
        a.pxor(xmm4, xmm4)?;
        let rest = |a: &mut CodeAssembler| {
            let mut round = a.create_label();
            a.mov(r12, ROUNDS)?;
            a.set_label(&mut round)?;
            a.mov(dx, 0x3f0u32)?;
            a.out(dx, al)?;
            a.sub(r12, 1)?;
            a.jnz(round)?;
            a.mov(eax, 3)?;
            a.mov(edx, 0)
        };
        rest(a)?;
        a.mov(rsi, AREA)?;
        a.xsave(ptr(rsi))?;
        a.mov(rcx, SAVED)?;
        a.cmp(qword_ptr(rcx), rbx)?;
        a.jne(wrong)?;
        a.mov(rbx, OTHER)?;
        a.mov(qword_ptr(rcx), rbx)?;
        rest(a)?;
        a.xrstor(ptr(rsi))?;
        a.movq(rax, xmm3)?;
        a.cmp(rax, rbx)?;
        a.jne(wrong)?;
        // With zeros in the other operand the low word stays, whatever SHA makes of the rest.
        rest(a)?;
        a.sha256msg2(xmm3, xmm4)?;
        a.movq(rax, xmm3)?;
        a.cmp(rax, rbx)?;
        a.jne(wrong)?;
        a.mov(dx, u32::from(GOOD))?;
        a.out(dx, al)?;
        a.set_label(&mut wrong)?;
        a.mov(dx, u32::from(BAD))?;
        a.out(dx, al)
    })?;
    let mut vcpu = client.vcpu(0)?;
    vcpu.set_cpuid2(&client.kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)?)?;
    for n in 0.. {
        vectors(!n);
        match vcpu.run()? {
            VcpuExit::IoOut(GOOD, _) => return Ok(()),
            VcpuExit::IoOut(BAD, _) => bail!("after {n} rounds the guest saw another register"),
            VcpuExit::IoOut(..) if n < 3 * ROUNDS => {}
            other => bail!("{other:?}"),
        }
    }
    Ok(())
}

fn main() -> Result<()> {
    check::run(&[
        ("fpu-is-the-guests-own", fpu_is_the_guests_own),
        ("fpu-is-the-guests-own-however-it-is-used", fpu_is_the_guests_own_however_it_is_used),
        ("triple-fault", triple_fault),
        ("invalid-state", invalid_state),
        ("emulation-failure", emulation_failure),
        ("hole-is-mmio", hole_is_mmio),
        ("a-store-that-changes", a_store_that_changes),
        ("mmx-reaches-devices", mmx_reaches_devices),
    ])
}
