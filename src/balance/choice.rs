//! The choice of an endpoint: power of two choices by latency and calls in flight. Pure: load, time and random numbers
//! are arguments.
//!
//! Two candidates are drawn by weight, and the cheaper one is chosen (Mitzenmacher, "The Power of Two Choices in
//! Randomized Load Balancing"):
//!
//! - Latencies within a factor of two count as equal, because their noise would outweigh the calls in flight. The
//!   candidate with fewer calls in flight is chosen then.
//! - If the calls in flight are equal too, it is the candidate that was unused for longer, which keeps equal endpoints
//!   equally busy.
//! - If weights differ, calls in flight that differ by less than one count as equal, and the first candidate is chosen,
//!   because it was drawn by weight. Otherwise an idle endpoint of little weight, such as a canary, would take a call
//!   whenever the others are busy, and far more than its share.
//! - Of fewer than four endpoints, all are compared, because two candidates of so few do not respect weights (Finagle's
//!   documentation).
//!
//! `tests/balance/simulation.rs` measures the choice beside other balancers.

/// Endpoint, as the choice needs it.
pub(super) trait Candidate {
    /// Returns whether it takes calls.
    fn is_available(&self) -> bool;
    /// Returns its identity.
    fn id(&self) -> u64;
    /// Returns the present estimate of its response time, in seconds.
    fn latency(&self, now: u64) -> f32;
    /// Returns the number of its calls in flight.
    fn in_flight(&self) -> u32;
    /// Returns the time of its latest call.
    fn used_at(&self) -> u64;
    /// Returns the part of its share that it takes at `now`, 0 to 1: less than 1 during its slow start.
    fn ramp(&self, now: u64) -> f32;
}

/// The number of draws of two candidates before all endpoints are compared.
const DRAWS: u32 = 5;
/// The number of endpoints below which all are compared.
const COMPARE_ALL: usize = 4;
/// The factor within which latencies count as equal.
const EQUAL: f32 = 2.0;

/// Relative weights of the endpoints of a level, and a table to draw by them in constant time (Walker's alias method).
#[derive(Debug)]
pub(super) struct Weights {
    /// The mean weight divided by that of the endpoint; empty if all are equal.
    shares: Box<[f32]>,
    /// For each endpoint: the probability that its draw counts for itself, of 2^32, and the endpoint for which it
    /// counts otherwise.
    alias: Box<[(u32, u32)]>,
}

impl Weights {
    /// Prepares the weights of endpoints, of which at least one is not 0.
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub(super) fn new(weights: &[f32]) -> Self {
        if weights.windows(2).all(|pair| (pair[0] - pair[1]).abs() < f32::EPSILON) {
            return Self { shares: Box::new([]), alias: Box::new([]) };
        }
        let mean = weights.iter().map(|weight| f64::from(*weight)).sum::<f64>() / weights.len() as f64;
        let shares = weights.iter().map(|weight| (mean / f64::from(*weight)) as f32).collect();
        let mut scaled: Vec<_> = weights.iter().map(|weight| f64::from(*weight) / mean).collect();
        let mut alias: Vec<_> = (0..weights.len()).map(|own| (u32::MAX, own as u32)).collect();
        let (mut small, mut large): (Vec<_>, Vec<_>) = (0..weights.len()).partition(|&index| scaled[index] < 1.0);
        while let (Some(less), Some(&more)) = (small.pop(), large.last()) {
            alias[less] = ((scaled[less] * f64::from(u32::MAX)) as u32, more as u32);
            scaled[more] -= 1.0 - scaled[less];
            if scaled[more] < 1.0 {
                large.pop();
                small.push(more);
            }
        }
        Self { shares, alias: alias.into() }
    }

    fn are_equal(&self) -> bool {
        self.shares.is_empty()
    }

    #[inline]
    pub(super) fn share(&self, index: usize) -> f32 {
        self.shares.get(index).copied().unwrap_or(1.0)
    }

    /// Maps a random number to one of `count` indices, by weight.
    #[inline]
    fn draw(&self, random: u64, count: usize) -> usize {
        let index = scale(random >> 32, count);
        match self.alias.get(index) {
            #[allow(clippy::cast_possible_truncation)] // the lower half
            Some((keeps, other)) if random as u32 >= *keeps => *other as usize,
            _ => index,
        }
    }

    /// Draws two of `count` indices. With weights they may be equal, as a heavy endpoint's share demands.
    #[inline]
    fn draw_two(&self, random: &mut impl FnMut() -> u64, count: usize) -> (usize, usize) {
        let one = random();
        if !self.are_equal() {
            return (self.draw(one, count), self.draw(random(), count));
        }
        let (first, second) = (scale(one >> 32, count), scale(one & u64::from(u32::MAX), count - 1));
        (first, second + usize::from(second >= first))
    }
}

/// Maps 32 random bits to a number below `count`.
#[inline]
#[allow(clippy::cast_possible_truncation)] // below `count`
fn scale(random: u64, count: usize) -> usize {
    ((random * count as u64) >> 32) as usize
}

/// The circumstances of one choice.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice<'a> {
    /// Nanoseconds of the pool's clock.
    pub(super) now: u64,
    /// The endpoints that earlier attempts of the call were sent to; another one is preferred.
    pub(super) tried: &'a [u64],
    /// Whether endpoints that are not available are used too.
    pub(super) all: bool,
    /// Whether slow starts count; they do not if all endpoints are new.
    pub(super) ramps: bool,
}

impl Choice<'_> {
    /// Chooses the index of an endpoint; `None` if none may be used.
    #[inline]
    pub(super) fn choose<C: Candidate>(
        &self,
        endpoints: &[C],
        weights: &Weights,
        mut random: impl FnMut() -> u64,
    ) -> Option<usize> {
        let count = endpoints.len();
        if count >= COMPARE_ALL {
            let mut earlier: Option<usize> = None;
            for _ in 0..DRAWS {
                let (first, second) = weights.draw_two(&mut random, count);
                let (one, other) = (&endpoints[first], &endpoints[second]);
                let only = match (self.is_usable(one, &mut random), self.is_usable(other, &mut random)) {
                    (true, true) => {
                        return Some(if self.keeps(weights, (first, one), (second, other)) { first } else { second });
                    }
                    (true, false) => first,
                    (false, true) => second,
                    (false, false) => continue,
                };
                // draw again for a comparison: otherwise each call that draws an endpoint that hangs would go there
                match earlier {
                    Some(earlier) if earlier != only || !weights.are_equal() => {
                        let (one, other) = ((earlier, &endpoints[earlier]), (only, &endpoints[only]));
                        return Some(if self.keeps(weights, one, other) { earlier } else { only });
                    }
                    _ => earlier = Some(only),
                }
            }
            if earlier.is_some() {
                return earlier;
            }
        }
        self.compare_all(endpoints, weights, random)
    }

    /// Compares all endpoints, because there are few, or because the draws have found none that may be used.
    fn compare_all<C: Candidate>(
        &self,
        endpoints: &[C],
        weights: &Weights,
        mut random: impl FnMut() -> u64,
    ) -> Option<usize> {
        // among equal costs the first one stays, which is drawn by weight
        let mut best = None;
        if !weights.are_equal() {
            best = (0..DRAWS).find_map(|_| {
                let index = weights.draw(random(), endpoints.len());
                let endpoint = endpoints.get(index).filter(|endpoint| self.is_usable(*endpoint, &mut random))?;
                Some((index, endpoint))
            });
        }
        for (index, endpoint) in endpoints.iter().enumerate() {
            if !self.is_usable(endpoint, &mut random) {
                continue;
            }
            match best {
                Some(first) if first.0 == index || self.keeps(weights, first, (index, endpoint)) => {}
                _ => best = Some((index, endpoint)),
            }
        }
        match best {
            Some((index, _)) => Some(index),
            None if self.ramps => Self { ramps: false, ..*self }.compare_all(endpoints, weights, random),
            None if !self.tried.is_empty() => Self { tried: &[], ..*self }.compare_all(endpoints, weights, random),
            None => None,
        }
    }

    #[inline]
    fn is_usable<C: Candidate>(&self, endpoint: &C, random: &mut impl FnMut() -> u64) -> bool {
        (self.all || endpoint.is_available())
            && (self.tried.is_empty() || !self.tried.contains(&endpoint.id()))
            && (!self.ramps || takes_its_turn(endpoint.ramp(self.now), random))
    }

    /// Whether the first of two endpoints is chosen: it does not cost more than the second, or was unused for longer.
    #[inline]
    fn keeps<C: Candidate>(&self, weights: &Weights, first: (usize, &C), second: (usize, &C)) -> bool {
        let (one, other) = (first.1, second.1);
        let (latency, other_latency) = (one.latency(self.now), other.latency(self.now));
        let (calls, other_calls) = (one.in_flight(), other.in_flight());
        let are_alike = latency <= other_latency * EQUAL && other_latency <= latency * EQUAL;
        if are_alike && weights.are_equal() {
            return calls < other_calls || (calls == other_calls && one.used_at() <= other.used_at());
        }
        // an endpoint of twice the weight takes twice the calls
        let (share, other_share) = (weights.share(first.0), weights.share(second.0));
        #[allow(clippy::cast_precision_loss)] // 16 million calls in flight at one endpoint are exact enough
        let (calls, other_calls) = (calls as f32 * share, other_calls as f32 * other_share);
        if are_alike {
            // differences of less than one call count as equal
            calls - other_calls < share.max(other_share)
        } else {
            // the first one was drawn by weight, so that an idle one of little weight does not win whenever others are
            // busy
            latency * (calls + 1.0) <= other_latency * (other_calls + other_share)
        }
    }
}

/// Whether an endpoint in its slow start takes a call, so that it takes a part of `ramp` of its share.
///
/// Of equal candidates, the one that was unused for longer is chosen. An endpoint in its slow start is nearly always that one,
/// and would take twice its part if it were a candidate with the probability `ramp`.
#[inline]
fn takes_its_turn(ramp: f32, random: &mut impl FnMut() -> u64) -> bool {
    #[allow(clippy::cast_precision_loss)]
    let mut draw = || (random() >> 40) as f32 / (1_u32 << 24) as f32;
    ramp >= 1.0 || draw() < ramp * 0.5 * (1.0 + ramp)
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, clippy::cast_sign_loss)] // small numbers
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An endpoint whose calls end at once.
    #[derive(Clone, Debug)]
    struct Endpoint {
        id: u64,
        available: bool,
        latency: f32,
        in_flight: u32,
        used_at: u64,
        ramp: f32,
        calls: u32,
    }

    impl Candidate for Endpoint {
        fn is_available(&self) -> bool {
            self.available
        }

        fn id(&self) -> u64 {
            self.id
        }

        fn latency(&self, _: u64) -> f32 {
            self.latency
        }

        fn in_flight(&self) -> u32 {
            self.in_flight
        }

        fn used_at(&self) -> u64 {
            self.used_at
        }

        fn ramp(&self, _: u64) -> f32 {
            self.ramp
        }
    }

    const CHOICE: Choice<'static> = Choice { now: 0, tried: &[], all: false, ramps: true };

    fn endpoints(count: u64) -> Vec<Endpoint> {
        let of = |id| Endpoint { id, available: true, latency: 1.0, in_flight: 0, used_at: 0, ramp: 1.0, calls: 0 };
        (1..=count).map(of).collect()
    }

    fn drive(endpoints: &mut [Endpoint], weights: &Weights, choice: Choice<'_>, calls: u64) {
        let mut random = fastrand::Rng::with_seed(7);
        for now in 1..=calls {
            let now = now * 1_000;
            let chosen = Choice { now, ..choice }.choose(endpoints, weights, || random.u64(..)).unwrap();
            endpoints[chosen].used_at = now;
            endpoints[chosen].calls += 1;
        }
    }

    #[test]
    fn endpoints_are_used_in_proportion_to_their_weights() {
        for weights in
            [vec![1.0; 7], vec![1.0, 3.0], vec![0.5, 1.0, 1.0], vec![4.0, 1.0, 1.0, 1.0, 3.0], vec![9.0, 1.0, 1.0, 1.0]]
        {
            let mut endpoints = endpoints(weights.len() as u64);
            drive(&mut endpoints, &Weights::new(&weights), CHOICE, 20_000);
            let sum: f32 = weights.iter().sum();
            for (endpoint, weight) in endpoints.iter().zip(&weights) {
                let share = endpoint.calls as f32 / 20_000.0 / (weight / sum);
                assert!((0.85..1.15).contains(&share), "{weights:?}: weight {weight} got {share} of its share");
            }
        }
    }

    #[test]
    fn the_share_of_an_endpoint_that_is_not_available_is_spread_over_the_others_by_weight() {
        for weights in [vec![2.0, 1.0, 2.0], vec![4.0, 1.0, 3.0, 1.0, 1.0]] {
            let mut endpoints = endpoints(weights.len() as u64);
            endpoints[0].available = false;
            drive(&mut endpoints, &Weights::new(&weights), CHOICE, 20_000);
            let sum: f32 = weights[1..].iter().sum();
            for (endpoint, weight) in endpoints.iter().zip(&weights).skip(1) {
                let share = endpoint.calls as f32 / 20_000.0 / (weight / sum);
                assert!((0.8..1.25).contains(&share), "{weights:?}: weight {weight} got {share} of its share");
            }
        }
    }

    #[test]
    fn the_cheaper_of_two_is_used_and_latencies_within_a_factor_of_two_are_equal() {
        for (latency, in_flight, other_in_flight, calls) in
            [(2.1, 0, 0, 0), (2.1, 0, 1, 0), (2.1, 0, 2, 100), (1.9, 0, 0, 50), (1.9, 0, 1, 100), (1.9, 1, 0, 0)]
        {
            let mut two = endpoints(2);
            (two[0].latency, two[0].in_flight, two[1].in_flight) = (latency, in_flight, other_in_flight);
            drive(&mut two, &Weights::new(&[1.0; 2]), CHOICE, 100);
            assert_eq!(two[0].calls, calls, "{latency} s, {in_flight} in flight beside {other_in_flight}");
        }
    }

    #[test]
    fn an_endpoint_of_twice_the_weight_bears_twice_the_calls() {
        for (in_flight, first, second) in [((0, 3), 100, 0), ((3, 2), 67, 33), ((7, 2), 0, 100)] {
            let mut two = endpoints(2);
            (two[0].in_flight, two[1].in_flight) = in_flight;
            drive(&mut two, &Weights::new(&[2.0, 1.0]), CHOICE, 10_000);
            assert_eq!([two[0].calls, two[1].calls].map(|calls| (calls + 50) / 100), [first, second], "{in_flight:?}");
        }
    }

    #[test]
    fn an_idle_endpoint_of_little_weight_gets_no_more_than_its_share() {
        // one that is faster may get as much again
        for (count, latency, most) in [(2, 1.0, 600), (2, 0.1, 600), (3, 1.0, 600), (10, 1.0, 600), (10, 0.1, 1200)] {
            let mut some = endpoints(count);
            for endpoint in &mut some {
                endpoint.in_flight = 5;
            }
            (some[0].in_flight, some[0].latency) = (0, latency);
            let mut weights = vec![99.0 / (count - 1) as f32; some.len()];
            weights[0] = 1.0;
            drive(&mut some, &Weights::new(&weights), CHOICE, 50_000);
            assert!((400..=most).contains(&some[0].calls), "{count} endpoints, {latency} s: {}", some[0].calls);
        }
    }

    #[test]
    fn a_newcomer_takes_a_part_of_its_share_and_all_of_it_if_it_is_alone() {
        for count in [2, 10] {
            let mut some = endpoints(count);
            some[0].ramp = 0.1;
            drive(&mut some, &Weights::new(&[]), CHOICE, 20_000);
            let share = some[0].calls as f32 / 20_000.0 * count as f32;
            assert!((0.05..0.15).contains(&share), "{count}: {share}");
        }
        let mut alone = endpoints(1);
        alone[0].ramp = 0.1;
        drive(&mut alone, &Weights::new(&[1.0]), CHOICE, 50);
        assert_eq!(alone[0].calls, 50);
    }

    #[test]
    fn an_endpoint_that_hangs_is_avoided_beside_others_that_take_no_calls() {
        for count in [5, 10] {
            let mut some = endpoints(count);
            (some[0].latency, some[0].in_flight) = (4.0, 50);
            (some[1].ramp, some[2].available) = (0.1, false);
            drive(&mut some, &Weights::new(&[]), CHOICE, 20_000);
            assert!(some[0].calls < 200, "{count}: {}", some[0].calls);
        }
    }

    #[test]
    fn another_attempt_goes_to_an_endpoint_that_was_not_tried() {
        for count in [2, 3, 20] {
            let mut some = endpoints(count);
            let tried: Vec<_> = (2..=count).collect();
            drive(&mut some, &Weights::new(&[]), Choice { tried: &tried, ..CHOICE }, 50);
            assert_eq!(some[0].calls, 50);
            some[0].available = false;
            let again = Choice { tried: &tried, ..CHOICE }.choose(&some, &Weights::new(&[]), || 3);
            assert!(again.is_some(), "one that was tried is better than none");
        }
    }

    proptest! {
        #[test]
        fn an_endpoint_is_found_if_and_only_if_one_is_available(
            available in proptest::collection::vec(any::<bool>(), 1..40),
            all in any::<bool>(),
            weighted in any::<bool>(),
            seed in any::<u64>(),
        ) {
            let mut some = endpoints(available.len() as u64);
            for (endpoint, available) in some.iter_mut().zip(&available) {
                endpoint.available = *available;
            }
            let weights: Vec<_> = some.iter().map(|endpoint| if weighted { endpoint.id as f32 } else { 1.0 }).collect();
            let mut random = fastrand::Rng::with_seed(seed);
            let chosen = Choice { all, ..CHOICE }.choose(&some, &Weights::new(&weights), || random.u64(..));
            prop_assert_eq!(chosen.is_some(), all || available.contains(&true));
            prop_assert!(chosen.is_none_or(|chosen| all || available[chosen]));
        }
    }
}
