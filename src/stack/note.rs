//! What is kept of a request until its answer, in memory that is used again.

use http::header::{ACCEPT, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Version};

use super::repeat::Span;
use crate::classify::{Ask, Asked, REQUEST_ID};
use crate::engine::{Refusal, asks_for_upgrade};
use crate::error_page::{ErrorPage, Wish};
use crate::shelf::shelf;

/// Boxed, as a call carries only the pointer: what few calls ask for is not moved with each.
#[derive(Debug)]
pub(super) struct Note {
    pub(super) ask: Ask,
    /// What a page would have to know, where there is one.
    pub(super) wish: Option<Wish>,
    /// That of the first attempt.
    pub(super) span: Span,
    /// Why the call is answered here.
    pub(super) refusal: Option<Refusal>,
}

shelf!(SHELF: Note);

/// The fields of a request that count, but for those that few calls are asked for.
struct Seen<'a> {
    asked: Asked,
    request_id: Option<&'a HeaderValue>,
    accept: Option<&'a HeaderValue>,
}

impl<'a> Seen<'a> {
    /// One walk past all names is cheaper than to hash three: those of the standard are compared by number.
    #[inline(always)]
    fn of(version: Version, headers: &'a HeaderMap) -> Self {
        let mut upgrade = false;
        let mut seen = Self { asked: Asked::Answer, request_id: None, accept: None };
        for (name, value) in headers {
            if *name == ACCEPT {
                seen.accept.get_or_insert(value);
            } else if *name == UPGRADE {
                upgrade = true;
            } else if *name == REQUEST_ID {
                seen.request_id.get_or_insert(value);
            }
        }
        if upgrade && asks_for_upgrade(version, headers) {
            seen.asked = Asked::Upgrade;
        }
        seen
    }
}

impl Note {
    #[inline(always)]
    pub(super) fn of<B>(request: &Request<B>, page: Option<&ErrorPage>) -> Box<Self> {
        let seen = Seen::of(request.version(), request.headers());
        let mut note = SHELF
            .take()
            .unwrap_or_else(|| Box::new(Self { ask: Ask::empty(), wish: None, span: Span::default(), refusal: None }));
        note.ask.note(request, seen.asked, seen.request_id);
        if let Some(page) = page {
            note.wish = Some(page.wish_with(request, seen.accept));
        }
        note
    }

    /// Puts it where the next request finds it.
    #[inline(always)]
    pub(super) fn shelve(mut self: Box<Self>) {
        self.ask.forget();
        (self.wish, self.refusal) = (None, None);
        self.span = Span::default();
        SHELF.put(self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shelved_note_leaves_nothing_to_the_next_request() {
        let first = Request::post("/order").header("x-request-id", "7").body(()).unwrap();
        Note::of(&first, Some(&ErrorPage::new())).shelve();
        let note = SHELF.take().unwrap();
        assert!(note.wish.is_none() && note.ask.exchange.request_id.is_none() && note.ask.exchange.target.is_none());
        note.shelve();
        let next = Note::of(&Request::new(()), None);
        assert_eq!((next.ask.exchange.method.as_str(), next.ask.exchange.request_id.is_none()), ("GET", true));
    }
}
