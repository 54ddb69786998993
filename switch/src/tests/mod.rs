//! The world switch on any x86-64 Linux machine: its privileged instructions fault in user mode, and a signal
//! handler plays the processor.

mod document;
mod encrypted;
mod entry;
mod fast;
mod flush;
mod life;
mod matrix;
mod registers;
mod run;
mod spec_ctrl;
