//! Statistics, read as user space reads them: through the header and the descriptors.

use abi::uapi::ioctl::*;
use abi::{VcpuReply, VmReply};
use sim::arch::exit::code;
use sim::host::{Errno, MapLevel};
use std::collections::BTreeMap;
use tests::scenario::{DATA, MMIO, Machine, NOWHERE};

/// The whole file, read in pieces of `step` bytes.
fn image(m: &Machine, vcpu: Option<usize>, step: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let vcpu = vcpu.map(|n| m.cpu(n));
        let n = abi::read_stats(&m.vm, vcpu, 77, DATA, step, bytes.len() as u64).expect("a readable file");
        assert!(n <= step);
        if n == 0 {
            return bytes;
        }
        bytes.extend((0..n).map(|i| m.get_at::<u8>(DATA + i)));
    }
}

fn word(image: &[u8], at: usize) -> usize {
    u32::from_le_bytes(image[at..at + 4].try_into().unwrap()) as usize
}

fn text(image: &[u8], at: usize, size: usize) -> String {
    let bytes = &image[at..at + size];
    let end = bytes.iter().position(|b| *b == 0).expect("it ends");
    String::from_utf8(bytes[..end].into()).unwrap()
}

/// Identifier, and values by name.
fn parse(image: &[u8]) -> (String, BTreeMap<String, u64>) {
    let [flags, name, n, id, descriptors, data] = std::array::from_fn(|i| word(image, i * 4));
    assert_eq!(flags, 0);
    let value = |i: usize| {
        let at = descriptors + i * (16 + name);
        assert_eq!(word(image, at + 4) >> 16, 1, "one word each");
        let from = data + word(image, at + 8);
        (text(image, at + 16, name), u64::from_le_bytes(image[from..from + 8].try_into().unwrap()))
    };
    assert_eq!(image.len(), data + 8 * n);
    (text(image, id, name), (0..n).map(value).collect())
}

#[test]
fn what_a_vcpu_did() {
    let m = Machine::new();
    let stats = || parse(&image(&m, Some(0), 4096));
    assert!(stats().1.values().all(|n| *n == 0), "{:?}", stats().1);
    m.long(0, &[0x48, 0x8b, 0x03]);
    m.with_regs(0, |r| r.rbx = MMIO);
    m.tries(0, MMIO, false);
    assert!(m.run(0).is_ok());
    m.load(0, 0x20_0000, 0);
    m.exit(0, code::NMI);
    m.hlt(0);
    m.run_out(0);
    let (id, all) = stats();
    assert_eq!(id, "kvm-77/vcpu-0");
    let want = [
        ("pf_taken", 2),
        ("pf_fixed", 1),
        ("pf_emulate", 1),
        ("insn_emulation", 1),
        ("mmio_exits", 1),
        ("halt_exits", 1),
        ("signal_exits", 1),
        ("io_exits", 0),
        ("blocking", 0),
    ];
    for (name, n) in want {
        assert_eq!(all.get(name), Some(&n), "{name} of {all:?}");
    }
    assert_eq!(all["exits"], 4);
}

#[test]
fn pages_of_a_vm_by_size() {
    let m = Machine::new();
    let stats = || parse(&image(&m, None, 4096));
    m.sim.set_level(MapLevel::Page2M);
    m.load(0, 0x20_0000, 0);
    m.run_out(0);
    m.sim.set_level(MapLevel::Page4K);
    m.load(0, 0x1000, 0);
    m.load(0, 0x1f_f000, 0);
    m.run_out(0);
    let (id, all) = stats();
    assert_eq!(id, "kvm-77");
    assert_eq!((all["pages_4k"], all["pages_2m"], all["pages_1g"]), (2, 1, 0));
    let flushes = all["remote_tlb_flush_requests"];
    m.host_changes(0x1000, 1, sim::Page::Writable);
    let all = stats().1;
    assert_eq!((all["pages_4k"], all["remote_tlb_flush_requests"]), (1, flushes + 1));
    assert_eq!(all["remote_tlb_flush"], 0, "no vCPU was in the guest");
}

#[test]
fn any_part_of_the_file_can_be_read() {
    let m = Machine::new();
    for vcpu in [None, Some(0)] {
        let whole = image(&m, vcpu, 8192);
        for step in [1, 7, 100, 2048] {
            assert_eq!(image(&m, vcpu, step), whole);
        }
        let read = |to, len, pos| abi::read_stats(&m.vm, vcpu.map(|n| m.cpu(n)), 77, to, len, pos);
        assert_eq!(read(DATA, 100, whole.len() as u64), Ok(0));
        assert_eq!((read(DATA, u64::MAX, u64::MAX), read(DATA, 0, 0)), (Ok(0), Ok(0)));
        assert_eq!(read(DATA, 100, whole.len() as u64 - 3), Ok(3));
        assert_eq!(read(NOWHERE, 8, 0), Err(Errno::EFAULT));
    }
}

#[test]
fn the_ioctl_asks_for_a_file() {
    let m = Machine::new();
    assert_eq!(abi::vm_ioctl(&m.vm, KVM_GET_STATS_FD, 0), Ok(VmReply::Stats));
    assert_eq!(abi::vcpu_ioctl(&m.vm, m.cpu(0), KVM_GET_STATS_FD, 0), Ok(VcpuReply::Stats));
}
