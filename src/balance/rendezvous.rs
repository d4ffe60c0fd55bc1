//! Rendezvous hashing: the order of endpoints for a key. Pure.
//!
//! Thaler and Ravishankar, "Using name-based mappings to increase hit rates" (1998), with the weights of Schindelhauer
//! and Schomaker ("Weighted distributed hash tables", 2005): the endpoint with the highest score `weight / -ln(hash)`
//! comes first. When an endpoint is added or removed, only the keys that it takes or had move.

/// The number of members below which a pool uses all of them.
pub(super) const SUBSET_FROM: usize = 50;
/// The number of members in a subset.
pub(super) const SUBSET: usize = 20;
/// With a sticky key, an endpoint takes at most this many times the mean of the calls in flight per weight (Mirrokni,
/// Thorup, Zadimoghaddam, "Consistent hashing with bounded loads").
const BOUND: f32 = 1.25;

/// Mixes two hashes (the finalizer of `MurmurHash3`).
#[inline]
fn mix(key: u64, endpoint: u64) -> u64 {
    let mut hash = key ^ endpoint.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

/// Returns the hash of a name, which is the same in all processes and versions: FNV-1a, mixed.
pub(super) fn hash_name(name: &str) -> u64 {
    let fnv = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    mix(fnv, 0)
}

/// Returns the score of an endpoint for a key; a lower one comes first.
#[inline]
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)] // 53 random bits
fn score(key: u64, endpoint: u64, weight: f32) -> f64 {
    let part = ((mix(key, endpoint) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    -part.ln() / f64::from(weight)
}

/// Endpoint to which calls of a key may be sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ranked {
    pub(super) index: usize,
    /// The hash of its name.
    pub(super) hash: u64,
    pub(super) weight: f32,
    pub(super) in_flight: u32,
}

/// Returns the index of the endpoint for a key: the first one in the order of the key that is below the bound.
///
/// One pass, without a list, finds both the first endpoint below the bound and the first one of all.
#[allow(clippy::cast_precision_loss)] // numbers of calls
pub(super) fn for_key(key: u64, endpoints: impl Iterator<Item = Ranked> + Clone) -> Option<usize> {
    let (mut calls, mut weights) = (1.0, 0.0);
    for endpoint in endpoints.clone() {
        calls += endpoint.in_flight as f32;
        weights += endpoint.weight;
    }
    let mean = calls / weights;
    let (mut first, mut below) = (None, None);
    for endpoint in endpoints {
        let candidate = (score(key, endpoint.hash, endpoint.weight), endpoint.index);
        let comes_before = |best: Option<(f64, usize)>| best.is_none_or(|best| candidate.0 < best.0);
        if comes_before(first) {
            first = Some(candidate);
        }
        // at least one call each, whatever the weights
        let most = (BOUND * mean * endpoint.weight).ceil();
        if (endpoint.in_flight as f32) < most && comes_before(below) {
            below = Some(candidate);
        }
    }
    below.or(first).map(|(_, index)| index)
}

/// Returns the members that a gateway of this name uses, in ascending order: all of them if they are fewer than 50,
/// else 20.
///
/// Up to chance, each member is in the subsets of equally many gateways.
pub(super) fn subset<'a>(gateway: &str, keys: impl ExactSizeIterator<Item = &'a str>) -> Vec<usize> {
    let count = keys.len();
    if count < SUBSET_FROM {
        return (0..count).collect();
    }
    let gateway = hash_name(gateway);
    let mut scores: Vec<_> = keys.enumerate().map(|(index, key)| (mix(gateway, hash_name(key)), index)).collect();
    scores.select_nth_unstable(SUBSET - 1);
    let mut chosen: Vec<_> = scores[..SUBSET].iter().map(|(_, index)| *index).collect();
    chosen.sort_unstable();
    chosen
}

#[cfg(test)]
#[allow(clippy::cast_precision_loss)] // small counts
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn endpoints(weights: &[f32]) -> Vec<Ranked> {
        let of = |(index, weight): (usize, &f32)| Ranked {
            index,
            hash: hash_name(&format!("10.0.0.{index}:80")),
            weight: *weight,
            in_flight: 0,
        };
        weights.iter().enumerate().map(of).collect()
    }

    fn counts(endpoints: &[Ranked], keys: u64) -> Vec<u32> {
        let mut counts = vec![0; endpoints.len()];
        for key in 0..keys {
            counts[for_key(mix(key, 7), endpoints.iter().copied()).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn keys_are_spread_by_weight() {
        for weights in [vec![1.0; 10], vec![1.0, 2.0, 3.0, 4.0], vec![0.5, 5.0]] {
            let counts = counts(&endpoints(&weights), 20_000);
            let sum: f32 = weights.iter().sum();
            for (count, weight) in counts.iter().zip(&weights) {
                let share = *count as f32 / 20_000.0 / (weight / sum);
                assert!((0.9..1.1).contains(&share), "{weights:?}: {share}");
            }
        }
    }

    proptest! {
        #[test]
        fn only_the_keys_of_a_removed_endpoint_change_theirs(
            weights in proptest::collection::vec(1_u8..10, 2..30),
            removed in any::<proptest::sample::Index>(),
            keys in proptest::collection::vec(any::<u64>(), 1..50),
        ) {
            let weights: Vec<_> = weights.into_iter().map(f32::from).collect();
            let all = endpoints(&weights);
            let removed = removed.index(all.len());
            let rest: Vec<_> = all.iter().copied().filter(|endpoint| endpoint.index != removed).collect();
            for key in keys {
                let (before, after) = (for_key(key, all.iter().copied()), for_key(key, rest.iter().copied()));
                prop_assert!(before == after || before == Some(removed));
            }
        }

        #[test]
        fn no_endpoint_has_more_calls_than_the_bound(
            count in 1_usize..20,
            keys in proptest::collection::vec(0_u64..3, 1..200),
        ) {
            let mut all = endpoints(&vec![1.0; count]);
            for (sent, key) in keys.into_iter().enumerate() {
                let index = for_key(key, all.iter().copied()).unwrap();
                all[index].in_flight += 1;
                let most = (BOUND * (sent as f32 + 1.0) / count as f32).ceil();
                prop_assert!(all[index].in_flight as f32 <= most, "{} of {most}", all[index].in_flight);
            }
        }
    }

    #[test]
    fn a_key_moves_to_the_next_endpoint_in_its_order_when_the_first_is_full() {
        let mut all = endpoints(&[1.0; 5]);
        let first = for_key(42, all.iter().copied()).unwrap();
        let without: Vec<_> = all.iter().copied().filter(|endpoint| endpoint.index != first).collect();
        let second = for_key(42, without.into_iter()).unwrap();
        all[first].in_flight = 9;
        assert_eq!(for_key(42, all.iter().copied()), Some(second));
        all[first].in_flight = 0;
        assert_eq!(for_key(42, all.iter().copied()), Some(first));
        assert_eq!(for_key(42, std::iter::empty()), None);
    }

    #[test]
    fn a_subset_is_stable_and_all_endpoints_are_in_about_as_many() {
        let keys = |count: usize| (0..count).map(|index| format!("10.0.{index}:80")).collect::<Vec<_>>();
        let subset_of = |gateway: &str, keys: &[String]| subset(gateway, keys.iter().map(String::as_str));
        assert_eq!(subset_of("edge-1", &keys(49)).len(), 49);
        let members = keys(100);
        let mut counts = vec![0_u32; 100];
        for gateway in 0..1000 {
            let chosen = subset_of(&format!("edge-{gateway}"), &members);
            assert_eq!(chosen.len(), 20);
            for index in &chosen {
                counts[*index] += 1;
            }
        }
        // the mean is 200, the standard deviation 12.6
        assert!(counts.iter().all(|count| (140..260).contains(count)), "{counts:?}");
        let mut fewer = members.clone();
        fewer.remove(57);
        let names = |members: &[String]| -> Vec<_> {
            subset_of("edge-1", members).iter().map(|index| members[*index].clone()).collect()
        };
        let (before, after) = (names(&members), names(&fewer));
        let kept = before.iter().filter(|name| after.contains(name)).count();
        assert!(kept >= 19, "{kept}");
    }
}
