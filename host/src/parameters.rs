//! Parameters of the module that the hypervisor looks at.

/// Halt polling, how long a halted vCPU looks for something to do before it sleeps: the module's parameters `halt_poll_ns*`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PollParameters {
    /// Most nanoseconds; 0: not at all.
    pub max: u32,
    /// Factor by which the time grows; 0: it does not.
    pub grow: u32,
    /// What it grows to from 0, and below which it is 0.
    pub grow_start: u32,
    /// Divisor by which it shrinks; 0: to 0.
    pub shrink: u32,
}

/// When a loop of PAUSE is an exit: the parameters `pause_filter_*` of the module. The default is stock's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PauseParameters {
    /// PAUSEs before the first exit; 0: PAUSE does not exit.
    pub count: u16,
    /// Most cycles between two of them.
    pub threshold: u16,
    /// Factor by which the count grows with each exit; 0: it does not.
    pub grow: u16,
    /// Divisor by which it shrinks when the guest was not on a CPU; 0: to the first.
    pub shrink: u16,
    /// Most that it grows to.
    pub max: u16,
}

impl Default for PauseParameters {
    fn default() -> Self {
        Self { count: 3000, threshold: 128, grow: 2, shrink: 0, max: u16::MAX }
    }
}
