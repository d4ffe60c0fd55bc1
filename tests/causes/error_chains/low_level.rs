//! hyper's connections without a pool.

use std::net::SocketAddr;
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::time::sleep;
use tower_upstream::BadGatewayCause as Cause;
use tower_upstream::cause::Evidence;

use super::client::{Upload, failed, get};
use super::frames::{REFUSED_STREAM, await_request, go_away, h2_upstream, reset, shake_hands};
use super::peer::{Peer, upstream};
use super::table::{Got, cause, check, row};

const A_LITTLE: Duration = Duration::from_millis(50);

async fn h1(address: SocketAddr) -> http1::SendRequest<Upload> {
    let stream = TcpStream::connect(address).await.expect("the upstream listens");
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("nothing is said yet");
    tokio::spawn(connection);
    sender
}

async fn h2(address: SocketAddr) -> http2::SendRequest<Upload> {
    let stream = TcpStream::connect(address).await.expect("the upstream listens");
    let shaken = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (sender, connection) = shaken.expect("the preface is written");
    tokio::spawn(connection);
    sender
}

/// A connection that its peer has ended, and whose task has seen it.
async fn closed() -> http1::SendRequest<Upload> {
    let sender = h1(upstream(Peer::fin)).await;
    sleep(A_LITTLE).await;
    sender
}

async fn tried_on_a_closed_connection() -> Got {
    let mut refused = closed().await.try_send_request(get("/")).await.expect_err("it is closed");
    assert!(refused.take_message().is_some(), "the request comes back");
    failed(refused.into_error())
}

async fn sent_on_a_closed_connection() -> Got {
    failed(closed().await.send_request(get("/")).await.expect_err("it is closed"))
}

async fn readied_on_a_closed_connection() -> Got {
    failed(closed().await.ready().await.expect_err("it is closed"))
}

async fn tried_and_lost() -> Got {
    let mut sender = h1(upstream(|peer| peer.request().fin())).await;
    let mut lost = sender.try_send_request(get("/")).await.expect_err("it was closed");
    assert!(lost.take_message().is_none(), "the request went out");
    failed(lost.into_error())
}

async fn tried_and_refused() -> Got {
    let address = h2_upstream(|peer| peer.say(reset(1, REFUSED_STREAM)).silence());
    let mut refused = h2(address).await.try_send_request(get("http://x.test/")).await.expect_err("it was reset");
    assert!(refused.take_message().is_none(), "whoever wants to send it again keeps a copy");
    failed(refused.into_error())
}

#[derive(Clone, Copy)]
enum Stream {
    First,
    Queued,
}

/// One stream at a time, two requests, and a drain.
async fn of_two_on_a_draining_connection(told: Stream) -> Got {
    let sender = h2(upstream(|peer| {
        shake_hands(peer, 1);
        await_request(peer);
        peer.pause().say(go_away(1, 0)).fin();
    }));
    let mut first = sender.await;
    // the peer's limit is known
    sleep(A_LITTLE).await;
    let mut queued = first.clone();
    let (first, queued) =
        tokio::join!(first.send_request(get("http://x.test/1")), queued.send_request(get("http://x.test/2")));
    let told = match told {
        Stream::First => first,
        Stream::Queued => queued,
    };
    failed(told.expect_err("nobody was answered"))
}

#[test]
fn hypers_own_connections_tell_what_was_not_sent() {
    let returned = || cause(Cause::NotDispatched).not_sent(Evidence::Returned);
    let closed = || cause(Cause::ClosedBeforeResponse).idempotent_only();
    check(vec![
        row("L01", "try_send_request, closed", tried_on_a_closed_connection(), returned()),
        row("L01b", "send_request, closed", sent_on_a_closed_connection(), returned()),
        row("L01c", "ready, closed", readied_on_a_closed_connection(), cause(Cause::NotDispatched)),
        row("L02", "request, FIN", tried_and_lost(), closed()),
        row(
            "L03",
            "REFUSED_STREAM",
            tried_and_refused(),
            cause(Cause::StreamRefused).not_sent(Evidence::RefusedStream).h2(REFUSED_STREAM),
        ),
        row("L04-1", "GOAWAY, covered", of_two_on_a_draining_connection(Stream::First), closed()),
        row(
            "L04-2",
            "GOAWAY, queued",
            of_two_on_a_draining_connection(Stream::Queued),
            cause(Cause::GatewayInternal).idempotent_only(),
        ),
    ]);
}
