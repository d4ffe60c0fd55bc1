//! The response body of a stack: it is the inner body, and its failure is reported once.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::Instant;
use tower::{Layer, ServiceExt, service_fn};
use tower_upstream::stack::UpstreamBuilder;
use tower_upstream::timeout::Timeouts;
use tower_upstream::{BadGatewayCause as Cause, Failure, UpstreamLayer};

use crate::support::service::{get, ms};

/// The next event of a body.
#[derive(Clone, Copy)]
enum Step {
    Data(&'static str),
    Trailers,
    Fails,
    Waits(u64),
    Stalls,
}

use Step::{Data, Fails, Stalls, Trailers, Waits};

struct Steps {
    left: Vec<Step>,
    waits: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Steps {
    fn new(steps: &[Step]) -> Self {
        Self { left: steps.iter().rev().copied().collect(), waits: None }
    }
}

impl Body for Steps {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        if let Some(Waits(millis)) = self.left.last() {
            let millis = *millis;
            let waits = self.waits.get_or_insert_with(|| Box::pin(tokio::time::sleep(ms(millis))));
            std::task::ready!(waits.as_mut().poll(cx));
            self.waits = None;
            self.left.pop();
        }
        if let Some(Stalls) = self.left.last() {
            return Poll::Pending;
        }
        Poll::Ready(self.left.pop().map(|step| match step {
            Data(data) => Ok(Frame::data(Bytes::from_static(data.as_bytes()))),
            Trailers => Ok(Frame::trailers(HeaderMap::from_iter([(
                http::HeaderName::from_static("x-sum"),
                http::HeaderValue::from_static("7"),
            )]))),
            _ => Err(std::io::ErrorKind::ConnectionReset.into()),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        let data = self.left.iter().map(|step| if let Data(data) = step { data.len() as u64 } else { 0 });
        SizeHint::with_exact(data.sum())
    }
}

/// A response with this body, of the first attempt or of a later one.
async fn answer(
    steps: &'static [Step],
    later: bool,
    more: impl Fn(UpstreamBuilder) -> UpstreamBuilder,
) -> (UpstreamLayer, Response<impl Body<Data = Bytes, Error = Failure> + Unpin>) {
    let stack = more(UpstreamLayer::builder("shop")).build().unwrap();
    let inner = service_fn(move |request: Request<_>| async move {
        if later && !request.headers().contains_key("x-envoy-attempt-count") {
            return Err(Failure::new(Cause::ConnectionRefused));
        }
        Ok(Response::new(Steps::new(steps)))
    });
    let answer = stack.layer(inner).oneshot(get()).await.unwrap();
    (stack, answer.map(Box::pin))
}

fn as_it_is(builder: UpstreamBuilder) -> UpstreamBuilder {
    builder
}

#[tokio::test(start_paused = true)]
async fn length_end_and_trailers_are_the_inner_bodys() {
    for later in [false, true] {
        // the first frame is held, or was not ready when the head was returned
        for steps in [&[Data("one "), Data("two"), Trailers][..], &[Waits(9), Data("one "), Data("two"), Trailers]] {
            let (layer, mut answer) = answer(steps, later, as_it_is).await;
            let body = answer.body_mut();
            assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(7), false));
            assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "one ");
            assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(3), false));
            assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "two");
            assert_eq!((body.is_end_stream(), layer.handle().in_flight()), (false, 1));
            let trailers = body.frame().await.unwrap().unwrap().into_trailers().unwrap();
            assert_eq!(trailers["x-sum"], "7");
            assert_eq!((body.is_end_stream(), layer.handle().in_flight()), (true, 0), "settled at its last frame");
            assert!(body.frame().await.is_none());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_empty_body_has_ended_at_its_head() {
    for later in [false, true] {
        let (layer, mut answer) = answer(&[], later, as_it_is).await;
        assert_eq!((answer.body().size_hint().exact(), answer.body().is_end_stream()), (Some(0), true));
        assert_eq!(layer.handle().in_flight(), 0);
        assert!(answer.body_mut().frame().await.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_of_trailers_alone_keeps_them() {
    for later in [false, true] {
        let (layer, answer) = answer(&[Trailers], later, as_it_is).await;
        let whole = answer.into_body().collect().await.unwrap();
        assert_eq!(whole.trailers().unwrap()["x-sum"], "7");
        assert_eq!(layer.handle().in_flight(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn before_an_error_a_body_is_pending_once_so_that_what_came_is_flushed() {
    for later in [false, true] {
        let (layer, mut answer) = answer(&[Data("one"), Waits(9), Fails], later, as_it_is).await;
        let body = answer.body_mut();
        body.frame().await.unwrap().unwrap();
        tokio::time::sleep(ms(20)).await;
        let mut cx = Context::from_waker(Waker::noop());
        // the wait begins with the first poll
        assert!(Pin::new(&mut *body).poll_frame(&mut cx).is_pending());
        tokio::time::sleep(ms(20)).await;
        assert!(Pin::new(&mut *body).poll_frame(&mut cx).is_pending(), "it has failed, and says so next time");
        assert!(!body.is_end_stream());
        let Poll::Ready(Some(Err(failure))) = Pin::new(&mut *body).poll_frame(&mut cx) else { panic!("it has failed") };
        assert_eq!(failure.cause(), Cause::IncompleteBody);
        assert!(matches!(Pin::new(&mut *body).poll_frame(&mut cx), Poll::Ready(None)), "once");
        assert!(body.is_end_stream());
        let shown = layer.handle().snapshot(Instant::now());
        assert_eq!((shown.in_flight, shown.failures), (0, vec![(Cause::IncompleteBody, 1)]));
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_before_its_first_frame_is_a_failure_with_a_head_of_its_own() {
    for later in [false, true] {
        let (layer, answer) = answer(&[Waits(3), Fails], later, as_it_is).await;
        assert_eq!((answer.status().as_u16(), Cause::of(&answer)), (502, Some(Cause::IncompleteBody)));
        let shown = layer.handle().snapshot(Instant::now());
        assert_eq!((shown.in_flight, shown.circuit.unwrap().failures), (0, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stalls_is_cut_at_the_idle_limit() {
    let short = |builder: UpstreamBuilder| {
        let limits = Timeouts::new().response_head(ms(9000)).attempt(ms(9000)).total(ms(30_000)).body_idle(ms(700));
        builder.timeouts(move |_| limits)
    };
    for later in [false, true] {
        let (layer, mut answer) = answer(&[Data("one"), Waits(600), Data("two"), Stalls], later, short).await;
        let body = answer.body_mut();
        body.frame().await.unwrap().unwrap();
        let began = Instant::now();
        body.frame().await.unwrap().unwrap();
        assert_eq!(began.elapsed(), ms(600), "a frame in time begins it anew");
        let failure = body.frame().await.unwrap().unwrap_err();
        assert_eq!((failure.cause(), began.elapsed()), (Cause::BodyReadTimeout, ms(1300)));
        assert!(body.frame().await.is_none());
        let shown = layer.handle().snapshot(Instant::now());
        assert_eq!((shown.in_flight, shown.circuit.unwrap().consecutive_failures), (0, 1));
    }
}
