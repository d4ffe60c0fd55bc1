//! Iterates over an error and everything it wraps.

use std::error::Error;
use std::io;

/// Iterates over an error and everything it wraps, outermost first.
///
/// [`Error::source`] alone is incomplete: `io::Error::source()` skips its own payload, which hides every TLS error,
/// and h2 keeps its I/O error outside of the chain. This iterator also follows
/// `io::Error::get_ref()` and `h2::Error::get_io()` (feature `http2`). It ends after
/// [`MAX_LINKS`](Self::MAX_LINKS) links, in case of a cyclic
/// chain.
#[derive(Clone, Debug)]
pub(crate) struct Chain<'a> {
    next: Option<&'a (dyn Error + 'static)>,
    left: usize,
}

impl<'a> Chain<'a> {
    /// The maximum number of links.
    pub(crate) const MAX_LINKS: usize = 32;

    /// Starts at `error`, which is the first link.
    pub(crate) fn new(error: &'a (dyn Error + 'static)) -> Self {
        Self { next: Some(error), left: Self::MAX_LINKS }
    }
}

impl<'a> Iterator for Chain<'a> {
    type Item = &'a (dyn Error + 'static);

    fn next(&mut self) -> Option<Self::Item> {
        let link = self.next.take()?;
        self.left -= 1;
        if self.left > 0 {
            self.next = wrapped(link);
        }
        Some(link)
    }
}

fn wrapped<'a>(link: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    if let Some(error) = link.downcast_ref::<io::Error>() {
        return error.get_ref().map(|payload| payload as &(dyn Error + 'static));
    }
    #[cfg(feature = "http2")]
    if let Some(error) = link.downcast_ref::<h2::Error>() {
        return error.get_io().map(|error| error as &(dyn Error + 'static));
    }
    link.source()
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use super::*;

    #[derive(Debug)]
    struct Ouroboros;

    impl fmt::Display for Ouroboros {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("I am my own source")
        }
    }

    impl Error for Ouroboros {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(self)
        }
    }

    #[test]
    fn a_chain_that_loops_ends() {
        assert_eq!(Chain::new(&Ouroboros).count(), Chain::MAX_LINKS);
    }
}
