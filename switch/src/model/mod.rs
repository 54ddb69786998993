//! The world switch on any x86-64 Linux machine: its privileged instructions fault in user mode, and a signal handler
//! plays the processor.
//!
//! [`hardware`] is the processor and the record of what it did, [`kernel`] the scripted kernel with the symbols that
//! the assembly refers to. Part of the tests only.
#![cfg(test)]

pub mod hardware;
pub mod kernel;
pub mod system;
