//! reqwest, both majors that are in use: its errors hide phases, so that less can be told.

use std::time::Duration;

use tower_upstream::BadGatewayCause as Cause;

use super::client::{broken, failed, url};
use super::peer::{FullQueue, Peer, closed_port, upstream};
use super::table::{Got, cause, check, cut, no_connection, row};

const A_LITTLE: Duration = Duration::from_millis(100);
const MORE: Duration = Duration::from_secs(1);

/// Which of reqwest's limits are short.
#[derive(Clone, Copy, Default)]
pub struct Limits {
    pub total: Option<Duration>,
    pub connect: Option<Duration>,
    pub read: Option<Duration>,
}

const NONE: Limits = Limits { total: None, connect: None, read: None };

macro_rules! get_by {
    ($reqwest:ident) => {
        pub mod $reqwest {
            use super::{Got, Limits, broken, failed};

            pub async fn get(target: &str, limits: Limits) -> Got {
                // no proxy of the environment stands between
                let mut client = $reqwest::Client::builder().no_proxy();
                client = limits.total.into_iter().fold(client, $reqwest::ClientBuilder::timeout);
                client = limits.connect.into_iter().fold(client, $reqwest::ClientBuilder::connect_timeout);
                client = limits.read.into_iter().fold(client, $reqwest::ClientBuilder::read_timeout);
                let answer = match client.build().expect("a client").get(target).send().await {
                    Ok(answer) => answer,
                    Err(error) => return failed(error),
                };
                let status = answer.status();
                match answer.bytes().await {
                    Ok(_) => Got::Answer(status),
                    Err(error) => broken(error, status),
                }
            }
        }
    };
}

get_by!(reqwest12);
get_by!(reqwest13);

/// By both.
async fn get(target: String, limits: Limits) -> [Got; 2] {
    [reqwest12::get(&target, limits).await, reqwest13::get(&target, limits).await]
}

/// For a name that nobody has; needs a resolver that says so.
pub async fn no_such_name() -> [Got; 2] {
    get("http://nx.test/".into(), NONE).await
}

async fn to(script: fn(&mut Peer), limits: Limits) -> [Got; 2] {
    get(url(upstream(script)), limits).await
}

async fn to_a_closed_port() -> [Got; 2] {
    let (_reserved, address) = closed_port();
    get(url(address), NONE).await
}

async fn to_a_full_queue(limits: Limits) -> [Got; 2] {
    let full = FullQueue::new();
    get(url(full.address), limits).await
}

fn half_then_silence(peer: &mut Peer) {
    peer.request().say("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc").silence();
}

fn half_then_fin(peer: &mut Peer) {
    peer.request().say("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc").fin();
}

#[test]
fn reqwest_hides_no_more_than_it_must() {
    let total = Limits { total: Some(A_LITTLE), ..NONE };
    let connect = Limits { connect: Some(A_LITTLE), ..NONE };
    let read = Limits { read: Some(A_LITTLE), ..NONE };
    let read_first = Limits { read: Some(A_LITTLE), connect: Some(MORE), ..NONE };
    let too_late = || cause(Cause::DeadlineExceeded).idempotent_only();
    // known by its text alone
    let bad_target = || cause(Cause::InvalidTarget).idempotent_only();
    let stalled = || cut(Cause::BodyReadTimeout);
    check(vec![
        row("H01 H09", "port closed", to_a_closed_port(), no_connection(Cause::ConnectionRefused).errno(111)),
        row("H02", "total limit, silence", to(Peer::silence, total), too_late()),
        row("H03 H10", "FIN", to(|p| p.request().fin(), NONE), cause(Cause::ClosedBeforeResponse).idempotent_only()),
        row("H04", "total limit in the body", to(half_then_silence, total), stalled()),
        row("H05 H11", "read limit hides connect", to_a_full_queue(read_first), too_late()),
        row("H06 H11b", "read limit, silence", to(Peer::silence, read), too_late()),
        row("H07", "read limit in the body", to(half_then_silence, read), stalled()),
        row("H07+", "FIN in the body", to(half_then_fin, NONE), cut(Cause::IncompleteBody)),
        row("H19", "another scheme", get("ftp://127.0.0.1:1/".into(), NONE), bad_target()),
        row("H20", "no host", get("/no/host".into(), NONE), bad_target()),
        row("I01 I02", "connect limit", to_a_full_queue(connect), no_connection(Cause::ConnectTimeout)),
    ]);
}
