//! A body and what was read of it, in one hand.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

/// More frames than this are not kept, however small they are.
const MAX_FRAMES: usize = 1024;

/// One frame, to be handed out again.
#[derive(Debug)]
enum Saved {
    Data(Bytes),
    Trailers(Box<HeaderMap>),
}

impl Saved {
    fn frame(&self) -> Frame<Bytes> {
        match self {
            Self::Data(data) => Frame::data(data.clone()),
            Self::Trailers(trailers) => Frame::trailers((**trailers).clone()),
        }
    }

    fn data(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Trailers(_) => 0,
        }
    }
}

/// How far the body itself has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Open,
    Ended,
    /// It failed, or panicked in the middle of a poll.
    Broken,
}

/// Whether what is read is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Copying {
    On,
    /// It was too long, its copy is gone.
    Lost,
}

pin_project! {
    /// A body, the frames that were read of it, and how far a reader has come in these.
    ///
    /// A reader gets the frames kept, then the rest of the body.
    #[derive(Debug)]
    pub(super) struct Kept<B> {
        #[pin]
        body: B,
        source: Source,
        copying: Copying,
        frames: Vec<Saved>,
        // of the frames: the next one to be read
        next: usize,
        // data in the frames not read yet
        ahead: u64,
        // what is left of the cap
        room: usize,
    }
}

impl<B: Body<Data = Bytes>> Kept<B> {
    /// A body of which at most `cap` bytes are kept.
    pub(super) fn new(body: B, cap: usize) -> Self {
        Self { body, source: Source::Open, copying: Copying::On, frames: Vec::new(), next: 0, ahead: 0, room: cap }
    }

    /// The next frame.
    #[inline]
    pub(super) fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.project();
        if let Some(saved) = this.frames.get(*this.next) {
            *this.next += 1;
            *this.ahead -= saved.data();
            return Poll::Ready(Some(Ok(saved.frame())));
        }
        if *this.source == Source::Ended {
            return Poll::Ready(None);
        }
        if *this.source == Source::Broken {
            *this.copying = Copying::Lost;
        }
        // stays so if the poll panics: a frame may be lost then
        *this.source = Source::Broken;
        let polled = this.body.poll_frame(cx);
        *this.source = match &polled {
            Poll::Ready(Some(Err(_))) => Source::Broken,
            Poll::Ready(None) => Source::Ended,
            Poll::Ready(Some(Ok(_))) | Poll::Pending => Source::Open,
        };
        let Poll::Ready(Some(Ok(frame))) = &polled else { return polled };
        if *this.copying == Copying::On {
            match saved(frame, this.room) {
                Some(saved) if this.frames.len() < MAX_FRAMES => {
                    if this.frames.capacity() == 0 {
                        this.frames.reserve(8);
                    }
                    this.frames.push(saved);
                    *this.next += 1;
                }
                _ => {
                    *this.copying = Copying::Lost;
                    (*this.frames, *this.next) = (Vec::new(), 0);
                }
            }
        }
        polled
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.next == self.frames.len() && (self.source == Source::Ended || self.body.is_end_stream())
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let rest = if self.source == Source::Ended { SizeHint::with_exact(0) } else { self.body.size_hint() };
        let mut hint = SizeHint::new();
        let upper = rest.upper().and_then(|upper| upper.checked_add(self.ahead));
        hint.set_lower(rest.lower().saturating_add(self.ahead));
        if let Some(upper) = upper {
            hint.set_upper(upper);
        }
        hint
    }
}

impl<B> Kept<B> {
    /// Whether a reader may begin again.
    pub(super) fn copying(&self) -> Copying {
        if self.source == Source::Broken { Copying::Lost } else { self.copying }
    }

    /// Nobody will begin again: the frames that were read go, and no more are kept.
    pub(super) fn forget(self: Pin<&mut Self>) {
        let this = self.project();
        if *this.copying == Copying::On {
            *this.copying = Copying::Lost;
            this.frames.drain(..*this.next);
            this.frames.shrink_to_fit();
            *this.next = 0;
        }
    }

    /// Back to the first frame.
    pub(super) fn rewind(self: Pin<&mut Self>) {
        let this = self.project();
        *this.next = 0;
        *this.ahead = this.frames.iter().map(Saved::data).sum();
    }
}

/// The frame's copy, if there is room for it.
fn saved(frame: &Frame<Bytes>, room: &mut usize) -> Option<Saved> {
    let (size, saved) = if let Some(data) = frame.data_ref() {
        (data.len(), Saved::Data(data.clone()))
    } else {
        let trailers = frame.trailers_ref()?;
        let size = trailers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        (size, Saved::Trailers(Box::new(trailers.clone())))
    };
    *room = room.checked_sub(size)?;
    Some(saved)
}
