//! One side of an HTTP/1.1 connection, byte by byte.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::soon;

/// A connection that reads messages and writes bytes.
pub(crate) struct Wire {
    stream: BufReader<TcpStream>,
}

/// A message as it was received.
#[derive(Debug, Default)]
pub(crate) struct Message {
    /// Request line or status line.
    pub(crate) first: String,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, String)>,
    /// The message is complete by its framing.
    pub(crate) whole: bool,
}

impl Message {
    /// The status, 0 where the connection ended without one.
    pub(crate) fn status(&self) -> u16 {
        self.first.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default()
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|field| field.0 == name).map(|field| field.1.as_str())
    }

    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        self.fields.iter().filter(|field| field.0 == name).map(|field| field.1.as_str()).collect()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The `error` of the last member of `Proxy-Status`.
    pub(crate) fn error(&self) -> Option<&str> {
        self.all("proxy-status").last()?.split_once("error=").map(|(_, rest)| rest.split(';').next().unwrap_or(rest))
    }
}

impl Wire {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { stream: BufReader::new(stream) }
    }

    pub(crate) async fn connect(to: SocketAddr) -> Self {
        let stream = soon(TcpStream::connect(to)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self::new(stream)
    }

    pub(crate) async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        soon(self.stream.write_all(bytes.as_ref())).await.unwrap();
    }

    /// Writes as far as the other side takes it.
    pub(crate) async fn try_write(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        soon(self.stream.write_all(bytes.as_ref())).await
    }

    pub(crate) async fn finish_writing(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    /// A 200 with this body.
    pub(crate) async fn reply(&mut self, body: &str) {
        self.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())).await;
    }

    /// Sends a request and reads its response.
    pub(crate) async fn ask(&mut self, request: impl AsRef<[u8]>) -> Message {
        self.write(request).await;
        self.answer().await
    }

    pub(crate) async fn answer(&mut self) -> Message {
        soon(self.read_message(Framing::Answer)).await
    }

    /// Reads a response to HEAD, which has no body.
    pub(crate) async fn head(&mut self) -> Message {
        soon(self.read_message(Framing::HeadAlone)).await
    }

    /// Reads the next request; `None` once the other side has closed.
    pub(crate) async fn request(&mut self) -> Option<Message> {
        let message = soon(self.read_message(Framing::Request)).await;
        message.whole.then_some(message)
    }

    /// Reads the next request without its body; waits without a limit.
    pub(crate) async fn request_head(&mut self) -> Option<Message> {
        let message = self.read_message(Framing::HeadAlone).await;
        message.whole.then_some(message)
    }

    /// Reads the body of a request whose head was read alone; an error if it is cut.
    pub(crate) async fn request_body(&mut self, message: &mut Message) -> io::Result<()> {
        message.whole = false;
        soon(self.read_body(message, Framing::Request)).await?;
        if message.whole { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// Reads at most this number of bytes; fewer only at the end.
    pub(crate) async fn bytes(&mut self, most: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let _ = soon((&mut self.stream).take(most as u64).read_to_end(&mut bytes)).await;
        bytes
    }

    /// Whether the other side closes within this time; what it still sends is read and dropped.
    pub(crate) async fn ends_within(&mut self, limit: Duration) -> bool {
        let mut rest = vec![0; 64 << 10];
        let drained = async { while self.stream.read(&mut rest).await.is_ok_and(|read| read > 0) {} };
        tokio::time::timeout(limit, drained).await.is_ok()
    }

    /// Number of bytes that were read from the socket and not consumed yet.
    pub(crate) fn buffered(&self) -> usize {
        self.stream.buffer().len()
    }

    pub(crate) fn into_inner(self) -> TcpStream {
        self.stream.into_inner()
    }

    async fn read_message(&mut self, framing: Framing) -> Message {
        let mut message = Message::default();
        // these tests treat an error as an end
        let _ = self.read_into(&mut message, framing).await;
        message
    }

    async fn read_into(&mut self, message: &mut Message, framing: Framing) -> io::Result<()> {
        message.first = self.line().await?;
        message.fields = self.fields().await?;
        self.read_body(message, framing).await
    }

    async fn read_body(&mut self, message: &mut Message, framing: Framing) -> io::Result<()> {
        let status = message.status();
        let chunked = message.get("transfer-encoding").is_some_and(|coding| coding.ends_with("chunked"));
        let length = message.get("content-length").and_then(|length| length.parse::<u64>().ok());
        if framing == Framing::HeadAlone || matches!(status, 100..=199 | 204 | 304) {
        } else if chunked {
            self.chunks(message).await?;
        } else if let Some(length) = length {
            let read = (&mut self.stream).take(length).read_to_end(&mut message.body).await?;
            if (read as u64) < length {
                return Ok(());
            }
        } else if framing == Framing::Answer {
            self.stream.read_to_end(&mut message.body).await?;
        }
        message.whole = true;
        Ok(())
    }

    async fn chunks(&mut self, message: &mut Message) -> io::Result<()> {
        loop {
            let line = self.line().await?;
            let size = u64::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
            if size == 0 {
                message.trailers = self.fields().await?;
                return Ok(());
            }
            let read = (&mut self.stream).take(size).read_to_end(&mut message.body).await?;
            if (read as u64) < size {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.line().await?;
        }
    }

    async fn fields(&mut self) -> io::Result<Vec<(String, String)>> {
        let mut fields = Vec::new();
        loop {
            let line = self.line().await?;
            let Some((name, value)) = line.split_once(':') else { return Ok(fields) };
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    async fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line).await?;
        if line.pop() != Some(b'\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Ok(String::from_utf8_lossy(&line).into_owned())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Framing {
    Request,
    Answer,
    HeadAlone,
}

/// Sends a request on a connection of its own; returns the response.
pub(crate) async fn ask(to: SocketAddr, request: impl AsRef<[u8]>) -> Message {
    Wire::connect(to).await.ask(request).await
}
