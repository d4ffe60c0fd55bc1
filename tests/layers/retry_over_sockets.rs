//! Retries over real sockets: the requests that reach an upstream, and the response that the client gets.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tower_upstream::BadGatewayCause as Cause;
use tower_upstream::cause::RetryStop;
use tower_upstream::retry::{Hedging, RetryBudget, RetryLayer, RetryPolicy};

use crate::support::{Gateway, Upstream, Wire, proxy, until};

/// Requests that an upstream read: method, number of the attempt, and body.
#[derive(Clone, Default)]
struct Read(Arc<Mutex<Vec<String>>>);

impl Read {
    fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

/// What an upstream does with a request.
#[derive(Clone, Copy)]
enum Does {
    Answers,
    /// Responds with 503 without `Retry-After`.
    Refuses,
    /// Closes the connection once it has read the head.
    Dies,
    /// Responds, and closes the connection a moment later without notice.
    AnswersAndLeaves,
    /// Reads the head and nothing more.
    Hangs,
}

/// An upstream that does one of these per request, and repeats the last one.
async fn upstream(acts: &'static [Does]) -> (Upstream, Read) {
    let read = Read::default();
    let log = read.clone();
    let upstream = Upstream::scripted(move |mut wire, _| {
        let log = log.clone();
        async move {
            loop {
                let Some(head) = wire.request_head().await else { return };
                let act = {
                    let mut all = log.0.lock().unwrap();
                    let count = head.get("x-envoy-attempt-count").unwrap_or("1");
                    all.push(format!("{} {count}", head.first.split(' ').next().unwrap()));
                    acts[(all.len() - 1).min(acts.len() - 1)]
                };
                if matches!(act, Does::Dies) {
                    return;
                }
                if matches!(act, Does::Hangs) {
                    std::future::pending::<()>().await;
                }
                if let Some(length) = head.get("content-length").map(|length| length.parse::<usize>().unwrap()) {
                    let body = wire.bytes(length).await;
                    let mut all = log.0.lock().unwrap();
                    if !body.is_empty() {
                        all.last_mut().unwrap().extend([" ", std::str::from_utf8(&body).unwrap()]);
                    }
                }
                match act {
                    Does::Refuses => wire.write("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n").await,
                    _ => wire.reply("fine").await,
                }
                if matches!(act, Does::AnswersAndLeaves) {
                    return;
                }
            }
        }
    })
    .await;
    (upstream, read)
}

async fn gateway(upstream: &Upstream, retry: RetryLayer) -> Gateway {
    Gateway::retrying(proxy(upstream.address), retry).await
}

fn request(method: &str, body: &str) -> String {
    format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn an_idempotent_request_whose_connection_broke_is_sent_again_with_its_whole_body() {
    let (upstream, read) = upstream(&[Does::Dies, Does::Refuses, Does::Answers]).await;
    let gateway = gateway(&upstream, RetryLayer::new()).await;
    let mut client = Wire::connect(gateway.address).await;
    let answer = client.ask(request("PUT", "order")).await;
    assert_eq!((answer.status(), answer.text().as_str()), (200, "fine"));
    assert_eq!(read.all(), ["PUT 1", "PUT 2 order", "PUT 3 order"]);
    assert_eq!(gateway.seen.causes(), [], "the client has met no failure");
}

#[tokio::test]
async fn a_post_that_may_have_been_processed_is_not_sent_again_and_its_failure_says_why() {
    let (upstream, read) = upstream(&[Does::Dies]).await;
    let gateway = gateway(&upstream, RetryLayer::new()).await;
    let answer = Wire::connect(gateway.address).await.ask(request("POST", "order")).await;
    assert_eq!(answer.status(), 502);
    assert_eq!(read.all(), ["POST 1"]);
    let failures = gateway.seen.failures();
    assert_eq!((failures.len(), failures[0].retry_stop(), failures[0].attempts()), (1, Some(RetryStop::Method), 1));
}

#[tokio::test]
async fn a_stale_connection_costs_a_get_nothing() {
    let (upstream, read) = upstream(&[Does::AnswersAndLeaves, Does::Answers]).await;
    let gateway = gateway(&upstream, RetryLayer::new()).await;
    let mut client = Wire::connect(gateway.address).await;
    for _ in 0..2 {
        assert_eq!(client.ask(request("GET", "")).await.status(), 200);
    }
    assert_eq!((read.all().len(), upstream.accepted()), (2, 2));
}

#[tokio::test]
async fn a_request_that_no_connection_took_fails_with_all_attempts_listed() {
    let nobody = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let gateway = Gateway::retrying(proxy(nobody), RetryLayer::new()).await;
    let answer = Wire::connect(gateway.address).await.ask(request("POST", "order")).await;
    assert_eq!((answer.status(), answer.error()), (502, Some("connection_refused")));
    let failures = gateway.seen.failures();
    assert_eq!((failures.len(), failures[0].attempts(), failures[0].previous().len()), (1, 3, 2));
    assert_eq!(failures[0].retry_stop(), Some(RetryStop::Attempts));
}

#[tokio::test]
async fn a_client_that_cancels_during_a_backoff_ends_the_attempts() {
    let (upstream, read) = upstream(&[Does::Refuses]).await;
    let slow = Duration::from_secs(1000);
    let budget = RetryBudget::new();
    let retry =
        RetryLayer::new().policy(RetryPolicy::new().base_backoff(slow).max_backoff(slow)).budget(budget.clone());
    let gateway = gateway(&upstream, retry).await;
    let mut client = Wire::connect(gateway.address).await;
    client.write(request("GET", "")).await;
    let now = tokio::time::Instant::now;
    until("a retry is due", || budget.snapshot(now()).withdrawals == 1).await;
    drop(client);
    until("its token is back", || budget.snapshot(now()).refunds == 1).await;
    until("the client has left", || gateway.seen.causes() == [Cause::ClientClosed]).await;
    assert_eq!(read.all(), ["GET 1"]);
}

#[tokio::test]
async fn a_hedge_uses_a_connection_of_its_own_and_the_losers_is_closed() {
    let (upstream, read) = upstream(&[Does::Hangs, Does::Answers]).await;
    let hedging = Hedging::after(Duration::from_millis(20));
    let gateway = gateway(&upstream, RetryLayer::new().hedging(hedging)).await;
    let mut client = Wire::connect(gateway.address).await;
    for _ in 0..2 {
        assert_eq!(client.ask(request("GET", "")).await.status(), 200);
    }
    assert_eq!(read.all(), ["GET 1", "GET 2", "GET 1"]);
    assert_eq!(upstream.accepted(), 2, "the winner's connection is used again");
    assert_eq!(gateway.seen.causes(), [], "the loser's caller has not left");
}
