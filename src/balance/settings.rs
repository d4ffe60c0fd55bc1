//! The settings of a pool.

use std::sync::Arc;
use std::time::Duration;

use super::member::Member;
use super::pool::{PoolState, locked};
use crate::breaker::{BreakerPolicy, CircuitBreakerLayer};
use crate::classify::{Classified, ClassifyLayer};
use crate::exchange::ProbeSource;
use crate::limit::ConcurrencyLimitLayer;
use crate::opaque::Opaque;
use crate::timeout::RequestHead;

/// Function that returns the hash of a sticky call, such as that of its session.
pub(super) type Sticky = dyn Fn(RequestHead<'_>) -> Option<u64> + Send + Sync;

/// The settings of a pool; see [`BalanceBuilder`](super::BalanceBuilder).
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) circuit: Option<BreakerPolicy>,
    pub(super) limiter: Option<ConcurrencyLimitLayer>,
    pub(super) classify: ClassifyLayer,
    /// The requests that are sent as probes; `None`: calls are the only probes.
    pub(super) probe: Option<ProbeSource>,
    pub(super) slow_start: Duration,
    pub(super) zone: Option<Arc<str>>,
    /// A level that panics uses its available endpoints only; otherwise it uses all of them.
    pub(super) refuses_in_panic: bool,
    /// Outliers are ejected; otherwise they are reported only.
    pub(super) ejects_outliers: bool,
    pub(super) sticky: Option<Opaque<Arc<Sticky>>>,
    /// The name of the gateway, if it uses a subset of many members.
    pub(super) subset: Option<Arc<str>>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            circuit: Some(BreakerPolicy::new().clustered()),
            limiter: None,
            classify: ClassifyLayer::new(),
            probe: Some(ProbeSource::default()),
            slow_start: Duration::from_secs(10),
            zone: None,
            refuses_in_panic: false,
            ejects_outliers: false,
            sticky: None,
            subset: None,
        }
    }
}

impl Settings {
    /// Returns the settings by which errors of endpoints become failures; an outer layer reports them.
    pub(super) fn classified(&self) -> Classified {
        Classified { settings: self.classify.settings().clone() }
    }

    /// Returns the circuit of a new endpoint, which marks the pool's shares as stale when it opens or closes.
    pub(super) fn circuit_for(member: &Member, pool: &PoolState) -> Option<CircuitBreakerLayer> {
        let name = format!("{}/{}", pool.name, member.key);
        locked(&pool.circuit).map(|policy| CircuitBreakerLayer::for_endpoint(policy, name.into(), pool.stale.clone()))
    }

    /// Returns the limiter of a new endpoint.
    pub(super) fn limiter_for(&self, member: &Member) -> Option<ConcurrencyLimitLayer> {
        self.limiter.as_ref().map(|limiter| limiter.for_endpoint(&member.key))
    }
}
