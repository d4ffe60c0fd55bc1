//! The route of a request, as far as its path shows it, and counters for each route.

/// How many leading segments of a path are told apart.
pub(crate) const DEPTHS: usize = 3;
/// How much of a path is read.
const MAX_LENGTH: usize = 64;

/// Hashes of a path up to its first, second and third segment.
///
/// Without declared routes it is unknown which segments are parameters: each depth is a guess at the route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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

    /// The cell of each depth, of `cells` cells.
    pub(crate) fn cells(self, cells: usize) -> [usize; DEPTHS] {
        self.0.map(|hash| usize::from(hash) % cells)
    }

    #[cfg(test)]
    pub(crate) fn of_hashes(hashes: [u8; DEPTHS]) -> Self {
        Self(hashes)
    }
}

/// A cell for each route, at each depth; routes whose hashes collide share one.
#[derive(Debug)]
pub(crate) struct RouteTable<T, const CELLS: usize>(Box<[[T; CELLS]; DEPTHS]>);

impl<T: Default, const CELLS: usize> Default for RouteTable<T, CELLS> {
    fn default() -> Self {
        Self(Box::new(std::array::from_fn(|_| std::array::from_fn(|_| T::default()))))
    }
}

impl<T, const CELLS: usize> RouteTable<T, CELLS> {
    /// The cells of a route, one for each depth.
    pub(crate) fn of(&self, route: RouteKey) -> impl Iterator<Item = &T> {
        self.0.iter().zip(route.cells(CELLS)).map(|(cells, at)| &cells[at])
    }

    /// The cells of a route, to be changed.
    pub(crate) fn of_mut(&mut self, route: RouteKey) -> impl Iterator<Item = &mut T> {
        self.0.iter_mut().zip(route.cells(CELLS)).map(|(cells, at)| &mut cells[at])
    }

    /// The cells of each depth.
    pub(crate) fn depths(&self) -> impl Iterator<Item = &[T; CELLS]> {
        self.0.iter()
    }

    /// All cells.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.as_flattened_mut().iter_mut()
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
        let (one, other) = (RouteKey::of(one), RouteKey::of(other));
        std::array::from_fn(|depth| one.0[depth] == other.0[depth])
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

    #[test]
    fn a_table_has_a_cell_for_each_depth_of_a_route() {
        let mut table = RouteTable::<u32, 256>::default();
        table.of_mut(RouteKey::of("/shop/orders/1")).for_each(|cell| *cell += 1);
        let counts = |path| table.of(RouteKey::of(path)).copied().collect::<Vec<_>>();
        assert_eq!(counts("/shop/orders/1"), [1, 1, 1]);
        assert_eq!(counts("/shop/orders/2"), [1, 1, 0]);
        assert_eq!(table.depths().map(|cells| cells.iter().sum::<u32>()).collect::<Vec<_>>(), [1, 1, 1]);
    }
}
