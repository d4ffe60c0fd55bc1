//! What was told already, so that layers around each other tell it once.

use std::error::Error;
use std::fmt;

use crate::cause::Failure;

/// In a relayed response's extensions: nothing is left to be said of it.
///
/// Its failure is reported and, where that is on, in its `Proxy-Status`. Our own answers have
/// [`CompleteAnswer`](crate::cause::CompleteResponse) in its place.
#[derive(Clone, Copy)]
pub(crate) struct AlreadyReported;

/// In the extensions of an answer of 400 or above, by whoever relayed it: what is known of its exchange.
#[derive(Clone)]
pub(crate) struct RelayedFailure(pub(crate) Failure);

/// Between a body's failure and its source: it is reported.
///
/// A body has no extensions, and frameworks box it; its error alone comes through.
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

/// The failure, to be handed on after it was reported.
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
        let failure = Failure::from_body_error(error, &crate::classify::AttemptContext::default());
        assert!(!is_reported(&failure));
        let failure = reported(failure);
        assert!(is_reported(&failure));
        assert!(Chain::new(&failure).find_map(|link| link.downcast_ref::<io::Error>()).is_some());
    }
}
