//! HTTP/2: resets, GOAWAY, lost connections, broken bodies.

use std::net::SocketAddr;
use std::time::Duration;

use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tower_upstream::BadGatewayCause as Cause;
use tower_upstream::cause::{Connection, Evidence, Phase};
use tower_upstream::client::Connector;

use super::client::{HttpClient, ask, fetch_twice, get, url};
use super::frames::{
    CANCEL, ENHANCE_YOUR_CALM, HTTP_1_1_REQUIRED, INTERNAL_ERROR, NO_ERROR, PROTOCOL_ERROR, REFUSED_STREAM,
    await_request, data, go_away, h2_upstream, last_data, long_head, ok, ok_of_length, reset,
};
use super::peer::{Peer, upstream};
use super::table::{Got, cause, check, cut, row};

const A_LITTLE: Duration = Duration::from_millis(50);
const ALL_STREAMS: u32 = 0x7fff_ffff;

fn h2_client() -> HttpClient {
    Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .http2_only(true)
        .http2_keep_alive_interval(A_LITTLE)
        .http2_keep_alive_timeout(A_LITTLE)
        .build(Connector::new(HttpConnector::new()))
}

/// As [`h2_client`], which would see a PING go unanswered where nobody answers any.
fn patient() -> HttpClient {
    Client::builder(TokioExecutor::new()).http2_only(true).build(Connector::new(HttpConnector::new()))
}

async fn to(address: SocketAddr) -> Got {
    ask(patient(), get(url(address))).await
}

async fn told(frames: Vec<Vec<u8>>) -> Got {
    to(h2_upstream(move |peer| {
        for frame in &frames {
            peer.say(frame).pause();
        }
        peer.silence();
    }))
    .await
}

async fn told_then_fin(frames: Vec<Vec<u8>>) -> Got {
    to(h2_upstream(move |peer| {
        for frame in &frames {
            peer.say(frame).pause();
        }
        peer.fin();
    }))
    .await
}

async fn unanswered_ping() -> Got {
    ask(h2_client(), get(url(h2_upstream(Peer::silence)))).await
}

/// The first stream is answered, the second one meets the script.
async fn second(script: fn(&mut Peer)) -> Got {
    let address = h2_upstream(move |peer| {
        peer.say([ok(), last_data(b"ok")].concat());
        await_request(peer);
        script(peer);
    });
    fetch_twice(patient(), address).await
}

/// While the client writes nothing: a write that meets the RST leaves an end to be read.
fn rst(peer: &mut Peer) {
    peer.pause().rst();
}

fn http1_only(peer: &mut Peer) {
    peer.read(24);
    peer.say("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").fin();
}

#[test]
fn http_2_tells_what_was_not_processed_and_what_may_have_been() {
    let reset_by = |code| cause(Cause::StreamReset).idempotent_only().h2(code).phase(Phase::Wait);
    let refused = |evidence, code| cause(Cause::StreamRefused).not_sent(evidence).h2(code).phase(Phase::Send);
    let lost = |of| cause(of).idempotent_only().phase(Phase::Wait);
    let closed = || lost(Cause::ClosedBeforeResponse);
    let body = || cut(Cause::IncompleteBody);
    check(vec![
        row("E01", "REFUSED_STREAM", told(vec![reset(1, REFUSED_STREAM)]), refused(Evidence::RefusedStream, 7)),
        row("E02", "INTERNAL_ERROR", told(vec![reset(1, INTERNAL_ERROR)]), reset_by(INTERNAL_ERROR)),
        row("E03", "CANCEL", told(vec![reset(1, CANCEL)]), reset_by(CANCEL)),
        row("E04", "ENHANCE_YOUR_CALM", told(vec![reset(1, ENHANCE_YOUR_CALM)]), reset_by(ENHANCE_YOUR_CALM)),
        row("E05", "HTTP_1_1_REQUIRED", told(vec![reset(1, HTTP_1_1_REQUIRED)]), reset_by(HTTP_1_1_REQUIRED)),
        row("E06", "calm GOAWAY, all", told_then_fin(vec![go_away(ALL_STREAMS, ENHANCE_YOUR_CALM)]), closed()),
        row("E07", "GOAWAY below us", told_then_fin(vec![go_away(0, NO_ERROR)]), refused(Evidence::GoAway, NO_ERROR)),
        row("E08", "GOAWAY, ours covered", told_then_fin(vec![go_away(1, NO_ERROR)]), closed()),
        row(
            "E09",
            "calm GOAWAY below us",
            told_then_fin(vec![go_away(0, ENHANCE_YOUR_CALM)]),
            refused(Evidence::GoAway, ENHANCE_YOUR_CALM),
        ),
        row("E10", "error GOAWAY, ours covered", told_then_fin(vec![go_away(1, INTERNAL_ERROR)]), closed()),
        row("E11", "FIN", told_then_fin(vec![]), closed().on(Connection::Fresh)),
        row("E12", "RST", async { to(h2_upstream(rst)).await }, lost(Cause::ResetBeforeResponse)),
        row("E11+", "FIN, second stream", second(Peer::fin), closed().on(Connection::Reused)),
        row("E12+", "RST, second stream", second(rst), lost(Cause::ResetBeforeResponse).on(Connection::Reused)),
        row(
            "E13",
            "peer speaks HTTP/1.1",
            async { to(upstream(http1_only)).await },
            cause(Cause::WrongProtocol).text("the peer speaks HTTP/1").never(),
        ),
        row("E14", "PING unanswered", unanswered_ping(), lost(Cause::PeerUnresponsive)),
        row("E15", "reset in the body", told(vec![ok(), data(b"abc"), reset(1, INTERNAL_ERROR)]), body().h2(2)),
        row("E15+", "NO_ERROR in the body", told(vec![ok(), data(b"abc"), reset(1, NO_ERROR)]), body().h2(NO_ERROR)),
        row("E16", "FIN in the body", told_then_fin(vec![ok(), data(b"abc")]), body()),
        row(
            "E17",
            "END_STREAM before the length",
            told(vec![ok_of_length(b'9'), data(b"abc"), last_data(b"")]),
            body().h2(PROTOCOL_ERROR),
        ),
        row(
            "E18",
            "head too long",
            told(vec![long_head(2, 100)]),
            cause(Cause::InvalidResponse).h2(PROTOCOL_ERROR).never(),
        ),
        row(
            "E18+",
            "head in too many frames",
            told(vec![long_head(400, 1)]),
            cause(Cause::InvalidResponse).h2(ENHANCE_YOUR_CALM).never(),
        ),
    ]);
}
