//! The VM of a scenario goes from one engine to the next in the middle of whatever it does.

use super::Machine;
use crate::scenario::assembly::again_with;
use sim::alloc::{counted, uncounted};
use sim::arch::ControlArea;
use sim::host::{Cpu, Errno, OneBox, Request, VcpuThread};
use sim::{Sim, SimCpu};
use state::{Refused, Why};
use std::env;
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
            match self.hand_over() {
                // It has something that goes nowhere yet.
                Ok(()) | Err(Refused { why: Why::Cannot(_), .. }) => {}
                Err(refused) => panic!("{refused}"),
            }
        }
    }

    /// Hands the VM over. Err: it is still where it was. If somebody is using it for long, nothing happens.
    pub fn hand_over(&self) -> Result<(), Refused> {
        let Some(mut old) = self.vm.try_write_for(Duration::from_millis(20)) else { return Ok(()) };
        let new = self.successor(&mut old)?;
        let gone = std::mem::replace(&mut *old, new);
        drop(gone);
        self.handovers.fetch_add(1, Relaxed);
        Ok(())
    }

    /// The VM becomes what `bytes` say, as if they had been written by the engine that has it. Err: it is as it was.
    pub fn become_state(&self, bytes: &[u8]) -> Result<(), Refused> {
        let mut old = self.vm.write();
        let mut new = Vm::load(self.sim.clone(), bytes, &**old)?;
        new.succeed(&mut old);
        *old = new;
        Ok(())
    }

    /// How often the VM was handed over.
    pub fn handovers(&self) -> usize {
        self.handovers.load(Relaxed)
    }

    fn successor(&self, old: &mut OneBox<Vm<Sim>>) -> Result<OneBox<Vm<Sim>>, Refused> {
        let bytes = counted(|| old.save())?;
        let mut new = counted(|| Vm::load(self.sim.clone(), &bytes, &**old))?;
        uncounted(|| {
            let same = policy(old);
            counted(|| new.succeed(old));
            assert_eq!(policy(&new), same, "what is intercepted follows from the state");
            assert!(new.save().as_deref() == Ok(&*bytes), "the state is the same in the next engine");
        });
        Ok(new)
    }

    /// The state of the VM.
    pub fn state(&self) -> Vec<u8> {
        uncounted(|| self.engine().save()).expect("memory")
    }
}
