//! Guest memory that is mapped before the guest touches it.

use crate::memory::faults;
use abi::uapi::ioctl::*;
use sim::Page;
use sim::host::{Errno, MapLevel};
use tests::scenario::{DATA, Machine, RAM, RAM_HVA};

/// KVM_PRE_FAULT_MEMORY: its result, and what is left of the range.
fn pre_fault(m: &Machine, gpa: u64, size: u64, flags: u64) -> (Result<i64, Errno>, u64, u64) {
    m.put_at(DATA, &[gpa, size, flags, 0, 0, 0, 0, 0]);
    let result = m.vcpu(0, KVM_PRE_FAULT_MEMORY, DATA);
    let [gpa, size, ..] = m.get_at::<[u64; 8]>(DATA);
    (result, gpa, size)
}

#[test]
fn a_large_page_is_mapped_ahead_at_once() {
    let m = Machine::new();
    m.sim.set_level(MapLevel::Page2M);
    assert_eq!(pre_fault(&m, 0x20_1000, 0x1f_f000, 0), (Ok(0), 0x40_0000, 0));
    assert_eq!((faults(&m, 0x20_0000), faults(&m, 0x3f_f000), faults(&m, 0x1000)), (0, 0, 1));
    m.end();
}

#[test]
fn memory_can_be_mapped_ahead() {
    let m = Machine::new();
    let ahead = |gpa, size, flags| pre_fault(&m, gpa, size, flags);
    assert_eq!(ahead(0x4000, 0x3000, 0), (Ok(0), 0x7000, 0));
    assert_eq!((faults(&m, 0x4000), faults(&m, 0x6000), faults(&m, 0x7000)), (0, 0, 1));
    // What is done is done, and the rest comes back.
    assert_eq!(ahead(RAM - 0x1000, 0x3000, 0), (Ok(0), RAM, 0x2000));
    assert_eq!(ahead(RAM, 0x2000, 0), (Err(Errno::ENOENT), RAM, 0x2000));
    m.host_changes(0x9000, 1, Page::Absent);
    m.host_changes(0xa000, 1, Page::Poisoned);
    assert_eq!(ahead(0x8000, 0x2000, 0), (Ok(0), 0x9000, 0x1000));
    assert_eq!(ahead(0x9000, 0x1000, 0), (Err(Errno::EFAULT), 0x9000, 0x1000));
    assert_eq!(ahead(0xa000, 0x1000, 0), (Err(Errno::EINTR), 0xa000, 0x1000));
    assert_eq!(*m.sim.0.sigbus.lock(), [RAM_HVA + 0xa000], "and with it SIGBUS");
    m.sim.clear_signal();
    m.host_changes(0xa000, 1, Page::Missing);
    assert_eq!(ahead(0xa000, 0x1000, 0), (Err(Errno::EINTR), 0xa000, 0x1000));
    m.sim.clear_signal();
    m.sim.signal();
    assert_eq!(ahead(0x1_0000, 0x1000, 0), (Err(Errno::EINTR), 0x1_0000, 0x1000));
    m.sim.clear_signal();
    for (gpa, size, flags) in
        [(0x1001, 0x1000, 0), (0x1000, 1, 0), (0x1000, 0, 0), (0x1000, 0x1000, 1), (1 << 63, 1 << 63, 0)]
    {
        assert_eq!(ahead(gpa, size, flags), (Err(Errno::EINVAL), gpa, size));
    }
    m.end();
}
