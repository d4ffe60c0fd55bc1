//! Adapts clients with their own request and response types.

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::SyncBody;
use crate::cause::{BadGatewayCause, ClientCall, Detail, Failure, Phase};
use crate::opaque::Opaque;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Calls a client that has its own request, response and body types, such as reqwest's, with those of `http`.
///
/// [`new`](Self::new) takes the function that makes the client's request body, which is called with a [`SyncBody`]. `T` names
/// the client's types as `fn(Request) -> ResponseBody`, for reqwest `fn(reqwest::Request) -> reqwest::Body`; the compiler infers
/// it. Any client works whose request is `TryFrom<http::Request<C>>` and whose response is `Into<http::Response<R>>`. See the
/// [module](super) for the settings of reqwest.
///
/// A request that cannot be converted, such as one without scheme and host for reqwest, is not sent: the error is
/// a [`Failure`] with the cause `invalid_target`, which a [`ClassifyLayer`](crate::ClassifyLayer) around accepts. The client's own
/// errors are boxed and can be downcast.
///
/// ```
/// # use reqwest13 as reqwest;
/// use tower::{Layer, ServiceExt};
/// use tower_upstream::{Failure, BadGatewayCause, compat::HttpCompatLayer};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let client = HttpCompatLayer::new(reqwest::Body::wrap).layer(reqwest::Client::new());
/// let error = client.oneshot(http::Request::get("/no/host").body(axum::body::Body::empty()).unwrap()).await.unwrap_err();
/// assert_eq!(Failure::from_error(error).cause(), BadGatewayCause::InvalidTarget);
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct HttpCompatLayer<F, T> {
    wrap: Opaque<F>,
    types: PhantomData<T>,
}

impl<F, Q, R> HttpCompatLayer<F, fn(Q) -> R> {
    /// Makes the client's request body by this function, usually its constructor: `reqwest::Body::wrap`.
    pub fn new(wrap: F) -> Self {
        Self { wrap: Opaque(wrap), types: PhantomData }
    }
}

impl<S, F: Clone, T> Layer<S> for HttpCompatLayer<F, T> {
    type Service = HttpCompat<S, F, T>;

    fn layer(&self, inner: S) -> HttpCompat<S, F, T> {
        HttpCompat { inner, wrap: self.wrap.clone(), types: PhantomData }
    }
}

/// The service of [`HttpCompatLayer`].
#[derive(Clone, Debug)]
pub struct HttpCompat<S, F, T> {
    inner: S,
    wrap: Opaque<F>,
    types: PhantomData<T>,
}

impl<S, F, Q, R, B, C> Service<Request<B>> for HttpCompat<S, F, fn(Q) -> R>
where
    S: Service<Q>,
    S::Response: Into<Response<R>>,
    S::Error: Into<BoxError>,
    F: Fn(SyncBody<B>) -> C,
    Q: TryFrom<Request<C>>,
    Q::Error: Into<BoxError>,
{
    type Response = Response<R>;
    type Error = BoxError;
    type Future = HttpCompatFuture<S::Future, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // `http://host` and `*` would be written as `http://host*`, another host
        let state = if request.uri().path() == "*" {
            let why = invalid_target().detail(Detail::Text("`*` is no absolute URL")).build();
            State::Refused { error: Some(why.into()) }
        } else {
            match Q::try_from(request.map(|body| (self.wrap)(SyncBody::new(body)))) {
                Ok(request) => State::Call { call: self.inner.call(request) },
                Err(error) => State::Refused { error: Some(refused(error.into())) },
            }
        };
        if matches!(state, State::Refused { .. }) {
            // for the layers around: this refusal is the call that was to be made
            ClientCall::next();
        }
        HttpCompatFuture { state, types: PhantomData }
    }
}

#[cold]
fn refused(error: BoxError) -> BoxError {
    // the user's conversion may have attached a cause
    if error.is::<Failure>() { error } else { invalid_target().source(error).build().into() }
}

fn invalid_target() -> crate::cause::FailureBuilder {
    Failure::builder(BadGatewayCause::InvalidTarget).phase(Phase::Gateway).refusal()
}

pin_project! {
    /// The future of [`HttpCompat`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct HttpCompatFuture<F, R> {
        #[pin]
        state: State<F>,
        types: PhantomData<fn() -> R>,
    }
}

pin_project! {
    #[project = StateProjection]
    #[derive(Debug)]
    enum State<F> {
        Call { #[pin] call: F },
        Refused { error: Option<BoxError> },
    }
}

impl<F, R, A, E> Future for HttpCompatFuture<F, R>
where
    F: Future<Output = Result<A, E>>,
    A: Into<Response<R>>,
    E: Into<BoxError>,
{
    type Output = Result<Response<R>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProjection::Call { call } => Poll::Ready(ready!(call.poll(cx)).map(Into::into).map_err(Into::into)),
            StateProjection::Refused { error } => Poll::Ready(Err(error.take().expect("polled after its response"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::io;

    use tower::{ServiceExt, service_fn};

    use super::*;

    /// A request type of a client's own: a number.
    struct Number(u32);

    impl TryFrom<Request<&str>> for Number {
        type Error = BoxError;

        fn try_from(request: Request<&str>) -> Result<Self, BoxError> {
            if request.uri().path() == "/named" {
                return Err(Failure::new(BadGatewayCause::GatewayOverload).into());
            }
            Ok(Self(request.body().parse()?))
        }
    }

    struct Doubled(u32);

    impl From<Doubled> for Response<u32> {
        fn from(answer: Doubled) -> Self {
            Response::new(answer.0)
        }
    }

    async fn ask(target: &str, body: &'static str) -> Result<u32, Failure> {
        let doubles = service_fn(|request: Number| async move {
            if request.0 > 9 { Err(io::Error::other("too much")) } else { Ok(Doubled(2 * request.0)) }
        });
        let request = Request::options(target).body(body).unwrap();
        let answer =
            HttpCompatLayer::<_, fn(Number) -> u32>::new(SyncBody::into_inner).layer(doubles).oneshot(request).await;
        answer.map(Response::into_body).map_err(|error| match error.downcast::<Failure>() {
            Ok(failure) => *failure,
            Err(error) => Failure::builder(BadGatewayCause::Unknown).source(error).build(),
        })
    }

    #[tokio::test]
    async fn both_types_are_converted() {
        assert_eq!(ask("/", "4").await.unwrap(), 8);
    }

    #[tokio::test]
    async fn a_request_that_cannot_be_converted_was_not_sent() {
        let failure = ask("/", "four").await.unwrap_err();
        assert_eq!(
            (failure.cause(), failure.replay()),
            (BadGatewayCause::InvalidTarget, crate::cause::Replay::NotSent)
        );
        let source = std::error::Error::source(&failure).unwrap();
        assert!(source.is::<std::num::ParseIntError>());
    }

    #[tokio::test]
    async fn a_cause_of_the_conversions_own_is_kept() {
        assert_eq!(ask("/named", "4").await.unwrap_err().cause(), BadGatewayCause::GatewayOverload);
    }

    #[tokio::test]
    async fn an_asterisk_never_becomes_a_part_of_a_host() {
        assert_eq!(ask("*", "4").await.unwrap_err().cause(), BadGatewayCause::InvalidTarget);
    }

    #[tokio::test]
    async fn the_clients_own_error_can_be_downcast() {
        let failure = ask("/", "10").await.unwrap_err();
        assert!(std::error::Error::source(&failure).unwrap().is::<io::Error>());
    }

    #[test]
    fn it_is_send_and_sync_whatever_types_it_names() {
        fn is_send<T: Send + Sync>() {}
        is_send::<HttpCompat<(), (), fn(*const ()) -> std::cell::Cell<()>>>();
        is_send::<HttpCompatFuture<std::future::Ready<Result<(), Infallible>>, *const ()>>();
    }
}
