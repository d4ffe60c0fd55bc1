use std::future::poll_fn;
use std::io;
use std::sync::atomic::AtomicUsize;
use std::task::{Wake, Waker};

use http::{HeaderMap, HeaderValue};
use http_body_util::{BodyExt, Empty, Full};
use proptest::prelude::*;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use super::*;
use crate::body::TrackedUpload;

type Step = Result<Frame<Bytes>, io::Error>;

/// A body that yields the frames it is fed, and panics if it is polled without one.
struct Fed {
    steps: UnboundedReceiver<Option<Step>>,
    left: Option<u64>,
}

impl Body for Fed {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Step>> {
        let polled = self.steps.poll_recv(cx).map(|step| step.map(|step| step.expect("told to panic")));
        if let (Poll::Ready(Some(Ok(frame))), Some(left)) = (&polled, self.left) {
            self.left = Some(left - frame.data_ref().map_or(0, |data| data.len() as u64));
        }
        polled
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

fn fed(cap: usize) -> (UnboundedSender<Option<Step>>, ReplayBody<Fed>, ReplayHandle<Fed>) {
    let (feed, steps) = unbounded_channel();
    let (body, replay) = ReplayBody::new(Fed { steps, left: None }, cap);
    (feed, body, replay)
}

fn data(text: &'static str) -> Frame<Bytes> {
    Frame::data(Bytes::from_static(text.as_bytes()))
}

fn trailers() -> HeaderMap {
    HeaderMap::from_iter([(http::header::ETAG, HeaderValue::from_static("\"7\""))])
}

fn poll(body: &mut ReplayBody<Fed>) -> Poll<Option<String>> {
    let polled = Pin::new(body).poll_frame(&mut Context::from_waker(Waker::noop()));
    polled.map(|frame| frame.map(|frame| text(frame.unwrap())))
}

fn text(frame: Frame<Bytes>) -> String {
    match frame.into_data() {
        Ok(data) => String::from_utf8(data.to_vec()).unwrap(),
        Err(frame) => format!("{:?}", frame.into_trailers().unwrap()),
    }
}

fn next(body: &mut ReplayBody<Fed>) -> String {
    match poll(body) {
        Poll::Ready(Some(text)) => text,
        other => panic!("{other:?}"),
    }
}

async fn whole<B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin>(
    body: ReplayBody<B>,
) -> (String, Option<HeaderMap>) {
    let collected = body.collect().await.unwrap();
    let trailers = collected.trailers().cloned();
    (String::from_utf8(collected.to_bytes().to_vec()).unwrap(), trailers)
}

/// Whether a poll returned the error of a reclaimed body.
fn is_revoked(polled: &Poll<Option<Result<Frame<Bytes>, BoxError>>>) -> bool {
    matches!(polled, Poll::Ready(Some(Err(error))) if error.is::<BodyReclaimed>())
}

#[test]
fn each_frame_is_handed_on_when_it_comes() {
    let (feed, mut first, replay) = fed(100);
    assert!(!replay.was_polled());
    assert_eq!(poll(&mut first), Poll::Pending);
    assert!(replay.was_polled());
    feed.send(Some(Ok(data("one")))).unwrap();
    assert_eq!(next(&mut first), "one");
    assert_eq!(poll(&mut first), Poll::Pending);
}

#[tokio::test]
async fn a_retry_sends_the_frames_that_were_read_and_then_the_rest() {
    let (feed, mut first, replay) = fed(100);
    for step in ["one ", "two ", "three "] {
        feed.send(Some(Ok(data(step)))).unwrap();
    }
    assert_eq!((next(&mut first), next(&mut first)), ("one ".into(), "two ".into()));
    drop(first);
    let mut second = replay.replay().unwrap();
    assert_eq!(next(&mut second), "one ");
    drop(second);
    let third = replay.replay().unwrap();
    feed.send(Some(Ok(data("four")))).unwrap();
    feed.send(Some(Ok(Frame::trailers(trailers())))).unwrap();
    drop(feed);
    let sent = ("one two three four".to_owned(), Some(trailers()));
    assert_eq!(whole(third).await, sent);
    // the third attempt has read it to its end, with its trailers
    assert_eq!(whole(replay.replay().unwrap()).await, sent);
}

#[tokio::test]
async fn beyond_the_cap_the_request_continues_and_only_the_replay_is_lost() {
    for (cap, possible) in [(8, true), (7, false)] {
        let (feed, mut first, replay) = fed(cap);
        for step in ["1234", "5678"] {
            feed.send(Some(Ok(data(step)))).unwrap();
        }
        drop(feed);
        next(&mut first);
        assert!(replay.is_possible());
        next(&mut first);
        assert_eq!(replay.is_possible(), possible);
        assert_eq!(poll(&mut first), Poll::Ready(None));
        drop(first);
        assert_eq!(replay.replay().is_some(), possible, "{cap}");
    }
}

#[test]
fn trailers_and_frames_without_data_are_bounded_too() {
    let (feed, mut first, replay) = fed(5);
    feed.send(Some(Ok(Frame::trailers(trailers())))).unwrap();
    next(&mut first);
    assert!(!replay.is_possible());
    let (feed, mut first, replay) = fed(5);
    for frame in 1..=1025 {
        feed.send(Some(Ok(data("")))).unwrap();
        next(&mut first);
        assert_eq!(replay.is_possible(), frame <= 1024, "{frame}");
    }
}

#[tokio::test]
async fn an_unread_body_needs_no_copy_and_no_cap() {
    let (_feed, steps) = unbounded_channel();
    let (first, replay) = ReplayBody::new(Fed { steps, left: Some(10 << 30) }, 0);
    drop(first);
    let second = replay.replay().unwrap();
    assert_eq!(second.size_hint().exact(), Some(10 << 30));
    drop(second);
    assert!(replay.replay().is_some() && !replay.was_polled());
}

#[test]
fn a_copy_is_as_long_as_the_body_wherever_it_was_interrupted() {
    let (feed, steps) = unbounded_channel();
    let (mut first, replay) = ReplayBody::new(Fed { steps, left: Some(9) }, 100);
    for (step, left) in [("one", 6), ("two", 3)] {
        feed.send(Some(Ok(data(step)))).unwrap();
        next(&mut first);
        assert_eq!(first.size_hint().exact(), Some(left));
    }
    drop(first);
    let mut second = replay.replay().unwrap();
    assert_eq!(second.size_hint().exact(), Some(9));
    assert_eq!(next(&mut second), "one");
    assert_eq!(second.size_hint().exact(), Some(6));
    // of unknown length, until its end is reached
    let (feed, mut first, replay) = fed(100);
    feed.send(Some(Ok(data("one")))).unwrap();
    drop(feed);
    next(&mut first);
    assert_eq!(first.size_hint().exact(), None);
    assert_eq!(poll(&mut first), Poll::Ready(None));
    drop(first);
    let copy = replay.replay().unwrap();
    assert_eq!((copy.size_hint().exact(), copy.is_end_stream()), (Some(3), false));
}

#[tokio::test]
async fn while_an_attempt_has_the_body_no_other_gets_it() {
    let (feed, first, replay) = fed(100);
    feed.send(Some(Ok(data("one")))).unwrap();
    drop(feed);
    assert!(replay.replay().is_none());
    assert!(replay.is_possible());
    assert_eq!(whole(first).await.0, "one");
    let second = replay.replay().unwrap();
    assert!(replay.replay().is_none());
    assert_eq!(whole(second).await.0, "one");
}

#[tokio::test]
async fn an_attempt_that_waits_on_another_task_is_woken_and_its_body_taken() {
    let (feed, first, replay) = fed(100);
    feed.send(Some(Ok(data("one ")))).unwrap();
    let attempt = tokio::spawn(first.collect());
    tokio::task::yield_now().await;
    assert!(replay.was_polled() && replay.replay().is_none());
    let second = poll_fn(|cx| replay.poll_replay(cx)).await.unwrap();
    let error = attempt.await.unwrap().unwrap_err();
    assert!(error.is::<BodyReclaimed>(), "{error}");
    feed.send(Some(Ok(data("two")))).unwrap();
    drop(feed);
    assert_eq!(whole(second).await.0, "one two");
}

#[test]
fn an_attempt_that_does_not_wait_loses_the_body_before_its_next_frame() {
    let (feed, mut first, replay) = fed(100);
    feed.send(Some(Ok(data("one ")))).unwrap();
    feed.send(Some(Ok(data("two ")))).unwrap();
    drop(feed);
    assert_eq!(next(&mut first), "one ");
    let woken = Arc::new(Count::default());
    let waker = Waker::from(woken.clone());
    let mut cx = Context::from_waker(&waker);
    assert!(replay.poll_replay(&mut cx).is_pending());
    for _ in 0..2 {
        let polled = Pin::new(&mut first).poll_frame(&mut cx);
        assert!(is_revoked(&polled) && !first.is_end_stream() && first.size_hint().exact().is_none());
        assert_eq!(woken.0.load(Relaxed), 1);
    }
    let Poll::Ready(Some(mut second)) = replay.poll_replay(&mut cx) else { panic!("it was given back") };
    // the first attempt still exists, and reads nothing
    assert!(is_revoked(&Pin::new(&mut first).poll_frame(&mut cx)));
    drop(first);
    assert_eq!((next(&mut second), next(&mut second)), ("one ".into(), "two ".into()));
    assert_eq!(poll(&mut second), Poll::Ready(None));
}

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

#[tokio::test]
async fn a_body_that_failed_is_not_sent_again() {
    let (feed, mut first, replay) = fed(100);
    feed.send(Some(Ok(data("one")))).unwrap();
    feed.send(Some(Err(io::ErrorKind::ConnectionReset.into()))).unwrap();
    feed.send(Some(Ok(data("more")))).unwrap();
    next(&mut first);
    let error = first.frame().await.unwrap().unwrap_err();
    assert!(error.is::<io::Error>(), "the error is the body's own");
    assert!(!replay.is_possible());
    // the first attempt still gets the rest, though the body cannot be replayed
    assert_eq!(next(&mut first), "more");
    drop(first);
    assert!(replay.replay().is_none());
    assert!(poll_fn(|cx| replay.poll_replay(cx)).await.is_none());
}

#[test]
fn a_body_that_panicked_is_not_sent_again() {
    let (feed, mut first, replay) = fed(100);
    feed.send(Some(Ok(data("one")))).unwrap();
    feed.send(None).unwrap();
    next(&mut first);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| poll(&mut first)));
    assert!(panicked.is_err());
    drop(first);
    assert!(replay.replay().is_none() && !replay.is_possible());
}

#[test]
fn without_a_handle_nothing_is_kept() {
    let (feed, mut first, replay) = fed(100);
    let kept = Bytes::from(vec![7; 40]);
    feed.send(Some(Ok(Frame::data(kept.clone())))).unwrap();
    feed.send(Some(Ok(data("two")))).unwrap();
    next(&mut first);
    assert!(!kept.is_unique());
    drop(replay);
    assert_eq!(next(&mut first), "two");
    assert!(kept.is_unique());
}

#[tokio::test]
async fn a_replay_that_goes_in_the_middle_of_a_copy_takes_nothing_from_it() {
    let (feed, mut first, replay) = fed(100);
    for step in ["one ", "two ", "three"] {
        feed.send(Some(Ok(data(step)))).unwrap();
    }
    drop(feed);
    next(&mut first);
    next(&mut first);
    drop(first);
    let mut second = replay.replay().unwrap();
    next(&mut second);
    drop(replay);
    assert_eq!(whole(second).await.0, "two three");
}

#[tokio::test]
async fn an_empty_body_passes_as_it_is() {
    let (first, replay) = ReplayBody::new(Empty::<Bytes>::new(), 100);
    assert!(matches!(first.kind, Kind::Passing { .. }) && replay.shared.is_none());
    assert!(first.is_end_stream() && first.size_hint().exact() == Some(0));
    // also while the attempt still has its copy
    let second = replay.replay().unwrap();
    assert!(second.is_end_stream() && second.size_hint().exact() == Some(0));
    assert_eq!(whole(first).await, (String::new(), None));
    assert_eq!(whole(poll_fn(|cx| replay.poll_replay(cx)).await.unwrap()).await, (String::new(), None));
    assert_eq!(whole(ReplayBody::<Fed>::from(Bytes::from_static(b"local"))).await.0, "local");
}

#[tokio::test]
async fn an_upload_is_watched_around_each_copy() {
    let (first, replay) = ReplayBody::new(Full::<Bytes>::from("order"), 100);
    for body in [Some(first), None] {
        let upload = TrackedUpload::new(body.or_else(|| replay.replay()).unwrap(), Instant::now());
        let progress = upload.counters().unwrap();
        assert_eq!(upload.collect().await.unwrap().to_bytes(), "order");
        assert!(progress.frames() == 1 && progress.ended().is_some());
    }
}

#[test]
fn it_goes_wherever_its_body_goes() {
    fn sent<T: Send + 'static>() {}
    fn moved<T: Unpin>() {}
    sent::<ReplayBody<Fed>>();
    sent::<ReplayHandle<Fed>>();
    moved::<ReplayBody<Fed>>();
}

proptest! {
    /// A replay sends the whole body or nothing, however much the previous attempt has read.
    #[test]
    fn a_copy_is_never_partial_and_never_empty(
        sizes in prop::collection::vec(0..20_usize, 1..8),
        reads in prop::collection::vec(0..10_usize, 1..4),
        cap in 0..120_usize,
        ends: bool,
    ) {
        let (feed, mut body, replay) = fed(cap);
        let mut frames: Vec<String> = Vec::new();
        for (at, size) in sizes.iter().enumerate() {
            let letter = char::from(b'a' + u8::try_from(at).unwrap());
            frames.push(letter.to_string().repeat(*size));
            feed.send(Some(Ok(Frame::data(frames[at].clone().into())))).unwrap();
        }
        if ends {
            feed.send(Some(Ok(Frame::trailers(trailers())))).unwrap();
            frames.push(format!("{:?}", trailers()));
        }
        drop(feed);
        // an attempt that has read all frames reaches the end
        let mut furthest = 0;
        for read in reads {
            let read = read.min(frames.len());
            for frame in &frames[..read] {
                prop_assert_eq!(&next(&mut body), frame);
            }
            drop(body);
            furthest = furthest.max(read);
            let size = |frame: &String| if frame.starts_with('{') { 7 } else { frame.len() };
            let kept: usize = frames[..furthest].iter().map(size).sum();
            let again = replay.replay();
            prop_assert_eq!(again.is_some(), kept <= cap, "{} of {}", kept, cap);
            match again {
                Some(again) => body = again,
                None => return Ok(()),
            }
        }
        for frame in &frames {
            prop_assert_eq!(&next(&mut body), frame);
        }
        prop_assert_eq!(poll(&mut body), Poll::Ready(None));
    }
}
