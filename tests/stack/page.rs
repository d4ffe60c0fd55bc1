//! The page for local responses, from each place that makes one: it is the page of an `ErrorPageLayer` around the stack.

use std::io;

use axum::response::IntoResponse;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use tower::{Layer, ServiceExt, service_fn};
use tower_upstream::deadline::Deadline;
use tower_upstream::error_page::{ErrorPage, ErrorPageLayer};
use tower_upstream::limit::ConcurrencyLimitLayer;
use tower_upstream::stack::UpstreamBuilder;
use tower_upstream::{BadGatewayCause as Cause, Failure, UpstreamLayer};

/// The place that makes the response.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Limiter,
    Circuit,
    Drain,
    Deadline,
    FirstAttempt,
    LaterAttempt,
    /// In the inner service, which is a layer of this crate.
    Inside,
    Upstream,
}

const PLACES: [Place; 8] = [
    Place::Limiter,
    Place::Circuit,
    Place::Drain,
    Place::Deadline,
    Place::FirstAttempt,
    Place::LaterAttempt,
    Place::Inside,
    Place::Upstream,
];

/// A kind of client.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Client {
    Browser,
    Head,
    Api,
    Curl,
    Grpc,
}

const CLIENTS: [Client; 5] = [Client::Browser, Client::Head, Client::Api, Client::Curl, Client::Grpc];

fn request(client: Client, place: Place) -> Request<Full<Bytes>> {
    let request = Request::builder().uri("/cart").header("x-request-id", "7");
    let request = match client {
        Client::Browser => request.header("accept", "text/html,*/*;q=0.8"),
        Client::Head => request.method("HEAD").header("accept", "text/html,*/*;q=0.8"),
        Client::Api => request.header("accept", "application/json"),
        Client::Curl => request.header("accept", "*/*"),
        Client::Grpc => request.method("POST").header("content-type", "application/grpc"),
    };
    let mut request = request.body(Full::default()).unwrap();
    if place == Place::Deadline {
        request.extensions_mut().insert(Deadline::after(tokio::time::Instant::now(), std::time::Duration::ZERO));
    }
    if place == Place::LaterAttempt {
        request.extensions_mut().insert(tower_upstream::retry::RetryOverride::idempotent());
    }
    if place == Place::FirstAttempt {
        request.extensions_mut().insert(tower_upstream::retry::RetryOverride::never());
    }
    request
}

/// A response as text.
async fn shown<B: Body<Data = Bytes, Error: std::fmt::Debug>>(
    answer: Response<B>,
) -> (StatusCode, Vec<String>, String) {
    let fields = |headers: &HeaderMap| {
        let mut fields: Vec<_> = headers.iter().map(|(name, value)| format!("{name}: {value:?}")).collect();
        fields.sort();
        fields
    };
    let (head, body) = answer.into_parts();
    let body = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
    (head.status, fields(&head.headers), body)
}

/// The response of this place, from a stack with these further settings.
async fn answer(
    place: Place,
    client: Client,
    more: impl Fn(UpstreamBuilder) -> UpstreamBuilder,
    around: Option<ErrorPageLayer>,
) -> (StatusCode, Vec<String>, String) {
    let inner = service_fn(move |request: Request<_>| async move {
        match place {
            Place::Upstream => {
                Ok(Response::builder().status(503).body(axum::body::Body::from("its own words")).unwrap())
            }
            Place::Inside => Ok(Failure::new(Cause::NoRoute).into_response()),
            _ if request.headers().contains_key("x-passes") => Ok(Response::new(axum::body::Body::from("hello"))),
            _ => Err(io::Error::from(io::ErrorKind::ConnectionReset)),
        }
    });
    let layer = more(UpstreamLayer::builder("shop").limiter_of_one().proxy_status("edge")).build().unwrap();
    let service = layer.layer(inner);
    let mut held = None;
    match place {
        Place::Limiter => {
            let passes = Request::get("/").header("x-passes", "1").body(Full::default()).unwrap();
            held = Some(service.clone().oneshot(passes).await.unwrap());
        }
        Place::Circuit => layer.handle().hold_open(),
        Place::Drain => drop(layer.handle().drain(std::time::Duration::ZERO).await),
        _ => {}
    }
    let request = request(client, place);
    let seen = match around {
        Some(page) => shown(page.layer(service).oneshot(request).await.unwrap()).await,
        None => shown(service.oneshot(request).await.unwrap()).await,
    };
    drop(held);
    assert_eq!(layer.handle().in_flight(), 0, "{place:?}");
    seen
}

trait LimiterOfOne {
    fn limiter_of_one(self) -> Self;
}

impl LimiterOfOne for UpstreamBuilder {
    fn limiter_of_one(self) -> Self {
        self.limiter(move |_| ConcurrencyLimitLayer::fixed(1))
    }
}

#[tokio::test(start_paused = true)]
async fn each_of_our_answers_is_the_page_that_a_layer_around_would_write() {
    for place in PLACES {
        for client in CLIENTS {
            let mut within = answer(place, client, |stack| stack.error_page(ErrorPage::new()), None).await;
            let around = answer(place, client, |stack| stack, Some(ErrorPageLayer::new(ErrorPage::new()))).await;
            if within != around {
                // the page names the second, which may have changed in between
                within = answer(place, client, |stack| stack.error_page(ErrorPage::new()), None).await;
            }
            assert_eq!(within, around, "{place:?} {client:?}");
            let kind = within.1.iter().find(|field| field.starts_with("content-type")).cloned().unwrap_or_default();
            let expected = match client {
                _ if place == Place::Upstream => "",
                Client::Browser | Client::Head => "text/html",
                Client::Api => "application/problem+json",
                Client::Curl => "text/plain",
                Client::Grpc => "application/grpc",
            };
            assert!(kind.contains(expected), "{place:?} {client:?} {kind}");
            assert_eq!(within.0 == 200, client == Client::Grpc && place != Place::Upstream, "{place:?} {client:?}");
            let text = &within.2;
            match client {
                _ if place == Place::Upstream => assert_eq!(text, "its own words"),
                Client::Head | Client::Grpc => assert_eq!(text, "", "{place:?}"),
                _ => assert!(!text.is_empty(), "{place:?}"),
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_page_ends_with_itself_and_tells_its_length() {
    let layer = UpstreamLayer::builder("shop").error_page(ErrorPage::new()).build().unwrap();
    layer.handle().hold_open();
    let inner = service_fn(|_| async { Ok::<_, Failure>(Response::new(Full::<Bytes>::default())) });
    let mut answer = layer.layer(inner).oneshot(request(Client::Browser, Place::Circuit)).await.unwrap();
    let length = answer.body().size_hint().exact().unwrap();
    assert!(length > 0 && !answer.body().is_end_stream());
    let frame = answer.body_mut().frame().await.unwrap().unwrap();
    assert_eq!(frame.data_ref().unwrap().len() as u64, length);
    assert!(answer.body().is_end_stream());
    assert!(answer.body_mut().frame().await.is_none());
}
