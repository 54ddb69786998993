//! A VM goes from one engine to another: linux/shim/kvm/upgrade.c, which sees to it that nobody else is in the VM
//! (docs/decisions/0036). What the parcel holds it frees, whatever becomes of it.

use crate::{Linux, shim::Parcel};
use alloc::{boxed::Box, vec::Vec};
use core::fmt::{self, Write as _};
use core::mem::ManuallyDrop;
use core::ptr::{null_mut, without_provenance_mut};
use core::slice::{from_raw_parts, from_raw_parts_mut};
use host::Errno;
use vm::handover::{Moved, Refused, Why};

type Vm = vm::Vm<Linux>;

/// Text that ends where there is no more room.
struct Text<'a> {
    room: &'a mut [u8],
    len: usize,
}

impl fmt::Write for Text<'_> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for (to, from) in self.room.iter_mut().skip(self.len).zip(s.bytes()) {
            *to = from;
            self.len += 1;
        }
        Ok(())
    }
}

/// Says why, and which errno that is: ENOMEM, EBUSY (somebody uses a vCPU), EOPNOTSUPP (what is not handed over, or not known
/// here), EINVAL (what cannot be).
fn refused(parcel: &mut Parcel, why: Refused) -> Errno {
    // SAFETY: the base's room, of that size; nobody else has it.
    let room = unsafe { from_raw_parts_mut(parcel.why, parcel.why_len) };
    let mut text = Text { room, len: 0 };
    // It never fails.
    let _ = write!(text, "{why}");
    match why.why {
        Why::NoMemory => Errno::ENOMEM,
        Why::Busy => Errno::EBUSY,
        Why::Cannot(_) | Why::Newer { .. } | Why::Unknown | Why::Frame(_) => Errno::EOPNOTSUPP,
        Why::NoState | Why::Short | Why::Long | Why::Missing | Why::Value(_) => Errno::EINVAL,
    }
}

/// What the base frees as it frees the heap's; null if there is nothing.
fn give_away<T>(v: Vec<T>) -> (*mut T, usize) {
    let mut v = ManuallyDrop::new(v);
    // A vector without room is nowhere on the heap.
    if v.capacity() == 0 { (null_mut(), 0) } else { (v.as_mut_ptr(), v.len()) }
}

/// Every vCPU in KVM_RUN leaves it, and user space takes no notice. Task context.
///
/// # Safety
/// Here and below: `vm` is what `hsave_vm_new` or [`hsave_vm_arrive`] returned, and not freed.
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_vm_call_out(vm: *const Vm) {
    // SAFETY: by contract.
    unsafe { &*vm }.call_out();
}

/// Writes the VM's state and what it lends into the parcel; nothing of it changes. 0 or a negative errno, and why.
///
/// # Safety
/// As above; nobody calls into the VM but the mmu notifier. The parcel is the base's, and `state` and `lent` of it are null.
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_vm_leave(vm: *const Vm, parcel: *mut Parcel) -> i32 {
    // SAFETY: by contract.
    let (vm, parcel) = unsafe { (&*vm, &mut *parcel) };
    match vm.leave() {
        Ok(vm::handover::Parcel { state, lent }) => {
            (parcel.state, parcel.state_len) = give_away(state);
            (parcel.lent, parcel.lent_len) = give_away(lent);
            0
        }
        Err(why) => -(refused(parcel, why) as i32),
    }
}

/// A VM of the parcel, in this engine: only [`hsave_vm_take`] and `hsave_vm_free` may follow. Else an errno, as the kernel returns
/// them as pointers, and why.
///
/// # Safety
/// The parcel is what [`hsave_vm_leave`] of another engine has written of a VM that lives, and that nobody has called since.
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_vm_arrive(parcel: *mut Parcel) -> *mut Vm {
    // SAFETY: by contract.
    let parcel = unsafe { &mut *parcel };
    // SAFETY: by contract so many bytes and words are there, and nobody changes them.
    let (state, lent) =
        unsafe { (from_raw_parts(parcel.state, parcel.state_len), from_raw_parts(parcel.lent, parcel.lent_len)) };
    match Vm::arrive(Linux, state, lent) {
        Ok(vm) => Box::into_raw(vm.into_inner()).cast(),
        Err(why) => without_provenance_mut((refused(parcel, why) as i32 as usize).wrapping_neg()),
    }
}

/// The last step of the old engine: `moved` is written. Nothing but `hsave_vm_free` may follow. Spin locks may be held.
///
/// # Safety
/// As above; [`hsave_vm_arrive`] has made a VM of its parcel, whose [`hsave_vm_take`] is the next call; the mmu notifier does not
/// call in between.
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_vm_give(vm: *const Vm, parcel: *mut Parcel) {
    // SAFETY: by contract; there is room for `MOVED` words.
    unsafe { (*parcel).moved.cast::<Moved>().write((&*vm).give()) }
}

/// The last step of the new engine: it has the VM. Spin locks may be held.
///
/// # Safety
/// As above; `moved` is what [`hsave_vm_give`] wrote just now.
#[unsafe(no_mangle)]
unsafe extern "C" fn hsave_vm_take(vm: *const Vm, parcel: *mut Parcel) {
    // SAFETY: by contract.
    unsafe { (&*vm).take(&*(*parcel).moved.cast::<Moved>()) }
}
