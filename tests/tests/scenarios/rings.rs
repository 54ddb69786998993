//! Dirty rings as a VMM uses them.

use abi::uapi::ioctl::*;
use kvm_bindings::*;
use sim::host::Errno::*;
use sim::host::SharedPage;
use tests::scenario::{DATA, Left, Machine, RAM_HVA};
use vm::DIRTY_LOG_PAGE_OFFSET;

/// A slot that logs, above the one that does not.
const HIGH: u64 = 0x1000_0000;
const HIGH_HVA: u64 = RAM_HVA + tests::scenario::RAM;
const SLOT: u32 = 5;
const APIC: u64 = 0xfee0_0000;
const BYTES: u64 = 4096;
const DIRTY: u64 = 1;
const RESET: u64 = 2;

/// One vCPU with a ring of 256 entries and a slot of 512 pages that logs.
fn machine() -> Machine {
    let m = Machine::without_vcpu(true);
    assert_eq!(m.enable(KVM_CAP_DIRTY_LOG_RING_ACQ_REL, BYTES), Ok(0));
    assert_eq!(m.add_vcpu(0), Ok(0));
    assert_eq!(m.region(SLOT, KVM_MEM_LOG_DIRTY_PAGES, HIGH, 512 << 12, HIGH_HVA), Ok(0));
    m.long(0, &[]);
    m
}

/// What the guest has written since `from`, as the mapping of the vCPU's file shows it; harvested as it is read.
fn harvest(m: &Machine, vcpu: usize, from: usize) -> Vec<(u32, u64)> {
    let page = m.engine().vcpu_page(&m.cpu(vcpu), DIRTY_LOG_PAGE_OFFSET).expect("a ring").clone();
    let mut found = Vec::new();
    for n in (from..256).map(|n| n * 2) {
        if page.word(n) & (DIRTY | RESET) != DIRTY {
            break;
        }
        found.push(((page.word(n) >> 32) as u32, page.word(n + 1)));
        page.set_word(n, page.word(n) | RESET);
    }
    found
}

fn write(m: &Machine, pages: impl Iterator<Item = u64>) {
    pages.for_each(|page| m.store(0, HIGH + (page << 12), 1));
}

#[test]
fn enabled_once_and_before_vcpus() {
    let m = Machine::without_vcpu(true);
    let enable = |bytes| m.enable(KVM_CAP_DIRTY_LOG_RING, bytes);
    let answers = [0, 2048, 4097, 12288, 1 << 21, 1 << 32].map(enable);
    assert_eq!(answers, [Err(EINVAL), Err(EINVAL), Err(EINVAL), Err(EINVAL), Err(E2BIG), Err(EINVAL)]);
    // As on stock neither flags nor the upper half of the size are looked at.
    for cap in [KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL] {
        let odd = kvm_enable_cap { cap, flags: 7, args: [1 << 32 | BYTES, 1, 1, 1], ..Default::default() };
        assert_eq!(Machine::without_vcpu(true).vm_with(KVM_ENABLE_CAP, &odd), Ok(0));
    }
    assert_eq!(m.vm(KVM_RESET_DIRTY_RINGS, 0), Err(EINVAL), "none yet");
    assert_eq!(enable(BYTES), Ok(0));
    assert_eq!(enable(BYTES), Err(EINVAL));
    assert_eq!(m.vm(KVM_RESET_DIRTY_RINGS, 0), Ok(0));
    assert_eq!(m.enable(KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP, 0), Err(EINVAL), "not on x86");
    assert_eq!(Machine::new().enable(KVM_CAP_DIRTY_LOG_RING, BYTES), Err(EINVAL), "there are vCPUs");
    assert_eq!(m.vm(KVM_CHECK_EXTENSION, KVM_CAP_DIRTY_LOG_RING.into()), Ok(1 << 20));
    assert_eq!(m.vm(KVM_CHECK_EXTENSION, KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP.into()), Ok(0));
}

#[test]
fn written_harvested_reset_and_written_again() {
    let m = machine();
    write(&m, [3, 4, 5, 100].into_iter());
    m.run_out(0);
    assert_eq!(harvest(&m, 0, 0), [(SLOT, 3), (SLOT, 4), (SLOT, 5), (SLOT, 100)]);
    assert_eq!(m.vm(KVM_RESET_DIRTY_RINGS, 0), Ok(4));
    write(&m, [4, 6].into_iter());
    // What is written already has not been told again.
    write(&m, [6, 4].into_iter());
    m.run_out(0);
    assert_eq!(harvest(&m, 0, 4), [(SLOT, 4), (SLOT, 6)]);
    let log = kvm_dirty_log { slot: SLOT, ..Default::default() };
    assert_eq!(m.vm_with(KVM_GET_DIRTY_LOG, &log), Err(ENXIO));
    let clear = kvm_clear_dirty_log { slot: SLOT, num_pages: 64, ..Default::default() };
    assert_eq!(m.vm_with(KVM_CLEAR_DIRTY_LOG, &clear), Err(ENXIO));
    // What the hypervisor writes for the guest, here the time.
    assert_eq!(m.set_msr(0, 0x4b56_4d01, HIGH + 0x3_2001), Ok(1));
    m.run_out(0);
    assert!(harvest(&m, 0, 6).contains(&(SLOT, 50)));
    m.end();
}

#[test]
fn a_full_one_leaves_until_it_is_reset() {
    let m = machine();
    write(&m, 0..300);
    assert_eq!(m.run(0), Ok(Left::Other(KVM_EXIT_DIRTY_RING_FULL)));
    assert_eq!(m.run(0), Ok(Left::Other(KVM_EXIT_DIRTY_RING_FULL)), "nothing was harvested");
    let first = harvest(&m, 0, 0);
    assert_eq!(first.len(), 192, "64 entries are kept free");
    assert_eq!(m.run(0), Ok(Left::Other(KVM_EXIT_DIRTY_RING_FULL)), "harvested is not reset");
    assert_eq!(m.vm(KVM_RESET_DIRTY_RINGS, 0), Ok(192));
    m.run_out(0);
    let mut all = first;
    all.extend(harvest(&m, 0, 192));
    all.extend(harvest(&m, 0, 0));
    // The last one before the exit had not been written yet, and was protected again.
    all.dedup();
    assert_eq!(all, (0..300).map(|page| (SLOT, page)).collect::<Vec<_>>(), "each, in order");
}

/// Each byte that it writes takes an entry.
#[test]
fn a_repeated_instruction_stops_where_a_ring_is_nearly_full() {
    let m = machine();
    // rep movsb, from the local APIC across the end of a page.
    m.long(0, &[0xf3, 0xa4]);
    m.with_regs(0, |r| (r.rsi, r.rdi, r.rcx) = (APIC, HIGH + 0xe00, 1024));
    let (mut all, mut at) = (Vec::new(), 0);
    while m.regs(0).rcx != 0 {
        m.npf(0, APIC, false);
        if m.run(0) != Ok(Left::Other(KVM_EXIT_DIRTY_RING_FULL)) {
            break;
        }
        assert_eq!(m.regs(0).rcx % 192, 1024 % 192, "64 entries are kept free");
        all.extend(harvest(&m, 0, at));
        all.extend(harvest(&m, 0, 0));
        assert_eq!(m.vm(KVM_RESET_DIRTY_RINGS, 0), Ok(192));
        at = (at + 192) % 256;
    }
    assert_eq!((m.regs(0).rcx, m.regs(0).rdi), (0, HIGH + 0x1200));
    all.extend(harvest(&m, 0, at));
    all.dedup();
    assert_eq!(all, [(SLOT, 0), (SLOT, 1)]);
    m.end();
}

#[test]
fn each_vcpu_has_its_own() {
    let m = machine();
    assert_eq!(m.add_vcpu(1), Ok(1));
    assert_eq!(m.vcpu_with(1, KVM_SET_MP_STATE, &kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE }), Ok(0));
    m.long(1, &[]);
    write(&m, [1].into_iter());
    m.store(1, HIGH + 0x2000, 1);
    m.run_out(0);
    m.run_out(1);
    assert_eq!((harvest(&m, 0, 0), harvest(&m, 1, 0)), (vec![(SLOT, 1)], vec![(SLOT, 2)]));
    assert_eq!(m.vm(KVM_RESET_DIRTY_RINGS, 0), Ok(2));
    assert!(m.engine().vcpu_page(&m.cpu(1), DIRTY_LOG_PAGE_OFFSET + 1).is_none(), "a page is all of it");
}

#[test]
fn memory_that_is_faulted_in_ahead_stops_at_a_full_ring() {
    let m = machine();
    // `gpa`, `size`, and what is 0.
    m.put_at(DATA, &[HIGH, 512 << 12, 0, 0, 0, 0, 0, 0u64]);
    assert_eq!(m.vcpu(0, KVM_PRE_FAULT_MEMORY, DATA), Ok(0));
    assert_eq!(m.get_at::<[u64; 2]>(DATA), [HIGH + (256 << 12), 256 << 12]);
    assert_eq!(m.vcpu(0, KVM_PRE_FAULT_MEMORY, DATA), Err(EAGAIN), "no page at all");
    assert_eq!(harvest(&m, 0, 0).len(), 256);
}

/// A full ring goes first, and what else user space has to be told is not lost by it.
#[test]
fn full_while_hyper_v_has_something_to_say() {
    let m = Machine::without_vcpu(true);
    assert_eq!(m.enable(KVM_CAP_DIRTY_LOG_RING_ACQ_REL, BYTES), Ok(0));
    m.add_hyperv_vcpu(0, |_| ());
    assert_eq!(m.enable_vcpu(0, KVM_CAP_HYPERV_SYNIC, 0), Ok(0));
    assert_eq!(m.region(SLOT, KVM_MEM_LOG_DIRTY_PAGES, HIGH, 512 << 12, HIGH_HVA), Ok(0));
    m.long(0, &[]);
    write(&m, 0..191);
    m.run_out(0);
    // The message page is cleared, and user space is told of it.
    m.wrmsr(0, 0x4000_0083, (HIGH + (300 << 12)) | 1);
    assert_eq!(m.run(0), Ok(Left::Other(KVM_EXIT_DIRTY_RING_FULL)));
    assert_eq!(harvest(&m, 0, 0).last(), Some(&(SLOT, 300)));
    assert_eq!(m.vm(KVM_RESET_DIRTY_RINGS, 0), Ok(192));
    assert!(matches!(m.run(0), Ok(Left::Hyperv { kind: KVM_EXIT_HYPERV_SYNIC, .. })));
    m.run_out(0);
    m.end();
}
