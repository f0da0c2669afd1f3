//! Memory that frames are made in, laid out as they will lie in the file: what is written one behind the other stands one
//! behind the other here, so that one write takes it all.
//!
//! Places are given out in a circle and come back in any order; a place is used again when all given out before it are back.

use std::collections::VecDeque;

/// The circle of places; the memory is somebody else's.
#[derive(Debug)]
pub(super) struct Arena {
    capacity: usize,
    /// Where the next place begins if it fits there.
    head: usize,
    /// Places that are out, oldest first: the start of each, and whether it has come back since.
    places: VecDeque<(usize, bool)>,
}

impl Arena {
    pub(super) fn new(capacity: usize) -> Arena {
        Arena { capacity, head: 0, places: VecDeque::new() }
    }

    /// Where `len` bytes are free in one piece.
    pub(super) fn take(&mut self, len: usize) -> Option<usize> {
        let start = match self.places.front() {
            None => Some(0).filter(|_| len <= self.capacity),
            Some(&(tail, _)) if self.head > tail => {
                let behind = self.capacity - self.head >= len;
                if behind { Some(self.head) } else { Some(0).filter(|_| len < tail) }
            }
            // Never quite full, or it would look empty.
            Some(&(tail, _)) => Some(self.head).filter(|head| head + len < tail),
        }?;
        self.head = start + len;
        self.places.push_back((start, false));
        Some(start)
    }

    /// The place that begins at `start` is no longer used.
    pub(super) fn give_back(&mut self, start: usize) {
        if let Some(place) = self.places.iter_mut().find(|place| **place == (start, false)) {
            place.1 = true;
        }
        while self.places.pop_front_if(|place| place.1).is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_never_overlap_and_all_room_comes_back() {
        let mut arena = Arena::new(100);
        let mut out: Vec<(usize, usize)> = Vec::new();
        let mut random = 7_u64;
        let mut taken = 0;
        for _ in 0..10_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let number = (random >> 33) as usize;
            let len = 1 + number % 40;
            if number.is_multiple_of(3) && !out.is_empty() {
                arena.give_back(out.swap_remove(number / 3 % out.len()).0);
            } else if let Some(start) = arena.take(len) {
                assert!(start + len <= 100);
                assert!(out.iter().all(|(other, other_len)| start + len <= *other || other + other_len <= start));
                out.push((start, len));
                taken += 1;
            }
        }
        assert!(taken > 1000, "{taken}");
        out.into_iter().for_each(|(start, _)| arena.give_back(start));
        assert_eq!(arena.take(100), Some(0));
        assert_eq!(arena.take(1), None);
    }

    #[test]
    fn what_follows_stands_behind_what_was_before() {
        let mut arena = Arena::new(100);
        assert_eq!([arena.take(30), arena.take(30), arena.take(30)], [Some(0), Some(30), Some(60)]);
        assert_eq!(arena.take(20), None);
        arena.give_back(30);
        assert_eq!(arena.take(20), None, "the oldest is still out");
        arena.give_back(0);
        assert_eq!(arena.take(20), Some(0), "from the start again");
    }
}
