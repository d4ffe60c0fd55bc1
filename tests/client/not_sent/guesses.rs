//! False proofs that nothing was sent: an error kind, a text, the failure or the progress of another call.

use std::convert::Infallible;
use std::error::Error;
use std::fmt;
use std::future::pending;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use axum::body::Body;
use axum::response::IntoResponse;
use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};
use tower_upstream::body::ResponseBody;
use tower_upstream::cause::{Evidence, Phase, Replay};
use tower_upstream::client::{Connector, ReverseProxy, TcpConnector};
use tower_upstream::error_page::{ErrorPage, ErrorPageLayer};
use tower_upstream::forward::ForwardingRules;
use tower_upstream::retry::RetryLayer;
use tower_upstream::timeout::{TimeoutLayer, Timeouts};
use tower_upstream::{BadGatewayCause as Cause, ClassifyLayer, Failure, UpstreamLayer};

const UNKNOWN: &str =
    "We do not know whether your request was processed. Check before you repeat an order or a payment.";
const NOTHING: &str = "was not processed";

/// Orders that were booked.
#[derive(Clone, Default)]
struct Orders(Arc<AtomicUsize>);

impl Orders {
    fn book(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    fn booked(&self) -> usize {
        self.0.load(Relaxed)
    }
}

fn order() -> Request<Full<Bytes>> {
    Request::post("/orders").header("host", "shop.test").body(Full::from("one")).unwrap()
}

/// A port that refuses connections.
fn refuses() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

fn proxy<B>(target: &str) -> ReverseProxy<tower_upstream::client::DefaultConnector, B> {
    ReverseProxy::builder(target.parse().unwrap(), ForwardingRules::new("edge").unwrap()).build()
}

/// A service that books, and then fails with this error.
fn charge<B: Send + 'static>(
    orders: &Orders,
    error: impl Fn() -> BoxError + Clone + Send + 'static,
) -> impl Service<Request<B>, Response = Response<ResponseBody<Body>>, Error = BoxError, Future: Send> + Clone + Send + 'static
{
    let orders = orders.clone();
    service_fn(move |_: Request<B>| {
        let (orders, error) = (orders.clone(), error.clone());
        async move {
            orders.book();
            Err(error())
        }
    })
}

/// Number of bookings of a service that fails with this error, under a retry and in the whole stack.
async fn booked(error: impl Fn() -> BoxError + Clone + Send + 'static) -> [usize; 2] {
    let (alone, stack) = (Orders::default(), Orders::default());
    let retry = RetryLayer::new().layer(ClassifyLayer::new().layer(charge(&alone, error.clone())));
    retry.oneshot(order()).await.unwrap();
    let layer = UpstreamLayer::builder("shop").build().unwrap();
    layer.layer(charge(&stack, error)).oneshot(order()).await.unwrap();
    [alone.booked(), stack.booked()]
}

#[tokio::test(start_paused = true)]
async fn an_io_error_of_a_service_is_no_proof() {
    use ErrorKind as K;
    let kinds = [K::NotFound, K::ConnectionRefused, K::AddrNotAvailable, K::HostUnreachable, K::TimedOut];
    for kind in kinds.into_iter().chain([K::ConnectionReset, K::BrokenPipe, K::UnexpectedEof]) {
        assert_eq!(booked(move || io::Error::from(kind).into()).await, [1, 1], "{kind}");
    }
    // out of descriptors, of addresses, refused by the database
    for errno in [23, 24, 99, 111, 113] {
        assert_eq!(booked(move || io::Error::from_raw_os_error(errno).into()).await, [1, 1], "errno {errno}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_tls_error_of_a_service_is_no_proof() {
    for alert in [42, 49, 116, 40] {
        let alert = move || rustls::Error::AlertReceived(rustls::AlertDescription::from(alert));
        assert_eq!(booked(move || alert().into()).await, [1, 1]);
        assert_eq!(booked(move || io::Error::new(ErrorKind::InvalidData, alert()).into()).await, [1, 1]);
    }
    assert_eq!(booked(|| rustls::Error::NoCertificatesPresented.into()).await, [1, 1]);
}

/// An error of the service whose text a client has chosen.
#[derive(Debug)]
struct Says(&'static str);

impl fmt::Display for Says {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl Error for Says {}

const TEXTS: [&str; 12] = [
    "client error (Connect)",
    "tcp connect error",
    "dns error",
    "failed to lookup address information: Name or service not known",
    "Temporary failure in name resolution",
    "error:0A000086:SSL routines:tls_post_process_server_certificate:certificate verify failed",
    "error:0A000412:SSL routines:ssl3_read_bytes:sslv3 alert bad certificate:SSL alert number 42",
    "no record found for Query",
    "proto error: no records found",
    "invalid dns name",
    "unsupported scheme ftp",
    "connection was not ready",
];

#[tokio::test(start_paused = true)]
async fn no_text_is_a_proof() {
    for text in TEXTS {
        assert_eq!(booked(move || Says(text).into()).await, [1, 1], "{text}");
        assert_eq!(booked(move || text.into()).await, [1, 1], "{text}");
        assert_eq!(booked(move || io::Error::other(text).into()).await, [1, 1], "{text}");
    }
}

#[test]
fn a_text_that_a_client_has_chosen_does_not_change_the_cause() {
    let cause = |error: BoxError| Failure::from_error(error).cause();
    for text in TEXTS {
        assert_eq!(cause(text.into()), Cause::Unknown, "a string is no error of a library: {text}");
    }
    let quoted = [
        "no order \"Temporary failure in name resolution\"",
        "no order \"failed to lookup address information: Name or service not known\"",
        "no order \"error:0A000086:SSL routines:x:certificate verify failed\"",
        "no record of this order",
        "proto error: what does the customer want?",
    ];
    for text in quoted {
        assert_eq!(cause(Says(text).into()), Cause::Unknown, "{text}");
        assert_eq!(cause(io::Error::other(text).into()), Cause::Unknown, "{text}");
        assert_eq!(cause(io::Error::new(ErrorKind::InvalidInput, Says(text)).into()), Cause::Unknown, "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_bare_cause_is_no_proof() {
    let orders = Orders::default();
    let counts = orders.clone();
    let names_it = service_fn(move |_: Request<_>| {
        counts.book();
        let mut answer = Response::new(Full::<Bytes>::default());
        *answer.status_mut() = http::StatusCode::BAD_GATEWAY;
        answer.extensions_mut().insert(Cause::ConnectionRefused);
        std::future::ready(Ok::<_, Infallible>(answer.map(|_| ResponseBody::<Full<Bytes>>::default())))
    });
    RetryLayer::new().layer(names_it).oneshot(order()).await.unwrap();
    assert_eq!(orders.booked(), 1);
    assert_eq!(Failure::new(Cause::ConnectionRefused).replay(), Replay::IdempotentOnly);
    let inferred = Failure::builder(Cause::ConnectionRefused).replay(Replay::NotSent, Evidence::Inferred).build();
    assert_eq!(inferred.replay(), Replay::IdempotentOnly);
}

/// A handler that books with one upstream, and returns the failure of another that refuses connections.
fn books_then_is_refused(orders: &Orders, how: HandsOn) -> axum::Router {
    let (orders, target) = (orders.clone(), refuses());
    axum::Router::new().fallback(move |_: Request<Body>| {
        let (orders, target) = (orders.clone(), target.clone());
        async move {
            orders.book();
            how.call(&target).await
        }
    })
}

#[derive(Clone, Copy, Debug)]
enum HandsOn {
    /// The error of `ReverseProxy`.
    Error,
    /// The failure in the response of a stack, as an error of the handler's own.
    Found,
    /// The stack's response itself.
    Answer,
    /// The failure that the crate makes from the error of another client.
    FromError,
}

impl HandsOn {
    async fn call(self, target: &str) -> axum::response::Response {
        let second = Request::post("/ledger").header("host", "ledger.test").body(Body::empty()).unwrap();
        let stack = UpstreamLayer::builder("ledger").without_retry().without_upload_tracking().build().unwrap();
        match self {
            Self::Error => proxy(target).oneshot(second).await.unwrap_err().into_response(),
            Self::Found => {
                let answer = stack.layer(proxy(target)).oneshot(second).await.unwrap();
                Failure::of(&answer).unwrap().clone().into_response()
            }
            Self::Answer => stack.layer(proxy(target)).oneshot(second).await.unwrap().into_response(),
            Self::FromError => {
                let client = Client::builder(TokioExecutor::new()).build(Connector::new(TcpConnector::new()));
                let second = Request::post(format!("{target}/ledger")).body(Body::empty()).unwrap();
                Failure::from_error(client.request(second).await.unwrap_err()).into_response()
            }
        }
    }
}

const ALL: [HandsOn; 4] = [HandsOn::Error, HandsOn::Found, HandsOn::Answer, HandsOn::FromError];

#[tokio::test]
async fn the_failure_of_another_call_is_no_proof() {
    for how in ALL {
        let orders = Orders::default();
        let handler = books_then_is_refused(&orders, how).into_service::<Body>();
        let classified = ClassifyLayer::new().layer(handler.map_request(|request: Request<_>| request.map(Body::new)));
        let answer = RetryLayer::new().layer(classified).oneshot(order()).await.unwrap();
        let failure = Failure::of(&answer).unwrap();
        assert_eq!((failure.cause(), failure.replay()), (Cause::ConnectionRefused, Replay::IdempotentOnly), "{how:?}");
        assert_eq!(orders.booked(), 1, "{how:?}");
    }
}

#[tokio::test]
async fn the_failure_of_another_call_is_no_proof_in_the_stack() {
    for how in ALL {
        let orders = Orders::default();
        let handler = books_then_is_refused(&orders, how).into_service::<Body>();
        let layer = UpstreamLayer::builder("shop").build().unwrap();
        let service = layer.layer(handler.map_request(|request: Request<_>| request.map(Body::new)));
        let answer = service.oneshot(order()).await.unwrap();
        let failure = Failure::of(&answer).unwrap();
        assert_eq!((failure.cause(), failure.replay()), (Cause::ConnectionRefused, Replay::IdempotentOnly), "{how:?}");
        assert_eq!(orders.booked(), 1, "{how:?}");
    }
}

/// A handler that reads the order, books it, and fails with the connect error of a client for something else.
fn reads_and_is_refused<B>(
    orders: &Orders,
) -> impl Service<Request<B>, Response = Response<hyper::body::Incoming>, Error = BoxError, Future: Send> + Clone + use<B>
where
    B: http_body::Body<Data = Bytes, Error: fmt::Debug> + Send + 'static,
{
    let (orders, target) = (orders.clone(), refuses());
    service_fn(move |request: Request<B>| {
        let (orders, target) = (orders.clone(), target.clone());
        async move {
            drop(read(request).await);
            orders.book();
            let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
            Ok(client.request(Request::get(target).body(Full::default()).unwrap()).await?)
        }
    })
}

#[tokio::test]
async fn the_connect_error_of_another_client_is_no_proof_if_the_body_was_read() {
    let orders = Orders::default();
    let retry = RetryLayer::new().layer(ClassifyLayer::new().layer(reads_and_is_refused(&orders)));
    let answer = retry.oneshot(order()).await.unwrap();
    assert_eq!((Failure::of(&answer).unwrap().replay(), orders.booked()), (Replay::IdempotentOnly, 1));

    let orders = Orders::default();
    let stack = UpstreamLayer::builder("shop").build().unwrap().layer(reads_and_is_refused(&orders));
    let answer = stack.oneshot(order()).await.unwrap();
    assert_eq!((Failure::of(&answer).unwrap().replay(), orders.booked()), (Replay::IdempotentOnly, 1));
}

async fn read<B: http_body::Body<Data = Bytes, Error: fmt::Debug>>(request: Request<B>) -> Bytes {
    request.into_body().collect().await.unwrap().to_bytes()
}

async fn text(answer: Response<impl http_body::Body<Data = Bytes, Error: fmt::Debug>>) -> String {
    String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn a_page_says_that_nothing_was_processed_only_if_that_is_proven() {
    for how in ALL {
        let orders = Orders::default();
        let router = books_then_is_refused(&orders, how);
        let handler = router.clone().into_service::<Body>();
        let alone = ErrorPageLayer::default().layer(handler.clone()).oneshot(order().map(Body::new)).await.unwrap();
        assert!(text(alone).await.contains(UNKNOWN), "{how:?}");
        let inner = ClassifyLayer::new().layer(handler);
        let line = inner.clone().oneshot(order().map(Body::new)).await.unwrap();
        assert!(text(line).await.contains(UNKNOWN), "{how:?}");
        let classified = ErrorPageLayer::default().layer(inner).oneshot(order().map(Body::new)).await.unwrap();
        assert!(text(classified).await.contains(UNKNOWN), "{how:?}");
        let stack = UpstreamLayer::builder("shop").without_retry().without_upload_tracking().build().unwrap();
        let line = stack.layer(router.clone().into_service()).oneshot(order().map(Body::new)).await.unwrap();
        assert!(text(line).await.contains(UNKNOWN), "{how:?}");
        let stack =
            UpstreamLayer::builder("shop").error_page(ErrorPage::new()).without_retry().without_upload_tracking();
        let stack = stack.build().unwrap().layer(router.into_service());
        let answer = stack.oneshot(order().map(Body::new)).await.unwrap();
        assert!(text(answer).await.contains(UNKNOWN), "{how:?}");
    }
    let refused = ClassifyLayer::new().layer(proxy(&refuses()));
    let refused = ErrorPageLayer::default().layer(refused).oneshot(order()).await.unwrap();
    assert!(text(refused).await.contains(NOTHING), "no connection was had");
}

#[tokio::test]
async fn a_request_that_our_client_did_not_send_is_repeated_and_known_as_unsent_by_all_layers() {
    let inner = RetryLayer::new().layer(ClassifyLayer::new().layer(proxy(&refuses())));
    let answer = ErrorPageLayer::default().layer(inner).oneshot(order()).await.unwrap();
    let failure = Failure::of(&answer).unwrap();
    assert_eq!((failure.replay(), failure.attempts()), (Replay::NotSent, 3));
    assert!(text(answer).await.contains(NOTHING));

    let stack = UpstreamLayer::builder("shop").build().unwrap().layer(proxy(&refuses()));
    let answer = ErrorPageLayer::default().layer(stack).oneshot(order()).await.unwrap();
    let failure = Failure::of(&answer).unwrap();
    assert_eq!((failure.replay(), failure.attempts()), (Replay::NotSent, 3));
    assert!(text(answer).await.contains(NOTHING));

    let client = Client::builder(TokioExecutor::new()).build_http::<tower_upstream::body::ReplayBody<Full<Bytes>>>();
    let retried = RetryLayer::new().layer(ClassifyLayer::new().layer(client));
    let mut request = order();
    *request.uri_mut() = format!("{}/orders", refuses()).parse().unwrap();
    let answer = retried.oneshot(request).await.unwrap();
    let failure = Failure::of(&answer).unwrap();
    assert_eq!((failure.replay(), failure.attempts()), (Replay::NotSent, 3), "a typed connect error");
}

/// A proxy whose connector never connects.
fn hangs<B>() -> impl Service<
    Request<B>,
    Response = Response<ResponseBody<tower_upstream::client::ProxyBody<B>>>,
    Error = Failure,
    Future: Send,
> + Clone
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    let hangs = service_fn(|_: Uri| pending::<io::Result<hyper_util::rt::TokioIo<tokio::net::TcpStream>>>());
    let target = "http://slow.test".parse().unwrap();
    ReverseProxy::builder(target, ForwardingRules::new("edge").unwrap()).connector(hangs).build()
}

#[tokio::test(start_paused = true)]
async fn the_progress_of_another_call_is_no_proof() {
    let second = Duration::from_secs(1);
    let limits = Timeouts::new().response_head(second).attempt(second).total(second * 20);
    for in_stack in [false, true] {
        let orders = Orders::default();
        let counts = orders.clone();
        let handler = service_fn(move |_: Request<_>| {
            counts.book();
            let second = Request::post("/ledger").header("host", "ledger.test").body(Full::<Bytes>::default());
            hangs().oneshot(second.unwrap())
        });
        let failure = if in_stack {
            let layer = UpstreamLayer::builder("shop").timeouts(move |_| limits).build().unwrap();
            Failure::of(&layer.layer(handler).oneshot(order()).await.unwrap()).cloned()
        } else {
            let limited = TimeoutLayer::new(limits).layer(handler);
            Failure::of(&RetryLayer::new().layer(limited).oneshot(order()).await.unwrap()).cloned()
        };
        let failure = failure.unwrap();
        assert_eq!(
            (failure.cause(), failure.phase()),
            (Cause::ConnectTimeout, Phase::Connect),
            "it is named all the same"
        );
        assert_eq!(failure.replay(), Replay::IdempotentOnly);
        assert_eq!(orders.booked(), 1, "in the stack: {in_stack}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_progress_of_the_call_itself_is_one() {
    let second = Duration::from_secs(1);
    let limits = Timeouts::new().response_head(second).attempt(second).total(second * 20);
    let layer = UpstreamLayer::builder("shop").timeouts(move |_| limits).build().unwrap();
    let answer = layer.layer(hangs()).oneshot(order()).await.unwrap();
    let failure = Failure::of(&answer).unwrap();
    assert_eq!((failure.replay(), failure.evidence()), (Replay::NotSent, Evidence::NoConnection));
    assert_eq!(failure.attempts(), 3);
}
