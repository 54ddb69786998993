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

fn main() -> Result<()> {
    check::run(&[
        ("triple-fault", triple_fault),
        ("invalid-state", invalid_state),
        ("emulation-failure", emulation_failure),
        ("hole-is-mmio", hole_is_mmio),
    ])
}
