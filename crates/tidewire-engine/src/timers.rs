//! Deadlines of a hub: one ordered map for everything.
//!
//! A deadline that means nothing any more is cancelled, not left to run out: a client that joins and leaves
//! in a loop would otherwise leave ten minutes' worth of dead entries behind.

use std::collections::BTreeMap;

/// A deadline that was set. Equal deadlines come in the order of setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TimerKey {
    at_mono_ms: u64,
    serial: u64,
}

#[derive(Debug)]
pub(crate) struct Timers<T> {
    entries: BTreeMap<TimerKey, T>,
    next_serial: u64,
}

impl<T> Default for Timers<T> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), next_serial: 0 }
    }
}

impl<T> Timers<T> {
    pub(crate) fn set(&mut self, at_mono_ms: u64, entry: T) -> TimerKey {
        let key = TimerKey { at_mono_ms, serial: self.next_serial };
        self.next_serial += 1;
        self.entries.insert(key, entry);
        key
    }

    /// Forgets a deadline; nothing happens if it has come already.
    pub(crate) fn cancel(&mut self, key: TimerKey) {
        self.entries.remove(&key);
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn next_deadline(&self) -> Option<u64> {
        self.entries.first_key_value().map(|(key, _)| key.at_mono_ms)
    }

    pub(crate) fn pop_due(&mut self, now_mono_ms: u64) -> Option<T> {
        let first = self.entries.first_entry()?;
        (first.key().at_mono_ms <= now_mono_ms).then(|| first.remove())
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

    #[test]
    fn a_cancelled_entry_never_comes_and_takes_no_room() {
        let mut timers = Timers::default();
        let first = timers.set(10, "a");
        timers.set(10, "b");
        timers.cancel(first);
        assert_eq!((timers.len(), timers.pop_due(10)), (1, Some("b")));
        timers.cancel(first);
        assert_eq!((timers.len(), timers.next_deadline()), (0, None));
    }
}
