//! Deadlines of a hub: one heap for everything. An entry is never removed early; whoever handles it
//! looks whether it still means something.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

#[derive(Debug)]
pub(crate) struct Timers<T> {
    heap: BinaryHeap<Reverse<(u64, u64)>>,
    entries: slab::Slab<T>,
    serial: u64,
}

impl<T> Default for Timers<T> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new(), entries: slab::Slab::new(), serial: 0 }
    }
}

/// The low bits of the second heap key hold the slab index; the high bits keep equal deadlines in order.
const INDEX_BITS: u32 = 32;

impl<T> Timers<T> {
    pub(crate) fn set(&mut self, at_mono_ms: u64, entry: T) {
        let index = self.entries.insert(entry) as u64;
        self.serial = self.serial.wrapping_add(1) & 0xFFFF_FFFF;
        self.heap.push(Reverse((at_mono_ms, (self.serial << INDEX_BITS) | index)));
    }

    pub(crate) fn next_deadline(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    pub(crate) fn pop_due(&mut self, now_mono_ms: u64) -> Option<T> {
        let Reverse((at, key)) = *self.heap.peek()?;
        if at > now_mono_ms {
            return None;
        }
        self.heap.pop();
        Some(self.entries.remove((key & 0xFFFF_FFFF) as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn due_entries_come_in_order_of_deadline_then_of_setting() {
        let mut timers = Timers::default();
        timers.set(20, "c");
        timers.set(10, "a");
        timers.set(10, "b");
        assert_eq!(timers.next_deadline(), Some(10));
        assert_eq!(timers.pop_due(9), None);
        assert_eq!(timers.pop_due(20), Some("a"));
        assert_eq!(timers.pop_due(20), Some("b"));
        assert_eq!(timers.pop_due(20), Some("c"));
        assert_eq!(timers.pop_due(20), None);
    }
}
