//! Settings of the layer: how heads are forwarded to the inner client.

use bytes::Bytes;
use http::header::{CONNECTION, UPGRADE};
use http::uri::{self, Authority, PathAndQuery, Uri};
use http::{HeaderValue, Response, Version, request};

use super::rewrite::UnsolicitedUpgrade;
use super::{ClientInfo, ForwardingRules, Rejection, Scheme};
use crate::cause::{self, BadGatewayCause, Failure, LocalResponse, Phase};

/// The rules, the default client, and the requirements of the inner client.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) rules: ForwardingRules,
    pub(super) client_info: ClientInfo,
    upstream: Option<(uri::Scheme, Authority)>,
    /// The upstream's authority for `Host`.
    host: HeaderValue,
    pub(super) protocol: ClientProtocol,
}

/// The protocol of the inner client.
#[derive(Clone, Copy, Debug)]
pub(super) enum ClientProtocol {
    Http1,
    Http2,
}

impl Settings {
    pub(super) fn new(rules: ForwardingRules) -> Self {
        // RFC 9112 section 3.2: a target without an authority has an empty Host
        let host = HeaderValue::from_static("");
        Self { rules, client_info: ClientInfo::unknown(), upstream: None, host, protocol: ClientProtocol::Http1 }
    }

    pub(super) fn send_to(&mut self, scheme: Scheme, authority: Authority) {
        let host = authority.as_str().rsplit('@').next().unwrap_or_default();
        // an authority is visible ASCII
        self.host = HeaderValue::from_str(host).unwrap_or(HeaderValue::from_static(""));
        let scheme = match scheme {
            Scheme::Http => uri::Scheme::HTTP,
            Scheme::Https => uri::Scheme::HTTPS,
        };
        self.upstream = Some((scheme, authority));
    }

    /// Rewrites the head for the upstream and returns the requested protocols, or returns a local response.
    pub(super) fn forward_request<B>(&self, parts: &mut request::Parts) -> Result<Option<HeaderValue>, Response<B>>
    where
        B: From<Bytes>,
    {
        let passage =
            self.rules.forward_request(parts, &self.client_info, &self.host).map_err(|rejection| match rejection {
                Rejection::Respond(answer) => answer.into_rejected_response(),
                Rejection::Loop => {
                    refused(Failure::builder(BadGatewayCause::LoopDetected).phase(Phase::Gateway).refusal())
                }
            })?;
        let asked = match self.protocol {
            ClientProtocol::Http1 => {
                passage.downgrade_to_h1(parts);
                passage.upgrade().cloned()
            }
            ClientProtocol::Http2 => {
                parts.headers.remove(CONNECTION);
                parts.headers.remove(UPGRADE);
                parts.version = Version::HTTP_2;
                None
            }
        };
        if let Some((scheme, authority)) = &self.upstream {
            parts.uri = absolute(std::mem::take(&mut parts.uri), scheme, authority);
        }
        Ok(asked)
    }

    pub(super) fn forward_response<B: From<Bytes>>(
        &self,
        answer: Response<B>,
        asked: Option<&HeaderValue>,
    ) -> Response<B> {
        let (mut parts, body) = answer.into_parts();
        match self.rules.forward_response(&mut parts, asked) {
            Ok(()) => Response::from_parts(parts, body),
            Err(UnsolicitedUpgrade) => {
                refused(Failure::builder(BadGatewayCause::UpgradeFailed).detail(UnsolicitedUpgrade::DETAIL))
            }
        }
    }
}

/// Scheme and authority before a URI in origin-form, or `*`.
fn absolute(uri: Uri, scheme: &uri::Scheme, authority: &Authority) -> Uri {
    let mut parts = uri.into_parts();
    parts.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
    parts.scheme = Some(scheme.clone());
    parts.authority = Some(authority.clone());
    Uri::from_parts(parts).unwrap_or_default()
}

#[cold]
fn refused<B: From<Bytes>>(failure: cause::FailureBuilder) -> Response<B> {
    let failure = failure.build();
    let mut answer = cause::local_response(&failure, failure.status(), None);
    answer.extensions_mut().insert(LocalResponse);
    answer.map(B::from)
}
