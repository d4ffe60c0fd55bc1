//! A call that is under way.

use std::time::SystemTime;

use bytes::Bytes;
use http::Response;
use tracing::span::Entered;

use super::core::Core;
use super::future::POLLED_AGAIN;
use super::note::Note;
use super::repeat::Repeat;
use crate::cause::{ClientCalls, Failure, is_local};
use crate::classify::Settings;
use crate::engine::{Held, Open, Part};

/// A call that is under way, and what is kept of its request.
pub(super) struct Course<R: Repeat, L: Part, C: Part, T> {
    pub(super) open: Open<Held<Core<R, L, C, T>>>,
    pub(super) note: Option<Box<Note>>,
    /// The client calls of the first attempt, as far as they were made when it was called.
    pub(super) calls: ClientCalls,
}

impl<R: Repeat, L: Part, C: Part, T> Drop for Course<R, L, C, T> {
    #[inline]
    fn drop(&mut self) {
        if let Some(note) = self.note.take() {
            self.left(note);
        }
    }
}

impl<R: Repeat, L: Part, C: Part, T> Course<R, L, C, T> {
    #[cold]
    fn left(&self, mut note: Box<Note>) {
        self.settings().left(&mut note.ask);
        note.shelve();
    }

    /// Does a part of the first attempt's work, until what it returns is dropped.
    #[inline(always)]
    pub(super) fn enter(&self) -> Option<Entered<'_>> {
        self.note.as_ref()?.span.0.enter()
    }

    /// Tells the span how its attempt was answered.
    #[inline(always)]
    pub(super) fn ended<B>(&self, answer: &Response<B>) {
        if let Some(note) = &self.note {
            note.span.0.ended::<_, Failure>(Ok(answer));
        }
    }

    #[inline(always)]
    pub(super) fn settings(&self) -> &Settings {
        &self.open.shared.set.classify
    }

    /// The record with the stack's name for its upstream, where nobody further in has one.
    pub(super) fn named(&self, failure: Failure) -> Failure {
        match failure.upstream() {
            Some(_) => failure,
            None => failure.into_builder().upstream(self.open.shared.set.name.clone()).build(),
        }
    }

    /// The page in place of an answer of ours, where there is one.
    #[cold]
    pub(super) fn paged<B>(&self, note: &mut Note, answer: &mut Response<B>) -> Option<Bytes> {
        let page = self.open.shared.set.page.as_ref()?;
        let wish = note.wish.take()?;
        let failure = if is_local(answer.extensions()) { Failure::of(answer)?.clone() } else { return None };
        Some(page.write(&wish, &failure, answer, SystemTime::now()))
    }

    pub(super) fn note(&mut self) -> Box<Note> {
        self.note.take().expect(POLLED_AGAIN)
    }
}
