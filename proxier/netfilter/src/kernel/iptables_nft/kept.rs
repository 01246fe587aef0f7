//! Finds the rules of a chain that can stay when it is rewritten.

use std::collections::{HashMap, VecDeque};

/// For each new rule, the index of the old one that stays in its place. The indexes increase.
///
/// The longest such sequence is found if no rule occurs twice, in O(n log n).
pub(super) fn kept<T: Eq + std::hash::Hash>(old: &[T], new: &[T]) -> Vec<Option<usize>> {
    let mut matched = vec![None; new.len()];
    let start = old.iter().zip(new).take_while(|(old, new)| old == new).count();
    let ends = old[start..].iter().rev().zip(new[start..].iter().rev());
    let end = ends.take_while(|(old, new)| old == new).count();
    for (at, place) in matched.iter_mut().enumerate().take(start) {
        *place = Some(at);
    }
    for back in 1..=end {
        matched[new.len() - back] = Some(old.len() - back);
    }
    let mut places: HashMap<&T, VecDeque<usize>> = HashMap::new();
    for (at, rule) in old[..old.len() - end].iter().enumerate().skip(start) {
        places.entry(rule).or_default().push_back(at);
    }
    let pairs: Vec<(usize, usize)> =
        (start..new.len() - end).filter_map(|at| Some((at, places.get_mut(&new[at])?.pop_front()?))).collect();
    for index in increasing(&pairs) {
        let (at, place) = pairs[index];
        matched[at] = Some(place);
    }
    matched
}

/// The indexes of a longest subsequence whose second numbers increase.
fn increasing(pairs: &[(usize, usize)]) -> Vec<usize> {
    // The last pair of the best sequence of each length, and each pair's predecessor.
    let (mut best, mut before): (Vec<usize>, Vec<Option<usize>>) = (Vec::new(), Vec::with_capacity(pairs.len()));
    for (index, (_, place)) in pairs.iter().enumerate() {
        let length = best.partition_point(|last| pairs[*last].1 < *place);
        before.push(length.checked_sub(1).map(|shorter| best[shorter]));
        if length == best.len() {
            best.push(index);
        } else {
            best[length] = index;
        }
    }
    let mut chosen: Vec<usize> = std::iter::successors(best.last().copied(), |index| before[*index]).collect();
    chosen.reverse();
    chosen
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn moved_rule_is_the_only_one_that_does_not_stay() {
        assert_eq!(kept(&['a', 'b', 'c', 'd'], &['b', 'c', 'd', 'a']), [Some(1), Some(2), Some(3), None]);
        assert_eq!(kept(&['a', 'b'], &['a', 'x', 'b']), [Some(0), None, Some(1)]);
        assert_eq!(kept(&['a', 'a'], &['a']), [Some(0)]);
        assert_eq!(kept(&[] as &[char], &['a']), [None]);
    }

    proptest! {
        #[test]
        fn kept_rules_are_equal_and_in_order(old in vec(0..20_u8, 0..40), new in vec(0..20_u8, 0..40)) {
            let kept = kept(&old, &new);
            let places: Vec<usize> = kept.iter().flatten().copied().collect();
            prop_assert!(places.windows(2).all(|pair| pair[0] < pair[1]), "{places:?}");
            for (at, place) in kept.iter().enumerate() {
                prop_assert!(place.is_none_or(|place| old[place] == new[at]));
            }
        }

        #[test]
        fn equal_chains_stay_as_they_are(old in vec(0..20_u8, 0..40)) {
            prop_assert_eq!(kept(&old, &old), (0..old.len()).map(Some).collect::<Vec<_>>());
        }
    }
}
