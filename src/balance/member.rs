//! A member of a pool, as its source describes it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

/// One endpoint as a list, DNS or a discovery service describes it.
///
/// Its key is its identity: a member that keeps its key and its addresses keeps its circuit, latency and connections,
/// whatever else changes.
///
/// ```
/// use tower_upstream::balance::Member;
///
/// let member = Member::new("10.0.0.7:8080").weight(2).tier(1).zone("eu-1a");
/// assert_eq!((&*member.key, member.weight), ("10.0.0.7:8080", 2));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
#[non_exhaustive]
pub struct Member {
    /// The identity of the endpoint, unique in its pool. Where there are no `addresses`, it is what the factory connects to:
    /// `host:port`, or a URL.
    pub key: Arc<str>,
    /// The addresses of this one endpoint, IPv4 and IPv6 alike; empty if the key is to be resolved.
    ///
    /// A change of the addresses replaces the endpoint: running calls end at the old one.
    pub addresses: Vec<SocketAddr>,
    /// The share of calls relative to other members of its tier; 0 takes none.
    pub weight: u32,
    /// The priority tier, 0 first: a tier takes calls if the ones above it have too few available members.
    pub tier: u8,
    /// The zone in which it runs.
    pub zone: Option<Arc<str>>,
    /// The group, such as the version that it runs.
    pub group: Option<Arc<str>>,
    /// Whether it takes calls.
    pub state: MemberState,
    /// Values that the factory or the operator reads.
    pub metadata: BTreeMap<String, String>,
}

/// Whether a member takes new calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemberState {
    /// It takes calls.
    #[default]
    Active,
    /// It is about to leave: it takes calls only when no other member is left.
    Draining,
}

impl Member {
    /// An active member with this key, of weight 1, in tier 0, without anything else.
    pub fn new(key: impl Into<Arc<str>>) -> Self {
        Self {
            key: key.into(),
            addresses: Vec::new(),
            weight: 1,
            tier: 0,
            zone: None,
            group: None,
            state: MemberState::Active,
            metadata: BTreeMap::new(),
        }
    }

    /// Sets the addresses.
    pub fn addresses(mut self, addresses: impl IntoIterator<Item = SocketAddr>) -> Self {
        self.addresses = addresses.into_iter().collect();
        self
    }

    /// Sets the weight (default 1).
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// Sets the priority tier (default 0).
    pub fn tier(mut self, tier: u8) -> Self {
        self.tier = tier;
        self
    }

    /// Sets the zone.
    pub fn zone(mut self, zone: impl Into<Arc<str>>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// Sets the group.
    pub fn group(mut self, group: impl Into<Arc<str>>) -> Self {
        self.group = Some(group.into());
        self
    }

    /// Sets the state (default: active).
    pub fn state(mut self, state: MemberState) -> Self {
        self.state = state;
        self
    }

    /// Adds a value to the metadata.
    pub fn metadata(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(name.into(), value.into());
        self
    }
}
