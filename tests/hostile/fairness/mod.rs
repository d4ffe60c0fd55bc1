//! Fairness: k hostile clients of 100 cost the others at most k % of their requests, and open no circuit.
//!
//! Real sockets, the default stack around a `ReverseProxy`, a healthy HTTP/1.1 and a healthy HTTP/2 upstream. The clock
//! is the real one, but the waits for `client_idle` are skipped by advancing it. `hostile.rs` has the kinds of clients.

mod hostile;
mod others;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use hostile::Kind;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use others::Outcome;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_upstream::body::{ReplayBody, TrackedUpload};
use tower_upstream::breaker::State;
use tower_upstream::client::HttpVersion;
use tower_upstream::{BadGatewayCause as Cause, ClassifyLayer, Failure, UpstreamLayer};

use crate::support::{PATIENCE, StackGateway, Upstream, Wire, default_proxy, repeats, skip, soon, stack};

/// Clients in all, hostile ones included.
const CLIENTS: usize = 100;
/// What the default `client_idle` of 60 s takes at most, 9/8 of it and a second, in seconds.
const LONG: u32 = 69;
/// Fewer connections than [`Kind::SilentTunnel`] opens with 20 clients.
const CONNECTIONS: usize = 96;

struct Scenario {
    gateway: StackGateway,
    _upstream: Upstream,
    hostile: JoinSet<()>,
    outcome: Outcome,
}

impl Scenario {
    /// Hostile clients act; the others send requests meanwhile, and again long after.
    async fn play(kind: Kind, k: usize, http: HttpVersion) -> Self {
        let (upstream, written) = others::upstream().await;
        // clients that never read hold a connection for each response until `client_idle` has passed
        let connections = if kind.is_cured_by_client_idle() { 1024 } else { CONNECTIONS };
        let proxy = default_proxy(upstream.address).http(http).max_connections(connections);
        let gateway = StackGateway::start(stack(), proxy).await;
        let (address, mut hostile) = (gateway.address, JoinSet::new());
        let mut outcome = Outcome::default();
        if kind.looks_like_an_outage() {
            // routes that work are known
            outcome += others::ask_all(address, CLIENTS - k, 3).await;
        }
        let (acted, mut all_acted) = mpsc::channel(CLIENTS);
        let turn = Arc::new(Semaphore::new(kind.at_once()));
        for _ in 0..k {
            let (acted, turn) = (acted.clone(), turn.clone());
            hostile.spawn(async move {
                let act = async || {
                    let _turn = turn.acquire().await.unwrap();
                    kind.act(address).await
                };
                let _held = act().await;
                acted.send(()).await.unwrap();
                let _held = act().await;
                acted.send(()).await.unwrap();
                std::future::pending::<()>().await;
            });
        }
        for _ in 0..k {
            all_acted.recv().await.unwrap();
        }
        outcome += others::ask_all(address, CLIENTS - k, 3).await;
        while kind.looks_like_an_outage() && all_acted.len() < k {
            outcome += others::ask_all(address, CLIENTS - k, 1).await;
        }
        for _ in 0..k {
            all_acted.recv().await.unwrap();
        }
        if kind.looks_like_an_outage() {
            // until the timeouts of its calls have passed
            for _ in 0..12 {
                skip(1, Duration::from_secs(1)).await;
                outcome += others::ask_all(address, CLIENTS - k, 1).await;
            }
        }
        loop {
            if kind.is_cured_by_client_idle() {
                others::fill_buffers(&written).await;
            }
            let before = written.load(Relaxed);
            skip(LONG, Duration::from_secs(1)).await;
            // on a busy machine the buffers may not have been full
            if !kind.is_cured_by_client_idle() || written.load(Relaxed) == before {
                break;
            }
        }
        outcome += others::ask_all(address, CLIENTS - k, 1).await;
        Self { gateway, _upstream: upstream, hostile, outcome }
    }

    fn opened(&self) -> bool {
        let circuit = self.gateway.circuit();
        circuit.opened > 0 || circuit.state != State::Closed
    }
}

/// How many of the clients are hostile: one bounds what a kind costs once, 20 what each of them costs.
fn shares(kind: Kind) -> &'static [usize] {
    match kind {
        // only 20 of these open more tunnels than there are connections
        Kind::SilentTunnel => repeats(&[1, 20], &[1, 5, 20]),
        _ => repeats(&[1, 5], &[1, 5, 20]),
    }
}

/// Plays every share of hostile clients before both kinds of upstream, and collects what is unfair.
async fn is_fair(kind: Kind) {
    let mut unfair = Vec::new();
    for (protocol, http) in [("HTTP/1.1", HttpVersion::Auto), ("h2", HttpVersion::H2)] {
        for &k in shares(kind) {
            let mut scenario = Scenario::play(kind, k, http).await;
            let Outcome { asked, ref lost } = scenario.outcome;
            if lost.len() * 100 > k * asked || scenario.opened() {
                let (circuit, failures) =
                    (scenario.opened(), scenario.gateway.handle.snapshot(tokio::time::Instant::now()).failures);
                let (count, first) = (lost.len(), lost.first());
                unfair.push(format!(
                    "{protocol}, k {k}: lost {count} of {asked} ({first:?}), opened {circuit}, {failures:?}"
                ));
            }
            if kind.is_cured_by_client_idle() && scenario.gateway.in_flight() > 0 {
                let in_flight = scenario.gateway.in_flight();
                unfair.push(format!("{protocol}, k {k}: {in_flight} calls still in flight"));
            }
            scenario.hostile.shutdown().await;
        }
    }
    assert!(unfair.is_empty(), "{kind:?}:\n{}", unfair.join("\n"));
}

#[tokio::test]
async fn clients_that_never_read_an_http1_response_do_no_harm() {
    is_fair(Kind::NeverReadingHttp1).await;
}

#[tokio::test]
async fn clients_that_never_read_an_http2_response_do_no_harm() {
    is_fair(Kind::NeverReadingHttp2).await;
}

#[tokio::test]
async fn clients_that_read_slowly_do_no_harm() {
    is_fair(Kind::SlowReader).await;
}

#[tokio::test]
async fn clients_that_cancel_before_the_response_head_do_no_harm() {
    is_fair(Kind::CancelBeforeHead).await;
}

#[tokio::test]
async fn clients_that_cancel_their_upload_do_no_harm() {
    is_fair(Kind::CancelUpload).await;
}

#[tokio::test]
async fn a_response_that_ends_with_the_clients_upload_is_no_failure_of_the_upstream() {
    for http in [HttpVersion::Auto, HttpVersion::H2] {
        let (upstream, _written) = others::upstream().await;
        let gateway = StackGateway::start(stack(), default_proxy(upstream.address).http(http)).await;
        let mut wire = Wire::connect(gateway.address).await;
        wire.write("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nbegun").await;
        assert_eq!((wire.head().await.status(), wire.bytes(5).await), (200, b"begun".to_vec()));
        wire.finish_writing().await;
        assert!(wire.ends_within(PATIENCE).await);
        assert_eq!((gateway.seen.causes(), gateway.circuit().failures), (vec![Cause::RequestBodyFailed], 0));
    }
}

/// Ends an upload with an error once its response has begun, before an upstream that echoes it; returns the cause.
async fn break_off<S, B>(to: SocketAddr, client: S) -> Cause
where
    S: Service<Request<Body>, Response = Response<B>, Error = Infallible>,
    B: http_body::Body<Data = Bytes, Error = Failure> + Unpin,
{
    let (broken, breaks) = oneshot::channel();
    let begun = stream::once(async { Ok(Bytes::from_static(b"begun")) });
    let upload = begun.chain(stream::once(async { Err(breaks.await.unwrap()) }));
    let request = Request::post(format!("http://{to}/echo")).body(Body::from_stream(upload)).unwrap();
    let Ok(mut response) = client.oneshot(request).await;
    assert_eq!(response.status(), 200);
    assert_eq!(soon(response.body_mut().frame()).await.unwrap().unwrap().into_data().unwrap(), "begun");
    broken.send(io::Error::from(io::ErrorKind::ConnectionReset)).unwrap();
    soon(response.body_mut().frame()).await.unwrap().unwrap_err().cause()
}

#[tokio::test]
async fn a_response_that_ends_with_the_clients_upload_is_no_failure_around_any_client() {
    let (upstream, _written) = others::upstream().await;
    for h2 in [false, true] {
        let mut builder = Client::builder(TokioExecutor::new());
        builder.http2_only(h2);
        let (alone, tracked) = (builder.build_http(), builder.build_http());
        let alone = ClassifyLayer::new().layer(alone);
        assert_eq!(break_off(upstream.address, alone).await, Cause::RequestBodyFailed, "alone, h2 {h2}");
        let layer = UpstreamLayer::builder("shop").build().unwrap();
        assert_eq!(break_off(upstream.address, layer.layer(tracked)).await, Cause::RequestBodyFailed, "h2 {h2}");
        assert_eq!(layer.handle().snapshot(Instant::now()).circuit.unwrap().failures, 0, "h2 {h2}");
    }
    // whatever error such a client returns: a stack tracks the request body itself
    let echo = service_fn(|request: Request<TrackedUpload<ReplayBody<Body>>>| async {
        let body = request.into_body().map_err(|_| io::Error::from(io::ErrorKind::UnexpectedEof));
        Ok::<_, Infallible>(Response::new(Box::pin(body)))
    });
    let layer = UpstreamLayer::builder("shop").build().unwrap();
    assert_eq!(break_off(upstream.address, layer.layer(echo)).await, Cause::RequestBodyFailed);
    assert_eq!(layer.handle().snapshot(Instant::now()).circuit.unwrap().failures, 0);
}

#[tokio::test]
async fn clients_that_cancel_their_download_do_no_harm() {
    is_fair(Kind::CancelDownload).await;
}

#[tokio::test]
async fn clients_that_reset_their_streams_do_no_harm() {
    is_fair(Kind::ResetStreams).await;
}

#[tokio::test]
async fn clients_that_reset_their_streams_concurrently_do_no_harm() {
    is_fair(Kind::ResetStreamsAtOnce).await;
}

#[tokio::test]
async fn clients_with_huge_heads_do_no_harm() {
    is_fair(Kind::HugeHead).await;
}

#[tokio::test]
async fn clients_with_odd_hosts_do_no_harm() {
    is_fair(Kind::OddHost).await;
}

#[tokio::test]
async fn clients_with_bad_trailers_do_no_harm() {
    is_fair(Kind::BadTrailer).await;
}

#[tokio::test]
async fn clients_with_silent_tunnels_do_no_harm() {
    is_fair(Kind::SilentTunnel).await;
}

#[tokio::test]
async fn clients_that_upload_a_byte_at_a_time_do_no_harm() {
    is_fair(Kind::DrippingUpload).await;
}

#[tokio::test]
async fn clients_of_a_route_that_hangs_do_no_harm() {
    is_fair(Kind::HungRoute).await;
}

#[tokio::test]
async fn clients_of_a_route_that_fails_do_no_harm() {
    is_fair(Kind::FailingRoute).await;
}

#[tokio::test]
async fn clients_of_a_route_in_maintenance_do_no_harm() {
    is_fair(Kind::MaintenanceRoute).await;
}
