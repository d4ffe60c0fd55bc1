//! The layers as methods of tower's builder.

use std::sync::Arc;

use tower::ServiceBuilder;
use tower::layer::util::Stack;

use super::UpstreamLayer;
use crate::admission::AdmissionLayer;
use crate::breaker::CircuitBreakerLayer;
use crate::classify::ClassifyLayer;
use crate::error_page::{ErrorPage, ErrorPageLayer};
use crate::forward::{ForwardLayer, ForwardingRules};
use crate::limit::ConcurrencyLimitLayer;
use crate::retry::RetryLayer;
use crate::timeout::{TimeoutLayer, Timeouts, TrackUpload};

/// Adds the layers of this crate to tower's [`ServiceBuilder`], one method each.
///
/// No name collides with tower's or tower-http's methods. The first layer added is the outermost; the recommended order is
/// that of the methods.
///
/// ```
/// use std::time::Duration;
/// use http::{Request, Response};
/// use http_body_util::Full;
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
/// use tower_upstream::ServiceBuilderExt;
/// use tower_upstream::error_page::ErrorPage;
/// use tower_upstream::timeout::Timeouts;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let refused = service_fn(|_: Request<_>| async {
///     Err::<Response<Full<bytes::Bytes>>, _>(std::io::Error::from(std::io::ErrorKind::ConnectionRefused))
/// });
/// let service = ServiceBuilder::new()
///     .error_page(ErrorPage::new())
///     .classify_failures()
///     .circuit_breaker("payments")
///     .upstream_timeout(Timeouts::new().response_head(Duration::from_secs(5)))
///     .service(refused);
/// let request = Request::new(Full::<bytes::Bytes>::default());
/// assert_eq!(service.oneshot(request).await.unwrap().status(), 502);
/// # }
/// ```
pub trait ServiceBuilderExt<I>: sealed::Push<I> {
    /// Adds the whole stack.
    fn upstream(self, layer: UpstreamLayer) -> ServiceBuilder<Stack<UpstreamLayer, I>> {
        self.push(layer)
    }

    /// Adds an error page for local responses.
    fn error_page(self, page: ErrorPage) -> ServiceBuilder<Stack<ErrorPageLayer, I>> {
        self.push(ErrorPageLayer::new(page))
    }

    /// Turns errors and unsafe heads into responses with a cause, with the defaults of [`ClassifyLayer`].
    fn classify_failures(self) -> ServiceBuilder<Stack<ClassifyLayer, I>> {
        self.push(ClassifyLayer::new())
    }

    /// Limits the calls in flight.
    fn upstream_limit(self, limit: ConcurrencyLimitLayer) -> ServiceBuilder<Stack<ConcurrencyLimitLayer, I>> {
        self.push(limit)
    }

    /// Retries failed requests where that is safe.
    fn upstream_retry(self, retry: RetryLayer) -> ServiceBuilder<Stack<RetryLayer, I>> {
        self.push(retry)
    }

    /// Adds a circuit breaker for the upstream of this name, with the defaults of [`CircuitBreakerLayer`].
    fn circuit_breaker(self, name: impl Into<Arc<str>>) -> ServiceBuilder<Stack<CircuitBreakerLayer, I>> {
        self.push(CircuitBreakerLayer::new(name))
    }

    /// Adds timeouts; the inner service gets its body as [`TrackedUpload`](crate::body::TrackedUpload).
    fn upstream_timeout(self, timeouts: Timeouts) -> ServiceBuilder<Stack<TimeoutLayer<TrackUpload>, I>> {
        self.push(TimeoutLayer::new(timeouts))
    }

    /// Applies the rules of HTTP proxies, for a client that does not.
    fn forward_headers(self, rules: ForwardingRules) -> ServiceBuilder<Stack<ForwardLayer, I>> {
        self.push(ForwardLayer::new(rules))
    }

    /// Rejects requests that cannot be served before their deadline, on the upstream's side.
    fn admission(self, layer: AdmissionLayer) -> ServiceBuilder<Stack<AdmissionLayer, I>> {
        self.push(layer)
    }
}

impl<I> ServiceBuilderExt<I> for ServiceBuilder<I> {}

mod sealed {
    use tower::ServiceBuilder;
    use tower::layer::util::Stack;

    #[allow(unnameable_types)] // seals the trait
    pub trait Push<I>: Sized {
        fn push<L>(self, layer: L) -> ServiceBuilder<Stack<L, I>>;
    }

    impl<I> Push<I> for ServiceBuilder<I> {
        fn push<L>(self, layer: L) -> ServiceBuilder<Stack<L, I>> {
            self.layer(layer)
        }
    }
}
