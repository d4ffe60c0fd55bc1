//! The members of a pool, and which snapshots of their source replace them. Pure: time is an argument.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::member::{Member, MemberState};

/// The largest number of members of a pool.
pub(super) const MAX_MEMBERS: usize = 65_536;
/// The largest size of the text of an error that is kept, in bytes.
const MAX_TEXT: usize = 200;

/// Reason why members are refused; the pool keeps those it has.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidMembers {
    /// The list is empty.
    Empty,
    /// Two members have this key, which has to be unique.
    DuplicateKey(Arc<str>),
    /// The weight of every active member is 0.
    NoWeight,
    /// The list has more than 65,536 members.
    TooMany(usize),
}

impl fmt::Display for InvalidMembers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the list of members is empty"),
            Self::DuplicateKey(key) => write!(f, "two members have the key {key:?}"),
            Self::NoWeight => f.write_str("every active member has the weight 0"),
            Self::TooMany(count) => write!(f, "there are {count} members, but a pool has at most {MAX_MEMBERS}"),
        }
    }
}

impl std::error::Error for InvalidMembers {}

/// Result of a change of the members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotOutcome {
    /// The members were changed.
    Applied,
    /// The pool has these members already.
    Unchanged,
    /// The snapshot has less than half of the members. It is applied if the next one is equal to it.
    AwaitsConfirmation,
}

/// State of the source of a pool's members.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SourceStatus {
    /// The age of the members: how long ago the source last confirmed or changed them.
    pub age: Duration,
    /// The reason why the latest snapshot was not applied; `None` if it was.
    pub problem: Option<String>,
}

/// The current members.
pub(super) type Members = Arc<[Arc<Member>]>;

/// Changes of members by their key; `None` is a removal.
pub(super) type Changes = BTreeMap<Arc<str>, Option<Arc<Member>>>;

/// The current members and the state of their source.
#[derive(Clone, Debug)]
pub(super) struct Membership {
    members: Members,
    /// A snapshot of less than half of the members, which is applied if the next one is equal to it.
    shrunk: Option<Vec<Arc<Member>>>,
    confirmed_at: Instant,
    problem: Option<String>,
}

impl Membership {
    pub(super) fn new(now: Instant) -> Self {
        Self { members: Arc::new([]), shrunk: None, confirmed_at: now, problem: None }
    }

    pub(super) fn members(&self) -> &Members {
        &self.members
    }

    pub(super) fn status(&self, now: Instant) -> SourceStatus {
        SourceStatus { age: now.saturating_duration_since(self.confirmed_at), problem: self.problem.clone() }
    }

    /// Replaces the members.
    pub(super) fn replace(&mut self, members: Vec<Member>, now: Instant) -> Result<SnapshotOutcome, InvalidMembers> {
        let members = self.checked(members.into_iter().map(Arc::new).collect())?;
        Ok(self.apply(members, now))
    }

    /// Replaces the members by a snapshot of their source. A snapshot of less than half of them has to come twice.
    pub(super) fn update(&mut self, members: Vec<Member>, now: Instant) -> Result<SnapshotOutcome, InvalidMembers> {
        self.update_to(members.into_iter().map(Arc::new).collect(), now)
    }

    /// Applies changes of a source as one [update](Self::update). Members without a change stay, in their order.
    pub(super) fn merge(&mut self, changes: &Changes, now: Instant) -> Result<SnapshotOutcome, InvalidMembers> {
        let mut known = HashSet::with_capacity(self.members.len());
        let mut members = Vec::with_capacity(self.members.len() + changes.len());
        for member in self.members.iter() {
            known.insert(&member.key);
            match changes.get(&member.key) {
                None => members.push(member.clone()),
                Some(member) => members.extend(member.clone()),
            }
        }
        members.extend(changes.iter().filter(|(key, _)| !known.contains(key)).filter_map(|(_, member)| member.clone()));
        self.update_to(members, now)
    }

    fn update_to(&mut self, members: Vec<Arc<Member>>, now: Instant) -> Result<SnapshotOutcome, InvalidMembers> {
        let members = self.checked(members)?;
        if members.len() * 2 < self.members.len() && self.shrunk.as_ref() != Some(&members) {
            let (now_has, had) = (members.len(), self.members.len());
            self.fail(&format_args!("the snapshot has {now_has} instead of {had} members: it awaits an equal one"));
            self.shrunk = Some(members);
            return Ok(SnapshotOutcome::AwaitsConfirmation);
        }
        Ok(self.apply(members, now))
    }

    /// Adds a member, or replaces the one with its key.
    pub(super) fn upsert(&mut self, member: Member, now: Instant) -> Result<SnapshotOutcome, InvalidMembers> {
        let position = self.members.iter().position(|known| known.key == member.key);
        let mut members: Vec<_> = self.members.to_vec();
        match position {
            Some(position) if *members[position] == member => return Ok(self.confirm(now)),
            Some(position) => members[position] = Arc::new(member),
            None if members.len() == MAX_MEMBERS => return Err(InvalidMembers::TooMany(MAX_MEMBERS + 1)),
            None => members.push(Arc::new(member)),
        }
        Ok(self.apply(members, now))
    }

    /// Removes a member. The last one that takes calls drains instead, so that a source that has lost everything does
    /// not stop all calls.
    pub(super) fn remove(&mut self, key: &str, now: Instant) -> SnapshotOutcome {
        let mut members: Vec<_> = self.members.to_vec();
        let Some(position) = members.iter().position(|member| &*member.key == key) else {
            return self.confirm(now);
        };
        let removed = members.remove(position);
        let takes_calls = |member: &Arc<Member>| member.weight > 0 || member.state == MemberState::Draining;
        if !members.iter().any(takes_calls) {
            if removed.state == MemberState::Draining {
                return self.confirm(now);
            }
            members.insert(position, Arc::new(Member::clone(&removed).state(MemberState::Draining)));
        }
        self.apply(members, now)
    }

    /// Records that the source has failed or ended: the members stay.
    pub(super) fn fail(&mut self, problem: &dyn fmt::Display) {
        let mut text = problem.to_string();
        let end = (0..=MAX_TEXT.min(text.len())).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        text.truncate(end);
        self.problem = Some(text);
    }

    fn checked(&mut self, members: Vec<Arc<Member>>) -> Result<Vec<Arc<Member>>, InvalidMembers> {
        let members = check(members);
        if let Err(error) = &members {
            self.fail(error);
        }
        members
    }

    fn apply(&mut self, members: Vec<Arc<Member>>, now: Instant) -> SnapshotOutcome {
        if *self.members == *members {
            return self.confirm(now);
        }
        self.members = members.into();
        let _ = self.confirm(now);
        SnapshotOutcome::Applied
    }

    fn confirm(&mut self, now: Instant) -> SnapshotOutcome {
        (self.shrunk, self.problem, self.confirmed_at) = (None, None, now);
        SnapshotOutcome::Unchanged
    }
}

fn check(members: Vec<Arc<Member>>) -> Result<Vec<Arc<Member>>, InvalidMembers> {
    if members.is_empty() {
        return Err(InvalidMembers::Empty);
    }
    if members.len() > MAX_MEMBERS {
        return Err(InvalidMembers::TooMany(members.len()));
    }
    if members.iter().all(|member| member.weight == 0 || member.state == MemberState::Draining)
        && members.iter().any(|member| member.state == MemberState::Active)
    {
        return Err(InvalidMembers::NoWeight);
    }
    let mut keys = HashSet::with_capacity(members.len());
    for member in &members {
        if !keys.insert(&*member.key) {
            return Err(InvalidMembers::DuplicateKey(member.key.clone()));
        }
    }
    drop(keys);
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn list(keys: &[&str]) -> Vec<Member> {
        keys.iter().map(|key| Member::new(*key)).collect()
    }

    fn keys(membership: &Membership) -> Vec<&str> {
        membership.members().iter().map(|member| &*member.key).collect()
    }

    fn of(members: &[&str]) -> (Membership, Instant) {
        let now = Instant::now();
        let mut membership = Membership::new(now);
        assert_eq!(membership.replace(list(members), now), Ok(SnapshotOutcome::Applied));
        (membership, now)
    }

    #[test]
    fn an_unusable_list_leaves_the_members_as_they_are_and_says_why() {
        let (mut pool, now) = of(&["a", "b"]);
        let twice = list(&["a", "a"]);
        let weightless = vec![Member::new("a").weight(0), Member::new("b").state(MemberState::Draining)];
        for (members, error) in [
            (Vec::new(), InvalidMembers::Empty),
            (twice, InvalidMembers::DuplicateKey("a".into())),
            (weightless, InvalidMembers::NoWeight),
        ] {
            assert_eq!(pool.replace(members.clone(), now), Err(error.clone()));
            assert_eq!(pool.update(members, now + SECOND), Err(error.clone()));
            assert_eq!(keys(&pool), ["a", "b"]);
            let status = pool.status(now + 2 * SECOND);
            assert_eq!((status.age, status.problem), (2 * SECOND, Some(error.to_string())));
        }
        assert_eq!(pool.update(list(&["a", "b"]), now + SECOND), Ok(SnapshotOutcome::Unchanged));
        assert_eq!(pool.status(now + SECOND).problem, None);
    }

    #[test]
    fn a_list_of_draining_members_is_applied() {
        let (mut pool, now) = of(&["a", "b"]);
        let draining = list(&["a", "b"]).into_iter().map(|member| member.state(MemberState::Draining)).collect();
        assert_eq!(pool.update(draining, now), Ok(SnapshotOutcome::Applied));
    }

    #[test]
    fn a_snapshot_of_less_than_half_of_the_members_has_to_come_twice() {
        let (mut pool, now) = of(&["a", "b", "c", "d", "e"]);
        assert_eq!(pool.update(list(&["a", "b", "c"]), now), Ok(SnapshotOutcome::Applied));
        assert_eq!(pool.update(list(&["a"]), now), Ok(SnapshotOutcome::AwaitsConfirmation));
        assert_eq!(keys(&pool), ["a", "b", "c"]);
        assert_eq!(pool.update(list(&["b"]), now), Ok(SnapshotOutcome::AwaitsConfirmation), "another one");
        assert_eq!(pool.update(list(&["a", "b", "c"]), now), Ok(SnapshotOutcome::Unchanged));
        assert_eq!(pool.update(list(&["b"]), now), Ok(SnapshotOutcome::AwaitsConfirmation), "no longer in a row");
        assert_eq!(pool.update(list(&["b"]), now), Ok(SnapshotOutcome::Applied));
        assert_eq!(keys(&pool), ["b"]);
        assert_eq!(pool.replace(list(&["c"]), now), Ok(SnapshotOutcome::Applied), "an operator is not asked twice");
    }

    #[test]
    fn changes_of_a_source_are_applied_as_one_snapshot() {
        let (mut pool, now) = of(&["a", "b", "c"]);
        let put = |key: &str| (Arc::from(key), Some(Arc::new(Member::new(key))));
        let removed = |key: &str| (Arc::from(key), None);
        assert_eq!(
            pool.merge(&Changes::from([put("d"), removed("b"), removed("x")]), now),
            Ok(SnapshotOutcome::Applied)
        );
        assert_eq!(keys(&pool), ["a", "c", "d"]);
        assert_eq!(pool.merge(&Changes::from([put("a"), removed("b")]), now), Ok(SnapshotOutcome::Unchanged));
        let two = Changes::from([removed("a"), removed("c")]);
        assert_eq!(pool.merge(&two, now), Ok(SnapshotOutcome::AwaitsConfirmation));
        assert_eq!(pool.merge(&two, now), Ok(SnapshotOutcome::Applied));
        assert_eq!(pool.merge(&Changes::from([removed("d")]), now), Err(InvalidMembers::Empty));
        assert_eq!(keys(&pool), ["d"]);
    }

    #[test]
    fn the_last_member_drains_instead_of_being_removed() {
        let (mut pool, now) = of(&["a", "b"]);
        assert_eq!(pool.remove("x", now), SnapshotOutcome::Unchanged);
        assert_eq!(pool.remove("a", now), SnapshotOutcome::Applied);
        assert_eq!(pool.remove("b", now), SnapshotOutcome::Applied);
        assert_eq!(pool.remove("b", now), SnapshotOutcome::Unchanged);
        assert_eq!((keys(&pool), pool.members()[0].state), (vec!["b"], MemberState::Draining));
        assert_eq!(pool.upsert(Member::new("b"), now), Ok(SnapshotOutcome::Applied));
        assert_eq!(pool.members()[0].state, MemberState::Active);
    }

    #[test]
    fn a_member_that_is_added_again_replaces_itself() {
        let (mut pool, now) = of(&["a"]);
        assert_eq!(pool.upsert(Member::new("a").weight(3), now), Ok(SnapshotOutcome::Applied));
        assert_eq!(pool.upsert(Member::new("a").weight(3), now), Ok(SnapshotOutcome::Unchanged));
        assert_eq!((keys(&pool), pool.members()[0].weight), (vec!["a"], 3));
    }

    #[test]
    fn the_text_of_an_error_is_bounded() {
        let (mut pool, now) = of(&["a"]);
        pool.fail(&"ä".repeat(1000));
        assert_eq!(pool.status(now).problem.unwrap().len(), 200);
    }
}
