//! Rate counters of a tenant (`PROTOCOL.md` §7.1): sums per tick, an average over the ticks held, and a state
//! that changes only at a tick.
//!
//! Owns numbers, no clock: the driver calls [`RateCounter::tick`] at the counter's pace. Counting is one
//! relaxed addition, so that a fan-out over many sockets adds its deliveries in one go; hubs of several
//! threads share a counter.
//!
//! ```text
//!   add ──▶ sum of this tick ──tick──▶ ring of the last N sums ──▶ average ≥ limit? ──▶ triggered
//! ```
//!
//! The start counts as a tick with sum 0. So nothing triggers before one full tick has passed, and a burst is
//! averaged over the ticks held so far.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Tick of the joins, events and presence counters, and how many are held: a minute.
pub const TICK_MS: u64 = 5_000;
const TICKS: usize = 12;

/// One counter. Without a limit it still counts, and never triggers.
#[derive(Debug)]
pub struct RateCounter {
    limit_per_second: Option<u32>,
    tick_ms: u64,
    ticks: usize,
    sum: AtomicU64,
    total: AtomicU64,
    held: Mutex<VecDeque<u64>>,
    /// Thousandths per second, so that it fits into an atomic.
    average_milli: AtomicU64,
    is_triggered: AtomicBool,
}

impl RateCounter {
    /// A counter over the last minute in ticks of five seconds.
    pub fn new(limit_per_second: Option<u32>) -> Self {
        Self::with_ticks(limit_per_second, TICK_MS, TICKS)
    }

    /// A counter with other ticks.
    pub fn with_ticks(limit_per_second: Option<u32>, tick_ms: u64, ticks: usize) -> Self {
        Self {
            limit_per_second,
            tick_ms: tick_ms.max(1),
            ticks: ticks.max(1),
            sum: AtomicU64::new(0),
            total: AtomicU64::new(0),
            held: Mutex::new(VecDeque::from([0])),
            average_milli: AtomicU64::new(0),
            is_triggered: AtomicBool::new(false),
        }
    }

    /// Counts.
    pub fn add(&self, count: u64) {
        self.sum.fetch_add(count, Ordering::Relaxed);
        self.total.fetch_add(count, Ordering::Relaxed);
    }

    /// Ends a tick.
    pub fn tick(&self) {
        let sum = self.sum.swap(0, Ordering::Relaxed);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.push_front(sum);
        held.truncate(self.ticks);
        let milliseconds = self.tick_ms * held.len() as u64;
        let average_milli = held.iter().sum::<u64>().saturating_mul(1_000_000) / milliseconds;
        self.average_milli.store(average_milli, Ordering::Relaxed);
        let is_triggered =
            self.limit_per_second.is_some_and(|limit| average_milli >= u64::from(limit) * 1000);
        self.is_triggered.store(is_triggered, Ordering::Relaxed);
    }

    /// Whether the average reached the limit at the last tick.
    pub fn is_triggered(&self) -> bool {
        self.is_triggered.load(Ordering::Relaxed)
    }

    /// Whether the average of the last tick is above the limit.
    pub fn is_above(&self) -> bool {
        self.limit_per_second
            .is_some_and(|limit| self.average_milli.load(Ordering::Relaxed) > u64::from(limit) * 1000)
    }

    /// Average per second at the last tick, rounded down.
    pub fn average(&self) -> u64 {
        self.average_milli.load(Ordering::Relaxed) / 1000
    }

    /// The limit.
    pub fn limit(&self) -> Option<u32> {
        self.limit_per_second
    }

    /// Everything ever counted.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }
}

/// The counters of a tenant on this server.
#[derive(Debug)]
pub struct Rates {
    /// Joins.
    pub joins: RateCounter,
    /// Broadcasts accepted, and every delivery of one.
    pub events: RateCounter,
    /// Tracks, presence states, and every delivery of a diff.
    pub presence: RateCounter,
}

impl Rates {
    /// Counters with these limits per second; `None` = unlimited.
    pub fn new(joins: Option<u32>, events: Option<u32>, presence: Option<u32>) -> Self {
        Self {
            joins: RateCounter::new(joins),
            events: RateCounter::new(events),
            presence: RateCounter::new(presence),
        }
    }

    /// Ends a tick of all; every [`TICK_MS`].
    pub fn tick(&self) {
        self.joins.tick();
        self.events.tick();
        self.presence.tick();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_averaged_over_the_ticks_held_and_releases_when_it_is_diluted() {
        let counter = RateCounter::new(Some(10));
        counter.add(150);
        assert!(!counter.is_triggered(), "nothing triggers before a full tick");
        counter.tick();
        assert_eq!(counter.average(), 15);
        assert!(counter.is_triggered());
        counter.tick();
        assert_eq!(counter.average(), 10);
        assert!(counter.is_triggered() && !counter.is_above());
        counter.tick();
        assert_eq!(counter.average(), 7);
        assert!(!counter.is_triggered());
    }

    #[test]
    fn the_window_forgets_what_is_older_than_a_minute() {
        let counter = RateCounter::new(Some(1));
        counter.add(600);
        for _ in 0..12 {
            counter.tick();
            assert!(counter.is_triggered());
        }
        counter.tick();
        assert_eq!(counter.average(), 0);
        assert_eq!(counter.total(), 600);
    }

    #[test]
    fn without_a_limit_it_counts_and_never_triggers() {
        let counter = RateCounter::new(None);
        counter.add(1_000_000);
        counter.tick();
        assert!(!counter.is_triggered() && !counter.is_above());
        assert_eq!(counter.average(), 100_000);
    }
}
