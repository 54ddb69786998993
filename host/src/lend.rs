//! What of the machine's two engines have at the same time while a VM goes from one to the other (docs/decisions/0036).
//!
//! Engines that were compiled apart know nothing of each other's types, so a handle crosses as a number, and what has the number
//! is the machine's. The old engine writes the numbers down in an order that both know ([`Numbers`]), the new one makes handles of
//! its own of them in the same order ([`Lent`]). Each engine drops its own.
//!
//! Before each number stands what it is of, and for what: nobody makes a handle of a number that is something else's. The two
//! lists below are part of the border between base and engines, which has a hash of them (`xtask/src/border.rs`).

use crate::{Errno, push_within_capacity};
use alloc::vec::Vec;
use core::slice::Iter;

/// What has a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum LentKind {
    /// Nothing: it is a number.
    Plain = 1,
    /// [`Host::Words`](crate::Host::Words).
    Words = 2,
    /// [`Host::SharedPage`](crate::Host::SharedPage).
    SharedPage = 3,
    /// [`Host::EventFd`](crate::Host::EventFd).
    EventFd = 4,
    /// [`Host::Hrtimers`](crate::Host::Hrtimers).
    Hrtimers = 5,
    /// [`Host::Thread`](crate::Host::Thread).
    Thread = 6,
    /// [`Host::Fpu`](crate::Host::Fpu).
    Fpu = 7,
}

/// What it is lent for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum LentFor {
    /// Nested tables begin there; one for each address space.
    NestedRoot = 1,
    /// The pages of a slot that were written; 0: it has none.
    DirtyBitmap = 2,
    /// The ring of coalesced writes.
    CoalescedRing = 3,
    /// The devices' timers.
    Devices = 4,
    /// An ioeventfd.
    IoEvent = 5,
    /// An eventfd that is told of the end of interrupts.
    Resampler = 6,
    /// A connection of a Hyper-V guest's.
    Connection = 7,
    /// A page of a vCPU's dirty ring.
    DirtyRing = 8,
    /// A vCPU.
    Vcpu = 9,
    /// `kvm_run`.
    Run = 10,
    /// The page behind it, with the data of ports.
    Pio = 11,
}

/// What stands before the number.
fn tag(kind: LentKind, what_for: LentFor) -> u64 {
    (kind as u64) << 32 | what_for as u64
}

/// A counted handle to something of the machine's.
pub trait Lend: Sized {
    /// Which type it is, to other engines.
    const KIND: LentKind;
    /// The number of what it is a handle to, which is not 0; good for as long as the handle lives.
    fn number(&self) -> u64;
    /// Another handle to what has this number; None: nothing has. **Memory safety hangs on the caller**: it is the number of a handle
    /// of this type, which lives.
    fn of_number(number: u64) -> Option<Self>;
}

/// Numbers on their way out.
#[derive(Default)]
pub struct Numbers(Vec<u64>);

impl Numbers {
    /// So many more can be added without memory. Errors: ENOMEM.
    pub fn reserve(&mut self, more: usize) -> Result<(), Errno> {
        self.0.try_reserve(more.saturating_mul(2)).map_err(|_| Errno::ENOMEM)
    }

    fn add(&mut self, kind: LentKind, what_for: LentFor, number: u64) -> Result<(), Errno> {
        self.reserve(1)?;
        for word in [tag(kind, what_for), number] {
            push_within_capacity(&mut self.0, word).map_err(|_| Errno::ENOMEM)?;
        }
        Ok(())
    }

    /// A plain number. Errors: ENOMEM.
    pub fn plain(&mut self, what_for: LentFor, number: u64) -> Result<(), Errno> {
        self.add(LentKind::Plain, what_for, number)
    }

    /// That of a handle. Errors: ENOMEM.
    pub fn lend<T: Lend>(&mut self, what_for: LentFor, handle: &T) -> Result<(), Errno> {
        self.add(T::KIND, what_for, handle.number())
    }

    /// That of a handle of type `T`, or 0 if there is none. Errors: ENOMEM.
    pub fn lend_number<T: Lend>(&mut self, what_for: LentFor, number: u64) -> Result<(), Errno> {
        self.add(T::KIND, what_for, number)
    }

    /// All of them, each behind what it is.
    pub fn into_inner(self) -> Vec<u64> {
        self.0
    }
}

/// Numbers on their way in.
pub struct Lent<'a>(Iter<'a, u64>);

impl<'a> Lent<'a> {
    /// Those that [`Numbers`] wrote.
    pub fn new(numbers: &'a [u64]) -> Self {
        Self(numbers.iter())
    }

    fn next(&mut self, kind: LentKind, what_for: LentFor) -> Option<u64> {
        let found = self.0.next()?;
        let number = self.0.next()?;
        (*found == tag(kind, what_for)).then_some(*number)
    }

    /// The next number. None: they are over, or the next is something else.
    pub fn plain(&mut self, what_for: LentFor) -> Option<u64> {
        self.next(LentKind::Plain, what_for)
    }

    /// A handle to what has the next number. None: they are over, the next is something else, or nothing has it.
    pub fn handle<T: Lend>(&mut self, what_for: LentFor) -> Option<T> {
        self.next(T::KIND, what_for).filter(|n| *n != 0).and_then(T::of_number)
    }

    /// The same where there may be nothing, which 0 stands for. The outer None: as above.
    pub fn optional<T: Lend>(&mut self, what_for: LentFor) -> Option<Option<T>> {
        match self.next(T::KIND, what_for)? {
            0 => Some(None),
            n => T::of_number(n).map(Some),
        }
    }

    /// Are they over?
    pub fn is_over(&self) -> bool {
        self.0.len() == 0
    }
}

#[cfg(test)]
#[path = "tests/lend.rs"]
mod tests;
