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

/// The hash of what keeps calls at one endpoint, such as a session.
pub(super) type Sticky = dyn Fn(RequestHead<'_>) -> Option<u64> + Send + Sync;

/// The settings of a pool.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) circuit: Option<BreakerPolicy>,
    pub(super) limiter: Option<ConcurrencyLimitLayer>,
    pub(super) classify: ClassifyLayer,
    /// `None`: no request is sent as a probe.
    pub(super) probe: Option<ProbeSource>,
    pub(super) slow_start: Duration,
    pub(super) zone: Option<Arc<str>>,
    /// Calls are refused while too few endpoints are available; otherwise all endpoints are used.
    pub(super) refuses_in_panic: bool,
    /// Outliers take no calls for a while.
    pub(super) ejects_outliers: bool,
    pub(super) sticky: Option<Opaque<Arc<Sticky>>>,
    /// The name of the gateway, if it uses a part of many members.
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
    /// How the errors of endpoints become failures; an outer layer reports them.
    pub(super) fn classified(&self) -> Classified {
        Classified { settings: self.classify.settings().clone() }
    }

    /// The circuit of a new endpoint, which marks the shares of the pool as stale when it changes.
    pub(super) fn circuit_for(member: &Member, pool: &PoolState) -> Option<CircuitBreakerLayer> {
        let name = format!("{}/{}", pool.name, member.key);
        locked(&pool.circuit).map(|policy| CircuitBreakerLayer::for_endpoint(policy, name.into(), pool.stale.clone()))
    }

    /// The limiter of a new endpoint.
    pub(super) fn limiter_for(&self, member: &Member) -> Option<ConcurrencyLimitLayer> {
        self.limiter.as_ref().map(|limiter| limiter.for_endpoint(&member.key))
    }
}
