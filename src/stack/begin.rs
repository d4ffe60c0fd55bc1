//! How a call begins: who lets it in, and who makes its first attempt.

use http::Request;
use tokio::time::Instant;

use super::core::Core;
use super::course::Course;
use super::future::{Made, Run, UpstreamFuture};
use super::note::Note;
use super::parts::Parts;
use super::repeat::{Care, Repeat, Repeats, Rounds};
use crate::cause::{ClientCall, ClientCalls};
use crate::engine::{Border, Call, Held, Limits, Open, Part, Refusal};
use crate::retry::Way;
use crate::timeout::Watch;

/// Who makes the first attempt; no closure, whose arguments would be copied once more.
pub(super) trait Make<S, B, Y: Way<S, B>, T, Q: Rounds<T>> {
    fn make(self, request: Request<B>) -> Made<S, B, Y, T, Q>;

    /// It is not asked to make one.
    fn unused(self, unused: Unused);
}

/// Why nobody calls the service that was asked.
#[derive(Clone, Copy, Debug)]
pub(super) enum Unused {
    /// All attempts are made by others.
    Elsewhere,
    /// There is no attempt.
    Never,
}

impl<S, B, Y, R, L, C, T, Q> UpstreamFuture<S, B, Y, R, L, C, T, Q>
where
    Y: Way<S, B>,
    R: Repeat,
    L: Part,
    C: Part,
    Q: Rounds<T>,
{
    /// Begins a call.
    #[inline(always)]
    pub(super) fn begin<W, O>(
        core: Held<Core<R, L, C, T>>,
        mut request: Request<O>,
        make: impl Make<S, B, Y, T, Q>,
    ) -> Self
    where
        T: Repeats<O, Y, Round = Q>,
        W: Border<T::Body, Body = B>,
    {
        let mut call = Call::new(Instant::now());
        let set = &core.set;
        let watch = set.shared.limits.begin(&mut call, &mut request);
        let mut note = Note::of(&request, set.page.as_ref());
        let mut ticket = None;
        let mut refusal = set.shared.limits.refuse(&call);
        let mut extent = Care::Bare;
        if refusal.is_none() {
            match set.care(call.now) {
                Ok(usual) => extent = usual,
                Err(closed) => refusal = Some(closed),
            }
        }
        if refusal.is_none() {
            match set.shared.parts.enter(&call, extent) {
                Ok(entered) => ticket = Some(entered),
                Err(refused) => refusal = Some(refused),
            }
        }
        // a budget hears of no call that is not let in
        let repeated = if refusal.is_none() { extent } else { Care::Refusal };
        if refusal.is_none() {
            T::open(&request, &mut note.span);
        }
        let begun = core.repeat.begin(&request, call.now, call.deadline, repeated);
        let mut course = Course { open: Open::new(core, call), note: Some(note), calls: ClientCalls::default() };
        if let Some(ticket) = ticket {
            course.open.hold(ticket);
        }
        if refusal.is_none() && extent == Care::Full {
            if T::hedges(&begun) {
                make.unused(Unused::Elsewhere);
                return Self::apart(course, watch, begun, request);
            }
            let admitted = course.open.held(Parts::attempt);
            refusal = admitted.and_then(Result::err);
        }
        if let Some(refusal) = refusal {
            make.unused(Unused::Never);
            return Self::refused(course, watch, begun, request.into_body(), refusal);
        }
        let mut round = None;
        // in one step: a request is large
        let request = request.map(|body| {
            let (kept, body) = course.open.shared.repeat.with(begun, body);
            round = Some(kept);
            course.open.body::<W, _>(body)
        });
        let Some(round) = round else { unreachable!("the body was mapped") };
        let entered = course.enter();
        let calls = ClientCalls::begin();
        let run = make.make(request);
        let calls = calls.end_or_claim();
        drop(entered);
        course.calls = calls;
        Self { run, timer: None, course, watch, round }
    }

    /// A call that is answered here.
    #[cold]
    fn refused<O>(mut course: Course<R, L, C, T>, watch: Watch, begun: T::Begun, body: O, refusal: Refusal) -> Self
    where
        T: Repeats<O, Y, Round = Q>,
    {
        // for the layers around: the one call that was to be made is this refusal
        ClientCall::next();
        if !course.open.is_held() {
            course.open.shared.set.shared.parts.refused(&refusal);
        }
        let (round, _) = course.open.shared.repeat.with(begun, body);
        if let Some(note) = &mut course.note {
            note.span.failed(refusal.failure());
            note.refusal = Some(refusal);
        }
        Self { run: Run::Refused, timer: None, course, watch, round }
    }

    /// A call whose attempts are all made elsewhere.
    #[cold]
    fn apart<O>(mut course: Course<R, L, C, T>, watch: Watch, begun: T::Begun, request: Request<O>) -> Self
    where
        T: Repeats<O, Y, Round = Q>,
    {
        let (mut parts, body) = request.into_parts();
        if let Some(deadline) = course.open.call.deadline {
            parts.extensions.insert(deadline);
        }
        let repeat = &course.open.shared.repeat;
        let (mut round, body) = repeat.with(begun, body);
        course.calls = ClientCalls::begin().end_or_claim();
        let repeat = &course.open.shared.repeat;
        let rest = repeat.apart(&mut round, Request::from_parts(parts, body), course.calls);
        Self { run: Run::Rest { rest }, timer: None, course, watch, round }
    }
}
