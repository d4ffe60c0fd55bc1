//! The gateway's own side: tower's limits, a runtime that ends, the server's view of a broken body.

use std::convert::Infallible;
use std::future::ready;
use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower::{Service, ServiceBuilder};
use tower_upstream::BadGatewayCause as Cause;
use tower_upstream::cause::Evidence;

use super::client::{BoxError, Upload, ask, client, failed, get, nothing, url};
use super::peer::{Peer, upstream};
use super::table::{Got, cause, check, row};

async fn over_the_limit() -> Got {
    let address = upstream(Peer::silence);
    let service = ServiceBuilder::new().load_shed().concurrency_limit(1).service(client());
    let mut first = service.clone();
    let held = tokio::task::spawn_local(async move {
        let ready = tower::ServiceExt::ready(&mut first).await.expect("the first place is free");
        let _ = ready.call(get(url(address))).await;
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    let got = ask(service, get(url(address))).await;
    held.abort();
    got
}

/// Not ready, and never will be.
struct Unready;

impl Service<Request<Upload>> for Unready {
    type Response = Response<Upload>;
    type Error = io::Error;
    type Future = std::future::Ready<Result<Response<Upload>, io::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::ErrorKind::ConnectionRefused.into()))
    }

    fn call(&mut self, _: Request<Upload>) -> Self::Future {
        ready(Ok(Response::new(nothing())))
    }
}

async fn behind_a_buffer() -> Got {
    ask(ServiceBuilder::new().buffer(4).service(Unready), get("http://buffered.test/")).await
}

async fn with_its_task_gone() -> Got {
    let stream = TcpStream::connect(upstream(Peer::silence)).await.expect("the upstream listens");
    let shaken = hyper::client::conn::http1::handshake::<_, Upload>(TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.expect("nothing is said in a handshake");
    let task = tokio::spawn(connection);
    let sent = tokio::task::spawn_local(sender.send_request(get("/")));
    tokio::time::sleep(Duration::from_millis(20)).await;
    task.abort();
    failed(sent.await.expect("no panic").expect_err("the task is gone"))
}

/// The other end of the gateway: hyper's server, when the body handed to it fails.
async fn served_a_broken_body() -> Got {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let (stream, _) = listener.accept().await.expect("a client");
    let service = service_fn(|_: Request<hyper::body::Incoming>| {
        let died: BoxError = io::Error::other("upstream died").into();
        let frames = [Ok(Frame::data(Bytes::from_static(b"half"))), Err(died)];
        ready(Ok::<_, Infallible>(Response::new(StreamBody::new(futures_util::stream::iter(frames)))))
    });
    let served = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    failed(served.expect_err("the body fails"))
}

#[test]
fn the_gateways_own_failures_are_not_the_upstreams() {
    check(vec![
        row("G01", "load shed", over_the_limit(), cause(Cause::GatewayOverload).not_sent(Evidence::LocalRefusal)),
        // an I/O error without a connector around it may be of anything
        row("G02", "buffer", behind_a_buffer(), cause(Cause::ConnectionRefused).idempotent_only()),
        row("G03", "task gone", with_its_task_gone(), cause(Cause::GatewayInternal).idempotent_only()),
        row("N-err", "the server's view", served_a_broken_body(), cause(Cause::RequestBodyFailed).never()),
    ]);
}
