//! Why the module does without what the stock pair takes of the kernel: the one place where that is decided.

/// A reason, and the symbols that it is for, on whichever kernel they are.
#[rustfmt::skip]
pub const WITHOUT: &[(&str, &str)] = &[
    // What is not there yet, or not offered: README.md has the list.
    ("trace events with such arguments: not there yet (docs/decisions/0038)", "
        __SCK__tp_func_ipi_send_cpu __SCT__tp_func_ipi_send_cpu __tracepoint_ipi_send_cpu bpf_trace_run6
        bpf_trace_run8 bpf_trace_run9 trace_print_hex_seq trace_seq_printf"),
    ("debugfs without looking for what is there, or files that print more than a number (docs/decisions/0039)", "
        debugfs_initialized debugfs_lookup dput seq_printf"),
    ("profile=kvm on the kernel's command line: not there yet", "prof_on profile_hits"),
    ("performance counters of guests: absent", "
        perf_create_mediated_pmu perf_event_create_kernel_counter perf_event_enable perf_event_pause perf_event_period
        perf_event_read_value perf_event_release_kernel perf_get_hw_event_config perf_get_x86_pmu_capability
        perf_load_guest_context perf_load_guest_lvtpc perf_put_guest_context perf_put_guest_lvtpc
        perf_release_mediated_pmu bsearch sort x86_match_cpu __bitmap_set"),
    ("Hyper-V enlightenments without queues of addresses to flush", "
        __kfifo_in __kfifo_out ktime_add_safe __sw_hweight64"),
    ("hosts that are guests of Hyper-V have no help from it", "
        hyperv_fill_flush_guest_mapping_list hyperv_flush_guest_mapping hyperv_flush_guest_mapping_range hv_vp_assist_page
        ms_hyperv x86_hyper_type"),
    ("hosts that are guests of Hyper-V get no TSC page from it, nor help when its TSC changes", "
        clear_hv_tscchange_cb set_hv_tscchange_cb hyperv_stop_tsc_emulation hv_get_tsc_page"),
    ("Xen enlightenments: absent", "
        kthread_unuse_mm kthread_use_mm mod_timer nsecs_to_jiffies timer_delete timer_delete_sync _raw_read_trylock
        _raw_read_lock_irq _raw_read_unlock_irq _raw_write_lock_irq _raw_write_unlock_irq"),
    ("SEV, and hosts that encrypt their memory: absent", "
        set_memory_decrypted set_memory_encrypted sme_me_mask"),
    ("WBINVD is on_each_cpu_cond_mask, which no kernel keeps from other modules", "wbinvd_on_cpu wbinvd_on_cpus_mask"),
    ("descriptors are looked up with fget", "__fdget fdget"),
    ("guest_memfd and memory attributes: absent", "
        __filemap_get_folio_mpol __mpol_put alloc_file_pseudo anon_inode_make_secure_inode file_modified folio_unlock
        generic_file_open get_file_active init_pseudo inode_init_once iput kern_mount kern_unmount kill_anon_super
        mpol_free_shared_policy mpol_set_shared_policy mpol_shared_policy_init mpol_shared_policy_lookup noop_dirty_folio
        simple_statfs truncate_inode_pages_range xa_store_range"),
    ("dirty rings are made of single pages", "vmalloc_to_page"),
    ("nested virtualization: absent", "
        clear_user_erms clear_user_original clear_user_rep_good rep_stos_alternative"),
    ("interrupts that a device posts to a guest (irqbypass, AVIC): absent", "
        default_cpu_present_to_apicid housekeeping_enabled irq_bypass_register_consumer irq_bypass_unregister_consumer
        irq_remapping_cap irq_set_vcpu_affinity param_ops_bint x86_cpu_to_apicid"),
    ("KVM_CAP_VM_DISABLE_NX_HUGE_PAGES: absent", "capable"),

    // What only other processors need.
    ("shadow paging: absent; with it go its caches, its shrinker and its statistics", "
        __percpu_counter_init __percpu_counter_init_many kmem_cache_alloc kmem_cache_alloc_noprof kmem_cache_create
        __kmem_cache_create_args kmem_cache_create_usercopy kmem_cache_destroy kmem_cache_free percpu_counter_add_batch
        percpu_counter_batch percpu_counter_destroy percpu_counter_destroy_many register_shrinker shrinker_alloc
        shrinker_free shrinker_register unregister_shrinker"),
    ("no huge pages that may not execute: that is against a defect of Intel's processors (ITLB_MULTIHIT)", "
        cgroup_attach_task_all cpu_mitigations_off itlb_multihit_kvm_mitigation kstrtobool kthread_create_on_node
        kthread_park kthread_parkme kthread_should_stop kthread_stop kthread_unpark param_get_uint
        param_set_bint param_set_uint set_user_nice vhost_task_create
        vhost_task_start vhost_task_stop vhost_task_wake wake_up_process __msecs_to_jiffies"),
    ("features and defects of Intel's processors alone: PT, SGX, AMX with XFD, MPX, L1TF, GDS", "
        fpstate_clear_xstate_component fpu_enable_guest_xfd_features fpu_sync_guest_vmexit_xfd_state fpu_update_guest_xfd
        gds_ucode_mitigated intel_pt_validate_hw_cap irq_stat l1tf_vmx_mitigation sgx_set_attribute
        xstate_get_guest_group_perm"),
    ("memory types of Intel's nested tables; SVM takes them from the guest's PAT and the host's MTRRs", "
        e820__mapped_raw_any pat_enabled pat_pfn_immune_to_uc_mtrr"),
    ("memory that KVM itself maps into the VMM: only Intel's real mode and APIC access page need it", "vm_mmap vm_munmap"),
    ("defects of family 10h that the kernel and the guest's OSVW leave alone: a #MC of erratum 383 is handled as any other", "
        __flush_tlb_all x86_family x86_model"),
    ("a TSC of changing rate: no processor with nested paging has one", "
        __cpu_present_mask cpufreq_cpu_get cpufreq_cpu_put cpufreq_quick_get cpufreq_register_notifier
        cpufreq_unregister_notifier"),

    // What is done another way.
    ("the mutexes, spin locks and read-write locks of engines are Rust's own (docs/decisions/0007)", "
        _raw_read_lock _raw_read_lock_irqsave _raw_read_unlock _raw_read_unlock_irqrestore
        _raw_write_lock _raw_write_unlock down_write
        mutex_is_locked"),
    ("what others read is guarded by these locks or atomic, or by one SRCU that no VM has of its own", "
        call_rcu call_srcu cleanup_srcu_struct init_srcu_struct
        init_srcu_struct_generic kvfree_call_rcu rcu_barrier srcu_barrier synchronize_srcu"),
    ("vCPUs, slots and devices are in tables of Rust's", "
        __xa_cmpxchg __xa_insert idr_alloc idr_destroy idr_find idr_get_next idr_remove interval_tree_insert
        interval_tree_iter_first interval_tree_iter_next interval_tree_remove mtree_load rb_erase rb_insert_color rb_last
        rb_next rb_prev rb_replace_node xa_destroy xa_erase xa_find xa_find_after xa_load xa_store"),
    ("other threads do nothing for a VM but bring pages in, which are not waited for, and deliver what is for all of its vCPUs \
      (docs/decisions/0010, 0023)", "
        __flush_workqueue cancel_delayed_work_sync
        delayed_work_timer_fn init_timer_key
        kthread_create_worker kthread_create_worker_on_node kthread_destroy_worker kthread_flush_work kthread_queue_work
        pid_vnr queue_delayed_work_on system_long_wq timer_init_key"),
    ("a vCPU is kicked by an IPI to its CPU alone, and a CPU's state is changed on the CPU itself", "
        smp_call_function_many smp_call_function_single"),
    ("the runner is found by a task pointer of its own, under RCU", "get_pid_task get_task_pid put_pid"),
    ("files are made with a descriptor of their own; they hold the base's module, and VMs that of their engine", "
        anon_inode_getfd anon_inode_getfile_fmode"),
    ("the mmu notifier is freed after a grace period, without waiting for it", "mmu_notifier_unregister"),
    ("user memory is copied by the shim's own functions, and requests are copied onto the heap by Rust", "
        __copy_overflow __get_user_4 __get_user_nocheck_4 __get_user_nocheck_8 __put_user_4 __put_user_8
        __put_user_nocheck_4 _copy_from_user memdup_user vmemdup_user"),
    ("pages come from alloc_pages, and everything else from kvmalloc, zeroed there", "
        __clear_pages_unrolled __get_free_pages __kmalloc_large_noprof __vcalloc __vcalloc_noprof
        clear_page_erms clear_page_orig clear_page_rep get_free_pages_noprof get_zeroed_page
        get_zeroed_page_noprof kmem_cache_alloc_lru_noprof vfree vzalloc vzalloc_noprof"),
    ("per-CPU data is part of the module", "__alloc_percpu free_percpu pcpu_alloc_noprof"),
    ("guest memory that has no struct page is looked at through the VMM's address", "memremap memunmap"),
    ("the zero page is mapped as any other, counted by get_user_pages", "__zero_page empty_zero_page zero_page_pfn zero_pfn"),
    ("the size of a mapping is read from the host's page table", "vma_kernel_pagesize"),
    ("pages are taken by get_user_pages_unlocked alone", "
        get_user_pages pin_user_pages_fast pin_user_pages_unlocked unpin_user_page"),
    ("MSRs are read and written by the world switch itself, or as drivers do", "
        __tracepoint_read_msr __tracepoint_write_msr do_trace_read_msr do_trace_write_msr"),
    ("CR4.MCE is always set while a guest runs", "cr4_read_shadow"),
    ("what a CPU can do is asked with CPUID on it", "cpu_info"),
    ("the task register comes back with VMLOAD, not by the descriptor in the GDT", "gdt_page"),
    ("each vCPU has the timer's deadline, so the time left is a difference", "__hrtimer_get_remaining ktime_get_raw"),
    ("a guest's timer is never early, so that nothing waits out the rest", "__delay __ndelay"),
    ("counters of Rust's own where stock patches code as long as no APIC is switched off", "
        __static_key_deferred_flush __static_key_slow_dec_deferred jump_label_update_timeout static_key_slow_dec
        static_key_slow_inc"),
    ("one vendor, known when it is compiled: no calls are patched", "__static_call_return0 __static_call_update"),
    ("KVM_SET_SIGNAL_MASK of a 32-bit VMM: on x86 both layouts are the same bits", "get_compat_sigset"),
    ("the parts of an MSI are taken apart in irqchip", "x86_msi_msg_get_destid"),
    ("the TSC's stability is the kernel's own finding", "mark_tsc_unstable"),
    ("SVM goes off with what the kernel calls at shutdown, as in the kernel's own KVM of later kernels", "
        register_reboot_notifier unregister_reboot_notifier"),
    ("SVM is looked for on the CPU where it is switched on", "migrate_disable migrate_enable"),
    ("the shim's own flag says that SVM may go off under a guest", "virt_rebooting"),
    ("the mmu's lock is given up after a fixed amount of work, whoever waits for it", "
        __cond_resched_rwlock_read __cond_resched_rwlock_write preempt_model_full preempt_model_lazy"),

    // What the C compiler made of stock's text.
    ("bit fields and lists of Rust's", "
        __bitmap_or __find_nth_bit __sw_hweight32 _find_first_bit strcpy strlen"),
    ("debugging aids in inline functions of the kernel that ours does not call", "
        __dynamic_pr_debug __warn_printk dump_stack fpregs_assert_state_consistent"),
    ("registers and variables that the compiler chose", "
        __x86_indirect_thunk_r12 __x86_indirect_thunk_r13 __x86_indirect_thunk_r9 __x86_indirect_thunk_rbp
        __x86_indirect_thunk_rbx __x86_indirect_thunk_rcx __x86_indirect_thunk_rdx __x86_indirect_thunk_rsi"),
];

/// The same for what stock takes of other flavours alone.
#[rustfmt::skip]
pub const WITHOUT_ELSEWHERE: &[(&str, &str)] = &[
    ("SEV: absent", "
        __bitmap_xor _find_next_zero_bit bitmap_free bitmap_zalloc clflush_cache_range misc_cg_set_capacity misc_cg_try_charge
        misc_cg_uncharge print_hex_dump psp_copy_user_blob set_page_dirty_lock sev_guest_activate sev_guest_deactivate
        sev_guest_decommission sev_guest_df_flush sev_issue_cmd_external_user sev_platform_init unpin_user_pages
        wbinvd_on_all_cpus"),
    ("interrupts that a device posts to a guest (AVIC): absent", "
        amd_iommu_activate_guest_mode amd_iommu_deactivate_guest_mode amd_iommu_register_ga_log_notifier amd_iommu_update_ga"),
];
