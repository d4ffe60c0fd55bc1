//! A request head kept for another attempt, in memory that is used again.

use std::cell::RefCell;

use http::{Extensions, HeaderName, HeaderValue, Method, Request, Uri, Version};

/// How one type of extension is copied for another attempt.
pub(super) type Carry = fn(&Extensions, &mut Extensions);

/// Copies an extension of this type, if there is one.
pub(super) fn carry<T: Clone + Send + Sync + 'static>(from: &Extensions, to: &mut Extensions) {
    if let Some(value) = from.get::<T>() {
        to.insert(value.clone());
    }
}

/// The head of a request, without what belongs to one attempt alone.
///
/// Extensions are copied by an allow-list: the handle of an upgrade, or of a captured connection, must never be taken along.
#[derive(Debug, Default)]
pub(super) struct KeptHead {
    method: Method,
    uri: Uri,
    version: Version,
    headers: Vec<(HeaderName, HeaderValue)>,
    extensions: Extensions,
}

/// So many heads are kept on a thread for later requests.
const SHELVED: usize = 64;
/// A head with more fields than this is not shelved: one large request must not hold memory for ever.
const FIELDS: usize = 64;

thread_local! {
    // boxed, as a request carries only the pointer; a list is cleared and filled again without an allocation; a map would be hashed anew
    #[allow(clippy::vec_box)]
    static SHELF: RefCell<Vec<Box<KeptHead>>> = const { RefCell::new(Vec::new()) };
}

impl KeptHead {
    /// Copies a request's head.
    pub(super) fn of<B>(request: &Request<B>, carried: &[Carry]) -> Box<Self> {
        let mut kept = SHELF.with_borrow_mut(Vec::pop).unwrap_or_default();
        kept.method.clone_from(request.method());
        kept.uri.clone_from(request.uri());
        kept.version = request.version();
        let fields = request.headers().iter().map(|(name, value)| (name.clone(), value.clone()));
        kept.headers.extend(fields);
        if !request.extensions().is_empty() {
            for carry in carried {
                carry(request.extensions(), &mut kept.extensions);
            }
        }
        kept
    }

    /// Another request with this head.
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

    /// Puts it where the next request finds it.
    pub(super) fn shelve(mut self: Box<Self>) {
        self.headers.clear();
        self.extensions.clear();
        // what the values of this request point to goes now
        self.uri = Uri::default();
        if self.headers.capacity() > FIELDS {
            return;
        }
        // a thread that is ending has no shelf any more
        let _ = SHELF.try_with(|shelf| {
            let mut heads = shelf.borrow_mut();
            if heads.len() < SHELVED {
                heads.push(self);
            }
        });
    }
}
