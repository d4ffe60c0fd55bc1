//! What grpc-core and grpc-go demand of their clients by default: PINGs at least 5 minutes apart, two violations allowed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::Instant;

use crate::support::Upstream;

const APART: Duration = Duration::from_secs(5 * 60);
const ALLOWED: u32 = 2;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PING: u8 = 6;
const ACK: u8 = 1;

/// A relay before an HTTP/2 server that ends connections which violate the policy.
pub(crate) struct PingPolicy {
    pub(crate) address: SocketAddr,
    violations: Arc<AtomicU32>,
    _relay: Upstream,
}

impl PingPolicy {
    pub(crate) async fn before(server: SocketAddr) -> Self {
        let violations = Arc::new(AtomicU32::new(0));
        let count = violations.clone();
        let relay = Upstream::accepting(move |client, _| {
            let count = count.clone();
            async move {
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = TcpStream::connect(server).await.unwrap().into_split();
                // those of this connection since the server last sent something of a stream
                let strikes = AtomicU32::new(0);
                let mut last: Option<Instant> = None;
                let requests = relay(from_client, to_server, Frames::after(24), |kind, flags| {
                    if kind != PING || flags & ACK != 0 {
                        return true;
                    }
                    let now = Instant::now();
                    if last.replace(now).is_some_and(|last| now - last >= APART) {
                        return true;
                    }
                    count.fetch_add(1, Relaxed);
                    strikes.fetch_add(1, Relaxed) < ALLOWED
                });
                let responses = relay(from_server, to_client, Frames::after(0), |kind, _| {
                    if kind == DATA || kind == HEADERS {
                        strikes.store(0, Relaxed);
                    }
                    true
                });
                tokio::select! { () = requests => {}, () = responses => {} }
            }
        })
        .await;
        Self { address: relay.address, violations, _relay: relay }
    }

    /// PINGs that came too early.
    pub(crate) fn violations(&self) -> u32 {
        self.violations.load(Relaxed)
    }
}

async fn relay(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut frames: Frames,
    mut allowed: impl FnMut(u8, u8) -> bool,
) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let mut all_allowed = true;
        frames.read(&buffer[..read], |kind, flags| all_allowed &= allowed(kind, flags));
        if !all_allowed || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

/// Finds the heads of frames in a stream of bytes.
struct Frames {
    /// Bytes until the next head.
    skip: usize,
    head: Vec<u8>,
}

impl Frames {
    /// The first frame comes after so many bytes.
    fn after(skip: usize) -> Self {
        Self { skip, head: Vec::new() }
    }

    fn read(&mut self, mut bytes: &[u8], mut frame: impl FnMut(u8, u8)) {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let skipped = self.skip.min(bytes.len());
                self.skip -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            self.head.push(bytes[0]);
            bytes = &bytes[1..];
            if let [a, b, c, kind, flags, _, _, _, _] = self.head[..] {
                self.skip = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                frame(kind, flags);
                self.head.clear();
            }
        }
    }
}
