//! A limit of its own for each upstream that requests name.

use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, Uri};
use tower_layer::Layer;

use super::limiter::LimitSnapshot;
use super::{Limit, LimitLayer, Timeless};
use crate::engine::{Key, KeyedEngine, Shares};
use crate::keyed::Stay;

/// The service of [`KeyedLimitLayer`].
pub type KeyedLimit<S> = KeyedEngine<S, Limit, Timeless>;

/// Limits the calls in flight to each upstream by itself; made by [`LimitLayer::keyed`].
#[derive(Clone)]
#[must_use]
pub struct KeyedLimitLayer {
    template: LimitLayer,
    shares: Arc<Shares<Limit, Timeless>>,
}

impl KeyedLimitLayer {
    pub(super) fn new(template: LimitLayer) -> Self {
        Self { shares: Arc::new(shares(&template, None)), template }
    }

    /// What names an upstream (default: the authority of the target, else `Host`, in lower case).
    ///
    /// The limits are new ones: clones that were made before go on with the old.
    pub fn key<K>(self, key: K) -> Self
    where
        K: for<'a> Fn(&'a Uri, &'a HeaderMap) -> Option<&'a str> + Send + Sync + 'static,
    {
        Self { shares: Arc::new(shares(&self.template, Some(Arc::new(key)))), ..self }
    }

    /// The limits that there are, in the order of their keys.
    pub fn snapshots(&self) -> Vec<(Box<str>, LimitSnapshot)> {
        self.shares.list(|limit| limit.limiter.snapshot())
    }

    /// The limit of an upstream that has one.
    pub fn snapshot(&self, key: &str) -> Option<LimitSnapshot> {
        self.shares.peek(key, |limit| limit.limiter.snapshot())
    }

    /// The one limit of all that find no place among the 1,024, and of requests that name no upstream.
    pub fn others(&self) -> LimitSnapshot {
        self.shares.others().limiter.snapshot()
    }
}

fn shares(template: &LimitLayer, key: Option<Key>) -> Shares<Limit, Timeless> {
    let template = template.clone();
    Shares::new(move |name| template.again(name).shared, |_| Stay::Not, key)
}

impl<S> Layer<S> for KeyedLimitLayer {
    type Service = KeyedLimit<S>;

    fn layer(&self, inner: S) -> KeyedLimit<S> {
        KeyedEngine::new(inner, self.shares.clone())
    }
}

impl fmt::Debug for KeyedLimitLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.snapshots()).finish()
    }
}
