//! Reads deadlines from clients and passes them on to upstreams and handlers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use http::{Extensions, HeaderMap, Request};
use tokio::time::Instant;

use super::header::Parsed;
use super::{Deadline, DeadlineHeader};
use crate::opaque::Opaque;

/// Settings: which deadlines are read from clients, and which are passed on to upstreams and handlers.
///
/// | setting | default |
/// |---|---|
/// | [`trust`](Self::trust): clients whose fields are read | none |
/// | [`fields`](Self::fields): fields that are read | the five relative ones of [`DeadlineHeader`] |
/// | [`forward`](Self::forward): field that is sent to the upstream | none |
/// | [`margin`](Self::margin): subtracted from it | 5 ms, or 1 % of the remaining time if that is more |
/// | [`expose`](Self::expose): adds the extension for handlers | off |
///
/// Of several fields, and of several values of one field, the shortest counts: each was set by a hop on the way that will
/// have given up by then. A value that is malformed or more than a day ahead is ignored and
/// [counted](Self::skew_rejections). A deadline already in the request's extensions is kept if it is the earlier
/// one.
///
/// No client is trusted by default: with deadlines of 1 ms a client could make an upstream fail at will, and
/// breakers, budgets and adaptive timeouts would blame the upstream.
///
/// ```
/// use axum::extract::ConnectInfo;
/// use http::Extensions;
/// use std::net::SocketAddr;
/// use tower_upstream::deadline::{DeadlinePropagation, DeadlineHeader};
///
/// // an app served with `into_make_service_with_connect_info::<SocketAddr>()`
/// fn is_neighbour(extensions: &Extensions) -> bool {
///     let caller = extensions.get::<ConnectInfo<SocketAddr>>();
///     caller.is_some_and(|ConnectInfo(address)| address.ip().is_loopback())
/// }
///
/// let deadlines = DeadlinePropagation::new().trust(is_neighbour).forward(DeadlineHeader::request_timeout()).expose();
/// assert_eq!(deadlines.skew_rejections(), 0);
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct DeadlinePropagation {
    fields: Vec<DeadlineHeader>,
    known: Vec<DeadlineHeader>,
    trust: TrustedClients,
    forward: Option<DeadlineHeader>,
    margin: Duration,
    expose: bool,
    skew_rejections: Arc<AtomicU64>,
}

#[derive(Clone, Debug)]
enum TrustedClients {
    None,
    All,
    Matching(Opaque<Arc<Trusts>>),
}

type Trusts = dyn Fn(&Extensions) -> bool + Send + Sync;

fn known() -> Vec<DeadlineHeader> {
    let envoy = [DeadlineHeader::envoy_expected(), DeadlineHeader::envoy_upstream()];
    [DeadlineHeader::grpc(), DeadlineHeader::linkerd(), DeadlineHeader::request_timeout()]
        .into_iter()
        .chain(envoy)
        .collect()
}

impl Default for DeadlinePropagation {
    fn default() -> Self {
        Self::new()
    }
}

impl DeadlinePropagation {
    /// The defaults of the table: no field is read and none is written.
    pub fn new() -> Self {
        Self {
            fields: known(),
            known: known(),
            trust: TrustedClients::None,
            forward: None,
            margin: Duration::from_millis(5),
            expose: false,
            skew_rejections: Arc::default(),
        }
    }

    /// Reads the fields of requests whose extensions satisfy this predicate (default: of none).
    pub fn trust(mut self, those: impl Fn(&Extensions) -> bool + Send + Sync + 'static) -> Self {
        self.trust = TrustedClients::Matching(Opaque(Arc::new(those)));
        self
    }

    /// Reads the fields of every client: for services that only trusted clients can reach.
    pub fn trust_everyone(mut self) -> Self {
        self.trust = TrustedClients::All;
        self
    }

    /// Reads these fields (default: the five relative ones of [`DeadlineHeader`]).
    ///
    /// An [absolute](DeadlineHeader::absolute) field is read only if it is listed here.
    pub fn fields(mut self, fields: impl IntoIterator<Item = DeadlineHeader>) -> Self {
        self.fields = fields.into_iter().collect();
        self
    }

    /// Sends this field to the upstream: the remaining time less the margin (default: none).
    ///
    /// The upstream takes the field as ours. So every deadline field of the request, one of [`DeadlineHeader`]'s five or one
    /// listed in [`fields`](Self::fields), is removed from every request, even if there is no deadline to write. Without this
    /// setting fields pass unchanged: `grpc-timeout` is between client and server.
    pub fn forward(mut self, field: DeadlineHeader) -> Self {
        self.forward = Some(field);
        self
    }

    /// Sets the minimum margin subtracted from the forwarded time (default 5 ms); 1 % of it if that is more.
    ///
    /// It is the time a response needs to get back to this gateway. With too small a margin our own timeout fires first, and the
    /// upstream's response, which says what took so long, comes too late.
    pub fn margin(mut self, least: Duration) -> Self {
        self.margin = least;
        self
    }

    /// Adds the call's [`Deadline`] to the request's extensions, for handlers (default: off).
    ///
    /// Off by default, because a request's first extension costs three allocations.
    pub fn expose(mut self) -> Self {
        self.expose = true;
        self
    }

    /// Number of ignored values, of all clones together: malformed or more than a day ahead.
    pub fn skew_rejections(&self) -> u64 {
        self.skew_rejections.load(Relaxed)
    }

    /// Reads the deadline from the header fields of a trusted client.
    pub fn extract(&self, headers: &HeaderMap, extensions: &Extensions, now: Instant) -> Option<Deadline> {
        self.extract_by(headers, extensions, now, SystemTime::now)
    }

    fn extract_by(
        &self,
        headers: &HeaderMap,
        extensions: &Extensions,
        now: Instant,
        wall: impl Fn() -> SystemTime,
    ) -> Option<Deadline> {
        let trusted = match &self.trust {
            TrustedClients::None => false,
            TrustedClients::All => true,
            TrustedClients::Matching(those) => those(extensions),
        };
        if !trusted {
            return None;
        }
        let mut earliest = None;
        for field in &self.fields {
            for value in headers.get_all(field.name()) {
                let deadline = match field.read(value.as_bytes(), &wall) {
                    Parsed::Remaining(left) => Deadline::after(now, left),
                    Parsed::RemainingByClientClock(left) => Deadline::after(now, left).by_client_clock(),
                    Parsed::Unlimited => continue,
                    Parsed::Invalid => {
                        self.skew_rejections.fetch_add(1, Relaxed);
                        continue;
                    }
                };
                earliest = Deadline::min(earliest, Some(deadline));
            }
        }
        earliest.map(Deadline::of_client)
    }

    /// Writes the field, with the remaining time of `deadline` less the margin, and the extension, each if configured.
    pub fn inject<B>(&self, request: &mut Request<B>, deadline: Option<Deadline>, now: Instant) {
        if let Some(field) = &self.forward {
            let headers = request.headers_mut();
            for read in self.fields.iter().chain(&self.known) {
                headers.remove(read.name());
            }
            headers.remove(field.name());
            if let Some(deadline) = deadline {
                let left = deadline.remaining(now);
                let left = left.saturating_sub(self.margin.max(left / 100));
                headers.insert(field.name().clone(), field.value(left, SystemTime::now));
            }
        }
        if let (true, Some(deadline)) = (self.expose, deadline) {
            request.extensions_mut().insert(deadline);
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::*;
    use crate::deadline::Clock;

    fn request(fields: &[(&'static str, &str)]) -> Request<()> {
        let mut request = Request::new(());
        for (name, value) in fields {
            request.headers_mut().append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        request
    }

    /// The remaining time that these settings read, in milliseconds.
    fn left(deadlines: &DeadlinePropagation, fields: &[(&'static str, &str)]) -> Option<u128> {
        let (request, now) = (request(fields), Instant::now());
        let deadline = deadlines.extract(request.headers(), request.extensions(), now)?;
        Some(deadline.remaining(now).as_millis())
    }

    /// The forwarded fields if this much time remains.
    fn out(deadlines: &DeadlinePropagation, mut request: Request<()>, left: Option<Duration>) -> Request<()> {
        let now = Instant::now();
        deadlines.inject(&mut request, left.map(|left| Deadline::after(now, left)), now);
        request
    }

    fn sorted(request: &Request<()>) -> Vec<(&str, &str)> {
        let fields = request.headers().iter();
        let mut fields: Vec<_> = fields.map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        fields.sort_unstable();
        fields
    }

    #[test]
    fn no_client_is_trusted_by_default() {
        let asked = [("grpc-timeout", "1S")];
        assert_eq!(left(&DeadlinePropagation::new(), &asked), None);
        assert_eq!(left(&DeadlinePropagation::new().trust_everyone(), &asked), Some(1000));
    }

    #[test]
    fn trust_is_decided_by_the_requests_extensions() {
        let deadlines = DeadlinePropagation::new().trust(|extensions| extensions.get() == Some(&"neighbour"));
        let mut request = request(&[("l5d-timeout", "2s")]);
        let read = |request: &Request<()>| deadlines.extract(request.headers(), request.extensions(), Instant::now());
        request.extensions_mut().insert("stranger");
        assert_eq!(read(&request), None);
        request.extensions_mut().insert("neighbour");
        assert!(read(&request).is_some());
    }

    #[test]
    fn the_shortest_of_all_fields_and_of_all_values_counts() {
        let deadlines = DeadlinePropagation::new().trust_everyone();
        let fields = [
            ("grpc-timeout", "9S"),
            ("x-envoy-expected-rq-timeout-ms", "0"),
            ("x-envoy-upstream-rq-timeout-ms", "700"),
            ("l5d-timeout", "3s"),
            ("x-request-timeout-ms", "800"),
            ("x-request-timeout-ms", "400"),
        ];
        assert_eq!(left(&deadlines, &fields), Some(400));
        assert_eq!(deadlines.skew_rejections(), 0);
    }

    #[test]
    fn nonsense_is_ignored_and_counted_by_all_clones_together() {
        let deadlines = DeadlinePropagation::new().trust_everyone();
        let fields = [("grpc-timeout", "soon"), ("l5d-timeout", "9d"), ("x-request-timeout-ms", "70")];
        assert_eq!(left(&deadlines.clone(), &fields), Some(70));
        assert_eq!(left(&deadlines.clone(), &[("x-request-timeout-ms", "")]), None);
        assert_eq!(deadlines.skew_rejections(), 3);
    }

    #[test]
    fn a_time_of_day_is_read_only_where_it_is_named() {
        let name = HeaderName::from_static("x-deadline");
        let request = request(&[("x-deadline", "1000250")]);
        let wall = || SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let read = |deadlines: DeadlinePropagation, now| {
            deadlines.extract_by(request.headers(), request.extensions(), now, wall)
        };
        let (deadlines, now) = (DeadlinePropagation::new().trust_everyone(), Instant::now());
        assert_eq!(read(deadlines.clone(), now), None);
        let deadline = read(deadlines.fields([DeadlineHeader::absolute(name)]), now).unwrap();
        assert_eq!((deadline.remaining(now).as_millis(), deadline.clock()), (250, Clock::Client));
    }

    #[test]
    fn the_remaining_time_less_the_margin_is_forwarded() {
        let second = Some(Duration::from_secs(1));
        for (field, value) in [
            (DeadlineHeader::grpc(), "990000u"),
            (DeadlineHeader::envoy_expected(), "990"),
            (DeadlineHeader::linkerd(), "990ms"),
            (DeadlineHeader::request_timeout(), "990"),
        ] {
            let sent = out(&DeadlinePropagation::new().forward(field.clone()), Request::new(()), second);
            assert_eq!(sorted(&sent), [(field.name().as_str(), value)]);
        }
        let deadlines = DeadlinePropagation::new().forward(DeadlineHeader::request_timeout());
        for (left, value) in [(100, "95"), (10_000, "9900"), (3, "1")] {
            let sent = out(&deadlines, Request::new(()), Some(Duration::from_millis(left)));
            assert_eq!(sorted(&sent), [("x-request-timeout-ms", value)]);
        }
        let sent = out(&deadlines.margin(Duration::from_millis(300)), Request::new(()), second);
        assert_eq!(sorted(&sent), [("x-request-timeout-ms", "700")]);
    }

    #[test]
    fn deadline_fields_of_clients_are_not_forwarded_as_ours() {
        let asked = [("grpc-timeout", "9S"), ("l5d-timeout", "9s"), ("x-mine", "9"), ("x-other", "9")];
        let own = DeadlineHeader::relative(HeaderName::from_static("x-mine"));
        let deadlines = DeadlinePropagation::new().fields([own]).forward(DeadlineHeader::envoy_expected());
        let sent = out(&deadlines, request(&asked), Some(Duration::from_secs(1)));
        assert_eq!(sorted(&sent), [("x-envoy-expected-rq-timeout-ms", "990"), ("x-other", "9")]);
        assert_eq!(sorted(&out(&deadlines, request(&asked), None)), [("x-other", "9")]);
    }

    #[test]
    fn where_nothing_is_forwarded_the_fields_stay_a_matter_of_client_and_server() {
        let asked = [("grpc-timeout", "9S"), ("x-other", "9")];
        let sent = out(&DeadlinePropagation::new(), request(&asked), Some(Duration::from_secs(1)));
        assert_eq!(sorted(&sent), asked);
        assert_eq!(Deadline::of(sent.extensions()), None);
    }

    #[test]
    fn a_handler_sees_the_deadline_that_was_exposed() {
        let sent = out(&DeadlinePropagation::new().expose(), Request::new(()), Some(Duration::from_secs(1)));
        assert!(Deadline::of(sent.extensions()).is_some());
        assert!(out(&DeadlinePropagation::new().expose(), Request::new(()), None).extensions().is_empty());
    }

    proptest! {
        #[test]
        fn any_value_is_read_or_counted(values in proptest::collection::vec(any::<Vec<u8>>(), 0..6)) {
            let (deadlines, now) = (DeadlinePropagation::new().trust_everyone(), Instant::now());
            let mut headers = HeaderMap::new();
            for value in &values {
                if let Ok(value) = HeaderValue::from_bytes(value) {
                    headers.append("x-request-timeout-ms", value);
                }
            }
            let read = deadlines.extract(&headers, &Extensions::new(), now);
            let ignored = usize::try_from(deadlines.skew_rejections()).unwrap();
            prop_assert_eq!(read.is_some(), ignored < headers.len());
        }
    }
}
