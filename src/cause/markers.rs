//! Local responses, and the markers in response extensions.

use std::sync::OnceLock;

use bytes::Bytes;
use http::{Extensions, HeaderValue, Response, StatusCode, header::CONTENT_TYPE};

use super::{BadGatewayCause, Failure, attach};

/// Marks a response that a layer of this crate made.
///
/// A [`ClassifyLayer`](crate::ClassifyLayer) around that layer reports it and completes its fields.
#[derive(Clone, Copy)]
pub(crate) struct LocalResponse;

/// Replaces [`LocalResponse`] once the response is reported and its fields are complete.
///
/// A separate marker: a fourth extension beside cause, record and one marker would make the map grow.
#[derive(Clone, Copy)]
pub(crate) struct CompleteResponse;

/// Marks the gateway's own response to a request that it did not forward.
#[derive(Clone, Copy)]
pub(crate) struct RejectedRequest;

/// Whether a failure response is local: neither relayed nor written by a service of the user's own.
pub(crate) fn is_local(extensions: &Extensions) -> bool {
    extensions.get::<CompleteResponse>().is_some() || extensions.get::<LocalResponse>().is_some()
}

/// The default texts, each created once: a refusal has to be cheap.
static TEXTS: [OnceLock<String>; BadGatewayCause::ALL.len()] = [const { OnceLock::new() }; BadGatewayCause::ALL.len()];

fn text(failure: &Failure, status: StatusCode) -> Bytes {
    let (cause, hint) = (failure.cause(), failure.user_hint());
    let written = || {
        let reason = status.canonical_reason().unwrap_or("Error");
        format!("{reason}\n\n{}\n", hint.unwrap_or_default())
    };
    if status == cause.status() && hint == cause.user_hint() {
        Bytes::from_static(TEXTS[cause as usize].get_or_init(written).as_bytes())
    } else {
        written().into()
    }
}

/// Status, cause and one line of text.
pub(crate) fn local_response(failure: &Failure, status: StatusCode) -> Response<Bytes> {
    let mut answer = Response::new(text(failure, status));
    *answer.status_mut() = status;
    // room for Retry-After, Proxy-Status, X-Request-Id and fields added by the server
    answer.headers_mut().reserve(6);
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    attach(&mut answer, failure.clone());
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cause::Replay;

    #[test]
    fn the_text_is_that_of_the_status_and_the_failure() {
        let text = |failure: &Failure, status| {
            String::from_utf8(local_response(failure, status).into_body().to_vec()).unwrap()
        };
        let open = Failure::builder(BadGatewayCause::CircuitOpen).refusal().build();
        let usual = "Service Unavailable\n\nNothing was processed. Try again.\n";
        assert_eq!(text(&open, open.status()), usual);
        assert_eq!(text(&open, StatusCode::BAD_GATEWAY), usual.replace("Service Unavailable", "Bad Gateway"));
        let lost =
            Failure::builder(BadGatewayCause::CircuitOpen).replay(Replay::Never, crate::cause::Evidence::Inferred);
        assert_ne!(text(&lost.build(), open.status()), usual, "what is not proven is not said");
        assert_eq!(text(&open, open.status()), usual);
    }
}
