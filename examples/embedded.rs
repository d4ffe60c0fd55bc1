//! One layer alone, around a function: a circuit breaker.
//!
//! ```console
//! cargo run --example embedded
//! ```

use std::io::{Error, ErrorKind};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_upstream::Failure;
use tower_upstream::breaker::CircuitBreakerLayer;

/// A client; its upstream is down.
async fn call(_: Request<()>) -> Result<Response<Full<Bytes>>, Error> {
    Err(ErrorKind::ConnectionRefused.into())
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let breaker = CircuitBreakerLayer::new("payments");
    let payments = ServiceBuilder::new().layer(&breaker).service(service_fn(call));
    for n in 1..=7 {
        match payments.clone().oneshot(Request::new(())).await {
            // a single layer does not change the error
            Err(error) => println!("{n}: the client's own error: {error}"),
            Ok(answer) => match Failure::of(&answer) {
                Some(failure) => println!("{n}: {}, the client was not called: {failure}", answer.status()),
                None => println!("{n}: {}", answer.status()),
            },
        }
    }
    let circuit = breaker.handle().snapshot(tokio::time::Instant::now());
    println!("the circuit is {:?} after {} failures, {} refused", circuit.state, circuit.failures, circuit.refused);
}
