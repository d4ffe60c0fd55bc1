//! No connection was had: names, ports, queues, targets. What needs a network of its own is in `namespace`.

use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;
use tower::service_fn;
use tower_upstream::BadGatewayCause as Cause;
use tower_upstream::cause::{Evidence, Phase};
use tower_upstream::client::{Connector, TcpConnector};

use super::client::{ask, client, dial, failed, get, stamped, url};
use super::peer::{FullQueue, closed_port};
use super::table::{Got, cause, check, no_connection, row};

const A_LITTLE: Duration = Duration::from_millis(100);

/// hyper-util's own connector under its own time limit.
pub fn limited() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(A_LITTLE));
    connector
}

async fn to_a_closed_port() -> [Got; 2] {
    let (_reserved, address) = closed_port();
    dial(HttpConnector::new(), url(address)).await
}

async fn to_a_full_queue() -> [Got; 2] {
    let full = FullQueue::new();
    dial(limited(), url(full.address)).await
}

async fn to_a_full_queue_under_our_limit() -> Got {
    let full = FullQueue::new();
    let client = stamped(Connector::new(HttpConnector::new()).timeout(A_LITTLE));
    ask(client, get(url(full.address))).await
}

async fn to_a_unix_socket(path: std::path::PathBuf) -> Got {
    let connector = service_fn(move |_: http::Uri| {
        let path = path.clone();
        async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    ask(stamped(connector), get("http://socket.test/")).await
}

/// The error alone, as a service of any kind may meet it.
async fn of_a_unix_socket(path: std::path::PathBuf) -> Got {
    failed(UnixStream::connect(&path).await.expect_err("nobody listens"))
}

async fn to_a_socket_left_behind() -> Got {
    let path = std::env::temp_dir().join(format!("error-chains-{}.sock", std::process::id()));
    let _ = std::fs::remove_file(&path);
    drop(UnixListener::bind(&path).expect("a socket file"));
    let got = to_a_unix_socket(path.clone()).await;
    let _ = std::fs::remove_file(path);
    got
}

async fn past_a_silent_resolver() -> Got {
    let silent = service_fn(|_: Name| pending::<Result<std::vec::IntoIter<SocketAddr>, Infallible>>());
    let connector = TcpConnector::with_resolver(silent).dns_timeout(A_LITTLE);
    ask(stamped(connector), get("http://silent.test/")).await
}

/// A limit around the resolver, below hyper-util's connector.
async fn past_a_limited_resolver() -> [Got; 2] {
    let limited = service_fn(|_: Name| timeout(A_LITTLE, pending::<std::vec::IntoIter<SocketAddr>>()));
    dial(HttpConnector::new_with_resolver(limited), "http://silent.test/".into()).await
}

/// Nobody listens where the resolver asks: that is no answer about the upstream's port.
async fn past_a_dead_resolver() -> [Got; 3] {
    let dead = service_fn(|_: Name| async {
        let (_reserved, address) = closed_port();
        let stream = tokio::net::TcpStream::connect(address).await?;
        Ok::<_, io::Error>(stream.peer_addr().into_iter())
    });
    let [bare, stamped_by_hyper] = dial(HttpConnector::new_with_resolver(dead), "http://a.test/".into()).await;
    let ours = stamped(TcpConnector::with_resolver(dead));
    [bare, stamped_by_hyper, ask(ours, get("http://a.test/")).await]
}

#[test]
fn a_connection_that_was_not_had_names_what_stood_in_its_way() {
    let missing = std::env::temp_dir().join("error-chains-nothing-here.sock");
    let bad_target = || cause(Cause::InvalidTarget).not_sent(Evidence::LocalRefusal).phase(Phase::Gateway);
    let timed_out = || no_connection(Cause::ConnectTimeout).phase(Phase::Connect);
    let unresolved = |of| no_connection(of).phase(Phase::Resolve);
    check(vec![
        row("A01", "port closed", to_a_closed_port(), no_connection(Cause::ConnectionRefused).errno(111)),
        row("A22", "accept queue full", to_a_full_queue(), timed_out()),
        row("A22", "accept queue full, our limit", to_a_full_queue_under_our_limit(), timed_out()),
        row("A25", "relative target", async { ask(client(), get("/")).await }, bad_target()),
        row("A25", "scheme for another client", dial(HttpConnector::new(), "ftp://a.test/".into()), bad_target()),
        row(
            "A26",
            "unix socket missing",
            to_a_unix_socket(missing.clone()),
            no_connection(Cause::ConnectionRefused).errno(2),
        ),
        row(
            "A26+",
            "the error alone",
            of_a_unix_socket(missing),
            cause(Cause::ConnectionRefused).idempotent_only().errno(2),
        ),
        row("A27", "unix socket left", to_a_socket_left_behind(), no_connection(Cause::ConnectionRefused).errno(111)),
        row("K01", "resolver silent, a limit of its own", past_a_limited_resolver(), unresolved(Cause::DnsTimeout)),
        row("K01", "resolver silent, our limit", past_a_silent_resolver(), unresolved(Cause::DnsTimeout)),
        row("K01+", "resolver dead", past_a_dead_resolver(), unresolved(Cause::DnsFailure)),
    ]);
}
