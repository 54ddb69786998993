//! Lines of programs that differ from stock kvm-amd on purpose: features that are absent (README, "What
//! does not work yet") and what only an emulated processor shows.

/// A line that begins like this may be on one side only.
pub struct Expected {
    pub line: &'static str,
    pub why: &'static str,
    /// What docs/vmm.md shows for all lines with this reason, where the lines alone say little: which bit or instruction, what stock
    /// does, what hsave does.
    pub text: Option<&'static str>,
}

/// Takes the lines that may differ out of `differences` (of [`crate::compare::differences`]), and says how many.
pub fn take_out(expected: &[Expected], differences: &mut Vec<String>) -> Vec<String> {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    differences.retain(|marked| {
        let line = marked.get(2..).unwrap_or_default();
        let Some(found) = expected.iter().find(|e| line.starts_with(e.line)) else { return true };
        match counts.iter_mut().find(|count| count.0 == found.why) {
            Some(count) => count.1 += 1,
            None => counts.push((found.why, 1)),
        }
        false
    });
    counts.into_iter().map(|(why, lines)| format!("{lines} lines: {why}")).collect()
}

/// `"why": "line", ...;`, or with what the page shows: `("why", "text"): "line", ...;`.
macro_rules! expected {
    (@why ($why:literal, $text:literal)) => { $why };
    (@why $why:literal) => { $why };
    (@text ($why:literal, $text:literal)) => { Some($text) };
    (@text $why:literal) => { None };
    ($($why:tt: $($line:literal),+;)*) => {
        &[$($(Expected { line: $line, why: expected!(@why $why), text: expected!(@text $why) }),+),*]
    };
}

/// Beside stock of Linux 6.12.
pub const POLICY: &[Expected] = expected! {
    ("shadow paging", "KVM_CAP_VM_DISABLE_NX_HUGE_PAGES (220): 1 on stock, 0 here"): "cap 220:";
    ("memory attributes, types of VMs, guests of guests", "KVM_CAP_VM_TYPES (235), KVM_CAP_X86_GUEST_MODE (238): 1 on stock, 0 here"):
        "cap 235:", "cap 238:";
    ("Xen", "KVM_CAP_XEN_HVM (38): 511 on stock, 0 here"): "cap 38:";
    ("nested virtualisation",
        "KVM_CAP_NESTED_STATE (157): 4224 on stock, 0 here; CPUID Fn8000_0001_ECX bit 2 (SVM) and the leaf Fn8000_000A: on stock, not here; \
         TSC_RATIO (c0000104): a guest reads and user space writes it on stock, here the guest has #GP and user space writes 0 and \
         1:1 only; leaf 4000_000A of a guest of Hyper-V's: EAX bit 17 and EBX bit 0 are set on stock, clear here"):
        "cap 157:", "supported 80000001.0 ecx bit 2", "supported 8000000a.0", "guest reads msr c0000104:", "user writes msr c0000104:",
        "hv cpuid of the system 4000000a", "hv cpuid of a vcpu 4000000a", "hv cpuid of a vcpu without apic 4000000a";
    ("last-branch records",
        "DEBUGCTL (1d9) and MSRs 1db to 1de: user space's values are kept on stock as the processor has them; here they read 0"):
        "user writes msr 1d9:", "user writes msr 1db:", "user writes msr 1dc:", "user writes msr 1dd:", "user writes msr 1de:";
    ("SGX, SEV", "KVM_CAP_SGX_ATTRIBUTE (196), KVM_CAP_VM_COPY_ENC_CONTEXT_FROM (197), KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM (206): 1 on stock, 0 here"):
        "cap 196:", "cap 197:", "cap 206:";
    ("performance counters", "KVM_CAP_PMU_EVENT_FILTER (173), KVM_CAP_PMU_EVENT_MASKED_EVENTS (226): 1 on stock, 0 here"):
        "cap 173:", "cap 226:";
    ("exits that can be switched off, quirks that can",
        "KVM_CAP_X86_DISABLE_EXITS (143): the bits of those of PAUSE, HLT, MWAIT and C-states that the processor allows, on stock of later \
         kernels more; KVM_CAP_DISABLE_QUIRKS2 (213): of stock's bits (2047 on Debian's 6.12) those whose quirk hsave has; \
         KVM_CAP_DISABLE_QUIRKS (116): 1"):
        "cap 116:", "cap 143:", "cap 213:";
    ("stock of later kernels says it, too", "CPUID Fn0000_0001_ECX bits 24 (TSC deadline) and 31 (hypervisor): clear on stock of 6.12, set here"):
        "supported 1.0 ecx bit 24", "supported 1.0 ecx bit 31";
    ("the emulated processor takes any value in SPEC_CTRL, which it does not claim to have", "nothing on a real processor"): "user writes msr 48:";
    ("the emulated processor lets guests read MSRs that only its real kind has", "nothing on a real processor"): "guest reads msr c0010130";
};

/// A guest of Hyper-V's.
pub const HYPERV: &[Expected] = expected! {
    "nested virtualisation": "Hyper-V: Nested features:";
};

/// Trace events (docs/decisions/0038).
pub const TRACE: &[Expected] = expected! {
    "nested virtualisation":
        "event kvm_invlpga:", "event kvm_nested_intercepts:", "event kvm_nested_intr_vmexit:", "event kvm_nested_vmenter:",
        "event kvm_nested_vmenter_failed:", "event kvm_nested_vmexit:", "event kvm_nested_vmexit_inject:", "event kvm_skinit:";
    "SEV":
        "event kvm_rmp_fault:", "event kvm_vmgexit_enter:", "event kvm_vmgexit_exit:", "event kvm_vmgexit_msr_protocol_enter:",
        "event kvm_vmgexit_msr_protocol_exit:";
    "interrupt delivery by the processor, and of devices to guests":
        "event kvm_apicv_accept_irq:", "event kvm_apicv_inhibit_changed:", "event kvm_avic_doorbell:", "event kvm_avic_ga_log:",
        "event kvm_avic_incomplete_ipi:", "event kvm_avic_kick_vcpu_slowpath:", "event kvm_avic_unaccelerated_access:",
        "event kvm_pi_irte_update:";
    "only Intel's processors have it": "event kvm_fast_mmio:", "event kvm_hv_timer_state:", "event kvm_pml_full:";
    "Xen": "event kvm_xen_hypercall:";
    "no timer fires ahead of its time and waits out the rest": "event kvm_wait_lapic_expire:";
    ("nothing is remembered of addresses of devices, as stock does by reserved bits in nested page tables",
        "no `vcpu_match_mmio`; what `kvm_exit` and `kvm_page_fault` show of an access to a device is a fault without a page, also the second time"):
        "event vcpu_match_mmio:", "device: exit: vcpu 0 reason npf", "device: page_fault: ";
    ("an interrupt that waits takes no exit when its window opens (docs/decisions/0017)",
        "no `kvm_exit` for VINTR, nor the entry behind it; `kvm_inj_virq` when the interrupt is left with the processor"):
        "msi: exit: vcpu 0 reason vintr", "msi: entry: vcpu 0, rip 0x100022", "msi: inj_virq: ";
    ("an interrupt is left with the processor and not in EVENTINJ (docs/decisions/0017), which later kernels trace",
        "what `kvm_entry` shows of EVENTINJ, where the kernel's has that field"):
        "self ipi: entry: vcpu 0, rip 0x100030 ", "ipi to itself: entry: vcpu 0, rip 0x100030 ";
    ("6.1 traces a fast exit when the guest is past its instruction", "RIP in `kvm_exit` of a WRMSR that sends an IPI"):
        "ipi to itself: exit: vcpu 0 reason msr rip 0x1000";
    "the host's page tables are not followed entry by entry": "event kvm_set_spte_hva:";
    "a paravirtual flush is asked for with the clock and steal time, where no vCPU is looked at": "event kvm_pv_tlb_flush:";
    "the worker that brings a page in does not know the guest's address of it": "event kvm_async_pf_completed:";
    "not traced yet: when the clocks of a VM's vCPUs become one": "event kvm_track_tsc:", "event kvm_update_master_clock:";
    "not traced yet: Hyper-V beyond its hypercalls":
        "event kvm_hv_flush_tlb:", "event kvm_hv_flush_tlb_ex:", "event kvm_hv_hypercall_done:", "event kvm_hv_notify_acked_sint:",
        "event kvm_hv_send_ipi:", "event kvm_hv_send_ipi_ex:", "event kvm_hv_stimer_callback:", "event kvm_hv_stimer_cleanup:",
        "event kvm_hv_stimer_expiration:", "event kvm_hv_stimer_set_config:", "event kvm_hv_stimer_set_count:",
        "event kvm_hv_stimer_start_one_shot:", "event kvm_hv_stimer_start_periodic:", "event kvm_hv_syndbg_get_msr:",
        "event kvm_hv_syndbg_set_msr:", "event kvm_hv_synic_send_eoi:", "event kvm_hv_synic_set_irq:", "event kvm_hv_synic_set_msr:";
    "not traced yet: emulated instructions, floods of interrupts at the IOAPIC":
        "event kvm_emulate_insn:", "event kvm_ioapic_delayed_eoi_inj:";
};

/// What perf and trace-cmd print.
pub const PERF: &[Expected] = expected! {
    ("an interrupt that waits takes no exit when its window opens (docs/decisions/0017)", "`perf kvm stat` shows no exits VINTR"): "perf vintr ";
};

/// debugfs and uevents (docs/decisions/0039).
pub const DEBUGFS: &[Expected] = expected! {
    "shadow paging, of which later kernels count the pages": "file mmu_shadow_pages ", "file VM/mmu_shadow_pages ";
    "which thread ran a vCPU last is not noted: it would cost each KVM_RUN": "file VM/vcpu0/pid ", "file VM/vcpu3/pid ";
};

/// Interrupt controllers.
pub const CHIPS: &[Expected] = expected! {
    ("vectors below 16 are refused, as the APM has it; stock counts them as taken and never delivers them",
        "KVM_SIGNAL_MSI and irqfds with such a vector: 1 (delivered) on stock; here no vCPU takes it"):
        "msi: illegal vector:";
};

/// Parameters of the modules (docs/decisions/0022).
pub const PARAMETERS: &[Expected] = expected! {
    ("what is not available is off, and cannot be set",
        "of kvm: eager_page_split, flush_on_reuse, force_emulation_prefix, kvmclock_periodic_sync, lapic_timer_advance, mmio_caching, \
         nx_huge_pages and those that begin like it, pi_inject_timer, vector_hashing; of kvm_amd: lbrv, nested, vgif, vls, vnmi"):
        "kvm eager_page_split", "kvm flush_on_reuse", "kvm force_emulation_prefix", "kvm kvmclock_periodic_sync",
        "kvm lapic_timer_advance", "kvm mmio_caching", "kvm nx_huge_pages", "kvm pi_inject_timer",
        "kvm vector_hashing", "kvm_amd lbrv", "kvm_amd nested", "kvm_amd vgif", "kvm_amd vls", "kvm_amd vnmi";
};

/// What the emulator does with an opcode (the first word) under some prefixes (the second).
pub const EMULATED: &[Expected] = expected! {
    ("moves of vector registers that stock does not emulate",
        "MOVSS, MOVSD, MOVLPS, MOVHPS and their kin, MOVDDUP, MOVSLDUP, MOVSHDUP (0f 10 to 17), MOVD and MOVQ (0f 6e, 0f 7e, 66 0f d6), \
         MOVNTQ and MOVNTDQ (0f e7), LDDQU (f2 0f f0), MOVNTDQA (66 0f 38 2a): KVM_INTERNAL_ERROR_EMULATION on stock, carried out here"):
        "0f10 f2", "0f10 f3", "0f11 f2", "0f11 f3", "0f12 ", "0f13 ", "0f16 ", "0f17 ", "0f6e ", "0f7e ", "0fd6 66", "0fe7 ", "0ff0 f2",
        "0f382a 66";
    ("POPCNT, TZCNT and LZCNT, which stock does not emulate or takes for BSF and BSR",
        "f3 0f b8: KVM_INTERNAL_ERROR_EMULATION on stock; f3 0f bc and f3 0f bd: the result of BSF and BSR on stock; here as the APM has it"):
        "0fb8 f3", "0fbc f3", "0fbd f3";
    ("CMPXCHG16B, which stock does not emulate", "48 0f c7 /1: KVM_INTERNAL_ERROR_EMULATION on stock, carried out here"): "0fc7 48";
    ("LGDT and LIDT from a device, which do not come to an end on stock",
        "0f 01 /2 and /3: the first bytes are asked for again and again on stock; each is read once here"):
        "0f01 ";
    ("two bytes and no more are read or written, as the APM has it",
        "66 63 (MOVSXD of 16 bits): reads 4 bytes on stock, 2 here; 48 8c (MOV of a segment register to memory, with REX.W): writes 8 bytes on \
         stock, 2 here"):
        "63 66", "8c 48", "8c f348";
    ("SLDT and STR write two bytes, as the APM has it, and read none",
        "0f 00 /0 and /1: on stock the operand is read first, and with REX.W 8 bytes are written; here 2 bytes are written"):
        "0f00 - /0", "0f00 - /1", "0f00 48 /0", "0f00 48 /1", "0f00 66 /0", "0f00 66 /1", "0f00 f2 /0", "0f00 f2 /1",
        "0f00 f3 /0", "0f00 f3 /1", "0f00 f348 /0", "0f00 f348 /1";
    ("PUSH of a segment register has the operand's size, as the APM has it",
        "06, 0e, 16 and 1e where the stack is a device: 2 bytes on stock, the operand's size here"):
        "5c ", "94 ";
    ("near calls and jumps of 16 bits, as AMD's processors have them",
        "66 ff /2 and /4 in 64-bit mode: 64 bits on stock, as Intel's processors have it; 16 bits here"):
        "ff 66";
    ("a fault that cannot be delivered, for the page tables are a device, which stock tries without end before 6.14",
        "MOV to CR3 (0f 22 /3) of an address of a device: KVM_RUN does not return on stock before 6.14; here it ends"):
        "0f22 - /3 Long:", "0f22 48 /3 Long:", "0f22 66 /3 Long:", "0f22 f2 /3 Long:", "0f22 f3 /3 Long:", "0f22 f348 /3 Long:";
    ("MOVNTI with prefixes that make it undefined", "0f c3 with 66, f2 or f3: carried out on stock, not here"): "0fc3 ";
    ("SYSENTER in long mode is #UD", "0f 34: KVM_INTERNAL_ERROR_EMULATION on stock, #UD here"): "0f34 ";
    ("FXSAVE and FXRSTOR at a device, which stock makes a page fault",
        "0f ae /0 and /1: KVM_INTERNAL_ERROR_EMULATION here"):
        "0fae - /0", "0fae - /1";
};

/// What user space sees and sets of a vCPU.
pub const STATE: &[Expected] = expected! {
    ("a load from a device reaches the guest; on stock it is lost where user space has set registers",
        "KVM_SET_REGS between KVM_EXIT_MMIO of a load and the next KVM_RUN: on stock the instruction is left undone or its result lost; here what \
         user space has answered is in the register"):
        "Same: load", "Others: load", "Elsewhere: load", "ElsewhereAndSettle: load";
    ("REP INS is behind itself after its last element",
        "registers in kvm_run once the last element was served: RIP at the instruction with RCX 0 on stock, behind it here"):
        "Settle: rep insb, then", "ElsewhereAndSettle: rep insb, then", "Others: rep insb, ";
    ("a debugger that puts the guest elsewhere goes on stepping",
        "KVM_SET_GUEST_DEBUG with single steps and breakpoints, then KVM_SET_REGS with another RIP: on stock the step there is lost"):
        "debugger, both of 3";
    ("interrupts reach a guest when it takes them, and none takes another's place",
        "without a local APIC in the kernel, KVM_INTERRUPT while RFLAGS.IF is clear, or twice: on stock it is delivered at once, or the second replaces the first"):
        "controllers, None if 0 interrupts", "window, None, waits true",
        "controllers, window None waits true";
    ("nested virtualisation", "KVM_SET_SREGS with EFER.SVME: accepted on stock, EINVAL here"):
        "checks, None efer svme", "checks, Split efer svme";
    ("CLGI and STGI are #UD without EFER.SVME, which stock leaves to a processor that has virtual GIF",
        "0f 01 dd and 0f 01 dc: carried out on stock where the processor does not check, #UD here"):
        "instructions, clgi at level 0", "instructions, stgi at level 0";
    ("RFLAGS.RF is clear behind an instruction that was carried out, which stock leaves set where the processor tells the next RIP",
        "RFLAGS bit 16 after an intercepted instruction at which a breakpoint was: set on stock, clear here"):
        "debugger, both of 1 with dr6 ffff0ff0, end:", "debugger, both of 1 with dr6 ffff4ff1, end:",
        "debugger, breakpoint of 1 with dr6 ffff0ff0, end:", "debugger, breakpoint of 1 with dr6 ffff4ff1, end:";
    ("XSETBV without CR4.OSXSAVE is #UD, which the emulated processor leaves to the hypervisor", "0f 01 d1: nothing on a real processor"):
        "instructions, xsetbv at level 0 osxsave false", "instructions, xsetbv at level 3 osxsave false";
    ("AMD's processors do not have SYSENTER and SYSEXIT in long mode, which stock emulates by halves",
        "0f 34: KVM_INTERNAL_ERROR_EMULATION on stock, 0f 35: carried out or #GP there; both are #UD here, where the guest's CPUID says AMD"):
        "instructions, sysenter at level 0", "instructions, sysexit", "fast, sysexit intel false";
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_expected_is_taken_out() {
        let expected: &[Expected] = expected! { "absent": "cap 1:", "msr 40"; "other": "cap 2:"; };
        let mut lines = ["- cap 1: 1", "+ msr 4001", "- cap 11: 1", "- cap 2: 1"].map(str::to_owned).to_vec();
        assert_eq!(take_out(expected, &mut lines), ["2 lines: absent", "1 lines: other"]);
        assert_eq!(lines, ["- cap 11: 1"]);
    }
}
