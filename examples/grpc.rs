//! tonic's channel inside the stack, and tonic's server behind admission control by its clients' deadlines.
//!
//! ```console
//! cargo run --example grpc
//! ```

#[path = "../tests/support/raw.rs"]
mod raw;
#[path = "grpc/shop.rs"]
mod shop;

use std::time::Duration;

use bytes::Bytes;
use tokio::net::{TcpListener, TcpSocket};
use tokio::time::Instant;
use tonic::body::Body;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status};
use tower::{BoxError, ServiceBuilder};
use tower_upstream::admission::AdmissionLayer;
use tower_upstream::compat::MapRequestBodyLayer;
use tower_upstream::deadline::{Deadline, DeadlineHeader, DeadlinePropagation};
use tower_upstream::error_page::{ErrorPage, ErrorPageLayer};
use tower_upstream::{ServiceBuilderExt, UpstreamLayer};

use shop::{ShopClient, ShopServer};

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Works for the requested time, but not beyond the client's deadline.
async fn order(request: Request<Bytes>) -> Result<Response<Bytes>, Status> {
    let work = std::str::from_utf8(request.get_ref()).ok().and_then(|text| text.parse().ok());
    let work = tokio::time::sleep(ms(work.ok_or_else(|| Status::invalid_argument("no number"))?));
    match request.extensions().get::<Deadline>() {
        Some(deadline) => {
            println!("  (server: {} ms remain until the deadline)", deadline.remaining(Instant::now()).as_millis());
            deadline.bound(work).await.map_err(|passed| Status::deadline_exceeded(passed.to_string()))?;
        }
        None => work.await,
    }
    Ok(Response::new(Bytes::from("tea")))
}

/// The gRPC status for a rejected call.
async fn serve(listener: TcpListener, admission: AdmissionLayer) -> Result<(), tonic::transport::Error> {
    let layers = ServiceBuilder::new().layer(ErrorPageLayer::default()).layer(admission).into_inner();
    let server = Server::builder().layer(layers).add_service(ShopServer::new(order));
    server.serve_with_incoming(TcpIncoming::from(listener)).await
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    // an address reserved for this process, without a listener yet
    let socket = TcpSocket::new_v4()?;
    socket.bind(([127, 0, 0, 1], 0).into())?;
    let address = socket.local_addr()?;

    let stack = UpstreamLayer::builder("shop")
        // the client's `grpc-timeout` bounds all attempts, and the remaining time is forwarded to the server
        .deadlines(DeadlinePropagation::new().trust_everyone().forward(DeadlineHeader::grpc()))
        // local responses are gRPC statuses; they may name the cause, because this client is internal
        .error_page(ErrorPage::new().reveal_upstream())
        .build()?;
    let handle = stack.handle();
    let channel = Endpoint::try_from(format!("http://{address}"))?.connect_lazy();
    let channel = ServiceBuilder::new().upstream(stack).layer(MapRequestBodyLayer::new(Body::new)).service(channel);
    let mut client = ShopClient::new(channel.clone());

    println!("the server is down:");
    for _ in 0..6 {
        tell(client.order(ms(1), ms(900)).await);
    }

    println!("the server starts, and an operator closes the circuit:");
    // two calls in flight, no queue
    let admission = AdmissionLayer::new(2).deadlines(DeadlinePropagation::new().trust_everyone().expose());
    tokio::spawn(serve(socket.listen(64)?, admission.clone()));
    handle.annotate("the shop was started");
    handle.reset();
    tell(client.order(ms(1), ms(900)).await);

    println!("the client waits 200 ms for a call that takes 10 s:");
    tell(client.order(ms(10_000), ms(200)).await);

    until(|| admission.in_flight() == 0).await;
    println!("a third call where two are admitted:");
    let more: Vec<_> = (0..2)
        .map(|_| {
            let mut client = ShopClient::new(channel.clone());
            tokio::spawn(async move { client.order(ms(800), ms(5_000)).await })
        })
        .collect();
    until(|| admission.in_flight() == 2).await;
    tell(client.order(ms(1), ms(5_000)).await);
    for order in more {
        tell(order.await?);
    }

    let seen = handle.snapshot(Instant::now());
    println!("{} calls, in flight {}, failed {:?}", seen.calls, seen.in_flight, seen.failures);
    Ok(())
}

async fn until(is_so: impl Fn() -> bool) {
    while !is_so() {
        tokio::time::sleep(ms(5)).await;
    }
}

fn tell(answer: Result<Bytes, Status>) {
    match answer {
        Ok(answer) => println!("  {}", String::from_utf8_lossy(&answer)),
        Err(status) => println!("  {:?}: {}", status.code(), status.message()),
    }
}
