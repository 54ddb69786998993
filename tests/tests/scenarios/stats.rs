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
        let n =
            abi::read_stats(&m.engine(), vcpu.as_deref(), 77, DATA, step, bytes.len() as u64).expect("a readable file");
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

/// Identifier, and values by name; those of a histogram are added up.
fn parse(image: &[u8]) -> (String, BTreeMap<String, u64>) {
    let [flags, name, n, id, descriptors, data] = std::array::from_fn(|i| word(image, i * 4));
    assert_eq!(flags, 0);
    let mut end = data;
    let value = |i: usize| {
        let at = descriptors + i * (16 + name);
        let (size, from) = (word(image, at + 4) >> 16, data + word(image, at + 8));
        assert_eq!(from, end, "one after the other");
        end = from + 8 * size;
        let sum = image[from..end].chunks(8).map(|w| u64::from_le_bytes(w.try_into().unwrap())).sum();
        (text(image, at + 16, name), sum)
    };
    let values = (0..n).map(value).collect();
    assert_eq!(image.len(), end);
    (text(image, id, name), values)
}

/// Name, flags, exponent and size of each.
fn list(image: &[u8]) -> Vec<String> {
    let [_, name, n, _, descriptors, _] = std::array::from_fn(|i| word(image, i * 4));
    let line = |i: usize| {
        let at = descriptors + i * (16 + name);
        let (exponent, size) = (word(image, at + 4) as u16 as i16, word(image, at + 4) >> 16);
        format!("{} {:#x} {exponent} {size}", text(image, at + 16, name), word(image, at))
    };
    (0..n).map(line).collect()
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

/// As debugfs reads them: one at a time, and without a look at all memory for one that has nothing to do with it.
#[test]
fn one_number_costs_what_it_needs() {
    let m = Machine::new();
    m.load(0, 0x1000, 0);
    m.run_out(0);
    let vm = m.engine();
    let mut all = Vec::new();
    vm.stats(&mut |value| {
        all.push(value);
        Ok(())
    })
    .expect("nobody fails");
    let names = vm::Vm::<sim::Sim>::stat_list().map(|stat| stat.name).collect::<Vec<_>>();
    assert_eq!(names.len(), all.len());
    for (n, name) in names.into_iter().enumerate() {
        let before = m.sim.offers();
        assert_eq!(vm.stat(n), all[n], "{name}");
        assert_eq!(m.sim.offers() != before, name.starts_with("pages_"), "{name}");
    }
    assert_eq!(vm.stat(all.len()), 0);
    drop(vm);
    m.end();
}

#[test]
fn any_part_of_the_file_can_be_read() {
    let m = Machine::new();
    for vcpu in [None, Some(0)] {
        let whole = image(&m, vcpu, 8192);
        for step in [1, 7, 100, 2048] {
            assert_eq!(image(&m, vcpu, step), whole);
        }
        let read = |to, len, pos| abi::read_stats(&m.engine(), vcpu.map(|n| m.cpu(n)).as_deref(), 77, to, len, pos);
        assert_eq!(read(DATA, 100, whole.len() as u64), Ok(0));
        assert_eq!((read(DATA, u64::MAX, u64::MAX), read(DATA, 0, 0)), (Ok(0), Ok(0)));
        assert_eq!(read(DATA, 100, whole.len() as u64 - 3), Ok(3));
        assert_eq!(read(NOWHERE, 8, 0), Err(Errno::EFAULT));
    }
}

#[test]
fn the_ioctl_asks_for_a_file() {
    let m = Machine::new();
    assert_eq!(abi::vm_ioctl(&m.engine(), KVM_GET_STATS_FD, 0), Ok(VmReply::Stats));
    assert_eq!(abi::vcpu_ioctl(&m.engine(), &m.cpu(0), KVM_GET_STATS_FD, 0), Ok(VcpuReply::Stats));
}

/// As in `kvm_vcpu_stats_desc` and `kvm_vm_stats_desc` of Linux 6.12, in that order.
#[test]
fn the_list_is_stocks() {
    let m = Machine::new();
    let vcpu = list(&image(&m, Some(0), 8192));
    let of = |flags: &str, names: &str| names.split(' ').map(|n| format!("{n} {flags}")).collect::<Vec<_>>();
    let (count, time, histogram) = ("0x0 0 1", "0x20 -9 1", "0x24 -9 32");
    let want = [
        of(count, "halt_successful_poll halt_attempted_poll halt_poll_invalid halt_wakeup"),
        of(time, "halt_poll_success_ns halt_poll_fail_ns halt_wait_ns"),
        of(histogram, "halt_poll_success_hist halt_poll_fail_hist halt_wait_hist"),
        of("0x41 0 1", "blocking"),
        of(
            count,
            "pf_taken pf_fixed pf_emulate pf_spurious pf_fast pf_mmio_spte_created pf_guest tlb_flush invlpg exits",
        ),
        of(count, "io_exits mmio_exits signal_exits irq_window_exits nmi_window_exits l1d_flush halt_exits"),
        of(
            count,
            "request_irq_exits irq_exits host_state_reload fpu_reload insn_emulation insn_emulation_fail hypercalls",
        ),
        of(
            count,
            "irq_injections nmi_injections req_event nested_run directed_yield_attempted directed_yield_successful",
        ),
        of(count, "preemption_reported preemption_other"),
        of("0x41 0 1", "guest_mode"),
        of(count, "notify_window_exits"),
    ];
    assert_eq!(vcpu, want.concat());
    let want = [
        of(
            count,
            "remote_tlb_flush remote_tlb_flush_requests mmu_shadow_zapped mmu_pte_write mmu_pde_zapped mmu_flooded",
        ),
        of(count, "mmu_recycled mmu_cache_miss"),
        of("0x1 0 1", "mmu_unsync pages_4k pages_2m pages_1g nx_lpage_splits"),
        of("0x2 0 1", "max_mmu_rmap_size max_mmu_page_hash_collisions"),
    ];
    assert_eq!(list(&image(&m, None, 8192)), want.concat());
}

#[test]
fn events_and_sleeps_are_counted() {
    let m = Machine::new();
    m.long(0, &[]);
    m.x2apic(0);
    m.with_regs(0, |r| r.rflags |= 0x200);
    let stats = || parse(&image(&m, Some(0), 8192)).1;
    // Two interrupts, and an NMI whose handler ends.
    for vector in [0x41, 0x51] {
        let msi = kvm_bindings::kvm_msi { address_lo: 0xfee0_0000, data: vector, ..Default::default() };
        assert_eq!(m.vm_with(KVM_SIGNAL_MSI, &msi), Ok(1));
        m.does(0, |_| ());
        m.interrupt_flag(0, true);
        m.run_out(0);
    }
    assert_eq!(m.vcpu(0, KVM_NMI, 0), Ok(0));
    m.does(0, |_| ());
    m.run_out(0);
    assert_eq!(m.vcpu(0, KVM_NMI, 0), Ok(0));
    m.exit(0, code::IRET);
    m.does(0, |_| ());
    m.run_out(0);
    let all = stats();
    assert_eq!((all["irq_injections"], all["nmi_injections"], all["nmi_window_exits"]), (2, 1, 1), "{all:?}");
    assert!(all["req_event"] >= 3 && all["host_state_reload"] == all["signal_exits"], "{all:?}");
    // A timer wakes it from HLT: asleep, and after looking around.
    let before = stats();
    m.wrmsr(0, 0x832, 0x4_0061); // LVT: TSC deadline
    m.wrmsr(0, 0x6e0, m.msr(0, 0x10) + 1_000_000);
    m.hlt(0);
    m.does(0, |_| ());
    m.run_out(0);
    let all = stats();
    let more = |name: &str| all[name] - before[name];
    assert_eq!((more("halt_wakeup"), more("halt_wait_hist"), more("halt_attempted_poll")), (1, 1, 0), "{all:?}");
    assert!(more("halt_wait_ns") > 0);
    // A hypercall that gives the CPU away, to nobody.
    m.write_ram(tests::scenario::CODE, &[0x0f, 0x01, 0xd9]);
    m.with_regs(0, |r| (r.rip, r.rax, r.rbx) = (tests::scenario::CODE, 11, 7));
    m.exit(0, code::VMMCALL);
    m.run_out(0);
    let all = stats();
    assert_eq!((all["directed_yield_attempted"], all["directed_yield_successful"], all["hypercalls"]), (1, 0, 1));
    // Translations that are flushed because the host takes a page away.
    m.load(0, 0x9000, 0);
    m.run_out(0);
    m.host_changes(0x9000, 1, sim::Page::Writable);
    m.does(0, |_| ());
    m.run_out(0);
    assert!(stats()["tlb_flush"] > 0);
    m.end();
}

#[test]
fn faults_by_what_they_find() {
    let m = Machine::new();
    m.long(0, &[]);
    let stats = || parse(&image(&m, Some(0), 8192)).1;
    m.store(0, 0x9000, 1);
    m.run_out(0);
    assert_eq!((stats()["pf_fixed"], stats()["pf_fast"], stats()["pf_spurious"]), (1, 0, 0));
    // Another vCPU had mapped it meanwhile.
    m.npf(0, 0x9000, true);
    m.run_out(0);
    assert_eq!((stats()["pf_fixed"], stats()["pf_fast"], stats()["pf_spurious"]), (1, 0, 1));
    // The dirty log takes the permission to write; the page is there.
    let log = kvm_bindings::KVM_MEM_LOG_DIRTY_PAGES;
    assert_eq!(m.region(0, log, 0, tests::scenario::RAM, tests::scenario::RAM_HVA), Ok(0));
    m.store(0, 0x9000, 2);
    m.run_out(0);
    assert_eq!((stats()["pf_fixed"], stats()["pf_fast"], stats()["pf_spurious"]), (2, 1, 1));
    m.end();
}
