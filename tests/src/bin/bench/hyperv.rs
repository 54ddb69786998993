//! What a guest of Hyper-V's does often: it reads the time, sets a timer, sends an interrupt, has others flush.

use crate::guest::{Loop, VECTOR, wrmsr, x2apic};
use anyhow::{Result, ensure};
use iced_x86::{IcedError, code_asm::*};
use kvm_ioctls::VcpuFd;
use tests::client::Client;
use tests::hyperv::{self, SYNIC2, enable};

const GUEST_OS_ID: u32 = 0x4000_0000;
const TIME_REF_COUNT: u32 = 0x4000_0020;
const REFERENCE_TSC: u32 = 0x4000_0021;
const STIMER0_CONFIG: u32 = 0x4000_00b0;
const STIMER0_COUNT: u32 = 0x4000_00b1;
/// Switched on by its count, and then an interrupt with [`VECTOR`].
const DIRECT: u64 = 8 | 1 << 12 | (VECTOR as u64) << 4;
/// Where the page is that says how the TSC counts.
const TIME_PAGE: u64 = 0x30_0000;
/// Input values: a flush of all spaces, and an interrupt, both with their input in registers.
const FLUSH: u64 = 2 | 1 << 16;
const SEND_IPI: u64 = 0xb | 1 << 16;
/// Beside the one that asks.
const OTHERS: u64 = 7;

/// Loops by name.
pub fn all() -> [(&'static str, Loop); 6] {
    let guest = |body| Loop { dress, setup, ..Loop::new(body) };
    [
        (
            "hv-time-page",
            guest(|a| {
                // What the guest does with it, but for a look whether the page has changed meanwhile.
                a.mov(rbx, TIME_PAGE)?;
                a.mov(esi, dword_ptr(rbx))?;
                a.rdtsc()?;
                a.shl(rdx, 32)?;
                a.or(rax, rdx)?;
                a.mul(qword_ptr(rbx + 8))?;
                a.add(rdx, qword_ptr(rbx + 16))
            }),
        ),
        (
            "hv-time-msr",
            guest(|a| {
                a.mov(ecx, TIME_REF_COUNT)?;
                a.rdmsr()
            }),
        ),
        // A time that does not come, and one that has passed when it is set.
        ("hv-stimer-set", guest(|a| wrmsr(a, STIMER0_COUNT, 1 << 56))),
        ("hv-stimer-taken", guest(|a| wrmsr(a, STIMER0_COUNT, 1))),
        ("hv-ipi", guest(|a| call(a, SEND_IPI, VECTOR.into(), 1))),
        // Of eight, of which seven are not in the guest.
        ("hv-flush-8", Loop { prepare: eight, ..guest(|a| call(a, FLUSH, 0, 1)) }),
    ]
}

fn call(a: &mut CodeAssembler, value: u64, input: u64, output: u64) -> Result<(), IcedError> {
    a.mov(rcx, value)?;
    a.mov(rdx, input)?;
    a.mov(r8, output)?;
    a.vmmcall()
}

fn dress(client: &Client, vcpu: &VcpuFd) -> Result<()> {
    hyperv::make(client, vcpu, |_| ())?;
    ensure!(enable(vcpu, SYNIC2, 0) == 0, "KVM_CAP_HYPERV_SYNIC2");
    Ok(())
}

fn setup(a: &mut CodeAssembler) -> Result<(), IcedError> {
    x2apic(a)?;
    wrmsr(a, GUEST_OS_ID, 1)?;
    wrmsr(a, REFERENCE_TSC, TIME_PAGE | 1)?;
    wrmsr(a, STIMER0_CONFIG, DIRECT)?;
    a.sti()
}

fn eight(client: &mut Client) -> Result<()> {
    client.split_irqchip()?;
    for id in 1..=OTHERS {
        client.vm.create_vcpu(id)?;
    }
    Ok(())
}
