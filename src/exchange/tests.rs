//! The events that the components of a call get, and their order.
#![allow(dead_code, unreachable_pub)] // the middleware macros declare public accessors that these tests do not call

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use tower::{Service, ServiceExt, service_fn};

use super::*;
use crate::cause::{BadGatewayCause, Failure};
use crate::timeout::{EnforcedTimeouts, TimeoutLayer, Timeouts};

/// The events of a component, in order.
type Events = Arc<Mutex<Vec<String>>>;

/// Records its events; rejects every call if set.
pub(crate) struct Recording(&'static str, Events, Option<BadGatewayCause>);

impl Recording {
    fn record(&self, what: &str) {
        self.1.lock().unwrap().push(format!("{} {what}", self.0));
    }
}

impl Component for Recording {
    type Permit = &'static str;

    fn admit(&self, _: &CallContext) -> Result<&'static str, Rejection> {
        match self.2 {
            Some(cause) => Err(Rejection::new(Failure::new(cause)).retry_after(Duration::from_millis(1500))),
            None => Ok(self.0),
        }
    }

    fn on_response(&self, permit: &mut &'static str, _: &CallContext, outcome: &Outcome) {
        assert_eq!(*permit, self.0);
        self.record(&format!("response {}", outcome.status().unwrap().as_u16()));
    }

    fn complete(&self, permit: &'static str, call: &CallContext, outcome: &Outcome) {
        assert_eq!(permit, self.0);
        assert!(outcome.now() >= call.now);
        self.record(&format!("completed {:?} {:?}", outcome.status().map(|status| status.as_u16()), outcome.cause()));
    }

    fn cancel(&self, permit: &'static str, _: &CallContext, reason: CancelReason) {
        assert_eq!(permit, self.0);
        self.record(&format!("cancelled {reason:?}"));
    }
}

middleware_spec! {
    WitnessSpec, per_call = Recording, per_attempt = Recording, timeouts = EnforcedTimeouts, requests = SendOnce, errors = PassErrors
}

passing_middleware!(RecordedService, WitnessFuture, WitnessBody, WitnessSpec);

fn no_timeouts() -> EnforcedTimeouts {
    TimeoutLayer::new(Timeouts::new().response_head(None).total(None).body_idle(None).client_idle(None))
        .limits()
        .clone()
}

fn service<S>(inner: S, timeouts: EnforcedTimeouts) -> (RecordedService<S>, Events) {
    let log = Events::default();
    let (outer, inner_one) = (Recording("outer", log.clone(), None), Recording("inner", log.clone(), None));
    (RecordedService::new(inner, Arc::new(Config::new(outer, inner_one, timeouts, SendOnce, PassErrors))), log)
}

fn events(log: &Events) -> Vec<String> {
    std::mem::take(&mut log.lock().unwrap())
}

fn responding<B: Clone>(
    body: B,
) -> impl Service<Request<()>, Response = Response<B>, Error = Infallible, Future: Future> + Clone {
    service_fn(move |_: Request<()>| std::future::ready(Ok(Response::new(body.clone()))))
}

#[tokio::test]
async fn a_response_without_a_body_completes_at_its_head_inner_components_first() {
    let (service, log) = service(responding(Empty::<Bytes>::new()), no_timeouts());
    let response = service.oneshot(Request::new(())).await.unwrap();
    let completed = [
        "inner response 200",
        "outer response 200",
        "inner completed Some(200) None",
        "outer completed Some(200) None",
    ];
    assert_eq!(events(&log), completed);
    drop(response);
    assert_eq!(events(&log), [""; 0], "once only");
}

#[tokio::test]
async fn a_response_with_a_body_completes_at_its_last_frame() {
    let (service, log) = service(responding(Full::<Bytes>::from("body")), no_timeouts());
    let mut response = service.oneshot(Request::new(())).await.unwrap();
    assert_eq!(events(&log), ["inner response 200", "outer response 200"]);
    assert!(response.frame().await.unwrap().is_ok());
    assert_eq!(events(&log), ["inner completed Some(200) None", "outer completed Some(200) None"]);
    drop(response);
    assert_eq!(events(&log), [""; 0]);
}

#[tokio::test]
async fn a_call_whose_body_is_dropped_is_cancelled() {
    let (service, log) = service(responding(Full::<Bytes>::from("body")), no_timeouts());
    let response = service.oneshot(Request::new(())).await.unwrap();
    events(&log);
    drop(response);
    assert_eq!(events(&log), ["inner cancelled Dropped", "outer cancelled Dropped"]);
}

#[tokio::test]
async fn an_error_completes_the_call_and_is_passed_on() {
    let fails = service_fn(|_: Request<()>| async { Err::<Response<Empty<Bytes>>, _>("its own") });
    let (service, log) = service(fails, no_timeouts());
    assert_eq!(service.oneshot(Request::new(())).await.unwrap_err(), "its own");
    assert_eq!(events(&log), ["inner completed None None", "outer completed None None"]);
}

#[tokio::test]
async fn the_outcome_of_an_error_that_is_a_failure_has_its_cause() {
    let fails = service_fn(|_: Request<()>| async {
        Err::<Response<Empty<Bytes>>, _>(Failure::new(BadGatewayCause::ConnectionRefused))
    });
    let (service, log) = service(fails, no_timeouts());
    assert_eq!(service.oneshot(Request::new(())).await.unwrap_err().cause(), BadGatewayCause::ConnectionRefused);
    let completed = "completed Some(502) Some(connection_refused)";
    assert_eq!(events(&log), [format!("inner {completed}"), format!("outer {completed}")]);
}

#[tokio::test]
async fn a_rejected_attempt_completes_its_call_with_the_rejection() {
    let log = Events::default();
    let inner = Recording("inner", log.clone(), Some(BadGatewayCause::GatewayOverload));
    let outer = Recording("outer", log.clone(), None);
    let never =
        service_fn(|_: Request<()>| async { panic!("it was rejected") as Result<Response<Empty<Bytes>>, Infallible> });
    let config = Config::new(outer, inner, no_timeouts(), SendOnce, PassErrors);
    let service = RecordedService::new(never, Arc::new(config));
    let response = service.oneshot(Request::new(())).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()["retry-after"], "2", "whole seconds, rounded up");
    assert_eq!(BadGatewayCause::of(&response), Some(BadGatewayCause::GatewayOverload));
    assert_eq!(events(&log), ["outer response 503", "outer completed Some(503) Some(gateway_overload)"]);
}

#[tokio::test(start_paused = true)]
async fn a_component_gets_the_reason_for_which_its_call_was_dropped() {
    let stuck = service_fn(|_: Request<()>| std::future::pending::<Result<Response<Empty<Bytes>>, Infallible>>());
    let limits = TimeoutLayer::new(Timeouts::new().response_head(Duration::from_secs(2)));

    // its own timeout is an outcome
    let (own, log) = service(stuck, limits.limits().clone());
    let response = own.oneshot(Request::new(())).await.unwrap();
    assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
    let outcome = "completed Some(504) Some(first_byte_timeout)";
    let in_order = [format!("inner {outcome}"), "outer response 504".to_owned(), format!("outer {outcome}")];
    assert_eq!(events(&log), in_order);

    // the timeout of an outer layer
    let (inside, log) = service(stuck, no_timeouts());
    let around = tower_layer::Layer::layer(&limits.without_upload_tracking(), inside);
    assert_eq!(around.oneshot(Request::new(())).await.unwrap().status(), StatusCode::GATEWAY_TIMEOUT);
    let why = "cancelled TimedOut(first_byte_timeout)";
    assert_eq!(events(&log), [format!("inner {why}"), format!("outer {why}")]);

    // the client has disconnected
    let (left, log) = service(stuck, no_timeouts());
    {
        let mut call = pin!(left.oneshot(Request::new(())));
        let polled = std::future::poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx))).await;
        assert!(polled.is_pending());
    }
    assert_eq!(events(&log), ["inner cancelled Dropped", "outer cancelled Dropped"]);
}

#[tokio::test]
async fn a_service_that_panics_when_called_leaves_no_permit() {
    let panics = service_fn(|_: Request<()>| -> std::future::Ready<Result<Response<Empty<Bytes>>, Infallible>> {
        panic!("in the call itself")
    });
    let (mut service, log) = service(panics, no_timeouts());
    let call = std::panic::AssertUnwindSafe(|| drop(service.call(Request::new(()))));
    assert!(std::panic::catch_unwind(call).is_err());
    assert_eq!(events(&log), ["inner cancelled Dropped", "outer cancelled Dropped"]);
}

#[tokio::test]
async fn the_outcome_has_the_cause_that_a_users_service_attached() {
    let names_it = service_fn(|_: Request<()>| async {
        let mut response = Response::new(Empty::<Bytes>::new());
        *response.status_mut() = StatusCode::BAD_GATEWAY;
        response.extensions_mut().insert(BadGatewayCause::NoRoute);
        Ok::<_, Infallible>(response)
    });
    let (service, log) = service(names_it, no_timeouts());
    service.oneshot(Request::new(())).await.unwrap();
    assert_eq!(events(&log).last().unwrap(), "outer completed Some(502) Some(no_route)");
}
