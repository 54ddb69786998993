//! TODO
#![no_std]

