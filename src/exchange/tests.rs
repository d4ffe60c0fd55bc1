//! What the driver tells the components of a call, and when.
#![allow(dead_code, unreachable_pub)] // of what the macros declare

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

/// What a component was told, in order.
type Log = Arc<Mutex<Vec<String>>>;

/// Writes down what it is told; admits no call if it is to reject.
pub(crate) struct Witness(&'static str, Log, Option<BadGatewayCause>);

impl Witness {
    fn say(&self, what: &str) {
        self.1.lock().unwrap().push(format!("{} {what}", self.0));
    }
}

impl Component for Witness {
    type Permit = &'static str;

    fn admit(&self, _: &CallContext) -> Result<&'static str, Rejection> {
        match self.2 {
            Some(cause) => Err(Rejection::new(Failure::new(cause)).retry_after(Duration::from_millis(1500))),
            None => Ok(self.0),
        }
    }

    fn on_response(&self, permit: &mut &'static str, _: &CallContext, outcome: &Outcome) {
        assert_eq!(*permit, self.0);
        self.say(&format!("answered {}", outcome.status().unwrap().as_u16()));
    }

    fn complete(&self, permit: &'static str, call: &CallContext, outcome: &Outcome) {
        assert_eq!(permit, self.0);
        assert!(outcome.now() >= call.now);
        self.say(&format!("settled {:?} {:?}", outcome.status().map(|status| status.as_u16()), outcome.cause()));
    }

    fn cancel(&self, permit: &'static str, _: &CallContext, reason: CancelReason) {
        assert_eq!(permit, self.0);
        self.say(&format!("abandoned {reason:?}"));
    }
}

middleware_spec! {
    WitnessSpec, per_call = Witness, per_attempt = Witness, timeouts = EnforcedTimeouts, requests = SendOnce, errors = PassErrors
}

passing_middleware!(Witnessed, WitnessFuture, WitnessBody, WitnessSpec);

fn no_timeouts() -> EnforcedTimeouts {
    TimeoutLayer::new(Timeouts::new().response_head(None).total(None).body_idle(None).client_idle(None))
        .limits()
        .clone()
}

fn service<S>(inner: S, timeouts: EnforcedTimeouts) -> (Witnessed<S>, Log) {
    let log = Log::default();
    let (outer, inner_one) = (Witness("outer", log.clone(), None), Witness("inner", log.clone(), None));
    (Witnessed::new(inner, Arc::new(Config::new(outer, inner_one, timeouts, SendOnce, PassErrors))), log)
}

fn told(log: &Log) -> Vec<String> {
    std::mem::take(&mut log.lock().unwrap())
}

fn answering<B: Clone>(
    body: B,
) -> impl Service<Request<()>, Response = Response<B>, Error = Infallible, Future: Future> + Clone {
    service_fn(move |_: Request<()>| std::future::ready(Ok(Response::new(body.clone()))))
}

#[tokio::test]
async fn an_answer_without_a_body_settles_at_its_head_inner_parts_first() {
    let (service, log) = service(answering(Empty::<Bytes>::new()), no_timeouts());
    let answer = service.oneshot(Request::new(())).await.unwrap();
    let settled =
        ["inner answered 200", "outer answered 200", "inner settled Some(200) None", "outer settled Some(200) None"];
    assert_eq!(told(&log), settled);
    drop(answer);
    assert_eq!(told(&log), [""; 0], "once is enough");
}

#[tokio::test]
async fn an_answer_with_a_body_settles_at_its_last_frame() {
    let (service, log) = service(answering(Full::<Bytes>::from("body")), no_timeouts());
    let mut answer = service.oneshot(Request::new(())).await.unwrap();
    assert_eq!(told(&log), ["inner answered 200", "outer answered 200"]);
    assert!(answer.frame().await.unwrap().is_ok());
    assert_eq!(told(&log), ["inner settled Some(200) None", "outer settled Some(200) None"]);
    drop(answer);
    assert_eq!(told(&log), [""; 0]);
}

#[tokio::test]
async fn a_body_that_is_dropped_is_abandoned() {
    let (service, log) = service(answering(Full::<Bytes>::from("body")), no_timeouts());
    let answer = service.oneshot(Request::new(())).await.unwrap();
    told(&log);
    drop(answer);
    assert_eq!(told(&log), ["inner abandoned Dropped", "outer abandoned Dropped"]);
}

#[tokio::test]
async fn an_error_settles_and_stays_its_own() {
    let fails = service_fn(|_: Request<()>| async { Err::<Response<Empty<Bytes>>, _>("its own") });
    let (service, log) = service(fails, no_timeouts());
    assert_eq!(service.oneshot(Request::new(())).await.unwrap_err(), "its own");
    assert_eq!(told(&log), ["inner settled None None", "outer settled None None"]);
}

#[tokio::test]
async fn an_error_that_is_a_record_tells_its_cause() {
    let fails = service_fn(|_: Request<()>| async {
        Err::<Response<Empty<Bytes>>, _>(Failure::new(BadGatewayCause::ConnectionRefused))
    });
    let (service, log) = service(fails, no_timeouts());
    assert_eq!(service.oneshot(Request::new(())).await.unwrap_err().cause(), BadGatewayCause::ConnectionRefused);
    let settled = "settled Some(502) Some(connection_refused)";
    assert_eq!(told(&log), [format!("inner {settled}"), format!("outer {settled}")]);
}

#[tokio::test]
async fn a_rejected_attempt_completes_its_call_with_the_rejection() {
    let log = Log::default();
    let inner = Witness("inner", log.clone(), Some(BadGatewayCause::GatewayOverload));
    let outer = Witness("outer", log.clone(), None);
    let never =
        service_fn(|_: Request<()>| async { panic!("it was refused") as Result<Response<Empty<Bytes>>, Infallible> });
    let config = Config::new(outer, inner, no_timeouts(), SendOnce, PassErrors);
    let service = Witnessed::new(never, Arc::new(config));
    let answer = service.oneshot(Request::new(())).await.unwrap();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.headers()["retry-after"], "2", "whole seconds, rounded up");
    assert_eq!(BadGatewayCause::of(&answer), Some(BadGatewayCause::GatewayOverload));
    assert_eq!(told(&log), ["outer answered 503", "outer settled Some(503) Some(gateway_overload)"]);
}

#[tokio::test(start_paused = true)]
async fn a_part_is_told_which_limit_dropped_it() {
    let stuck = service_fn(|_: Request<()>| std::future::pending::<Result<Response<Empty<Bytes>>, Infallible>>());
    let limits = TimeoutLayer::new(Timeouts::new().response_head(Duration::from_secs(2)));

    // its own: that is an outcome
    let (own, log) = service(stuck, limits.limits().clone());
    let answer = own.oneshot(Request::new(())).await.unwrap();
    assert_eq!(answer.status(), StatusCode::GATEWAY_TIMEOUT);
    let outcome = "settled Some(504) Some(first_byte_timeout)";
    let told_in_order = [format!("inner {outcome}"), "outer answered 504".to_owned(), format!("outer {outcome}")];
    assert_eq!(told(&log), told_in_order);

    // that of a layer around it
    let (inside, log) = service(stuck, no_timeouts());
    let around = tower_layer::Layer::layer(&limits.without_upload_tracking(), inside);
    assert_eq!(around.oneshot(Request::new(())).await.unwrap().status(), StatusCode::GATEWAY_TIMEOUT);
    let why = "abandoned TimedOut(first_byte_timeout)";
    assert_eq!(told(&log), [format!("inner {why}"), format!("outer {why}")]);

    // the caller's leaving
    let (left, log) = service(stuck, no_timeouts());
    {
        let mut call = pin!(left.oneshot(Request::new(())));
        let polled = std::future::poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx))).await;
        assert!(polled.is_pending());
    }
    assert_eq!(told(&log), ["inner abandoned Dropped", "outer abandoned Dropped"]);
}

#[tokio::test]
async fn a_service_that_panics_when_called_leaves_nothing_held() {
    let panics = service_fn(|_: Request<()>| -> std::future::Ready<Result<Response<Empty<Bytes>>, Infallible>> {
        panic!("in the call itself")
    });
    let (mut service, log) = service(panics, no_timeouts());
    let call = std::panic::AssertUnwindSafe(|| drop(service.call(Request::new(()))));
    assert!(std::panic::catch_unwind(call).is_err());
    assert_eq!(told(&log), ["inner abandoned Dropped", "outer abandoned Dropped"]);
}

#[tokio::test]
async fn a_cause_that_a_users_service_attached_is_the_outcomes() {
    let names_it = service_fn(|_: Request<()>| async {
        let mut answer = Response::new(Empty::<Bytes>::new());
        *answer.status_mut() = StatusCode::BAD_GATEWAY;
        answer.extensions_mut().insert(BadGatewayCause::NoRoute);
        Ok::<_, Infallible>(answer)
    });
    let (service, log) = service(names_it, no_timeouts());
    service.oneshot(Request::new(())).await.unwrap();
    assert_eq!(told(&log).last().unwrap(), "outer settled Some(502) Some(no_route)");
}
