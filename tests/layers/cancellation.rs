//! What a call holds is released, however its task ends: slot, probe, place in the pool, dial.

use std::convert::Infallible;
use std::future::{Future, pending, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use axum::body::Body;
use http::{Request, Response, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::duplex;
use tokio::runtime;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_upstream::admission::AdmissionLayer;
use tower_upstream::breaker::{BreakerPolicy, CircuitBreakerLayer, State};
use tower_upstream::client::{HttpVersion, ReverseProxy};
use tower_upstream::forward::ForwardingRules;
use tower_upstream::limit::ConcurrencyLimitLayer;

use crate::support::{Socket, soon};

/// How the task that owns a call ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Unpolled,
    PolledOnce,
    Panics,
    RuntimeGone,
    RuntimeGoneUnpolled,
}

const ENDS: [End; 5] = [End::Unpolled, End::PolledOnce, End::Panics, End::RuntimeGone, End::RuntimeGoneUnpolled];

/// Whether the service works, as it was last set.
#[derive(Clone, Default)]
struct Switch(Arc<AtomicU8>);

impl Switch {
    const WORKS: u8 = 0;
    const HANGS: u8 = 1;
    const PANICS: u8 = 2;

    fn set(&self, what: u8) {
        self.0.store(what, SeqCst);
    }

    async fn passes(&self) {
        match self.0.load(SeqCst) {
            Self::HANGS => pending().await,
            Self::PANICS => panic!("a service's own"),
            _ => {}
        }
    }
}

/// Ends the owner of this call in one of these ways.
async fn end<F>(call: impl FnOnce() -> F + Send + 'static, how: End, switch: &Switch)
where
    F: Future<Output: Send> + Send + 'static,
{
    switch.set(if how == End::Panics { Switch::PANICS } else { Switch::HANGS });
    match how {
        End::Unpolled => drop(call()),
        End::PolledOnce => {
            let mut call = Box::pin(call());
            assert!(call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }
        // the dial may panic instead of the call, and is made again
        End::Panics => {
            let call = tokio::spawn(call());
            let _ = tokio::time::timeout(Duration::from_millis(50), call).await;
        }
        End::RuntimeGone | End::RuntimeGoneUnpolled => {
            let ended = tokio::task::spawn_blocking(move || {
                let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let mut call = Box::pin(call());
                    poll_fn(|cx| {
                        // tasks that the call has spawned are not polled any more
                        assert!(call.as_mut().poll(cx).is_pending());
                        Poll::Ready(())
                    })
                    .await;
                    tokio::spawn(call);
                    if how == End::RuntimeGone {
                        tokio::task::yield_now().await;
                    }
                });
            });
            soon(ended).await.unwrap();
        }
    }
    switch.set(Switch::WORKS);
}

fn request() -> Request<Body> {
    Request::get("/").header("host", "a").body(Body::empty()).unwrap()
}

/// A service that works if the switch says so.
fn switched(
    switch: &Switch,
) -> impl Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send + use<> {
    let switch = switch.clone();
    service_fn(move |_: Request<Body>| {
        let switch = switch.clone();
        async move {
            switch.passes().await;
            Ok(Response::new(Body::empty()))
        }
    })
}

#[tokio::test]
async fn a_slot_of_the_limiter_is_released_however_its_call_ends() {
    let (switch, limit) = (Switch::default(), ConcurrencyLimitLayer::fixed(1));
    let service = limit.layer(switched(&switch));
    for how in ENDS {
        let owned = service.clone();
        end(move || owned.oneshot(request()), how, &switch).await;
        assert_eq!(service.clone().oneshot(request()).await.unwrap().status(), 200, "{how:?}");
        assert_eq!(limit.handle().in_flight(), 0, "{how:?}");
    }
}

#[tokio::test]
async fn a_place_of_the_admission_is_released_however_its_call_ends() {
    let (switch, admission) = (Switch::default(), AdmissionLayer::new(1));
    let service = admission.layer(switched(&switch));
    for how in ENDS {
        let owned = service.clone();
        end(move || owned.oneshot(request()), how, &switch).await;
        assert_eq!(service.clone().oneshot(request()).await.unwrap().status(), 200, "{how:?}");
        assert_eq!(admission.in_flight(), 0, "{how:?}");
    }
}

#[tokio::test]
async fn the_probe_of_a_circuit_is_released_however_its_call_ends() {
    for how in ENDS {
        let (switch, broken) = (Switch::default(), Switch::default());
        let policy = BreakerPolicy::new().consecutive_failures(1).open_duration(Duration::from_millis(1));
        let layer = CircuitBreakerLayer::new("payments").policy(policy);
        let (passes, refuses) = (switch.clone(), broken.clone());
        let service = layer.layer(service_fn(move |_: Request<Body>| {
            let (switch, broken) = (passes.clone(), refuses.clone());
            async move {
                switch.passes().await;
                match broken.0.load(SeqCst) {
                    Switch::WORKS => Ok(Response::new(Body::empty())),
                    _ => Err(io::Error::from(io::ErrorKind::ConnectionRefused)),
                }
            }
        }));
        broken.set(Switch::HANGS);
        let _ = service.clone().oneshot(request()).await;
        broken.set(Switch::WORKS);
        assert_eq!(layer.handle().snapshot(tokio::time::Instant::now()).state, State::Open);
        tokio::time::sleep(Duration::from_millis(100)).await;
        let owned = service.clone();
        end(move || owned.oneshot(request()), how, &switch).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(service.clone().oneshot(request()).await.unwrap().status(), 200, "{how:?}");
    }
}

/// A call of a proxy with one connection, through which the switch lets it pass.
fn proxy(
    switch: &Switch,
    http: HttpVersion,
) -> impl FnMut() -> Pin<Box<dyn Future<Output = u16> + Send>> + Clone + Send + use<> {
    let passes = switch.clone();
    let connector = service_fn(move |_: Uri| {
        let switch = passes.clone();
        async move {
            switch.passes().await;
            let (ours, theirs) = duplex(1 << 16);
            tokio::spawn(async move {
                let service = hyper::service::service_fn(async |_| Ok::<_, Infallible>(Response::new(Body::empty())));
                let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(theirs), service).await;
            });
            Ok::<_, io::Error>(Socket::new(ours))
        }
    });
    let builder = ReverseProxy::builder("app.local".parse().unwrap(), ForwardingRules::new("edge").unwrap());
    let proxy = builder.connector(connector).http(http).max_connections(1).build::<Body>();
    move || {
        let call = proxy.clone().call(request());
        Box::pin(async move { call.await.map_or_else(|failure| failure.status(), |answer| answer.status()).as_u16() })
    }
}

#[tokio::test]
async fn the_place_of_a_connection_is_released_however_its_call_ends() {
    for http in [HttpVersion::Auto, HttpVersion::H2] {
        for how in ENDS {
            let switch = Switch::default();
            let mut call = proxy(&switch, http);
            let owned = call.clone();
            end(owned, how, &switch).await;
            // a shared dial outlives its call, for 5 s at most
            let waits = http == HttpVersion::H2 && how == End::PolledOnce;
            if waits {
                tokio::time::pause();
                tokio::time::sleep(Duration::from_secs(6)).await;
            }
            assert_eq!(soon(call()).await, 200, "{http:?} {how:?}");
            if waits {
                tokio::time::resume();
            }
        }
    }
}

#[tokio::test]
async fn the_place_of_an_idle_connection_is_released_with_its_runtime() {
    for http in [HttpVersion::Auto, HttpVersion::H2] {
        let mut call = proxy(&Switch::default(), http);
        let mut elsewhere = call.clone();
        let ended = tokio::task::spawn_blocking(move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
            assert_eq!(runtime.block_on(elsewhere()), 200);
        });
        soon(ended).await.unwrap();
        assert_eq!(soon(call()).await, 200, "{http:?}");
    }
}
