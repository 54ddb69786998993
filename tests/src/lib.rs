//! What the scenarios and the programs that run in the emulated AMD host share.

pub mod check;
pub mod client;
pub mod descriptors;
pub mod engines;
pub mod failing;
pub mod handlers;
pub mod hyperv;
pub mod pace;
pub mod plain;
pub mod random;
pub mod scenario;
