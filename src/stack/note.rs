//! What is kept of a request until its answer, in memory that is used again.

use std::cell::RefCell;

use http::Request;

use crate::classify::Ask;
use crate::error_page::{ErrorPage, Wish};

/// Boxed, as a call carries only the pointer: what few calls ask for is not moved with each.
#[derive(Debug)]
pub(super) struct Note {
    pub(super) ask: Ask,
    /// What a page would have to know, where there is one.
    pub(super) wish: Option<Wish>,
}

/// So many notes are kept on a thread for later requests.
const SHELVED: usize = 64;

thread_local! {
    #[allow(clippy::vec_box)] // the boxes are what is used again
    static SHELF: RefCell<Vec<Box<Note>>> = const { RefCell::new(Vec::new()) };
}

impl Note {
    #[inline(always)]
    pub(super) fn of<B>(request: &Request<B>, page: Option<&ErrorPage>) -> Box<Self> {
        let wish = page.map(|page| page.wish(request));
        match SHELF.with_borrow_mut(Vec::pop) {
            Some(mut note) => {
                note.ask = Ask::of(request);
                note.wish = wish;
                note
            }
            None => Box::new(Self { ask: Ask::of(request), wish }),
        }
    }

    /// Puts it where the next request finds it.
    #[inline(always)]
    pub(super) fn shelve(mut self: Box<Self>) {
        self.ask.forget();
        self.wish = None;
        // a thread that is ending has no shelf any more
        let _ = SHELF.try_with(|shelf| {
            let mut notes = shelf.borrow_mut();
            if notes.len() < SHELVED {
                notes.push(self);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shelved_note_leaves_nothing_to_the_next_request() {
        let first = Request::post("/order").header("x-request-id", "7").body(()).unwrap();
        Note::of(&first, Some(&ErrorPage::new())).shelve();
        SHELF.with_borrow(|shelf| {
            let note = shelf.last().unwrap();
            assert!(
                note.wish.is_none() && note.ask.exchange.request_id.is_none() && note.ask.exchange.target.is_none()
            );
        });
        let next = Note::of(&Request::new(()), None);
        assert_eq!((next.ask.exchange.method.as_str(), next.ask.exchange.request_id.is_none()), ("GET", true));
    }

    #[test]
    fn the_shelf_is_bounded() {
        let notes: Vec<_> = (0..SHELVED * 2).map(|_| Note::of(&Request::new(()), None)).collect();
        notes.into_iter().for_each(Note::shelve);
        SHELF.with_borrow(|shelf| assert_eq!(shelf.len(), SHELVED));
    }
}
