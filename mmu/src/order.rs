//! Putting things in order without a panic that the compiler could see, without memory, and with pauses.

/// Steps between two pauses.
const AT_A_TIME: usize = 256;

/// Puts all in the order of their keys, which nearly always they are in already; those with the same key in any. `pause` is called now and
/// then: another task may have the CPU.
pub fn sort<T: Copy, K: PartialOrd>(all: &mut [T], key: impl Fn(&T) -> K, mut pause: impl FnMut()) {
    if all.is_sorted_by_key(&key) {
        return;
    }
    // A heap, with the greatest at its top.
    let mut steps = 0usize;
    let mut sift = |all: &mut [T], at: usize, len: usize| {
        sift(all.get_mut(..len).unwrap_or_default(), &key, at);
        steps += 1;
        if steps % AT_A_TIME == 0 {
            pause();
        }
    };
    let len = all.len();
    for at in (0..len / 2).rev() {
        sift(all, at, len);
    }
    for last in (1..len).rev() {
        swap(all, 0, last);
        sift(all, 0, last);
    }
}

/// Below `at` it is a heap: with `at` it becomes one.
fn sift<T: Copy, K: PartialOrd>(all: &mut [T], key: impl Fn(&T) -> K, mut at: usize) {
    let less = |all: &[T], one: usize, other: usize| match (all.get(one), all.get(other)) {
        (Some(one), Some(other)) => key(one) < key(other),
        _ => false,
    };
    loop {
        let (left, right) = (2 * at + 1, 2 * at + 2);
        let child = if less(all, left, right) { right } else { left };
        if !less(all, at, child) {
            return;
        }
        swap(all, at, child);
        at = child;
    }
}

/// `slice::swap` could panic, as far as the compiler can see.
fn swap<T: Copy>(all: &mut [T], one: usize, other: usize) {
    let (Some(a), Some(b)) = (all.get(one).copied(), all.get(other).copied()) else { return };
    for (at, value) in [(one, b), (other, a)] {
        if let Some(place) = all.get_mut(at) {
            *place = value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    proptest! {
        #[test]
        fn all_are_there_and_in_order(mut all in prop::collection::vec((0..50u32, 0..3u64), 0..600)) {
            let mut expected = all.clone();
            expected.sort_unstable();
            sort(&mut all, |x| *x, || ());
            prop_assert_eq!(all, expected);
        }
    }

    #[test]
    fn others_may_have_the_cpu() {
        let mut pauses = 0;
        let mut all: Vec<u32> = (0..10_000).rev().collect();
        sort(&mut all, |x| *x, || pauses += 1);
        assert!(all.is_sorted() && pauses > 10_000 / AT_A_TIME);
        sort(&mut all, |x| *x, || panic!("it is in order"));
    }
}
