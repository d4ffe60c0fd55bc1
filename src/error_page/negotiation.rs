//! The request's preferences for an error response, kept until it fails.

use http::header::{ACCEPT_LANGUAGE, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method};

/// The unparsed preferences of a request: 56 bytes.
///
/// Of several `Accept` lines the first one is used.
#[derive(Clone, Debug)]
pub(crate) struct ResponsePreferences {
    pub(super) accept: Option<HeaderValue>,
    /// Boxed because few deployments use it.
    pub(super) language: Option<Box<HeaderValue>>,
    pub(super) protocol: ErrorFormat,
    /// Whether the method is safe (RFC 9110 section 9.2.1).
    pub(super) safe: bool,
}

/// The client's protocol, which decides where it looks for the error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ErrorFormat {
    Http,
    /// HTTP, and the response has no body.
    Head,
    Grpc,
    GrpcWeb,
    /// gRPC-Web in base64.
    GrpcWebText,
}

/// Whether the messages depend on `Accept-Language`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LanguageChoice {
    One,
    Several,
}

impl ResponsePreferences {
    #[inline]
    pub(super) fn of(
        method: &Method,
        headers: &HeaderMap,
        accept: Option<&HeaderValue>,
        languages: LanguageChoice,
    ) -> Self {
        let language = if languages == LanguageChoice::Several { headers.get(ACCEPT_LANGUAGE) } else { None };
        let language = language.cloned().map(Box::new);
        let protocol = ErrorFormat::of(method, headers);
        Self { accept: accept.cloned(), language, protocol, safe: method.is_safe() }
    }
}

impl ErrorFormat {
    #[inline]
    fn of(method: &Method, headers: &HeaderMap) -> Self {
        match *method {
            Method::HEAD => Self::Head,
            // gRPC uses POST; skip the header lookup for other methods
            Method::POST => headers.get(CONTENT_TYPE).map_or(Self::Http, |kind| Self::spoken(kind.as_bytes())),
            _ => Self::Http,
        }
    }

    #[inline]
    fn spoken(kind: &[u8]) -> Self {
        // one byte excludes most other types
        if matches!(kind.get(12), Some(b'g' | b'G')) { Self::grpc(kind) } else { Self::Http }
    }

    /// `application/grpc`, `-web` or `-web-text`, alone or with a format (`+proto`) or parameters.
    fn grpc(kind: &[u8]) -> Self {
        const GRPC: &[u8] = b"application/grpc";
        if !kind.get(..GRPC.len()).is_some_and(|start| start.eq_ignore_ascii_case(GRPC)) {
            return Self::Http;
        }
        let rest = &kind[GRPC.len()..];
        let end = rest.iter().position(|byte| matches!(byte, b'+' | b';' | b' ' | b'\t')).unwrap_or(rest.len());
        match &rest[..end] {
            b"" => Self::Grpc,
            web if web.eq_ignore_ascii_case(b"-web") => Self::GrpcWeb,
            text if text.eq_ignore_ascii_case(b"-web-text") => Self::GrpcWebText,
            _ => Self::Http,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_small() {
        assert_eq!(size_of::<ResponsePreferences>(), 56);
    }

    #[test]
    fn grpc_is_recognized_by_its_content_type() {
        for (kind, protocol) in [
            ("application/grpc", ErrorFormat::Grpc),
            ("Application/gRPC+proto", ErrorFormat::Grpc),
            ("application/grpc; charset=utf-8", ErrorFormat::Grpc),
            ("application/grpc-web", ErrorFormat::GrpcWeb),
            ("application/grpc-web+proto", ErrorFormat::GrpcWeb),
            ("application/grpc-web-text", ErrorFormat::GrpcWebText),
            ("application/GRPC-Web-Text+proto", ErrorFormat::GrpcWebText),
            ("application/grpcish", ErrorFormat::Http),
            ("application/grp", ErrorFormat::Http),
            ("application/json", ErrorFormat::Http),
        ] {
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(kind))]);
            assert_eq!(
                ResponsePreferences::of(&Method::POST, &headers, None, LanguageChoice::One).protocol,
                protocol,
                "{kind}"
            );
            assert_eq!(
                ResponsePreferences::of(&Method::GET, &headers, None, LanguageChoice::One).protocol,
                ErrorFormat::Http
            );
        }
    }

    #[test]
    fn languages_are_kept_only_for_messages_in_several_languages() {
        let headers = HeaderMap::from_iter([(ACCEPT_LANGUAGE, HeaderValue::from_static("de"))]);
        assert!(ResponsePreferences::of(&Method::HEAD, &headers, None, LanguageChoice::One).language.is_none());
        assert_eq!(
            *ResponsePreferences::of(&Method::HEAD, &headers, None, LanguageChoice::Several).language.unwrap(),
            "de"
        );
    }
}
