//! Load and unload of the engine: what all its VMs share. What there is once per machine is the base's (linux/shim/kvm).

use crate::{errno::status, log, platform::Kernel};
use alloc::boxed::Box;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, Ordering::*};
use host::{Errno, try_box};

type Machine = switch::Machine<Kernel>;

static MACHINE: AtomicPtr<Machine> = AtomicPtr::new(null_mut());

/// What all vCPUs share; None before [`hsave_load`].
#[inline]
pub fn machine() -> Option<&'static Machine> {
    // SAFETY: it is freed when the engine goes, which waits for every VM, and so for every vCPU.
    unsafe { MACHINE.load(Acquire).as_ref() }
}

fn load() -> Result<(), Errno> {
    let machine = Machine::new().map_err(|why| {
        log::err(why.reason());
        why.errno()
    })?;
    MACHINE.store(Box::into_raw(try_box(|| machine)?.into_inner()).cast(), Release);
    Ok(())
}

/// The engine is loaded: looks at the processor. Task context; the first of all calls. If it fails the kernel log says why.
#[unsafe(no_mangle)]
extern "C" fn hsave_load() -> i32 {
    status(load())
}

/// The engine goes: it has no VM. The last of all calls, after [`hsave_load`] went well.
#[unsafe(no_mangle)]
extern "C" fn hsave_unload() {
    let machine = MACHINE.swap(null_mut(), AcqRel);
    if !machine.is_null() {
        // SAFETY: it came from a box of an array of one, and no vCPU is left to refer to it.
        drop(unsafe { Box::from_raw(machine.cast::<[Machine; 1]>()) });
    }
}
