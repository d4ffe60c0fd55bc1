//! Errors in which a retry layer sees whether it is safe to send a request again.

use std::convert::Infallible;

use crate::cause::Failure;

/// An error that has a [`Failure`], by which a retry layer decides.
///
/// Either the service never errs and its failures are responses, or its error is the record itself, as that of
/// [`ReverseProxy`](https://docs.rs/tower-upstream/latest/tower_upstream/client/struct.ReverseProxy.html).
#[diagnostic::on_unimplemented(
    message = "`RetryLayer` cannot see in `{Self}` whether it is safe to send a request again",
    label = "the service inside errs with `{Self}`",
    note = "put `ClassifyLayer` right around the service, inside of `RetryLayer`: its answers carry causes, and it never errs"
)]
pub trait HasFailure: sealed::Convert + 'static {}

impl HasFailure for Infallible {}
impl HasFailure for Failure {}

impl sealed::Convert for Infallible {
    fn into_failure(self) -> Failure {
        match self {}
    }

    fn from_failure(failure: Failure) -> Result<Self, Failure> {
        Err(failure)
    }
}

impl sealed::Convert for Failure {
    fn into_failure(self) -> Failure {
        self
    }

    fn from_failure(failure: Failure) -> Result<Self, Failure> {
        Ok(failure)
    }
}

mod sealed {
    use super::Failure;

    #[allow(unnameable_types)] // that is its purpose
    pub trait Convert: Sized {
        fn into_failure(self) -> Failure;

        /// Converts a failure to the error; returns the failure itself if failures are responses.
        fn from_failure(failure: Failure) -> Result<Self, Failure>;
    }
}
