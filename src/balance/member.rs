//! Members of a pool: how a source describes endpoints.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

/// Description of one endpoint by its source: a list, DNS or a discovery service.
///
/// The key is the identity: a member that keeps its key and its addresses keeps its endpoint, with circuit, latency and
/// connections, whatever else changes.
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
    /// The identity of the endpoint, unique in its pool. Without `addresses` it is also what the factory connects to,
    /// such as `host:port` or a URL.
    pub key: Arc<str>,
    /// The addresses of this one endpoint, IPv4 and IPv6; empty if the key is to be resolved.
    ///
    /// A member with other addresses gets a new endpoint: running calls end at the old one.
    pub addresses: Vec<SocketAddr>,
    /// The share of the calls relative to other members of the same level. An active member of weight 0 takes none.
    pub weight: u32,
    /// The priority tier, 0 first: a tier takes calls if the tiers before it have too few available endpoints.
    pub tier: u8,
    /// The zone in which the endpoint runs; see [`BalanceBuilder::zone`](super::BalanceBuilder::zone).
    pub zone: Option<Arc<str>>,
    /// The group, such as the version of a release; see [`Shift`](super::Shift).
    pub group: Option<Arc<str>>,
    /// Whether the endpoint takes new calls.
    pub state: MemberState,
    /// Values for the factory or the operator; the pool does not read them.
    pub metadata: BTreeMap<String, String>,
}

/// Whether a member takes new calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemberState {
    /// The endpoint takes calls.
    #[default]
    Active,
    /// The endpoint is about to leave: it takes new calls only if no active member can.
    Draining,
}

impl Member {
    /// Creates an active member with this key, weight 1 and tier 0, and nothing else.
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

    /// Sets the addresses (default: none, the key is resolved).
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

    /// Sets the zone (default: none).
    pub fn zone(mut self, zone: impl Into<Arc<str>>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// Sets the group (default: none).
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
