//! The property: `NotSent` implies that the peer parsed nothing of the request.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tower::util::BoxCloneService;
use tower::{BoxError, Layer, Service, ServiceExt};
use tower_upstream::cause::Replay;
use tower_upstream::client::{Connector, HttpVersion, ReverseProxy};
use tower_upstream::forward::ForwardingRules;
use tower_upstream::{ClassifyLayer, Failure};

use super::wire::{Cut, End, Peer, Protocol, Seen};

type Upstream = BoxCloneService<Request<Full<Bytes>>, Response<Full<Bytes>>, BoxError>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    HyperUtil,
    ReverseProxy,
}

/// The service, whose response has its body collected; a failure is in the extensions.
fn upstream(kind: Kind, protocol: Protocol, peer: Peer) -> Upstream {
    match kind {
        Kind::HyperUtil => {
            let mut client = Client::builder(TokioExecutor::new());
            client.timer(TokioTimer::new()).http2_only(protocol == Protocol::Http2);
            collected(ClassifyLayer::new().layer(client.build(Connector::new(peer.connector()))))
        }
        Kind::ReverseProxy => {
            let proxy =
                ReverseProxy::builder("http://peer.test".parse().unwrap(), ForwardingRules::new("edge").unwrap());
            let http = if protocol == Protocol::Http2 { HttpVersion::H2 } else { HttpVersion::Auto };
            collected(ClassifyLayer::new().layer(proxy.connector(peer.connector()).http(http).build()))
        }
    }
}

fn collected<S, B>(service: S) -> Upstream
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>, Future: Send> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    BoxCloneService::new(service.map_err(Into::into).and_then(|answer: Response<B>| async {
        let (head, body) = answer.into_parts();
        let body = body.collect().await.map_err(Into::into)?.to_bytes();
        Ok(Response::from_parts(head, Full::new(body)))
    }))
}

fn post(body: usize) -> Request<Full<Bytes>> {
    let request = Request::post("http://peer.test/orders").header("host", "peer.test");
    request.body(Full::from(vec![b'x'; body])).unwrap()
}

fn get() -> Request<Full<Bytes>> {
    Request::get("http://peer.test/").header("host", "peer.test").body(Full::default()).unwrap()
}

/// The failure of a POST, if it failed, and what the peer saw; on a reused connection after a GET.
fn run(kind: Kind, protocol: Protocol, reused: bool, body: usize, cut: Cut, end: End) -> (Option<Failure>, Seen) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let peer = Peer::new(protocol, cut, end);
    let service = upstream(kind, protocol, peer.clone());
    runtime.block_on(async {
        if reused {
            let _ = service.clone().oneshot(get()).await;
            // another task returns the connection to the pool
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let call = service.oneshot(post(body));
        let answer = tokio::time::timeout(Duration::from_secs(3600), call).await;
        let answer = answer.unwrap_or_else(|_| panic!("{kind:?} {protocol:?} {reused} {cut:?} {end:?} hangs"));
        let failure = match answer {
            Ok(answer) => Failure::of(&answer).cloned(),
            Err(error) => error.downcast_ref::<Failure>().cloned(),
        };
        (failure, peer.seen())
    })
}

/// Whether the request is reported as not sent, which is wrong if the peer parsed some of it.
fn holds(kind: Kind, protocol: Protocol, reused: bool, body: usize, cut: Cut, end: End) -> bool {
    let (failure, seen) = run(kind, protocol, reused, body, cut, end);
    let unsent = failure.as_ref().is_some_and(|failure| failure.replay() == Replay::NotSent);
    let case =
        format!("{kind:?}, {protocol:?}, reused {reused}, {body} bytes, {cut:?}, {end:?}: {seen:?}, {failure:?}");
    assert!(!(unsent && seen.of_post > 0), "said to be unsent: {case}");
    assert!(seen.posts <= 1, "sent twice: {case}");
    unsent
}

const ENDS: [End; 4] = [End::Eof, End::Reset, End::TlsAlert(49), End::TlsAlert(116)];

/// Every cut of one client, of one protocol, on a fresh and on a reused connection.
fn every_cut(kind: Kind, protocol: Protocol) {
    let mut unsent = 0;
    for (reused, body) in [(false, 5), (true, 5), (true, 0)] {
        let (failure, whole) = run(kind, protocol, reused, body, Cut::Never, End::Eof);
        assert!(failure.is_none() && whole.posts == 1, "{kind:?} {protocol:?}: {failure:?}, {whole:?}");
        let mut check = |cut, end| unsent += usize::from(holds(kind, protocol, reused, body, cut, end));
        for at in 0..=whole.written {
            check(Cut::Written(at), if at % 2 == 0 { End::Reset } else { End::Eof });
            check(Cut::Full(at), if at % 2 == 0 { End::Eof } else { End::Reset });
        }
        for at in 0..=whole.read {
            check(Cut::Read(at), End::Eof);
            check(Cut::Read(at), End::Reset);
            // a first flight may refuse the client, as `REFUSALS` in `classify` argues
            if reused {
                check(Cut::Read(at), End::TlsAlert(116));
            }
            check(Cut::Read(at), End::TlsAlert(49));
        }
    }
    assert!(unsent > 0, "{kind:?} over {protocol:?} can prove something");
}

#[test]
fn hyper_utils_client_over_http1_says_not_sent_only_where_the_peer_parsed_nothing() {
    every_cut(Kind::HyperUtil, Protocol::Http1);
}

#[test]
fn hyper_utils_client_over_http2_says_not_sent_only_where_the_peer_parsed_nothing() {
    every_cut(Kind::HyperUtil, Protocol::Http2);
}

#[test]
fn the_reverse_proxy_over_http1_says_not_sent_only_where_the_peer_parsed_nothing() {
    every_cut(Kind::ReverseProxy, Protocol::Http1);
}

#[test]
fn the_reverse_proxy_over_http2_says_not_sent_only_where_the_peer_parsed_nothing() {
    every_cut(Kind::ReverseProxy, Protocol::Http2);
}

/// A blocked upload, an interim response or a part of a final one, and the end of the connection.
#[test]
fn an_upload_that_was_answered_by_an_interim_response_was_sent() {
    let interim = ["HTTP/1.1 103 Early Hints\r\n\r\n", "HTTP/1.1 103 Early", "HTTP/1.1 200 OK\r\nx: ", "HTTP/1.1 2"];
    for kind in [Kind::HyperUtil, Kind::ReverseProxy] {
        for reused in [false, true] {
            let (_, whole) = run(kind, Protocol::Http1, reused, 4096, Cut::Never, End::Eof);
            for before in [4000, 4096, 4097, 4100] {
                for interim in interim {
                    for end in ENDS.into_iter().filter(|end| reused || *end != End::TlsAlert(116)) {
                        let cut = Cut::FullAfter(whole.written - before, interim);
                        assert!(!holds(kind, Protocol::Http1, reused, 4096, cut, end), "{kind:?} {cut:?}");
                    }
                }
            }
        }
    }
}
