//! Checks over the network: HTTP, gRPC, TCP.

use std::ops::RangeInclusive;
use std::sync::Arc;

use http::header::{ACCEPT, HOST, USER_AGENT};
use http::{HeaderName, Request, Uri, Version};
#[cfg(feature = "http2")]
use hyper_util::client::legacy::connect::Connection;

use super::dial::{Io, Peer};
#[cfg(feature = "http2")]
use super::grpc;
use super::http::{self as exchange, CheckResponse, Content};
use super::progress::Progress;
use super::{HealthCheck, Kind};
use crate::balance::check_report::CheckReport;
use crate::balance::member::Member;
use crate::body::BoxError;
#[cfg(feature = "http2")]
use crate::cause::{BadGatewayCause, Failure, Phase};
#[cfg(feature = "rustls")]
use crate::client::TlsConnector;

const AGENT: &str = concat!("tower-upstream/", env!("CARGO_PKG_VERSION"), " (health check)");

/// A check over a connection of its own.
#[derive(Clone)]
pub(super) struct Remote {
    protocol: Protocol,
    peer: Peer,
    statuses: RangeInclusive<u16>,
    word: Option<Arc<str>>,
    /// The name of a response field with agent words.
    field: Option<Arc<str>>,
    /// HTTP/2 without TLS.
    #[cfg(feature = "http2")]
    prior_knowledge: bool,
    /// A setting that applies to HTTP checks only, if one was set.
    sets_http: Option<&'static str>,
}

#[derive(Clone)]
enum Protocol {
    Tcp,
    Http(Arc<str>),
    #[cfg(feature = "http2")]
    Grpc(Arc<str>),
}

/// Checks over the network; each check opens a connection of its own.
#[cfg_attr(docsrs, doc(cfg(feature = "client")))]
impl HealthCheck {
    /// Checks by a `GET` request to this path, such as `/healthz`.
    ///
    /// A response with a status from 200 to 299 has passed. [Agent words](CheckReport::from_words) in the body count
    /// too: an endpoint that responds `drain`, with any status, takes no calls. At most 4 KiB of the body are read.
    ///
    /// The request goes to the addresses of the member. If it has none, it goes to its key: `host:port`, or a URL,
    /// whose scheme decides about TLS.
    pub fn http(path: impl Into<Arc<str>>) -> Self {
        Self::remote(Protocol::Http(path.into()))
    }

    /// Checks by the `Check` method of `grpc.health.v1` for this service, or for the whole server if the name is empty.
    ///
    /// Without TLS it uses HTTP/2 with prior knowledge.
    #[cfg(feature = "http2")]
    #[cfg_attr(docsrs, doc(cfg(feature = "http2")))]
    pub fn grpc(service: impl Into<Arc<str>>) -> Self {
        Self::remote(Protocol::Grpc(service.into()))
    }

    /// Checks whether a connection is accepted, including the TLS handshake where TLS is used. No request is sent.
    pub fn tcp() -> Self {
        Self::remote(Protocol::Tcp)
    }

    fn remote(protocol: Protocol) -> Self {
        Self::of(Kind::Remote(Remote {
            protocol,
            peer: Peer::default(),
            statuses: 200..=299,
            word: None,
            field: None,
            #[cfg(feature = "http2")]
            prior_knowledge: false,
            sets_http: None,
        }))
    }

    fn with(mut self, change: impl FnOnce(&mut Remote)) -> Self {
        match &mut self.kind {
            Kind::Remote(remote) => change(remote),
            Kind::User(_) => self.is_misused = true,
        }
        self
    }

    /// Sets the name of the server for `Host` and TLS, with or without a port (default: the member's first address, or
    /// its key).
    pub fn host(self, host: impl Into<Arc<str>>) -> Self {
        self.with(|remote| remote.peer.host = Some(host.into()))
    }

    /// Uses TLS for all members, with the settings of this connector.
    ///
    /// By default TLS is used for members whose key is an `https` URL, and the platform's roots are trusted.
    #[cfg(feature = "rustls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "rustls")))]
    pub fn tls<C>(self, tls: &TlsConnector<C>) -> Self {
        self.with(|remote| (remote.peer.is_tls, remote.peer.tls) = (true, Some(tls.over(()))))
    }

    /// Uses HTTP/2 with prior knowledge in HTTP checks without TLS (default: HTTP/1.1; with TLS, ALPN decides).
    #[cfg(feature = "http2")]
    #[cfg_attr(docsrs, doc(cfg(feature = "http2")))]
    pub fn http2_prior_knowledge(self) -> Self {
        self.with(|remote| (remote.prior_knowledge, remote.sets_http) = (true, Some("http2_prior_knowledge")))
    }

    /// Sets the range of statuses with which an HTTP check has passed (default 200 to 299).
    pub fn expect_status(self, statuses: RangeInclusive<u16>) -> Self {
        self.with(|remote| (remote.statuses, remote.sets_http) = (statuses, Some("expect_status")))
    }

    /// Sets a text that the first 4 KiB of the body of an HTTP response have to contain (default: none).
    pub fn expect_body(self, word: impl Into<Arc<str>>) -> Self {
        self.with(|remote| (remote.word, remote.sets_http) = (Some(word.into()), Some("expect_body")))
    }

    /// Reads [agent words](CheckReport::from_words) also from this field of an HTTP response (default: from the body
    /// only).
    pub fn agent_field(self, name: impl Into<Arc<str>>) -> Self {
        self.with(|remote| (remote.field, remote.sets_http) = (Some(name.into()), Some("agent_field")))
    }
}

impl Remote {
    pub(super) fn validate(&self) -> Result<(), String> {
        if let Protocol::Http(path) = &self.protocol {
            if !path.starts_with('/') {
                return Err(format!("the path {path:?} of the health check does not start with a slash"));
            }
            if path.parse::<Uri>().is_err() {
                return Err(format!("the path {path:?} of the health check is not valid in a URI"));
            }
        } else if let Some(setting) = self.sets_http {
            return Err(format!("`{setting}` applies to HTTP checks only"));
        }
        #[cfg(feature = "http2")]
        if let Protocol::Grpc(service) = &self.protocol {
            if service.len() > grpc::MAX_SERVICE {
                return Err(format!(
                    "the name of the gRPC service has {} bytes, more than {}",
                    service.len(),
                    grpc::MAX_SERVICE
                ));
            }
        }
        if self.statuses.is_empty() || *self.statuses.start() < 200 || *self.statuses.end() > 599 {
            return Err(format!(
                "the range of statuses from {} to {} is empty or leaves 200 to 599",
                self.statuses.start(),
                self.statuses.end()
            ));
        }
        if self.word.as_ref().is_some_and(|word| word.is_empty()) {
            return Err("`expect_body` is empty, and every body contains that: set a word or remove it".to_owned());
        }
        if let Some(field) = &self.field {
            if HeaderName::try_from(&**field).is_err() {
                return Err(format!("`agent_field` {field:?} is not the name of a field"));
            }
        }
        if let Some(host) = &self.peer.host {
            if host.is_empty() || host.contains('@') || host.parse::<::http::uri::Authority>().is_err() {
                return Err(format!("`host` {host:?} is neither a host nor host:port"));
            }
        }
        Ok(())
    }

    pub(super) async fn perform(&self, member: &Member, progress: &Progress) -> Result<CheckReport, BoxError> {
        let uri = self.peer.uri(member)?;
        let io = self.peer.connect(member, &uri, progress).await?;
        match &self.protocol {
            Protocol::Tcp => Ok(CheckReport::passed()),
            Protocol::Http(path) => {
                let response = self.get(io, &uri, path, progress).await?;
                Ok(self.report(&response))
            }
            #[cfg(feature = "http2")]
            Protocol::Grpc(service) => {
                if uri.scheme() == Some(&::http::uri::Scheme::HTTPS) && !is_http2(&io) {
                    return Err(wrong_protocol().into());
                }
                let request = Request::post(absolute(&uri, grpc::PATH)?)
                    .version(Version::HTTP_2)
                    .header("content-type", "application/grpc")
                    .header("te", "trailers")
                    .header(USER_AGENT, AGENT)
                    .body(Content::new(grpc::request(service)))?;
                let response = exchange::send_http2(io, request, progress).await?;
                if response.status != 200 {
                    let report = CheckReport::failed(format!("status {} instead of 200", response.status.as_u16()));
                    return Ok(CheckReport { status: Some(response.status.as_u16()), ..report });
                }
                Ok(grpc::report(&response.body, &response.headers, response.trailers.as_ref()))
            }
        }
    }

    async fn get(&self, io: Io, uri: &Uri, path: &str, progress: &Progress) -> Result<CheckResponse, BoxError> {
        let request = Request::get(path).header(USER_AGENT, AGENT).header(ACCEPT, "*/*");
        #[cfg(feature = "http2")]
        if self.prior_knowledge || is_http2(&io) {
            let request = request.uri(absolute(uri, path)?).version(Version::HTTP_2).body(Content::default())?;
            return Ok(exchange::send_http2(io, request, progress).await?);
        }
        let host = uri.authority().map_or("", ::http::uri::Authority::as_str);
        let request = request.version(Version::HTTP_11).header(HOST, host).header("connection", "close");
        Ok(exchange::send(io, request.body(Content::default())?, progress).await?)
    }

    fn report(&self, response: &CheckResponse) -> CheckReport {
        let status = response.status.as_u16();
        let mut report = if !self.statuses.contains(&status) {
            let (first, last) = (self.statuses.start(), self.statuses.end());
            CheckReport::failed(format!("status {status} instead of {first} to {last}"))
        } else if self.word.as_ref().is_some_and(|word| !contains(&response.body, word.as_bytes())) {
            CheckReport::failed(format!("status {status}, and the body lacks the expected word"))
        } else {
            CheckReport::passed()
        };
        if let Some(value) = self.field.as_ref().and_then(|name| response.headers.get(&**name)) {
            report = report.with_words(value.as_bytes());
        }
        CheckReport { status: Some(status), ..report.with_words(&response.body) }
    }
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|window| window == word)
}

#[cfg(feature = "http2")]
fn is_http2(io: &Io) -> bool {
    io.connected().is_negotiated_h2()
}

#[cfg(feature = "http2")]
fn absolute(uri: &Uri, path: &str) -> Result<Uri, ::http::Error> {
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(path.parse()?);
    Ok(Uri::from_parts(parts)?)
}

#[cfg(feature = "http2")]
fn wrong_protocol() -> Failure {
    Failure::builder(BadGatewayCause::WrongProtocol).phase(Phase::Tls).source("TLS did not negotiate HTTP/2").build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::{HealthChecks, Member};

    #[test]
    fn settings_that_cannot_work_are_refused_with_the_reason() {
        let http = || HealthCheck::http("/health");
        let user = HealthCheck::new(|_: &Member| std::future::ready(Ok::<_, std::io::Error>(())));
        for (check, reason) in [
            (HealthCheck::http("health"), "does not start with a slash"),
            (HealthCheck::http(""), "does not start with a slash"),
            (HealthCheck::http("/a b"), "not valid in a URI"),
            (http().expect_status(std::ops::RangeInclusive::new(200, 100)), "statuses from 200 to 100"),
            (http().expect_status(100..=299), "statuses from 100 to 299"),
            (http().expect_body(""), "`expect_body` is empty"),
            (http().agent_field("a b"), "not the name of a field"),
            (http().host(""), "neither a host nor host:port"),
            (http().host("a b"), "neither a host nor host:port"),
            (HealthCheck::tcp().expect_body("ok"), "`expect_body` applies to HTTP checks only"),
            (user.expect_status(200..=299), "applied to a check of the user's"),
            #[cfg(feature = "http2")]
            (HealthCheck::grpc("x".repeat(1025)), "has 1025 bytes"),
            #[cfg(feature = "http2")]
            (HealthCheck::grpc("").expect_status(200..=200), "`expect_status` applies to HTTP checks only"),
        ] {
            let error = HealthChecks::new(check).unwrap_err();
            assert!(error.to_string().contains(reason), "{error}");
        }
        assert!(
            HealthChecks::new(http().host("shop.test:8443").agent_field("x-agent").expect_status(200..=399)).is_ok()
        );
    }

    #[test]
    fn a_check_goes_to_the_member_and_has_the_host_that_is_set() {
        let address: std::net::SocketAddr = ([10, 0, 0, 7], 8080).into();
        for (host, member, expected) in [
            (None, Member::new("shop.test"), "http://shop.test/"),
            (None, Member::new("https://shop.test:8443/base"), "https://shop.test:8443/"),
            (None, Member::new("[::1]:80"), "http://[::1]:80/"),
            (None, Member::new("pod-7").addresses([address]), "http://10.0.0.7:8080/"),
            (Some("api.test"), Member::new("pod-7").addresses([address]), "http://api.test:8080/"),
            (Some("api.test:1"), Member::new("shop.test:80"), "http://api.test:1/"),
        ] {
            let peer = Peer { host: host.map(Into::into), ..Peer::default() };
            assert_eq!(peer.uri(&member).unwrap().to_string(), expected);
        }
        for key in ["", "a b", "ftp://x"] {
            assert_eq!(Peer::default().uri(&Member::new(key)).unwrap_err().cause(), BadGatewayCause::InvalidTarget);
        }
    }
}
