//! Dirty rings, with a user space that harvests as it should, and one that does not.

use super::fake::{Fake, PAGE};
use super::{Vm, npf};
use crate::{DIRTY_GFN, DirtyRing, LOG_DIRTY_PAGES, MANUAL_DIRTY_LOG_BITS, RetPf, RingOf, Space};
use arch::{Gpa, Hva};
use host::{Errno, Request, SharedPage, VcpuRequests};
use std::vec::Vec;

const HVA: u64 = 0x7000_0000_0000;

impl DirtyRing<Fake> {
    fn at(&self, n: u32) -> (&impl SharedPage, usize) {
        let n = (n & (self.size - 1)) as usize;
        (self.pages.get_nospec(n / 256).unwrap(), n % 256 * 2)
    }

    /// What user space does with the first `n` dirty entries that it has not seen.
    pub(super) fn harvest(&self, n: usize) {
        use std::sync::atomic::Ordering::SeqCst;
        let range = self.reset_index.load(SeqCst)..self.dirty_index.load(SeqCst);
        for n in range.filter(|n| self.at(*n).0.word(self.at(*n).1) & 3 == 1).take(n) {
            let (page, word) = self.at(n);
            page.set_word(word, page.word(word) | 2);
        }
    }

    /// Slot and page of the entries that are not reset.
    pub(super) fn recorded(&self) -> Vec<(u32, u64)> {
        use std::sync::atomic::Ordering::SeqCst;
        let read = |n| {
            let (page, word) = self.at(n);
            assert_ne!(page.word(word) & 1, 0, "an entry in use is dirty");
            ((page.word(word) >> 32) as u32, page.word(word + 1))
        };
        (self.reset_index.load(SeqCst)..self.dirty_index.load(SeqCst)).map(read).collect()
    }
}

struct Ringed {
    vm: Vm,
    ring: DirtyRing<Fake>,
    requests: VcpuRequests,
}

impl Ringed {
    /// 1024 pages in slot 3, 16 in slot 1 of system management mode, and a ring of 256 entries.
    fn new() -> Self {
        let vm = Vm::new().checked();
        vm.host.map(HVA, 2048, true);
        vm.mmu.use_dirty_rings();
        vm.set(3, 0, 1024, HVA, LOG_DIRTY_PAGES).unwrap();
        vm.set(0x1_0001, 0, 16, HVA + 1024 * PAGE, LOG_DIRTY_PAGES).unwrap();
        let ring = DirtyRing::new(&vm.host, 0, 4096).unwrap();
        Self { vm, ring, requests: VcpuRequests::new() }
    }

    fn write(&mut self, space: Space, page: u64) -> RetPf {
        let view = self.vm.mmu.view(space, Some(RingOf { ring: &self.ring, requests: &self.requests }));
        view.page_fault(&mut self.vm.cache, Gpa(page * PAGE), npf(true)).unwrap()
    }

    fn reset(&self) -> u32 {
        self.vm.mmu.reset_dirty_rings([&self.ring].into_iter(), &|| self.vm.flush())
    }

    fn writable(&self, page: u64) -> bool {
        self.vm.look(page * PAGE).is_some_and(|f| f.write)
    }
}

#[test]
fn sizes() {
    let sizes = [0, 2048, 4095, 4096, 12288, 1 << 20, 1 << 21];
    let fits = [Errno::EINVAL, Errno::EINVAL, Errno::EINVAL, Errno::EIO, Errno::EINVAL, Errno::EIO, Errno::E2BIG];
    for (size, errno) in sizes.into_iter().zip(fits) {
        let expected = if errno == Errno::EIO { Ok(()) } else { Err(errno) };
        assert_eq!(DirtyRing::<Fake>::check_size(size), expected, "{size}");
    }
}

#[test]
fn what_is_written_is_in_the_ring_until_it_is_reset() {
    let mut r = Ringed::new();
    for page in [7, 8, 9, 300] {
        assert_eq!(r.write(Space::Normal, page), RetPf::Fixed);
    }
    assert_eq!(r.write(Space::Smm, 7), RetPf::Fixed);
    let view = r.vm.mmu.view(Space::Normal, Some(RingOf { ring: &r.ring, requests: &r.requests }));
    view.write_phys(Gpa(12 * PAGE - 1), &[1, 2]).unwrap();
    let all = [(3, 7), (3, 8), (3, 9), (3, 300), (0x1_0001, 7), (3, 11), (3, 12)];
    assert_eq!(r.ring.recorded(), all);
    assert_eq!(r.reset(), 0, "not harvested");
    r.ring.harvest(3);
    let before = r.vm.flush_count();
    assert_eq!(r.reset(), 3);
    assert_eq!(r.vm.flush_count(), before + 1, "one flush for all");
    assert!(!r.writable(7) && !r.writable(9) && r.writable(300));
    assert_eq!(r.write(Space::Normal, 7), RetPf::Fixed);
    r.ring.harvest(usize::MAX);
    assert_eq!(r.reset(), 5);
    assert!(!r.writable(7) && !r.writable(300));
    assert!(r.ring.recorded().is_empty() && !r.requests.pending());
    let out = Hva(HVA + 1500 * PAGE);
    assert_eq!(r.vm.mmu.get_dirty_log(3, out, &|| ()), Err(Errno::ENXIO), "no bitmap");
    assert_eq!(r.vm.mmu.clear_dirty_log(3, 0, 64, out, &|| ()), Err(Errno::ENXIO));
}

#[test]
fn a_full_ring_is_told_in_time_and_loses_nothing() {
    let mut r = Ringed::new();
    let size = 4096 / DIRTY_GFN;
    for page in 0..u64::from(size) {
        assert_eq!(r.requests.test_request(Request::DirtyRingFull), page >= u64::from(size) - 64, "{page}");
        assert_eq!(r.write(Space::Normal, page), RetPf::Fixed);
    }
    assert_eq!(r.write(Space::Normal, 1000), RetPf::Retry, "not mapped: it could not be recorded");
    assert!(r.vm.look(1000 * PAGE).is_none());
    assert_eq!(r.ring.recorded().len(), size as usize);
    r.ring.harvest(1);
    assert_eq!(r.reset(), 1);
    assert_eq!(r.write(Space::Normal, 1000), RetPf::Fixed);
    assert_eq!(r.ring.recorded().last(), Some(&(3, 1000)));
    assert!(r.ring.soft_full());
}

#[test]
fn a_log_that_begins_late_protects_what_was_written_before() {
    let mut r = Ringed::new();
    r.vm.mmu.set_manual_dirty_log(MANUAL_DIRTY_LOG_BITS).unwrap();
    r.vm.set(3, 0, 1024, HVA, 0).unwrap();
    r.write(Space::Normal, 5);
    assert!(r.ring.recorded().is_empty() && r.writable(5));
    r.vm.set(3, 0, 1024, HVA, LOG_DIRTY_PAGES).unwrap();
    assert!(!r.writable(5), "there is no bitmap whose clearing would protect it");
    r.write(Space::Normal, 5);
    assert_eq!(r.ring.recorded(), [(3, 5)]);
}

#[test]
fn user_space_may_write_anything_into_it() {
    let mut r = Ringed::new();
    for page in 0..100 {
        r.write(Space::Normal, page);
    }
    // What entries say: slots that there are not, pages beyond a slot or behind others by any distance.
    let words = [0, !0, 3 << 32 | 2, 0x1_0001 << 32 | 3, 0x7fff_ffff << 32 | 2, 0xffff << 32 | 2, 0x2_0000 << 32 | 2];
    let pages = [0, !0, 1023, 1024, 1 << 52, 63, 64, 1 << 63];
    for n in 0..256 {
        let (page, word) = r.ring.at(n);
        page.set_word(word, words[n as usize % words.len()] | 2);
        page.set_word(word + 1, pages[n as usize % pages.len()]);
    }
    assert_eq!(r.reset(), 100, "no more than were added");
    assert_eq!(r.reset(), 0);
    for page in 0..300 {
        r.write(Space::Normal, page % 200);
    }
    assert!(r.ring.soft_full());
}
