//! A real etcd on loopback: endpoints are added, drained and killed, and etcd is restarted.

#[path = "../../support/mod.rs"]
mod support;

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use etcd_client::Client;
use support::{Server, Traffic, gateway, keys, problem, until};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tower_upstream::balance::{BalanceHandle, MemberState};

const PREFIX: &str = "/services/shop/";

/// An etcd with its data in a directory of its own.
struct Etcd {
    process: Option<Child>,
    directory: PathBuf,
    urls: [String; 2],
}

impl Etcd {
    /// `None` if it is not installed.
    fn new() -> Option<Self> {
        let ports = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port());
        let directory = std::env::temp_dir().join(format!("tower-upstream-etcd-{}", std::process::id()));
        let urls = ports.map(|port| format!("http://127.0.0.1:{port}"));
        let mut etcd = Self { process: None, directory, urls };
        etcd.start().then_some(etcd)
    }

    fn start(&mut self) -> bool {
        let [client, peer] = &self.urls;
        let process = Command::new("etcd")
            .arg("--data-dir")
            .arg(&self.directory)
            .args(["--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer])
            .args(["--initial-advertise-peer-urls", peer, "--initial-cluster", &format!("default={peer}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.process = process.ok();
        self.process.is_some()
    }

    fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.stop();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// A server with its registration.
struct Registered {
    server: Server,
    registration: JoinHandle<std::convert::Infallible>,
}

impl Registered {
    async fn start(etcd: &Etcd) -> Self {
        let server = Server::start().await;
        let registration = tokio::spawn(etcd::register(
            etcd.urls[0].clone(),
            PREFIX.to_owned(),
            server.address,
            "weight=2 zone=eu-1a".to_owned(),
            Duration::from_secs(2),
        ));
        Self { server, registration }
    }

    /// Ends the server and its registration at the same time.
    fn kill(self) {
        self.registration.abort();
        self.server.kill();
    }
}

#[tokio::test]
async fn registered_servers_are_followed_and_nothing_is_lost() {
    let Some(mut etcd) = Etcd::new() else {
        println!("skipped: etcd is not installed");
        return;
    };
    let [first, second, third] =
        [Registered::start(&etcd).await, Registered::start(&etcd).await, Registered::start(&etcd).await];
    let (gateway, pool) = gateway();
    pool.follow_snapshots(etcd::members(&etcd.urls[0], PREFIX));
    until("the registrations", || keys(&pool).len() == 3).await;
    let traffic = Traffic::start(&gateway);

    // one is added; an invalid entry is left out
    let fourth = Registered::start(&etcd).await;
    traffic.reaches(fourth.server.address).await;
    let mut client = Client::connect([&etcd.urls[0]], None).await.unwrap();
    client.put(format!("{PREFIX}nowhere"), "weight=two", None).await.unwrap();
    traffic.check("after a server came");

    // one drains, then its entry is removed
    first.registration.abort();
    let key = format!("{PREFIX}{}", first.server.address);
    client.put(&*key, "draining", None).await.unwrap();
    until("it drains", || is_drained(&pool, first.server.address)).await;
    client.delete(&*key, None).await.unwrap();
    until("it has gone", || keys(&pool).len() == 3).await;
    first.server.leave().await;

    // one is killed: calls to it are sent again to others until its lease expires
    let address = second.server.address.to_string();
    second.kill();
    until("its lease ends", || !keys(&pool).contains(&address)).await;
    traffic.check("after a server was killed");

    // etcd is killed and restarted
    etcd.stop();
    until("the watch has failed", || !problem(&pool).is_empty()).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(keys(&pool).len(), 2);
    traffic.reaches(third.server.address).await;
    traffic.reaches(fourth.server.address).await;
    assert!(etcd.start());
    until("etcd is back", || problem(&pool).is_empty()).await;
    let fifth = Registered::start(&etcd).await;
    traffic.reaches(fifth.server.address).await;
    assert_eq!(keys(&pool).len(), 3);
    assert!(traffic.check("in all") > 1000);
}

/// Whether the member with this address drains and has no call in flight.
fn is_drained(pool: &BalanceHandle, address: SocketAddr) -> bool {
    let snapshot = pool.snapshot(Instant::now());
    let endpoint = snapshot.endpoints.iter().find(|endpoint| *endpoint.member.key == address.to_string());
    endpoint.is_some_and(|endpoint| endpoint.member.state == MemberState::Draining && endpoint.in_flight == 0)
}
