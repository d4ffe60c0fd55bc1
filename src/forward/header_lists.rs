//! Sets of the header fields that this module handles, collected in one pass over a head.

use http::{HeaderMap, HeaderName};

use super::size::field_size;

/// A set of known fields, one bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HeaderLists(u32);

macro_rules! known {
    ($($name:literal,)*) => {
        const NAMES: &[&str] = &[$($name),*];
        static HEADERS: [HeaderName; NAMES.len()] = [$(HeaderName::from_static($name)),*];
    };
}

// ordered by length, so that a name is compared only with names of its length
known! {
    "te",
    "via",
    "host",
    "proxy",
    "expect",
    "upgrade",
    "forwarded",
    "connection",
    "keep-alive",
    "max-forwards",
    "content-length",
    "http2-settings",
    "x-forwarded-for",
    "proxy-connection",
    "x-forwarded-host",
    "transfer-encoding",
    "x-forwarded-proto",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-authentication-info",
}

/// Fields by which gateways report where a request came from and who sent it, in addition to the table's.
///
/// A name also stands for all names that continue it after a dash.
/// From RFC 7239, RFC 9440 (`Client-Cert`), Envoy ("HTTP header sanitizing"), oauth2-proxy and Traefik. The others are known
/// to be written by Apache, Authelia, AWS, Azure, Cloudflare, Fastly, Fly, Google, Grafana, `HAProxy`, IIS, ingress-nginx,
/// Istio, Kong and Kubernetes, and were not looked up in their documentation.
const ORIGINS: &[&str] = &[
    "cf-access-authenticated-user",
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "cf-pseudo-ipv4",
    "client-cert",
    "client-ip",
    "fastly-client-ip",
    "fly-client-ip",
    "forwarded",
    "front-end-https",
    "remote",
    "ssl-client",
    "true-client-ip",
];

/// The same for names with the prefix `x-`, which is omitted here.
const X_ORIGINS: &[&str] = &[
    "amzn-mtls",
    "amzn-oidc",
    "appengine-user-ip",
    "arr-clientcert",
    "arr-ssl",
    "auth-request",
    "authenticated",
    "azure-clientip",
    "azure-socketip",
    "client-addr",
    "client-address",
    "client-cert",
    "client-certificate",
    "client-dn",
    "client-host",
    "client-i-dn",
    "client-ip",
    "client-issuer",
    "client-port",
    "client-proto",
    "client-s-dn",
    "client-scheme",
    "client-serial",
    "client-ssl",
    "client-subject",
    "client-tls",
    "client-verified",
    "client-verify",
    "cluster-client-ip",
    "consumer",
    "envoy-downstream-service",
    "envoy-external-address",
    "envoy-internal",
    "envoy-ip-tags",
    "envoy-original",
    "envoy-peer-metadata",
    "forwarded",
    "goog-authenticated-user",
    "ms-client-principal",
    "original",
    "originating-ip",
    "real",
    "remote",
    "replaced-path",
    "rewrite-url",
    "scheme",
    "ssl",
    "url-scheme",
    "webauth",
];

/// For each first letter, the set of second letters of known names, one bit each: it excludes most other names.
type SecondLetters = [u32; 26];
static SECOND_LETTERS: SecondLetters = second_letters(ORIGINS);
static X_SECOND_LETTERS: SecondLetters = second_letters(X_ORIGINS);

const fn second_letters(names: &[&str]) -> SecondLetters {
    let mut seconds = [0; 26];
    let mut index = 0;
    while index < names.len() {
        let name = names[index].as_bytes();
        seconds[(name[0] - b'a') as usize] |= 1 << (name[1] - b'a');
        index += 1;
    }
    seconds
}

const LONGEST: usize = NAMES[NAMES.len() - 1].len();

/// The start of the names of each length in the table.
static STARTS: [usize; LONGEST + 2] = {
    let mut starts = [0; LONGEST + 2];
    let mut length = 0;
    while length < starts.len() {
        let mut index = 0;
        while index < NAMES.len() && NAMES[index].len() < length {
            index += 1;
        }
        starts[length] = index;
        length += 1;
    }
    starts
};

/// For each first letter, the set of lengths of known names, one bit each: few other names need a comparison.
static LENGTHS: [u32; 26] = {
    let mut lengths = [0; 26];
    let mut index = 0;
    while index < NAMES.len() {
        let name = NAMES[index].as_bytes();
        lengths[(name[0] - b'a') as usize] |= 1 << name.len();
        index += 1;
    }
    lengths
};

impl HeaderLists {
    pub(super) const CONNECTION: Self = Self::known("connection");
    pub(super) const CONTENT_LENGTH: Self = Self::known("content-length");
    pub(super) const EXPECT: Self = Self::known("expect");
    pub(super) const FORWARDED: Self = Self::known("forwarded");
    pub(super) const HOST: Self = Self::known("host");
    pub(super) const MAX_FORWARDS: Self = Self::known("max-forwards");
    pub(super) const TE: Self = Self::known("te");
    pub(super) const TRANSFER_ENCODING: Self = Self::known("transfer-encoding");
    pub(super) const UPGRADE: Self = Self::known("upgrade");
    pub(super) const VIA: Self = Self::known("via");
    pub(super) const X_FORWARDED_FOR: Self = Self::known("x-forwarded-for");
    pub(super) const X_FORWARDED_HOST: Self = Self::known("x-forwarded-host");
    pub(super) const X_FORWARDED_PROTO: Self = Self::known("x-forwarded-proto");

    /// Hop-by-hop fields (RFC 9110 sections 7.6.1 and 11.7).
    pub(super) const HOP_BY_HOP: Self = Self::CONNECTION
        .and(Self::TE)
        .and(Self::TRANSFER_ENCODING)
        .and(Self::UPGRADE)
        .and(Self::known("http2-settings"))
        .and(Self::known("keep-alive"))
        // CGI exposes it as HTTP_PROXY, the proxy for the application's own requests (CVE-2016-5385, "httpoxy")
        .and(Self::known("proxy"))
        .and(Self::known("proxy-authenticate"))
        .and(Self::known("proxy-authentication-info"))
        .and(Self::known("proxy-authorization"))
        .and(Self::known("proxy-connection"));

    /// An [`ORIGIN`](Self::ORIGIN) field spelled with other punctuation than dashes; CGI and WSGI treat both alike.
    pub(super) const UNDERSCORE_VARIANTS: Self = Self(1 << 31);

    /// An [`ORIGIN`](Self::ORIGIN) field that the rules do not write themselves.
    pub(super) const OTHER_ORIGIN: Self = Self(1 << 30);

    /// Fields that report where a request came from.
    pub(super) const ORIGIN: Self = Self::FORWARDED
        .and(Self::X_FORWARDED_FOR)
        .and(Self::X_FORWARDED_HOST)
        .and(Self::X_FORWARDED_PROTO)
        .and(Self::OTHER_ORIGIN)
        .and(Self::UNDERSCORE_VARIANTS);

    pub(super) const NONE: Self = Self(0);

    const fn known(name: &str) -> Self {
        let mut index = 0;
        loop {
            if same(NAMES[index].as_bytes(), name.as_bytes()) {
                return Self(1 << index);
            }
            index += 1;
        }
    }

    const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The intersection with another set.
    pub(super) const fn contains(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether any of `other` is in the set.
    pub(super) const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// The known fields in this head.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut fields = Self::NONE;
        for name in headers.keys() {
            let name = name.as_str().as_bytes();
            fields = fields.and(known(name));
        }
        fields
    }

    /// As [`of`](Self::of), with the fields of [`ORIGIN`](Self::ORIGIN) that have no bit of their own, and the size of
    /// the field section.
    pub(super) fn of_request(headers: &HeaderMap) -> (Self, usize) {
        let (mut fields, mut size) = (Self::NONE, 0);
        for (name, value) in headers {
            size += field_size(name, value);
            let name = name.as_str().as_bytes();
            let known = known(name);
            fields = fields.and(if known.is_empty() { origin(name) } else { known });
        }
        (fields, size)
    }

    /// The known field that a connection option names; empty if it names none.
    pub(super) fn named(option: &[u8]) -> Self {
        let known = find(option, <[u8]>::eq_ignore_ascii_case);
        if known.is_empty() { origin(option) } else { known }
    }

    /// Whether the set is empty.
    pub(super) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Removes every field of the set from a head.
    pub(super) fn remove_from(self, headers: &mut HeaderMap) {
        self.remove_except(&[], headers);
    }

    /// Like [`remove_from`](Self::remove_from), except for these of [`OTHER_ORIGIN`](Self::OTHER_ORIGIN).
    pub(super) fn remove_except(self, kept: &[HeaderName], headers: &mut HeaderMap) {
        let unnamed = self.contains(Self::OTHER_ORIGIN.and(Self::UNDERSCORE_VARIANTS));
        let mut left = self.0 & !unnamed.0;
        while left != 0 {
            headers.remove(&HEADERS[left.trailing_zeros() as usize]);
            left &= left - 1;
        }
        if !unnamed.is_empty() {
            let names = headers.keys().filter(|name| unnamed.has(origin(name.as_str().as_bytes())));
            let names: Vec<HeaderName> = names.filter(|name| !kept.contains(name)).cloned().collect();
            for name in names {
                headers.remove(name);
            }
        }
    }
}

/// Whether a field reports where a request came from or who sent it, in any spelling that CGI treats as the same.
pub(crate) fn is_origin(name: &HeaderName) -> bool {
    !origin(name.as_str().as_bytes()).is_empty()
}

#[inline]
fn known(name: &[u8]) -> HeaderLists {
    let lengths = name.first().copied().and_then(letter).map_or(0, |letter| LENGTHS[letter]);
    if lengths >> name.len().min(31) & 1 == 0 {
        return HeaderLists::NONE;
    }
    find(name, |name, known| name == known)
}

/// The index of a letter in the alphabet, ignoring case.
#[inline]
fn letter(byte: u8) -> Option<usize> {
    let letter = byte.to_ascii_lowercase().wrapping_sub(b'a');
    (letter < 26).then_some(usize::from(letter))
}

const fn same(a: &[u8], b: &[u8]) -> bool {
    let mut index = 0;
    while index < a.len() && index < b.len() && a[index] == b[index] {
        index += 1;
    }
    index == a.len() && index == b.len()
}

#[inline]
fn find(name: &[u8], is_same: impl Fn(&[u8], &[u8]) -> bool) -> HeaderLists {
    let length = name.len();
    if length > LONGEST {
        return HeaderLists::NONE;
    }
    let known = &NAMES[STARTS[length]..STARTS[length + 1]];
    for (index, known) in (STARTS[length]..).zip(known) {
        if is_same(name, known.as_bytes()) {
            return HeaderLists(1 << index);
        }
    }
    HeaderLists::NONE
}

/// [`OTHER_ORIGIN`](HeaderLists::OTHER_ORIGIN) or [`UNDERSCORE_VARIANTS`](HeaderLists::UNDERSCORE_VARIANTS), if the name is one of [`ORIGINS`] or
/// [`X_ORIGINS`].
#[inline]
fn origin(name: &[u8]) -> HeaderLists {
    let (rest, names, seconds) = match name {
        [b'x' | b'X', dash, rest @ ..] if !dash.is_ascii_alphanumeric() => (rest, X_ORIGINS, &X_SECOND_LETTERS),
        _ => (name, ORIGINS, &SECOND_LETTERS),
    };
    let (Some(first), Some(second)) = (rest.first().copied().and_then(letter), rest.get(1).copied().and_then(letter))
    else {
        return HeaderLists::NONE;
    };
    if seconds[first] >> second & 1 == 0 || !names.iter().any(|known| continues(rest, known.as_bytes())) {
        HeaderLists::NONE
    } else if name.iter().all(|&byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        HeaderLists::OTHER_ORIGIN
    } else {
        HeaderLists::UNDERSCORE_VARIANTS
    }
}

/// Whether a name equals this one or continues it after a dash; all punctuation counts as a dash.
fn continues(name: &[u8], known: &[u8]) -> bool {
    let fold = |byte: u8| if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'-' };
    name.len() >= known.len()
        && name.iter().map(|&byte| fold(byte)).zip(known).all(|(byte, known)| byte == *known)
        && name.get(known.len()).is_none_or(|&byte| fold(byte) == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_by_length_and_leaves_bits_for_other_fields() {
        assert!(NAMES.is_sorted_by_key(|name| name.len()));
        assert!(NAMES.len() < 31);
        assert!(NAMES.iter().zip(&HEADERS).all(|(name, header)| header == name));
    }

    #[test]
    fn every_known_field_is_found_and_taken_out() {
        for (index, header) in HEADERS.iter().enumerate() {
            let mut headers = HeaderMap::new();
            headers.insert("accept", "*/*".parse().unwrap());
            headers.append(header, "a".parse().unwrap());
            headers.append(header, "b".parse().unwrap());
            let (seen, _) = HeaderLists::of_request(&headers);
            assert_eq!(seen, HeaderLists(1 << index));
            assert_eq!(HeaderLists::named(header.as_str().to_ascii_uppercase().as_bytes()), seen);
            seen.remove_from(&mut headers);
            assert_eq!(headers.len(), 1);
        }
        assert!(HeaderLists::named(b"x-one").is_empty());
        assert!(HeaderLists::named(b"").is_empty());
    }

    #[test]
    fn underscores_do_not_hide_a_field() {
        let mut headers = HeaderMap::new();
        for name in ["x_forwarded_for", "x-forwarded_host", "x.real.ip", "client_cert", "x_custom_one", "keep_alive"] {
            headers.insert(name, "a".parse().unwrap());
        }
        let (seen, _) = HeaderLists::of_request(&headers);
        assert_eq!(seen, HeaderLists::UNDERSCORE_VARIANTS);
        seen.remove_from(&mut headers);
        assert_eq!(headers.len(), 2);
        assert!(headers.contains_key("x_custom_one"));
    }

    #[test]
    fn the_names_of_origin_fields_are_in_order_of_their_letters() {
        assert!(ORIGINS.is_sorted() && X_ORIGINS.is_sorted());
        assert!(ORIGINS.iter().all(|name| is_origin(&HeaderName::from_static(name))));
        assert!(X_ORIGINS.iter().all(|name| is_origin(&format!("x-{name}").parse().unwrap())));
    }

    #[test]
    fn origin_fields_are_known_by_prefix_in_every_spelling() {
        for name in [
            "forwarded",
            "forwarded-for",
            "x-forwarded",
            "x-forwarded-for",
            "x-forwarded-user",
            "x-forwarded-access-token",
            "x-forwarded-client-cert",
            "x-forwarded-tls-client-cert-info",
            "x-real-ip",
            "x-original-url",
            "x-original-forwarded-for",
            "x-rewrite-url",
            "x-client-ip",
            "x-client-cert-chain",
            "true-client-ip",
            "cf-connecting-ip",
            "x-envoy-external-address",
            "x-envoy-downstream-service-cluster",
            "x-envoy-original-dst-host",
            "x-ssl-client-s-dn",
            "ssl-client-verify",
            "client-cert-chain",
            "x-auth-request-email",
            "remote-user",
            "x-remote-extra-scopes",
        ] {
            let underscored = name.replace('-', "_");
            for name in [name, &underscored, &name.replacen('-', "_", 1), &name.replace('-', ".")] {
                assert!(is_origin(&name.parse().unwrap()), "{name}");
                assert!(!HeaderLists::named(name.to_ascii_uppercase().as_bytes()).is_empty(), "{name}");
            }
        }
        for name in [
            "x",
            "x-forward",
            "x-forwardedfor",
            "x-request-id",
            "x-requested-with",
            "x-client-id",
            "x-client-version",
            "x-envoy-expected-rq-timeout-ms",
            "x-envoy-attempt-count",
            "x-csrf-token",
            "x-sslx",
            "client-ipx",
            "cf-ray",
            "referer",
            "authorization",
            "1-forwarded",
        ] {
            assert!(!is_origin(&name.parse().unwrap()), "{name}");
        }
    }
}
