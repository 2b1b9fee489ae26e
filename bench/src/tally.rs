//! Verification of every delivery, and latency. Nothing is sampled.

use hdrhistogram::Histogram;

use crate::fleet::Sink;
use crate::output::ms;
use crate::stamp::{self, Stamp};

/// Latencies in microseconds, three significant digits, up to two minutes.
pub(crate) type Latency = Histogram<u64>;

pub(crate) fn latency() -> Latency {
    Histogram::new_with_bounds(1, 120_000_000, 3).expect("invariant: the bounds are in order")
}

/// p50, p90, p99, p99.9 and max.
pub(crate) fn percentiles(latency: &Latency) -> String {
    let at = |quantile| ms(latency.value_at_quantile(quantile));
    format!(
        "{} / {} / {} / {} / {} ms",
        at(0.5),
        at(0.9),
        at(0.99),
        at(0.999),
        ms(if latency.is_empty() { 0 } else { latency.max() })
    )
}

/// Which streams a member must receive.
#[derive(Debug, Clone)]
pub(crate) enum Expect {
    /// Member `i` receives the stream `.0[i]` and no other.
    One(Vec<u16>),
    /// Every member receives all of so many streams.
    All(u16),
}

/// Counts of what went right and wrong.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    /// Correct deliveries.
    pub(crate) delivered: u64,
    /// Numbers that were skipped.
    pub(crate) skipped: u64,
    /// Duplicates and messages behind a later one.
    pub(crate) out_of_order: u64,
    /// Messages that this member must not see.
    pub(crate) misrouted: u64,
    /// Messages whose content is not what was sent.
    pub(crate) corrupt: u64,
    /// Members that ended.
    pub(crate) ended: u64,
}

impl Counts {
    /// Wrong in a way that no load excuses.
    pub(crate) fn wrong(&self) -> u64 {
        self.out_of_order + self.misrouted + self.corrupt
    }
}

pub(crate) struct Tally {
    expect: Expect,
    streams: usize,
    /// The next number, per member and stream.
    next: Vec<u32>,
    hint: usize,
    padding: Vec<u8>,
    /// Latencies of messages due from here on count, up to `lone_from`.
    pub(crate) measure_from: u64,
    /// Messages due from here on are lone ones and count apart.
    pub(crate) lone_from: u64,
    pub(crate) latency: Latency,
    pub(crate) lone: Latency,
    pub(crate) counts: Counts,
    /// Clock of the latest delivery.
    pub(crate) last_at: u64,
    /// Members whose latency does not count; they stopped reading.
    pub(crate) excluded_from: usize,
}

impl Tally {
    pub(crate) fn new(expect: Expect, members: usize, padding: &[u8]) -> Self {
        let streams = match &expect {
            Expect::One(_) => 1,
            Expect::All(streams) => usize::from(*streams),
        };
        Self {
            expect,
            streams,
            next: vec![0; members * streams],
            hint: 0,
            padding: padding.to_vec(),
            measure_from: 0,
            lone_from: u64::MAX,
            latency: latency(),
            lone: latency(),
            counts: Counts::default(),
            last_at: 0,
            excluded_from: usize::MAX,
        }
    }

    fn stream_of(&self, member: usize, by: u16) -> Option<usize> {
        match &self.expect {
            Expect::One(own) => (own.get(member) == Some(&by)).then_some(member),
            Expect::All(streams) => (by < *streams).then(|| member * self.streams + usize::from(by)),
        }
    }
}

impl Sink for Tally {
    fn message(&mut self, member: usize, bytes: &[u8], at: u64) {
        // Heartbeat replies and the like carry no mark.
        let Some(start) = stamp::find(bytes, self.hint) else { return };
        self.hint = start;
        if member >= self.excluded_from {
            return;
        }
        let Some(stamp) = Stamp::read(&bytes[start..]) else {
            self.counts.corrupt += 1;
            return;
        };
        let Some(stream) = self.stream_of(member, stamp.by) else {
            self.counts.misrouted += 1;
            return;
        };
        let next = &mut self.next[stream];
        if stamp.no < *next {
            self.counts.out_of_order += 1;
            return;
        }
        self.counts.skipped += u64::from(stamp.no - *next);
        *next = stamp.no + 1;
        if !bytes[start + stamp::LEN..].starts_with(&self.padding) {
            self.counts.corrupt += 1;
            return;
        }
        self.counts.delivered += 1;
        self.last_at = at;
        if stamp.at >= self.measure_from {
            let micros = at.saturating_sub(stamp.at) / 1000;
            let into = if stamp.at >= self.lone_from { &mut self.lone } else { &mut self.latency };
            into.saturating_record(micros.max(1));
        }
    }

    fn ended(&mut self) {
        self.counts.ended += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(by: u16, no: u32, padding: &str) -> Vec<u8> {
        let mut bytes = vec![b'['; 5 + stamp::LEN];
        Stamp { at: 1_000_000, by, no }.write(&mut bytes[5..]);
        bytes.extend_from_slice(padding.as_bytes());
        bytes.push(b']');
        bytes
    }

    #[test]
    fn every_kind_of_wrong_delivery_is_counted() {
        let mut tally = Tally::new(Expect::One(vec![3, 4]), 2, b"xx");
        tally.message(0, &message(3, 0, "xx"), 3_000_000);
        tally.message(1, &message(4, 0, "xx"), 3_000_000);
        assert_eq!((tally.counts.delivered, tally.counts.wrong()), (2, 0));
        assert_eq!(tally.latency.max(), 2000);
        tally.message(0, &message(3, 0, "xx"), 3_000_000);
        assert_eq!(tally.counts.out_of_order, 1);
        tally.message(0, &message(4, 1, "xx"), 3_000_000);
        assert_eq!(tally.counts.misrouted, 1);
        tally.message(0, &message(3, 1, "xy"), 3_000_000);
        assert_eq!(tally.counts.corrupt, 1);
        tally.message(0, &message(3, 5, "xx"), 3_000_000);
        assert_eq!(tally.counts.skipped, 3);
        tally.message(0, br#"[null,"7","phoenix","phx_reply",{"status":"ok","response":{}}]"#, 0);
        assert_eq!((tally.counts.delivered, tally.counts.wrong()), (3, 3));
    }

    #[test]
    fn all_members_receive_all_streams() {
        let mut tally = Tally::new(Expect::All(2), 2, b"");
        for (member, by) in [(0, 0), (0, 1), (1, 1), (1, 0)] {
            tally.message(member, &message(by, 0, ""), 2_000_000);
        }
        tally.message(1, &message(2, 0, ""), 2_000_000);
        assert_eq!((tally.counts.delivered, tally.counts.misrouted), (4, 1));
    }
}
