//! Recognizes private error types by their text, the only thing they expose.
//!
//! Each text was measured (`tests/causes/error_chains/` fails when a dependency changes one). A text proves nothing: it may give the
//! cause, but "not sent" requires a type. Texts that a service or its client put into errors of their own must not be mistaken
//! for these: a text matches as a whole or by its prefix, and never in a string that was converted to
//! an error.

use std::error::Error;
use std::fmt::{self, Write};
use std::io::{
    self,
    ErrorKind::{InvalidData, InvalidInput, Other},
};

use super::facts::{ErrorFacts, IoFacts, TextFacts, TlsFacts};

/// Whole texts of private types in hyper-util, hyper-rustls, hyper-tls, reqwest, tonic, tower-http,
/// http-body-util and url.
pub(super) fn read(link: &(dyn Error + 'static), clues: &mut ErrorFacts) {
    let text = link.to_string();
    if !clues.typed && is_string(link) {
        return;
    }
    let found = match text.as_str() {
        "client error (Connect)" => return clues.connecting = true,
        "tcp connect error" | "tcp open error" | "tcp bind local error" => {
            clues.connecting = true;
            return clues.tcp = true;
        }
        "dns error" => {
            clues.connecting = true;
            return clues.dns = true;
        }
        "invalid dns name"
        | "client error (UserAbsoluteUriRequired)"
        | "https required but URI was not https"
        | "invalid URL, host is missing"
        | "invalid URL, scheme is missing"
        | "invalid URL, scheme is not http"
        | "URL scheme is not allowed"
        | "relative URL without a base" => TextFacts::BadTarget,
        "operation timed out" | "Timeout expired" | "request timed out" => return clues.elapsed = true,
        "data was not received within the designated timeout" => TextFacts::BodyTimeout,
        "length limit exceeded" => TextFacts::LengthLimit,
        _ if text.starts_with("unsupported scheme ") => TextFacts::BadTarget,
        _ if openssl(&text, clues) => return,
        _ => match resolver(link, &text) {
            Some(found) => found,
            None => return,
        },
    };
    clues.text.get_or_insert(found);
}

/// Whether this is a string that was converted to an error, which may have any text.
///
/// Inside a client's connect error it is the connector's own.
fn is_string(link: &(dyn Error + 'static)) -> bool {
    struct Prefix(Option<char>);
    impl Write for Prefix {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0 = self.0.or_else(|| text.chars().next());
            // only the prefix matters
            if self.0.is_some() { Err(fmt::Error) } else { Ok(()) }
        }
    }
    let mut begins = Prefix(None);
    let _ = write!(begins, "{link:?}");
    begins.0 == Some('"')
}

/// OpenSSL's `error:CODE:SSL routines:function:reason:...`, passed on by native-tls.
fn openssl(text: &str, clues: &mut ErrorFacts) -> bool {
    let coded = text.strip_prefix("error:").and_then(|text| text.split_once(":SSL routines:"));
    let told = coded.filter(|(code, _)| code.bytes().all(|byte| byte.is_ascii_hexdigit())).map(|(_, told)| told);
    if text == "unexpected EOF" || told.is_some_and(|told| told.contains("unexpected eof")) {
        clues.io.get_or_insert(IoFacts { kind: io::ErrorKind::UnexpectedEof, errno: None });
        return true;
    }
    let Some(told) = told else { return false };
    let alert = told.split_once("SSL alert number ").map(|(_, number)| number);
    let alert = alert.and_then(|number| number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok());
    clues.tls.get_or_insert(match alert {
        Some(alert) => TlsFacts::Alert(alert),
        None if told.contains("certificate verify failed") => TlsFacts::Certificate,
        None if told.contains("wrong version number") => TlsFacts::Foreign,
        None => TlsFacts::Other,
    });
    true
}

/// hickory-resolver files every code under one kind; its debug text names it.
fn resolver(link: &(dyn Error + 'static), text: &str) -> Option<TextFacts> {
    let hickory = text.starts_with("proto error: ") || text.starts_with("no record");
    if !hickory {
        return None;
    }
    let debug = format!("{link:?}");
    if !debug.starts_with("ResolveError {") && !debug.starts_with("ProtoError {") {
        return None;
    }
    Some(if text.contains("timed out") || debug.contains("kind: Timeout") {
        TextFacts::NameTimeout
    } else if debug.contains("ServFail") || debug.contains("Refused") {
        TextFacts::NameFailure
    } else {
        TextFacts::NameNotFound
    })
}

/// Payloads of `io::Error`: the C library's resolver, hyper's body decoder, decompressors.
pub(super) fn read_io(error: &io::Error, clues: &mut ErrorFacts) {
    let Some(payload) = error.get_ref() else { return };
    if payload.is::<io::Error>() {
        return;
    }
    let text = payload.to_string();
    let lower = text.to_ascii_lowercase();
    let coding = ["gzip", "deflate", "zlib", "brotli", "zstd"].iter().any(|coding| lower.contains(coding));
    let found = if let Some(found) = name(&text) {
        found
    } else if coding && matches!(error.kind(), InvalidData | InvalidInput | Other) {
        TextFacts::ContentCoding
    } else if !matches!(error.kind(), InvalidData | InvalidInput) {
        return;
    } else if lower.starts_with("chunk trailers") {
        TextFacts::TrailersTooLarge
    } else if lower.contains("chunk") {
        TextFacts::ChunkFraming
    } else if ["header", "trailer", "invalid token"].iter().any(|word| lower.contains(word)) {
        TextFacts::Trailers
    } else {
        return;
    };
    clues.text.get_or_insert(found);
}

/// getaddrinfo errors have only texts here; NXDOMAIN and NODATA differ, all others share one text.
fn name(text: &str) -> Option<TextFacts> {
    let why = text.strip_prefix("failed to lookup address information: ")?;
    Some(match why {
        "Name or service not known" | "No address associated with hostname" => TextFacts::NameNotFound,
        _ => TextFacts::NameFailure,
    })
}
