//! Ten upstreams that misbehave, each behind a gateway of its own, selected by the path.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::Service;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use tower_upstream::body::ResponseBody;
use tower_upstream::client::ProxyBody;
use tower_upstream::stack::{RequestBody, Upstream, UpstreamBody};

use super::{Gateway, Proxy, Settings};

type Body = UpstreamBody<ResponseBody<ProxyBody<RequestBody<Incoming>>>>;

/// How an upstream treats a connection.
#[derive(Clone, Copy)]
enum Behavior {
    Reply(&'static [u8]),
    /// Responds to the first request of a connection and drops the second.
    Stale,
    Hang,
    Reset,
}

/// Path, description, and behavior; `None`: nothing listens.
const UPSTREAMS: [(&str, &str, Option<Behavior>); 10] = [
    ("refused", "nothing listens there", None),
    ("empty", "reads the request, closes without a byte", Some(Behavior::Reply(b""))),
    ("reset", "reads the request, resets", Some(Behavior::Reset)),
    ("hang", "reads the request, never responds", Some(Behavior::Hang)),
    ("half-head", "ends in the middle of the head", Some(Behavior::Reply(b"HTTP/1.1 200 OK\r\nContent-Ty"))),
    (
        "half-body",
        "ends in the middle of the body",
        Some(Behavior::Reply(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")),
    ),
    ("garbage", "speaks another protocol", Some(Behavior::Reply(b"SSH-2.0-OpenSSH_9.2\r\n"))),
    (
        "smuggle",
        "Content-Length beside Transfer-Encoding",
        Some(Behavior::Reply(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")),
    ),
    (
        "busy",
        "responds with 503 itself",
        Some(Behavior::Reply(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 5\r\n\r\nbusy\n")),
    ),
    ("stale", "closes a kept-alive connection on the second request", Some(Behavior::Stale)),
];

pub(crate) struct Demo {
    gateways: HashMap<&'static str, Gateway>,
    listing: Bytes,
}

impl Demo {
    pub(crate) async fn start(settings: &Settings) -> Result<Self, String> {
        let settings = Settings { breaker: 0, roots: None, ..settings.clone() };
        let mut gateways = HashMap::new();
        for (path, _, behavior) in UPSTREAMS {
            let listener = TcpListener::bind("127.0.0.1:0").await.map_err(|error| error.to_string())?;
            let address = listener.local_addr().map_err(|error| error.to_string())?;
            let target = address.to_string().parse().map_err(|error| format!("{error}"))?;
            gateways.insert(path, Gateway::new(&settings, target)?);
            if let Some(behavior) = behavior {
                tokio::spawn(upstream(listener, behavior));
            }
        }
        Ok(Self { gateways, listing: listing(settings.listen) })
    }

    pub(crate) fn introduce(&self, listen: SocketAddr) {
        println!("No UPSTREAM is set: these ten misbehave. Try");
        print!("{}", String::from_utf8_lossy(&self.listing));
        println!("and watch this terminal. With an upstream: UPSTREAM=host:port LISTEN={listen}");
    }

    pub(crate) fn for_client(&self, peer: SocketAddr) -> Router {
        let services = self.gateways.iter().map(|(path, gateway)| (*path, gateway.for_client(peer))).collect();
        Router { services, listing: self.listing.clone() }
    }
}

fn listing(listen: SocketAddr) -> Bytes {
    let line = |(path, what, _): &(&str, &str, _)| {
        let command = format!("curl -i http://{listen}/{path}");
        format!("  {command:<44} # {what}\n")
    };
    UPSTREAMS.iter().map(line).collect::<String>().into()
}

/// Selects the gateway by the first segment of the path.
pub(crate) struct Router {
    services: HashMap<&'static str, Upstream<Proxy>>,
    listing: Bytes,
}

impl Service<Request<Incoming>> for Router {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let first = request.uri().path().split('/').nth(1).unwrap_or_default();
        match self.services.get(first) {
            Some(service) => Box::pin(service.call(request)),
            None => Box::pin(std::future::ready(Ok(Response::new(Body::from(self.listing.clone()))))),
        }
    }
}

async fn upstream(listener: TcpListener, behavior: Behavior) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            // an error is the gateway closing the connection
            let _ = respond(stream, behavior).await;
        });
    }
}

async fn respond(mut stream: TcpStream, behavior: Behavior) -> std::io::Result<()> {
    read_head(&mut stream).await?;
    match behavior {
        Behavior::Reply(reply) => stream.write_all(reply).await,
        Behavior::Hang => {
            let mut rest = [0; 64];
            while stream.read(&mut rest).await? > 0 {}
            Ok(())
        }
        // closing with a linger time of zero sends RST
        Behavior::Reset => stream.set_zero_linger(),
        Behavior::Stale => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 27\r\n\r\nok, request this once more\n").await?;
            read_head(&mut stream).await
        }
    }
}

async fn read_head(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < 16 << 10 {
        head.push(stream.read_u8().await?);
    }
    Ok(())
}
