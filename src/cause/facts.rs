//! The properties of a cause, from the table.

use http::StatusCode;

use super::table;
use super::{BadGatewayCause, Category, Prospect, Replay};

impl BadGatewayCause {
    /// Every cause, in the order of the table.
    pub const ALL: &'static [Self] = &table::ALL;

    /// The name in snake case, stable across releases.
    pub const fn as_str(self) -> &'static str {
        self.facts().name
    }

    /// The status of the gateway's response, as RFC 9209 section 2.3 recommends.
    ///
    /// [`UpstreamStatus`](Self::UpstreamStatus) is 502 here; a relayed response keeps its own status.
    /// [`ClientClosed`](Self::ClientClosed) is 499, for logs only: no client is left to read it.
    ///
    /// # Panics
    /// Never: the table's numbers are all valid status codes, as a test proves.
    pub const fn status(self) -> StatusCode {
        match StatusCode::from_u16(self.facts().status) {
            Ok(status) => status,
            Err(_) => StatusCode::BAD_GATEWAY,
        }
    }

    /// The coarser class: the `error` token of RFC 9209, `None` if none fits.
    pub const fn proxy_status_error(self) -> Option<&'static str> {
        self.facts().error
    }

    /// The likeliest of the operator's categories.
    pub const fn category(self) -> Category {
        self.facts().categories[0]
    }

    /// The other categories that look the same from the gateway, likeliest first.
    pub fn also_possible(self) -> &'static [Category] {
        &self.facts().categories[1..]
    }

    /// The parties that usually have to act, the most likely first: `site_owner`, `host`, `admin`, `developer`, `network`, `security`
    /// or `visitor`.
    pub const fn responsible(self) -> &'static [&'static str] {
        self.facts().responsible
    }

    /// Whether the request may be sent again, if the attempt was observed to fail in this way.
    ///
    /// The value for a particular attempt is [`Failure::replay`](super::Failure::replay): without evidence, it is [`Replay::IdempotentOnly`] at
    /// most.
    pub const fn replay(self) -> Replay {
        self.facts().replay
    }

    /// Whether a retry would help.
    pub(crate) const fn prospect(self) -> Prospect {
        self.facts().prospect
    }

    /// Whether a circuit breaker counts it as a failure of the upstream.
    pub const fn is_upstream_failure(self) -> bool {
        self.facts().is_upstream_failure
    }

    /// The summary for operators, in one line: the message of the log event.
    pub const fn summary(self) -> &'static str {
        self.facts().summary
    }

    /// The next step for operators: the field `hint` of the log event.
    pub const fn next_step(self) -> &'static str {
        self.facts().next_step
    }

    pub(super) const fn facts(self) -> &'static table::CauseFacts {
        &table::FACTS[self as usize]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_row_is_at_the_index_of_its_cause() {
        for (at, cause) in BadGatewayCause::ALL.iter().enumerate() {
            assert_eq!(*cause as usize, at);
            assert_eq!(cause.facts().cause, *cause);
        }
        assert_eq!(BadGatewayCause::ALL.len(), BadGatewayCause::Unknown as usize + 1);
    }

    #[test]
    fn names_are_unique() {
        let names: HashSet<_> = BadGatewayCause::ALL.iter().map(|cause| cause.as_str()).collect();
        assert_eq!(names.len(), BadGatewayCause::ALL.len());
    }

    #[test]
    fn statuses_are_those_of_the_table() {
        for cause in BadGatewayCause::ALL {
            assert_eq!(cause.status().as_u16(), cause.facts().status, "{cause}");
        }
    }

    /// The registry of RFC 9209 section 2.3: token and recommended status.
    #[test]
    fn statuses_are_those_that_rfc_9209_recommends() {
        let registry = [
            ("dns_timeout", 504),
            ("dns_error", 502),
            ("destination_unavailable", 503),
            ("destination_ip_prohibited", 502),
            ("destination_ip_unroutable", 502),
            ("connection_refused", 502),
            ("connection_terminated", 502),
            ("connection_timeout", 504),
            ("connection_read_timeout", 504),
            ("connection_write_timeout", 504),
            ("connection_limit_reached", 503),
            ("tls_protocol_error", 502),
            ("tls_certificate_error", 502),
            ("tls_alert_received", 502),
            ("http_response_incomplete", 502),
            ("http_response_header_section_size", 502),
            ("http_response_body_size", 502),
            ("http_response_trailer_section_size", 502),
            ("http_response_transfer_coding", 502),
            ("http_response_content_coding", 502),
            ("http_response_timeout", 504),
            ("http_upgrade_failed", 502),
            ("http_protocol_error", 502),
            ("proxy_internal_error", 500),
            ("proxy_configuration_error", 500),
            ("proxy_loop_detected", 502),
        ];
        // `destination_not_found` is a 404 here, where the registry recommends 500: see `BadGatewayCause::NoRoute`
        let free = ["http_request_error", "proxy_internal_response", "destination_not_found"];
        for cause in BadGatewayCause::ALL {
            let Some(token) = cause.proxy_status_error() else { continue };
            match registry.iter().find(|row| row.0 == token) {
                Some(row) => assert_eq!(cause.status().as_u16(), row.1, "{cause}"),
                None => assert!(free.contains(&token), "{cause}: {token} is not registered"),
            }
        }
    }

    #[test]
    fn texts_for_operators_are_single_lines_that_hold_whatever_the_settings() {
        for cause in BadGatewayCause::ALL {
            for text in [cause.summary(), cause.next_step()] {
                assert!((10..=120).contains(&text.len()) && text.starts_with(char::is_uppercase), "{cause}: {text}");
                assert!(!text.ends_with('.') && !text.contains(['\n', '|', '`']), "{cause}: {text}");
                // by default no PING is sent
                assert!(!text.contains("PING"), "{cause}: {text}");
            }
            assert_ne!(cause.summary(), cause.next_step());
        }
        // a client that stops reading has not disconnected
        assert!(BadGatewayCause::ClientClosed.summary().contains("stopped reading"));
    }

    #[test]
    fn summaries_tell_causes_apart() {
        let summaries: HashSet<_> = BadGatewayCause::ALL.iter().map(|cause| cause.summary()).collect();
        assert_eq!(summaries.len(), BadGatewayCause::ALL.len());
    }

    #[cfg(feature = "serde")]
    #[test]
    fn its_json_is_its_name() {
        for cause in BadGatewayCause::ALL {
            assert_eq!(serde_json::to_value(cause).unwrap(), cause.as_str());
        }
    }

    #[test]
    fn it_is_one_byte() {
        assert_eq!(size_of::<BadGatewayCause>(), 1);
        assert_eq!(size_of::<Option<BadGatewayCause>>(), 1);
    }
    #[test]
    fn the_guide_says_how_each_cause_counts() {
        let rows = include_str!("../guide/failure_table.md").lines().filter(|line| line.starts_with("| `"));
        let rows = rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")));
        let rows: Vec<Vec<_>> = rows.map(Iterator::collect).collect();
        assert!(rows.iter().map(|row| row[0].as_str()).eq(BadGatewayCause::ALL.iter().map(|cause| cause.as_str())));
        for (cause, row) in BadGatewayCause::ALL.iter().zip(rows) {
            if *cause == BadGatewayCause::UpstreamStatus {
                continue;
            }
            assert_eq!(row[1], if cause.is_upstream_failure() { "failure" } else { "-" }, "{cause}");
            let sent_again = match (cause.replay(), cause.prospect()) {
                (Replay::Never, _) | (_, Prospect::Futile) => "never",
                _ if is_never_retried(*cause) => "never",
                (Replay::NotSent, _) => "any method",
                _ => "idempotent",
            };
            assert_eq!(row[3], sent_again, "{cause}");
        }
    }

    /// Rejections of the gateway, and a deadline that leaves no time.
    fn is_never_retried(cause: BadGatewayCause) -> bool {
        use BadGatewayCause as Cause;
        matches!(
            cause,
            Cause::NoHealthyUpstream
                | Cause::CircuitOpen
                | Cause::ConnectionLimit
                | Cause::QueueTimeout
                | Cause::GatewayOverload
                | Cause::DeadlineExceeded
        )
    }
}
