//! The reasons in logs, snapshots and failures: one name, the request id that the client has, the times of the call.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::response::IntoResponse;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use tokio::time::{Instant, sleep};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_upstream::cause::{Detail, RetryStop};
use tower_upstream::client::ReverseProxy;
use tower_upstream::error_page::{ErrorPage, ErrorPageLayer};
use tower_upstream::event::{Event, Observer};
use tower_upstream::forward::ForwardingRules;
use tower_upstream::retry::RetryLayer;
use tower_upstream::{BadGatewayCause as Cause, ClassifyLayer, Failure, UpstreamLayer};

use crate::support::service::{Act, Scripted, get, ms, post, seen, text};
use crate::support::subscribe;

/// The log of this thread.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Lines {
    pub(crate) fn record() -> (Self, tracing::subscriber::DefaultGuard) {
        let lines = Self::default();
        let writer = lines.clone();
        let log = tracing_subscriber::fmt().with_ansi(false).without_time().with_writer(move || writer.clone());
        (lines, subscribe(log.with_max_level(tracing::Level::DEBUG).finish()))
    }

    /// The events of the crate.
    pub(crate) fn all(&self) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().filter(|line| line.contains(" tower_upstream: ")).map(str::to_owned).collect()
    }
}

/// A failure, and the id of its request.
type Report = (Failure, Option<String>);

/// The reported failures.
#[derive(Clone, Default)]
struct Reported(Arc<Mutex<Vec<Report>>>);

impl Observer for Reported {
    fn on_event(&self, event: &Event<'_>) {
        if let Event::Failed(request, failure) = event {
            let id = request.request_id.as_ref().map(|id| id.to_str().unwrap().to_owned());
            self.0.lock().unwrap().push(((*failure).clone(), id));
        }
    }
}

impl Reported {
    fn all(&self) -> Vec<Report> {
        self.0.lock().unwrap().clone()
    }
}

type Refusal = Response<Full<Bytes>>;

/// A service that fails for good.
fn fails<B>() -> impl Service<Request<B>, Response = Refusal, Error = Failure, Future: Send> + Clone {
    service_fn(|_: Request<B>| async { Err(Failure::new(Cause::WrongProtocol)) })
}

/// A handler that calls this service and returns its failure.
fn returns_failure_of<S, X, B>(
    inner: S,
) -> impl Service<Request<B>, Response = Response<axum::body::Body>, Error = Infallible, Future: Send> + Clone
where
    S: Service<Request<Full<Bytes>>, Response = Response<X>, Error = Infallible, Future: Send> + Clone + Send,
    X: Send,
    B: Send + 'static,
{
    service_fn(move |_: Request<B>| {
        let call = inner.clone().oneshot(get());
        async move { Ok(Failure::of(&call.await?).cloned().unwrap().into_response()) }
    })
}

#[tokio::test]
async fn logs_snapshots_and_failures_have_one_name_for_the_upstream() {
    let (lines, _log) = Lines::record();
    // nothing listens on that port
    let proxy = ReverseProxy::builder("127.0.0.1:1".parse().unwrap(), ForwardingRules::new("edge").unwrap());
    let reported = Reported::default();
    let layer = UpstreamLayer::builder("backend").without_upload_tracking().observer(reported.clone()).build().unwrap();
    let service = layer.layer(proxy.build());
    for mut request in [get(), post("once"), get(), get(), get(), get()] {
        request.headers_mut().insert("host", HeaderValue::from_static("shop.example"));
        let answer = service.clone().oneshot(request).await.unwrap();
        let failure = Failure::of(&answer).unwrap();
        assert_eq!(failure.upstream(), Some("backend"));
        assert!(failure.previous().iter().all(|earlier| earlier.upstream() == Some("backend")), "{failure:?}");
        assert!(failure.opened_by().is_none_or(|opened| opened.upstream() == Some("backend")), "{failure:?}");
    }
    assert!(reported.all().iter().all(|(failure, _)| failure.upstream() == Some("backend")));
    let lines = lines.all();
    assert!(lines.iter().any(|line| line.contains("retrying the request")), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("circuit.state=\"open\"")), "{lines:?}");
    for line in &lines {
        assert!(line.contains("upstream=\"backend\"") && !line.contains("\"127.0.0.1:1\""), "{line}");
    }
    assert_eq!(&*seen(&layer).name, "backend");
}

#[tokio::test(start_paused = true)]
async fn a_retry_names_its_upstream_with_any_client() {
    let (lines, _log) = Lines::record();
    let (inner, script) = Scripted::new();
    script.play([Act::Responds(503), Act::Fails(Cause::ResetBeforeResponse), Act::Responds(502)]);
    let answer = UpstreamLayer::builder("shop").build().unwrap().layer(inner.clone()).oneshot(get()).await.unwrap();
    assert_eq!(Failure::of(&answer).unwrap().upstream(), Some("shop"));
    assert_eq!(lines.all().len(), 3);
    assert!(lines.all().iter().all(|line| line.contains("upstream=\"shop\"")), "{:?}", lines.all());

    // a retry layer alone knows the request's authority
    script.play([Act::Responds(503)]);
    let mut request = get();
    *request.uri_mut() = "http://shop.internal:8080/cart".parse().unwrap();
    RetryLayer::new().layer(inner).oneshot(request).await.unwrap();
    assert!(lines.all()[3].contains("upstream=\"shop.internal:8080\""), "{:?}", lines.all());
}

#[tokio::test(start_paused = true)]
async fn a_failure_about_another_upstream_keeps_that_name() {
    let reported = Reported::default();
    let database = Failure::builder(Cause::ConnectionRefused).upstream("database").build();
    let app = service_fn(move |_: Request<_>| {
        let failure = database.clone();
        async move { Err::<Response<Full<Bytes>>, _>(failure) }
    });
    let layer = UpstreamLayer::builder("app").without_retry().observer(reported.clone()).build().unwrap();
    layer.layer(app).oneshot(get()).await.unwrap();
    assert_eq!(reported.all()[0].0.upstream(), Some("database"));
}

#[tokio::test(start_paused = true)]
async fn a_drain_is_reported_as_a_drain_of_this_upstream() {
    let (lines, _log) = Lines::record();
    let (inner, _) = Scripted::new();
    let layer = UpstreamLayer::builder("shop").build().unwrap();
    let _ = layer.handle().drain(Duration::ZERO).await;
    let answer = layer.layer(inner).oneshot(get()).await.unwrap();
    let failure = Failure::of(&answer).unwrap();
    assert_eq!(failure.upstream(), Some("shop"));
    let line = lines.all().pop().unwrap();
    for text in [failure.to_string(), line] {
        assert!(text.contains("draining") && text.contains("shop") && !text.contains("capacity"), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_returns_the_stacks_failure_gives_the_client_the_id_that_was_logged() {
    let reported = Reported::default();
    let layer = UpstreamLayer::builder("shop").observer(reported.clone()).build().unwrap();
    let page = ErrorPageLayer::new(ErrorPage::new());
    let answer = page.layer(returns_failure_of(layer.layer(fails()))).oneshot(get()).await.unwrap();
    let id = reported.all()[0].1.clone().unwrap();
    assert_eq!(answer.headers()["x-request-id"].to_str().unwrap(), id);
    let shown = text(answer).await;
    assert!(shown.contains(&id) && shown.contains("give the time and the request ID."), "{shown}");

    // a stack around the handler reports under the same id
    let outer = Reported::default();
    let around = UpstreamLayer::builder("app").without_retry().observer(outer.clone()).build().unwrap();
    let answer = around.layer(page.layer(returns_failure_of(layer.layer(fails())))).oneshot(get()).await.unwrap();
    assert_eq!(outer.all()[0].1, reported.all()[1].1);
    assert_eq!(answer.headers()["x-request-id"].to_str().unwrap(), reported.all()[1].1.clone().unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_page_asks_for_no_id_where_nobody_was_given_one() {
    for cause in [Cause::NoRoute, Cause::FirstByteTimeout] {
        let handler = service_fn(move |_: Request<Full<Bytes>>| async move {
            Ok::<_, io::Error>(Failure::new(cause).into_response())
        });
        let answer = ErrorPageLayer::new(ErrorPage::new()).layer(handler).oneshot(get()).await.unwrap();
        assert!(!answer.headers().contains_key("x-request-id"));
        let page = text(answer).await;
        assert!(page.contains("give the time.") && !page.to_lowercase().contains("request id"), "{page}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_has_the_time_of_the_call_and_that_of_its_last_attempt() {
    let takes = Arc::new(Mutex::new(vec![ms(400), ms(300), ms(200)]));
    let slow = service_fn(move |_: Request<_>| {
        let time = takes.lock().unwrap().pop().unwrap();
        async move {
            sleep(time).await;
            let lost = Failure::builder(Cause::ResetBeforeResponse).elapsed(time).build();
            Err::<Response<Full<Bytes>>, _>(lost)
        }
    });
    let begun = Instant::now();
    let answer = UpstreamLayer::builder("shop").build().unwrap().layer(slow).oneshot(get()).await.unwrap();
    let failure = Failure::of(&answer).unwrap();
    assert_eq!((failure.attempts(), failure.retry_stop()), (3, Some(RetryStop::Attempts)));
    assert_eq!((failure.elapsed(), failure.total_elapsed()), (Some(ms(400)), Some(begun.elapsed())));
    assert!(begun.elapsed() >= ms(900));
    assert!(failure.to_string().contains(", the last took 400.0ms of "), "{failure}");

    let answer = UpstreamLayer::builder("shop").build().unwrap().layer(fails()).oneshot(get()).await.unwrap();
    assert_eq!(Failure::of(&answer).unwrap().total_elapsed(), None);
}

#[tokio::test(start_paused = true)]
async fn a_status_that_the_user_counts_as_a_failure_is_repeated_for_idempotent_methods() {
    let declared = || ClassifyLayer::new().failure_statuses([StatusCode::INTERNAL_SERVER_ERROR]);
    let (inner, script) = Scripted::new();
    let service = UpstreamLayer::builder("shop").classify(declared()).build().unwrap().layer(inner.clone());
    let layers = RetryLayer::new().layer(declared().layer(inner.clone()));
    let around = declared().layer(RetryLayer::new().layer(declared().report_by_outer().layer(inner.clone())));
    let mut before = 0;
    for (request, attempts, status) in [(get as fn() -> _, 3, 200), (|| post("order"), 1, 500)] {
        let acts = [Act::Responds(500), Act::Responds(500), Act::Responds(200)];
        script.play(acts);
        assert_eq!(service.clone().oneshot(request()).await.unwrap().status(), status);
        assert_eq!(std::mem::replace(&mut before, script.calls()) + attempts, script.calls());
        script.play(acts);
        assert_eq!(layers.clone().oneshot(request()).await.unwrap().status(), status);
        assert_eq!(std::mem::replace(&mut before, script.calls()) + attempts, script.calls());
        script.play(acts);
        assert_eq!(around.clone().oneshot(request()).await.unwrap().status(), status);
        assert_eq!(std::mem::replace(&mut before, script.calls()) + attempts, script.calls());
    }
    // without the setting, a 500 is an ordinary response of the upstream
    script.play([Act::Responds(500)]);
    let usual = UpstreamLayer::builder("shop").build().unwrap().layer(inner);
    assert_eq!(usual.oneshot(get()).await.unwrap().status(), 500);
    assert_eq!(script.calls(), before + 1);
}

/// The text of the log event and the response of a failure that a handler returns.
async fn returned(failure: Failure) -> (String, Response<axum::body::Body>) {
    let (lines, _log) = Lines::record();
    let handler = service_fn(move |_: Request<Full<Bytes>>| {
        let answer = failure.clone().into_response();
        async move { Ok::<_, Infallible>(answer) }
    });
    let answer = ClassifyLayer::new().layer(handler).oneshot(get()).await.unwrap();
    (lines.all().pop().unwrap(), answer.map(axum::body::Body::new))
}

#[tokio::test(start_paused = true)]
async fn a_handler_says_that_it_cannot_use_a_body() {
    let error = serde_json::from_str::<u32>("<html>").unwrap_err();
    let (line, answer) = returned(Failure::builder(Cause::UnusableBody).source(error).build()).await;
    assert_eq!((answer.status().as_u16(), Cause::of(&answer)), (502, Some(Cause::UnusableBody)));
    for said in ["error.type=\"unusable_body\"", "phase=\"body\"", "not what the handler expects"] {
        assert!(line.contains(said), "{line}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_404_that_a_handler_turns_into_a_failure_is_reported_as_a_404() {
    let missing = Failure::builder(Cause::UpstreamStatus).detail(Detail::Status(StatusCode::NOT_FOUND)).build();
    let (line, answer) = returned(missing.clone()).await;
    assert_eq!(answer.status(), 404);
    for said in [line, missing.to_string()] {
        assert!(said.contains("status 404") && !said.contains("5xx"), "{said}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_path_without_a_route_is_a_404_and_no_5xx() {
    let (_, answer) = returned(Failure::new(Cause::NoRoute)).await;
    assert_eq!(answer.status(), 404);
    assert!(text(answer).await.contains("Page not found."));
}

#[tokio::test(start_paused = true)]
async fn observers_add_to_the_log_unless_it_is_removed() {
    let (one, other) = (Reported::default(), Reported::default());
    let classify = || ClassifyLayer::new().observer(one.clone()).observer(other.clone());
    let stack = |classify| UpstreamLayer::builder("shop").classify(classify).observer(other.clone()).build().unwrap();

    let (lines, _log) = Lines::record();
    classify().layer(fails()).oneshot(get()).await.unwrap();
    stack(classify()).layer(fails()).oneshot(get()).await.unwrap();
    assert_eq!((one.all().len(), other.all().len(), lines.all().len()), (2, 3, 2));

    classify().without_log().layer(fails()).oneshot(get()).await.unwrap();
    stack(classify().without_log()).layer(fails()).oneshot(get()).await.unwrap();
    assert_eq!((one.all().len(), other.all().len(), lines.all().len()), (4, 6, 2));
}
