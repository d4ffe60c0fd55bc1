//! The task that makes the checks, for all endpoints of all watched pools.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::HealthCheck;
use super::machine::Machine;
use super::probe::{Address, Probe, report};
use super::schedule::{Lane, Queue};
use crate::balance::check_report::CheckRecord;
use crate::balance::handle::BalanceHandle;
use crate::balance::member::Member;
use crate::balance::membership::Members;
use crate::balance::pool::{Follow, PoolState};

/// Changes of members, and of weights, within this time are applied together.
const DEBOUNCE: Duration = Duration::from_millis(50);

/// Weak reference to a pool, which does not keep it alive.
pub(super) struct WeakHandle {
    state: Weak<PoolState>,
    pool: Weak<dyn Follow>,
}

impl WeakHandle {
    pub(super) fn of(pool: &BalanceHandle) -> Self {
        Self { state: Arc::downgrade(&pool.state), pool: Arc::downgrade(&pool.pool) }
    }

    fn upgrade(&self) -> Option<BalanceHandle> {
        Some(BalanceHandle { state: self.state.upgrade()?, pool: self.pool.upgrade()? })
    }
}

/// Watched pool and the probes of its members.
struct WatchedPool {
    handle: WeakHandle,
    /// The probes of its members, by their keys.
    probes: HashMap<Arc<str>, u64>,
}

/// Check that has ended.
struct FinishedCheck {
    probe: u64,
    lane: Lane,
    began: Instant,
    record: CheckRecord,
}

type Follower = (u64, watch::Receiver<Members>, bool);

enum Event {
    Watch(Option<WeakHandle>),
    Followed(Follower),
    Checked(FinishedCheck),
    Due,
}

/// The task that makes the checks.
pub(super) struct Runner {
    id: u64,
    check: Arc<HealthCheck>,
    control: mpsc::UnboundedReceiver<WeakHandle>,
    is_shared: bool,
    pools: HashMap<u64, WatchedPool>,
    probes: HashMap<u64, Probe>,
    by_address: HashMap<Address, u64>,
    queue: Queue,
    /// One task for each pool, which waits for the next change of its members.
    followers: JoinSet<Follower>,
    checks: JoinSet<FinishedCheck>,
    /// Pools in which weights have changed. Applying them costs as much as a change of all members.
    weights: HashSet<u64>,
    /// When weights were last applied.
    weighed_at: Option<Instant>,
    next_id: u64,
}

impl Runner {
    pub(super) fn new(id: u64, check: Arc<HealthCheck>, control: mpsc::UnboundedReceiver<WeakHandle>) -> Self {
        Self {
            id,
            queue: Queue::new(check.max_concurrent),
            check,
            control,
            is_shared: true,
            pools: HashMap::new(),
            probes: HashMap::new(),
            by_address: HashMap::new(),
            followers: JoinSet::new(),
            checks: JoinSet::new(),
            weights: HashSet::new(),
            weighed_at: None,
            next_id: 0,
        }
    }

    pub(super) async fn run(mut self) {
        while self.is_shared || !self.pools.is_empty() {
            let now = Instant::now();
            self.start_due(now);
            self.apply_weights(now);
            match self.event().await {
                Event::Watch(Some(pool)) => self.watch(pool),
                Event::Watch(None) => self.is_shared = false,
                Event::Followed((pool, members, true)) => self.follow(pool, members),
                Event::Followed((pool, _, false)) => self.forget(pool),
                Event::Checked(checked) => self.checked(checked, Instant::now()),
                Event::Due => {}
            }
        }
    }

    async fn event(&mut self) -> Event {
        let weigh = self.weighed_at.filter(|_| !self.weights.is_empty()).map(|at| at + DEBOUNCE);
        let next = self.queue.next_at().into_iter().chain(weigh).min();
        let mut timer = pin!(next.map(sleep_until));
        std::future::poll_fn(|cx| self.poll_event(timer.as_mut().as_pin_mut(), cx)).await
    }

    fn poll_event(&mut self, timer: Option<Pin<&mut tokio::time::Sleep>>, cx: &mut Context<'_>) -> Poll<Event> {
        if self.is_shared {
            if let Poll::Ready(pool) = self.control.poll_recv(cx) {
                return Poll::Ready(Event::Watch(pool));
            }
        }
        if let Poll::Ready(Some(Ok(followed))) = self.followers.poll_join_next(cx) {
            return Poll::Ready(Event::Followed(followed));
        }
        // a check that panics has failed, and none is aborted
        if let Poll::Ready(Some(Ok(checked))) = self.checks.poll_join_next(cx) {
            return Poll::Ready(Event::Checked(checked));
        }
        match timer {
            Some(timer) => timer.poll(cx).map(|()| Event::Due),
            None => Poll::Pending,
        }
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn start_due(&mut self, now: Instant) {
        while let Some((lane, id)) = self.queue.start(now) {
            let Some(probe) = self.probes.get_mut(&id) else {
                self.queue.end(lane);
                continue;
            };
            probe.due = None;
            let (check, member) = (self.check.clone(), probe.member.clone());
            self.checks.spawn(async move {
                let record = check.perform(member).await.record;
                FinishedCheck { probe: id, lane, began: now, record }
            });
        }
    }

    /// Applies the weights that agents have asked for.
    fn apply_weights(&mut self, now: Instant) {
        if self.weights.is_empty() || self.weighed_at.is_some_and(|at| now < at + DEBOUNCE) {
            return;
        }
        self.weighed_at = Some(now);
        for pool in std::mem::take(&mut self.weights) {
            if let Some(pool) = self.pools.get(&pool).and_then(|watched| watched.handle.upgrade()) {
                pool.follow();
            }
        }
    }

    fn watch(&mut self, handle: WeakHandle) {
        let Some(pool) = handle.upgrade() else { return };
        if self.pools.values().any(|watched| Weak::ptr_eq(&watched.handle.state, &handle.state)) {
            return;
        }
        let id = self.id();
        self.pools.insert(id, WatchedPool { handle, probes: HashMap::new() });
        self.follow(id, pool.members());
    }

    /// Checks the current members of a pool, and spawns the wait for their next change.
    fn follow(&mut self, id: u64, mut members: watch::Receiver<Members>) {
        let Some(pool) = self.pools.get(&id).and_then(|watched| watched.handle.upgrade()) else {
            return self.forget(id);
        };
        if pool.state.checked_by.load(Relaxed) != self.id {
            return self.forget(id);
        }
        let current = members.borrow_and_update().clone();
        self.apply(id, &pool, &current);
        self.followers.spawn(async move {
            let is_alive = members.changed().await.is_ok();
            if is_alive {
                sleep(DEBOUNCE).await;
            }
            (id, members, is_alive)
        });
    }

    fn apply(&mut self, id: u64, pool: &BalanceHandle, members: &Members) {
        let Some(watched) = self.pools.get_mut(&id) else { return };
        let mut before = std::mem::take(&mut watched.probes);
        let newcomers = members.len().saturating_sub(before.len());
        let mut probes = HashMap::with_capacity(members.len());
        let (mut left, mut has_weights) = (Vec::new(), false);
        for member in members.iter() {
            let address = Address::of(member);
            let known = before.remove(&member.key);
            let probe = match known {
                Some(probe) if self.probes.get(&probe).is_some_and(|probe| probe.address == address) => probe,
                other => {
                    left.extend(other.map(|probe| (member.key.clone(), probe)));
                    self.use_probe(address, member, newcomers, (id, member.key.clone()))
                }
            };
            probes.insert(member.key.clone(), probe);
            if let Some(probe) = self.probes.get_mut(&probe) {
                probe.member = member.clone();
                // the endpoint may be a new one of an address that is checked already
                has_weights |= probe.publish(pool, &member.key);
            }
        }
        left.extend(before);
        if let Some(watched) = self.pools.get_mut(&id) {
            watched.probes = probes;
        }
        for (key, probe) in left {
            self.release(probe, &(id, key));
        }
        if has_weights {
            self.weights.insert(id);
        }
    }

    /// Returns the probe of an address, and creates it if no pool has named the address before.
    fn use_probe(&mut self, address: Address, member: &Arc<Member>, among: usize, user: (u64, Arc<str>)) -> u64 {
        if let Some(id) = self.by_address.get(&address).copied() {
            if let Some(probe) = self.probes.get_mut(&id) {
                probe.users.push(user);
                return id;
            }
        }
        let id = self.id();
        let due = Machine::first_at(&self.check.schedule, among, Instant::now(), fastrand::u32(..));
        self.queue.insert(Lane::Slow, due, id);
        self.by_address.insert(address.clone(), id);
        let probe = Probe::new(address, member.clone(), due, user);
        self.probes.insert(id, probe);
        id
    }

    /// Removes a user of a probe, and the probe if it was the last one.
    fn release(&mut self, id: u64, user: &(u64, Arc<str>)) {
        let Some(probe) = self.probes.get_mut(&id) else { return };
        probe.users.retain(|other| other != user);
        if !probe.users.is_empty() {
            return;
        }
        if let Some(due) = probe.due {
            self.queue.remove(probe.lane, due, id);
        }
        self.by_address.remove(&probe.address);
        // a running check ends within its limit, and its result is dropped
        self.probes.remove(&id);
    }

    fn forget(&mut self, id: u64) {
        let Some(watched) = self.pools.remove(&id) else { return };
        for (key, probe) in watched.probes {
            self.release(probe, &(id, key));
        }
    }

    fn checked(&mut self, checked: FinishedCheck, now: Instant) {
        let FinishedCheck { probe: id, lane, began, record } = checked;
        self.queue.end(lane);
        let Some(probe) = self.probes.get_mut(&id) else { return };
        let record = Arc::new(record);
        let change = probe.record(&record, &self.check.schedule);
        probe.lane = if self.check.is_slow(record.took) { Lane::Slow } else { Lane::Quick };
        let due = now.max(began + probe.interval(&self.check.schedule));
        probe.due = Some(due);
        self.queue.insert(probe.lane, due, id);
        let mut gone = Vec::new();
        for (pool, key) in &probe.users {
            let handle = self.pools.get(pool).and_then(|watched| watched.handle.upgrade());
            match handle {
                Some(handle) if handle.state.checked_by.load(Relaxed) == self.id => {
                    if probe.publish(&handle, key) {
                        self.weights.insert(*pool);
                    }
                    if let Some(change) = change {
                        report(handle.name(), key, change, &record);
                    }
                }
                _ => gone.push(*pool),
            }
        }
        for pool in gone {
            self.forget(pool);
        }
    }
}
