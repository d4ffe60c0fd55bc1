//! Helpers of the membership examples' tests: servers that can be killed, a gateway, and traffic that counts failures.

#![allow(dead_code)] // each example uses a part of it

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep};
use tower::{Layer, ServiceExt};
use tower_upstream::balance::{Balance, BalanceHandle, reverse_proxies};
use tower_upstream::body::TrackedUpload;
use tower_upstream::client::{DefaultConnector, ReverseProxy};
use tower_upstream::forward::ForwardingRules;
use tower_upstream::stack::{RequestBody, Upstream};
use tower_upstream::{Failure, UpstreamLayer};

/// A stack around a pool of reverse proxies.
pub type Gateway = Upstream<Balance<ReverseProxy<DefaultConnector, TrackedUpload<RequestBody<Full<Bytes>>>>>>;

/// A gateway for `http://shop.test`, and the handle of its pool, which has no member yet.
pub fn gateway() -> (Gateway, BalanceHandle) {
    let target = "http://shop.test".parse().expect("a target");
    let proxy = ReverseProxy::builder(target, ForwardingRules::new("edge").expect("a pseudonym"));
    let pool = Balance::builder("shop", reverse_proxies(proxy)).build().expect("an empty pool");
    let handle = pool.handle();
    (UpstreamLayer::for_pool(&pool).build().expect("the defaults").layer(pool), handle)
}

/// A server that responds with its address after 2 ms.
pub struct Server {
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    pub async fn start() -> Self {
        Self::at("127.0.0.1:0".parse().expect("an address")).await
    }

    pub async fn at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        let task = tokio::spawn(async move {
            // dropped with the task: all connections end
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(connection(stream, address));
            }
        });
        Self { address, task }
    }

    /// Ends it after its last requests: it is no longer a member.
    pub async fn leave(self) {
        sleep(Duration::from_millis(100)).await;
        self.kill();
    }

    /// Ends it and its connections in the middle of their requests, as `kill -9` does.
    pub fn kill(self) {
        self.task.abort();
    }
}

async fn connection(mut stream: TcpStream, address: SocketAddr) -> std::io::Result<()> {
    let (read, mut write) = stream.split();
    let mut lines = BufReader::new(read).lines();
    while let Some(line) = lines.next_line().await? {
        if line.is_empty() {
            sleep(Duration::from_millis(2)).await;
            let body = address.to_string();
            write
                .write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).as_bytes())
                .await?;
        }
    }
    Ok(())
}

/// GET requests, about 600 a second for two minutes at most.
pub struct Traffic {
    seen: Arc<Mutex<Seen>>,
    tasks: JoinSet<()>,
}

#[derive(Default)]
struct Seen {
    responses: HashMap<String, u32>,
    failures: Vec<String>,
}

impl Seen {
    fn add(&mut self, result: Result<String, String>) {
        match result {
            Ok(server) => *self.responses.entry(server).or_default() += 1,
            Err(failure) => self.failures.push(failure),
        }
    }
}

impl Traffic {
    pub fn start(gateway: &Gateway) -> Self {
        let (seen, mut tasks) = (Arc::new(Mutex::new(Seen::default())), JoinSet::new());
        for _ in 0..4 {
            let (gateway, seen) = (gateway.clone(), seen.clone());
            tasks.spawn(async move {
                let begun = Instant::now();
                while begun.elapsed() < Duration::from_secs(120) {
                    let request = Request::get("/").header("host", "shop.test").body(Full::default());
                    let Ok(response) = gateway.clone().oneshot(request.expect("a request")).await;
                    let failure = Failure::of(&response).map(ToString::to_string);
                    let body = response.into_body().collect().await;
                    let result = match (failure, body) {
                        (Some(failure), _) => Err(failure),
                        (None, Ok(body)) => Ok(String::from_utf8_lossy(&body.to_bytes()).into_owned()),
                        (None, Err(error)) => Err(error.to_string()),
                    };
                    seen.lock().expect("no panic").add(result);
                    sleep(Duration::from_millis(3)).await;
                }
            });
        }
        Self { seen, tasks }
    }

    /// The responses of this server so far.
    pub fn responses_of(&self, server: SocketAddr) -> u32 {
        self.seen.lock().expect("no panic").responses.get(&server.to_string()).copied().unwrap_or_default()
    }

    /// Waits until this server has responded again.
    pub async fn reaches(&self, server: SocketAddr) {
        let before = self.responses_of(server);
        until("a response of the server", || self.responses_of(server) > before).await;
    }

    /// Checks that no call has failed so far; returns the number of calls.
    pub fn check(&self, when: &str) -> u32 {
        let seen = self.seen.lock().expect("no panic");
        assert!(seen.failures.is_empty(), "failed calls {when}: {:?}", seen.failures);
        seen.responses.values().sum()
    }
}

/// The keys of the pool's members.
pub fn keys(pool: &BalanceHandle) -> Vec<String> {
    pool.members().borrow().iter().map(|member| member.key.to_string()).collect()
}

/// Why the source of the members last failed; empty if it works.
pub fn problem(pool: &BalanceHandle) -> String {
    pool.snapshot(Instant::now()).source.problem.unwrap_or_default()
}

/// Waits until a condition holds, half a minute at most.
pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(30), "it never came: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}
