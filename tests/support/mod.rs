//! Helpers of the tests: a gateway, upstreams, and a client that writes bytes.

// each test binary uses only a part of the helpers
#![allow(dead_code, unused_imports)]

pub(crate) mod clock;
pub(crate) mod effort;
pub(crate) mod gateway;
pub(crate) mod service;
pub(crate) mod socket;
pub(crate) mod stack;
pub(crate) mod upstream;
pub(crate) mod wire;

use std::future::Future;
use std::sync::OnceLock;
use std::time::Duration;

use tracing::subscriber::{DefaultGuard, NoSubscriber, Subscriber, set_default};

pub(crate) use self::clock::skip;
pub(crate) use self::effort::repeats;
pub(crate) use self::gateway::{Gateway, Seen, listener, proxy, serve, short};
pub(crate) use self::socket::Socket;
pub(crate) use self::stack::{StackGateway, default_proxy, stack};
pub(crate) use self::upstream::{Upstream, app, tls_app};
pub(crate) use self::wire::{Message, Wire, ask};

/// The longest wait of a test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(9);

/// Makes a subscriber the default of this thread until the guard is dropped.
pub(crate) fn subscribe(subscriber: impl Subscriber + Send + Sync + 'static) -> DefaultGuard {
    // if there is one dispatcher alone, tracing asks the subscriber of the thread that meets a callsite first: a test without
    // one would disable it for all
    static SECOND: OnceLock<tracing::Dispatch> = OnceLock::new();
    SECOND.get_or_init(|| tracing::Dispatch::new(NoSubscriber::default()));
    set_default(subscriber)
}

/// Waits for a future that has to complete.
pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("it comes in time")
}

/// Waits until a condition holds, by polling it.
pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..900 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it never came: {what}");
}
