//! How a head goes to the client inside, and what is answered in its place.

use bytes::Bytes;
use http::header::{CONNECTION, UPGRADE};
use http::uri::{self, Authority, PathAndQuery, Uri};
use http::{HeaderValue, Response, Version, request};

use super::onward::UnaskedSwitch;
use super::{Caller, Rejection, Rules, Scheme};
use crate::cause::{self, BadGatewayCause, Failure, LocalResponse, Phase};

/// The rules, who asks, and what the client inside wants.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) rules: Rules,
    pub(super) caller: Caller,
    upstream: Option<(uri::Scheme, Authority)>,
    /// What the upstream is called in `Host`.
    host: HeaderValue,
    pub(super) client: Client,
}

/// What the client inside speaks.
#[derive(Clone, Copy, Debug)]
pub(super) enum Client {
    Http1,
    Http2,
}

impl Settings {
    pub(super) fn new(rules: Rules) -> Self {
        // RFC 9112 section 3.2: a target without an authority has an empty Host
        let host = HeaderValue::from_static("");
        Self { rules, caller: Caller::unknown(), upstream: None, host, client: Client::Http1 }
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

    /// Makes the head the upstream's and returns the protocols it asks for, or answers it here.
    pub(super) fn pass_on<B>(&self, parts: &mut request::Parts) -> Result<Option<HeaderValue>, Response<B>>
    where
        B: From<Bytes>,
    {
        let passage = self.rules.pass_on(parts, &self.caller, &self.host).map_err(|rejection| match rejection {
            Rejection::Answer(answer) => answer.rejects(),
            Rejection::Loop => refused(Failure::builder(BadGatewayCause::LoopDetected).phase(Phase::Gateway).refusal()),
        })?;
        let asked = match self.client {
            Client::Http1 => {
                passage.by_http1(parts);
                passage.upgrade().cloned()
            }
            Client::Http2 => {
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

    pub(super) fn pass_back<B: From<Bytes>>(&self, answer: Response<B>, asked: Option<&HeaderValue>) -> Response<B> {
        let (mut parts, body) = answer.into_parts();
        match self.rules.pass_back(&mut parts, asked) {
            Ok(()) => Response::from_parts(parts, body),
            Err(UnaskedSwitch) => {
                refused(Failure::builder(BadGatewayCause::UpgradeFailed).detail(UnaskedSwitch::DETAIL))
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
    let mut answer = cause::local_response(&failure, failure.status());
    answer.extensions_mut().insert(LocalResponse);
    answer.map(B::from)
}
