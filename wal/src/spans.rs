//! Ascending spans of numbers in two or three bytes each.
//!
//! With several logs every frame of a segment may begin a new span, and a long backlog has many segments: as a gap and a
//! length they cost about as much as the frame's page has in thousandths, so a segment can afford to know exactly.

/// Spans (start, end) in the order in which they came; a span that goes on where the last one ended is one with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Spans {
    /// All but the last one, each as the distance from the end before it and its length.
    packed: Vec<u8>,
    packed_end: u64,
    last: Option<(u64, u64)>,
    count: usize,
}

impl Spans {
    pub fn push(&mut self, start: u64, end: u64) {
        match &mut self.last {
            Some((_, last_end)) if *last_end == start => *last_end = end,
            last => {
                if let Some((start, end)) = last.replace((start, end)) {
                    put(&mut self.packed, start.wrapping_sub(self.packed_end));
                    put(&mut self.packed, end.wrapping_sub(start));
                    self.packed_end = end;
                }
                self.count += 1;
            }
        }
    }

    pub fn len(&self) -> usize {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let (mut at, mut end) = (0, 0u64);
        let packed = std::iter::from_fn(move || {
            let start = end.wrapping_add(take(&self.packed, &mut at)?);
            end = start.wrapping_add(take(&self.packed, &mut at)?);
            Some((start, end))
        });
        packed.chain(self.last)
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        self.packed.capacity()
    }
}

/// Seven bits a byte, the low ones first; the highest bit says that more follow.
fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn take(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let (mut number, mut shift) = (0, 0);
    loop {
        let byte = *bytes.get(*at)?;
        *at += 1;
        number |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_come_back_joined_where_they_touch_and_even_if_a_disk_makes_up_their_order() {
        let mut spans = Spans::default();
        assert_eq!((spans.len(), spans.iter().next()), (0, None));
        for (start, end) in [(5, 9), (9, 12), (300, 301), (1 << 40, u64::MAX), (7, 8)] {
            spans.push(start, end);
        }
        assert_eq!(spans.iter().collect::<Vec<_>>(), [(5, 12), (300, 301), (1 << 40, u64::MAX), (7, 8)]);
        assert_eq!(spans.len(), 4);
    }

    #[test]
    fn a_segment_full_of_small_frames_of_one_log_in_three_takes_two_bytes_for_each() {
        let mut spans = Spans::default();
        (0..16_384u64).for_each(|frame| spans.push(frame * 9, frame * 9 + 3));
        assert!(spans.bytes() <= 2 * 32_768, "{} bytes", spans.bytes());
        assert_eq!(spans.iter().count(), 16_384);
    }
}
