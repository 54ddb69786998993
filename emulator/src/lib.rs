//! One x86 instruction: decoded from bytes, then executed on a [`Machine`].
//!
//! The hypervisor meets instructions that the processor could not finish: accesses to memory without a memslot (MMIO) or
//! to a read-only one, string I/O, and intercepted instructions whose operands or length the CPU does not report
//! (no decode assists, no NRIPS). This crate knows those instructions that software uses there, in 16, 32 and
//! 64-bit mode, and answers `Unknown` for the rest.
//!
//! | call | for |
//! |---|---|
//! | [`len_of`] | the length of an intercepted instruction that is known already; a handful of host instructions |
//! | [`decode`] | bytes to [`Insn`] |
//! | [`fetch`] | the same, with the bytes taken from the guest at CS:RIP |
//! | [`emulate`] | the effects of an [`Insn`] |
//! | [`task_switch`] | a hardware task switch |
//!
//! # The contract between `emulate` and the machine
//!
//! An instruction is executed in *steps*. Most instructions are one step; each iteration of a repeated string
//! instruction is one (a batch of iterations for `REP INS`). Within a step:
//!
//! 1. Everything is read first: registers, memory, ports. Reads come in an order that depends only on guest state.
//! 2. There is then at most one call that changes the world outside the registers: `write`, `cmpxchg`, `pio_out`,
//!    `set_cr`, `set_dr` or `invlpg`. If it fails, nothing has happened.
//! 3. Registers, flags and RIP are set, which cannot fail, and `commit` is called.
//!
//! So whenever a step ends in [`Stop`], the guest is as it was before the step, and the step can be done again.
//!
//! **Reads that userspace answers.** `read` or `pio_in` notes the access and returns [`Stop::NeedUser`]; `emulate`
//! returns it. The caller leaves to userspace (KVM_EXIT_MMIO with `is_write = 0`, or KVM_EXIT_IO), and on re-entry puts
//! the answer into the machine's *read log* and calls `emulate` again with the same [`Insn`]. The same reads come in the
//! same order, so the log is a sequence: the n-th userspace read of the step is answered by the n-th entry; when the
//! entries are used up the next access is noted and `NeedUser` returned again. An access that does not match its
//! entry (userspace changed registers meanwhile) means: drop the log and treat the access as new. The machine forgets
//! the log in `commit`; the caller drops it as well when `emulate` returns `Fault` or `Unhandleable`.
//! Each new `emulate` call starts at the first entry of the log.
//!
//! **Writes that userspace answers** are posted. `write`, `cmpxchg` and `pio_out` put them on the machine's queue
//! (split into pieces of at most 8 bytes for MMIO; one write is at most 256 bytes, that of `REP INS` to memory 1024,
//! also where what was memory when userspace was asked is a device by now) and succeed; the instruction completes. The caller sends the queue to userspace before the guest runs again. One step adds one
//! write; `pause` is asked between steps, so a queue with room for one write is enough. The only other change is the
//! accessed bit that a segment load sets in a descriptor (`cmpxchg`): it comes first, and setting it again is harmless.
//!
//! **Repeated string instructions** commit RCX, RSI and RDI after each iteration. `emulate` returns with
//! [`Done::more`] set, RIP unchanged, when `pause` says so and after [`MAX_ITERATIONS`]: deal with the queue and with
//! pending events, then emulate again or let the guest re-execute the instruction. A stop in a later iteration comes
//! after the earlier ones have been committed.
//!
//! **Completion.** Unless [`Done::lost_race`] is set, the caller clears the guest's interrupt shadow, then applies
//! [`Done::shadow`], and injects #DB with DR6.BS if [`Done::single_step`] is set and the shadow is not [`Shadow::MovSs`],
//! which holds it off until after the next instruction.
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod address;
mod arg;
mod decode;
mod exec;
mod flags;
mod group;
mod insn;
mod length;
mod machine;
mod modrm;
mod opmap;
mod prefix;
mod states;
mod task;
mod vecmap;

pub use address::{checked_address, fetch, mode_of};
pub use decode::decode;
pub use exec::{Done, MAX_ITERATIONS, Shadow, emulate};
pub use insn::{DecodeError, Insn, Mem, Mode, Op, Operand, Rep, Seg};
pub use length::{Known, len_of};
pub use machine::{Access, Exception, Machine, Segment, Stop, Table, TableReg};
pub use task::{Cause, Switched, TaskSwitch, task_switch};
