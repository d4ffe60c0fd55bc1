//! A request body that a broken connection returns half sent; the next attempt sends all of it.

use std::convert::Infallible;
use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::body::{ReplayBody, ReplayHandle};

const LIMIT: Duration = Duration::from_secs(1);

type Frames = StreamBody<BoxStream<'static, Result<Frame<Bytes>, Infallible>>>;

/// A body that ends when what feeds it is dropped.
fn fed(cap: usize) -> (UnboundedSender<&'static str>, ReplayBody<Frames>, ReplayHandle<Frames>) {
    let (feed, mut steps) = unbounded_channel();
    let frames = stream::poll_fn(move |cx| steps.poll_recv(cx)).map(|text: &str| Ok(Frame::data(Bytes::from(text))));
    let (body, replay) = ReplayBody::new(StreamBody::new(frames.boxed()), cap);
    (feed, body, replay)
}

/// The upstream's end of a connection, the task of the connection, and the response to a PUT on it.
async fn put(
    body: ReplayBody<Frames>,
) -> (DuplexStream, JoinHandle<()>, JoinHandle<hyper::Result<Response<Incoming>>>) {
    let (near, far) = duplex(256);
    let (mut sender, connection) = http1::handshake(TokioIo::new(near)).await.unwrap();
    let connection = tokio::spawn(async { drop(connection.await) });
    let request = Request::put("/").header("host", "upstream").body(body).unwrap();
    let answer = tokio::spawn(async move { sender.send_request(request).await });
    (far, connection, answer)
}

/// Reads up to this text.
async fn read_to(far: &mut DuplexStream, end: &str) -> String {
    let mut read = Vec::new();
    while !read.ends_with(end.as_bytes()) {
        read.push(far.read_u8().await.unwrap());
    }
    String::from_utf8(read).unwrap()
}

/// The second attempt sends all of it.
async fn sent_again(body: ReplayBody<Frames>, feed: UnboundedSender<&'static str>) {
    let (mut far, ..) = put(body).await;
    feed.send("two").unwrap();
    drop(feed);
    let read = timeout(LIMIT, read_to(&mut far, "0\r\n\r\n")).await.unwrap();
    assert!(read.ends_with("\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"), "{read}");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_breaks_in_the_middle_of_an_upload_returns_it() {
    let (feed, body, replay) = fed(100);
    let (mut far, _connection, answer) = put(body).await;
    feed.send("one").unwrap();
    read_to(&mut far, "one\r\n").await;
    drop(far);
    assert!(answer.await.unwrap().is_err());
    let again = timeout(LIMIT, poll_fn(|cx| replay.poll_replay(cx))).await.unwrap();
    sent_again(again.unwrap(), feed).await;
}

#[tokio::test(start_paused = true)]
async fn a_response_in_the_middle_of_an_upload_does_not_keep_it() {
    let (feed, body, replay) = fed(100);
    let (mut far, _connection, answer) = put(body).await;
    feed.send("one").unwrap();
    read_to(&mut far, "one\r\n").await;
    // the upstream keeps reading, and the client keeps waiting
    far.write_all(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    assert_eq!(answer.await.unwrap().unwrap().status(), 503);
    assert!(replay.replay().is_none());
    let again = timeout(LIMIT, poll_fn(|cx| replay.poll_replay(cx))).await.unwrap();
    // the first upstream must not take its part for the whole body
    let mut rest = String::new();
    far.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "");
    sent_again(again.unwrap(), feed).await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_blocked_in_a_write_returns_it_only_at_its_end() {
    let (feed, body, replay) = fed(1024);
    let (_far, connection, answer) = put(body).await;
    for _ in 0..20 {
        feed.send("a text of thirty-two characters.").unwrap();
    }
    tokio::time::sleep(LIMIT).await;
    answer.abort();
    assert!(replay.was_polled() && replay.is_possible());
    let again = timeout(LIMIT, poll_fn(|cx| replay.poll_replay(cx)));
    let stuck = again.await.is_err();
    connection.abort();
    let again = timeout(LIMIT, poll_fn(|cx| replay.poll_replay(cx))).await;
    assert!(stuck && again.unwrap().is_some());
}
