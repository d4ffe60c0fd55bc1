//! Markers that prevent nested layers from reporting a failure twice.

use std::error::Error;
use std::fmt;

use crate::cause::Failure;

/// Marks a relayed response whose failure is already reported.
///
/// Its `Proxy-Status` member is added too, if enabled. Local responses have
/// [`CompleteResponse`](crate::cause::CompleteResponse) instead.
#[derive(Clone, Copy)]
pub(crate) struct AlreadyReported;

/// In the extensions of a relayed response with a status of 400 or above: the record made by the client.
#[derive(Clone)]
pub(crate) struct RelayedFailure(pub(crate) Failure);

/// Wrapper in the error chain: this failure is already reported.
///
/// A body has no extensions, and frameworks box it; only its error is passed through.
#[derive(Debug)]
struct ReportedError(Failure);

impl fmt::Display for ReportedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the gateway reported this failure")
    }
}

impl Error for ReportedError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

/// Marks a failure as reported.
pub(super) fn reported(failure: Failure) -> Failure {
    failure.clone().into_builder().source(ReportedError(failure)).build()
}

pub(super) fn is_reported(failure: &Failure) -> bool {
    failure.source().is_some_and(<dyn Error>::is::<ReportedError>)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::classify::Chain;

    #[test]
    fn a_reported_failure_keeps_its_source_behind_the_mark() {
        let error = io::Error::from(io::ErrorKind::ConnectionReset);
        let failure = Failure::from_body_error(error);
        assert!(!is_reported(&failure));
        let failure = reported(failure);
        assert!(is_reported(&failure));
        assert!(Chain::new(&failure).find_map(|link| link.downcast_ref::<io::Error>()).is_some());
    }
}
