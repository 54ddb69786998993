//! The VM of a scenario goes from one engine to the next in the middle of whatever it does.

use super::Machine;
use crate::scenario::assembly::{again_with, is_through_the_assembly};
use sim::alloc::{counted, uncounted};
use sim::arch::ControlArea;
use sim::host::{Cpu, Errno, OneBox, Request, VcpuThread};
use sim::{Sim, SimCpu};
use state::Refused;
use std::env;
use std::ops::DerefMut;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use vm::Vm;

/// Set in the environment: the VM is handed over at each exit, when a vCPU goes to sleep, and after each ioctl.
pub(super) const EVERYWHERE: &str = "HSAVE_HAND_OVER";

/// Is this process one that hands its VMs over wherever it can?
pub fn is_handed_over_everywhere() -> bool {
    env::var_os(EVERYWHERE).is_some()
}

/// For a test called `name`: runs all others of its program with a handover wherever there can be one, in a process of their own.
pub fn all_handed_over_everywhere(name: &str) {
    again_with(&[EVERYWHERE], name);
}

/// Were the translations of this vCPU flushed `times` since they had been `before`? The first entry in a new engine is by a new
/// ASID, which has none: that counts.
pub fn flushed(m: &Machine, vcpu: usize, before: usize, times: usize) -> bool {
    let now = m.inside(vcpu, |c| c.core.cpu.flushes) - before;
    now == times || now > times && is_handed_over_everywhere() && is_through_the_assembly()
}

/// What the world switch was told of a vCPU beside its state: it has to follow from that.
#[derive(Debug, PartialEq)]
struct Policy(Vec<u64>, Vec<(u32, (bool, bool))>);

fn policy(vm: &Vm<Sim>) -> Vec<Policy> {
    // The new engine need not wait until a vCPU looks at a new filter.
    let changes = vm.vcpus().any(|v| v.thread.requests().test_request(Request::MsrFilter));
    let of = |c: &ControlArea, cpu: &SimCpu| {
        let intercepts = [c.intercept_cr_read, c.intercept_cr_write, c.intercept_dr_read, c.intercept_dr_write];
        let mut words: Vec<u64> = intercepts.into_iter().map(u64::from).collect();
        words.extend([c.intercept_exceptions, c.intercept_3, c.intercept_4, c.intercept_5].map(u64::from));
        words.extend([c.pause_filter_count.into(), c.tsc_offset, c.np_control, c.int_ctl.into()]);
        let mut msrs: Vec<_> = if changes { Vec::new() } else { cpu.msr_intercepts.clone().into_iter().collect() };
        msrs.sort_unstable();
        Policy(words, msrs)
    };
    let of_core = |core: &vm::Core<Sim>| of(core.cpu.control(), &core.cpu);
    vm.vcpus().map(|v| of_core(&v.core.lock())).collect()
}

/// The new VM takes the place of the old one, and what the simulator has of its processors goes along.
fn last_step(old: &Vm<Sim>, new: &Vm<Sim>) {
    counted(|| new.take(&old.give()));
    for (new, old) in new.vcpus().zip(old.vcpus()) {
        new.core.lock().cpu.take_over(&mut second_core(old).cpu);
    }
}

/// That of a vCPU which nobody has: two of a kind are never waited for.
fn second_core(vcpu: &vm::Vcpu<Sim>) -> impl DerefMut<Target = OneBox<vm::Core<Sim>>> + '_ {
    vcpu.core.try_lock().expect("nobody uses it")
}

impl Machine {
    /// KVM_RUN until it is over, through however many engines.
    pub(super) fn run_to_user(&self, vcpu: usize, arg: u64) -> Result<i64, Errno> {
        loop {
            let ran = counted(|| abi::vcpu_run(&self.engine(), &self.cpu(vcpu), arg));
            self.handed_over();
            if ran? == abi::Ran::Done {
                return Ok(0);
            }
        }
    }

    /// Hands the VM over if this is what this process is for.
    pub(super) fn handed_over(&self) {
        if is_handed_over_everywhere() {
            self.hand_over().expect("there is nothing that cannot go");
        }
    }

    /// Hands the VM over. Err: it is still where it was. If somebody is using it for long, nothing happens.
    pub fn hand_over(&self) -> Result<(), Refused> {
        let Some(mut old) = self.vm.try_write_for(Duration::from_millis(20)) else { return Ok(()) };
        let new = self.successor(&old)?;
        let gone = std::mem::replace(&mut *old, new);
        drop(gone);
        self.handovers.fetch_add(1, Relaxed);
        Ok(())
    }

    /// The VM becomes what `bytes` say, as if they had been written by the engine that has it. Err: it is as it was.
    pub fn become_state(&self, bytes: &[u8]) -> Result<(), Refused> {
        let mut old = self.vm.write();
        let lent = old.leave()?.lent;
        let new = Vm::arrive(self.sim.clone(), bytes, &lent)?;
        last_step(&old, &new);
        *old = new;
        Ok(())
    }

    /// How often the VM was handed over.
    pub fn handovers(&self) -> usize {
        self.handovers.load(Relaxed)
    }

    fn successor(&self, old: &OneBox<Vm<Sim>>) -> Result<OneBox<Vm<Sim>>, Refused> {
        let parcel = counted(|| old.leave())?;
        let new = counted(|| Vm::arrive(self.sim.clone(), &parcel.state, &parcel.lent))?;
        uncounted(|| {
            let same = policy(old);
            last_step(old, &new);
            assert_eq!(policy(&new), same, "what is intercepted follows from the state");
            let again = new.leave().map(|parcel| (parcel.state, parcel.lent));
            assert!(again == Ok((parcel.state, parcel.lent)), "the state is the same in the next engine");
        });
        Ok(new)
    }

    /// The state of the VM.
    pub fn state(&self) -> Vec<u8> {
        uncounted(|| self.engine().leave()).expect("memory").state
    }
}
