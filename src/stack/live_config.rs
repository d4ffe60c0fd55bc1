//! The current settings of a stack, which can change at run time.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;

use super::spec::Config;
use crate::timeout::Timeouts;

/// The current settings of one stack.
///
/// A service compares the version at each call; a call keeps the settings it started with.
#[derive(Debug)]
pub(super) struct LiveConfig {
    version: AtomicU32,
    config: RwLock<Arc<Config>>,
    /// The settings of layers with other timeouts; every other change applies to them too.
    variants: Mutex<Vec<Weak<LiveConfig>>>,
}

impl LiveConfig {
    pub(super) fn new(config: Config) -> Self {
        let config = RwLock::new(Arc::new(config));
        Self { version: AtomicU32::new(0), config, variants: Mutex::default() }
    }

    #[inline]
    pub(super) fn version(&self) -> u32 {
        self.version.load(Ordering::Relaxed)
    }

    /// Returns the settings and their version.
    pub(super) fn current(&self) -> (u32, Arc<Config>) {
        let config = self.config.read().unwrap_or_else(PoisonError::into_inner);
        // the version is written under the lock
        (self.version.load(Ordering::Relaxed), config.clone())
    }

    /// Adds a variant of `base` with other timeouts.
    pub(super) fn variant(&self, base: &Self, timeouts: Timeouts) -> Arc<Self> {
        let mut variants = self.variants.lock().unwrap_or_else(PoisonError::into_inner);
        let variant = Arc::new(Self::new(base.with_timeouts(timeouts)));
        variants.retain(|other| other.strong_count() > 0);
        variants.push(Arc::downgrade(&variant));
        variant
    }

    /// The current settings with other timeouts.
    pub(super) fn with_timeouts(&self, timeouts: Timeouts) -> Config {
        let mut config = Config::clone(&self.current().1);
        set_timeouts(&mut config, timeouts);
        config
    }

    /// Changes the settings, and those of all variants, for calls that start from now on.
    pub(super) fn change(&self, change: impl Fn(&mut Config)) {
        let variants = self.variants.lock().unwrap_or_else(PoisonError::into_inner);
        self.change_own(&change);
        variants.iter().filter_map(Weak::upgrade).for_each(|variant| variant.change_own(&change));
    }

    /// Changes these settings alone.
    pub(super) fn change_own(&self, change: impl FnOnce(&mut Config)) {
        let mut config = self.config.write().unwrap_or_else(PoisonError::into_inner);
        let mut next = Config::clone(&config);
        change(&mut next);
        *config = Arc::new(next);
        self.version.fetch_add(1, Ordering::Relaxed);
    }
}

/// The time from the start of a call in which it may be retried.
pub(super) fn retries_end(timeouts: &Timeouts, within: Option<Duration>) -> Option<Duration> {
    timeouts.until_head().into_iter().chain(within).min()
}

/// Sets the timeouts of the attempts and the total of their retries.
pub(super) fn set_timeouts(config: &mut Config, timeouts: Timeouts) {
    let before = std::mem::replace(&mut config.timeouts.timeouts, timeouts);
    if let Some(retry) = &mut config.requests.settings {
        // the preset's window belongs to its timeout of the head
        retry.within = retry.within.filter(|_| timeouts.response_head == before.response_head);
        retry.total = retries_end(&timeouts, retry.within);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tower::{Layer, Service, service_fn};

    use super::super::UpstreamLayer;

    #[tokio::test]
    async fn old_settings_are_dropped_once_every_service_has_noticed_the_change() {
        let layer = UpstreamLayer::builder("shop").build().unwrap();
        let inner = service_fn(|_| std::future::ready(Ok::<_, String>(http::Response::new(String::new()))));
        let mut service = layer.layer(inner);
        let (first, config) = layer.live.current();
        let old = Arc::downgrade(&config);
        drop(config);
        layer.handle().resume();
        layer.handle().resume();
        assert_eq!(layer.live.version(), first + 2);
        assert!(old.strong_count() > 0, "a service keeps its settings until its next call");
        let request = http::Request::new(http_body_util::Empty::<bytes::Bytes>::new());
        let response = service.call(request).await.unwrap();
        assert_eq!((response.status().as_u16(), old.strong_count()), (200, 0), "old settings are dropped");
    }
}
