//! A connection that had served before, and its second request.

use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::time::Duration;

use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tower_upstream::BadGatewayCause as Cause;
use tower_upstream::cause::{Connection, Phase};
use tower_upstream::client::Connector;

use super::client::{HttpClient, ask, client, fetch_twice, get, url};
use super::peer::{Peer, upstream};
use super::table::{Got, answer, cause, check, row};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[derive(Clone, Copy)]
enum Canceled {
    Retried,
    Told,
}

fn eager_or_not(canceled: Canceled) -> HttpClient {
    let mut builder = Client::builder(TokioExecutor::new());
    builder.retry_canceled_requests(matches!(canceled, Canceled::Retried));
    builder.build(Connector::new(HttpConnector::new()))
}

/// The FIN of the idle connection lies in the kernel, unread, while the second request is written.
async fn into_an_unread_fin(canceled: Canceled) -> Got {
    let (close, closing) = channel::<()>();
    let (closed, wait) = channel::<()>();
    let script = Mutex::new(Some((closing, closed)));
    let address = upstream(move |peer| {
        let (closing, closed) = script.lock().expect("no panic").take().expect("one connection only");
        peer.request().say(OK);
        // ends when the other end is dropped
        let _ = closing.recv();
        peer.end();
        let _ = closed.send(());
        peer.silence();
    });
    let client = eager_or_not(canceled);
    let first = ask(client.clone(), get(url(address))).await;
    assert!(matches!(first, Got::Answer(_)), "{first:?}");
    tokio::time::sleep(Duration::from_millis(30)).await;
    drop(close);
    // blocks the only thread of the runtime: its I/O driver must not see the FIN yet
    let _ = wait.recv();
    ask(client, get(url(address))).await
}

/// Says 408 on the idle connection; a second connection is served well.
fn says_more_than_asked(peer: &mut Peer) {
    peer.request().say(OK).say("HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n").fin();
}

#[test]
fn a_reused_connection_without_an_answer_is_stale_not_a_crash() {
    let twice = |script: fn(&mut Peer)| async move { fetch_twice(client(), upstream(script)).await };
    let stale = || cause(Cause::StaleConnection).idempotent_only().on(Connection::Reused).phase(Phase::Wait);
    check(vec![
        row("B05-1", "both served", twice(|peer| peer.request().say(OK).request().say(OK).fin()), answer(200)),
        row("B05", "second request, FIN", twice(|peer| peer.request().say(OK).request().fin()), stale()),
        row("B06", "second request, RST", twice(|peer| peer.request().say(OK).request().rst()), stale().errno(104)),
        row("B07", "FIN unread, retried", into_an_unread_fin(Canceled::Retried), stale()),
        row("B08", "FIN unread, not retried", into_an_unread_fin(Canceled::Told), stale()),
        row("B09", "408 while idle", twice(says_more_than_asked), answer(200)),
        row(
            "B05+",
            "half a second head",
            twice(|peer| peer.request().say(OK).request().say("HTTP/1.1 200 O").fin()),
            cause(Cause::IncompleteHead).idempotent_only().on(Connection::Reused).phase(Phase::Head),
        ),
    ]);
}
