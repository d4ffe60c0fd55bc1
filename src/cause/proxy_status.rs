//! The `Proxy-Status` field (RFC 9209), read and written.

use http::{HeaderMap, StatusCode};

use super::Failure;

/// Writes this deployment's member of `Proxy-Status`.
#[derive(Clone, Debug)]
pub struct ProxyStatus {}

/// The name is no structured-field token or string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidName(());

/// One hop's member, as read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {}

impl ProxyStatus {
    /// Names the deployment.
    ///
    /// # Errors
    /// x
    pub fn new(_name: &str) -> Result<Self, InvalidName> {
        todo!()
    }

    /// x
    pub fn append_failure(&self, _headers: &mut HeaderMap, _failure: &Failure) {}

    /// x
    pub fn append_received(&self, _headers: &mut HeaderMap, _status: StatusCode) {}
}

/// x
pub fn members(_headers: &HeaderMap) -> Vec<Member> {
    Vec::new()
}
