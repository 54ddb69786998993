//! What each selftest does here, and on stock kvm-amd where that is something else: both on Debian's kernel
//! 6.12 in the emulated host, whose processor lacks much that some tests need.

use Expect::{Fail, Lacks, Pass, PassWith, Skip};

/// What a test is expected to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expect {
    /// Passes, as on stock.
    Pass,
    /// Skips itself, as on stock, because of what this names.
    Skip(&'static str),
    /// Passes where the processor has this, and else skips itself.
    PassWith(&'static str),
    /// Fails, as on stock.
    Fail(&'static str),
    /// Does not pass, because this is not implemented; stock passes.
    Lacks(&'static str),
}

/// When a test is run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Speed {
    /// Always; at most a few seconds.
    Quick,
    /// With `--all`, or when asked for by its whole name; so many seconds at most.
    Slow(u64),
    /// Never: with all that is emulated it takes longer than anybody waits, on stock as well.
    Never,
}

/// One of the kernel's test programs.
#[derive(Debug)]
pub struct Test {
    pub name: &'static str,
    pub expect: Expect,
    pub speed: Speed,
}

const fn quick(name: &'static str, expect: Expect) -> Test {
    Test { name, expect, speed: Speed::Quick }
}

const fn slow(name: &'static str, expect: Expect, seconds: u64) -> Test {
    Test { name, expect, speed: Speed::Slow(seconds) }
}

const fn never(name: &'static str, expect: Expect) -> Test {
    Test { name, expect, speed: Speed::Never }
}

/// All that the kernel's make file builds for x86-64.
pub const TESTS: &[Test] = &[
    quick("access_tracking_perf_test", Skip("idle page tracking in the host kernel")),
    quick("amx_test", Skip("AMX")),
    quick("apic_bus_clock_test", Pass),
    quick("coalesced_io_test", Pass),
    quick("cpuid_test", Pass),
    quick("cr4_cpuid_sync_test", Pass),
    quick("debug_regs", Fail("the emulated processor does not intercept #BP of INT3")),
    slow("demand_paging_test", Pass, 180),
    quick("dirty_log_page_splitting_test", Skip("eager page splitting")),
    slow("dirty_log_perf_test", Pass, 300),
    slow("dirty_log_test", Pass, 600),
    quick("exit_on_emulation_failure_test", Pass),
    quick("fix_hypercall_test", Pass),
    quick("get_msr_index_features", Pass),
    quick("guest_memfd_test", Skip("guest_memfd, which stock has off")),
    quick("guest_print_test", Pass),
    never("hardware_disable_test", Pass),
    quick("hwcr_msr_test", Pass),
    quick("hyperv_clock", Pass),
    quick("hyperv_cpuid", Pass),
    quick("hyperv_evmcs", Skip("an Intel processor")),
    quick("hyperv_extended_hypercalls", Pass),
    quick("hyperv_features", Pass),
    quick("hyperv_ipi", Pass),
    quick("hyperv_svm_test", Lacks("nested virtualization")),
    quick("hyperv_tlb_flush", Pass),
    quick("kvm_binary_stats_test", Pass),
    quick("kvm_clock_test", Pass),
    quick("kvm_create_max_vcpus", Pass),
    slow("kvm_page_table_test", Pass, 240),
    quick("kvm_pv_test", Pass),
    never("max_guest_memory_test", Pass),
    quick("max_vcpuid_cap_test", Pass),
    slow("memslot_modification_stress_test", Pass, 180),
    never("memslot_perf_test", Pass),
    quick("monitor_mwait_test", Fail("the emulated processor executes MWAIT differently")),
    quick("nested_exceptions_test", Lacks("nested virtualization")),
    quick("nx_huge_pages_test", Skip("the argument that says one means it")),
    quick("platform_info_test", Pass),
    quick("pmu_counters_test", Skip("performance counters in the emulated host")),
    quick("pmu_event_filter_test", Skip("performance counters in the emulated host")),
    quick("pre_fault_memory_test", Pass),
    quick("private_mem_conversions_test", Skip("guest_memfd, which stock has off")),
    quick("private_mem_kvm_exits_test", Skip("guest_memfd, which stock has off")),
    quick("recalc_apic_map_test", Pass),
    never("rseq_test", Pass),
    quick("set_boot_cpu_id", Pass),
    slow("set_memory_region_test", Pass, 240),
    quick("set_sregs_test", Pass),
    quick("sev_init2_tests", Skip("SEV in the processor")),
    quick("sev_migrate_tests", Skip("SEV in the processor")),
    quick("sev_smoke_test", Skip("SEV in the processor")),
    quick("smaller_maxphyaddr_emulation_test", Skip("KVM_CAP_SMALLER_MAXPHYADDR, which SVM does not have")),
    quick("smm_test", Pass),
    quick("state_test", Pass),
    quick("steal_time", Pass),
    quick("svm_int_ctl_test", Lacks("nested virtualization")),
    quick("svm_nested_shutdown_test", Lacks("nested virtualization")),
    quick("svm_nested_soft_inject_test", Lacks("nested virtualization")),
    quick("svm_vmcall_test", Lacks("nested virtualization")),
    quick("sync_regs_test", Pass),
    quick("system_counter_offset_test", Pass),
    quick("triple_fault_event_test", Lacks("nested virtualization")),
    quick("tsc_msrs_test", Pass),
    quick("tsc_scaling_sync", PassWith("TSC scaling in the processor")),
    quick("ucna_injection_test", Skip("corrected machine checks by interrupt (CMCI)")),
    quick("userspace_io_test", Pass),
    quick("userspace_msr_exit_test", Pass),
    quick("vmx_apic_access_test", Skip("an Intel processor")),
    quick("vmx_close_while_nested_test", Skip("an Intel processor")),
    quick("vmx_dirty_log_test", Skip("an Intel processor")),
    quick("vmx_exception_with_invalid_guest_state", Skip("an Intel processor")),
    quick("vmx_invalid_nested_guest_state", Skip("an Intel processor")),
    quick("vmx_msrs_test", Skip("an Intel processor")),
    quick("vmx_nested_tsc_scaling_test", Skip("an Intel processor")),
    quick("vmx_pmu_caps_test", Skip("an Intel processor")),
    quick("vmx_preemption_timer_test", Skip("an Intel processor")),
    quick("vmx_set_nested_state_test", Skip("an Intel processor")),
    quick("vmx_tsc_adjust_test", Skip("an Intel processor")),
    quick("xapic_ipi_test", Pass),
    quick("xapic_state_test", Pass),
    quick("xcr0_cpuid_test", Pass),
    quick("xen_shinfo_test", Lacks("Xen hypercalls")),
    quick("xen_vmcall_test", Lacks("Xen hypercalls")),
    quick("xss_msr_test", Skip("XSAVES in the emulated processor")),
];
