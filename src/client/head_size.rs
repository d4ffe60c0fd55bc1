//! Checks whether an HTTP/2 connection accepts a request head.

use http::Request;

use crate::forward::{encodes_well, field_section_size, target_size};

/// The limit assumed for a peer that has announced none: hyper's servers close a connection at 64 KiB.
const UNANNOUNCED: usize = 60 << 10;
/// The names and overhead of `:method`, `:scheme`, `:authority` and `:path`.
const PSEUDO_FIELDS: usize = 4 * 32 + 7 + 7 + 10 + 5;

/// The size of a request head as `SETTINGS_MAX_HEADER_LIST_SIZE` counts it (RFC 9113 section 6.5.2).
pub(super) fn of<B>(request: &Request<B>) -> usize {
    let scheme = request.uri().scheme_str().map_or(0, str::len);
    let pseudo = PSEUDO_FIELDS + request.method().as_str().len() + scheme + target_size(request.uri());
    pseudo + field_section_size(request.headers())
}

/// Whether a connection accepts a head of this size; `limit` is the peer's announced limit.
pub(super) fn fits<B>(request: &Request<B>, size: usize, limit: Option<usize>) -> bool {
    let limit = limit.unwrap_or(UNANNOUNCED);
    size <= limit && encodes_well(request.uri(), request.headers(), size, limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(length: usize) -> Request<()> {
        Request::get("http://a/b").header("x-a", "a".repeat(length)).body(()).unwrap()
    }

    fn fits(length: usize, limit: Option<usize>) -> bool {
        let request = with(length);
        super::fits(&request, of(&request), limit)
    }

    #[test]
    fn the_size_is_that_of_rfc_9113() {
        // :method GET, :scheme http, :authority a, :path /b, x-a: a
        assert_eq!(of(&with(1)), 7 + 3 + 7 + 4 + 10 + 1 + 5 + 2 + 3 + 1 + 5 * 32);
    }

    #[test]
    fn the_announced_limit_counts_or_else_one_that_does_no_harm() {
        assert!(fits(7_980, Some(8192)));
        assert!(!fits(8_000, Some(8192)));
        assert!(fits(60_000, None));
        assert!(!fits(62_000, None));
        assert!(fits(200_000, Some(1 << 20)));
    }
}
