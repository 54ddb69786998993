//! What the policy here asks about the host's processor: a small part of [`host::Host`].

use host::{CpuFeatures, Host};

/// The host's processor as CPUID and MSR policy see it. Every [`Host`] is one.
pub trait HostInfo {
    /// CPUID on the host, limited to what its kernel lets be used, with what that knows of the processor: `[eax, ebx, ecx, edx]`.
    /// Zeros for Fn8000_0021 if neither knows anything of it.
    fn leaf(&self, function: u32, index: u32) -> [u32; 4];
    /// The host's XCR0; 0 without XSAVE.
    fn xcr0(&self) -> u64;
    /// Does the kernel account how long threads wait for a CPU?
    fn steal_time(&self) -> bool;
    /// What the world switch can do.
    fn switch_features(&self) -> CpuFeatures;
    /// Have the nested page tables five levels?
    fn five_nested_levels(&self) -> bool;
    /// Whose KVM's interface it is: see [`Host::linux_version`].
    fn linux_version(&self) -> u32;
    /// An MSR that describes the processor; None if reading it faults.
    fn describing_msr(&self, msr: u32) -> Option<u64>;
}

impl<H: Host> HostInfo for H {
    fn leaf(&self, function: u32, index: u32) -> [u32; 4] {
        self.cpuid(function, index)
    }
    fn xcr0(&self) -> u64 {
        self.host_xcr0()
    }
    fn steal_time(&self) -> bool {
        self.run_delay_ns().is_some()
    }
    fn switch_features(&self) -> CpuFeatures {
        self.features()
    }
    fn five_nested_levels(&self) -> bool {
        self.nested_levels() == 5
    }
    fn linux_version(&self) -> u32 {
        Host::linux_version(self)
    }
    fn describing_msr(&self, msr: u32) -> Option<u64> {
        self.read_host_msr(msr)
    }
}
