//! MSR_KVM_STEAL_TIME: how long the vCPU's thread waited for a CPU, and that it has none at the moment.
//!
//! The thread itself notes in guest memory that it lost its CPU between two instructions of the guest; other vCPUs then
//! need not wait for it, and may ask for a TLB flush by setting a bit beside. When the thread is back it requests
//! [`Request::StealUpdate`], which is served here before the guest is entered again.

use super::ENABLED;
use crate::Ctx;
use arch::Gpa;
use core::sync::atomic::{Ordering, fence};
use host::{Cpu, Host, Request, VcpuThread};

/// Offsets in `struct kvm_steal_time`, which is 64 bytes, aligned.
const STEAL: u64 = 0;
const VERSION: u64 = 8;
const PREEMPTED: u64 = 16;
/// In the byte at PREEMPTED: another vCPU wants the TLB flushed.
const FLUSH_TLB: u64 = 2;
/// Attempts to take that byte while others change it.
const TRIES: u32 = 8;

impl<H: Host> Ctx<'_, H> {
    /// KVM_RUN begins: has anything changed since the last one?
    #[inline]
    pub(crate) fn look_at_steal_time(&mut self) {
        let enabled = self.core.msr.steal_time & ENABLED != 0;
        if enabled && self.vm.host.run_delay_ns() != Some(self.core.pv.waited) || enabled != self.core.pv.noted {
            self.me.thread.requests().make_request(Request::StealUpdate);
        }
    }

    /// [`Request::StealUpdate`]: accounts the time and takes back the note.
    pub(crate) fn update_steal_time(&mut self) {
        let msr = self.core.msr.steal_time;
        self.core.pv.noted = msr & ENABLED != 0;
        if !self.core.pv.noted {
            self.me.thread.note_preemption(None);
            return;
        }
        let at = |offset| Gpa((msr & !0x3f) + offset);
        // The slots stay as they are until the address is noted: who changes them takes it back afterwards.
        let memory = self.shared_memory().memory();
        let place = memory.user_address(at(PREEMPTED));
        self.me.thread.note_preemption(place);
        if place.is_none() {
            return;
        }
        let mut byte = [0];
        let taken = (0..TRIES).any(|_| {
            let seen = memory.read(at(PREEMPTED), &mut byte).is_ok();
            let [now] = byte;
            seen && (now == 0 || memory.cmpxchg(at(PREEMPTED), 1, now.into(), 0) == Ok(true))
        });
        if !taken || u64::from(byte[0]) & FLUSH_TLB != 0 {
            self.core.cpu.flush_tlb();
        }

        let waited = self.vm.host.run_delay_ns().unwrap_or(0);
        // Another thread may run the vCPU now, with less behind it.
        let more = waited.saturating_sub(self.core.pv.waited);
        self.core.pv.waited = waited;
        let (mut version, mut steal) = ([0; 4], [0; 8]);
        if memory.read(at(VERSION), &mut version).is_err() || memory.read(at(STEAL), &mut steal).is_err() {
            return;
        }
        // Odd while it is written; before the first time anything may lie there.
        let odd = u32::from_le_bytes(version).wrapping_add(1) | 1;
        let steal = u64::from_le_bytes(steal).wrapping_add(more).to_le_bytes();
        let steps: [(u64, &[u8]); 3] =
            [(VERSION, &odd.to_le_bytes()), (STEAL, &steal), (VERSION, &odd.wrapping_add(1).to_le_bytes())];
        for (offset, bytes) in steps {
            if memory.write(at(offset), bytes).is_err() {
                return;
            }
            fence(Ordering::Release);
        }
    }
}
