//! What happened, and what must not have.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Mutex;

use http::Method;

use super::plan::{PIPELINED, Plan, Plans, Upstream};

/// Counts of both ends, and every violation.
#[derive(Debug, Default)]
pub(crate) struct Record(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    /// How often the upstream took each request for processing.
    processed: HashMap<u64, u32>,
    refused: HashSet<u64>,
    /// Whole responses that were verified.
    verified: u64,
    /// Responses that ended early, as the client could see.
    truncated: u64,
    /// Failures that the gateway reported.
    failed: u64,
    cancelled: u64,
    violations: Vec<String>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let repeated = self.processed.values().filter(|count| **count > 1).count();
        f.debug_struct("Record")
            .field("processed", &self.processed.len())
            .field("processed_again", &repeated)
            .field("refused", &self.refused.len())
            .field("verified", &self.verified)
            .field("truncated", &self.truncated)
            .field("failed", &self.failed)
            .field("cancelled", &self.cancelled)
            .finish_non_exhaustive()
    }
}

/// A response as a client received it.
#[derive(Debug)]
pub(crate) struct Received<'a> {
    pub(crate) status: u16,
    /// Its `x-exchange`, which responses of the gateway itself lack.
    pub(crate) number: Option<&'a str>,
    pub(crate) body: &'a [u8],
    /// Its `x-sum` trailer.
    pub(crate) trailer: Option<&'a str>,
    /// Nothing is missing, by its framing.
    pub(crate) whole: bool,
}

impl Record {
    pub(crate) fn violation(&self, what: String) {
        self.0.lock().unwrap().violations.push(what);
    }

    /// Counts a request that the upstream takes, and returns how often it came before.
    pub(crate) fn processed(&self, number: u64) -> u32 {
        let mut inner = self.0.lock().unwrap();
        let count = inner.processed.entry(number).or_default();
        *count += 1;
        *count - 1
    }

    /// Whether the upstream has refused this request unprocessed; from now on it has.
    pub(crate) fn was_refused(&self, number: u64) -> bool {
        !self.0.lock().unwrap().refused.insert(number)
    }

    /// Checks a request body at the upstream.
    pub(crate) fn uploaded(&self, plans: Plans, plan: &Plan, body: &[u8], whole: bool) {
        let expected = plans.upload(plan);
        if !expected.starts_with(body) || (whole && body.len() != expected.len()) {
            self.violation(format!("upload of {} bytes, whole {whole}: {plan:?}", body.len()));
        }
    }

    pub(crate) fn cancelled(&self) {
        self.0.lock().unwrap().cancelled += 1;
    }

    /// Checks a response at the client.
    pub(crate) fn received(&self, plans: Plans, plan: &Plan, received: &Received<'_>) {
        if received.status == 0 && !received.whole {
            // the connection ended before a response
            self.0.lock().unwrap().truncated += 1;
            return;
        }
        let Some(number) = received.number else {
            let mut inner = self.0.lock().unwrap();
            inner.failed += 1;
            if !(500..=504).contains(&received.status) {
                inner.violations.push(format!("a status of the gateway itself: {} for {plan:?}", received.status));
            }
            return;
        };
        let (expected, length) = (plans.download(plan), received.body.len());
        let sum = expected.len().to_string();
        let right = number == plan.number.to_string()
            && received.status == plan.status
            && expected.starts_with(received.body)
            && (!received.whole || length == plan.expected())
            && received.trailer.is_none_or(|trailer| trailer == sum);
        if !right {
            let found = format!("{}, x-exchange {number}, {length} bytes, whole {}", received.status, received.whole);
            self.violation(format!("received {found}, trailer {:?}: {plan:?}", received.trailer));
        }
        let mut inner = self.0.lock().unwrap();
        *(if received.whole { &mut inner.verified } else { &mut inner.truncated }) += 1;
    }

    /// Panics with everything that must not have happened.
    pub(crate) fn check(&self, plans: Plans, exchanges: u64) {
        let mut inner = self.0.lock().unwrap();
        let repeated: Vec<_> = inner
            .processed
            .iter()
            .filter(|(number, count)| **count > 1 && plans.get(**number).method == Method::POST)
            .map(|(number, count)| format!("processed {count} times: {:?}", plans.get(*number)))
            .collect();
        inner.violations.extend(repeated);
        let (shown, all) = (&inner.violations[..inner.violations.len().min(20)], inner.violations.len());
        assert!(all == 0, "{all} violations:\n{}", shown.join("\n"));
        // most exchanges have to come to their end, or nothing was proven
        assert!(inner.verified * 10 > exchanges * 6, "{inner:?}");
        let each = |wanted| inner.processed.keys().any(|number| plans.get(*number & !PIPELINED).upstream == wanted);
        assert!(each(Upstream::LoseFirst) && each(Upstream::CloseAfterwards) && each(Upstream::Cut));
    }
}
