//! Writes one member of `Proxy-Status`.

use http::HeaderValue;

use crate::cause::structured_fields::is_string;

/// A member that is cloned from the base until a parameter is added.
pub(super) struct ProxyStatusMember<'a> {
    base: &'a HeaderValue,
    longer: Vec<u8>,
}

impl<'a> ProxyStatusMember<'a> {
    pub(super) fn new(base: &'a HeaderValue) -> Self {
        Self { base, longer: Vec::new() }
    }

    /// Adds a Token or an Integer.
    pub(super) fn parameter(&mut self, key: &str, value: &str) {
        self.key(key);
        self.longer.extend_from_slice(value.as_bytes());
    }

    /// Adds a String, unless the value cannot be one.
    pub(super) fn string(&mut self, key: &str, text: &str) {
        if is_string(text) {
            self.key(key);
            quote(&mut self.longer, text);
        }
    }

    fn key(&mut self, key: &str) {
        if self.longer.is_empty() {
            self.longer.reserve_exact(self.base.len() + 64);
            self.longer.extend_from_slice(self.base.as_bytes());
        }
        self.longer.extend_from_slice(b"; ");
        self.longer.extend_from_slice(key.as_bytes());
        self.longer.push(b'=');
    }

    pub(super) fn finish(self) -> HeaderValue {
        if self.longer.is_empty() {
            return self.base.clone();
        }
        HeaderValue::try_from(self.longer).unwrap_or_else(|_| self.base.clone())
    }
}

/// Writes printable ASCII as a String (RFC 9651 section 4.1.6).
pub(super) fn quote(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    for byte in text.bytes() {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
}

/// The names that RFC 8446 section 6 gives to alerts.
pub(super) fn alert_name(alert: u8) -> Option<&'static str> {
    let name = match alert {
        0 => "close_notify",
        10 => "unexpected_message",
        20 => "bad_record_mac",
        22 => "record_overflow",
        40 => "handshake_failure",
        42 => "bad_certificate",
        43 => "unsupported_certificate",
        44 => "certificate_revoked",
        45 => "certificate_expired",
        46 => "certificate_unknown",
        47 => "illegal_parameter",
        48 => "unknown_ca",
        49 => "access_denied",
        50 => "decode_error",
        51 => "decrypt_error",
        70 => "protocol_version",
        71 => "insufficient_security",
        80 => "internal_error",
        86 => "inappropriate_fallback",
        90 => "user_canceled",
        109 => "missing_extension",
        110 => "unsupported_extension",
        112 => "unrecognized_name",
        113 => "bad_certificate_status_response",
        115 => "unknown_psk_identity",
        116 => "certificate_required",
        120 => "no_application_protocol",
        _ => return None,
    };
    Some(name)
}
