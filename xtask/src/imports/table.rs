//! Why the module does without what the stock pair takes of the kernel: the one place where that is decided.

/// A reason, and the symbols that it is for, on whichever kernel they are.
#[rustfmt::skip]
pub const WITHOUT: &[(&str, &str)] = &[
    // What is not there yet, or not offered: README.md has the list.
    ("tracepoints: not there yet", "
        __SCK__tp_func_ipi_send_cpu __SCT__tp_func_ipi_send_cpu __tracepoint_ipi_send_cpu __trace_trigger_soft_disabled
        bpf_trace_run1 bpf_trace_run2 bpf_trace_run3 bpf_trace_run4 bpf_trace_run5 bpf_trace_run6 bpf_trace_run7
        bpf_trace_run8 bpf_trace_run9 perf_trace_buf_alloc perf_trace_run_bpf_submit trace_event_buffer_commit
        trace_event_buffer_reserve trace_event_printf trace_event_raw_init trace_event_reg trace_handle_return
        trace_print_flags_seq trace_print_hex_seq trace_print_symbols_seq trace_raw_output_prep trace_seq_printf
        tracepoint_srcu"),
    ("debugfs files: not there yet; KVM_GET_STATS_FD gives the same figures", "
        debugfs_create_dir debugfs_create_file debugfs_create_file_full debugfs_initialized debugfs_lookup debugfs_remove
        dput generic_file_llseek simple_attr_open simple_attr_read simple_attr_release simple_attr_write single_open
        single_release seq_lseek seq_printf seq_read"),
    ("uevents of VMs: not there yet", "add_uevent_var kobject_uevent_env dentry_path_raw"),
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
    ("dirty rings: absent", "vmalloc_to_page"),
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
    ("shadow paging: absent, so that a page fault is never intercepted, and the host's own asynchronous ones do not get here", "
        kvm_async_pf_task_wait_schedule kvm_read_and_reset_apf_flags"),
    ("no huge pages that may not execute: that is against a defect of Intel's processors (ITLB_MULTIHIT)", "
        cgroup_attach_task_all complete cpu_mitigations_off itlb_multihit_kvm_mitigation kstrtobool kthread_create_on_node
        kthread_park kthread_parkme kthread_should_stop kthread_stop kthread_unpark param_get_uint
        param_set_bint param_set_uint schedule_timeout set_user_nice sysfs_emit vhost_task_create
        vhost_task_start vhost_task_stop vhost_task_wake wait_for_completion wake_up_process __msecs_to_jiffies"),
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
    ("the mutexes, spin locks and read-write locks are Rust's own (docs/decisions/0007)", "
        __init_rwsem __mutex_init _raw_read_lock _raw_read_lock_irqsave _raw_read_unlock _raw_read_unlock_irqrestore
        _raw_spin_lock_irq _raw_spin_unlock_irq _raw_write_lock _raw_write_unlock down_write mutex_init_generic
        mutex_is_locked mutex_lock mutex_lock_killable mutex_trylock mutex_unlock up_write __init_swait_queue_head"),
    ("what others read is guarded by these locks or atomic, not by RCU and SRCU", "
        __srcu_read_lock __srcu_read_unlock call_rcu call_srcu cleanup_srcu_struct init_srcu_struct
        init_srcu_struct_generic kvfree_call_rcu rcu_barrier srcu_barrier synchronize_rcu synchronize_srcu
        synchronize_srcu_expedited"),
    ("vCPUs, slots and devices are in tables of Rust's", "
        __xa_cmpxchg __xa_insert idr_alloc idr_destroy idr_find idr_get_next idr_remove interval_tree_insert
        interval_tree_iter_first interval_tree_iter_next interval_tree_remove mtree_load rb_erase rb_insert_color rb_last
        rb_next rb_prev rb_replace_node xa_destroy xa_erase xa_find xa_find_after xa_load xa_store"),
    ("other threads do nothing for a VM but bring pages in, and are not waited for (docs/decisions/0010, 0023)", "
        __flush_workqueue cancel_delayed_work_sync
        delayed_work_timer_fn flush_work init_timer_key irq_work_queue irq_work_sync jiffies
        kthread_create_worker kthread_create_worker_on_node kthread_destroy_worker kthread_flush_work kthread_queue_work
        pid_vnr queue_delayed_work_on system_long_wq timer_init_key"),
    ("a vCPU is kicked by an IPI to its CPU alone, and a CPU's state is changed on the CPU itself", "
        smp_call_function_many smp_call_function_single"),
    ("the runner is found by a task pointer of its own, under RCU", "get_pid_task get_task_pid put_pid"),
    ("files are made with a descriptor of their own, and the table of their operations holds the module", "
        anon_inode_getfd anon_inode_getfile_fmode try_module_get"),
    ("the mmu notifier is freed after a grace period, without waiting for it", "mmu_notifier_unregister"),
    ("user memory is copied by the shim's own functions, and requests are copied onto the heap by Rust", "
        __copy_overflow __get_user_4 __get_user_nocheck_4 __get_user_nocheck_8 __put_user_4 __put_user_8
        __put_user_nocheck_4 _copy_from_user memdup_user vmemdup_user"),
    ("pages come from alloc_pages, and everything else from kvmalloc, zeroed there", "
        __clear_pages_unrolled __get_free_pages __kmalloc __kmalloc_large_noprof __kmalloc_noprof
        __vcalloc __vcalloc_noprof __vmalloc __vmalloc_noprof clear_page_erms
        clear_page_orig clear_page_rep get_free_pages_noprof get_zeroed_page get_zeroed_page_noprof
        kmem_cache_alloc_lru_noprof vfree vzalloc vzalloc_noprof"),
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
    ("the state of the machine is told by the reboot notifier", "system_state"),
    ("SVM is looked for on the CPU where it is switched on", "migrate_disable migrate_enable"),
    ("the shim's own flag says that SVM may go off under a guest", "virt_rebooting"),
    ("the mmu's lock is given up after a fixed amount of work, whoever waits for it", "
        __cond_resched_rwlock_read __cond_resched_rwlock_write preempt_model_full preempt_model_lazy"),

    // What the C compiler made of stock's text.
    ("bit fields and lists of Rust's", "
        __bitmap_or __find_nth_bit __list_add_valid __list_add_valid_or_report __list_del_entry_valid
        __list_del_entry_valid_or_report __sw_hweight32 _find_first_bit strcpy strlen"),
    ("debugging aids in inline functions of the kernel that ours does not call", "
        __SCT__WARN_trap __dynamic_pr_debug __fortify_panic __warn_printk dump_stack fpregs_assert_state_consistent"),
    ("registers and variables that the compiler chose", "
        __SCT__preempt_schedule_notrace __x86_indirect_thunk_r10 __x86_indirect_thunk_r12 __x86_indirect_thunk_r13
        __x86_indirect_thunk_r9 __x86_indirect_thunk_rbp __x86_indirect_thunk_rbx __x86_indirect_thunk_rcx
        __x86_indirect_thunk_rdx __x86_indirect_thunk_rsi"),
];
