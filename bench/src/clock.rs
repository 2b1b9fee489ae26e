//! One clock for senders and receivers, so that a latency never compares two.

use std::time::{Duration, Instant};

/// Nanoseconds since the clock was made. Cheap to copy; all copies agree.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn now(self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

/// A whole number of nanoseconds; runs are seconds long, so this never overflows.
pub(crate) fn nanos(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}
