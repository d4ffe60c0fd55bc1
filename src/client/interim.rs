//! Counts interim responses on the wire, because hyper does not limit them.

use std::io;

use super::frames::Frames;
#[cfg(feature = "http2")]
use super::frames::PeerState;
use crate::cause::{BadGatewayCause, Detail, Evidence, Failure, Replay};

/// Tracks the heads of one response and fails if too many of them are interim (RFC 9110 section 15.2).
///
/// Processes the bytes read since a request started, in pieces of any size. Once a final head starts, or bytes that
/// are not an HTTP/1 head, it stops. On an HTTP/2 connection it tracks the frames while the connection is open.
#[derive(Clone, Debug)]
pub(super) struct Interim {
    limit: u32,
    frames: Option<Box<Frames>>,
    heads: u32,
    bytes: usize,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The number of bytes of a status line seen.
    Status(usize),
    /// Within an interim head; the number of consecutive line ends seen.
    Head(u8),
    Final,
}

/// The maximum size of all interim heads together.
const MAX_BYTES: usize = 64 << 10;

impl Interim {
    pub(super) fn new(limit: u32) -> Self {
        Self { limit, frames: None, heads: 0, bytes: 0, state: State::Status(0) }
    }

    /// Expects a new response, unless the previous one is still outstanding and the rest of its request is written.
    pub(super) fn restart(&mut self) {
        // streams of an HTTP/2 connection are counted separately
        if self.state == State::Final && self.frames.is_none() {
            *self = Self::new(self.limit);
        }
    }

    /// The announcements of an HTTP/2 peer so far.
    #[cfg(feature = "http2")]
    pub(super) fn peer(&self) -> PeerState {
        match &self.frames {
            Some(frames) => frames.peer(),
            // a peer that speaks something else announces nothing more
            None => PeerState { received: self.state != State::Status(0), ..PeerState::default() },
        }
    }

    /// The number of interim heads of this response.
    pub(super) fn heads(&self) -> u32 {
        self.heads
    }

    /// Whether the final head has started, or the bytes are not HTTP/1.
    pub(super) fn is_final(&self) -> bool {
        self.state == State::Final
    }

    /// Processes bytes that were read.
    pub(super) fn process(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.state == State::Final {
            let Some(frames) = &mut self.frames else { return Ok(()) };
            return if frames.read(bytes) > self.limit { Err(too_many()) } else { Ok(()) };
        }
        // nearly every response starts with its final head, in one piece
        if self.state == State::Status(0) && bytes.len() > 9 && bytes[9] != b'1' && bytes[0] != 0 {
            self.state = State::Final;
            return Ok(());
        }
        // the first frame of an HTTP/2 server is SETTINGS, which never takes 64 KiB (RFC 9113 section 3.4)
        if self.state == State::Status(0) && bytes.first() == Some(&0) {
            self.state = State::Final;
            self.frames = Some(Box::default());
            return self.process(bytes);
        }
        for byte in bytes {
            self.state = match self.state {
                State::Status(at) => status_byte(at, *byte),
                State::Head(ends) => match (byte, ends) {
                    (b'\r', _) => State::Head(ends),
                    (b'\n', 0) => State::Head(1),
                    (b'\n', _) => {
                        self.heads += 1;
                        State::Status(0)
                    }
                    _ => State::Head(0),
                },
                State::Final => return Ok(()),
            };
            self.bytes += 1;
            if self.heads > self.limit || self.bytes > MAX_BYTES {
                return Err(too_many());
            }
        }
        Ok(())
    }
}

/// `HTTP/1.x 1yz`; 101 is final: other bytes follow it.
fn status_byte(at: usize, byte: u8) -> State {
    let fits = match at {
        0..=6 => byte == b"HTTP/1."[at],
        7 | 10 => byte.is_ascii_digit(),
        8 => byte == b' ',
        9 => byte == b'1',
        // only whether it is 101 matters
        _ => byte.is_ascii_digit() && byte != b'1',
    };
    match (fits, at) {
        (false, _) => State::Final,
        (true, 11) => State::Head(0),
        (true, _) => State::Status(at + 1),
    }
}

/// The failure, inside an I/O error; `Chain` finds it there.
fn too_many() -> io::Error {
    let failure = Failure::builder(BadGatewayCause::InvalidResponse)
        .replay(Replay::Never, Evidence::Counted)
        .detail(Detail::Text("too many interim responses"));
    io::Error::new(io::ErrorKind::InvalidData, failure.build())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HINTS: &[u8] = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";

    fn feed(limit: u32, bytes: &[u8], piece: usize) -> bool {
        let mut interim = Interim::new(limit);
        bytes.chunks(piece).all(|piece| interim.process(piece).is_ok())
    }

    #[test]
    fn as_many_as_the_limit_pass_in_any_pieces() {
        let mut bytes = HINTS.repeat(3);
        bytes.extend_from_slice(b"HTTP/1.1 200 OK\r\n\r\n");
        bytes.extend_from_slice(&HINTS.repeat(9));
        for piece in [1, 2, 7, 1000] {
            assert!(feed(3, &bytes, piece), "{piece}");
            assert!(!feed(2, &bytes, piece), "{piece}");
        }
    }

    #[test]
    fn bytes_after_a_101_are_not_inspected() {
        let mut bytes = b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec();
        bytes.extend_from_slice(&HINTS.repeat(9));
        assert!(feed(0, &bytes, 5));
    }

    #[test]
    fn an_endless_interim_head_is_ended() {
        let mut bytes = b"HTTP/1.1 102 Processing\r\n".to_vec();
        bytes.extend_from_slice(&b"a: b\r\n".repeat(MAX_BYTES / 6));
        assert!(!feed(9, &bytes, 100));
    }

    /// A frame of this type on this stream.
    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).unwrap();
        [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
    }

    const HEADERS: u8 = 1;

    #[test]
    fn interim_heads_of_an_http2_stream_are_limited_too() {
        let heads = |count| frame(HEADERS, 4, 1, b"head").repeat(count);
        for piece in [1, 2, 7, 1000] {
            assert!(feed(3, &[frame(4, 0, 0, &[]), heads(4)].concat(), piece), "{piece}");
            assert!(!feed(3, &[frame(4, 0, 0, &[]), heads(5)].concat(), piece), "{piece}");
        }
    }

    #[test]
    fn the_rest_of_a_request_does_not_restart_the_count() {
        let mut interim = Interim::new(2);
        let mut saw = |bytes: &[u8]| {
            interim.restart();
            interim.process(bytes)
        };
        for answer in 0..3 {
            assert!(saw(HINTS).is_ok() && saw(HINTS).is_ok(), "{answer}");
            assert!(saw(b"HTTP/1.1 200 OK\r\n\r\n").is_ok(), "{answer}");
        }
        assert!(saw(HINTS).is_ok() && saw(HINTS).is_ok());
        assert!(saw(HINTS).is_err());
    }

    #[test]
    fn a_new_request_does_not_restart_the_count_of_an_http2_stream() {
        let mut interim = Interim::new(9);
        interim.process(&frame(4, 0, 0, &[])).unwrap();
        let counted = (0..20).take_while(|_| {
            interim.restart();
            interim.process(&frame(HEADERS, 4, 1, b"head")).is_ok()
        });
        assert_eq!(counted.count(), 10);
    }

    #[test]
    fn bare_line_feeds_count_too() {
        assert!(!feed(1, &b"HTTP/1.0 100 Go\nA: b\n\n".repeat(2), 3));
    }
}
