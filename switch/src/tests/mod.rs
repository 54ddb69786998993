//! The world switch on any x86-64 Linux machine: its privileged instructions fault in user mode, and a signal
//! handler plays the processor.

mod entry;
mod hardware;
mod kernel;
mod life;
mod run;
