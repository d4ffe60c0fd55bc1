//! Any bytes, one field line a text line, read as `Proxy-Status`.

#![no_main]

use http::{HeaderMap, HeaderValue, StatusCode};
use libfuzzer_sys::fuzz_target;
use tower_upstream::cause::{ProxyStatus, entries};

fuzz_target!(|bytes: &[u8]| {
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        if let Ok(line) = HeaderValue::from_bytes(line) {
            headers.append("proxy-status", line);
        }
    }
    let read = entries(&headers);
    for entry in &read {
        assert!(entry.name().is_ascii());
        assert!(entry.received_status().is_none_or(|status| (100..1_000).contains(&status)));
        assert!(entry.error().is_none_or(|error| !error.is_empty() && !error.contains([' ', '"', ','])));
        // What was read as a name can be written, and reads as the same name.
        if let Ok(status) = ProxyStatus::new(entry.name()) {
            let mut headers = HeaderMap::new();
            status.append_received(&mut headers, StatusCode::OK);
            // Of a name near the bound on a whole field nothing is left to read.
            assert!(entry.name().len() > 8_000 || entries(&headers)[0].name() == entry.name());
        } else {
            assert!(entry.name().is_empty());
        }
    }
});
