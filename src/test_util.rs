//! A scripted upstream, for tests of services with these layers.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use http::{Request, Response, StatusCode};
use tower_service::Service;

use crate::cause::{BadGatewayCause, Evidence, Failure, Replay};

/// An upstream that plays a script, one act for each request; after the script it responds with 200 and an empty body.
///
/// Clones share the script. It takes any request body and needs no socket, so that a test can pause tokio's clock; see
/// [Testing](crate::guide::testing).
///
/// ```
/// use http::Request;
/// use http_body_util::Full;
/// use tower::{Layer, ServiceExt};
/// use tower_upstream::UpstreamLayer;
/// use tower_upstream::test_util::ScriptedUpstream;
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let upstream = ScriptedUpstream::new().refuse().respond(200, r#"{"cents":5}"#);
/// let prices = UpstreamLayer::builder("prices").build().unwrap().layer(upstream.clone());
/// let Ok(response) = prices.oneshot(Request::new(Full::<bytes::Bytes>::default())).await;
/// assert_eq!((response.status().as_u16(), upstream.calls()), (200, 2));
/// # }
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct ScriptedUpstream {
    script: Arc<Mutex<Script>>,
}

#[derive(Debug, Default)]
struct Script {
    acts: VecDeque<Act>,
    calls: usize,
}

#[derive(Debug)]
enum Act {
    Respond(StatusCode, String),
    Fail(Failure),
    Hang,
}

impl ScriptedUpstream {
    /// An upstream with an empty script.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a response.
    ///
    /// # Panics
    ///
    /// The status is not between 100 and 999.
    pub fn respond(self, status: u16, body: impl Into<String>) -> Self {
        self.then(Act::Respond(StatusCode::from_u16(status).expect("a valid status"), body.into()))
    }

    /// Adds a refused connection: the request was not sent, so that any method is retried.
    pub fn refuse(self) -> Self {
        let failure = Failure::builder(BadGatewayCause::ConnectionRefused);
        self.fail(failure.replay(Replay::NotSent, Evidence::NoConnection).build())
    }

    /// Adds a failure: a [`BadGatewayCause`] alone, or a [`Failure`] with more detail.
    pub fn fail(self, failure: impl Into<Failure>) -> Self {
        self.then(Act::Fail(failure.into()))
    }

    /// Adds a request without a response.
    pub fn hang(self) -> Self {
        self.then(Act::Hang)
    }

    /// The number of requests so far.
    pub fn calls(&self) -> usize {
        self.script().calls
    }

    fn then(self, act: Act) -> Self {
        self.script().acts.push_back(act);
        self
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B> Service<Request<B>> for ScriptedUpstream {
    type Response = Response<String>;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Response<String>, Failure>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        let mut script = self.script();
        script.calls += 1;
        let act = script.acts.pop_front().unwrap_or_else(|| Act::Respond(StatusCode::OK, String::new()));
        Box::pin(async move {
            match act {
                Act::Respond(status, body) => {
                    let mut response = Response::new(body);
                    *response.status_mut() = status;
                    Ok(response)
                }
                Act::Fail(failure) => Err(failure),
                Act::Hang => std::future::pending().await,
            }
        })
    }
}
