//! What one shard counts, beside its loop.
//!
//! Owned by the shard's thread; counting is an addition to a field. Connections that keep up with what they
//! are sent have nothing waiting after a turn, so only the others are remembered one by one.

use std::io::IoSlice;
use std::sync::Arc;
use std::time::Instant;

use rustc_hash::FxHashMap;
use tidewire_engine::{AskId, Hub, Report};

use super::cells::{Metrics, ShardNumbers};

/// What a hub asks the database about a private channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Question {
    Read = 0,
    Write = 1,
}

/// The meter of one shard.
#[derive(Debug)]
pub(crate) struct ShardMeter {
    metrics: Arc<Metrics>,
    shard: usize,
    numbers: ShardNumbers,
    /// Bytes that wait for blocked connections, by the index of the socket.
    waiting: FxHashMap<u32, usize>,
    /// Questions under way. Every question is answered, so what is added is taken away.
    asked: FxHashMap<AskId, (Question, Instant)>,
}

impl ShardMeter {
    pub(crate) fn new(metrics: Arc<Metrics>, shard: u16) -> Self {
        Self {
            metrics,
            shard: usize::from(shard),
            numbers: ShardNumbers::default(),
            waiting: FxHashMap::default(),
            asked: FxHashMap::default(),
        }
    }

    /// So many bytes were read.
    pub(crate) fn read(&mut self, bytes: usize) {
        self.numbers.input_bytes += bytes as u64;
    }

    /// One write took `bytes` of these frames.
    pub(crate) fn wrote(&mut self, bytes: usize, frames: &[IoSlice<'_>]) {
        self.numbers.writes += 1;
        self.numbers.output_bytes += bytes as u64;
        let mut rest = bytes;
        for frame in frames {
            if frame.len() > rest {
                break;
            }
            rest -= frame.len();
            self.numbers.frames_written += 1;
        }
    }

    /// A connection cannot take more for now; so much waits for it.
    pub(crate) fn blocked(&mut self, socket: u32, pending_bytes: usize) {
        let before = self.waiting.insert(socket, pending_bytes).unwrap_or_default();
        self.numbers.outbox_bytes += pending_bytes as u64;
        self.numbers.outbox_bytes -= before as u64;
    }

    /// A connection that may have been blocked takes bytes again, or is gone.
    pub(crate) fn unblocked(&mut self, socket: u32) {
        if let Some(before) = self.waiting.remove(&socket) {
            self.numbers.outbox_bytes -= before as u64;
        }
    }

    /// The hub asks the database.
    pub(crate) fn asked(&mut self, id: AskId, question: &tidewire_engine::Question) {
        let question = match question {
            tidewire_engine::Question::Read { .. } => Question::Read,
            tidewire_engine::Question::Write { .. } => Question::Write,
        };
        self.asked.insert(id, (question, Instant::now()));
    }

    /// The database has answered.
    pub(crate) fn answered(&mut self, id: AskId) {
        if let Some((question, since)) = self.asked.remove(&id) {
            self.metrics.count_answer(question, since.elapsed());
        }
    }

    /// The hub has something for the log.
    pub(crate) fn reported(&self, report: &Report) {
        self.metrics.count_channel_code(report.code);
    }

    /// Ends a turn: what was counted becomes visible.
    pub(crate) fn publish(&mut self, hub: &Hub) {
        self.numbers.sockets = hub.socket_count() as u64;
        self.numbers.channels = hub.channel_count() as u64;
        self.numbers.topics = hub.topic_count() as u64;
        self.numbers.asked = hub.asked_count() as u64;
        self.numbers.blocked = self.waiting.len() as u64;
        if let Some(cells) = self.metrics.shards.get(self.shard) {
            cells.publish(&self.numbers);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meter() -> ShardMeter {
        ShardMeter::new(Arc::new(Metrics::new(1)), 0)
    }

    #[test]
    fn a_frame_counts_when_its_last_byte_is_written() {
        let mut meter = meter();
        let frames = [IoSlice::new(b"abc"), IoSlice::new(b"de")];
        meter.wrote(2, &frames);
        assert_eq!((meter.numbers.frames_written, meter.numbers.writes), (0, 1));
        let rest = [IoSlice::new(b"c"), IoSlice::new(b"de")];
        meter.wrote(3, &rest);
        assert_eq!((meter.numbers.frames_written, meter.numbers.writes), (2, 2));
        assert_eq!(meter.numbers.output_bytes, 5);
    }

    #[test]
    fn what_waits_is_the_sum_over_blocked_connections() {
        let mut meter = meter();
        meter.blocked(1, 100);
        meter.blocked(2, 50);
        meter.blocked(1, 30);
        assert_eq!(meter.numbers.outbox_bytes, 80);
        meter.unblocked(1);
        meter.unblocked(1);
        meter.unblocked(7);
        assert_eq!(meter.numbers.outbox_bytes, 50);
        assert_eq!(meter.waiting.len(), 1);
    }
}
