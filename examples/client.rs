//! hyper-util's client and reqwest inside the same stack, with an upstream that fails first and then responds.
//!
//! ```console
//! cargo run --example client
//! ```

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Body;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use reqwest13 as reqwest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tower::{BoxError, Layer, Service, ServiceExt};
use tower_upstream::body::{ReplayBody, TrackedUpload};
use tower_upstream::compat::HttpCompatLayer;
use tower_upstream::retry::Attempts;
use tower_upstream::stack::ConfigErrors;
use tower_upstream::{Failure, UpstreamLayer};

/// The request body that the inner client gets: tracked, and kept for a retry.
type Sent = TrackedUpload<ReplayBody<Full<Bytes>>>;

/// The same stack around any client: its error is `Infallible`, and a failed response carries its cause.
fn around<S, R>(
    client: S,
) -> Result<
    impl Service<
        Request<Full<Bytes>>,
        Response = Response<impl Body<Data = Bytes, Error: Into<BoxError>>>,
        Error = Infallible,
    > + Clone,
    ConfigErrors,
>
where
    S: Service<Request<Sent>, Response = Response<R>, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
    R: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    let stack = UpstreamLayer::builder("shop")
        .timeouts(|timeouts| timeouts.attempt(Duration::from_millis(1_900)).total(Duration::from_secs(6)));
    Ok(stack.build()?.layer(client))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    let hyper_util: Client<HttpConnector, Sent> =
        Client::builder(TokioExecutor::new()).pool_idle_timeout(Duration::from_secs(4)).build_http();
    show("hyper-util", around(hyper_util)?).await?;

    // switch off what the stack does itself: see `compat`
    let reqwest = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .no_proxy()
        .pool_idle_timeout(Duration::from_secs(4))
        .build()?;
    show("reqwest", around(HttpCompatLayer::new(reqwest::Body::wrap).layer(reqwest))?).await
}

/// Starts an upstream and makes three calls.
async fn show<S, B>(name: &str, shop: S) -> Result<(), BoxError>
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>, Error = Infallible> + Clone,
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    println!("{name}:");
    let address = upstream().await?;
    println!("  GET, which may be sent again:");
    tell(shop.clone().oneshot(Request::get(format!("http://{address}/cart")).body(Full::default())?).await?).await?;

    let address = upstream().await?;
    println!("  POST, which may have been processed:");
    tell(shop.clone().oneshot(Request::post(format!("http://{address}/pay")).body(Full::default())?).await?).await?;

    println!("  POST to a port without a listener, so that it may be sent again:");
    let order = Request::post("http://127.0.0.1:1/orders").body(Full::from("tea"))?;
    tell(shop.oneshot(order).await?).await
}

/// Prints the failed attempts, the response, and for a failure its record.
async fn tell<B>(answer: Response<B>) -> Result<(), BoxError>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    let status = answer.status();
    if let Some(failure) = Failure::of(&answer) {
        println!("    {status}, attempts: {}, {failure}", failure.attempts());
        return Ok(());
    }
    let earlier = Attempts::of(&answer).map(Attempts::previous).unwrap_or_default();
    for (n, failure) in (1..).zip(earlier) {
        println!("    attempt {n}: {}", failure.cause());
    }
    let attempts = Attempts::of(&answer).map_or(1, Attempts::count);
    let text = answer.into_body().collect().await.map_err(Into::into)?.to_bytes();
    println!("    {status}, attempts: {attempts}, {}", String::from_utf8_lossy(&text));
    Ok(())
}

/// Closes the connection at the first request, is busy at the second, and then responds.
async fn upstream() -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        let answers = [
            "",
            "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbusy",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\ntea",
        ];
        for answer in answers {
            let (mut stream, _) = listener.accept().await?;
            let _asked = stream.read(&mut [0; 4096]).await?;
            stream.write_all(answer.as_bytes()).await?;
        }
        std::io::Result::Ok(())
    });
    Ok(address)
}
