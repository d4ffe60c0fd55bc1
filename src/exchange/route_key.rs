//! The route of a request, as far as its path shows it.

/// How many leading segments of a path are told apart.
pub(crate) const DEPTHS: usize = 3;
/// How much of a path is read.
const MAX_LENGTH: usize = 64;

/// Hashes of a path up to its first, second and third segment.
///
/// Where routes are not declared, nobody knows which segments are parameters: each depth is a guess at the route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RouteKey([u8; DEPTHS]);

impl RouteKey {
    /// The route of a request with this path.
    pub(crate) fn of(path: &str) -> Self {
        let bytes = path.as_bytes();
        let bytes = bytes.get(..MAX_LENGTH).unwrap_or(bytes);
        let mut key = [0; DEPTHS];
        // FNV-1a: short, and a client that provokes collisions gains nothing
        let mut hash = 0x811c_9dc5_u32;
        let mut depth = 0;
        for byte in bytes.strip_prefix(b"/").unwrap_or(bytes) {
            if *byte == b'/' {
                key[depth] = folded(hash);
                depth += 1;
                if depth == DEPTHS {
                    return Self(key);
                }
            }
            hash = (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
        key[depth..].fill(folded(hash));
        Self(key)
    }

    /// The hash of each depth.
    pub(crate) fn depths(self) -> [u8; DEPTHS] {
        self.0
    }
}

fn folded(hash: u32) -> u8 {
    let [a, b, c, d] = hash.to_le_bytes();
    a ^ b ^ c ^ d
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same_depths(one: &str, other: &str) -> [bool; DEPTHS] {
        let (one, other) = (RouteKey::of(one).depths(), RouteKey::of(other).depths());
        std::array::from_fn(|depth| one[depth] == other[depth])
    }

    #[test]
    fn paths_are_told_apart_from_the_segment_on_in_which_they_differ() {
        assert_eq!(same_depths("/shop/orders/1", "/shop/orders/1"), [true; 3]);
        assert_eq!(same_depths("/shop/orders/1", "/shop/orders/2"), [true, true, false]);
        assert_eq!(same_depths("/shop/orders/1", "/shop/carts/1"), [true, false, false]);
        assert_eq!(same_depths("/shop", "/partner"), [false; 3]);
        assert_eq!(same_depths("/shop", "/shop/orders"), [true, false, false]);
        assert_eq!(same_depths("/a/b/c/d", "/a/b/c/e"), [true; 3]);
    }

    #[test]
    fn any_path_has_a_key() {
        let long = format!("/{}", "é".repeat(100));
        for path in ["", "/", "*", "//", "///", &long] {
            let _ = RouteKey::of(path);
        }
    }
}
