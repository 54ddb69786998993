//! How all of it goes to another engine: in a section of the VM and one of each vCPU, which are there if there is anything to
//! write. Eventfds of connections are lent.

use super::{Features, Hyperv, Partition, Shared};
use crate::{MAX_VCPUS, Vcpu, Vm};
use core::sync::atomic::Ordering::Relaxed;
use host::{Errno, Host, Lent, Numbers, try_box};
use state::{Refused, Section, Sections, State, Writer};

/// What the vCPUs share.
const PARTITION: Section = Section::new(*b"hvvm", 1);
/// What each of them has.
const VCPU: Section = Section::new(*b"hvcp", 1);

impl<H: Host> Vm<H> {
    pub(crate) fn save_partition(&self, w: &mut Writer) {
        if !self.partition.is_used() {
            return;
        }
        let Partition {
            msrs,
            guest_os_id,
            tsc_invariant,
            // Follows from the vCPUs.
            renumbered: _,
            connections,
        } = &self.partition;
        let msrs = msrs.lock();
        w.section_by(PARTITION, 0, |w| {
            guest_os_id.save(w);
            tsc_invariant.save(w);
            msrs.save(w);
            connections.save(&self.host, w);
        });
    }

    pub(crate) fn lend_partition(&self, to: &mut Numbers) -> Result<(), Errno> {
        self.partition.connections.lend(&self.host, to)
    }

    /// Err: see there.
    pub(crate) fn load_partition(&mut self, s: &mut Sections<'_>, lent: &mut Lent<'_>) -> Result<(), Refused> {
        let Some(mut r) = s.optional(PARTITION, 0)? else { return Ok(()) };
        let partition = &mut self.partition;
        r.load(&mut partition.guest_os_id)?;
        r.load(&mut partition.tsc_invariant)?;
        r.load(partition.msrs.get_mut())?;
        partition.connections.load(&self.host, &mut r, lent)?;
        r.end()
    }

    /// Of a vCPU whose CPUID is there already. Err: see there.
    pub(crate) fn load_hyperv_vcpu(&self, s: &mut Sections<'_>, vcpu: &mut Vcpu<H>) -> Result<(), Refused> {
        let Some(mut r) = s.optional(VCPU, vcpu.index as u32)? else { return Ok(()) };
        let no_memory = |_| Refused::NO_MEMORY;
        let mut shared = try_box(|| Shared::new(vcpu.index)).map_err(no_memory)?;
        let mut own = try_box(Hyperv::default).map_err(no_memory)?;
        r.load(&mut *shared)?;
        // By the rule of the MSR.
        let vp_index = *shared.vp_index.get_mut() as usize;
        if vp_index >= MAX_VCPUS {
            return Err(r.bad("a vCPU's number among the guest's"));
        }
        r.load(&mut *own)?;
        r.end()?;
        if vp_index != vcpu.index {
            self.partition.renumbered.fetch_add(1, Relaxed);
        }
        own.update_vectors(&shared);
        let core = vcpu.core.get_mut();
        own.features = Features::of(&core.cpuid);
        core.hyperv = Some(own);
        vcpu.hyperv.set(shared.into_inner()).map_err(|_| Refused::NO_MEMORY)
    }
}

impl<H: Host> Vcpu<H> {
    /// Of a vCPU whose own part is `own`.
    pub(crate) fn save_hyperv(&self, own: Option<&Hyperv>, w: &mut Writer) {
        if let (Some(own), Some(shared)) = (own, self.hyperv_shared()) {
            w.section_by(VCPU, self.index as u32, |w| {
                shared.save(w);
                own.save(w);
            });
        }
    }
}
