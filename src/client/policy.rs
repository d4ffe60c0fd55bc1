//! Which addresses may be connected to.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// Which addresses the gateway may connect to.
///
/// Asked about every address a name resolves to, after the resolution: a name under a visitor's control
/// cannot lead to an address that is denied. A refusal is
/// [`TargetProhibited`](crate::BadGatewayCause::TargetProhibited).
///
/// ```
/// use tower_upstream::client::AddressPolicy;
///
/// let policy = AddressPolicy::public_only();
/// assert!(!policy.allows("169.254.169.254".parse().unwrap()));
/// assert!(!policy.allows("::ffff:127.0.0.1".parse().unwrap()));
/// assert!(policy.allows("203.0.114.7".parse().unwrap()));
/// ```
#[derive(Clone, Default)]
pub struct AddressPolicy {
    denied: Vec<Arc<dyn Fn(IpAddr) -> bool + Send + Sync>>,
}

impl AddressPolicy {
    /// Every address (the default).
    pub fn allow_all() -> Self {
        Self::default()
    }

    /// No address of this machine, of a private network, or of a special range (RFC 6890).
    pub fn public_only() -> Self {
        Self::default().deny(is_special)
    }

    /// Denies what `denied` says yes to, besides what is denied already.
    pub fn deny(mut self, denied: impl Fn(IpAddr) -> bool + Send + Sync + 'static) -> Self {
        self.denied.push(Arc::new(denied));
        self
    }

    /// Whether `address` may be connected to. An IPv4 address in IPv6 clothes counts as IPv4.
    pub fn allows(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        !self.denied.iter().any(|denied| denied(address))
    }
}

impl fmt::Debug for AddressPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddressPolicy").field("rules", &self.denied.len()).finish()
    }
}

fn is_special(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_special_v4(v4),
        IpAddr::V6(v6) => is_special_v6(v6),
    }
}

fn is_special_v4(v4: Ipv4Addr) -> bool {
    let [a, b, c, _] = v4.octets();
    v4.is_private()
        || v4.is_loopback()
        || v4.is_link_local()
        || v4.is_multicast()
        || v4.is_broadcast()
        || v4.is_documentation()
        || a == 0
        || a >= 240
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 198 && (18..20).contains(&b))
}

fn is_special_v6(v6: Ipv6Addr) -> bool {
    let segments = v6.segments();
    // NAT64 and 6to4 carry an IPv4 address, which counts (RFC 6052, RFC 3056)
    let (high, low) = match segments {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => (high, low),
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => (high, low),
        _ => {
            return v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_multicast()
                || (segments[0] & 0xfe00) == 0xfc00
                || (segments[0] & 0xffc0) == 0xfe80
                || (segments[0] & 0xffc0) == 0xfec0
                || (segments[0] == 0x2001 && segments[1] == 0x0db8)
                || segments[..4] == [0x100, 0, 0, 0];
        }
    };
    let [a, b] = high.to_be_bytes();
    let [c, d] = low.to_be_bytes();
    is_special_v4(Ipv4Addr::new(a, b, c, d))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_inside_are_not_public_however_they_are_written() {
        let policy = AddressPolicy::public_only();
        let inside = [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "0.0.0.0",
            "100.64.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "::127.0.0.1",
        ];
        for address in inside {
            assert!(!policy.allows(address.parse().unwrap()), "{address}");
        }
        for address in ["1.1.1.1", "2606:4700::1111", "64:ff9b::101:101"] {
            assert!(policy.allows(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn rules_add_up() {
        let policy = AddressPolicy::allow_all().deny(|ip| ip.is_loopback()).deny(|ip| ip.is_multicast());
        assert!(!policy.allows("127.0.0.1".parse().unwrap()));
        assert!(!policy.allows("224.0.0.1".parse().unwrap()));
        assert!(policy.allows("10.0.0.1".parse().unwrap()));
    }
}
