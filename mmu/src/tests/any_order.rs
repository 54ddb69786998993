//! Every public operation of the mmu in any order, against a TLB that keeps all that it may ([`ModelTlb`]): when a call
//! returns, nothing that the TLB holds is absent from the nested tables or has fewer rights there.
//!
//! The cases are the same in each run. `HSAVE_SEED=n` chooses others and `HSAVE_CASES=n` how many; a failure prints the
//! seed and the smallest case found.
//!
//! Long because: the operations, what the VMM and the host do beside them, and how a failing case is made smaller.

use super::fake::{Fake, PAGE, Pte};
use super::model_tlb::{ModelTlb, Tables, Translation, read};
use super::npf;
use crate::paging::{Kind, Paging};
use crate::slot::{Memslot, frame};
use crate::{DirtyRing, LOG_DIRTY_PAGES, MANUAL_DIRTY_LOG_BITS, MemoryCache, Mmu, READONLY, RingOf, Space, UserRegion};
use arch::{Gpa, Hva};
use host::MapLevel::{self, Page2M, Page4K};
use host::VcpuRequests;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::boxed::Box;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::vec;
use std::vec::Vec;

const HVA: u64 = 0x7000_0000_0000;
/// Pages of the VMM's memory that slots are made of.
const SPAN: u64 = 4 * 512;
/// Where user space keeps its bitmaps.
const OUT: u64 = 0x6000_0000_0000;
/// Guest frames below this one are used, in both address spaces.
const FRAMES: u64 = 8 * 512;

/// What the kernel does to memory between the start and the end of an invalidation.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Unmap,
    Fresh(bool, MapLevel),
    /// As fork does: the same pages, read-only, in mappings of the size that they have or in small ones.
    Share(MapLevel),
    Poison,
    /// To swap: whoever wants a page has it brought in.
    SwapOut,
    Nothing,
}

/// What the kernel does to memory without a call of the notifier: the pages stay where they are, and lose nothing.
#[derive(Clone, Copy, Debug)]
enum Quiet {
    /// They become writable, in whole pages of the host's: nobody else has them any more.
    Upgrade,
    /// A large page is mapped in small ones.
    Split,
    /// And one of those is writable.
    SplitAndUpgrade,
}

#[derive(Clone, Debug)]
enum Op {
    Slot {
        id: u32,
        flags: u32,
        base: u64,
        pages: u64,
        at: u64,
    },
    Fault {
        gfn: u64,
        write: bool,
        wait: bool,
    },
    MappedAhead(bool),
    /// Is all memory the VMM's alone? Then a page that is read-only becomes writable with the first write, and nobody
    /// is told.
    Exclusive(bool),
    Get(u32),
    Clear {
        id: u32,
        word: u64,
        words: u32,
        mask: u64,
    },
    Manual(u64),
    /// User space harvests so many entries of each ring, and resets.
    Reset(usize),
    Change {
        at: u64,
        pages: u64,
        deed: Deed,
        may_block: bool,
    },
    Quietly {
        at: u64,
        quiet: Quiet,
    },
    /// The start of an invalidation; a later `End` ends the oldest.
    Start {
        at: u64,
        pages: u64,
    },
    End,
    Age {
        at: u64,
        pages: u64,
        clear: bool,
    },
    // Frames with their address space.
    Read(u64),
    Write(u64),
    Exchange(u64),
    Look(u64),
    NoMemory(i64),
    Release,
    /// The second happens while the first is under way, where the machine lets it in for the `n`th time.
    During(Box<Op>, Box<Op>, u32),
}

/// A frame, with its address space.
fn gfn() -> impl Strategy<Value = u64> {
    (prop_oneof![2 => Just(Space::Normal), 1 => Just(Space::Smm)], 0..FRAMES).prop_map(|(space, n)| space.gfn(n))
}

/// The number of a slot: some of either address space.
fn id() -> impl Strategy<Value = u32> {
    prop_oneof![3 => 0..3u32, 2 => 0x1_0000..0x1_0002u32]
}

fn range() -> impl Strategy<Value = (u64, u64)> {
    // Some of it is in no slot.
    (0..SPAN + 64, prop_oneof![3 => 1..4u64, 1 => Just(512u64), 1 => Just(SPAN)])
}

fn change() -> impl Strategy<Value = Op> {
    let deed = prop_oneof![
        1 => Just(Deed::Unmap),
        1 => Just(Deed::Fresh(true, Page4K)),
        1 => Just(Deed::Fresh(false, Page4K)),
        3 => Just(Deed::Fresh(true, Page2M)),
        2 => Just(Deed::Fresh(false, Page2M)),
        1 => Just(Deed::Share(Page4K)),
        1 => Just(Deed::Share(Page2M)),
        1 => Just(Deed::Poison),
        1 => Just(Deed::SwapOut),
        1 => Just(Deed::Nothing),
    ];
    (range(), deed, any::<bool>()).prop_map(|((at, pages), deed, may_block)| Op::Change { at, pages, deed, may_block })
}

fn quietly() -> impl Strategy<Value = Op> {
    let quiet = prop_oneof![3 => Just(Quiet::Upgrade), 1 => Just(Quiet::Split), 1 => Just(Quiet::SplitAndUpgrade)];
    (0..SPAN, quiet).prop_map(|(at, quiet)| Op::Quietly { at, quiet })
}

fn fault() -> impl Strategy<Value = Op> {
    (gfn(), any::<bool>(), any::<bool>()).prop_map(|(gfn, write, wait)| Op::Fault { gfn, write, wait })
}

fn slot() -> impl Strategy<Value = Op> {
    let pages = prop_oneof![4 => Just(512u64), 2 => Just(1024u64), 1 => Just(520u64), 1 => Just(8u64), 1 => Just(0u64)];
    let base = prop_oneof![6 => (0..8u64).prop_map(|n| n * 512), 1 => (0..8u64).prop_map(|n| n * 512 + 8)];
    let at = prop_oneof![6 => (0..3u64).prop_map(|n| n * 512), 1 => (0..3u64).prop_map(|n| n * 512 + 8)];
    (id(), 0..4u32, base, pages, at).prop_map(|(id, flags, base, pages, at)| Op::Slot { id, flags, base, pages, at })
}

/// The same slots again with other flags or elsewhere: random ones seldom match what is there.
fn again() -> impl Strategy<Value = Op> {
    (id(), 0..4u32, prop_oneof![4 => Just(u64::MAX), 1 => (0..8u64).prop_map(|n| n * 512)])
        .prop_map(|(id, flags, base)| Op::Slot { id, flags, base, pages: u64::MAX, at: u64::MAX })
}

fn age() -> impl Strategy<Value = Op> {
    (range(), any::<bool>()).prop_map(|((at, pages), clear)| Op::Age { at, pages, clear })
}

fn simple() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => slot(),
        4 => again(),
        12 => fault(),
        1 => any::<bool>().prop_map(Op::MappedAhead),
        1 => any::<bool>().prop_map(Op::Exclusive),
        2 => id().prop_map(Op::Get),
        2 => (0..40usize).prop_map(Op::Reset),
        3 => (id(), 0..16u64, 0..3u32, prop_oneof![Just(u64::MAX), any::<u64>()])
            .prop_map(|(id, word, words, mask)| Op::Clear { id, word, words, mask }),
        1 => prop_oneof![1 => 0..3u64, 1 => Just(MANUAL_DIRTY_LOG_BITS)].prop_map(Op::Manual),
        4 => change(),
        3 => quietly(),
        1 => range().prop_map(|(at, pages)| Op::Start { at, pages }),
        1 => Just(Op::End),
        2 => age(),
        1 => gfn().prop_map(Op::Read),
        1 => gfn().prop_map(Op::Write),
        1 => gfn().prop_map(Op::Exchange),
        1 => gfn().prop_map(Op::Look),
        1 => (0..4i64).prop_map(Op::NoMemory),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    // What other threads may do meanwhile; a change of the slots would wait for the one that is under way.
    let inner = prop_oneof![change(), fault(), age(), quietly()];
    prop_oneof![
        20 => simple(),
        6 => (simple(), inner, 0..6u32).prop_map(|(a, b, n)| Op::During(Box::new(a), Box::new(b), n)),
    ]
}

fn history() -> impl Strategy<Value = Vec<Op>> {
    let ops = prop::collection::vec(op(), 1..50);
    // The end of the address space is the end of nearly all.
    (ops, prop::option::weighted(0.1, 0..50usize)).prop_map(|(mut ops, release)| {
        if let Some(n) = release {
            ops.insert(n.min(ops.len()), Op::Release);
        }
        ops
    })
}

struct Machine {
    host: Fake,
    mmu: Mmu<Fake>,
    /// Of the vCPU whose history it is, and of others; without them there are bitmaps.
    rings: Option<[DirtyRing<Fake>; 2]>,
    requests: VcpuRequests,
    tlb: ModelTlb,
    /// Invalidations that have begun and not ended, in the VMM's memory.
    open: Mutex<Vec<(u64, u64)>>,
    /// What happens at the nth point from here.
    during: Mutex<Option<Op>>,
    countdown: AtomicU32,
}

impl Machine {
    fn new(rings: bool) -> Arc<Self> {
        let host = Fake::new();
        host.map_as(HVA, SPAN / 2, true, Page2M);
        host.map(HVA + SPAN / 2 * PAGE, SPAN / 2, true);
        host.map(OUT, 1, true);
        let mmu = Mmu::new(host.clone()).unwrap();
        let ring = || DirtyRing::new(&host, 0, 4096).unwrap();
        let rings = rings.then(|| [ring(), ring()]);
        if rings.is_some() {
            mmu.use_dirty_rings();
        }
        let requests = VcpuRequests::new();
        let (tlb, open) = (ModelTlb::default(), Mutex::default());
        let m = Arc::new(Self {
            host,
            mmu,
            rings,
            requests,
            tlb,
            open,
            during: Mutex::default(),
            countdown: AtomicU32::new(0),
        });
        let weak = Arc::downgrade(&m);
        m.host.hook(move |p| {
            if let Some(m) = weak.upgrade() {
                assert!(m.mmu.mmu_lock.try_write().is_some(), "at {p:?} with the spin lock held");
                m.others();
            }
        });
        m
    }

    /// Other threads run here: vCPUs, and whoever is due.
    fn others(&self) {
        self.tlb.fill(&self.mmu, &self.host);
        if self.during.lock().unwrap().is_some() && self.countdown.fetch_sub(1, SeqCst) == 0 {
            let op = self.during.lock().unwrap().take();
            self.run(&op.unwrap(), &mut MemoryCache::new(&self.host), 1);
            self.tlb.fill(&self.mmu, &self.host);
        }
    }

    fn flush(&self) {
        assert!(self.mmu.mmu_lock.try_write().is_some(), "flushed with the spin lock held");
        self.others();
        self.tlb.flush(&self.mmu, &self.host);
    }

    fn start(&self, start: u64, end: u64, may_block: bool) {
        let of = |hva: u64| self.host.pte(hva).map(|p| p.pfn);
        let pfns: BTreeSet<u64> = (start..end).step_by(PAGE as usize).filter_map(of).collect();
        self.mmu.invalidate_range_start(Hva(start), Hva(end), may_block, &|| self.flush());
        // Whatever else is under way.
        assert!(!self.tlb.reaches(&pfns), "a page that the host takes away is in a TLB");
    }

    /// The range in whole pages of the host's.
    fn whole(&self, at: u64, pages: u64) -> (u64, u64) {
        let large = |hva: u64| self.host.pte(hva).is_some_and(|p| p.level == Page2M);
        let (mut first, mut last) = (HVA + at * PAGE, HVA + (at + pages) * PAGE);
        if large(first) {
            first &= !(512 * PAGE - 1);
        }
        if large(last) {
            last = last.next_multiple_of(512 * PAGE);
        }
        (first, last)
    }

    fn change(&self, at: u64, pages: u64, deed: Deed, may_block: bool) {
        let (mut start, mut end) = self.whole(at, pages);
        if matches!(deed, Deed::Fresh(_, Page2M)) {
            (start, end) = (start & !(512 * PAGE - 1), end.next_multiple_of(512 * PAGE));
        }
        let count = (end - start) / PAGE;
        self.start(start, end, may_block);
        match deed {
            Deed::Nothing => {}
            Deed::Unmap => self.host.unmap(start, count),
            Deed::Fresh(writable, level) => {
                self.host.0.space.lock().unwrap().poisoned.retain(|p| *p < start || *p >= end);
                self.host.map_as(start, count, writable, level);
            }
            Deed::Share(largest) => {
                let mut space = self.host.0.space.lock().unwrap();
                let share = |p: &mut Pte| (p.writable, p.level) = (false, p.level.min(largest));
                space.pages.range_mut(start..end).for_each(|(_, p)| share(p));
            }
            Deed::SwapOut => {
                self.host.map(start, count, true);
                self.host.0.space.lock().unwrap().late.extend((start..end).step_by(PAGE as usize));
            }
            Deed::Poison => {
                self.host.unmap(start, count);
                self.host.0.space.lock().unwrap().poisoned.extend((start..end).step_by(PAGE as usize));
            }
        }
        self.mmu.invalidate_range_end(Hva(start), Hva(end));
    }

    fn slots(&self) -> Vec<Memslot> {
        self.mmu.mmu_lock.read().regions.all().iter().map(|r| r.slot).collect()
    }

    /// What the kernel tells nobody.
    fn quietly(&self, at: u64, quiet: Quiet) {
        let (start, end) = self.whole(at, 1);
        let mut space = self.host.0.space.lock().unwrap();
        if !matches!(quiet, Quiet::Upgrade) {
            space.pages.range_mut(start..end).for_each(|(_, p)| p.level = Page4K);
        }
        let writable = match quiet {
            Quiet::Upgrade => start..end,
            Quiet::Split => start..start,
            Quiet::SplitAndUpgrade => HVA + at * PAGE..HVA + at * PAGE + 1,
        };
        space.pages.range_mut(writable).for_each(|(_, p)| p.writable = true);
    }

    fn set_slot(&self, id: u32, flags: u32, base: u64, pages: u64, at: u64) {
        let old = self.mmu.slots.read().by_id(id).copied();
        let r = UserRegion {
            slot: id,
            flags: flags & (LOG_DIRTY_PAGES | READONLY),
            gpa: if base == u64::MAX { old.map_or(0, |s| frame(s.base)) } else { base } << 12,
            size: if pages == u64::MAX { old.map_or(512, |s| s.pages) } else { pages } << 12,
            hva: if at == u64::MAX { old.map_or(HVA, |s| s.hva) } else { HVA + at * PAGE },
        };
        let r = match old {
            // READONLY is for life.
            Some(s) if pages == u64::MAX => UserRegion { flags: r.flags & !READONLY | s.flags & READONLY, ..r },
            _ => r,
        };
        let _ = self.mmu.set_memory_region(&r, &|| self.flush());
    }

    /// One operation, by vCPU `who` if it is a vCPU's.
    fn run(&self, op: &Op, cache: &mut MemoryCache<Fake>, who: usize) {
        let gpa = |gfn: u64| Gpa(frame(gfn) << 12);
        let ring = self.rings.as_ref().map(|rings| RingOf { ring: &rings[who], requests: &self.requests });
        let view = |gfn: u64| self.mmu.view(Space::of(gfn), ring);
        match *op {
            Op::Slot { id, flags, base, pages, at } => self.set_slot(id, flags, base, pages, at),
            Op::Fault { gfn, write, wait: true } => {
                let _ = view(gfn).page_fault(cache, gpa(gfn), npf(write));
            }
            Op::Fault { gfn, write, wait: false } => {
                let _ = view(gfn).page_fault_nowait(cache, gpa(gfn), npf(write));
            }
            Op::Exclusive(on) => self.host.0.exclusive.store(on, SeqCst),
            Op::MappedAhead(on) => self.host.0.mapped.store(on, SeqCst),
            Op::Get(id) => {
                let _ = self.mmu.get_dirty_log(id, Hva(OUT), &|| self.flush());
            }
            Op::Clear { id, word, words, mask } => {
                (0..u64::from(words)).for_each(|n| self.host.poke(OUT + n * 8, &mask.to_le_bytes()));
                let _ = self.mmu.clear_dirty_log(id, word * 64, words * 64, Hva(OUT), &|| self.flush());
            }
            Op::Reset(n) => {
                for ring in self.rings.iter().flatten() {
                    ring.harvest(n);
                }
                self.mmu.reset_dirty_rings(self.rings.iter().flatten(), &|| self.flush());
            }
            Op::Manual(bits) => drop(self.mmu.set_manual_dirty_log(bits)),
            Op::Change { at, pages, deed, may_block } => self.change(at, pages, deed, may_block),
            Op::Quietly { at, quiet } => self.quietly(at, quiet),
            Op::Start { at, pages } => {
                let (start, end) = self.whole(at, pages);
                self.start(start, end, true);
                self.open.lock().unwrap().push((start, end));
            }
            Op::End => {
                let mut open = self.open.lock().unwrap();
                if !open.is_empty() {
                    let (start, end) = open.remove(0);
                    self.mmu.invalidate_range_end(Hva(start), Hva(end));
                }
            }
            Op::Age { at, pages, clear } => {
                let (start, end) = (Hva(HVA + at * PAGE), Hva(HVA + (at + pages) * PAGE));
                let _ = if clear { self.mmu.age(start, end) } else { self.mmu.test_young(start, end) };
            }
            Op::Read(gfn) => drop(view(gfn).read_phys(Gpa(gpa(gfn).0 + 4090), &mut [0; 12])),
            Op::Write(gfn) => drop(view(gfn).write_phys(Gpa(gpa(gfn).0 + 4090), &[1; 12])),
            Op::Exchange(gfn) => drop(view(gfn).cmpxchg_phys(gpa(gfn), 8, 0, 1)),
            Op::Look(gfn) => {
                // A page table full of zeroes, or none.
                let p = Paging { cr0: 1 << 31 | 1, cr3: gpa(gfn).0, ..Paging::default() };
                let _ = view(gfn).walk(&p, gpa(gfn).0, Kind::SystemRead);
                let _ = view(gfn).translate(&p, gpa(gfn).0);
                let _ = view(gfn).fetch(&p, gpa(gfn).0, &mut [0; 15]);
                let _ = view(gfn).mapping_end(gpa(gfn));
                let _ = self.mmu.mapped_pages();
                let _ = view(gfn).is_memory(gpa(gfn), true);
                let _ = view(gfn).memory().user_address(gpa(gfn));
            }
            Op::NoMemory(n) => self.host.fail_after(n),
            Op::Release => self.mmu.release(&|| self.flush()),
            Op::During(ref op, ref inner, n) => {
                self.countdown.store(n, SeqCst);
                *self.during.lock().unwrap() = Some((**inner).clone());
                self.run(op, cache, who);
                *self.during.lock().unwrap() = None;
            }
        }
        if !matches!(op, Op::NoMemory(_)) {
            self.host.fail_after(i64::MAX);
        }
    }

    /// What holds whenever nothing is under way. `before`: what was mapped, if nobody has taken any of it away.
    fn check(&self, before: Option<&Tables>) -> Tables {
        let now = read(&self.mmu, &self.host);
        let readable = |t: &Translation| now.map(&Translation { write: false, ..*t });
        for t in before.iter().flat_map(|before| before.leaves.values()) {
            assert!(readable(t), "no longer mapped, although nobody took it away: {t:x?}");
        }
        let stale = self.tlb.stale(&now);
        assert!(stale.is_empty(), "in a TLB, but no longer in the tables or with fewer rights: {stale:x?}");
        let (slots, maps, open) = (self.mmu.slots.read(), self.mmu.mmu_lock.read(), self.open.lock().unwrap());
        let recorded: BTreeSet<(u32, u64)> = self.rings.iter().flatten().flat_map(DirtyRing::recorded).collect();
        for t in now.leaves.values() {
            for n in 0..t.pages() {
                let (_, slot) = slots.find(t.gfn + n).expect("mapped without a slot");
                let hva = slot.hva_of(t.gfn + n).0;
                let pte = self.host.pte(hva).expect("mapped, and not in the VMM's memory");
                assert_eq!(pte.pfn, t.pfn + n, "another page is mapped");
                assert!(!t.write || pte.writable && !slot.read_only(), "writable and must not be");
                assert!(!open.iter().any(|(start, end)| hva >= *start && hva < *end), "mapped while it is invalidated");
                if t.write && slot.logs() && self.rings.is_some() {
                    let entry = (slot.id, t.gfn + n - slot.base);
                    assert!(recorded.contains(&entry), "writable and in no ring");
                }
                if let (true, Some(log)) = (t.write, maps.dirty_bitmap(slot)) {
                    let page = t.gfn + n - slot.base;
                    assert!(log.word(page / 64) & 1 << (page % 64) != 0, "writable and not in the log");
                }
            }
        }
        assert_eq!(self.host.0.warnings.load(SeqCst), 0);
        drop((slots, maps, open));
        now
    }
}

/// Did it leave everything mapped that was, with these slots before and after it? A log that begins or is read protects
/// pages, a write splits large ones, and that is all.
fn keeps_all(op: &Op, before: &[Memslot], after: &[Memslot]) -> bool {
    let logs = |s: &Memslot| Memslot { flags: s.flags | LOG_DIRTY_PAGES, ..*s };
    match op {
        Op::Slot { .. } => {
            before.len() == after.len() && before.iter().zip(after).all(|(old, new)| old == new || logs(old) == *new)
        }
        Op::Change { .. } | Op::Start { .. } | Op::Release => false,
        Op::During(op, inner, _) => keeps_all(op, before, after) && keeps_all(inner, before, after),
        _ => true,
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

#[test]
fn nothing_stays_in_a_tlb() {
    let seed = number("HSAVE_SEED", 1);
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config { cases: number("HSAVE_CASES", 400) as u32, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let result = runner.run(&(history(), any::<bool>()), |(ops, rings)| {
        let m = Machine::new(rings);
        let mut cache = MemoryCache::new(&m.host);
        let mut now = m.check(None);
        for op in &ops {
            let slots = m.slots();
            m.run(op, &mut cache, 0);
            m.tlb.fill(&m.mmu, &m.host);
            now = m.check(Some(&now).filter(|_| keeps_all(op, &slots, &m.slots())));
        }
        m.host.hook(|_| {});
        let host = m.host.clone();
        // No vCPU is left.
        host.0.walked.lock().unwrap().clear();
        drop((cache, m));
        assert_eq!(host.live_tables(), 0, "table pages leaked");
        Ok(())
    });
    if let Err(e) = result {
        panic!("HSAVE_SEED={seed}: {e}");
    }
}
