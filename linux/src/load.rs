//! Load and unload of the vendor module: everything that is there once per machine.
//!
//! Each step is a value whose drop undoes it, so that a failure half way leaves nothing behind.

use crate::{errno::check, errno::status, log, platform::Kernel, shim};
use alloc::boxed::Box;
use core::mem::forget;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicPtr, Ordering::*};
use host::{Errno, try_box};
use switch::CpuData;

type Machine = switch::Machine<Kernel>;

static MACHINE: AtomicPtr<Machine> = AtomicPtr::new(null_mut());

/// What all vCPUs share; None while no vendor module is loaded.
#[inline]
pub fn machine() -> Option<&'static Machine> {
    // SAFETY: it is freed when the vendor module goes, which waits for every file, and so for every vCPU.
    unsafe { MACHINE.load(Acquire).as_ref() }
}

/// The shared state of the world switch and the host save area of each CPU.
struct Prepared;

impl Prepared {
    fn new() -> Result<Self, Errno> {
        if shim::hsave_memory_is_encrypted() {
            log::err("the host's memory is encrypted (mem_encrypt=on), which hsave cannot do yet");
            return Err(Errno::EOPNOTSUPP);
        }
        if shim::hsave_snp_is_on() {
            log::err("SEV-SNP is on (the host's firmware setting), which hsave cannot live with yet");
            return Err(Errno::EOPNOTSUPP);
        }
        let machine = Machine::new().map_err(|why| {
            log::err(why.reason());
            why.errno()
        })?;
        MACHINE.store(Box::into_raw(try_box(|| machine)?.into_inner()).cast(), Release);
        let this = Self;
        each_cpu(|cpu| {
            // SAFETY: no CPU is enabled yet, so nobody uses the data.
            unsafe { Machine::prepare_cpu(cpu) }
        })?;
        Ok(this)
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        let _ = each_cpu(|cpu| {
            // SAFETY: no CPU is enabled any more.
            unsafe { Machine::release_cpu(cpu) };
            Ok(())
        });
        let machine = MACHINE.swap(null_mut(), AcqRel);
        // SAFETY: it came from a box of an array of one, and no vCPU is left to refer to it.
        drop(unsafe { Box::from_raw(machine.cast::<[Machine; 1]>()) });
    }
}

/// All CPUs that can ever come.
fn each_cpu(mut f: impl FnMut(NonNull<CpuData>) -> Result<(), Errno>) -> Result<(), Errno> {
    let mut cpu = shim::hsave_next_cpu(-1);
    while shim::hsave_cpu_exists(cpu) {
        // SAFETY: a possible CPU; per-CPU data is never null.
        f(unsafe { NonNull::new_unchecked(shim::hsave_cpu_data_of(cpu)) })?;
        cpu = shim::hsave_next_cpu(cpu as i32);
    }
    Ok(())
}

macro_rules! step {
    ($(#[$doc:meta])* $name:ident, $start:path, $stop:path) => {
        $(#[$doc])*
        struct $name;

        impl $name {
            fn start() -> Result<Self, Errno> {
                check($start()).map(|_| Self)
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                $stop();
            }
        }
    };
}
step!(
    /// Watches the host's clock.
    Clock, shim::hsave_clock_start, shim::hsave_clock_stop
);
step!(
    /// Brings pages in beside the vCPUs that wait for them.
    PageIns, shim::hsave_page_ins_start, shim::hsave_page_ins_stop
);
step!(
    /// SVM is on, on all CPUs.
    Cpus, shim::hsave_cpus_start, shim::hsave_cpus_stop
);
step!(
    /// /dev/kvm is there.
    Device, shim::hsave_device_register, shim::hsave_device_unregister
);

fn load() -> Result<(), Errno> {
    let prepared = Prepared::new()?;
    let clock = Clock::start()?;
    let page_ins = PageIns::start()?;
    let cpus = Cpus::start().inspect_err(|&e| {
        log::err(if e == Errno::EBUSY { "SVM is in use by somebody else" } else { "cannot switch SVM on" });
    })?;
    let device = Device::start().inspect_err(|_| log::err("cannot register /dev/kvm"))?;
    log::info("hsave: virtual machines with SVM and nested paging");
    forget((prepared, clock, page_ins, cpus, device));
    Ok(())
}

/// The vendor module loads. Task context.
#[unsafe(no_mangle)]
extern "C" fn hsave_load() -> i32 {
    if machine().is_some() {
        return status(Err(Errno::EEXIST));
    }
    status(load())
}

/// The vendor module unloads: no file is open.
#[unsafe(no_mangle)]
extern "C" fn hsave_unload() {
    shim::hsave_notifiers_settle();
    // Dropped in this order, the reverse of `load`.
    drop(Device);
    drop(Cpus);
    drop(PageIns);
    drop(Clock);
    drop(Prepared);
}

/// This CPU comes (or the machine wakes up). Preemption is off.
#[unsafe(no_mangle)]
extern "C" fn hsave_cpu_online() -> i32 {
    status(machine().ok_or(Errno::ENODEV).and_then(|m| m.enable()))
}

/// This CPU goes. Preemption is off, and no vCPU thread is on it but where the machine reboots.
#[unsafe(no_mangle)]
extern "C" fn hsave_cpu_offline() {
    if let Some(m) = machine() {
        m.disable();
    }
}
