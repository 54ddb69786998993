//! Interrupt controllers in user space, and processors that wait to be started.

use crate::guest::{Chips, Guest, call};
use anyhow::Result;
use iced_x86::{
    IcedError,
    code_asm::{CodeAssembler, al, cr8 as CR8, rax, rbx},
};
use kvm_bindings::{kvm_interrupt, kvm_mp_state};
use kvm_ioctls::VcpuFd;
use std::time::{Duration, Instant};
use vmm_sys_util::signal::register_signal_handler;

const KVM_INTERRUPT: u64 = 0x4004_ae86;

fn interrupt(vcpu: &VcpuFd, irq: u32) -> i32 {
    call(vcpu, KVM_INTERRUPT, &mut kvm_interrupt { irq })
}

fn show(guest: &mut Guest, what: &str) -> Result<()> {
    let (s, e) = (guest.vcpu.get_sregs()?, guest.vcpu.get_vcpu_events()?);
    let run = guest.vcpu.get_kvm_run();
    println!(
        "controllers, {what}: bitmap {:x?} injected {} {} {} cr8 {} run: cr8 {} base {:x} ready {} if {}",
        s.interrupt_bitmap,
        e.interrupt.injected,
        e.interrupt.nr * e.interrupt.injected,
        e.interrupt.soft,
        s.cr8,
        run.cr8,
        run.apic_base,
        run.ready_for_interrupt_injection,
        run.if_flag
    );
    Ok(())
}

fn spin(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut forever = a.create_label();
    a.set_label(&mut forever)?;
    a.jmp(forever)
}

/// The guest raises and lowers its priority.
fn priorities(a: &mut CodeAssembler) -> Result<(), IcedError> {
    for value in [9u64, 9, 12, 3, 3, 0, 1, 0] {
        a.mov(rax, value)?;
        a.mov(CR8, rax)?;
    }
    a.mov(rbx, CR8)
}

/// Without controllers in the kernel, and with the local APIC alone.
pub fn without_controllers() -> Result<()> {
    for chips in [Chips::None, Chips::Split] {
        let mut guest = Guest::new(chips, priorities)?;
        for n in 0..8 {
            let exit = guest.run();
            println!("priorities, {chips:?}, {n}: {exit} {}", guest.shown()?);
            show(&mut guest, &format!("{chips:?} priorities {n}"))?;
            if exit.starts_with("out") {
                break;
            }
        }
        for cr8 in [5, 15, 16, 1 << 32] {
            let mut guest = Guest::new(chips, |a| a.nop())?;
            guest.vcpu.get_kvm_run().cr8 = cr8;
            println!("controllers, {chips:?}, run.cr8 {cr8:x}: {}", guest.settle());
            show(&mut guest, &format!("{chips:?} run.cr8 {cr8:x}"))?;
            guest.vcpu.get_kvm_run().cr8 = cr8;
            println!("controllers, {chips:?}, run.cr8 {cr8:x} and run: {}", guest.run());
            show(&mut guest, &format!("{chips:?} run.cr8 {cr8:x} and run"))?;
        }
    }
    for chips in [Chips::None, Chips::Split, Chips::Kernel] {
        for flag in [0, 0x200] {
            for vectors in [&[0x41][..], &[0x41, 0x52], &[0x41, 0x41], &[255], &[256], &[0]] {
                let name = format!("{chips:?} if {flag:x} interrupts {vectors:x?}");
                let mut guest = Guest::new(chips, |a| a.nop())?;
                guest.regs(|r| r.rflags |= flag)?;
                let errnos: Vec<i32> = vectors.iter().map(|v| interrupt(&guest.vcpu, *v)).collect();
                println!("controllers, {name}: {errnos:?}");
                show(&mut guest, &format!("{name}, queued"))?;
                println!("controllers, {name}: {}", guest.settle());
                show(&mut guest, &format!("{name}, settled"))?;
                if chips == Chips::None {
                    moved(&guest, &name, flag)?;
                }
                for n in 0..2 {
                    let exit = guest.run();
                    let frame = if exit.starts_with("out f6") { guest.frame()? } else { String::new() };
                    println!("controllers, {name}, {n}: {exit} {frame}");
                    show(&mut guest, &format!("{name}, {n}"))?;
                }
            }
        }
    }
    for bits in [1u64 << 5, 1 << 5 | 1 << 3, 0] {
        let mut guest = Guest::new(Chips::None, |a| a.nop())?;
        let mut s = guest.vcpu.get_sregs()?;
        s.interrupt_bitmap = [0, bits, bits, 0];
        guest.regs(|r| r.rflags |= 0x200)?;
        println!("controllers, bitmap {bits:x}: {}", guest.vcpu.set_sregs(&s).err().map_or(0, |e| e.errno()));
        show(&mut guest, &format!("bitmap {bits:x}"))?;
        println!("controllers, bitmap {bits:x}: {} {}", guest.run(), guest.frame()?);
    }
    window()
}

/// What is saved of one vCPU arrives in another.
fn moved(guest: &Guest, name: &str, flag: u64) -> Result<()> {
    let mut other = Guest::new(Chips::None, |a| a.nop())?;
    other.vcpu.set_sregs(&guest.vcpu.get_sregs()?)?;
    other.vcpu.set_vcpu_events(&guest.vcpu.get_vcpu_events()?)?;
    other.regs(|r| r.rflags |= flag)?;
    let exit = other.run();
    let frame = if exit.starts_with("out f6") { other.frame()? } else { String::new() };
    println!("controllers, {name}, moved: {exit} {frame}");
    Ok(())
}

/// `request_interrupt_window`, with and without an interrupt that waits.
fn window() -> Result<()> {
    for chips in [Chips::None, Chips::Split] {
        for waits in [false, true] {
            let mut guest = Guest::new(chips, |a| {
                a.sti()?;
                a.nop()?;
                a.nop()?;
                a.out(0x70, al)?;
                a.cli()
            })?;
            if waits {
                interrupt(&guest.vcpu, 0x41);
            }
            guest.vcpu.get_kvm_run().request_interrupt_window = 1;
            for n in 0..4 {
                let exit = guest.run();
                println!("window, {chips:?}, waits {waits}, {n}: {exit} {}", guest.shown()?);
                show(&mut guest, &format!("window {chips:?} waits {waits} {n}"))?;
            }
        }
    }
    Ok(())
}

extern "C" fn rings(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// KVM_RUN is interrupted after this long.
const PATIENCE: Duration = Duration::from_millis(400);

/// KVM_RUN with a signal after a while: the errno, and whether it had to wait for that.
fn patient(guest: &mut Guest) -> String {
    let usec = PATIENCE.as_micros() as libc::suseconds_t;
    let once = libc::itimerval {
        it_interval: libc::timeval { tv_sec: 0, tv_usec: 0 },
        it_value: libc::timeval { tv_sec: 0, tv_usec: usec },
    };
    let started = Instant::now();
    // SAFETY: the struct is valid, and nothing is returned.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &once, std::ptr::null_mut()) };
    let exit = guest.run();
    let slept = started.elapsed() > PATIENCE / 2;
    while started.elapsed() < PATIENCE + PATIENCE / 4 {
        std::thread::sleep(PATIENCE / 4);
    }
    format!("{exit} slept {slept}")
}

/// An application processor.
pub fn waiting_for_init() -> Result<()> {
    register_signal_handler(libc::SIGALRM, rings)?;
    let state = |guest: &Guest| guest.vcpu.get_mp_state().map_or(99, |s| s.mp_state);
    let mut first = Guest::new(Chips::Split, spin)?;
    let second = first.client.vcpu(1)?;
    let boot = std::mem::replace(&mut first.vcpu, second);
    println!("start: state {}", state(&first));
    for n in 0..2 {
        println!("start, run {n}: {} state {}", patient(&mut first), state(&first));
    }
    println!("start, at once: {} state {}", first.settle(), state(&first));
    for wanted in [0, 1, 2, 3, 4, 5, 9, 10, 1] {
        let errno = first.vcpu.set_mp_state(kvm_mp_state { mp_state: wanted }).err().map_or(0, |e| e.errno());
        println!("start, set state {wanted}: {errno} state {}", state(&first));
    }
    println!("start, run once more: {} state {}", patient(&mut first), state(&first));
    first.vcpu = boot;
    println!("start, boot processor: {} state {}", patient(&mut first), state(&first));
    for wanted in [1, 2] {
        let errno = first.vcpu.set_mp_state(kvm_mp_state { mp_state: wanted }).err().map_or(0, |e| e.errno());
        println!("start, boot processor in {wanted}: {errno} {} state {}", patient(&mut first), state(&first));
    }
    let lone = Guest::new(Chips::None, spin)?;
    for wanted in [0, 1, 2, 3, 4, 9] {
        let errno = lone.vcpu.set_mp_state(kvm_mp_state { mp_state: wanted }).err().map_or(0, |e| e.errno());
        println!("start, without local APIC, set state {wanted}: {errno} state {}", state(&lone));
    }
    Ok(())
}
