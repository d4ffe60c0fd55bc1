//! An app that immediately rejects requests that it cannot serve before their deadline.
//!
//! ```sh
//! cargo run --example admission &      # LISTEN=127.0.0.1:3000 is the default
//! # within its deadline, too late on arrival, and without one
//! for left in 1000 0 ''; do curl -si -H "x-request-timeout-ms: $left" http://127.0.0.1:3000/ | head -1; done
//! # overload: 503 and 504 for some requests, and a timely response to every admitted one
//! seq 200 | xargs -P 100 -I{} curl -so /dev/null -w '%{http_code}\n' -H 'x-request-timeout-ms: 500' \
//!     http://127.0.0.1:3000/ | sort | uniq -c
//! curl -s http://127.0.0.1:3000/status
//! ```

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tower_upstream::Failure;
use tower_upstream::admission::AdmissionLayer;
use tower_upstream::deadline::{Deadline, DeadlinePropagation};

const CONNECTIONS: usize = 4;

/// Uses one of four database connections for 50 ms.
async fn query(database: &Semaphore) {
    let _connection = database.acquire().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
}

async fn report(State(database): State<Arc<Semaphore>>, deadline: Option<Deadline>) -> Result<&'static str, Failure> {
    match deadline {
        Some(deadline) => deadline.bound(query(&database)).await?,
        None => query(&database).await,
    }
    Ok("all is well\n")
}

async fn run() -> Result<(), String> {
    let listen = std::env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let complaint = |error: std::io::Error| format!("LISTEN={listen}: {error}");
    let listener = TcpListener::bind(&listen).await.map_err(complaint)?;
    // only this machine can connect; otherwise decide with `DeadlinePropagation::trust`
    let deadlines = DeadlinePropagation::new().trust_everyone().expose();
    let admission = AdmissionLayer::new(80).concurrency(CONNECTIONS).deadlines(deadlines);
    let status = {
        let admission = admission.clone();
        move || async move {
            let (in_flight, service) = (admission.in_flight(), admission.service_time());
            format!("in flight {in_flight}, service time {service:?}, {:?}\n", admission.rejections())
        }
    };
    let app = Router::new()
        .route("/", get(report))
        .layer(admission)
        .route("/status", get(status))
        .with_state(Arc::new(Semaphore::new(CONNECTIONS)));
    println!("listening at http://{}", listener.local_addr().map_err(complaint)?);
    axum::serve(listener, app).await.map_err(complaint)
}

#[tokio::main]
async fn main() -> ExitCode {
    if let Err(complaint) = run().await {
        eprintln!("admission: {complaint}");
        return ExitCode::from(2);
    }
    ExitCode::SUCCESS
}
