//! Upstreams that follow a script, byte for byte, each connection in a thread of its own.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

/// Long enough for the other side to have seen what was written.
const A_MOMENT: Duration = Duration::from_millis(30);

/// The upstream's end of one connection.
pub struct Peer {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Peer {
    fn new(stream: TcpStream) -> Self {
        // no thread outlives its test for long
        stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a socket takes a limit");
        stream.set_nodelay(true).expect("a socket takes an option");
        Self { stream, unread: Vec::new() }
    }

    /// The next `length` bytes, fewer where the client ends.
    pub fn read(&mut self, length: usize) -> Vec<u8> {
        while self.unread.len() < length && self.more() {}
        self.unread.drain(..length.min(self.unread.len())).collect()
    }

    /// Reads one request without a body.
    pub fn request(&mut self) -> &mut Self {
        loop {
            if let Some(end) = self.unread.windows(4).position(|four| four == b"\r\n\r\n") {
                self.unread.drain(..end + 4);
                return self;
            }
            if !self.more() {
                return self;
            }
        }
    }

    fn more(&mut self) -> bool {
        let mut bytes = [0; 4096];
        let read = self.stream.read(&mut bytes).unwrap_or(0);
        self.unread.extend_from_slice(&bytes[..read]);
        read > 0
    }

    /// Sends, as far as the client takes it.
    pub fn say(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        let _ = self.stream.write_all(bytes.as_ref());
        self
    }

    /// Lets the client see what was said, as a segment of its own.
    pub fn pause(&mut self) -> &mut Self {
        thread::park_timeout(A_MOMENT);
        self
    }

    /// Ends our side.
    pub fn end(&mut self) -> &mut Self {
        let _ = self.stream.shutdown(Shutdown::Write);
        self
    }

    /// Ends our side, and waits until the client has ended its own: a close before would be a reset.
    pub fn fin(&mut self) {
        self.end().silence();
    }

    /// Says no more, until the client ends the connection.
    pub fn silence(&mut self) {
        while self.more() {
            self.unread.clear();
        }
    }

    /// Makes the close at the script's end a reset.
    pub fn rst(&mut self) {
        let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
    }

    /// The connection itself, for a protocol on top of it.
    pub fn into_stream(self) -> TcpStream {
        self.stream
    }
}

/// Starts an upstream; the connection is closed where the script ends.
pub fn upstream(script: impl Fn(&mut Peer) + Send + Sync + 'static) -> SocketAddr {
    accept_into(move |mut peer| script(&mut peer))
}

/// As [`upstream`], with the connection handed over.
pub fn accept_into(script: impl Fn(Peer) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let address = listener.local_addr().expect("a bound socket has an address");
    let script = Arc::new(script);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let script = script.clone();
            thread::spawn(move || script(Peer::new(stream)));
        }
    });
    address
}

/// A port that nobody listens on, and nobody else can take.
pub fn closed_port() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("loopback has a free port");
    let address = socket.local_addr().ok().and_then(|address| address.as_socket()).expect("an address");
    (socket, address)
}

/// A listener whose accept queue is full, so that SYNs go unanswered.
pub struct FullQueue {
    pub address: SocketAddr,
    _open: (Socket, Vec<TcpStream>),
}

impl FullQueue {
    pub fn new() -> Self {
        let (listener, address) = closed_port();
        listener.listen(0).expect("a bound socket can listen");
        let mut waiting = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(50)) {
            waiting.push(stream);
        }
        Self { address, _open: (listener, waiting) }
    }
}
