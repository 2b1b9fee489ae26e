//! The time, as an input.

/// A moment, as the driver saw it: plain numbers, printable in a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds of a clock that never goes back; intervals and deadlines use it.
    pub mono_ms: u64,
    /// Milliseconds since the Unix epoch; token expiry uses it.
    pub wall_ms: u64,
}

impl Now {
    /// Seconds since the Unix epoch.
    pub fn unix_s(self) -> i64 {
        i64::try_from(self.wall_ms / 1000).unwrap_or(i64::MAX)
    }
}
