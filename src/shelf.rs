//! Boxes that a thread uses again: what each call needs and few move.

use std::cell::RefCell;
use std::thread::LocalKey;

/// So many boxes are kept on a thread.
const SHELVED: usize = 64;

/// A thread's boxes for later calls; see [`shelf`].
pub(crate) type Boxes<T> = RefCell<Vec<T>>;

/// One thread's shelf of one kind of box.
#[derive(Debug)]
pub(crate) struct Shelf<T: 'static>(pub(crate) &'static LocalKey<Boxes<T>>);

impl<T> Shelf<T> {
    /// One that was used before, if there is one.
    #[inline]
    pub(crate) fn take(&self) -> Option<T> {
        self.0.try_with(|boxes| boxes.borrow_mut().pop()).ok().flatten()
    }

    /// Puts it where the next call finds it; it should point to nothing of this one's.
    #[inline]
    pub(crate) fn put(&self, used: T) {
        // a thread that is ending has no shelf any more
        let _ = self.0.try_with(|boxes| {
            let mut boxes = boxes.borrow_mut();
            if boxes.len() < SHELVED {
                boxes.push(used);
            }
        });
    }
}

/// Declares a shelf.
macro_rules! shelf {
    ($name:ident: $kind:ty) => {
        static $name: $crate::shelf::Shelf<$kind> = {
            thread_local! {
                static BOXES: $crate::shelf::Boxes<$kind> = const { std::cell::RefCell::new(Vec::new()) };
            }
            $crate::shelf::Shelf(&BOXES)
        };
    };
}

pub(crate) use shelf;

#[cfg(test)]
mod tests {
    shelf!(NUMBERS: Box<u64>);

    #[test]
    fn what_was_put_there_is_taken_again_and_the_shelf_has_an_end() {
        assert!(NUMBERS.take().is_none());
        for number in 0..100 {
            NUMBERS.put(Box::new(number));
        }
        let taken: Vec<_> = std::iter::from_fn(|| NUMBERS.take()).collect();
        assert_eq!((taken.len(), *taken[0]), (super::SHELVED, 63));
        std::thread::spawn(|| assert!(NUMBERS.take().is_none(), "another thread has its own")).join().unwrap();
    }
}
