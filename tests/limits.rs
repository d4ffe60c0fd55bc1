//! The limits of an exchange, over real sockets: each names the phase that ate the time.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod support;

use std::time::Duration;

use support::{Gateway, Upstream, Wire, ask, proxy, short, soon};
use tower_upstream::BadGatewayCause as Cause;
use tower_upstream::cause::{Phase, Replay};
use tower_upstream::timeout::Timeouts;

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const SOON: Duration = Duration::from_millis(300);

/// Reads every request and answers none.
async fn silent() -> Upstream {
    Upstream::scripted(|mut wire, _| async move { while wire.request().await.is_some() {} }).await
}

#[tokio::test]
async fn the_total_is_the_deadline_of_the_head() {
    let upstream = silent().await;
    let limits = Timeouts::new().total(SOON);
    let gateway = Gateway::limited(proxy(upstream.address), limits).await;
    let answer = ask(gateway.address, GET).await;
    assert_eq!((answer.status(), answer.error()), (504, Some("http_response_timeout")));
    let failure = gateway.seen.failures().pop().unwrap();
    assert_eq!((failure.cause(), failure.phase()), (Cause::DeadlineExceeded, Phase::Wait));
}

#[tokio::test]
async fn the_total_covers_the_wait_for_a_connection() {
    let upstream = Upstream::scripted(|mut wire, _| async move {
        wire.request().await.unwrap();
        wire.write("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf").await;
        wire.request().await;
    })
    .await;
    let limits = Timeouts::new().total(SOON);
    let patient = proxy(upstream.address).max_connections(1).queue_timeout(Duration::from_secs(60));
    let gateway = Gateway::limited(patient, limits).await;
    // its head has come, so that the total no longer counts, and it keeps the only connection
    let mut first = Wire::connect(gateway.address).await;
    first.write(GET).await;
    assert_eq!(soon(first.head()).await.status(), 200);
    assert_eq!(ask(gateway.address, GET).await.status(), 504);
    let failure = gateway.seen.failures().pop().unwrap();
    assert_eq!(failure.cause(), Cause::DeadlineExceeded);
    assert_eq!((failure.phase(), failure.replay()), (Phase::Pool, Replay::NotSent));
}

#[tokio::test]
async fn a_client_that_stops_uploading_is_told_so_and_the_upstream_is_not_blamed() {
    let upstream = silent().await;
    let gateway = Gateway::limited(proxy(upstream.address), short()).await;
    let mut client = Wire::connect(gateway.address).await;
    client.write("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nonly this").await;
    let answer = soon(client.answer()).await;
    assert_eq!((answer.status(), answer.error()), (408, Some("http_request_error")));
    assert_eq!(gateway.seen.causes(), [Cause::UploadStalled]);
}

#[tokio::test]
async fn an_upload_that_moves_is_never_late_however_long_it_takes() {
    let upstream = Upstream::scripted(|mut wire, _| async move {
        let whole = wire.request().await.unwrap();
        wire.reply(&whole.body.len().to_string()).await;
    })
    .await;
    let gateway = Gateway::limited(proxy(upstream.address), short()).await;
    let mut client = Wire::connect(gateway.address).await;
    client.write("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\n\r\n").await;
    // three times the limit for the head
    for _ in 0..12 {
        client.write("x").await;
        tokio::time::sleep(Duration::from_millis(75)).await;
    }
    assert_eq!(soon(client.answer()).await.text(), "12");
}

#[tokio::test]
async fn a_client_that_reads_slowly_is_not_the_upstreams_fault() {
    const SIZE: usize = 16 << 20;
    let upstream = Upstream::scripted(|mut wire, _| async move {
        wire.request().await.unwrap();
        wire.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n")).await;
        wire.write(vec![b'x'; SIZE]).await;
    })
    .await;
    let gateway = Gateway::limited(proxy(upstream.address), short()).await;
    let mut client = Wire::connect(gateway.address).await;
    client.write(GET).await;
    // four times the limit between two frames
    tokio::time::sleep(4 * SOON).await;
    let answer = soon(client.answer()).await;
    assert_eq!((answer.status(), answer.body.len(), answer.whole), (200, SIZE, true));
    assert_eq!(gateway.seen.causes(), []);
}

#[tokio::test]
async fn without_limits_an_answer_may_take_its_time() {
    let upstream = Upstream::scripted(|mut wire, _| async move {
        wire.request().await.unwrap();
        tokio::time::sleep(2 * SOON).await;
        wire.reply("late").await;
    })
    .await;
    let limits = Timeouts::new().head(None).body_idle(None).total(None);
    let gateway = Gateway::limited(proxy(upstream.address), limits).await;
    assert_eq!(ask(gateway.address, GET).await.text(), "late");
}
