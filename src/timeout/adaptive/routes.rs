//! Adaptive timeouts per route: a fixed set of names given by the user, never a path chosen by a client.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use super::AdaptiveTimeout;

/// The use of learned timeouts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LearningMode {
    /// They are reported; the configured timeout applies.
    #[default]
    Report,
    /// They apply in place of the configured timeout.
    Enforce,
}

/// An adaptive timeout for each named route.
///
/// At most 256 names, each with its own timeout. Requests of other routes are not samples and keep the configured
/// timeout.
///
/// ```
/// use std::time::Duration;
/// use tower_upstream::timeout::RouteTimeouts;
///
/// let limits = RouteTimeouts::new(Duration::from_secs(10), ["cart", "search"]).unwrap();
/// assert!(limits.get("cart").is_some());
/// assert!(limits.get("/cart/17").is_none());
/// ```
#[derive(Debug)]
#[must_use]
pub struct RouteTimeouts {
    mode: LearningMode,
    /// Sorted by name.
    limits: Vec<(Box<str>, AdaptiveTimeout)>,
}

/// More than 256 routes were named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyRoutes(());

impl fmt::Display for TooManyRoutes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "more than {} routes to learn timeouts for", RouteTimeouts::MOST)
    }
}

impl Error for TooManyRoutes {}

impl RouteTimeouts {
    /// The maximum number of names.
    pub(crate) const MOST: usize = 256;

    /// A timeout for each name, all with the same cap and the defaults of [`AdaptiveTimeout`].
    ///
    /// Duplicates count once.
    ///
    /// # Errors
    ///
    /// If there are more than 256 names.
    pub fn new(cap: Duration, routes: impl IntoIterator<Item = impl Into<Box<str>>>) -> Result<Self, TooManyRoutes> {
        let mut names: Vec<Box<str>> = Vec::new();
        for name in routes {
            let name = name.into();
            let Err(place) = names.binary_search(&name) else { continue };
            if names.len() == Self::MOST {
                return Err(TooManyRoutes(()));
            }
            names.insert(place, name);
        }
        let limits = names.into_iter().map(|name| (name, AdaptiveTimeout::new(cap))).collect();
        Ok(Self { mode: LearningMode::default(), limits })
    }

    /// Sets the use of the timeouts (default: [`LearningMode::Report`]).
    pub fn learning(mut self, mode: LearningMode) -> Self {
        self.mode = mode;
        self
    }

    /// Changes the settings of every timeout.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_upstream::timeout::RouteTimeouts;
    /// let limits = RouteTimeouts::new(Duration::from_secs(10), ["cart"]).unwrap();
    /// let limits = limits.each(|limit| limit.floor(Duration::from_millis(200)).stripes(1));
    /// ```
    pub fn each(mut self, set: impl Fn(AdaptiveTimeout) -> AdaptiveTimeout) -> Self {
        self.limits = self.limits.into_iter().map(|(name, limit)| (name, set(limit))).collect();
        self
    }

    /// The use of the timeouts.
    pub(crate) fn mode(&self) -> LearningMode {
        self.mode
    }

    /// The timeout of a route; `None` for a route that was not named.
    pub fn get(&self, route: &str) -> Option<&AdaptiveTimeout> {
        self.at(self.index(route)?)
    }

    /// The index of a route's timeout, for [`at`](Self::at).
    pub(in crate::timeout) fn index(&self, route: &str) -> Option<u16> {
        let place = self.limits.binary_search_by(|row| (*row.0).cmp(route)).ok()?;
        u16::try_from(place).ok()
    }

    pub(in crate::timeout) fn at(&self, place: u16) -> Option<&AdaptiveTimeout> {
        self.limits.get(usize::from(place)).map(|row| &row.1)
    }

    /// The routes with their timeouts, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &AdaptiveTimeout)> {
        self.limits.iter().map(|row| (&*row.0, &row.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    const CAP: Duration = Duration::from_secs(10);

    #[test]
    fn routes_learn_separately() {
        let limits = RouteTimeouts::new(CAP, ["search", "cart"]).unwrap();
        let start = Instant::now();
        let (cart, search) = (limits.get("cart").unwrap(), limits.get("search").unwrap());
        for _ in 0..1000 {
            cart.record(start, Duration::from_millis(100));
        }
        let later = start + Duration::from_secs(1);
        assert!(cart.limit(later) < Duration::from_millis(250));
        assert_eq!(search.limit(later), CAP);
        assert_eq!(limits.iter().map(|row| row.0).collect::<Vec<_>>(), ["cart", "search"]);
    }

    #[test]
    fn a_name_that_was_not_given_has_no_limit() {
        let limits = RouteTimeouts::new(CAP, ["cart"]).unwrap();
        for other in ["", "car", "cart/", "Cart", "/cart"] {
            assert!(limits.get(other).is_none(), "{other:?}");
        }
    }

    #[test]
    fn there_are_256_names_at_most_and_doubles_count_once() {
        let names = |count: usize| (0..count).map(|each| format!("route {each}")).collect::<Vec<_>>();
        assert_eq!(RouteTimeouts::new(CAP, names(257)).unwrap_err(), TooManyRoutes(()));
        let twice = names(256).into_iter().chain(names(256));
        let limits = RouteTimeouts::new(CAP, twice).unwrap().each(|limit| limit.stripes(1));
        assert_eq!(limits.iter().count(), 256);
        assert!(names(256).iter().all(|name| limits.get(name).is_some()));
    }

    #[test]
    fn settings_reach_every_route() {
        let floor = Duration::from_secs(3);
        let limits = RouteTimeouts::new(CAP, ["a", "b"]).unwrap().each(|limit| limit.floor(floor).min_samples(1));
        let start = Instant::now();
        for (_, limit) in limits.iter() {
            limit.record(start, Duration::from_millis(1));
            assert_eq!(limit.limit(start + Duration::from_secs(1)), floor);
        }
    }
}
