//! What a guest of Hyper-V's is offered, may read and may call.

use crate::msrs::{get, reads, set};
use anyhow::{Result, ensure};
use iced_x86::code_asm::*;
use kvm_bindings::{kvm_cpuid_entry2, kvm_regs};
use kvm_ioctls::VcpuExit;
use std::ops::Range;
use tests::client::{Client, assemble, number};
use tests::hyperv::{self, ENFORCE, SYNIC, SYNIC2, enable, supported};

const KVM_HYPERV_EVENTFD: u64 = 0x4018_aebd;
const GUEST_OS_ID: u32 = 0x4000_0000;
const MSRS: Range<u32> = 0x4000_0000..0x4000_0200;

fn print(who: &str, (result, leaves): (i64, Vec<kvm_cpuid_entry2>)) {
    println!("hv cpuid {who}: {result}, {} leaves", leaves.len());
    for l in leaves {
        println!("hv cpuid {who} {:x} {:x} {:x} {:x} {:x} {:x}", l.function, l.flags, l.eax, l.ebx, l.ecx, l.edx);
    }
}

/// KVM_GET_SUPPORTED_HV_CPUID.
pub fn leaves() -> Result<()> {
    let client = Client::new(8 << 20, false)?;
    print("of the system", supported(&client.kvm, 32));
    print("with little room", supported(&client.kvm, 9));
    print("of a vcpu without apic", supported(&client.vm.create_vcpu(0)?, 10));
    let client = Client::new(8 << 20, false)?;
    client.split_irqchip()?;
    print("of a vcpu", supported(&client.vm.create_vcpu(0)?, 32));
    Ok(())
}

/// What can be enabled on a vCPU, with and without local APIC in the kernel; and eventfds of connections.
pub fn capabilities() -> Result<()> {
    for split in [false, true] {
        let client = Client::new(8 << 20, false)?;
        if split {
            client.split_irqchip()?;
        }
        let vcpu = client.vm.create_vcpu(0)?;
        for (cap, arg) in
            [(SYNIC, 0), (SYNIC, 1), (SYNIC2, 1), (SYNIC2, 0), (ENFORCE, 1), (ENFORCE, 0), (163, 0), (175, 0)]
        {
            println!("hv cap {cap} with {arg}, split {split}: {}", enable(&vcpu, cap, arg));
        }
        for index in [0x4000_0080, 0x4000_0081, 0x4000_0090, 0x4000_00b0] {
            println!("hv msr {index:x}, split {split}: {:x?} {}", get(&vcpu, index)?, set(&vcpu, index, 1)?);
        }
    }
    let client = Client::new(8 << 20, false)?;
    for (id, fd, flags) in [(1, -1, 0), (1 << 24, 0, 0), (1, 0, 0), (1, 0, 1), (1, 0, 2), (1 << 24, 0, 1)] {
        let event: [u32; 6] = [id, fd as u32, flags, 0, 0, 0];
        let result = number(&client.vm, KVM_HYPERV_EVENTFD, event.as_ptr() as u64);
        println!("hv eventfd {id:x} {fd} {flags}: {result}");
    }
    Ok(())
}

/// Which registers a guest of Hyper-V's reads: with all leaves, with some that are enforced, without interrupt controller.
pub fn registers() -> Result<()> {
    reads("hv guest", &[MSRS], |client, vcpu| {
        hyperv::make(client, vcpu, |_| ())?;
        ensure!(enable(vcpu, SYNIC2, 0) == 0);
        Ok(())
    })?;
    reads("hv guest without synic", &[MSRS], |client, vcpu| hyperv::make(client, vcpu, |_| ()))?;
    for bit in [1 << 0 | 1 << 5, 1 << 1 | 1 << 6, 1 << 2 | 1 << 7, 1 << 3 | 1 << 11, 1 << 4 | 1 << 13, 1 << 9 | 1 << 15]
    {
        reads(&format!("hv guest with {bit:x}"), &[MSRS], |client, vcpu| {
            hyperv::make(client, vcpu, |l| {
                if l.function == 0x4000_0003 {
                    (l.eax, l.edx) = (bit, 0);
                }
            })?;
            ensure!(enable(vcpu, SYNIC2, 0) == 0 && enable(vcpu, ENFORCE, 1) == 0);
            Ok(())
        })?;
    }
    Ok(())
}

const CODE: u64 = 0x10_0000;
const INPUT: u64 = 0x20_0000;
/// Beyond the guest's memory.
const NOWHERE: u64 = 0x4000_0000;
const FAST: u64 = 1 << 16;

/// Statuses of hypercalls with input of many kinds.
pub fn calls() -> Result<()> {
    let mut client = Client::new(8 << 20, true)?;
    client.split_irqchip()?;
    client.load_at(
        CODE,
        assemble(|a| {
            a.vmmcall()?;
            a.out(0x80, al)
        })?,
    )?;
    // An interrupt 41, or an address space 41 and flags 1; everybody; a list.
    for (n, word) in [0x41u64, 1, 0, 0, 0x1000, 0x2000].into_iter().enumerate() {
        client.memory()[INPUT as usize + 8 * n..][..8].copy_from_slice(&word.to_le_bytes());
    }
    let mut vcpu = client.vcpu(0)?;
    hyperv::make(&client, &vcpu, |_| ())?;
    ensure!(enable(&vcpu, SYNIC2, 0) == 0 && set(&vcpu, GUEST_OS_ID, 1)?);
    let shapes = [0, 1 << 17, 2 << 17, 1 << 27, 1 << 31, 1 << 32, 2 << 32, 1 << 32 | 1 << 48, 1 << 44, 1 << 60];
    let codes =
        [0, 1, 2, 3, 8, 0xb, 0x13, 0x14, 0x15, 0x5c, 0x5d, 0x69, 0x6a, 0x6b, 0x8000, 0x8001, 0x8041, 0x8042, 0xffff];
    for code in codes {
        for (shape, fast) in shapes.iter().flat_map(|s| [(s, 0), (s, FAST)]) {
            let mut line = String::new();
            for (input, output) in [(INPUT, 0), (INPUT + 4, 1), (NOWHERE, 0), (0x41, 1), (1 << 32, 0), (0, 0)] {
                let regs = kvm_regs {
                    rip: CODE,
                    rflags: 2,
                    rcx: code | shape | fast,
                    rdx: input,
                    r8: output,
                    ..Default::default()
                };
                vcpu.set_regs(&regs)?;
                match vcpu.run()? {
                    VcpuExit::IoOut(0x80, _) => line += &format!(" {:x}", vcpu.get_regs()?.rax),
                    VcpuExit::Hyperv => line += " exit",
                    other => line += &format!(" {other:?}"),
                }
            }
            println!("hv call {:x}:{line}", code | shape | fast);
        }
    }
    Ok(())
}
