//! Restricts the addresses the gateway may connect to.

use crate::opaque::Opaque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// The addresses that the gateway may connect to.
///
/// Checked for every address after name resolution: a name controlled by a client cannot lead to a denied
/// address. A denied address fails as
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
#[derive(Clone, Debug, Default)]
pub struct AddressPolicy {
    denied: Vec<Opaque<Arc<Denies>>>,
}

type Denies = dyn Fn(IpAddr) -> bool + Send + Sync;

impl AddressPolicy {
    /// Every address (the default).
    pub fn allow_all() -> Self {
        Self::default()
    }

    /// No address of this machine, of a private network, or of another range that is not globally reachable.
    ///
    /// These are the ranges of IANA's IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890, RFC 8190) that are not
    /// "Globally Reachable", multicast, and all of IPv6 beyond `2000::/3`. IPv6 addresses that carry an IPv4 address are judged
    /// by that too: IPv4-mapped, -compatible and -translated ones, NAT64 by the well-known prefix, 6to4, ISATAP.
    ///
    /// Some internal addresses look like public ones, and only you can know them. [`deny`](Self::deny) the prefixes of your
    /// own NAT64 or 6rd (RFC 6052 section 2.2, RFC 5969), public addresses of your own network, and on Azure the platform's
    /// 168.63.129.16:
    ///
    /// ```
    /// use tower_upstream::client::AddressPolicy;
    ///
    /// let azure = std::net::IpAddr::from([168, 63, 129, 16]);
    /// let policy = AddressPolicy::public_only().deny(move |address| address == azure);
    /// assert!(!policy.allows(azure));
    /// ```
    pub fn public_only() -> Self {
        Self::default().deny(is_special)
    }

    /// Also denies addresses for which `denied` returns true.
    pub fn deny(mut self, denied: impl Fn(IpAddr) -> bool + Send + Sync + 'static) -> Self {
        self.denied.push(Opaque(Arc::new(denied)));
        self
    }

    /// Whether `address` may be connected to.
    ///
    /// An IPv4-mapped address counts as IPv4. An address that carries an IPv4 address in another way is checked both as it is and
    /// by that address.
    pub fn allows(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let carried = match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(v6) => embedded(v6.segments()).map(IpAddr::V4),
        };
        !self.denied.iter().any(|denied| denied(address) || carried.is_some_and(&***denied))
    }
}

fn is_special(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_special_v4(v4),
        IpAddr::V6(v6) => is_special_v6(v6),
    }
}

/// By IANA's registry, and multicast (RFC 5771), which is not in it.
fn is_special_v4(v4: Ipv4Addr) -> bool {
    match v4.octets() {
        // the anycast addresses of PCP (RFC 7723) and TURN (RFC 8155)
        [192, 0, 0, 9 | 10] => false,
        [0 | 10 | 127 | 224..=255, ..]
        | [100, 64..=127, ..]
        | [169, 254, ..]
        | [172, 16..=31, ..]
        | [192, 0, 0 | 2, _]
        // once the anycast relays of 6to4 (RFC 7526)
        | [192, 88, 99, _]
        | [192, 168, ..]
        | [198, 18 | 19, ..]
        | [198, 51, 100, _]
        | [203, 0, 113, _] => true,
        _ => false,
    }
}

/// By IANA's registry; beyond `2000::/3` no address is global unicast (RFC 4291 section 2.4).
#[allow(clippy::match_same_arms)] // one arm for one reason
fn is_special_v6(v6: Ipv6Addr) -> bool {
    match v6.segments() {
        // unspecified and loopback, not IPv4-compatible (RFC 4291 section 2.5)
        [0, 0, 0, 0, 0, 0, 0, _] => true,
        // they are judged by the IPv4 address that they carry: compatible and translated ones, NAT64, 6to4
        [0, 0, 0, 0, 0 | 0xffff, 0, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] | [0x2002, ..] => false,
        // the anycast addresses of PCP, TURN and DNS-SD (RFC 7723, RFC 8155, RFC 9665)
        [0x2001, 1, 0, 0, 0, 0, 0, 1..=3] => false,
        // AMT (RFC 7450), ORCHIDv2 (RFC 7343), drone identifiers (RFC 9374); AS112 (RFC 7535)
        [0x2001, 3 | 0x20..=0x3f, ..] | [0x2001, 4, 0x112, ..] => false,
        // IETF protocol assignments, Teredo among them (RFC 2928, RFC 4380); documentation (RFC 3849, RFC 9637)
        [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => true,
        [first, ..] => first & 0xe000 != 0x2000,
    }
}

/// The IPv4 address that an IPv6 address carries.
fn embedded(segments: [u16; 8]) -> Option<Ipv4Addr> {
    let (high, low) = match segments {
        [0, 0, 0, 0, 0, 0, 0, _] => return None,
        // IPv4-compatible (RFC 4291 section 2.5.5.1), IPv4-translated (RFC 2765 section 2.1), NAT64 (RFC 6052 section 2.1)
        [0, 0, 0, 0, 0 | 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        // 6to4 (RFC 3056 section 2)
        | [0x2002, high, low, ..]
        // ISATAP (RFC 5214 section 6.1)
        | [_, _, _, _, 0 | 0x200, 0x5efe, high, low] => (high, low),
        _ => return None,
    };
    let [a, b] = high.to_be_bytes();
    let [c, d] = low.to_be_bytes();
    Some(Ipv4Addr::new(a, b, c, d))
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

    /// The rows of IANA's registries (RFC 6890 and the RFCs that they name), and whether they are globally reachable.
    ///
    /// They agree with three public copies of `iana-ipv4-special-registry-1.csv` and `iana-ipv6-special-registry-1.csv` that
    /// were made on 2026-09-15, 2026-09-17 and 2026-09-28; "N/A" and an empty field count as no. Left out are three rows that
    /// carry IPv4 addresses, by which these are judged: `::ffff:0:0/96`, `64:ff9b::/96` and `2002::/16`.
    const ROWS: [(&str, u8, bool); 54] = [
        ("0.0.0.0", 8, false),          // "this network", RFC 791 section 3.2
        ("0.0.0.0", 32, false),         // "this host on this network", RFC 1122 section 3.2.1.3
        ("10.0.0.0", 8, false),         // private use, RFC 1918
        ("100.64.0.0", 10, false),      // shared address space, RFC 6598
        ("127.0.0.0", 8, false),        // loopback, RFC 1122 section 3.2.1.3
        ("169.254.0.0", 16, false),     // link local, RFC 3927
        ("172.16.0.0", 12, false),      // private use, RFC 1918
        ("192.0.0.0", 24, false),       // IETF protocol assignments, RFC 6890
        ("192.0.0.0", 29, false),       // IPv4 service continuity prefix, RFC 7335
        ("192.0.0.8", 32, false),       // IPv4 dummy address, RFC 7600
        ("192.0.0.9", 32, true),        // PCP anycast, RFC 7723
        ("192.0.0.10", 32, true),       // TURN anycast, RFC 8155
        ("192.0.0.11", 32, false),      // of 192.0.0.0/24 (no row of its own)
        ("192.0.0.170", 32, false),     // NAT64 and DNS64 discovery, RFC 8880 and RFC 7050
        ("192.0.0.171", 32, false),     // the same
        ("192.0.2.0", 24, false),       // documentation, RFC 5737
        ("192.31.196.0", 24, true),     // AS112-v4, RFC 7535
        ("192.52.193.0", 24, true),     // AMT, RFC 7450
        ("192.88.99.0", 24, false),     // once 6to4 relay anycast, RFC 7526
        ("192.88.99.2", 32, false),     // 6a44 relay anycast, RFC 6751
        ("192.168.0.0", 16, false),     // private use, RFC 1918
        ("192.175.48.0", 24, true),     // direct delegation AS112, RFC 7534
        ("198.18.0.0", 15, false),      // benchmarking, RFC 2544
        ("198.51.100.0", 24, false),    // documentation, RFC 5737
        ("203.0.113.0", 24, false),     // documentation, RFC 5737
        ("224.0.0.0", 4, false),        // multicast, RFC 5771 (no row of the registry)
        ("240.0.0.0", 4, false),        // reserved, RFC 1112 section 4
        ("255.255.255.255", 32, false), // limited broadcast, RFC 8190
        ("::1", 128, false),            // loopback, RFC 4291
        ("::", 128, false),             // unspecified, RFC 4291
        ("64:ff9b:1::", 48, false),     // IPv4-IPv6 translation, RFC 8215
        ("100::", 64, false),           // discard only, RFC 6666
        ("100:0:0:1::", 64, false),     // dummy prefix, RFC 9780
        ("2001::", 23, false),          // IETF protocol assignments, RFC 2928
        ("2001::", 32, false),          // Teredo, RFC 4380
        ("2001:1::1", 128, true),       // PCP anycast, RFC 7723
        ("2001:1::2", 128, true),       // TURN anycast, RFC 8155
        ("2001:1::3", 128, true),       // DNS-SD SRP anycast, RFC 9665
        ("2001:1::4", 128, false),      // of 2001::/23 (no row of its own)
        ("2001:2::", 48, false),        // benchmarking, RFC 5180
        ("2001:3::", 32, true),         // AMT, RFC 7450
        ("2001:4:112::", 48, true),     // AS112-v6, RFC 7535
        ("2001:10::", 28, false),       // once ORCHID, RFC 4843
        ("2001:20::", 28, true),        // ORCHIDv2, RFC 7343
        ("2001:30::", 28, true),        // drone remote ID protocol entity tags, RFC 9374
        ("2001:100::", 24, false),      // of 2001::/23 (no row of its own)
        ("2001:db8::", 32, false),      // documentation, RFC 3849
        ("2620:4f:8000::", 48, true),   // direct delegation AS112, RFC 7534
        ("3fff::", 20, false),          // documentation, RFC 9637
        ("5f00::", 16, false),          // segment routing SIDs, RFC 9602
        ("fc00::", 7, false),           // unique local, RFC 4193
        ("fe80::", 10, false),          // link local, RFC 4291
        ("fec0::", 10, false),          // once site local, RFC 3879 (no row of the registry)
        ("ff00::", 8, false),           // multicast, RFC 4291 (no row of the registry)
    ];

    /// The first and the last address of a range.
    fn ends(address: &str, length: u8) -> [IpAddr; 2] {
        match address.parse().unwrap() {
            IpAddr::V4(first) => {
                let host = u32::MAX.checked_shr(u32::from(length)).unwrap_or(0);
                [first.into(), Ipv4Addr::from(u32::from(first) | host).into()]
            }
            IpAddr::V6(first) => {
                let host = u128::MAX.checked_shr(u32::from(length)).unwrap_or(0);
                [first.into(), Ipv6Addr::from(u128::from(first) | host).into()]
            }
        }
    }

    #[test]
    fn every_row_of_ianas_registries_is_followed() {
        let policy = AddressPolicy::public_only();
        for (address, length, reachable) in ROWS {
            for end in ends(address, length) {
                assert_eq!(policy.allows(end), reachable, "{end} of {address}/{length}");
            }
        }
    }

    #[test]
    fn an_ipv4_address_is_judged_in_every_ipv6_address_that_carries_it() {
        let policy = AddressPolicy::public_only();
        for (address, length, reachable) in ROWS {
            for end in ends(address, length) {
                let IpAddr::V4(v4) = end else { continue };
                let [a, b, c, d] = v4.octets();
                let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
                for carrier in [
                    Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, high, low),
                    Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low),
                    Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, high, low),
                    Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
                    Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
                    Ipv6Addr::new(0x2606, 0x4700, 0, 0, 0, 0x5efe, high, low),
                    Ipv6Addr::new(0x2606, 0x4700, 0, 0, 0x200, 0x5efe, high, low),
                ] {
                    assert_eq!(policy.allows(carrier.into()), reachable, "{carrier} carries {v4}");
                }
                // by a prefix that is not global, and by Teredo, whatever they carry
                for carrier in [
                    Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, high, low),
                    Ipv6Addr::new(0x2001, 0, high, low, 0, 0, 0, 0),
                    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0x5efe, high, low),
                ] {
                    assert!(!policy.allows(carrier.into()), "{carrier}");
                }
            }
        }
    }

    #[test]
    fn addresses_next_to_the_special_ranges_are_public() {
        let policy = AddressPolicy::public_only();
        for address in [
            "1.0.0.0",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.0.3.0",
            "192.88.98.255",
            "192.88.100.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "203.0.114.0",
            "223.255.255.255",
            "2000::1",
            "2001:200::",
            "2001:db7:ffff::",
            "2001:db9::",
            "2003::",
            "2a00::1",
            "3ffe::1",
            "3fff:1000::",
        ] {
            assert!(policy.allows(address.parse().unwrap()), "{address}");
        }
        for address in ["1fff:ffff::", "4000::", "64:ff9b::1:808:808", "::1:0:808:808"] {
            assert!(!policy.allows(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn rules_add_up() {
        let policy = AddressPolicy::allow_all().deny(|ip| ip.is_loopback()).deny(|ip| ip.is_multicast());
        assert!(!policy.allows("127.0.0.1".parse().unwrap()));
        assert!(!policy.allows("224.0.0.1".parse().unwrap()));
        assert!(policy.allows("10.0.0.1".parse().unwrap()));
        // ::1 is asked about as it is, and not as 0.0.0.1
        assert!(AddressPolicy::allow_all().deny(|ip| ip.is_ipv4()).allows("::1".parse().unwrap()));
    }

    #[test]
    fn an_ipv4_address_that_is_denied_is_denied_in_ipv6_too() {
        let azure = IpAddr::from([168, 63, 129, 16]);
        let policy = AddressPolicy::public_only().deny(move |address| address == azure);
        for address in ["168.63.129.16", "::ffff:168.63.129.16", "64:ff9b::168.63.129.16", "2002:a83f:8110::1"] {
            assert!(!policy.allows(address.parse().unwrap()), "{address}");
        }
        assert!(policy.allows("64:ff9b::168.63.129.17".parse().unwrap()));
    }
}
