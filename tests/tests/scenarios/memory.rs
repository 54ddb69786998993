//! Guest memory: nested faults, what the VMM maps and unmaps, slots that come and go, the dirty log.
//!
//! Long because: a scenario after the other, and all share their helpers.

use abi::uapi::ioctl::*;
use kvm_bindings::*;
use sim::host::{Errno, MapLevel};
use sim::{Outcome, Page};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use tests::scenario::{DATA, Left, MMIO, Machine, RAM, RAM_HVA};

/// A second slot, above the first.
const HIGH: u64 = 0x1000_0000;
const HIGH_HVA: u64 = RAM_HVA + RAM;
/// mov rax, [rbx] and mov [rbx], rax
const LOAD: [u8; 3] = [0x48, 0x8b, 0x03];
const STORE: [u8; 3] = [0x48, 0x89, 0x03];

/// EFAULT, and which page of the guest's it is about.
fn efault(gpa: u64) -> Result<Left, (Errno, Left)> {
    Err((Errno::EFAULT, Left::MemoryFault { gpa }))
}

#[test]
fn first_touch_maps_and_the_vmm_sees_it() {
    let m = Machine::new();
    m.write_ram(0x9008, &77u64.to_le_bytes());
    m.load(0, 0x9008, 77);
    m.store(0, 0x9010, 78);
    m.run_out(0);
    assert_eq!(m.read_ram::<u64>(0x9010), 78);
    assert_eq!(m.sim.tables_live(), 5, "one table of each level, and the other address space's top");
    m.end();
}

#[test]
fn large_pages_follow_the_host() {
    let m = Machine::new();
    m.sim.set_level(MapLevel::Page2M);
    m.store(0, 0x1000, 1);
    m.store(0, 0x2000, 2); // the same 2 MiB: no fault
    m.run_out(0);
    assert_eq!(faults(&m, 0x3000), 0);
    assert_eq!(faults(&m, 0x20_0000), 1);
    assert_eq!(m.read_ram::<u64>(0x2000), 2);
    m.end();
}

/// How many nested faults a read of 8 bytes takes.
pub fn faults(m: &Machine, gpa: u64) -> usize {
    let seen = Arc::new(AtomicUsize::new(0));
    let count = seen.clone();
    m.sim.act(0, move |c| match c.load(gpa) {
        Ok(_) => Outcome::Next,
        Err(fault) => {
            count.fetch_add(1, Relaxed);
            fault
        }
    });
    m.run_out(0);
    seen.load(Relaxed)
}

#[test]
fn a_large_page_does_not_reach_beyond_its_slot() {
    let m = Machine::new();
    m.sim.set_level(MapLevel::Page2M);
    assert_eq!(m.region(1, 0, HIGH, 0x10_0000, HIGH_HVA), Ok(0));
    m.long(0, &LOAD);
    m.with_regs(0, |r| r.rbx = HIGH + 0x10_0000);
    m.store(0, HIGH, 1);
    m.tries(0, HIGH + 0x10_0000, false);
    assert_eq!(m.run(0), Ok(Left::Mmio { gpa: HIGH + 0x10_0000, write: false, data: vec![0; 8] }));
}

#[test]
fn a_hole_is_a_device() {
    let m = Machine::new();
    m.long(0, &STORE);
    m.with_regs(0, |r| (r.rbx, r.rax) = (MMIO, 5));
    m.tries(0, MMIO, true);
    assert_eq!(m.run(0), Ok(Left::Mmio { gpa: MMIO, write: true, data: vec![5, 0, 0, 0, 0, 0, 0, 0] }));
}

#[test]
fn memory_that_the_vmm_has_not_mapped() {
    let m = Machine::new();
    m.host_changes(0x9000, 1, Page::Absent);
    m.load(0, 0x9000, 0);
    assert_eq!(m.run(0), efault(0x9000));
    assert_eq!(m.run(0), efault(0x9000), "until it is mended");
    m.host_changes(0x9000, 1, Page::Writable);
    m.run_out(0);
    m.end();
}

/// KVM_RUN ended with SIGBUS for the page at `gpa`.
fn sigbus(m: &Machine, gpa: u64) {
    assert_eq!(m.run(0), Err((Errno::EINTR, Left::Intr)));
    assert_eq!(std::mem::take(&mut *m.sim.0.sigbus.lock()), [RAM_HVA + gpa]);
}

#[test]
fn broken_memory_is_sigbus() {
    let m = Machine::new();
    m.host_changes(0x9000, 1, Page::Poisoned);
    m.load(0, 0x9120, 0);
    sigbus(&m, 0x9000);
    sigbus(&m, 0x9000);
    // The VMM's handler may have put another page there.
    m.host_changes(0x9000, 1, Page::Writable);
    m.run_out(0);
    m.end();
}

#[test]
fn broken_memory_is_sigbus_for_an_emulated_access() {
    let m = Machine::new();
    m.host_changes(0x9000, 1, Page::Poisoned);
    // movsq from a device to memory
    m.long(0, &[0x48, 0xa5]);
    m.with_regs(0, |r| (r.rsi, r.rdi) = (MMIO, 0x9008));
    m.npf(0, MMIO, false);
    assert_eq!(m.run(0), Ok(Left::Mmio { gpa: MMIO, write: false, data: vec![0; 8] }));
    sigbus(&m, 0x9000);
    m.end();
}

#[test]
fn a_signal_ends_the_wait_for_memory() {
    let m = Machine::new();
    m.host_changes(0x9000, 1, Page::Missing);
    m.load(0, 0x9000, 0);
    assert_eq!(m.run(0), Err((Errno::EINTR, Left::Intr)));
    m.host_changes(0x9000, 1, Page::Writable);
    m.run_out(0);
    m.end();
}

#[test]
fn a_signal_ends_the_wait_of_an_emulated_access() {
    let m = Machine::new();
    m.write_ram(0x9000, &[7]);
    m.host_changes(0x9000, 1, Page::Missing);
    // movsq from memory to a device
    m.long(0, &[0x48, 0xa5]);
    m.with_regs(0, |r| (r.rsi, r.rdi) = (0x9000, MMIO));
    m.npf(0, MMIO, true);
    assert_eq!(m.run(0), Err((Errno::EINTR, Left::Intr)));
    m.host_changes(0x9000, 1, Page::Writable);
    m.npf(0, MMIO, true);
    assert_eq!(m.run(0), Ok(Left::Mmio { gpa: MMIO, write: true, data: vec![7, 0, 0, 0, 0, 0, 0, 0] }));
    m.end();
}

#[test]
fn what_user_space_answered_is_not_asked_again() {
    let m = Machine::new();
    m.host_changes(0x9000, 1, Page::Missing);
    m.long(0, &[0x48, 0xa5]);
    m.with_regs(0, |r| (r.rsi, r.rdi) = (MMIO, 0x9008));
    m.npf(0, MMIO, false);
    assert_eq!(m.run(0), Ok(Left::Mmio { gpa: MMIO, write: false, data: vec![0; 8] }));
    m.page(0).write(abi::uapi::run::exit::MMIO_DATA, &[5, 0, 0, 0, 0, 0, 0, 0]);
    let sim = m.sim.clone();
    m.sim.during_wait(move || sim.set_page(RAM_HVA + 0x9000, Page::Writable));
    m.run_out(0);
    assert_eq!(m.read_ram::<u64>(0x9008), 5);
    assert_eq!(
        *m.sim.0.awaited.lock(),
        [RAM_HVA + 0x9000],
        "slept: the signal that is pending ends any other wait at once"
    );
    m.end();
}

#[test]
fn memory_that_the_vmm_has_read_only() {
    let m = Machine::new();
    m.host_changes(0x9000, 1, Page::ReadOnly);
    m.load(0, 0x9000, 0);
    m.store(0, 0x9000, 1);
    assert_eq!(m.run(0), efault(0x9000), "reads work, writes do not");
    m.host_changes(0x9000, 1, Page::Writable);
    m.run_out(0);
    assert_eq!(m.read_ram::<u64>(0x9000), 1);
}

#[test]
fn read_only_slots_are_devices_for_writes() {
    let m = Machine::new();
    assert_eq!(m.region(1, KVM_MEM_READONLY, HIGH, 0x4000, HIGH_HVA), Ok(0));
    m.long(0, &STORE);
    m.with_regs(0, |r| (r.rbx, r.rax) = (HIGH + 8, 9));
    m.load(0, HIGH + 8, 0);
    m.tries(0, HIGH + 8, true);
    assert_eq!(m.run(0), Ok(Left::Mmio { gpa: HIGH + 8, write: true, data: vec![9, 0, 0, 0, 0, 0, 0, 0] }));
    m.load(0, HIGH + 8, 0);
    m.run_out(0);
}

#[test]
fn device_memory_that_the_vmm_has_read_only() {
    let m = Machine::new();
    m.write_ram(0x9008, &[1, 0, 0, 0]);
    m.host_changes(0x9000, 1, Page::ReadOnlyDevice);
    let written = |data: &[u8]| Ok(Left::Mmio { gpa: 0x9008, write: true, data: data.into() });
    // Also add [rbx], eax, lock xadd [rbx], eax, and movsb from elsewhere.
    let cases: [(&[u8], &[u8]); 4] = [
        (&STORE, &[9, 0, 0, 0, 0, 0, 0, 0]),
        (&[0x01, 0x03], &[10, 0, 0, 0]),
        (&[0xf0, 0x0f, 0xc1, 0x03], &[10, 0, 0, 0]),
        (&[0xa4], &[7]),
    ];
    m.write_ram(0xa000, &[7]);
    for (code, data) in cases {
        m.long(0, code);
        m.with_regs(0, |r| (r.rbx, r.rdi, r.rsi, r.rax) = (0x9008, 0x9008, 0xa000, 9));
        m.load(0, 0x9008, 1);
        m.tries(0, 0x9008, true);
        assert_eq!(m.run(0), written(data), "{code:x?}");
        m.load(0, 0x9008, 1);
        m.run_out(0);
        assert_eq!(m.regs(0).rip, tests::scenario::CODE + code.len() as u64);
    }
    m.host_changes(0x9000, 1, Page::Writable);
    m.store(0, 0x9008, 2);
    m.run_out(0);
    m.end();
}

#[test]
fn the_notifier_takes_pages_back() {
    let m = Machine::new();
    m.store(0, 0x9000, 1);
    m.run_out(0);
    // Another page of the host's is there afterwards: the guest faults, and sees what the VMM sees.
    m.host_changes(0x9000, 1, Page::Absent);
    assert_eq!(m.sim.page_references(), 0);
    m.host_changes(0x9000, 1, Page::Writable);
    m.write_ram(0x9000, &2u64.to_le_bytes());
    assert_eq!(faults(&m, 0x9000), 1);
    m.load(0, 0x9000, 2);
    m.run_out(0);
}

#[test]
fn a_fault_within_an_invalidation_waits_for_its_end() {
    use sim::arch::Hva;
    let m = Machine::new();
    let (start, end) = (Hva(RAM_HVA + 0x9000), Hva(RAM_HVA + 0xa000));
    m.engine().mmu_invalidate_start(start, end, true);
    m.load(0, 0x9000, 0);
    // The guest retries for as long as it takes: after 50 faults a signal comes.
    let sim = m.sim.clone();
    m.sim.drop_script(0);
    let mut faults = 0;
    m.sim.act(0, move |c| match c.load(0x9000) {
        Ok(_) => Outcome::Next,
        Err(fault) => {
            faults += 1;
            if faults == 50 {
                sim.signal();
            }
            fault
        }
    });
    assert_eq!(m.run(0), Err((Errno::EINTR, Left::Intr)));
    m.engine().mmu_invalidate_end(start, end);
    m.run_out(0);
}

#[test]
fn a_page_that_the_host_takes_before_it_is_mapped() {
    let m = Arc::new(Machine::new());
    let other = m.clone();
    m.sim.during_fault(move || other.host_changes(0x9000, 1, Page::Absent));
    m.load(0, 0x9000, 0);
    assert_eq!(m.run(0), efault(0x9000), "the fault starts over, and finds nothing");
}

#[test]
fn a_slot_that_goes_before_its_page_is_mapped() {
    let m = Arc::new(Machine::new());
    assert_eq!(m.region(1, 0, HIGH, 0x4000, HIGH_HVA), Ok(0));
    m.long(0, &LOAD);
    m.with_regs(0, |r| r.rbx = HIGH);
    let other = m.clone();
    m.sim.during_fault(move || assert_eq!(other.region(1, 0, 0, 0, 0), Ok(0)));
    m.tries(0, HIGH, false);
    assert_eq!(m.run(0), Ok(Left::Mmio { gpa: HIGH, write: false, data: vec![0; 8] }));
}

#[test]
fn a_fault_in_a_slot_that_is_going_maps_nothing() {
    let m = Arc::new(Machine::new());
    assert_eq!(m.region(1, 0, HIGH, 0x4000, HIGH_HVA), Ok(0));
    m.store(0, HIGH, 1); // so that there is something to flush
    m.run_out(0);
    let other = m.clone();
    m.sim.during_kick(move || {
        other.tries(0, HIGH + 0x1000, false);
        other.run_out(0);
    });
    assert_eq!(m.region(1, 0, 0, 0, 0), Ok(0));
    m.long(0, &LOAD);
    m.with_regs(0, |r| r.rbx = HIGH + 0x1000);
    m.tries(0, HIGH + 0x1000, false);
    assert_eq!(m.run(0), Ok(Left::Mmio { gpa: HIGH + 0x1000, write: false, data: vec![0; 8] }));
}

#[test]
fn aging() {
    use sim::arch::Hva;
    let m = Machine::new();
    let (start, end) = (Hva(RAM_HVA + 0x9000), Hva(RAM_HVA + 0xa000));
    assert!(!m.engine().mmu_test_young(start, end));
    m.store(0, 0x9000, 1);
    m.run_out(0);
    assert!(m.engine().mmu_test_young(start, end));
    assert!(m.engine().mmu_age(start, end) && !m.engine().mmu_age(start, end));
}

fn dirty(m: &Machine, slot: u32) -> Result<Vec<u64>, Errno> {
    m.put_at(DATA, &[0xeeee_eeee_eeee_eeeeu64; 2]);
    let mut log = kvm_dirty_log { slot, ..Default::default() };
    log.__bindgen_anon_1.dirty_bitmap = DATA as *mut _;
    m.vm_with(KVM_GET_DIRTY_LOG, &log)?;
    let words = m.get_at::<[u64; 2]>(DATA);
    Ok((0..128).filter(|n| words[*n as usize / 64] >> (n % 64) & 1 != 0).collect())
}

#[test]
fn the_dirty_log() {
    let m = Machine::new();
    let pages = 100;
    assert_eq!(m.region(1, KVM_MEM_LOG_DIRTY_PAGES, HIGH, pages << 12, HIGH_HVA), Ok(0));
    assert_eq!(dirty(&m, 1), Ok(vec![]));
    m.load(0, HIGH, 0);
    m.store(0, HIGH + 0x3000, 1);
    m.store(0, HIGH + 0x3008, 1);
    m.store(0, HIGH + (99 << 12), 1);
    m.run_out(0);
    // The first was only read: it was mapped writable for it, as on stock.
    assert_eq!(dirty(&m, 1), Ok(vec![0, 3, 99]));
    assert_eq!(dirty(&m, 1), Ok(vec![]), "cleared");
    // The pages are protected again, in the TLB too.
    m.store(0, HIGH + 0x3000, 2);
    m.run_out(0);
    assert_eq!(dirty(&m, 1), Ok(vec![3]));
    // What the hypervisor itself writes for the guest counts: rep movs-like stores by the emulator.
    m.protected(0, &[0xf3, 0x6c]);
    m.with_regs(0, |r| (r.rdi, r.rcx, r.rdx) = (HIGH + 0x5000, 2, 0x60));
    m.sim.step(0, |c| (sim::arch::exit::code::IOIO, 0x60 << 16 | 1 << 4 | 0xd, c.guest().rip + 2));
    assert!(matches!(m.run(0), Ok(Left::Io { input: true, count: 2, .. })));
    m.run_out(0);
    assert_eq!(dirty(&m, 1), Ok(vec![5]));
    assert_eq!(dirty(&m, 0), Err(Errno::ENOENT));
    assert_eq!(dirty(&m, 9), Err(Errno::ENOENT));
    m.end();
}

#[test]
fn large_pages_are_logged_in_small_ones() {
    let m = Machine::new();
    m.sim.set_level(MapLevel::Page2M);
    m.store(0, 0x1000, 1);
    m.run_out(0);
    assert_eq!(m.region(0, KVM_MEM_LOG_DIRTY_PAGES, 0, RAM, RAM_HVA), Ok(0));
    m.store(0, 0x2000, 1);
    m.run_out(0);
    m.put_at(DATA, &[0u64; 16]);
    assert_eq!(dirty(&m, 0), Ok(vec![2]));
    // Without the log the memory is large again.
    assert_eq!(m.region(0, 0, 0, RAM, RAM_HVA), Ok(0));
    assert_eq!((faults(&m, 0x1000), faults(&m, 0x8000)), (1, 0));
}

/// The large page of a read-only slot stays when a log begins. No vCPU may go on using it when the host takes the
/// memory back.
#[test]
fn a_large_read_only_page_is_logged_and_flushed() {
    for manual in [0, 3] {
        let m = Machine::new();
        assert_eq!(m.enable(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, manual), Ok(0));
        m.sim.set_level(MapLevel::Page2M);
        assert_eq!(m.region(1, KVM_MEM_READONLY, HIGH, 0x20_0000, RAM_HVA), Ok(0));
        m.load(0, HIGH + 0x9000, 0);
        m.run_out(0);
        let flags = KVM_MEM_READONLY | KVM_MEM_LOG_DIRTY_PAGES;
        assert_eq!(m.region(1, flags, HIGH, 0x20_0000, RAM_HVA), Ok(0));
        // With all bits set at first, pages are protected as their bits are cleared.
        m.put_at(DATA, &[u64::MAX]);
        let mut clear = kvm_clear_dirty_log { slot: 1, num_pages: 64, first_page: 0, ..Default::default() };
        clear.__bindgen_anon_1.dirty_bitmap = DATA as *mut _;
        assert_eq!(m.vm_with(KVM_CLEAR_DIRTY_LOG, &clear), Ok(0));
        m.host_changes(0x9000, 1, Page::Absent);
        m.load(0, HIGH + 0x9000, 0);
        assert_eq!(m.run(0), efault(HIGH + 0x9000));
    }
}

#[test]
fn the_dirty_log_cleared_by_hand() {
    let m = Machine::new();
    assert_eq!(m.enable(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 1), Ok(0));
    assert_eq!(m.region(1, KVM_MEM_LOG_DIRTY_PAGES, HIGH, 128 << 12, HIGH_HVA), Ok(0));
    for n in [1, 2, 70] {
        m.store(0, HIGH + (n << 12), n);
    }
    m.run_out(0);
    assert_eq!((dirty(&m, 1), dirty(&m, 1)), (Ok(vec![1, 2, 70]), Ok(vec![1, 2, 70])));
    m.put_at(DATA, &[1u64 << 2, 0]);
    let mut clear = kvm_clear_dirty_log { slot: 1, num_pages: 64, first_page: 0, ..Default::default() };
    clear.__bindgen_anon_1.dirty_bitmap = DATA as *mut _;
    assert_eq!(m.vm_with(KVM_CLEAR_DIRTY_LOG, &clear), Ok(0));
    assert_eq!(dirty(&m, 1), Ok(vec![1, 70]));
    m.store(0, HIGH + 0x2000, 5);
    m.run_out(0);
    assert_eq!(dirty(&m, 1), Ok(vec![1, 2, 70]));
}

#[test]
fn a_deleted_slot_is_gone_at_once() {
    let m = Machine::new();
    assert_eq!(m.region(1, 0, HIGH, 0x4000, HIGH_HVA), Ok(0));
    m.store(0, HIGH, 1);
    m.run_out(0);
    assert_eq!(m.region(1, 0, 0, 0, 0), Ok(0));
    m.long(0, &LOAD);
    m.with_regs(0, |r| r.rbx = HIGH);
    m.tries(0, HIGH, false);
    assert_eq!(m.run(0), Ok(Left::Mmio { gpa: HIGH, write: false, data: vec![0; 8] }));
}

#[test]
fn a_moved_slot_takes_its_memory_along() {
    let m = Machine::new();
    assert_eq!(m.region(1, 0, HIGH, 0x4000, HIGH_HVA), Ok(0));
    m.store(0, HIGH, 1);
    m.run_out(0);
    assert_eq!(m.region(1, 0, HIGH + 0x10_0000, 0x4000, HIGH_HVA), Ok(0));
    m.load(0, HIGH + 0x10_0000, 1);
    m.run_out(0);
    m.end();
}

#[test]
fn slots_and_mappings_change_while_the_guest_runs() {
    let m = Machine::new();
    assert_eq!(m.region(1, 0, HIGH, 0x8000, HIGH_HVA), Ok(0));
    let over = AtomicBool::new(false);
    m.long(0, &[]);
    thread::scope(|s| {
        let guest = s.spawn(|| {
            // An access may meet a hole or memory that is gone; through a stale translation it would be a panic.
            let mut n = 0u64;
            while !over.load(Relaxed) {
                for _ in 0..16 {
                    n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
                    m.tries(0, HIGH + (n >> 40 & 0x7ff8), n & 1 != 0);
                }
                while m.sim.steps_left(0) != 0 {
                    let _ = m.run(0);
                }
            }
        });
        let at = HIGH_HVA - RAM_HVA;
        for round in 0..200u64 {
            let (first, pages) = (round % 7, 1 + round % 2);
            m.host_changes(at + (first << 12), pages, Page::Absent);
            assert_eq!(m.region(1, 0, 0, 0, 0), Ok(0));
            m.host_changes(at, 8, Page::Writable);
            let flags = if round & 1 == 0 { 0 } else { KVM_MEM_LOG_DIRTY_PAGES };
            assert_eq!(m.region(1, flags, HIGH, 0x8000, HIGH_HVA), Ok(0));
            m.host_changes(at + (first << 12), pages, Page::ReadOnly);
            m.host_changes(at, 8, Page::Writable);
            assert_eq!(m.region(1, flags, HIGH + 0x10_0000, 0x8000, HIGH_HVA), Ok(0));
            assert_eq!(m.region(1, flags, HIGH, 0x8000, HIGH_HVA), Ok(0));
        }
        over.store(true, Relaxed);
        guest.join().expect("the vCPU's thread");
    });
    m.end();
}

#[test]
fn the_end_of_the_address_space_ends_the_guest() {
    let m = Machine::new();
    m.store(0, 0x9000, 1);
    m.run_out(0);
    m.engine().mmu_release();
    m.does(0, |_| panic!("the guest runs"));
    assert_eq!(m.run(0).unwrap_err().0, Errno::EIO);
    m.end();
}

#[test]
fn translate_walks_the_guests_tables() {
    let m = Machine::new();
    m.long(0, &[]);
    let ask = |linear_address| {
        m.put_at(DATA, &kvm_translation { linear_address, ..Default::default() });
        assert_eq!(m.vcpu(0, KVM_TRANSLATE, DATA), Ok(0));
        let t: kvm_translation = m.get_at(DATA);
        (t.valid, t.physical_address)
    };
    assert_eq!(ask(0x20_1234), (1, 0x20_1234));
    assert_eq!(ask(1 << 40).0, 0);
    // Without paging an address is itself, but for the one that means "none".
    let m = Machine::new();
    m.real(0, &[]);
    for (linear_address, valid) in [(0x1_0000, 1), (!0, 0), (!0 - 1, 1)] {
        m.put_at(DATA, &kvm_translation { linear_address, ..Default::default() });
        assert_eq!(m.vcpu(0, KVM_TRANSLATE, DATA), Ok(0));
        let t: kvm_translation = m.get_at(DATA);
        assert_eq!((t.valid, t.physical_address), (valid, linear_address));
    }
}
