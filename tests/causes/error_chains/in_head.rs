//! Bytes came, and no good head: HTTP/1.1.

use std::time::Duration;

use tower::Layer;
use tower_upstream::BadGatewayCause as Cause;
use tower_upstream::cause::{Connection, Phase};
use tower_upstream::client::ReverseProxy;
use tower_upstream::forward::ForwardingRules;
use tower_upstream::timeout::{Timeout, TimeoutLayer, Timeouts};

use super::client::{Upload, ask, fetch, get, url};
use super::peer::{Peer, upstream};
use super::table::{Got, cause, check, row};

/// This crate's own client, with short limits.
pub fn proxy(
    address: std::net::SocketAddr,
    timeouts: Timeouts,
) -> Timeout<ReverseProxy<impl tower_upstream::client::Connect, Upload>, tower_upstream::timeout::PassThrough> {
    let target = url(address).parse().expect("a good target");
    let rules = ForwardingRules::new("edge-1").expect("a good name");
    TimeoutLayer::new(timeouts).without_upload_tracking().layer(ReverseProxy::builder(target, rules).build())
}

async fn answered(bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> Got {
    fetch(upstream(move |peer| peer.request().say(&bytes).fin())).await
}

async fn half_a_head_then_silence() -> Got {
    let address = upstream(|peer| peer.request().say(HALF).silence());
    let timeouts = Timeouts::new().response_head(Duration::from_millis(100));
    let mut request = get("/");
    request.headers_mut().insert("host", http::HeaderValue::from_static("shop.example"));
    ask(proxy(address, timeouts), request).await
}

const HALF: &str = "HTTP/1.1 200 OK\r\nserver: te";
const TLS_ALERT: [u8; 7] = [0x15, 3, 1, 0, 2, 2, 70];
const H2_SETTINGS: [u8; 15] = [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100];

#[test]
fn an_answer_that_is_no_http_or_not_good_http_is_told_from_one_that_broke_off() {
    let foreign = |text| cause(Cause::WrongProtocol).text(text).never().phase(Phase::Head);
    let invalid = || cause(Cause::InvalidResponse).never().phase(Phase::Head);
    let too_large = || cause(Cause::HeadTooLarge).never().phase(Phase::Head);
    let incomplete = || cause(Cause::IncompleteHead).idempotent_only().on(Connection::Fresh).phase(Phase::Head);
    let with = |field: &str| answered(format!("HTTP/1.1 200 OK\r\n{field}\r\n\r\n"));
    check(vec![
        row("C01", "garbage", answered([0xA5; 43]), foreign("the peer does not speak HTTP")),
        row("C02", "SSH banner", answered("SSH-2.0-OpenSSH_9.2\r\n"), foreign("the peer speaks SSH")),
        row("C02+", "SMTP banner", answered("220 mail.test ESMTP\r\n"), foreign("the peer speaks SMTP or FTP")),
        row("C03", "TLS alert", answered(TLS_ALERT), foreign("the peer speaks TLS")),
        row("C04", "HTTP/2 SETTINGS", answered(H2_SETTINGS), foreign("the peer speaks HTTP/2")),
        row("C05", "status 1000", answered("HTTP/1.1 1000 Odd\r\n\r\n"), invalid()),
        row("C06", "HTTP/3.9", answered("HTTP/3.9 200 OK\r\n\r\n"), invalid()),
        row("C07", "space before colon", with("server : x"), invalid()),
        row("C08", "length abc", with("content-length: abc"), invalid()),
        row("C09", "two lengths", with("content-length: 5\r\ncontent-length: 6"), invalid()),
        row("C10", "length and chunked", with("content-length: 5\r\ntransfer-encoding: chunked"), invalid()),
        row("C11", "half a head, FIN", answered(HALF), incomplete()),
        row("C12", "half a head, RST", async { fetch(upstream(half_then_rst)).await }, incomplete().errno(104)),
        row(
            "C13",
            "half a head, silence",
            half_a_head_then_silence(),
            cause(Cause::FirstByteTimeout).phase(Phase::Head),
        ),
        row("C14", "150 fields", with(&"x: y\r\n".repeat(150)), too_large()),
        row("C15", "900 kB in one field", with(&format!("x: {}", "y".repeat(900_000))), too_large()),
        row(
            "C16",
            "101 unasked",
            answered("HTTP/1.1 101 Switching Protocols\r\n\r\n"),
            cause(Cause::UpgradeFailed).never(),
        ),
    ]);
}

fn half_then_rst(peer: &mut Peer) {
    peer.request().say(HALF).pause().rst();
}
