//! The fields this room acts on, found in one pass over a head.

use http::{HeaderMap, HeaderName};

/// A set of known fields, one bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fields(u32);

macro_rules! known {
    ($($name:literal,)*) => {
        const NAMES: &[&str] = &[$($name),*];
        static HEADERS: [HeaderName; NAMES.len()] = [$(HeaderName::from_static($name)),*];
    };
}

// By length, so that a name is compared with the few that are as long as it is.
known! {
    "te",
    "via",
    "host",
    "upgrade",
    "forwarded",
    "x-real-ip",
    "connection",
    "keep-alive",
    "max-forwards",
    "content-length",
    "http2-settings",
    "x-forwarded-for",
    "x-forwarded-ssl",
    "proxy-connection",
    "x-forwarded-host",
    "x-forwarded-port",
    "transfer-encoding",
    "x-forwarded-proto",
    "proxy-authenticate",
    "x-forwarded-prefix",
    "x-forwarded-scheme",
    "x-forwarded-server",
    "proxy-authorization",
    "proxy-authentication-info",
}

const LONGEST: usize = NAMES[NAMES.len() - 1].len();

/// Where in the table the names of each length begin.
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

impl Fields {
    pub(super) const CONNECTION: Self = Self::known("connection");
    pub(super) const CONTENT_LENGTH: Self = Self::known("content-length");
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

    /// What is meant for the next hop alone (RFC 9110 sections 7.6.1 and 11.7).
    pub(super) const HOP_BY_HOP: Self = Self::CONNECTION
        .and(Self::TE)
        .and(Self::TRANSFER_ENCODING)
        .and(Self::UPGRADE)
        .and(Self::known("http2-settings"))
        .and(Self::known("keep-alive"))
        .and(Self::known("proxy-authenticate"))
        .and(Self::known("proxy-authentication-info"))
        .and(Self::known("proxy-authorization"))
        .and(Self::known("proxy-connection"));

    /// A field of [`ORIGIN`](Self::ORIGIN) written with underscores, which CGI and WSGI read as the same.
    pub(super) const DISGUISED: Self = Self(1 << 31);

    /// What tells where a request came from.
    pub(super) const ORIGIN: Self = Self::FORWARDED
        .and(Self::X_FORWARDED_FOR)
        .and(Self::X_FORWARDED_HOST)
        .and(Self::X_FORWARDED_PROTO)
        .and(Self::known("x-forwarded-port"))
        .and(Self::known("x-forwarded-prefix"))
        .and(Self::known("x-forwarded-scheme"))
        .and(Self::known("x-forwarded-server"))
        .and(Self::known("x-forwarded-ssl"))
        .and(Self::known("x-real-ip"))
        .and(Self::DISGUISED);

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

    /// Those in both sets.
    pub(super) const fn among(self, other: Self) -> Self {
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
            // one look at the first byte spares most names the comparison
            fields = fields.and(find(name, |name, known| name[0] == known[0] && name == known));
            if name.first() == Some(&b'x') && is_disguised(name) {
                fields = fields.and(Self::DISGUISED);
            }
        }
        fields
    }

    /// The known field a connection option names; the set is empty where it names none.
    pub(super) fn named(option: &[u8]) -> Self {
        find(option, <[u8]>::eq_ignore_ascii_case)
    }

    /// Whether nothing is in the set.
    pub(super) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Takes every field of the set out of a head.
    pub(super) fn remove_from(self, headers: &mut HeaderMap) {
        let mut left = self.0 & !Self::DISGUISED.0;
        while left != 0 {
            headers.remove(&HEADERS[left.trailing_zeros() as usize]);
            left &= left - 1;
        }
        if self.has(Self::DISGUISED) {
            let names: Vec<HeaderName> =
                headers.keys().filter(|name| is_disguised(name.as_str().as_bytes())).cloned().collect();
            for name in names {
                headers.remove(name);
            }
        }
    }
}

const fn same(a: &[u8], b: &[u8]) -> bool {
    let mut index = 0;
    while index < a.len() && index < b.len() && a[index] == b[index] {
        index += 1;
    }
    index == a.len() && index == b.len()
}

#[inline]
fn find(name: &[u8], is_same: impl Fn(&[u8], &[u8]) -> bool) -> Fields {
    let length = name.len();
    if length > LONGEST {
        return Fields::NONE;
    }
    let known = &NAMES[STARTS[length]..STARTS[length + 1]];
    for (index, known) in (STARTS[length]..).zip(known) {
        if is_same(name, known.as_bytes()) {
            return Fields(1 << index);
        }
    }
    Fields::NONE
}

fn is_disguised(name: &[u8]) -> bool {
    let unfold = |byte: u8| if byte == b'_' { b'-' } else { byte };
    name.first() == Some(&b'x')
        && name.contains(&b'_')
        && !find(name, |name, known| name.iter().map(|&byte| unfold(byte)).eq(known.iter().copied())).is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order_of_length_and_leaves_a_bit_for_the_disguised() {
        assert!(NAMES.is_sorted_by_key(|name| name.len()));
        assert!(NAMES.len() < 32);
        assert!(NAMES.iter().zip(&HEADERS).all(|(name, header)| header == name));
    }

    #[test]
    fn every_known_field_is_found_and_taken_out() {
        for (index, header) in HEADERS.iter().enumerate() {
            let mut headers = HeaderMap::new();
            headers.insert("accept", "*/*".parse().unwrap());
            headers.append(header, "a".parse().unwrap());
            headers.append(header, "b".parse().unwrap());
            let seen = Fields::of(&headers);
            assert_eq!(seen, Fields(1 << index));
            assert_eq!(Fields::named(header.as_str().to_ascii_uppercase().as_bytes()), seen);
            seen.remove_from(&mut headers);
            assert_eq!(headers.len(), 1);
        }
        assert!(Fields::named(b"x-forwarded-fo").is_empty());
        assert!(Fields::named(b"").is_empty());
    }

    #[test]
    fn underscores_do_not_hide_a_field() {
        let mut headers = HeaderMap::new();
        for name in ["x_forwarded_for", "x-forwarded_host", "x_real_ip", "x_custom_one", "keep_alive"] {
            headers.insert(name, "a".parse().unwrap());
        }
        let seen = Fields::of(&headers);
        assert_eq!(seen, Fields::DISGUISED);
        seen.remove_from(&mut headers);
        assert_eq!(headers.len(), 2);
        assert!(headers.contains_key("x_custom_one"));
    }
}
