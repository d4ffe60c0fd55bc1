//! The failure signal of a response.

use http::{Response, StatusCode};

use crate::cause::{BadGatewayCause, Failure, Protocol};

/// The failure signal of a response: the record, else a bare cause, else a status.
#[derive(Clone, Copy, Debug)]
pub(crate) enum FailureSignal<'a> {
    /// The record in its extensions.
    Failure(&'a Failure),
    /// A cause without a record, attached by a service of the user's: its table row applies, but it proves nothing.
    Cause(BadGatewayCause),
    /// A response of the upstream itself: only a status.
    Status(StatusCode),
    /// The upstream's own gRPC status, in a head without a body.
    Grpc(u8),
}

impl<'a> FailureSignal<'a> {
    /// Reads a response; `None` if it is not a failure that a retry could fix.
    #[inline]
    pub(crate) fn of<B>(response: &'a Response<B>, protocol: Protocol) -> Option<Self> {
        let extensions = response.extensions();
        if let Some(failure) = extensions.get::<Failure>() {
            return Some(Self::Failure(failure));
        }
        let status = response.status();
        match extensions.get::<BadGatewayCause>() {
            // this cause stands for the status of the response
            Some(BadGatewayCause::UpstreamStatus) => return Some(Self::Status(status)),
            Some(cause) => return Some(Self::Cause(*cause)),
            None => {}
        }
        if matches!(status.as_u16(), 429 | 502..=504) {
            return Some(Self::Status(status));
        }
        protocol.status(response.headers()).filter(|code| *code != 0).map(Self::Grpc)
    }

    /// Whether the record itself rules out further attempts.
    pub(super) fn is_final(self) -> bool {
        matches!(self, Self::Failure(failure) if failure.retry_stop().is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cause::attach;
    use http::{HeaderName, HeaderValue};

    const GRPC: Protocol = Protocol::Grpc { has_deadline: false };
    const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

    fn response(status: u16) -> Response<()> {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        response
    }

    #[test]
    fn the_record_comes_before_a_cause_and_a_cause_before_the_status() {
        let mut answer = response(503);
        assert!(matches!(
            FailureSignal::of(&answer, Protocol::Http),
            Some(FailureSignal::Status(StatusCode::SERVICE_UNAVAILABLE))
        ));
        answer.extensions_mut().insert(BadGatewayCause::TlsTimeout);
        assert!(matches!(
            FailureSignal::of(&answer, Protocol::Http),
            Some(FailureSignal::Cause(BadGatewayCause::TlsTimeout))
        ));
        attach(&mut answer, Failure::new(BadGatewayCause::ConnectionRefused));
        assert!(matches!(FailureSignal::of(&answer, Protocol::Http), Some(FailureSignal::Failure(_))));
    }

    #[test]
    fn a_bare_upstream_status_is_the_status_of_its_answer() {
        let mut answer = response(504);
        answer.extensions_mut().insert(BadGatewayCause::UpstreamStatus);
        assert!(matches!(
            FailureSignal::of(&answer, Protocol::Http),
            Some(FailureSignal::Status(StatusCode::GATEWAY_TIMEOUT))
        ));
    }

    #[test]
    fn an_answer_that_no_retry_mends_shows_nothing() {
        for status in [200, 204, 304, 404, 500, 501, 505] {
            assert!(FailureSignal::of(&response(status), Protocol::Http).is_none());
            assert!(FailureSignal::of(&response(status), GRPC).is_none());
        }
    }

    #[test]
    fn a_grpc_status_is_read_where_grpc_is_spoken() {
        for (value, code) in [("14", Some(14)), ("8", Some(8)), ("0", None), ("", None), ("x", None), ("999", None)] {
            let mut answer = response(200);
            answer.headers_mut().insert(GRPC_STATUS, HeaderValue::from_static(value));
            assert!(FailureSignal::of(&answer, Protocol::Http).is_none());
            let shown = FailureSignal::of(&answer, GRPC).map(|shown| match shown {
                FailureSignal::Grpc(code) => code,
                other => panic!("{other:?}"),
            });
            assert_eq!(shown, code, "{value:?}");
        }
    }
}
