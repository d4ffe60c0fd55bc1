//! A copy of a request head for retries, in recycled memory.

use http::header::{IF_MATCH, IF_NONE_MATCH, IF_UNMODIFIED_SINCE, UPGRADE};
use http::{Extensions, HeaderName, HeaderValue, Method, Request, Uri, Version};
use tokio::time::Instant;

use super::{Attempts, Withdrawal};
use crate::deadline::Deadline;
use crate::exchange::{TriedEndpoints, asks_for_upgrade};
use crate::free_list::free_list;

/// Fields that make a write conditional (RFC 9110 section 13.1, RFC 4918 section 10.4).
const PRECONDITIONS: [HeaderName; 4] = [IF_MATCH, IF_NONE_MATCH, IF_UNMODIFIED_SINCE, HeaderName::from_static("if")];

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// What is known of a request of which no copy is kept, because the budget is empty.
///
/// One byte: it moves with the future of the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UncopiedHead {
    Plain,
    /// It has a precondition that its own first attempt may have changed.
    Conditional,
    /// It has an `Idempotency-Key`, and no precondition.
    Keyed,
}

impl UncopiedHead {
    /// Reads a head; `None` for a request for a tunnel, which would not be sent again in any case.
    pub(super) fn of<B>(request: &Request<B>) -> Option<Self> {
        let headers = request.headers();
        let upgrades = headers.contains_key(UPGRADE) && asks_for_upgrade(request.version(), headers);
        if upgrades || *request.method() == Method::CONNECT {
            return None;
        }
        // a safe method needs neither
        if request.method().is_safe() {
            return Some(Self::Plain);
        }
        if PRECONDITIONS.iter().any(|name| headers.contains_key(name)) {
            return Some(Self::Conditional);
        }
        Some(if headers.contains_key(IDEMPOTENCY_KEY) { Self::Keyed } else { Self::Plain })
    }
}

/// Copies one type of extension to a retry.
pub(super) type ExtensionCopier = fn(&Extensions, &mut Extensions);

/// Copies an extension of type `T`, if present.
pub(super) fn carry<T: Clone + Send + Sync + 'static>(from: &Extensions, to: &mut Extensions) {
    if let Some(value) = from.get::<T>() {
        to.insert(value.clone());
    }
}

/// A copy of a request head, without the parts that belong to a single attempt.
///
/// Extensions are copied by an allow-list: handles of an upgrade or of a captured connection must not be copied.
#[derive(Debug, Default)]
pub(super) struct RequestTemplate {
    method: Method,
    uri: Uri,
    version: Version,
    headers: Vec<(HeaderName, HeaderValue)>,
    extensions: Extensions,
    /// The start of the call.
    pub(super) begun: Option<Instant>,
    /// The deadline of the call.
    pub(super) deadline: Option<Deadline>,
    /// The start of the call, if it may be hedged.
    pub(super) hedge_start: Option<Instant>,
    pub(super) history: Option<Box<AttemptHistory>>,
    /// The endpoints of a pool that attempts were sent to.
    pub(super) tried: TriedEndpoints,
    /// The pool has endpoints that the request was not sent to yet.
    pub(super) has_others: bool,
}

/// The earlier attempts; created by the first failure that is retried.
#[derive(Debug, Default)]
pub(super) struct AttemptHistory {
    pub(super) attempts: Attempts,
    pub(super) withdrawal: Option<Withdrawal>,
}

/// A head with more fields than this is not recycled, so that one large request cannot hold memory indefinitely.
const FIELDS: usize = 64;

// a request carries only the pointer; a list is cleared and filled again without an allocation; a map would be hashed anew
free_list!(SPARE: Box<RequestTemplate>);

impl RequestTemplate {
    /// Copies a request head; `None` for a request for a tunnel, which belongs to a single attempt.
    #[inline]
    pub(super) fn of<B>(request: &Request<B>, carried: &[ExtensionCopier]) -> Option<Box<Self>> {
        if *request.method() == Method::CONNECT {
            return None;
        }
        let mut kept = SPARE.acquire().unwrap_or_default();
        kept.headers.reserve(request.headers().len());
        for (name, value) in request.headers() {
            if *name == UPGRADE && asks_for_upgrade(request.version(), request.headers()) {
                kept.recycle();
                return None;
            }
            kept.headers.push((name.clone(), value.clone()));
        }
        kept.method.clone_from(request.method());
        kept.uri.clone_from(request.uri());
        kept.version = request.version();
        if !request.extensions().is_empty() {
            for carry in carried {
                carry(request.extensions(), &mut kept.extensions);
            }
        }
        Some(kept)
    }

    pub(super) fn method(&self) -> &Method {
        &self.method
    }

    pub(super) fn authority(&self) -> Option<&str> {
        self.uri.authority().map(http::uri::Authority::as_str)
    }

    /// Whether the request has an `Idempotency-Key`.
    pub(super) fn has_idempotency_key(&self) -> bool {
        self.headers.iter().any(|(name, _)| *name == IDEMPOTENCY_KEY)
    }

    /// Whether the request has a precondition that its own first attempt may have changed.
    pub(super) fn is_conditional(&self) -> bool {
        self.headers.iter().any(|(name, _)| PRECONDITIONS.contains(name))
    }

    /// Creates a request with this head.
    pub(super) fn request<B>(&self, body: B) -> Request<B> {
        let mut request = Request::new(body);
        self.method.clone_into(request.method_mut());
        self.uri.clone_into(request.uri_mut());
        *request.version_mut() = self.version;
        let headers = request.headers_mut();
        headers.reserve(self.headers.len());
        for (name, value) in &self.headers {
            headers.append(name.clone(), value.clone());
        }
        request.extensions_mut().clone_from(&self.extensions);
        request
    }

    /// Returns the memory to the free list.
    pub(super) fn recycle(mut self: Box<Self>) {
        self.headers.clear();
        self.extensions.clear();
        self.tried.0.clear();
        self.has_others = false;
        (self.begun, self.deadline, self.hedge_start, self.history) = (None, None, None, None);
        // release the values of this request now
        self.uri = Uri::default();
        if self.headers.capacity() > FIELDS {
            return;
        }
        SPARE.recycle(self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request<()> {
        let request = Request::put("/cart?id=7").version(Version::HTTP_2).extension(7_u8).extension("mine");
        request.header("a", "1").header("b", "2").header("a", "3").body(()).unwrap()
    }

    #[test]
    fn another_request_has_the_same_head_but_for_what_belongs_to_one_attempt() {
        let first = request();
        let kept = RequestTemplate::of(&first, &[carry::<u8>]).unwrap();
        let second = kept.request(());
        assert_eq!((second.method(), second.uri(), second.version()), (first.method(), first.uri(), first.version()));
        let fields = |request: &Request<()>| {
            let fields = request.headers().iter().map(|(name, value)| (name.clone(), value.clone()));
            fields.collect::<Vec<_>>()
        };
        assert_eq!(fields(&second), fields(&first), "also those of one name, in their order");
        assert_eq!(second.extensions().get(), Some(&7_u8));
        assert_eq!(second.extensions().get::<&str>(), None);
    }

    #[test]
    fn a_recycled_head_leaves_nothing_to_the_next_request() {
        RequestTemplate::of(&request(), &[carry::<u8>, carry::<&'static str>]).unwrap().recycle();
        let next = RequestTemplate::of(&Request::new(()), &[]).unwrap().request(());
        assert_eq!((next.method(), next.uri().path(), next.headers().len()), (&Method::GET, "/", 0));
        assert!(next.extensions().is_empty());
    }

    #[test]
    fn spare_heads_are_bounded_in_number_and_size() {
        let mut large = request();
        for field in 0..=FIELDS {
            large.headers_mut().append("x", HeaderValue::from(field));
        }
        RequestTemplate::of(&large, &[]).unwrap().recycle();
        let heads: Vec<_> = (0..200).map(|_| RequestTemplate::of(&request(), &[]).unwrap()).collect();
        heads.into_iter().for_each(RequestTemplate::recycle);
        let spare: Vec<_> = std::iter::from_fn(|| SPARE.acquire()).collect();
        assert!((1..200).contains(&spare.len()));
        assert!(spare.iter().all(|head| head.headers.capacity() <= FIELDS));
    }
}
