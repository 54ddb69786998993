//! Every allocation of a VM's life fails once, in its turn: nothing is leaked, nothing is half done, and the same
//! call works when there is memory again.
//!
//! A program of its own, because its heap fails.

use abi::uapi::ioctl::*;
use kvm_bindings::*;
use sim::alloc::Plan;
use sim::host::Errno::{self, ENOMEM};
use sim::{Page, alloc};
use tests::failing::Failing;
use tests::plain::{MsrFilter, MsrFilterRange};
use tests::scenario::{
    DATA, Left, MMIO, Machine, PLAIN, RAM, RAM_HVA, all_through_the_assembly, is_through_the_assembly,
};

#[global_allocator]
static HEAP: Failing = Failing;

/// What a call came to: success or an errno. A run that is interrupted at the end of its script is a success.
type Done = Result<(), Errno>;

/// Calls until it works. A call that fails for want of memory has changed nothing that keeps it from working later.
struct Retrying {
    failures: u64,
}

impl Retrying {
    fn call<T>(&mut self, mut f: impl FnMut() -> Result<T, Errno>) -> T {
        loop {
            let before = alloc::failed();
            match f() {
                Ok(v) => {
                    assert_eq!(alloc::failed(), before, "an allocation failed and nobody was told");
                    return v;
                }
                Err(e) => {
                    assert_eq!(e, ENOMEM);
                    assert!(alloc::failed() > before, "ENOMEM although nothing failed");
                    self.failures += 1;
                    if matches!(PLAN.get(), Some(Plan::From(_))) {
                        alloc::plan(None);
                    }
                }
            }
        }
    }
}

thread_local! {
    static PLAN: std::cell::Cell<Option<Plan>> = const { std::cell::Cell::new(None) };
}

fn ok(r: Result<i64, Errno>) -> Done {
    r.map(drop)
}

/// The run ends with the script, or with an errno.
fn run(m: &Machine) -> Done {
    match m.run(0) {
        Err((Errno::EINTR, Left::Intr)) => {
            assert_eq!(m.sim.steps_left(0), 0);
            Ok(())
        }
        Err((e, _)) => Err(e),
        Ok(left) => panic!("{left:?}"),
    }
}

fn create_vcpu(m: &Machine, id: u64) -> Result<usize, Errno> {
    match alloc::counted(|| abi::vm_ioctl(&m.engine(), KVM_CREATE_VCPU, id))? {
        abi::VmReply::NewVcpu { index } => Ok(index),
        other => panic!("{other:?}"),
    }
}

/// A VM with something of everything that allocates.
fn life(r: &mut Retrying) {
    let m = r.call(|| Machine::bare(PLAIN));
    r.call(|| ok(m.enable(KVM_CAP_SPLIT_IRQCHIP, 24)));
    r.call(|| ok(m.region(0, 0, 0, RAM, RAM_HVA)));
    r.call(|| ok(m.region(1, KVM_MEM_LOG_DIRTY_PAGES, 0x1000_0000, 100 << 12, RAM_HVA + RAM)));
    assert_eq!(r.call(|| create_vcpu(&m, 0)), 0);
    m.put_at(DATA, &[256u32, 0]);
    r.call(|| ok(m.system(KVM_GET_SUPPORTED_CPUID, DATA)));
    r.call(|| ok(m.vcpu(0, KVM_SET_CPUID2, DATA)));
    r.call(|| ok(m.vcpu(0, KVM_GET_CPUID2, DATA)));
    m.put_at(DATA, &256u32);
    r.call(|| ok(m.system(KVM_GET_EMULATED_CPUID, DATA)));
    for list in [KVM_GET_MSR_INDEX_LIST, KVM_GET_MSR_FEATURE_INDEX_LIST] {
        m.put_at(DATA, &1000u32);
        r.call(|| ok(m.system(list, DATA)));
    }
    m.put_at(DATA, &[2u32, 0, 0x277, 0, 0, 0, 0x10, 0, 0, 0]);
    for cmd in [KVM_GET_MSRS, KVM_SET_MSRS] {
        r.call(|| ok(m.vcpu(0, cmd, DATA)));
    }
    for cmd in [KVM_GET_XSAVE, KVM_SET_XSAVE, KVM_GET_FPU, KVM_SET_FPU] {
        r.call(|| ok(m.vcpu(0, cmd, DATA)));
    }
    let mut route = kvm_irq_routing_entry { gsi: 4, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    route.u.msi = kvm_irq_routing_msi { address_lo: 0xfee0_0000, data: 0xc051, ..Default::default() };
    m.put_at(DATA, &[1u32, 0]);
    m.put_at(DATA + 8, &route);
    r.call(|| ok(m.vm(KVM_SET_GSI_ROUTING, DATA)));
    let event = kvm_ioeventfd { addr: MMIO, len: 4, fd: 1, ..Default::default() };
    r.call(|| ok(m.vm_with(KVM_IOEVENTFD, &event)));
    let mut filter = MsrFilter::default();
    filter.ranges[0] = MsrFilterRange { flags: 3, nmsrs: 64, base: 0, pad: 0, bitmap: DATA };
    filter.ranges[1] = MsrFilterRange { flags: 1, nmsrs: 9, base: 0x800, pad: 0, bitmap: DATA };
    r.call(|| ok(m.vm_with(KVM_X86_SET_MSR_FILTER, &filter)));
    guest(r, &m);
    // What takes away needs no memory.
    alloc::plan(Some(Plan::From(0)));
    assert_eq!(m.region(1, 0, 0, 0, 0), Ok(0));
    assert_eq!(m.vm_with(KVM_IOEVENTFD, &kvm_ioeventfd { flags: 4, ..event }), Ok(0));
    m.host_changes(0, 16, Page::Absent);
    alloc::plan(None);
    m.end();
}

/// More slots, ioeventfds and vCPUs than there was room for at first.
fn growth(r: &mut Retrying) {
    let m = r.call(|| Machine::bare(PLAIN));
    for n in 0..12u32 {
        r.call(|| ok(m.region(n, 0, u64::from(n) * 0x10_0000, 0x1000, RAM_HVA)));
        let event = kvm_ioeventfd { addr: n.into(), len: 1, fd: 2, flags: 2, ..Default::default() };
        r.call(|| ok(m.vm_with(KVM_IOEVENTFD, &event)));
    }
    // The table of vCPUs grows after 32. Those before are made in peace.
    for id in 0..31 {
        assert_eq!(m.engine().create_vcpu(id), Ok(id as usize));
    }
    for id in 31..34 {
        assert_eq!(r.call(|| create_vcpu(&m, id)), id as usize);
    }
    assert_eq!(m.engine().vcpus().count(), 34, "none twice, none missing");
    m.end();
}

/// Nested faults in both slots, CPUID, MSRs, device accesses, the dirty log.
fn guest(r: &mut Retrying, m: &Machine) {
    m.long(0, &[0x89, 0x03]); // mov [rbx], eax
    m.with_regs(0, |r| r.rbx = MMIO);
    m.npf(0, MMIO, true); // the ioeventfd
    m.store(0, 0x9000, 1);
    m.cpuid(0, 0);
    m.rdmsr(0, 0x277);
    m.store(0, 0x1000_0000, 2);
    m.load(0, 0x1000_1000, 0);
    m.store(0, 0x20_0000, 3);
    r.call(|| run(m));
    assert_eq!((m.read_ram::<u64>(0x9000), m.sim.event_count(1)), (1, 1));
    let mut log = kvm_dirty_log { slot: 1, ..Default::default() };
    log.__bindgen_anon_1.dirty_bitmap = DATA as *mut _;
    r.call(|| ok(m.vm_with(KVM_GET_DIRTY_LOG, &log)));
    assert_eq!(m.get_at::<u64>(DATA), 3, "the first read of a page counts");
    // By hand.
    r.call(|| ok(m.enable(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 1)));
    m.put_at(DATA, &[!0u64; 2]);
    let mut clear = kvm_clear_dirty_log { slot: 1, num_pages: 64, first_page: 0, ..Default::default() };
    clear.__bindgen_anon_1.dirty_bitmap = DATA as *mut _;
    r.call(|| ok(m.vm_with(KVM_CLEAR_DIRTY_LOG, &clear)));
    // Moves a slot, and lets the other one log.
    r.call(|| ok(m.region(1, KVM_MEM_LOG_DIRTY_PAGES, 0x2000_0000, 100 << 12, RAM_HVA + RAM)));
    r.call(|| ok(m.region(0, KVM_MEM_LOG_DIRTY_PAGES, 0, RAM, RAM_HVA)));
    m.load(0, 0x2000_0000, 2);
    m.store(0, 0x9000, 4);
    r.call(|| run(m));
}

/// Lives with allocations failing as planned. Ok: how many calls failed.
fn lives(life: fn(&mut Retrying), plan: Option<Plan>) -> u64 {
    let before = alloc::live();
    PLAN.set(plan);
    alloc::plan(plan);
    let mut r = Retrying { failures: 0 };
    life(&mut r);
    let leaked = alloc::live() - before;
    assert_eq!(leaked, 0, "{leaked} bytes are left with {plan:?}");
    r.failures
}

/// Lives once for each allocation, and returns how many there are.
fn each(life: fn(&mut Retrying), plan: fn(u64) -> Plan) -> u64 {
    if is_through_the_assembly() {
        life(&mut Retrying { failures: 0 }); // what the model of the hardware has for good
    }
    lives(life, None); // what the thread allocates for good
    let mut n = 0;
    loop {
        match lives(life, Some(plan(n))) {
            0 => return n,
            failures => assert_eq!(failures, 1, "one failure is one failed call (allocation {n})"),
        }
        n += 1;
    }
}

#[test]
fn all_of_it_through_the_assembly() {
    all_through_the_assembly("all_of_it_through_the_assembly");
}

#[test]
fn each_allocation_fails_once() {
    let n = each(life, Plan::Once);
    assert!(n > 60, "only {n} allocations were seen");
}

#[test]
fn memory_runs_out_for_a_whole_call() {
    assert!(each(life, Plan::From) > 60);
}

#[test]
fn tables_that_grow() {
    let n = each(growth, Plan::Once);
    assert!(n > 40, "only {n} allocations were seen");
}

/// A page that is paged out is brought in beside the guest if there is memory for that, and otherwise waited for.
#[test]
fn asynchronous_page_faults() {
    for (failing, told) in [(0, 0), (1, 0), (2, 1)] {
        let m = Machine::new();
        m.long(0, &[]);
        m.x2apic(0);
        m.with_regs(0, |r| r.rflags |= 0x200);
        assert_eq!(m.set_msr(0, 0x4b56_4d02, 0xb00b), Ok(1));
        // Its table is there already, and the interrupt of enabling has been taken.
        m.load(0, 0x20_1000, 0);
        m.does(0, |_| ());
        m.run_out(0);
        m.host_changes(0x20_0000, 1, Page::Late);
        m.with_regs(0, |r| r.rflags |= 0x200);
        m.tries(0, 0x20_0000, false);
        m.does(0, |_| ());
        alloc::plan(Some(Plan::Once(failing)));
        m.run_out(0);
        assert_eq!(alloc::failed(), u64::from(failing < 2), "allocation {failing}");
        alloc::plan(None);
        assert_eq!((m.injected(0).len(), m.cpu(0).thread.pages_under_way()), (told, told), "allocation {failing}");
        m.end();
    }
}

/// Each allocation of a handover fails once: the VM goes on where it is, nothing is lost or left behind, and the next one works.
#[test]
fn a_handover_without_memory() {
    if is_through_the_assembly() {
        return; // The model of the hardware keeps what it has made.
    }
    let m = Machine::bare(PLAIN).unwrap();
    assert_eq!(m.vm(KVM_CREATE_IRQCHIP, 0), Ok(0));
    assert_eq!(m.vm_with(KVM_CREATE_PIT2, &kvm_pit_config::default()), Ok(0));
    assert_eq!(m.region(0, 0, 0, RAM, RAM_HVA), Ok(0));
    assert_eq!(m.region(1, KVM_MEM_LOG_DIRTY_PAGES, 0x1000_0000, 100 << 12, RAM_HVA + RAM), Ok(0));
    assert_eq!((m.add_vcpu(0), m.add_vcpu(3)), (Ok(0), Ok(1)));
    assert_eq!(m.enable_vcpu(1, KVM_CAP_HYPERV_SYNIC2, 0), Ok(0));
    assert_eq!(m.vm_with(KVM_HYPERV_EVENTFD, &kvm_hyperv_eventfd { conn_id: 5, fd: 3, ..Default::default() }), Ok(0));
    let event = kvm_ioeventfd { addr: MMIO + 64, len: 4, fd: 1, ..Default::default() };
    assert_eq!(m.vm_with(KVM_IOEVENTFD, &event), Ok(0));
    m.put_at(DATA, &[!0u64; 8]);
    let mut filter = MsrFilter::default();
    filter.ranges[0] = MsrFilterRange { flags: 3, nmsrs: 64, base: 0, pad: 0, bitmap: DATA };
    assert_eq!(m.vm_with(KVM_X86_SET_MSR_FILTER, &filter), Ok(0));
    m.long(0, &[0x8b, 0x03]); // mov eax, [rbx]
    m.with_regs(0, |r| r.rbx = MMIO);
    m.store(0, 0x1000_2000, 7);
    m.npf(0, MMIO, false);
    assert_eq!(m.run(0), Ok(Left::Mmio { gpa: MMIO, write: false, data: vec![0; 4] }));
    // What the simulation has for good.
    m.hand_over().unwrap();
    let state = m.state();
    let (tables, live) = (m.sim.tables_live(), alloc::live());
    let mut n = 0;
    loop {
        alloc::plan(Some(Plan::Once(n)));
        let done = m.hand_over();
        let failed = alloc::failed();
        alloc::plan(None);
        assert_eq!(done.is_err(), failed == 1, "allocation {n}");
        if failed == 0 {
            break;
        }
        assert_eq!(done.unwrap_err().why, state::Why::NoMemory);
        assert!(m.state() == state, "allocation {n}: the VM is as it was");
        assert_eq!((m.sim.tables_live(), alloc::live()), (tables, live), "allocation {n}: something is left");
        n += 1;
    }
    assert!(n > 20, "only {n} allocations were seen");
    m.page(0).write(abi::uapi::run::exit::MMIO_DATA, &[1, 2, 3, 4]);
    m.load(0, 0x1000_2000, 7);
    m.run_out(0);
    assert_eq!(m.regs(0).rax, 0x0403_0201);
    m.end();
}
