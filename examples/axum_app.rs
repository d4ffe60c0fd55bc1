//! An axum app in front of two upstreams: one that is flaky, and one that is down.
//!
//! ```console
//! cargo run --example axum_app         # LISTEN=127.0.0.1:3000 for an address of your choice
//! ```
//!
//! It starts the flaky one itself, and prints a curl line for each case; ctrl-c ends it.

use std::convert::Infallible;
use std::future::ready;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Path, State};
use axum::{Router, routing::get};
use http::{Request, Response, StatusCode};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};
use tower::util::BoxCloneSyncService;
use tower::{BoxError, ServiceBuilder, ServiceExt};
use tower_upstream::client::ReverseProxy;
use tower_upstream::deadline::{Deadline, DeadlineHeader, DeadlinePropagation};
use tower_upstream::error_page::{ErrorPage, ErrorPageLayer};
use tower_upstream::forward::ForwardingRules;
use tower_upstream::retry::Attempts;
use tower_upstream::stack::UpstreamHandle;
use tower_upstream::timeout::{TimeoutLayer, Timeouts};
use tower_upstream::{Failure, ServiceBuilderExt, UpstreamLayer};

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A proxy to an upstream inside the stack, for handlers and as a service of the app; and the stack's handle.
type Upstream = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;

fn upstream(name: &str, address: SocketAddr) -> Result<(Upstream, UpstreamHandle), BoxError> {
    let proxy = ReverseProxy::builder(address.to_string().parse()?, ForwardingRules::new("axum-app")?).build();
    let stack = UpstreamLayer::builder(name)
        .timeouts(|timeouts| timeouts.response_head(ms(700)).attempt(ms(1_200)).total(ms(4_000)))
        // the remaining time is forwarded to the upstream
        .deadlines(DeadlinePropagation::new().forward(DeadlineHeader::request_timeout()))
        .proxy_status("axum-app")
        .error_page(page())
        // the proxy tracks its uploads itself
        .without_upload_tracking()
        .build()?;
    let handle = stack.handle();
    let service = ServiceBuilder::new().map_response(|answer: Response<_>| answer.map(Body::new)).upstream(stack);
    Ok((BoxCloneSyncService::new(service.service(proxy)), handle))
}

fn page() -> ErrorPage {
    ErrorPage::new().contact("Write to help@shop.example.")
}

/// Calls the upstream within the client's deadline; a failure of the call is the response.
async fn price(State(shop): State<Upstream>, deadline: Deadline, Path(item): Path<String>) -> Result<String, Failure> {
    let request = Request::get(format!("/prices/{item}")).header("host", "shop.example").extension(deadline);
    let request = request.body(Body::empty()).map_err(Failure::from_error)?;
    let Ok(answer) = shop.oneshot(request).await;
    if let Some(failure) = Failure::of(&answer) {
        return Err(failure.clone());
    }
    let attempts = Attempts::of(&answer).map_or(1, Attempts::count);
    let price = to_bytes(answer.into_body(), 1 << 10).await.map_err(Failure::from_error)?;
    Ok(format!("{item}: {}, attempts: {attempts}\n", String::from_utf8_lossy(&price)))
}

/// Stops at the client's deadline.
async fn report(deadline: Deadline) -> Result<&'static str, Failure> {
    deadline.bound(sleep(ms(300))).await?;
    Ok("all is well\n")
}

fn status(handle: &UpstreamHandle) -> String {
    let seen = handle.snapshot(Instant::now());
    format!("{}: {} calls, {} in flight, failed {:?}\n", seen.name, seen.calls, seen.in_flight, seen.failures)
}

/// An upstream that is busy for every other price, always busy for gold, and slow at `/slow`.
async fn flaky() -> std::io::Result<SocketAddr> {
    static ASKED: AtomicU32 = AtomicU32::new(0);
    let price = |Path(item): Path<String>| async move {
        let busy = item == "gold" || ASKED.fetch_add(1, Ordering::Relaxed) % 2 == 0;
        if busy { (StatusCode::SERVICE_UNAVAILABLE, "busy") } else { (StatusCode::OK, "4.20") }
    };
    let app = Router::new()
        .route("/prices/{item}", get(price))
        .route("/slow", get(|| sleep(ms(60_000))))
        .fallback(|| async { "the upstream's own words\n" });
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(address)
}

async fn run() -> Result<(), BoxError> {
    if let Some(argument) = std::env::args().nth(1) {
        return Err(format!("{argument}: there are no arguments, LISTEN=host:port says where to listen").into());
    }
    let listen = std::env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:0".to_owned());
    let listener = TcpListener::bind(&listen).await.map_err(|error| format!("LISTEN={listen}: {error}"))?;
    let (shop, handle) = upstream("shop", flaky().await?)?;
    let (archive, _) = upstream("archive", SocketAddr::from(([127, 0, 0, 1], 1)))?;

    // only our own gateways reach this app, so that every client's deadline is trusted; the default is 2 s
    let limits = TimeoutLayer::new(Timeouts::new().total(ms(2_000))).without_upload_tracking();
    let limits = limits.deadlines(DeadlinePropagation::new().trust_everyone().expose());
    let shown = handle.clone();
    let app = Router::new()
        .route("/price/{item}", get(price))
        .route("/report", get(report))
        .layer(ServiceBuilder::new().layer(ErrorPageLayer::new(page())).layer(limits))
        .route("/status", get(move || ready(status(&shown))))
        .nest_service("/archive", archive)
        .fallback_service(shop.clone())
        .with_state(shop);

    introduce(listener.local_addr()?);
    let stopped = async move {
        let _ = tokio::signal::ctrl_c().await;
        println!("drained: {:?}", handle.drain(ms(5_000)).await);
    };
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    Ok(axum::serve(listener, app).with_graceful_shutdown(stopped).await?)
}

fn introduce(address: SocketAddr) {
    println!("listening at http://{address}\n");
    for (asked, comment) in [
        ("/price/tea", "a handler calls the upstream; the stack retries if it is busy"),
        ("/price/gold", "the same, but the upstream stays busy: the failure is the response"),
        ("/report", "a handler that works for 300 ms"),
        ("/report -H 'x-request-timeout-ms: 100'", "504 before the client's deadline, and the work stops"),
        ("/anything", "a path without a route is forwarded to the upstream"),
        ("/slow", "504: the upstream does not respond in time"),
        ("/archive/1 -H 'accept: text/html'", "502, and a page for users: the upstream is down"),
        ("/status", "the statistics of these calls"),
    ] {
        println!("curl -i http://{address}{asked:<40} # {comment}");
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("axum_app: {error}");
            ExitCode::from(2)
        }
    }
}
