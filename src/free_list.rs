//! A thread-local free list of boxes, for allocations that each call needs.

use std::cell::RefCell;
use std::thread::LocalKey;

/// The maximum number of boxes kept per thread.
const MAX_FREE: usize = 64;

/// A thread's boxes for later calls; see [`free_list`].
pub(crate) type FreeBoxes<T> = RefCell<Vec<T>>;

/// The free list of one type of box.
#[derive(Debug)]
pub(crate) struct FreeList<T: 'static>(pub(crate) &'static LocalKey<FreeBoxes<T>>);

impl<T> FreeList<T> {
    /// Takes a used box, if there is one.
    #[inline]
    pub(crate) fn acquire(&self) -> Option<T> {
        self.0.try_with(|boxes| boxes.borrow_mut().pop()).ok().flatten()
    }

    /// Returns a box for reuse; it should not keep references to the call's data.
    #[inline]
    pub(crate) fn recycle(&self, used: T) {
        // a thread that is ending has no list any more
        let _ = self.0.try_with(|boxes| {
            let mut boxes = boxes.borrow_mut();
            if boxes.len() < MAX_FREE {
                boxes.push(used);
            }
        });
    }
}

/// Declares a free list.
macro_rules! free_list {
    ($name:ident: $kind:ty) => {
        static $name: $crate::free_list::FreeList<$kind> = {
            thread_local! {
                static BOXES: $crate::free_list::FreeBoxes<$kind> = const { std::cell::RefCell::new(Vec::new()) };
            }
            $crate::free_list::FreeList(&BOXES)
        };
    };
}

pub(crate) use free_list;

#[cfg(test)]
mod tests {
    free_list!(NUMBERS: Box<u64>);

    #[test]
    fn a_recycled_box_is_acquired_again_and_the_list_is_bounded() {
        assert!(NUMBERS.acquire().is_none());
        for number in 0..100 {
            NUMBERS.recycle(Box::new(number));
        }
        let taken: Vec<_> = std::iter::from_fn(|| NUMBERS.acquire()).collect();
        assert_eq!((taken.len(), *taken[0]), (super::MAX_FREE, 63));
        std::thread::spawn(|| assert!(NUMBERS.acquire().is_none(), "another thread has its own")).join().unwrap();
    }
}
