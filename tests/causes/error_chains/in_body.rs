//! The head was good, the body was not: HTTP/1.1.

use std::io::Write;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, Limited};
use tower::{Layer, ServiceExt};
use tower_http::decompression::DecompressionLayer;
use tower_http::timeout::ResponseBodyTimeoutLayer;
use tower_upstream::BadGatewayCause as Cause;
use tower_upstream::timeout::Timeouts;

use super::client::{BoxError, Upload, ask, client, fetch, get, url};
use super::in_head::proxy;
use super::peer::{Peer, upstream};
use super::table::{Got, answer, check, cut, row};

const A_LITTLE: Duration = Duration::from_millis(100);
const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
const CHUNK: &str = "3\r\nabc\r\n";
const OPEN_ENDED: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabc";
const THREE_OF_TEN: &str = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc";

async fn said(parts: &'static [&'static str]) -> Got {
    fetch(upstream(move |peer| say(peer, parts).fin())).await
}

async fn said_then_rst(parts: &'static [&'static str]) -> Got {
    fetch(upstream(move |peer| say(peer, parts).rst())).await
}

/// Each part a segment of its own, so that the head is handed on before the fault.
fn say<'a>(peer: &'a mut Peer, parts: &[&str]) -> &'a mut Peer {
    peer.request();
    parts.iter().fold(peer, |peer, part| peer.say(part).pause())
}

fn three_then_silence(peer: &mut Peer) {
    peer.request().say(THREE_OF_TEN).silence();
}

async fn stall_under_our_limit() -> Got {
    let timeouts = Timeouts::new().body_idle(A_LITTLE);
    let mut request = get("/");
    request.headers_mut().insert("host", HeaderValue::from_static("shop.example"));
    ask(proxy(upstream(three_then_silence), timeouts), request).await
}

async fn stall_under_tower_https_limit() -> Got {
    let service = ResponseBodyTimeoutLayer::new(A_LITTLE).layer(client()).map_response(boxed);
    ask(service, get(url(upstream(three_then_silence)))).await
}

async fn longer_than_limited() -> Got {
    let service = client().map_response(|answer| answer.map(|body| Limited::new(body, 4)));
    let long = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n";
    ask(service, get(url(upstream(move |peer| say(peer, &[long, "abc", "defghij"]).fin())))).await
}

/// `gzip` in name, and the bytes given.
async fn decompressed(bytes: Vec<u8>) -> Got {
    let address = upstream(move |peer| {
        let mut all = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\nconnection: close\r\n\r\n".to_vec();
        all.write_all(&bytes).expect("memory");
        peer.request().say(all).fin();
    });
    let service = DecompressionLayer::new().layer(client()).map_response(boxed);
    ask(service, Request::get(url(address)).body(super::client::nothing()).expect("a good target")).await
}

fn boxed<B>(answer: Response<B>) -> Response<Upload>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    answer.map(|body| body.map_err(Into::into).boxed_unsync())
}

#[test]
fn a_body_that_broke_off_never_ends_like_a_whole_one() {
    let incomplete = || cut(Cause::IncompleteBody);
    let framing = || cut(Cause::TransferCoding);
    let coding = || cut(Cause::ContentCoding).held();
    check(vec![
        row("D01", "3 of 10 bytes, FIN", said(&[THREE_OF_TEN]), incomplete()),
        row("D02", "3 of 10 bytes, RST", said_then_rst(&[THREE_OF_TEN]), incomplete().errno(104)),
        row("D03", "one chunk, FIN", said(&[CHUNKED, CHUNK]), incomplete()),
        row("D03+", "half a chunk, FIN", said(&[CHUNKED, "3\r\na"]), incomplete()),
        row("D04", "bad chunk size", said(&[CHUNKED, "xyz\r\n"]), framing()),
        row("D04+", "chunk size without end", said(&[CHUNKED, CHUNK, "fffffffffffffffff\r\n"]), framing()),
        row("D04+", "chunk longer than its size", said(&[CHUNKED, "3\r\nabcd\r\n"]), framing()),
        row("D04+", "at once: the head is held", said(&[BAD_AT_ONCE]), framing().held()),
        row("D05", "open-ended, FIN", said(&[OPEN_ENDED]), answer(200)),
        row("D06", "open-ended, RST", said_then_rst(&[OPEN_ENDED]), incomplete().errno(104)),
        row("D07", "trailers", said(&[CHUNKED, CHUNK, "0\r\nproxy-status: x\r\n\r\n"]), answer(200)),
        row("D07+", "bad trailer", said(&[CHUNKED, CHUNK, "0\r\nbad name: x\r\n\r\n"]), cut(Cause::InvalidResponse)),
        row("D08", "stall, our limit", stall_under_our_limit(), cut(Cause::BodyReadTimeout)),
        row("D09", "longer than Limited", longer_than_limited(), cut(Cause::BodyTooLarge)),
        row("D10", "stall, tower-http's limit", stall_under_tower_https_limit(), cut(Cause::BodyReadTimeout)),
        row("D11", "gzip in name only", decompressed(b"plain text, no gzip".to_vec()), coding()),
        row("D11+", "gzip, broken inside", decompressed(broken_gzip()), coding()),
    ]);
}

const BAD_AT_ONCE: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n";

/// A good header, then a deflate block of a type that does not exist (RFC 1951 section 3.2.3).
fn broken_gzip() -> Vec<u8> {
    [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3][..], &[0b111; 20]].concat()
}
