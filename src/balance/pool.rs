//! The endpoints of a pool by level, for calls, and their changes with the members.

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64, AtomicUsize,
    Ordering::{AcqRel, Relaxed},
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::Instant;

use super::choice::{Candidate, Choice, Weights};
use super::endpoint::{Endpoint, EndpointComponent, EndpointParts, EndpointSpec, EndpointState, TrackUploads, nanos};
use super::levels::{ALL, LevelCount, shares};
use super::member::{Member, MemberState};
use super::membership::{Members, Membership};
use super::outlier;
use super::rendezvous::{self, Ranked, SUBSET_FROM, subset};
use super::review::{ReviewRules, review};
use super::settings::Settings;
use super::warm_up::WarmUp;
use crate::breaker::{BreakerPolicy, CircuitBreakerLayer};
use crate::exchange::{Config, Exchange};
use crate::limit::ConcurrencyLimitLayer;

/// The number of endpoints up to which a pool's shares are computed after each change of availability.
const SMALL: u64 = 256;
/// The shortest time between two computations of a larger pool's shares, in nanoseconds per endpoint: about twenty
/// times the time of a computation.
const PAUSE: u64 = 1_000;
/// The time of the next probe if none is due.
pub(super) const NEVER: u64 = u64::MAX;

/// The state of a pool that does not depend on the service of its endpoints.
#[derive(Debug)]
pub(super) struct PoolState {
    pub(super) name: Arc<str>,
    pub(super) settings: Settings,
    /// The policy of the circuits of new endpoints.
    pub(super) circuit: Mutex<Option<BreakerPolicy>>,
    pub(super) membership: Mutex<Membership>,
    pub(super) endpoints: Mutex<HashMap<Arc<str>, Arc<EndpointState>>>,
    /// The part of its weight that each group takes, of [`ALL`]; groups that take all of it are absent.
    pub(super) groups: Mutex<HashMap<Arc<str>, u32>>,
    pub(super) members: watch::Sender<Members>,
    /// Whether the availability of an endpoint has changed since the shares of the levels were computed.
    pub(super) stale: Arc<AtomicBool>,
    /// When the shares may be computed again.
    refresh_at: AtomicU64,
    /// Held while they are computed: what is found last has to be stored last.
    refreshing: Mutex<()>,
    /// When an endpoint whose circuit is open may get a call as a probe.
    pub(super) probe_at: AtomicU64,
    /// Whether there are endpoints whose circuit is open.
    pub(super) has_ejected: AtomicBool,
    /// The number of endpoints that take calls.
    available: AtomicUsize,
    /// When endpoints are compared again.
    review_at: AtomicU64,
    /// The number of endpoints that take no calls.
    pub(super) unavailable: AtomicUsize,
    /// The number of levels that panic.
    pub(super) panicking: AtomicUsize,
    /// The identity of the health checks that set the health of its endpoints; 0 if there are none.
    pub(super) checked_by: AtomicU64,
    pub(super) origin: Instant,
}

impl PoolState {
    pub(super) fn new(name: Arc<str>, settings: Settings, now: Instant) -> Self {
        Self {
            name,
            circuit: Mutex::new(settings.circuit),
            settings,
            membership: Mutex::new(Membership::new(now)),
            endpoints: Mutex::default(),
            groups: Mutex::default(),
            members: watch::Sender::new(Arc::new([])),
            stale: Arc::new(AtomicBool::new(false)),
            refresh_at: AtomicU64::new(0),
            refreshing: Mutex::new(()),
            probe_at: AtomicU64::new(NEVER),
            has_ejected: AtomicBool::new(false),
            review_at: AtomicU64::new(outlier::REVIEW),
            available: AtomicUsize::new(0),
            unavailable: AtomicUsize::new(0),
            panicking: AtomicUsize::new(0),
            checked_by: AtomicU64::new(0),
            origin: now,
        }
    }

    #[inline]
    pub(super) fn at(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.origin))
    }

    /// Returns the weight of a member, changed by its agent and by a shift between groups.
    #[allow(clippy::cast_precision_loss)]
    fn weight(&self, member: &Member, endpoint: &EndpointState) -> f32 {
        let groups = locked(&self.groups);
        let group = member.group.as_ref().and_then(|group| groups.get(group)).copied().unwrap_or(ALL);
        member.weight as f32 * (endpoint.weight_percent() as f32 / 100.0) * (group as f32 / ALL as f32)
    }
}

/// Pool of endpoints with one type of service.
pub(super) struct Pool<S> {
    pub(super) state: Arc<PoolState>,
    make: Box<dyn Fn(&Member) -> S + Send + Sync>,
    warm_up: Option<WarmUp<S>>,
    table: ArcSwap<Table<S>>,
    endpoints: Mutex<HashMap<Arc<str>, Arc<Endpoint<S>>>>,
    /// The endpoints whose circuit is open, unless it is held open.
    pub(super) ejected: ArcSwap<Vec<Arc<Endpoint<S>>>>,
    /// A counter by which these endpoints take turns as targets of probes.
    pub(super) turn: AtomicUsize,
    /// The settings of calls that are rejected because there is no endpoint.
    pub(super) rejecting: Arc<Config<EndpointSpec>>,
}

/// Endpoints by level.
struct Table<S> {
    levels: Vec<Level<S>>,
}

/// Endpoints that take calls together: those of a tier, or of its part inside or outside of the own zone.
struct Level<S> {
    endpoints: Box<[Arc<Endpoint<S>>]>,
    weights: Weights,
    /// See [`LevelShare`](super::levels::LevelShare).
    up_to: AtomicU32,
    panics: AtomicBool,
    /// Whether some of the available endpoints are in their slow start, and others are not.
    ramps: AtomicBool,
}

impl<S: Clone> Pool<S> {
    pub(super) fn new(
        state: Arc<PoolState>,
        make: Box<dyn Fn(&Member) -> S + Send + Sync>,
        warm_up: Option<WarmUp<S>>,
    ) -> Self {
        let rejecting = EndpointComponent { state: None, circuit: None, limit: None };
        let rejecting = Config::new((), rejecting, (), TrackUploads, state.settings.classified());
        Self {
            state,
            make,
            warm_up,
            table: ArcSwap::from_pointee(Table { levels: Vec::new() }),
            endpoints: Mutex::default(),
            ejected: ArcSwap::default(),
            turn: AtomicUsize::new(0),
            rejecting: Arc::new(rejecting),
        }
    }

    /// Chooses the endpoint of a call; `None` if no endpoint may take it.
    ///
    /// The first attempt of a call may be sent to an endpoint whose circuit is open, as its probe, and earlier with a
    /// safe method.
    #[inline]
    pub(super) fn choose(
        &self,
        now: Instant,
        tried: &[u64],
        is_safe: bool,
        key: Option<u64>,
    ) -> Option<Arc<Endpoint<S>>> {
        let table = self.table.load();
        let at = self.state.at(now);
        if self.state.stale.load(Relaxed) && at >= self.state.refresh_at.load(Relaxed) {
            self.refresh_once(now);
        }
        if at >= self.state.review_at.load(Relaxed) {
            self.review(&table, at);
        }
        if at >= self.state.probe_at.load(Relaxed) && tried.is_empty() {
            if let Some(endpoint) = self.probe(now, is_safe) {
                return Some(endpoint);
            }
        }
        let level = match &*table.levels {
            [level] => level,
            [] => return None,
            levels => {
                let draw = fastrand::u32(..ALL);
                let Some(level) = levels.iter().find(|level| draw < level.up_to.load(Relaxed)) else {
                    return self.choose_elsewhere(&table, Choice { now: at, tried, all: false, ramps: false });
                };
                level
            }
        };
        let (all, ramps) = (level.panics.load(Relaxed), level.ramps.load(Relaxed));
        let choice = Choice { now: at, tried, all, ramps };
        let by_key = key.and_then(|key| level.choose_by_key(choice, key));
        match by_key.or_else(|| choice.choose(&level.endpoints, &level.weights, || fastrand::u64(..))) {
            Some(chosen) => Some(level.endpoints[chosen].clone()),
            None => self.choose_elsewhere(&table, choice),
        }
    }

    /// Chooses an endpoint of any level, because the level of the call has none.
    #[cold]
    fn choose_elsewhere(&self, table: &Table<S>, choice: Choice<'_>) -> Option<Arc<Endpoint<S>>> {
        let refuses = self.state.settings.refuses_in_panic;
        let of = |all: bool, level: &Level<S>| {
            let chosen = Choice { all, ..choice }.choose(&level.endpoints, &level.weights, || fastrand::u64(..))?;
            Some(level.endpoints[chosen].clone())
        };
        let available = table.levels.iter().find_map(|level| of(false, level));
        // the shares are computed again by the next call
        self.state.stale.store(true, Relaxed);
        available.or_else(|| {
            // an endpoint that is warming up is not known to fail
            let warming = endpoints(table).filter(|endpoint| endpoint.state.is_warming());
            let warming = warming.min_by_key(|endpoint| endpoint.state.load.used_at()).cloned();
            let any = || table.levels.iter().find_map(|level| of(true, level));
            warming.or_else(|| if refuses { None } else { any() })
        })
    }

    /// Compares the endpoints of each level with each other.
    #[cold]
    fn review(&self, table: &Table<S>, now: u64) {
        let due = self.state.review_at.load(Relaxed);
        let next = now + outlier::REVIEW;
        if now < due || self.state.review_at.compare_exchange(due, next, Relaxed, Relaxed).is_err() {
            // another call reviews them
            return;
        }
        // after a time without calls, the window would contain older counts
        let is_late = now - due > 5 * outlier::REVIEW;
        let rules =
            ReviewRules { upstream: &self.state.name, ejects: self.state.settings.ejects_outliers, is_late, now };
        for level in &table.levels {
            if review(&level.endpoints, rules) {
                self.state.stale.store(true, Relaxed);
            }
        }
    }

    /// Computes the shares of the levels, unless another call does; then it is due again afterwards.
    #[cold]
    fn refresh_once(&self, now: Instant) {
        let _refreshing = match self.state.refreshing.try_lock() {
            Ok(refreshing) => refreshing,
            Err(TryLockError::Poisoned(refreshing)) => refreshing.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        // the members may have changed since the call began
        self.refresh(&self.table.load(), now);
    }

    /// Computes the shares of the levels, after the availability of an endpoint has changed.
    #[cold]
    fn refresh(&self, table: &Table<S>, now: Instant) {
        // a change from here on is seen by the next call
        self.state.stale.swap(false, AcqRel);
        let at = self.state.at(now);
        let (mut probe_at, mut unavailable, mut ejected) = (NEVER, 0, Vec::new());
        let mut counts = Vec::with_capacity(table.levels.len());
        let mut average = None;
        for level in &table.levels {
            let (mut available, mut slow, mut warming) = (0, 0, 0);
            for endpoint in &level.endpoints {
                let state = &endpoint.state;
                let is_available = state.is_available();
                if is_available && !state.was_available.load(Relaxed) {
                    // it returns as a newcomer: its own average still has the penalties of its failures
                    let others = || endpoints(table).filter(|other| other.state.was_available.load(Relaxed));
                    state.load.reset(*average.get_or_insert_with(|| median(others(), at)), at);
                    state.begin_slow_start(at);
                }
                state.was_available.store(is_available, Relaxed);
                available += usize::from(is_available);
                warming += usize::from(state.is_warming());
                slow += usize::from(is_available && state.is_in_slow_start(at));
                if let Some((next, _)) = state.next_probe(now) {
                    probe_at = probe_at.min(self.state.at(next));
                    ejected.push(endpoint.clone());
                }
            }
            level.ramps.store(slow > 0 && slow < available, Relaxed);
            unavailable += level.endpoints.len() - available;
            // endpoints that are warming up must not lower the available part of the level
            counts.push(LevelCount { available, total: level.endpoints.len() - warming });
        }
        let endpoints = counts.iter().map(|count| count.total).sum::<usize>() as u64;
        let pause = if endpoints > SMALL { endpoints * PAUSE } else { 0 };
        self.state.refresh_at.store(at + pause, Relaxed);
        let mut panicking = 0;
        for (level, share) in table.levels.iter().zip(shares(&counts)) {
            let panics = share.panics && !self.state.settings.refuses_in_panic;
            panicking += usize::from(share.panics);
            level.up_to.store(share.up_to, Relaxed);
            if level.panics.swap(panics, Relaxed) != panics {
                self.report_panic(level, panics);
            }
            level.endpoints.iter().for_each(|endpoint| endpoint.state.panics.store(panics, Relaxed));
        }
        self.state.has_ejected.store(!ejected.is_empty(), Relaxed);
        self.ejected.store(Arc::new(ejected));
        self.state.probe_at.store(probe_at, Relaxed);
        self.state.available.store(counts.iter().map(|count| count.available).sum(), Relaxed);
        self.state.unavailable.store(unavailable, Relaxed);
        self.state.panicking.store(panicking, Relaxed);
    }

    fn report_panic(&self, level: &Level<S>, panics: bool) {
        let (upstream, endpoints) = (&*self.state.name, level.endpoints.len());
        let tier = level.endpoints.first().map(|endpoint| endpoint.state.member().tier);
        if panics {
            tracing::warn!(
                target: "tower_upstream", upstream, tier, endpoints,
                "less than half of the endpoints are available: calls are sent to all of them"
            );
        } else {
            tracing::info!(target: "tower_upstream", upstream, tier, endpoints, "calls are sent to available endpoints only");
        }
    }
}

impl<S> Pool<S> {
    /// Whether there are more available endpoints than that of a call and the `tried` ones that it was sent to before.
    #[inline]
    pub(super) fn has_others(&self, tried: usize) -> bool {
        self.state.available.load(Relaxed) > tried + 1
    }
}

impl<S> Level<S> {
    /// Chooses the endpoint of a call with a sticky key.
    #[cold]
    fn choose_by_key(&self, choice: Choice<'_>, key: u64) -> Option<usize> {
        let usable = self.endpoints.iter().enumerate().filter(|(_, endpoint)| {
            (choice.all || endpoint.is_available()) && !choice.tried.contains(&endpoint.state.id)
        });
        let keyed = usable.map(|(index, endpoint)| Ranked {
            index,
            hash: endpoint.state.hash,
            weight: 1.0 / self.weights.share(index),
            in_flight: endpoint.state.load.in_flight(),
        });
        rendezvous::for_key(key, keyed)
    }
}

fn endpoints<S>(table: &Table<S>) -> impl Iterator<Item = &Arc<Endpoint<S>>> {
    table.levels.iter().flat_map(|level| &level.endpoints)
}

/// Pool that follows its members, whatever the type of its services.
pub(super) trait Follow: Send + Sync {
    /// Makes the endpoints of new members, and removes those of others. Returns those of before, to be dropped when no lock
    /// is held, because their services are the user's.
    fn follow(&self, members: &Members, now: Instant) -> Box<dyn Any + Send>;
}

impl<S: Clone + Send + Sync + 'static> Follow for Pool<S> {
    fn follow(&self, members: &Members, now: Instant) -> Box<dyn Any + Send> {
        let members = &self.used(members);
        let mut known = locked(&self.endpoints);
        let average = median(known.values(), self.state.at(now));
        let is_first = known.is_empty();
        let mut next = HashMap::with_capacity(members.len());
        for member in members.iter() {
            let endpoint = match known.get(&member.key) {
                Some(endpoint) if endpoint.state.member().addresses == member.addresses => endpoint.clone(),
                _ => {
                    let endpoint = Arc::new(self.endpoint(member.clone(), average, now));
                    if !is_first {
                        endpoint.state.begin_slow_start(self.state.at(now));
                    }
                    endpoint
                }
            };
            next.insert(member.key.clone(), endpoint);
        }
        // a factory that panics has changed nothing so far
        for member in members.iter() {
            if let Some(endpoint) = next.get(&member.key) {
                endpoint.state.set_member(member.clone());
            }
        }
        // endpoints take calls at once if there are no others
        if next.values().all(|endpoint| endpoint.state.is_warming()) {
            for endpoint in next.values() {
                endpoint.state.set_warming(false);
            }
        }
        *locked(&self.state.endpoints) =
            next.iter().map(|(key, endpoint)| (key.clone(), endpoint.state.clone())).collect();
        let table = Table { levels: self.levels(members, &next) };
        let refreshing = locked(&self.state.refreshing);
        self.refresh(&table, now);
        self.table.store(Arc::new(table));
        drop(refreshing);
        Box::new(std::mem::replace(&mut *known, next))
    }
}

impl<S: Clone> Pool<S> {
    /// Returns the members of which this gateway makes endpoints: in each tier and group a subset, and all draining
    /// ones.
    fn used(&self, members: &Members) -> Members {
        let Some(gateway) = self.state.settings.subset.as_deref().filter(|_| members.len() >= SUBSET_FROM) else {
            return members.clone();
        };
        let (active, draining): (Vec<_>, Vec<_>) =
            members.iter().cloned().partition(|member| member.state == MemberState::Active);
        let mut groups: BTreeMap<_, Vec<Arc<Member>>> = BTreeMap::new();
        for member in active {
            groups.entry((member.tier, member.group.clone())).or_default().push(member);
        }
        let of = |group: Vec<Arc<Member>>| {
            let chosen = subset(gateway, group.iter().map(|member| &*member.key));
            chosen.into_iter().map(move |index| group[index].clone())
        };
        groups.into_values().flat_map(of).chain(draining).collect()
    }

    fn endpoint(&self, member: Arc<Member>, average: f32, now: Instant) -> Endpoint<S> {
        let settings = &self.state.settings;
        let circuit = Settings::circuit_for(&member, &self.state);
        let limit = settings.limiter_for(&member);
        let service = (self.make)(&member);
        let parts = EndpointParts {
            circuit: circuit.as_ref().map(CircuitBreakerLayer::handle),
            limit: limit.as_ref().map(ConcurrencyLimitLayer::handle),
            slow_start: settings.slow_start,
            origin: self.state.origin,
        };
        let state = Arc::new(EndpointState::new(member, average, self.state.at(now), parts));
        if let Some(warm_up) = &self.warm_up {
            warm_up.start(service.clone(), state.clone(), self.state.name.clone(), self.state.stale.clone());
        }
        let component = EndpointComponent {
            state: Some(state.clone()),
            circuit: circuit.map(|circuit| circuit.component()),
            limit: limit.map(|limit| limit.component()),
        };
        let config = Config::new((), component, (), TrackUploads, settings.classified());
        Endpoint { exchange: Exchange::repeating(service, Arc::new(config)), state }
    }

    /// Returns the levels in the order in which they take calls: by tier, the own zone first, and draining members
    /// last.
    fn levels(&self, members: &Members, endpoints: &HashMap<Arc<str>, Arc<Endpoint<S>>>) -> Vec<Level<S>> {
        let zone = self.state.settings.zone.as_deref();
        let mut sorted: Vec<_> = members
            .iter()
            .filter_map(|member| {
                let endpoint = endpoints.get(&member.key)?;
                let is_draining = member.state == MemberState::Draining;
                let weight = if is_draining { 1.0 } else { self.state.weight(member, &endpoint.state) };
                let is_far = zone.is_some() && member.zone.as_deref() != zone;
                (weight > 0.0).then_some(((is_draining, member.tier, is_far), endpoint, weight))
            })
            .collect();
        sorted.sort_by_key(|(level, ..)| *level);
        sorted
            .chunk_by(|one, other| one.0 == other.0)
            .map(|level| {
                let weights: Vec<_> = level.iter().map(|(.., weight)| *weight).collect();
                Level {
                    endpoints: level.iter().map(|(_, endpoint, _)| Arc::clone(endpoint)).collect(),
                    weights: Weights::new(&weights),
                    up_to: AtomicU32::new(ALL),
                    panics: AtomicBool::new(false),
                    ramps: AtomicBool::new(false),
                }
            })
            .collect()
    }
}

/// Returns the median response time of the endpoints that have one, in seconds; 0 if none has.
fn median<'a, S: 'a>(endpoints: impl Iterator<Item = &'a Arc<Endpoint<S>>>, now: u64) -> f32 {
    let averages = endpoints.map(|endpoint| endpoint.state.load.average(now));
    let mut averages: Vec<_> = averages.filter(|average| *average > 0.0).collect();
    averages.sort_by(f32::total_cmp);
    averages.get(averages.len() / 2).copied().unwrap_or_default()
}

pub(super) fn locked<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}
