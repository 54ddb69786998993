//! Where interrupts are delivered that a guest has come for all of its vCPUs: not where their eventfd was signalled or the PIT's timer
//! expired, for interrupts of the host are off there.

use crate::{TRACING, VECTOR, switch};
use anyhow::{Context, Result, ensure};
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, kvm_irq_routing_entry, kvm_irqchip,
};
use kvm_ioctls::VcpuFd;
use std::fs;
use std::time::{Duration, Instant};
use tests::client::Client;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const VCPUS: u64 = 20;
const GSI: u32 = 30;
const EVERYBODY: u32 = 0xff;

/// A line of a trace: the task, and what of its state is a letter or a dot each.
struct Line {
    task: String,
    flags: String,
}

/// The first event of this name since the last call that a task with a name like this tells of, once there is one.
fn first(name: &str, by: &str) -> Result<Line> {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let text = fs::read_to_string(format!("{TRACING}/trace"))?;
        for line in text.lines().filter(|line| !line.starts_with('#') && line.contains(&format!(": {name}:"))) {
            // TASK-PID [CPU] FLAGS TIME: EVENT
            let (task, rest) = line.split_once(" [").context("a task and a CPU")?;
            let flags = rest.split_whitespace().nth(1).context("flags")?;
            let line = Line { task: task.trim().to_owned(), flags: flags.to_owned() };
            if line.task.starts_with(by) {
                fs::write(format!("{TRACING}/trace"), "")?;
                return Ok(line);
            }
        }
        ensure!(Instant::now() < end, "{name} by {by} does not come");
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Line {
    /// Interrupts were off when it was told, and an interrupt of the host was being handled.
    fn hard(&self) -> [bool; 2] {
        let mut flags = self.flags.chars();
        [matches!(flags.next(), Some('d' | 'D')), matches!(flags.nth(1), Some('h' | 'H' | 'z' | 'Z'))]
    }
}

fn write_register(vcpu: &VcpuFd, at: usize, value: u32) -> Result<()> {
    let mut state = vcpu.get_lapic()?;
    for (to, from) in state.regs[at..].iter_mut().zip(value.to_le_bytes()) {
        *to = from as _;
    }
    vcpu.set_lapic(&state)?;
    Ok(())
}

/// How many have the vector waiting; they have it no more afterwards.
fn waiting(vcpus: &[VcpuFd]) -> Result<usize> {
    let at = 0x200 + 0x10 * usize::from(VECTOR / 32);
    let mut count = 0;
    for vcpu in vcpus {
        let state = vcpu.get_lapic()?;
        count += usize::from(state.regs[at + usize::from(VECTOR % 32 / 8)] as u8 >> (VECTOR % 8) & 1);
        write_register(vcpu, at, 0)?;
    }
    Ok(count)
}

fn route(client: &Client, destination: u32) -> Result<()> {
    let mut entry = kvm_irq_routing_entry { gsi: GSI, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    (entry.u.msi.address_lo, entry.u.msi.data) = (0xfee0_0000 | destination << 12, VECTOR.into());
    // All others are gone with that: the PIT's, too.
    let mut pit = kvm_irq_routing_entry { gsi: 0, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
    pit.u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
    let routing = kvm_bindings::KvmIrqRouting::from_entries(&[entry, pit]).context("routing")?;
    client.vm.set_gsi_routing(&routing).context("KVM_SET_GSI_ROUTING")
}

fn eventfds(client: &Client, vcpus: &[VcpuFd]) -> Result<()> {
    let event = EventFd::new(EFD_NONBLOCK)?;
    client.vm.register_irqfd(&event, GSI)?;
    route(client, 3)?;
    event.write(1)?;
    println!("irqfds: for one: {}", waiting(vcpus)?);
    route(client, EVERYBODY)?;
    switch("kvm_msi_set_irq", true)?;
    event.write(1)?;
    // Stock tells of it where it was signalled, too, before it finds that this is no place to deliver it.
    let line = first("kvm_msi_set_irq", "kworker/")?;
    println!("irqfds: for all: by a worker, with interrupts off, in an interrupt {:?}", line.hard());
    println!("irqfds: for all: {}", waiting(vcpus)?);
    switch("kvm_msi_set_irq", false)?;
    // What was signalled before it is taken away is delivered when that returns, and nothing after it.
    for _ in 0..20 {
        event.write(1)?;
        client.vm.unregister_irqfd(&event, GSI)?;
        let count = waiting(vcpus)?;
        ensure!(count == vcpus.len(), "{count} have what was signalled before the end");
        event.write(1)?;
        ensure!(waiting(vcpus)? == 0, "signalled after the end");
        event.read()?;
        client.vm.register_irqfd(&event, GSI)?;
    }
    // One that is closed, or left to the end of the VM, just after.
    event.write(1)?;
    drop(event);
    Ok(())
}

fn pit(client: &Client, vcpus: &[VcpuFd]) -> Result<()> {
    let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
    client.vm.get_irqchip(&mut chip)?;
    // SAFETY: the kernel has filled in this one of the union's fields.
    unsafe { chip.chip.ioapic.redirtbl[0].bits = u64::from(EVERYBODY) << 56 | u64::from(VECTOR) };
    client.vm.set_irqchip(&chip)?;
    switch("kvm_ioapic_set_irq", true)?;
    let mut state = client.vm.get_pit2()?;
    // Every 10 ms.
    (state.channels[0].count, state.channels[0].mode, state.channels[0].gate) = (11932, 2, 1);
    client.vm.set_pit2(&state)?;
    let line = first("kvm_ioapic_set_irq", "")?;
    // Ours has them off under the controller's lock, for a few at a time.
    println!("irqfds: a tick for all: in an interrupt {}", line.hard()[1]);
    println!("irqfds: a tick for all: {}", waiting(vcpus)?);
    switch("kvm_ioapic_set_irq", false)
}

pub fn main() -> Result<()> {
    let client = Client::new(8 << 20, true)?;
    client.full_irqchip()?;
    let vcpus: Vec<_> = (0..VCPUS).map(|id| client.vcpu(id)).collect::<Result<_>>()?;
    for vcpu in &vcpus {
        write_register(vcpu, 0xf0, 0x1ff)?;
    }
    eventfds(&client, &vcpus)?;
    pit(&client, &vcpus)
}
