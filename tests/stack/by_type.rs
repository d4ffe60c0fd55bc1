//! The parts of a stack, and its types.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use tower::util::{BoxCloneService, BoxCloneSyncService};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_upstream::compat::MapRequestBodyLayer;
use tower_upstream::stack::RequestBody;
use tower_upstream::{BadGatewayCause as Cause, Failure, UpstreamLayer};

use crate::support::service::{get, text};

/// A body of another crate, without `Clone`, `Default` or `Sync`.
struct MyBody(std::cell::Cell<u8>);

impl http_body::Body for MyBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        let said = (self.0.replace(0) > 0).then(|| Ok(http_body::Frame::data(Bytes::from_static(b"mine"))));
        std::task::Poll::Ready(said)
    }
}

#[tokio::test]
async fn a_client_of_one_type_of_body_gets_it_from_an_adaptor() {
    let layer = UpstreamLayer::builder("shop").without_retry().without_upload_tracking().build().unwrap();
    // the client accepts only this body
    let client = service_fn(|request: Request<MyBody>| {
        std::future::ready(Ok::<_, std::io::Error>(Response::new(request.into_body())))
    });
    let client = MapRequestBodyLayer::new(|_: RequestBody<Full<Bytes>>| MyBody(std::cell::Cell::new(1))).layer(client);
    let answer = layer.layer(client).oneshot(get()).await.unwrap();
    assert_eq!(text(answer).await, "mine");
}

/// Parts that are removed have no effect, and the others work.
macro_rules! without {
    ($($name:ident: $($part:ident)*;)*) => {$(
        #[tokio::test(start_paused = true)]
        async fn $name() {
            let builder = UpstreamLayer::builder("shop")$(.$part())*;
            let layer = builder.build().unwrap();
            let parts = [$(stringify!($part)),*];
            let has = |part| !parts.contains(&part);
            let snapshot = layer.handle().snapshot(tokio::time::Instant::now());
            assert_eq!(snapshot.circuit.is_some(), has("without_circuit"));
            assert_eq!(snapshot.limit.is_some(), has("without_limiter"));
            assert_eq!(snapshot.budget.is_some(), has("without_retry"));

            let calls = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
            let counted = calls.clone();
            let service = layer.layer(service_fn(move |_| {
                counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                async { Err::<Response<Full<Bytes>>, _>(Failure::new(Cause::ConnectionRefused)) }
            }));
            let answer = service.clone().oneshot(get()).await.unwrap();
            let failure = Failure::of(&answer).unwrap();
            assert_eq!(failure.cause(), Cause::ConnectionRefused);
            let attempts = if has("without_retry") { 3 } else { 1 };
            assert_eq!((failure.attempts(), calls.load(std::sync::atomic::Ordering::Relaxed)), (attempts, attempts));
            layer.handle().hold_open();
            let answer = service.oneshot(get()).await.unwrap();
            assert_eq!(Cause::of(&answer) == Some(Cause::CircuitOpen), has("without_circuit"));
            assert_eq!(layer.handle().in_flight(), 0);
        }
    )*};
}

without! {
    all_parts: ;
    no_limiter: without_limiter;
    no_circuit: without_circuit;
    no_retry: without_retry;
    no_limiter_no_circuit: without_limiter without_circuit;
    no_limiter_no_retry: without_limiter without_retry;
    no_circuit_no_retry: without_circuit without_retry;
    nothing_but_limits: without_limiter without_circuit without_retry;
    all_parts_untouched: without_upload_tracking;
    nothing_but_limits_untouched: without_limiter without_circuit without_retry without_upload_tracking;
}

/// Is compiled only.
fn is_at_home_in_frameworks<S>(inner: S)
where
    S: Service<Request<RequestBody<Incoming>>, Response = Response<Incoming>, Error = hyper::Error, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
{
    fn is<S, R>(_: &S)
    where
        S: Service<Request<Incoming>, Response = Response<R>, Error = Infallible, Future: Send>
            + Clone
            + Send
            + Sync
            + 'static,
        R: http_body::Body<Data = Bytes, Error = Failure> + Default + From<Bytes> + Send + Sync + 'static,
    {
    }
    fn steers<T: Clone + Send + Sync + 'static>(_: &T) {}
    let layer = UpstreamLayer::builder("shop").build().unwrap();
    steers(&layer);
    steers(&layer.handle());
    let service = layer.layer(inner);
    is(&service);
    let _: BoxCloneSyncService<Request<Incoming>, _, Infallible> = BoxCloneSyncService::new(service.clone());
    let _: BoxCloneService<Request<Incoming>, _, Infallible> = BoxCloneService::new(service);
}

#[test]
fn a_stack_around_hypers_body_is_infallible_send_sync_and_clone() {
    type Sent = RequestBody<Incoming>;
    type Never = std::future::Pending<Result<Response<Incoming>, hyper::Error>>;
    let never = service_fn(|_: Request<Sent>| -> Never { std::future::pending() });
    is_at_home_in_frameworks(never);
}
