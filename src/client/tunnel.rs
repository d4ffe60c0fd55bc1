//! Tunnels after a 101: copies bytes in both directions.

use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::pool::Checkout;
use crate::body::UpgradeGuard;

/// The minimum interval between two checks of a tunnel.
const SHORTEST_TICK: Duration = Duration::from_millis(1);

/// The permit of a tunnel, and its idle timeout.
pub(super) struct Terms {
    /// Its slot among the tunnels of the upstream.
    pub(super) permit: OwnedSemaphorePermit,
    pub(super) idle: Option<Duration>,
}

/// Connects client and upstream once both have upgraded, until both have ended, or neither has moved bytes for
/// the idle timeout.
///
/// The connection keeps its slot in the pool while the tunnel lives, and so do values that layers attach to it.
pub(super) fn spawn<B: Send + 'static>(
    caller: OnUpgrade,
    upstream: OnUpgrade,
    lease: Checkout<B>,
    Terms { permit, idle }: Terms,
) -> UpgradeGuard {
    let (tunnel, end) = UpgradeGuard::new();
    let place = match lease {
        Checkout::H1(h1) => h1.into_tunnel(),
        #[cfg(feature = "http2")]
        Checkout::H2(_) => return tunnel,
    };
    tokio::spawn(async move {
        let _held = (place, permit, end);
        let moved = AtomicBool::new(false);
        // a client that does not read the 101 never upgrades
        let joined = async {
            let Ok((caller, upstream)) = futures_util::future::try_join(caller, upstream).await else { return };
            let (caller, upstream) = (TokioIo::new(caller), TokioIo::new(upstream));
            let (mut caller, mut upstream) =
                (Observed { io: caller, moved: &moved }, Observed { io: upstream, moved: &moved });
            // an end of either side is a normal end of a tunnel
            let _ = copy_bidirectional(&mut caller, &mut upstream).await;
        };
        match idle {
            Some(limit) => until_idle(limit, &moved, joined).await,
            None => joined.await,
        }
    });
    tunnel
}

/// Waits for a tunnel's end, at most until nothing has moved for between this limit and 9/8 of it: a clock is read at every
/// eighth of it, not at every byte.
async fn until_idle(limit: Duration, moved: &AtomicBool, tunnel: impl Future<Output = ()>) {
    let mut tunnel = pin!(tunnel);
    let tick = (limit / 8).max(SHORTEST_TICK);
    let mut silent = Duration::ZERO;
    while silent < limit {
        if timeout(tick, tunnel.as_mut()).await.is_ok() {
            return;
        }
        silent = if moved.swap(false, Relaxed) { Duration::ZERO } else { silent.saturating_add(tick) };
    }
}

/// One side of a tunnel; records when bytes have moved.
struct Observed<'a, T> {
    io: T,
    moved: &'a AtomicBool,
}

impl<T: AsyncRead + Unpin> AsyncRead for Observed<'_, T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = ready!(Pin::new(&mut self.io).poll_read(cx, buf));
        self.moved.store(true, Relaxed);
        Poll::Ready(read)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Observed<'_, T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, buf));
        self.moved.store(true, Relaxed);
        Poll::Ready(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(8);
    const LESS: Duration = Duration::from_secs(6);

    #[tokio::test(start_paused = true)]
    async fn a_tunnel_ends_when_nothing_has_moved_for_its_limit() {
        let (moved, begun) = (AtomicBool::new(false), Instant::now());
        let tunnel = async {
            for _ in 0..5 {
                sleep(LESS).await;
                moved.store(true, Relaxed);
            }
            std::future::pending::<()>().await;
        };
        until_idle(LIMIT, &moved, tunnel).await;
        let silent = begun.elapsed().saturating_sub(LESS * 5);
        assert!(silent >= LIMIT && silent <= LIMIT * 9 / 8, "{silent:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_shortest_and_the_longest_limit_neither_spin_nor_panic() {
        let moved = AtomicBool::new(false);
        for limit in [Duration::ZERO, Duration::from_nanos(1)] {
            until_idle(limit, &moved, std::future::pending()).await;
        }
        until_idle(Duration::MAX, &moved, sleep(LIMIT)).await;
    }
}
