//! The clients that most rows use, and what they got.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body::Body;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connect, Connection, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tower::{Layer, Service, ServiceExt};
use tower_upstream::classify::ClassifiedBody;
use tower_upstream::client::Connector;
use tower_upstream::{BadGatewayCause, ClassifyLayer, Failure};

use super::table::Got;

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub type Upload = UnsyncBoxBody<Bytes, BoxError>;
pub type HttpClient = Client<Connector<HttpConnector>, Upload>;

/// hyper-util's client over this crate's stamp.
pub fn client() -> HttpClient {
    stamped(HttpConnector::new())
}

/// hyper-util's client over any connector, stamped.
pub fn stamped<C>(connector: C) -> Client<Connector<C>, Upload>
where
    C: Service<Uri> + Clone,
    Connector<C>: Connect + Clone,
{
    Client::builder(TokioExecutor::new()).timer(TokioTimer::new()).build(Connector::new(connector).assume_tls())
}

pub fn url(address: SocketAddr) -> String {
    format!("http://{address}/")
}

pub fn nothing() -> Upload {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

pub fn get(target: impl AsRef<str>) -> Request<Upload> {
    Request::get(target.as_ref()).body(nothing()).expect("a good target")
}

/// Sends a request through [`ClassifyLayer`] and reads the answer to its end.
pub async fn ask<S, Q, B>(service: S, request: Request<Q>) -> Got
where
    S: Service<Request<Q>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    let Ok(answer) = ClassifyLayer::new().layer(service).oneshot(request).await;
    read(answer).await
}

/// GETs `/` of an upstream.
pub async fn fetch(address: SocketAddr) -> Got {
    ask(client(), get(url(address))).await
}

/// GETs the same twice on one connection, and gives the second result.
pub async fn fetch_twice(client: HttpClient, address: SocketAddr) -> Got {
    let first = ask(client.clone(), get(url(address))).await;
    assert!(matches!(first, Got::Answer(_)), "the connection's first answer: {first:?}");
    // the pool takes the connection back in a task of its own
    tokio::time::sleep(Duration::from_millis(30)).await;
    ask(client, get(url(address))).await
}

/// GETs by a connector twice: bare, where only the chain tells, and stamped.
pub async fn dial<C>(connector: C, target: String) -> [Got; 2]
where
    C: Connect + Service<Uri> + Clone + Send + Sync + 'static,
    C: Service<Uri, Response: Connection, Error: Into<BoxError>, Future: Send>,
    Connector<C>: Connect + Clone,
{
    let bare: Client<_, Upload> = Client::builder(TokioExecutor::new()).build(connector.clone());
    [ask(bare, get(&target)).await, ask(stamped(connector), get(&target)).await]
}

async fn read<B>(answer: Response<ClassifiedBody<B>>) -> Got
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    let cause = BadGatewayCause::of(&answer);
    let (head, body) = answer.into_parts();
    let record = head.extensions.get::<Failure>().filter(|failure| failure.cause() != BadGatewayCause::UpstreamStatus);
    if let Some(failure) = record.cloned() {
        assert_eq!(cause, Some(failure.cause()));
        assert_eq!(head.status, failure.status());
        return Got::Failed(failure, None);
    }
    match body.collect().await {
        Ok(_) => Got::Answer(head.status),
        Err(failure) => Got::Failed(failure, Some(head.status)),
    }
}

/// An error that came instead of a head, with nothing known besides.
pub fn failed(error: impl Into<BoxError>) -> Got {
    Got::Failed(Failure::from_error(error), None)
}

/// An error of a body.
pub fn broken(error: impl Into<BoxError>, status: http::StatusCode) -> Got {
    Got::Failed(Failure::from_body_error(error), Some(status))
}
