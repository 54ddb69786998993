//! Binary statistics: what a file of KVM_GET_STATS_FD reads as (KVM API document 4.133). A header, an identifier, a
//! descriptor for each number, the numbers.

use crate::codec::{Abi, Field, write};
use crate::uapi::{kvm_stats_desc, kvm_stats_header, stats_flags};
use host::{Errno, Host};
use vm::stats::{Kind, Stat, VcpuStats};
use vm::{Vcpu, Vm};

/// Bytes of the identifier, and of the name in each descriptor (KVM_STATS_NAME_SIZE).
const NAME: usize = 48;
/// Bytes of a descriptor with its name.
const DESCRIPTOR: usize = kvm_stats_desc::SIZE + NAME;
/// Where the descriptors begin.
const DESCRIPTORS: usize = kvm_stats_header::SIZE + NAME;

/// The part of the image that the caller wants, and how much of it has been written.
struct Window<'a, H: Host> {
    host: &'a H,
    to: u64,
    start: u64,
    end: u64,
    /// Where the next piece lies in the image.
    at: u64,
    done: u64,
}

impl<H: Host> Window<'_, H> {
    /// Writes what is wanted of the next piece of the image. Errors: EFAULT.
    fn piece(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        let begin = self.at;
        self.at = begin.saturating_add(bytes.len() as u64);
        let skip = self.start.saturating_sub(begin).min(bytes.len() as u64);
        let stop = self.end.saturating_sub(begin).min(bytes.len() as u64);
        // INDEX: copied out and not looked at, so that a wrong guess leaves no trace of what it read.
        let Some(wanted) = bytes.get(skip as usize..stop as usize) else { return Ok(()) };
        if wanted.is_empty() {
            return Ok(());
        }
        let offset = begin.saturating_add(skip).saturating_sub(self.start);
        write(self.host, self.to.wrapping_add(offset), wanted)?;
        self.done = self.done.saturating_add(wanted.len() as u64);
        Ok(())
    }

    fn fixed<T: Abi>(&mut self, value: &T) -> Result<(), Errno> {
        let mut image = T::ZERO;
        value.give(image.as_mut());
        self.piece(image.as_ref())
    }

    /// Is anything wanted at or after `offset` of the image?
    fn reaches(&self, offset: u64) -> bool {
        self.end > offset
    }
}

/// Reads the statistics of `vcpu`, or else of the VM: at most `len` bytes of the image, from its byte `pos`, to user
/// address `to`. `pid` is the process that made the VM. Ok: the number of bytes. Errors: EFAULT.
pub fn read_stats<H: Host>(
    vm: &Vm<H>,
    vcpu: Option<&Vcpu<H>>,
    pid: u32,
    to: u64,
    len: u64,
    pos: u64,
) -> Result<u64, Errno> {
    let end = pos.saturating_add(len);
    let mut w = Window { host: &vm.host, to, start: pos, end, at: 0, done: 0 };
    match vcpu {
        Some(v) => {
            head(&mut w, VcpuStats::ALL.len(), &id(pid, Some(v.id)))?;
            descriptors(&mut w, VcpuStats::ALL.iter().copied())?;
            v.stats(&mut |value| w.fixed(&value))?;
        }
        None => {
            let list = Vm::<H>::stat_list();
            let n = list.clone().count();
            head(&mut w, n, &id(pid, None))?;
            descriptors(&mut w, list)?;
            // The numbers of a VM take some counting.
            if w.reaches(data_offset(n)) {
                vm.stats(&mut |value| w.fixed(&value))?;
            }
        }
    }
    Ok(w.done)
}

/// Where the numbers begin.
fn data_offset(n: usize) -> u64 {
    DESCRIPTORS.saturating_add(n.saturating_mul(DESCRIPTOR)) as u64
}

fn head<H: Host>(w: &mut Window<'_, H>, n: usize, id: &[u8; NAME]) -> Result<(), Errno> {
    w.fixed(&kvm_stats_header {
        flags: 0,
        name_size: NAME as u32,
        num_desc: n as u32,
        id_offset: kvm_stats_header::SIZE as u32,
        desc_offset: DESCRIPTORS as u32,
        data_offset: data_offset(n) as u32,
    })?;
    w.piece(id)
}

fn descriptors<H: Host>(w: &mut Window<'_, H>, list: impl Iterator<Item = Stat>) -> Result<(), Errno> {
    let mut offset = 0u32;
    for stat in list {
        let flags = match stat.kind {
            Kind::Count => stats_flags::CUMULATIVE,
            Kind::Now => stats_flags::INSTANT,
            Kind::Peak => stats_flags::PEAK,
            Kind::Flag => stats_flags::INSTANT | stats_flags::BOOLEAN,
            Kind::Time => stats_flags::CUMULATIVE | stats_flags::SECONDS,
            Kind::Histogram => stats_flags::LOG_HIST | stats_flags::SECONDS,
        };
        // Nanoseconds are seconds times ten to the power of this.
        let exponent = if flags & stats_flags::SECONDS != 0 { -9i16 as u16 } else { 0 };
        let size = stat.words() as u16;
        w.fixed(&kvm_stats_desc { flags, exponent, size, offset, bucket_size: 0 })?;
        offset = offset.wrapping_add(u32::from(size) * size_of::<u64>() as u32);
        let mut name = [0; NAME];
        copy(&mut name, stat.name.bytes());
        w.piece(&name)?;
    }
    Ok(())
}

/// `kvm-PID` or `kvm-PID/vcpu-ID`, in decimal.
fn id(pid: u32, vcpu: Option<u32>) -> [u8; NAME] {
    let mut id = [0; NAME];
    let vcpu = vcpu.map(|n| b"/vcpu-".iter().copied().chain(decimal(n))).into_iter().flatten();
    copy(&mut id, b"kvm-".iter().copied().chain(decimal(pid)).chain(vcpu));
    id
}

/// All but the last byte, which ends the text, is text.
fn copy(to: &mut [u8; NAME], text: impl Iterator<Item = u8>) {
    for (to, from) in to.iter_mut().take(NAME - 1).zip(text) {
        *to = from;
    }
}

/// The digits of a number.
fn decimal(n: u32) -> impl Iterator<Item = u8> {
    let digit = move |power: u32| 10u32.checked_pow(power).and_then(|p| n.checked_div(p));
    (0..10).rev().filter_map(move |power| match digit(power) {
        Some(0) if power > 0 => None,
        higher => higher.map(|h| b'0' + (h % 10) as u8),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers() {
        let text = |id: [u8; NAME]| std::string::String::from_utf8(id.into()).unwrap();
        assert_eq!(text(id(0, None)).trim_end_matches('\0'), "kvm-0");
        assert_eq!(text(id(1203, Some(10))).trim_end_matches('\0'), "kvm-1203/vcpu-10");
        assert_eq!(text(id(u32::MAX, Some(4095))).trim_end_matches('\0'), "kvm-4294967295/vcpu-4095");
    }
}
