//! The presets, as clients see them.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tokio::time::Instant;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_upstream::cause::RetryStop;
use tower_upstream::stack::Preset;
use tower_upstream::timeout::Timeouts;
use tower_upstream::{BadGatewayCause as Cause, Failure, UpstreamLayer};

use crate::support::service::{Act, Scripted, get, post};

const PATIENCE: Duration = Duration::from_secs(5);

fn hangs<B>() -> impl Service<Request<B>, Response = Response<Full<Bytes>>, Error = Infallible, Future: Send> + Clone {
    service_fn(|_: Request<B>| std::future::pending())
}

#[tokio::test(start_paused = true)]
async fn a_client_of_an_interactive_preset_is_answered_within_5_s_if_the_upstream_hangs() {
    for preset in [Preset::Standard, Preset::LatencyCritical, Preset::Streaming] {
        for request in [get(), post("order")] {
            let begun = Instant::now();
            let layer = UpstreamLayer::builder("shop").preset(preset).build().unwrap();
            let answer = layer.layer(hangs()).oneshot(request).await.unwrap();
            assert_eq!(answer.status(), 504);
            // the second does not read its request
            let expected = [Cause::FirstByteTimeout, Cause::WriteTimeout];
            assert!(Cause::of(&answer).is_some_and(|cause| expected.contains(&cause)), "{preset:?}");
            assert!(begun.elapsed() <= PATIENCE, "{preset:?}: {:?}", begun.elapsed());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_that_hangs_is_answered_within_5_s_too() {
    for failed in [Act::Responds(503), Act::Fails(Cause::ResetBeforeResponse)] {
        let (first, script) = Scripted::new();
        script.play([failed, Act::Hangs]);
        let begun = Instant::now();
        let answer = UpstreamLayer::builder("shop").build().unwrap().layer(first).oneshot(get()).await.unwrap();
        assert_eq!((answer.status().as_u16(), script.calls()), (504, 2));
        assert!(begun.elapsed() <= PATIENCE, "{:?}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_failed_at_once_has_all_its_retries() {
    let (inner, script) = Scripted::new();
    script.play([Act::Responds(503), Act::Fails(Cause::ResetBeforeResponse), Act::Responds(200)]);
    let answer = UpstreamLayer::builder("shop").build().unwrap().layer(inner).oneshot(get()).await.unwrap();
    assert_eq!((answer.status().as_u16(), script.calls()), (200, 3));
}

#[tokio::test(start_paused = true)]
async fn a_head_timeout_that_is_set_has_retries_until_the_total() {
    let change = |timeouts: Timeouts| timeouts.response_head(Duration::from_secs(6));
    let built = UpstreamLayer::builder("shop").timeouts(change).build().unwrap();
    let usual = UpstreamLayer::builder("shop").build().unwrap();
    for layer in [built, usual.with_timeouts(change).unwrap()] {
        let answer = layer.layer(hangs()).oneshot(get()).await.unwrap();
        assert_eq!(Failure::of(&answer).unwrap().attempts(), 3);
    }
    let unchanged = usual.with_timeouts(|timeouts| timeouts.body_idle(Duration::from_secs(5))).unwrap();
    let answer = unchanged.layer(hangs()).oneshot(get()).await.unwrap();
    let failure = Failure::of(&answer).unwrap();
    assert_eq!((failure.attempts(), failure.retry_stop()), (1, Some(RetryStop::Deadline)));
}
