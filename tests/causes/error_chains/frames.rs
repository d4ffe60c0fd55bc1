//! HTTP/2 frames by hand (RFC 9113 section 4.1), for what no server library will send.

use std::net::SocketAddr;

use super::peer::{Peer, upstream};

pub const NO_ERROR: u32 = 0;
pub const PROTOCOL_ERROR: u32 = 1;
pub const INTERNAL_ERROR: u32 = 2;
pub const REFUSED_STREAM: u32 = 7;
pub const CANCEL: u32 = 8;
pub const ENHANCE_YOUR_CALM: u32 = 11;
pub const HTTP_1_1_REQUIRED: u32 = 13;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

const PREFACE: usize = 24;
const MAX_CONCURRENT_STREAMS: [u8; 2] = [0, 3];
const STATUS_200: u8 = 0x88;

/// Starts an upstream that shakes hands, waits for the first request and then follows the script.
pub fn h2_upstream(script: impl Fn(&mut Peer) + Send + Sync + 'static) -> SocketAddr {
    upstream(move |peer| {
        shake_hands(peer, 100);
        await_request(peer);
        script(peer);
    })
}

pub fn shake_hands(peer: &mut Peer, streams: u32) {
    let settings = [&MAX_CONCURRENT_STREAMS[..], &streams.to_be_bytes()].concat();
    peer.say(frame(SETTINGS, 0, 0, &settings)).read(PREFACE);
    peer.say(frame(SETTINGS, ACK, 0, &[]));
}

/// Reads frames up to a request's, which has no body here.
pub fn await_request(peer: &mut Peer) {
    loop {
        let head = peer.read(9);
        let [high, mid, low, kind, ..] = head[..] else { return };
        peer.read(usize::from(high) << 16 | usize::from(mid) << 8 | usize::from(low));
        if kind == HEADERS {
            return;
        }
    }
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

pub fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &code.to_be_bytes())
}

pub fn go_away(last: u32, code: u32) -> Vec<u8> {
    frame(GOAWAY, 0, 0, &[last.to_be_bytes(), code.to_be_bytes()].concat())
}

/// The head of a 200 on stream 1.
pub fn ok() -> Vec<u8> {
    frame(HEADERS, END_HEADERS, 1, &[STATUS_200])
}

/// As [`ok`], with a length of one digit: field 28 of the static table, not indexed (RFC 7541 section 6.2.2).
pub fn ok_of_length(digit: u8) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, 1, &[STATUS_200, 0x0f, 28 - 15, 1, digit])
}

pub fn data(bytes: &[u8]) -> Vec<u8> {
    frame(DATA, 0, 1, bytes)
}

pub fn last_data(bytes: &[u8]) -> Vec<u8> {
    frame(DATA, END_STREAM, 1, bytes)
}

/// A head of `frames` continuations, with `fields` of about 120 bytes in each.
pub fn long_head(frames: usize, fields: usize) -> Vec<u8> {
    let field = [&[0, 1, b'x', 119][..], &[b'y'; 119]].concat();
    let mut head = frame(HEADERS, 0, 1, &[STATUS_200]);
    for _ in 1..frames {
        head.extend(frame(CONTINUATION, 0, 1, &field.repeat(fields)));
    }
    head.extend(frame(CONTINUATION, END_HEADERS, 1, &field.repeat(fields)));
    head
}
