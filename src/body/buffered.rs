//! A body together with the frames read from it.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

/// The maximum number of frames kept, whatever their size.
const MAX_FRAMES: usize = 1024;

/// A kept frame.
#[derive(Debug)]
enum Chunk {
    Data(Bytes),
    Trailers(Box<HeaderMap>),
}

impl Chunk {
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

/// State of the inner body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SourceState {
    Open,
    Ended,
    /// It failed, or panicked during a poll.
    Broken,
}

/// Whether frames are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CopyState {
    Active,
    /// The body exceeded the cap: the copy was dropped.
    Lost,
}

pin_project! {
    /// A body, the frames read from it, and the position of a reader in these frames.
    ///
    /// A reader gets the kept frames, then the rest of the body.
    #[derive(Debug)]
    pub(super) struct ReplayBuffer<B> {
        #[pin]
        body: B,
        source: SourceState,
        copying: CopyState,
        frames: Vec<Chunk>,
        // index of the next kept frame to read
        next: usize,
        // bytes in the kept frames not yet read
        prefix: u64,
        // bytes left of the cap
        capacity_left: usize,
    }
}

impl<B: Body<Data = Bytes>> ReplayBuffer<B> {
    /// A body with at most `cap` bytes kept.
    pub(super) fn new(body: B, cap: usize) -> Self {
        Self {
            body,
            source: SourceState::Open,
            copying: CopyState::Active,
            frames: Vec::new(),
            next: 0,
            prefix: 0,
            capacity_left: cap,
        }
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
            *this.prefix -= saved.data();
            return Poll::Ready(Some(Ok(saved.frame())));
        }
        if *this.source == SourceState::Ended {
            return Poll::Ready(None);
        }
        if *this.source == SourceState::Broken {
            *this.copying = CopyState::Lost;
        }
        // remains if the poll panics: a frame may be lost then
        *this.source = SourceState::Broken;
        let polled = this.body.poll_frame(cx);
        *this.source = match &polled {
            Poll::Ready(Some(Err(_))) => SourceState::Broken,
            Poll::Ready(None) => SourceState::Ended,
            Poll::Ready(Some(Ok(_))) | Poll::Pending => SourceState::Open,
        };
        let Poll::Ready(Some(Ok(frame))) = &polled else { return polled };
        if *this.copying == CopyState::Active {
            match saved(frame, this.capacity_left) {
                Some(saved) if this.frames.len() < MAX_FRAMES => {
                    if this.frames.capacity() == 0 {
                        this.frames.reserve(8);
                    }
                    this.frames.push(saved);
                    *this.next += 1;
                }
                _ => {
                    *this.copying = CopyState::Lost;
                    (*this.frames, *this.next) = (Vec::new(), 0);
                }
            }
        }
        polled
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.next == self.frames.len() && (self.source == SourceState::Ended || self.body.is_end_stream())
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let rest = if self.source == SourceState::Ended { SizeHint::with_exact(0) } else { self.body.size_hint() };
        let mut hint = SizeHint::new();
        let upper = rest.upper().and_then(|upper| upper.checked_add(self.prefix));
        hint.set_lower(rest.lower().saturating_add(self.prefix));
        if let Some(upper) = upper {
            hint.set_upper(upper);
        }
        hint
    }
}

impl<B> ReplayBuffer<B> {
    /// Whether a reader can start again.
    pub(super) fn copying(&self) -> CopyState {
        if self.source == SourceState::Broken { CopyState::Lost } else { self.copying }
    }

    /// Stops keeping frames and drops those already read: no reader will start again.
    pub(super) fn forget(self: Pin<&mut Self>) {
        let this = self.project();
        if *this.copying == CopyState::Active {
            *this.copying = CopyState::Lost;
            this.frames.drain(..*this.next);
            this.frames.shrink_to_fit();
            *this.next = 0;
        }
    }

    /// Moves the reader back to the first frame.
    pub(super) fn rewind(self: Pin<&mut Self>) {
        let this = self.project();
        *this.next = 0;
        *this.prefix = this.frames.iter().map(Chunk::data).sum();
    }
}

/// A copy of the frame, if it fits into the cap.
fn saved(frame: &Frame<Bytes>, room: &mut usize) -> Option<Chunk> {
    let (size, saved) = if let Some(data) = frame.data_ref() {
        (data.len(), Chunk::Data(data.clone()))
    } else {
        let trailers = frame.trailers_ref()?;
        let size = trailers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        (size, Chunk::Trailers(Box::new(trailers.clone())))
    };
    *room = room.checked_sub(size)?;
    Some(saved)
}
