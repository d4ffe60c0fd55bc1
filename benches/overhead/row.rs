//! One cell of the table: a measured service, and the bare upstream to compare it with.

use std::hint::black_box;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{Request, Response};
use tower_service::Service;

use crate::job::{Does, Job};
use crate::upstream::{Answer, Body, Down, Now, Template, Upstream, now};

/// Number of failures that open the circuit of every peer.
const FAILURES: u32 = 2000;
/// A call that has not ended after this many polls counts as stuck.
const PATIENCE: u32 = 1000;

/// The change that a row makes to each request, also to those of the bare upstream.
pub(crate) type Dress = fn(&mut Request<Body>);

/// A service that does a job.
pub(crate) struct Row {
    pub(crate) who: &'static str,
    pub(crate) job: &'static Job,
    calls: Box<dyn Calls>,
    bare: Box<dyn Calls>,
}

/// A service in a loop, so that one dynamic call makes many calls of it.
trait Calls {
    fn calls(&mut self, n: u32) -> u32;
    fn future_bytes(&mut self) -> usize;
}

struct Subject<S> {
    service: S,
    template: Template,
    dress: Dress,
}

impl Row {
    /// `build` makes the service around the upstream, whose error type it chooses.
    pub(crate) fn new<E, S, B>(who: &'static str, job: &'static Job, build: fn(Upstream<E>) -> S) -> Self
    where
        E: Down + 'static,
        S: Service<Request<Body>, Response = Response<B>> + 'static,
        B: http_body::Body<Data = Bytes> + 'static,
    {
        Self::dressed(who, job, |_| (), build)
    }

    /// The same with a change of each request.
    pub(crate) fn dressed<E, S, B>(
        who: &'static str,
        job: &'static Job,
        dress: Dress,
        build: fn(Upstream<E>) -> S,
    ) -> Self
    where
        E: Down + 'static,
        S: Service<Request<Body>, Response = Response<B>> + 'static,
        B: http_body::Body<Data = Bytes> + 'static,
    {
        let template = || Template::new(job.ask);
        let calls = Box::new(Subject { service: build(Upstream::new()), template: template(), dress });
        let bare = Box::new(Subject { service: Upstream::<E>::new(), template: template(), dress });
        Self { who, job, calls, bare }
    }

    /// Brings both services into the state in which they are measured.
    pub(crate) fn prepare(&mut self) {
        if self.job.does == Does::Opened {
            now(Now::Fails);
            self.calls.calls(FAILURES);
        }
        self.calls(self.job.warm);
        self.bare(self.job.warm);
    }

    /// Calls the service this many times.
    ///
    /// # Panics
    ///
    /// If a call does not end as the job requires.
    pub(crate) fn calls(&mut self, n: u32) {
        now(match self.job.does {
            Does::Answers | Does::Opened => Now::Answers,
            Does::Pends => Now::Pends,
            Does::IsLate => Now::IsLate,
            Does::FailsFirst => Now::Alternates,
        });
        let passed = if self.job.does == Does::Opened { 0 } else { n };
        assert_eq!(self.calls.calls(n), passed, "{}, {}: calls answered", self.who, self.job.name);
    }

    /// Calls the bare upstream this many times; a repeated call counts once.
    pub(crate) fn bare(&mut self, n: u32) {
        if self.job.does == Does::FailsFirst {
            now(Now::Answers);
        }
        self.bare.calls(n);
    }

    /// The size of the call future, without that of the upstream's future.
    pub(crate) fn future_bytes(&mut self) -> usize {
        self.calls.future_bytes().saturating_sub(size_of::<Answer<()>>())
    }
}

impl<S, B> Calls for Subject<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    B: http_body::Body<Data = Bytes>,
{
    fn calls(&mut self, n: u32) -> u32 {
        let mut answered = 0;
        for _ in 0..n {
            let mut request = self.template.request();
            (self.dress)(&mut request);
            answered += u32::from(one(&mut self.service, request));
        }
        answered
    }

    fn future_bytes(&mut self) -> usize {
        let request = self.template.request();
        is_ready(&mut self.service, &mut Context::from_waker(Waker::noop()));
        let future = self.service.call(request);
        size_of_val(&future)
    }
}

/// Makes one call to the end of its response body; returns whether the response was good.
// no closures, and the response is not moved: the harness would be counted
#[inline(always)]
#[allow(clippy::inline_always)]
fn one<S, B>(service: &mut S, request: Request<Body>) -> bool
where
    S: Service<Request<Body>, Response = Response<B>>,
    B: http_body::Body<Data = Bytes>,
{
    let mut cx = Context::from_waker(Waker::noop());
    if !is_ready(service, &mut cx) {
        return false;
    }
    let mut call = pin!(service.call(request));
    for _ in 0..PATIENCE {
        if let Poll::Ready(answer) = call.as_mut().poll(&mut cx) {
            let Ok(answer) = black_box(answer) else { return false };
            let good = answer.status().is_success();
            return is_whole(pin!(answer.into_body()), &mut cx) && good;
        }
    }
    panic!("it never answers");
}

/// Reads a response body as servers do; returns whether it ended without an error.
#[inline(always)]
#[allow(clippy::inline_always)] // as above
fn is_whole<B: http_body::Body<Data = Bytes>>(mut body: Pin<&mut B>, cx: &mut Context<'_>) -> bool {
    for _ in 0..PATIENCE {
        if body.is_end_stream() {
            return true;
        }
        match body.as_mut().poll_frame(cx) {
            Poll::Ready(Some(frame)) if frame.is_err() => return false,
            Poll::Ready(Some(frame)) => drop(black_box(frame)),
            Poll::Ready(None) => return true,
            Poll::Pending => {}
        }
    }
    panic!("the body never ends");
}

#[inline(always)]
#[allow(clippy::inline_always)] // as above
fn is_ready<S: Service<Request<Body>>>(service: &mut S, cx: &mut Context<'_>) -> bool {
    for _ in 0..PATIENCE {
        if let Poll::Ready(ready) = service.poll_ready(cx) {
            return ready.is_ok();
        }
    }
    panic!("it never becomes ready");
}
