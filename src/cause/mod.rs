//! Failure causes and the record behind each.
//!
//! [`BadGatewayCause`] says *what* went wrong; [`Failure`] is the record: phase, replay safety and its
//! evidence, peer, elapsed time, source error. Both travel in the response's extensions:
//!
//! ```
//! use tower_upstream::{BadGatewayCause, Failure, cause};
//!
//! let mut response = http::Response::new(());
//! cause::attach(&mut response, Failure::new(BadGatewayCause::ConnectionRefused));
//! assert_eq!(response.extensions().get::<BadGatewayCause>(), Some(&BadGatewayCause::ConnectionRefused));
//! assert_eq!(BadGatewayCause::of(&response).unwrap().status(), 502);
//! ```
//!
//! The causes, their RFC 9209 classes and their texts for operators are data in one static table.

pub(crate) mod bad_gateway_cause;
mod blame;
mod client_call;
mod facts;
pub(crate) mod failure;
mod grpc;
mod markers;
mod properties;
mod proxy_status;
mod proxy_status_entry;
mod retry_stop;
mod structured_fields;
mod table;
mod user_text;

use http::Response;

pub(crate) use self::bad_gateway_cause::BadGatewayCause;
pub(crate) use self::blame::{Blame, CallEnding, blame, is_gateway_error};
pub(crate) use self::client_call::{ClientCall, ClientCalls};
pub(crate) use self::failure::{DRAINING, TUNNEL_LIMIT};
pub(crate) use self::grpc::{Protocol, RESOURCE_EXHAUSTED, UNAVAILABLE};
pub(crate) use self::markers::{
    CompleteResponse, CountedAttempt, LocalResponse, PeerAddress, RejectedRequest, is_local, local_response,
};

pub(crate) use self::failure::Failure;
pub use self::failure::{Connection, Detail, Evidence, FailureBuilder, Phase};
pub(crate) use self::properties::Prospect;
pub use self::properties::{Category, Replay};
pub(crate) use self::proxy_status::reduce as reduce_proxy_status;
pub use self::proxy_status::{InvalidProxyName, ProxyStatus};
pub use self::proxy_status_entry::{ProxyStatusEntry, entries};
pub use self::retry_stop::RetryStop;
pub use self::user_text::Advice;
pub(crate) use self::user_text::user_summary;

/// Puts a failure and its cause into a response's extensions, where every layer looks for them.
pub fn attach<B>(response: &mut Response<B>, failure: Failure) {
    let extensions = response.extensions_mut();
    extensions.insert(failure.cause());
    extensions.insert(failure);
}

impl BadGatewayCause {
    /// The cause attached to a response, by this crate or by a user's own service.
    pub fn of<B>(response: &Response<B>) -> Option<Self> {
        let extensions = response.extensions();
        match extensions.get::<Failure>() {
            Some(failure) => Some(failure.cause()),
            None => extensions.get::<Self>().copied(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_cause_of_a_users_own_service_is_understood() {
        let mut response = Response::new(());
        assert_eq!(BadGatewayCause::of(&response), None);
        response.extensions_mut().insert(BadGatewayCause::NoRoute);
        assert_eq!(BadGatewayCause::of(&response), Some(BadGatewayCause::NoRoute));
    }
}
