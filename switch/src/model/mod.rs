//! The world switch on any x86-64 Linux machine: its privileged instructions fault in user mode, and a signal handler
//! plays the processor.
//!
//! [`hardware`] is the processor and the record of what it did, [`kernel`] the scripted kernel with the symbols that
//! the assembly refers to. The tests of this crate look at both. Other programs run guests on it by [`enter`], from any
//! number of threads. Never part of the module.
#![cfg(any(test, feature = "model"))]

mod base;
mod bench;
mod cpus;
mod extable;
pub mod hardware;
pub mod kernel;
mod machines;
pub mod system;
mod turn;

pub use kernel::Kernel;
pub use machines::machine;
pub use turn::{Turn, begin, enter, refuse};
