//! A connection in memory whose peer parses what it is sent and fails as a script says.

use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::Uri;
use hyper::rt::ReadBufCursor;
use hyper_util::client::legacy::connect::{Connected, Connection};
use tokio::time::Instant;
use tower::{Service, service_fn};

/// The protocol of the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    Http2,
}

/// How a connection ends for its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Eof,
    Reset,
    TlsAlert(u8),
}

/// Where a connection is cut, in bytes since it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    Never,
    /// A write beyond these bytes fails, and so does everything after it.
    Written(usize),
    /// A write beyond these bytes finds the connection full, and a read finds its end.
    Full(usize),
    /// The same after a response that is not final.
    FullAfter(usize, &'static str),
    /// A read beyond these bytes finds the end.
    Read(usize),
}

/// The state that all connections of a peer share.
#[derive(Clone)]
pub struct Peer {
    protocol: Protocol,
    cut: Cut,
    end: End,
    opened: Arc<AtomicUsize>,
    seen: Arc<Mutex<Seen>>,
}

/// What the peer received.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Bytes on the first connection, both ways.
    pub written: usize,
    pub read: usize,
    /// Bytes of POST requests: for HTTP/1.1 any, for HTTP/2 whole header blocks.
    pub of_post: usize,
    /// POST requests whose head was parsed.
    pub posts: usize,
}

impl Peer {
    /// Only the first connection is cut.
    pub fn new(protocol: Protocol, cut: Cut, end: End) -> Self {
        Self { protocol, cut, end, opened: Arc::default(), seen: Arc::default() }
    }

    pub fn seen(&self) -> Seen {
        *self.seen.lock().unwrap()
    }

    /// Opens connections to the peer.
    pub fn connector(
        self,
    ) -> impl Service<Uri, Response = Client, Error = io::Error, Future = Ready<io::Result<Client>>> + Clone + Send + Sync
    {
        service_fn(move |_| {
            let is_first = self.opened.fetch_add(1, Relaxed) == 0;
            ready(Ok(Client {
                protocol: self.protocol,
                cut: if is_first { self.cut } else { Cut::Never },
                end: self.end,
                is_first,
                written: 0,
                read: 0,
                unparsed: Vec::new(),
                preface: false,
                answers: Vec::new(),
                full_since: None,
                is_cut: false,
                reader: None,
                seen: self.seen.clone(),
            }))
        })
    }
}

/// The client's side of a connection; the peer reacts within the client's writes.
pub struct Client {
    protocol: Protocol,
    cut: Cut,
    end: End,
    is_first: bool,
    written: usize,
    read: usize,
    /// Bytes that the peer has received and not parsed yet.
    unparsed: Vec<u8>,
    preface: bool,
    /// Bytes of the peer that the client has not read yet.
    answers: Vec<u8>,
    full_since: Option<Instant>,
    is_cut: bool,
    reader: Option<Waker>,
    seen: Arc<Mutex<Seen>>,
}

impl Connection for Client {
    fn connected(&self) -> Connected {
        let connected = Connected::new();
        if self.protocol == Protocol::Http2 { connected.negotiated_h2() } else { connected }
    }
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const PREFACE: usize = 24;
const DEAD_AFTER: Duration = Duration::from_secs(1);

impl Client {
    fn receive(&mut self, bytes: &[u8]) {
        self.unparsed.extend_from_slice(bytes);
        match self.protocol {
            Protocol::Http1 => self.parse_http1(bytes.len()),
            Protocol::Http2 => self.parse_frames(),
        }
    }

    fn parse_http1(&mut self, received: usize) {
        let mut seen = self.seen.lock().unwrap();
        if self.unparsed.starts_with(b"P") {
            seen.of_post += received.min(self.unparsed.len());
        }
        let Some(end) = self.unparsed.windows(4).position(|window| window == b"\r\n\r\n") else { return };
        let head = String::from_utf8(self.unparsed[..end].to_vec()).unwrap().to_ascii_lowercase();
        let length = head
            .split("content-length: ")
            .nth(1)
            .map_or(0, |rest| rest.split("\r\n").next().unwrap().parse::<usize>().unwrap());
        if self.unparsed.len() < end + 4 + length {
            return;
        }
        seen.posts += usize::from(head.starts_with("post"));
        self.unparsed.drain(..end + 4 + length);
        self.answers.extend_from_slice(OK);
    }

    /// Frames of RFC 9113 section 4.1: length, type, flags, stream.
    fn parse_frames(&mut self) {
        if !self.preface && self.unparsed.len() >= PREFACE {
            self.unparsed.drain(..PREFACE);
            self.preface = true;
            self.answers.extend_from_slice(&[0, 0, 0, 4, 0, 0, 0, 0, 0]);
        }
        while self.preface && self.unparsed.len() >= 9 {
            let length = usize::from(self.unparsed[1]) << 8 | usize::from(self.unparsed[2]);
            if self.unparsed.len() < 9 + length {
                return;
            }
            let frame: Vec<u8> = self.unparsed.drain(..9 + length).collect();
            let (kind, flags) = (frame[3], frame[4]);
            // HEADERS; `:method: POST` is 3 in HPACK's static table, indexed as 0x83
            if kind == 1 && frame[9..].contains(&0x83) {
                let mut seen = self.seen.lock().unwrap();
                (seen.posts, seen.of_post) = (seen.posts + 1, seen.of_post + length);
            }
            match (kind, flags & 1) {
                // the end of a stream: HEADERS with `:status: 200` and the end of this side
                (0 | 1, 1) => {
                    self.answers.extend_from_slice(&[0, 0, 1, 1, 5]);
                    self.answers.extend_from_slice(&frame[5..9]);
                    self.answers.push(0x88);
                }
                (4, 0) => self.answers.extend_from_slice(&[0, 0, 0, 4, 1, 0, 0, 0, 0]),
                _ => {}
            }
        }
    }

    fn ended<T>(&self, at_end: T) -> io::Result<T> {
        match self.end {
            End::Eof => Ok(at_end),
            End::Reset => Err(io::Error::from_raw_os_error(104)),
            End::TlsAlert(alert) => {
                let alert = rustls::AlertDescription::from(alert);
                Err(io::Error::new(io::ErrorKind::InvalidData, rustls::Error::AlertReceived(alert)))
            }
        }
    }

    /// A write finds the connection full; a client that does not read notices its end later.
    fn fill(&mut self, cx: &Context<'_>) {
        if self.full_since.is_none() {
            self.full_since = Some(Instant::now());
            if let Cut::FullAfter(_, interim) = self.cut {
                self.answers.extend_from_slice(interim.as_bytes());
            }
        }
        let writer = cx.waker().clone();
        tokio::spawn(async move {
            tokio::time::sleep(DEAD_AFTER).await;
            writer.wake();
        });
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

impl hyper::rt::Write for Client {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let (limit, full) = match this.cut {
            Cut::Written(limit) => (limit, false),
            Cut::Full(limit) | Cut::FullAfter(limit, _) => (limit, true),
            Cut::Never | Cut::Read(_) => (usize::MAX, false),
        };
        let room = bytes.len().min(limit.saturating_sub(this.written));
        if room == 0 && !bytes.is_empty() {
            if full && this.full_since.is_none_or(|since| since.elapsed() < DEAD_AFTER) {
                this.fill(cx);
                return Poll::Pending;
            }
            this.is_cut = true;
            this.wake();
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        this.written += room;
        this.receive(&bytes[..room]);
        if this.is_first {
            this.seen.lock().unwrap().written = this.written;
        }
        this.wake();
        Poll::Ready(Ok(room))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl hyper::rt::Read for Client {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let limit = match this.cut {
            Cut::Read(limit) => limit,
            _ => usize::MAX,
        };
        let ready = this.answers.len().min(limit.saturating_sub(this.read)).min(buf.remaining());
        if ready > 0 {
            buf.put_slice(&this.answers[..ready]);
            this.answers.drain(..ready);
            this.read += ready;
            if this.is_first {
                this.seen.lock().unwrap().read = this.read;
            }
            return Poll::Ready(Ok(()));
        }
        if this.is_cut || this.full_since.is_some() || this.read >= limit {
            this.is_cut = true;
            return Poll::Ready(this.ended(()));
        }
        this.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}
