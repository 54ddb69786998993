//! KVM_CAP_SYNC_REGS: registers that go through `kvm_run` instead of ioctls of their own (KVM API document, 4.10 and
//! section 5, `kvm_valid_regs` and `kvm_dirty_regs`).

use crate::codec::{Abi, Field};
use crate::uapi::run::{at, sync};
use crate::uapi::{kvm_regs, kvm_sregs, kvm_vcpu_events};
use crate::vcpu_ioctl::{events, regs};
use host::{Errno, Host, PageCells, SharedPage};
use vm::{Ctx, MpState};

/// The register sets that user space wants back after the run, and those that it marked dirty.
#[inline]
pub fn sets(page: &impl SharedPage) -> (u64, u64) {
    (page.word(at::VALID_REGS / 8), page.word(at::DIRTY_REGS / 8))
}

/// Loads the register sets of [`sets`] that are dirty.
/// Errors: EINVAL (unknown sets, or registers that the ioctl of the set refuses).
#[inline]
pub fn take<H: Host>(ctx: &mut Ctx<'_, H>, page: &impl SharedPage, (wanted, dirty): (u64, u64)) -> Result<(), Errno> {
    // A processor that waits to be started keeps its registers.
    if wanted | dirty == 0 || ctx.core.mp_state == MpState::Uninitialized {
        return Ok(());
    }
    load(ctx, page.cells(), wanted, dirty)
}

#[cold]
fn load<H: Host>(ctx: &mut Ctx<'_, H>, page: &PageCells, wanted: u64, dirty: u64) -> Result<(), Errno> {
    if (wanted | dirty) & !sync::ALL != 0 {
        return Err(Errno::EINVAL);
    }
    let mut left = dirty;
    let mut done = |set: u64| {
        left &= !set;
        page.set_u64(at::DIRTY_REGS, left);
    };
    if dirty & sync::REGS != 0 {
        regs::set_regs(ctx, &get::<kvm_regs>(page, at::SYNC_REGS))?;
        done(sync::REGS);
    }
    if dirty & sync::SREGS != 0 {
        regs::set_sregs(ctx, &get::<kvm_sregs>(page, at::SYNC_SREGS))?;
        done(sync::SREGS);
    }
    if dirty & sync::EVENTS != 0 {
        events::set_events(ctx, &get::<kvm_vcpu_events>(page, at::SYNC_EVENTS))?;
        done(sync::EVENTS);
    }
    Ok(())
}

/// Stores the register sets that user space wants.
#[inline]
pub fn give<H: Host>(ctx: &mut Ctx<'_, H>, page: &impl SharedPage, wanted: u64) {
    if wanted != 0 {
        store(ctx, page.cells(), wanted);
    }
}

#[cold]
fn store<H: Host>(ctx: &mut Ctx<'_, H>, page: &PageCells, wanted: u64) {
    if wanted & sync::REGS != 0 {
        put(page, at::SYNC_REGS, &regs::get_regs(ctx));
    }
    if wanted & sync::SREGS != 0 {
        put(page, at::SYNC_SREGS, &regs::get_sregs(ctx));
    }
    if wanted & sync::EVENTS != 0 {
        put(page, at::SYNC_EVENTS, &events::get_events(ctx));
    }
}

/// A copy of a struct in the page, which user space can no longer change. A function of its own for each struct, so
/// that no stack frame holds two of them.
#[inline(never)]
fn get<T: Abi>(page: &PageCells, at: usize) -> T {
    let mut image = T::ZERO;
    page.read(at, image.as_mut());
    T::take(image.as_ref())
}

#[inline(never)]
fn put<T: Abi>(page: &PageCells, at: usize, value: &T) {
    let mut image = T::ZERO;
    value.give(image.as_mut());
    page.write(at, image.as_ref());
}

// The three sets lie one after the other and fit into the part of `kvm_run` that is set aside for them.
const _: () = {
    assert!(at::SYNC_REGS + <kvm_regs as Field>::SIZE == at::SYNC_SREGS);
    assert!(at::SYNC_SREGS + <kvm_sregs as Field>::SIZE == at::SYNC_EVENTS);
    assert!(at::SYNC_EVENTS + <kvm_vcpu_events as Field>::SIZE <= crate::uapi::run::SIZE);
};
