//! Local responses, and the markers in response extensions.

use std::sync::OnceLock;

use bytes::Bytes;
use http::{Extensions, HeaderValue, Method, Response, StatusCode, header::CONTENT_TYPE};

use super::{Advice, BadGatewayCause, Failure, attach, user_summary};

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

/// Marks a later attempt of a request whose earlier one has counted against the upstream: one request is one vote.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CountedAttempt;

/// The peer that sent a response.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerAddress(pub(crate) std::net::SocketAddr);

/// Whether a failure response is local: neither relayed nor written by a service of the user's own.
pub(crate) fn is_local(extensions: &Extensions) -> bool {
    extensions.get::<CompleteResponse>().is_some() || extensions.get::<LocalResponse>().is_some()
}

/// The texts of failures with their usual status, each written once: a rejection has to be cheap.
static TEXTS: [[OnceLock<String>; Advice::COUNT]; BadGatewayCause::ALL.len()] =
    [const { [const { OnceLock::new() }; Advice::COUNT] }; BadGatewayCause::ALL.len()];

fn text(failure: &Failure, status: StatusCode, method: Option<&Method>) -> Bytes {
    let (cause, advice) = (failure.cause(), Advice::of(failure, method.is_some_and(Method::is_safe)));
    let summary = user_summary(failure, status);
    let write = || {
        let reason = status.canonical_reason().unwrap_or("Error");
        format!("{reason}\n\n{summary}\n{}\n", advice.text())
    };
    // the summary of a failed upgrade depends on more than these two
    if status == cause.status() && cause != BadGatewayCause::UpgradeFailed {
        Bytes::from_static(TEXTS[cause as usize][advice as usize].get_or_init(write).as_bytes())
    } else {
        write().into()
    }
}

/// Status, cause and a short text; without a method, the text is that for a request that is not safe.
pub(crate) fn local_response(failure: &Failure, status: StatusCode, method: Option<&Method>) -> Response<Bytes> {
    let mut answer = Response::new(text(failure, status, method));
    *answer.status_mut() = status;
    // capacity for Retry-After, Proxy-Status, X-Request-Id and fields added by the server
    answer.headers_mut().reserve(6);
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    attach(&mut answer, failure.clone());
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cause::{Evidence, Replay};

    #[test]
    fn the_text_is_that_of_the_status_the_failure_and_the_method() {
        let text = |failure: &Failure, status, method: &Method| {
            String::from_utf8(local_response(failure, status, Some(method)).into_body().to_vec()).unwrap()
        };
        let open = Failure::builder(BadGatewayCause::CircuitOpen).refusal().build();
        let usual = "Service Unavailable\n\nThe service is temporarily unavailable.\n\
                     Your request was not processed. Please try again in a moment.\n";
        assert_eq!(text(&open, open.status(), &Method::POST), usual);
        let other = usual.replace("Service Unavailable", "Bad Gateway");
        assert_eq!(text(&open, StatusCode::BAD_GATEWAY, &Method::POST), other);
        let lost = open.clone().into_builder().replay(Replay::Never, Evidence::Inferred).build();
        assert!(!text(&lost, open.status(), &Method::POST).contains("not processed"), "it is not proven");
        assert!(text(&lost, open.status(), &Method::GET).ends_with("\nIt is safe to reload this page.\n"));
        assert_eq!(text(&open, open.status(), &Method::POST), usual);
    }
}
