//! `Via`: the chain of gateways, and loop detection (RFC 9110 section 7.6.3).

use http::{HeaderMap, HeaderValue, Version, header};

use super::syntax::is_token;
use crate::cause::InvalidProxyName;

/// More members than this count as a loop.
const MAX_MEMBERS: usize = 64;

/// The error of a name that is not a token (RFC 9110 section 5.6.2).
const NO_TOKEN: InvalidProxyName =
    InvalidProxyName::new("the name is no token: letters, digits and !#$%&'*+-.^_`|~ only");

/// A gateway's own member, prepared for each received version.
#[derive(Debug)]
pub(super) struct Pseudonym {
    name: Box<str>,
    members: [HeaderValue; 4],
}

impl Pseudonym {
    pub(super) fn new(name: &str) -> Result<Self, InvalidProxyName> {
        if !is_token(name.as_bytes()) {
            return Err(NO_TOKEN);
        }
        let member = |version| HeaderValue::try_from(format!("{version} {name}")).map_err(|_| NO_TOKEN);
        Ok(Self { name: name.into(), members: [member("1.0")?, member("1.1")?, member("2")?, member("3")?] })
    }

    pub(super) fn as_str(&self) -> &str {
        &self.name
    }

    /// The member for a message received in this version.
    pub(super) fn member(&self, received: Version) -> HeaderValue {
        let [http_10, http_11, http_2, http_3] = &self.members;
        match received {
            Version::HTTP_09 | Version::HTTP_10 => http_10,
            Version::HTTP_2 => http_2,
            Version::HTTP_3 => http_3,
            _ => http_11,
        }
        .clone()
    }

    /// Whether these `Via` fields name this gateway, or have too many members.
    pub(super) fn is_in(&self, headers: &HeaderMap) -> bool {
        let members = headers.get_all(header::VIA).iter().flat_map(|line| MemberIter::of(line.as_bytes()));
        for (count, member) in members.enumerate() {
            if count == MAX_MEMBERS || received_by(member).eq_ignore_ascii_case(self.name.as_bytes()) {
                return true;
            }
        }
        false
    }
}

impl Clone for Pseudonym {
    /// Copies the values, so that clones do not share reference counts.
    fn clone(&self) -> Self {
        let copy = |value: &HeaderValue| HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| value.clone());
        Self { name: self.name.clone(), members: self.members.each_ref().map(copy) }
    }
}

/// The second word of `received-protocol RWS received-by [ RWS comment ]`; empty if absent.
fn received_by(member: &[u8]) -> &[u8] {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t');
    let protocol = member.iter().position(is_space).unwrap_or(member.len());
    let rest = member[protocol..].trim_ascii_start();
    let end = rest.iter().position(|byte| is_space(byte) || *byte == b'(').unwrap_or(rest.len());
    &rest[..end]
}

/// The members of one field line; commas in comments do not separate.
struct MemberIter<'a> {
    rest: &'a [u8],
    comments: Comments,
}

#[derive(Clone, Copy)]
enum Comments {
    Whole,
    /// An unterminated comment: a member within it would be overlooked.
    Broken,
}

impl<'a> MemberIter<'a> {
    fn of(line: &'a [u8]) -> Self {
        let mut depth = 0;
        let mut escaped = false;
        for &byte in line {
            (depth, escaped) = step(depth, escaped, byte);
        }
        Self { rest: line, comments: if depth == 0 { Comments::Whole } else { Comments::Broken } }
    }
}

impl<'a> Iterator for MemberIter<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        while !self.rest.is_empty() {
            let mut depth = 0;
            let mut escaped = false;
            let end = self.rest.iter().position(|&byte| {
                if let Comments::Whole = self.comments {
                    (depth, escaped) = step(depth, escaped, byte);
                }
                byte == b',' && depth == 0
            });
            let (member, rest) = match end {
                Some(end) => (&self.rest[..end], &self.rest[end + 1..]),
                None => (self.rest, &[][..]),
            };
            self.rest = rest;
            let member = member.trim_ascii();
            if !member.is_empty() {
                return Some(member);
            }
        }
        None
    }
}

/// The comment depth after this byte (RFC 9110 section 5.6.5).
fn step(depth: usize, escaped: bool, byte: u8) -> (usize, bool) {
    match byte {
        _ if escaped => (depth, false),
        b'\\' if depth > 0 => (depth, true),
        b'(' => (depth + 1, false),
        b')' => (depth.saturating_sub(1), false),
        _ => (depth, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_loop(lines: &[&[u8]]) -> bool {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append("via", HeaderValue::from_bytes(line).unwrap());
        }
        Pseudonym::new("edge-1").unwrap().is_in(&headers)
    }

    #[test]
    fn a_member_that_names_this_gateway_is_a_loop() {
        for line in [
            &b"1.1 edge-1"[..],
            b"1.1 EDGE-1",
            b"HTTP/1.1 edge-1",
            b"2\tedge-1",
            b"1.1 other, 1.1 edge-1 (comment, with, commas)",
            b"1.1 other (a, (b), \\), c),1.1 edge-1",
            b"1.1 other,,  ,1.0   edge-1(x)",
            b"1.1 other (never closed, 1.1 edge-1",
            b"1.1 caf\xe9 (\xff), 1.1 edge-1",
            b"1.1 other ), 1.1 edge-1",
        ] {
            assert!(is_loop(&[line]), "{line:?}");
        }
        assert!(is_loop(&[b"1.1 other", b"1.1 edge-1"]));
    }

    #[test]
    fn a_member_that_only_mentions_this_gateway_is_not_a_loop() {
        for line in [
            &b""[..],
            b"edge-1",
            b"1.1 edge-10",
            b"1.1 edge-1:8080",
            b"1.1 other edge-1",
            b"1.1 other (1.1 edge-1)",
            b"1.1 other (x, 1.1 edge-1, y)",
            b"1.1 other (x\\), 1.1 edge-1, y)",
            b"1.1 other (x (y), 1.1 edge-1, z)",
            b"edge-1 other",
            b"\xff\xff\xff",
        ] {
            assert!(!is_loop(&[line]), "{line:?}");
        }
    }

    #[test]
    fn the_sixty_fifth_member_is_a_loop() {
        let line = ["1.1 x"; 32].join(",");
        assert!(!is_loop(&[line.as_bytes(), line.as_bytes()]));
        assert!(is_loop(&[line.as_bytes(), line.as_bytes(), b"1.1 x"]));
        assert!(is_loop(&[format!("1.1 a ({}", ",1.1 x".repeat(64)).as_bytes()]));
    }

    #[test]
    fn each_version_has_its_member() {
        let name = Pseudonym::new("edge-1").unwrap();
        let copy = name.clone();
        for (version, member) in [
            (Version::HTTP_09, "1.0 edge-1"),
            (Version::HTTP_10, "1.0 edge-1"),
            (Version::HTTP_11, "1.1 edge-1"),
            (Version::HTTP_2, "2 edge-1"),
            (Version::HTTP_3, "3 edge-1"),
        ] {
            assert_eq!(name.member(version), member);
            assert_eq!(copy.member(version), member);
        }
    }

    #[test]
    fn a_name_is_a_token() {
        for bad in ["", "a b", "a,b", "a(b", "a:80", "\u{e9}", "a\r\nx: y"] {
            assert!(Pseudonym::new(bad).is_err(), "{bad:?}");
        }
    }
}
