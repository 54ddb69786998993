//! Which local APICs a destination may mean, without looking at all of them: tables from physical and logical IDs to
//! the VM's vCPUs. Senders read them without a lock; whoever changed an [`Address`] has them rebuilt.
//! APM volume 2 sections 16.6.1 (destination modes) and 16.14 (x2APIC logical ID).
//!
//! What a table names are candidates: the sender asks each one's published [`Address`] whether it
//! [`matches`](Address::matches). So a table that is a moment old reaches nobody in error, and who keeps its address
//! keeps its place in the tables while others change theirs.

extern crate alloc;
use alloc::{boxed::Box, vec::Vec};
use core::sync::atomic::{AtomicU8, AtomicU16, Ordering::*};

use crate::address::Address;
use crate::message::{Message, Shorthand};
use arch::GuestIndexed;
use once_cell::race::OnceBox;

/// IDs of a flat model, one per bit.
const FLAT: usize = 8;
/// IDs of a cluster model: 15 clusters (and the broadcast) of 4.
const CLUSTERS: usize = 64;

/// The table of IDs has two levels, so that a small VM needs one small piece: IDs of a piece, and most pieces.
const PIECE: usize = 512;
const PIECES: usize = 32;

/// A physical destination names the vCPU whose id it is.
const PHYSICAL: u8 = 1;
/// Logical destinations are those of x2APIC, which follow from the vCPU id.
const X2APIC: u8 = 2;
/// Logical destinations are those of the flat model.
const IN_FLAT: u8 = 4;
/// Logical destinations are those of the cluster model.
const IN_CLUSTERS: u8 = 8;

/// The tables of one VM. Places hold 0 for nobody, else the vCPU's index plus 1.
#[derive(Debug)]
pub struct ApicMap {
    ids: GuestIndexed<[OnceBox<[AtomicU16; PIECE]>; PIECES]>,
    flat: GuestIndexed<[AtomicU16; FLAT]>,
    clusters: GuestIndexed<[AtomicU16; CLUSTERS]>,
    /// For which destinations the tables are complete.
    good: AtomicU8,
}

/// The vCPUs that a message may be for, in order of their IDs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Candidates {
    indices: [u16; Candidates::MOST],
    count: usize,
}

impl Candidates {
    /// Most of one destination: the members of an x2APIC cluster.
    pub const MOST: usize = 16;

    fn push(&mut self, place: Option<&AtomicU16>) {
        let Some(index) = place.and_then(|p| p.load(Acquire).checked_sub(1)) else { return };
        // INDEX: counts what was found.
        if let Some(next) = self.indices.get_mut(self.count) {
            *next = index;
            self.count += 1;
        }
    }

    /// Their indices.
    pub fn iter(&self) -> impl Iterator<Item = usize> + Clone + '_ {
        self.indices.iter().take(self.count).map(|i| usize::from(*i))
    }
}

impl Default for ApicMap {
    fn default() -> Self {
        Self::new()
    }
}

impl ApicMap {
    /// One past the largest vCPU id that there can be room for.
    pub const LIMIT: u32 = (PIECE * PIECES) as u32;

    /// Without room for vCPUs.
    pub const fn new() -> Self {
        Self {
            ids: GuestIndexed::new([const { OnceBox::new() }; PIECES]),
            flat: GuestIndexed::new([const { AtomicU16::new(0) }; FLAT]),
            clusters: GuestIndexed::new([const { AtomicU16::new(0) }; CLUSTERS]),
            good: AtomicU8::new(PHYSICAL | X2APIC),
        }
    }

    /// Makes room for the vCPU id. None: no memory, or the id is not below [`LIMIT`](Self::LIMIT).
    pub fn reserve(&self, id: u32) -> Option<()> {
        let piece = self.ids.get_nospec(id as usize / PIECE)?;
        let new = || -> Result<Box<[AtomicU16; PIECE]>, ()> {
            let mut v = Vec::new();
            v.try_reserve_exact(PIECE).map_err(|_| ())?;
            v.resize_with(PIECE, || AtomicU16::new(0));
            Box::try_from(v.into_boxed_slice()).map_err(|_| ())
        };
        piece.get_or_try_init(new).ok().map(|_| ())
    }

    #[inline]
    fn place(&self, id: u32) -> Option<&AtomicU16> {
        self.ids.get_nospec(id as usize / PIECE)?.get()?.get(id as usize % PIECE)
    }

    /// The vCPU with this id, for which there is [room](Self::reserve), exists from now on.
    pub fn insert(&self, id: u32, index: usize) {
        if let (Some(place), Ok(index)) = (self.place(id), u16::try_from(index)) {
            place.store(index.saturating_add(1), Release);
        }
    }

    /// Index of the vCPU with this id.
    #[inline]
    pub fn by_id(&self, id: u32) -> Option<usize> {
        Some(usize::from(self.place(id)?.load(Acquire).checked_sub(1)?))
    }

    /// Makes the tables anew: `all` are the indices and addresses of all vCPUs. One caller at a time. `wide`: messages
    /// carry 32-bit IDs (KVM_X2APIC_API_USE_32BIT_IDS), so that the low byte of an ID above 255 names nobody.
    pub fn rebuild(&self, all: impl Iterator<Item = (usize, Address)>, wide: bool) {
        let (mut flat, mut clusters) = ([0u16; FLAT], [0u16; CLUSTERS]);
        let mut good = PHYSICAL | X2APIC | IN_FLAT | IN_CLUSTERS;
        for (index, a) in all.filter(|(_, a)| a.hw_enabled()) {
            if a.x2apic() {
                good &= !(IN_FLAT | IN_CLUSTERS);
                continue;
            }
            let id = a.x2apic_id();
            if u32::from(a.xapic_id()) != id & 0xff || id > 0xff && !wide {
                good &= !PHYSICAL;
            }
            let place = u16::try_from(index).unwrap_or(u16::MAX).saturating_add(1);
            let logical = a.logical_id();
            if logical == 0 {
                // Only a broadcast means it: a processor that has not started yet.
                continue;
            }
            good &= !X2APIC;
            let shared = if a.is_flat() {
                good &= !IN_CLUSTERS;
                put(&mut flat, 0, logical, place)
            } else if a.is_cluster() {
                good &= !IN_FLAT;
                put(&mut clusters, usize::from(logical >> 4) * 4, logical & 0xf, place)
            } else {
                false
            };
            if shared {
                // Two of them have the same bit, and the table has room for one; or one has several, and would be found
                // once for each of them. A message that is no vector is not to be taken twice.
                good &= !(IN_FLAT | IN_CLUSTERS);
            }
        }
        // What is no longer complete is not looked up while it changes.
        self.good.fetch_and(good, SeqCst);
        for (to, from) in self.flat.iter().zip(flat).chain(self.clusters.iter().zip(clusters)) {
            to.store(from, Release);
        }
        self.good.store(good, SeqCst);
    }

    /// The vCPUs that `m` may be for; `sender` is the index of the one that sent it. None: look at all of them
    /// (broadcasts; IDs that the guest changed, or logical IDs of several kinds at once).
    #[inline]
    pub fn candidates(&self, m: &Message, sender: Option<usize>) -> Option<Candidates> {
        let mut found = Candidates::default();
        match m.shorthand {
            Shorthand::None => {}
            Shorthand::SelfOnly => {
                if let (Some(i), Some(first)) = (sender, found.indices.first_mut()) {
                    (*first, found.count) = (u16::try_from(i).ok()?, 1);
                }
                return Some(found);
            }
            Shorthand::AllIncludingSelf | Shorthand::AllExcludingSelf => return None,
        }
        let (dest, good) = (m.dest, self.good.load(SeqCst));
        if dest == u32::MAX || dest == 0xff {
            return None;
        }
        if !m.logical {
            found.push(self.place(dest));
            return (good & PHYSICAL != 0).then_some(found);
        }
        if good & X2APIC != 0 {
            let first = (dest >> 16) << 4;
            bits(dest & 0xffff).for_each(|n| found.push(self.place(first | n)));
        } else if good & IN_FLAT != 0 {
            bits(dest & 0xff).for_each(|n| found.push(self.flat.get_nospec(n as usize)));
        } else if good & IN_CLUSTERS != 0 {
            let first = (dest >> 4) * 4;
            bits(dest & 0xf).for_each(|n| found.push(self.clusters.get_nospec((first | n) as usize)));
        } else {
            return None;
        }
        Some(found)
    }
}

/// Enters `place` for each bit of `mask`. True: they are several, or another one has one of them.
fn put(table: &mut [u16], first: usize, mask: u8, place: u16) -> bool {
    // INDEX: below 64: four bits choose the cluster, and a number of a bit of four the place in it.
    bits(mask.into()).fold(mask.count_ones() > 1, |shared, n| match table.get_mut(first | n as usize) {
        Some(p) => core::mem::replace(p, place) != 0 || shared,
        None => shared,
    })
}

/// Numbers of the bits that are set, in ascending order.
fn bits(mut mask: u32) -> impl Iterator<Item = u32> {
    core::iter::from_fn(move || {
        let n = mask.trailing_zeros();
        mask &= mask.wrapping_sub(1);
        (n < 32).then_some(n)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Parts;
    use crate::message::DeliveryMode;
    use alloc::vec;

    fn message(logical: bool, dest: u32) -> Message {
        Message {
            mode: DeliveryMode::Fixed,
            vector: 0x40,
            level: false,
            assert: true,
            logical,
            dest,
            shorthand: Shorthand::None,
            lowest: false,
            ff_is_broadcast: true,
        }
    }

    fn apic(id: u32, x2apic: bool, logical_id: u8, dfr: u32) -> Parts {
        Parts { x2apic_id: id, xapic_id: id as u8, logical_id, dfr, hw_enabled: true, x2apic, sw_enabled: true }
    }

    fn map(apics: &[Address], wide: bool) -> ApicMap {
        let map = ApicMap::new();
        for (n, a) in apics.iter().enumerate() {
            map.reserve(a.x2apic_id()).expect("memory");
            map.insert(a.x2apic_id(), n);
        }
        map.rebuild(apics.iter().copied().enumerate(), wide);
        map
    }

    /// Whatever the addresses are, the map names all those that a look at every address finds.
    fn agrees(apics: &[Address], map: &ApicMap, m: &Message) {
        let all: vec::Vec<_> = (0..apics.len()).filter(|n| apics[*n].matches(m, false)).collect();
        if let Some(c) = map.candidates(m, None) {
            let mut found: vec::Vec<_> = c.iter().filter(|n| apics[*n].matches(m, false)).collect();
            found.sort_unstable();
            assert_eq!(found, all, "{m:?}");
        }
    }

    #[test]
    fn the_common_guests_never_need_a_look_at_all() {
        let x2: vec::Vec<_> = (0..1024).map(|id| Address::new(apic(id * 3, true, 0, !0))).collect();
        let flat: vec::Vec<_> = (0..8).map(|id| Address::new(apic(id, false, 1 << id, !0))).collect();
        let cluster = |id: u32| Address::new(apic(id, false, ((id / 4) << 4 | 1 << (id % 4)) as u8, 0x0fff_ffff));
        let clusters: vec::Vec<_> = (0..60).map(cluster).collect();
        for apics in [&x2, &flat, &clusters] {
            let map = map(apics, false);
            for dest in (0..4200).chain([0x3_0005, 0xff_ffff, 0x1000_0001]).filter(|d| *d != 0xff) {
                for logical in [false, true] {
                    let m = message(logical, dest);
                    assert!(map.candidates(&m, None).is_some());
                    agrees(apics, &map, &m);
                }
            }
            assert_eq!(map.candidates(&message(false, 0xff), None), None, "a broadcast");
        }
    }

    #[test]
    fn unusual_guests_are_looked_at_whole() {
        let mut seed = 1u32;
        let mut random = |n: u32| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) % n
        };
        for _ in 0..300 {
            let mut ids: vec::Vec<u32> = (0..12).map(|n| n * 30 + random(30)).collect();
            ids.rotate_left(random(12) as usize);
            let apics: vec::Vec<_> = ids
                .into_iter()
                .map(|id| {
                    let dfr = [!0, 0x0fff_ffff, 0x5fff_ffff][random(3) as usize];
                    let mut parts = apic(id, random(2) == 0, random(256) as u8, dfr);
                    if random(4) == 0 {
                        parts.xapic_id = random(256) as u8;
                    }
                    parts.hw_enabled = random(5) != 0;
                    Address::new(parts)
                })
                .collect();
            let map = map(&apics, false);
            for _ in 0..60 {
                let dest = if random(2) == 0 { random(400) } else { random(24) << 16 | random(0x1_0000) };
                agrees(&apics, &map, &message(random(2) == 0, dest));
            }
        }
    }

    /// Processors that have not started do not make the others' messages slow.
    #[test]
    fn apics_without_a_logical_id_count_for_no_model() {
        let apics = [Address::new(apic(0, true, 0, !0)), Address::new(apic(1, false, 0, !0))];
        let map = map(&apics, false);
        let m = message(true, 1);
        assert_eq!(map.candidates(&m, None).map(|c| c.iter().collect()), Some(vec![0]));
        agrees(&apics, &map, &m);
    }

    #[test]
    fn an_apic_with_several_logical_ids_is_found_once() {
        for (dfr, ids) in [(!0, [0x03, 0x04]), (0x0fff_ffff, [0x23, 0x24])] {
            let apics = [Address::new(apic(0, false, ids[1], dfr)), Address::new(apic(1, false, ids[0], dfr))];
            let map = map(&apics, false);
            for dest in (0..0xff).filter(|dest| dest & 0xf0 == u32::from(ids[0]) & 0xf0) {
                agrees(&apics, &map, &message(true, dest));
            }
        }
    }

    #[test]
    fn ids_above_255_are_not_their_low_byte_with_32_bit_ids() {
        let apics = [Address::new(apic(1, true, 0, !0)), Address::new(apic(257, false, 0, !0))];
        let found = |wide| map(&apics, wide).candidates(&message(false, 1), None).map(|c| c.iter().collect());
        assert_eq!(found(true), Some(vec![0]));
        assert_eq!(found(false), None);
        assert_eq!(map(&apics, true).by_id(257), Some(1));
        assert_eq!(map(&apics, true).by_id(2), None);
    }

    #[test]
    fn shorthands() {
        let apics = [Address::new(apic(0, true, 0, !0)), Address::new(apic(1, true, 0, !0))];
        let map = map(&apics, false);
        let m = Message { shorthand: Shorthand::SelfOnly, ..message(false, 0) };
        assert_eq!(map.candidates(&m, Some(1)).map(|c| c.iter().collect()), Some(vec![1]));
        assert_eq!(map.candidates(&m, None).map(|c| c.iter().count()), Some(0));
        assert_eq!(map.candidates(&Message { shorthand: Shorthand::AllExcludingSelf, ..m }, Some(1)), None);
    }

    #[test]
    fn there_is_room_up_to_the_limit() {
        let map = ApicMap::new();
        assert_eq!(map.reserve(ApicMap::LIMIT), None);
        map.insert(3, 1);
        assert_eq!(map.by_id(3), None, "no room was made");
        for id in [3, 511, 512, ApicMap::LIMIT - 1] {
            map.reserve(id).expect("memory");
            assert_eq!(map.by_id(id), None);
            map.insert(id, 7);
            assert_eq!(map.by_id(id), Some(7));
        }
        map.reserve(3).expect("there already");
        assert_eq!(map.by_id(3), Some(7), "what was there stays");
        assert_eq!((map.by_id(1024), map.by_id(u32::MAX)), (None, None));
    }
}
