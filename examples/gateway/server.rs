//! Serves HTTP/1.1 and h2c until SIGTERM or ctrl-c, then drains.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::HEAD;
use super::head_timer::HeadTimer;

/// The largest request head, and the largest part of a response that is buffered for a client that does not read, in
/// bytes.
const BUFFER: usize = 16 << 10;
/// How long requests in flight, and WebSocket connections, may take after SIGTERM.
const DRAIN: Duration = Duration::from_secs(30);

/// Serves each accepted connection with a service of its own.
///
/// `upgraded` ends when no upgraded connection is open: hyper does not wait for these.
pub(crate) async fn serve<S, B>(
    listener: TcpListener,
    mut service: impl FnMut(SocketAddr) -> S,
    upgraded: impl Future<Output = ()>,
) -> Result<(), String>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + Sync + 'static,
    S::Future: Send,
    B: http_body::Body<Data = bytes::Bytes, Error: Into<tower::BoxError>> + Send + 'static,
{
    let graceful = GracefulShutdown::new();
    let (stop, stopped) = watch::channel(());
    let mut term = signal(SignalKind::terminate()).map_err(|error| format!("SIGTERM: {error}"))?;
    let mut ctrl_c = signal(SignalKind::interrupt()).map_err(|error| format!("ctrl-c: {error}"))?;
    loop {
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // usually out of file descriptors: wait until connections have closed
                    tracing::error!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            _ = term.recv() => break,
            _ = ctrl_c.recv() => break,
        };
        tokio::spawn(connection(stream, service(peer), graceful.watcher(), stopped.clone()));
    }
    drop((listener, stop));
    tracing::info!("draining");
    let ended = async {
        graceful.shutdown().await;
        upgraded.await;
    };
    if tokio::time::timeout(DRAIN, ended).await.is_err() {
        tracing::warn!("requests or WebSocket connections were still in flight after {DRAIN:?}");
    }
    Ok(())
}

async fn connection<S, B>(stream: TcpStream, service: S, watcher: Watcher, mut stopped: watch::Receiver<()>)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + Sync + 'static,
    S::Future: Send,
    B: http_body::Body<Data = bytes::Bytes, Error: Into<tower::BoxError>> + Send + 'static,
{
    let _ = stream.set_nodelay(true);
    // hyper-util's builder has no timeout before it knows the protocol
    let first = tokio::select! {
        first = tokio::time::timeout(HEAD, stream.readable()) => first,
        _ = stopped.changed() => return,
    };
    if !matches!(first, Ok(Ok(()))) {
        return;
    }
    let served = {
        let mut server = Builder::new(TokioExecutor::new());
        server.http1().timer(HeadTimer::default()).header_read_timeout(HEAD).max_buf_size(BUFFER);
        server.http2().timer(TokioTimer::new()).keep_alive_interval(HEAD).max_send_buf_size(BUFFER);
        let connection = server.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
        // boxed, because the task would otherwise have room for it twice
        Box::pin(watcher.watch(connection))
    };
    if let Err(error) = served.await {
        tracing::debug!(error, "connection failed");
    }
}
