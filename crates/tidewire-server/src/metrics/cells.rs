//! The numbers themselves: atomics with one writer or few, read by whoever scrapes.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tidewire_protocol::codes::OperationalCode;
use tidewire_replication::Lsn;

use super::{AUTHORISE_SECONDS, BATCH_SECONDS, Description, PAYLOAD_SIZE, READ_CHECK, WRITE_CHECK};

macro_rules! shard_numbers {
    ($( $(#[$doc:meta])* $name:ident, )+) => {
        /// The numbers of one shard, plain: their only writer is the shard's thread.
        #[derive(Debug, Default, Clone)]
        pub(crate) struct ShardNumbers {
            $( $(#[$doc])* pub(crate) $name: u64, )+
        }

        /// The same, as others may read them. On cache lines of its own: shards publish at the same time.
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub(super) struct ShardCells {
            $( $name: AtomicU64, )+
        }

        impl ShardCells {
            pub(super) fn publish(&self, numbers: &ShardNumbers) {
                $( self.$name.store(numbers.$name, Relaxed); )+
            }

            fn add_to(&self, sum: &mut ShardNumbers) {
                $( sum.$name += self.$name.load(Relaxed); )+
            }
        }
    };
}

shard_numbers! {
    /// Sockets open.
    sockets,
    /// Channels joined.
    channels,
    /// Topics known.
    topics,
    /// Questions to the database without an answer.
    asked,
    /// Bytes that wait for blocked connections.
    outbox_bytes,
    /// Connections whose socket buffer is full.
    blocked,
    /// Bytes read.
    input_bytes,
    /// Bytes written.
    output_bytes,
    /// Frames written completely.
    frames_written,
    /// System calls that wrote.
    writes,
}

/// Observations counted by size. Kept as whole numbers of a small unit, printed in the unit of the name.
#[derive(Debug)]
pub(crate) struct Histogram {
    /// Upper bounds in the small unit.
    bounds: Box<[u64]>,
    /// Small units in one unit of the name.
    scale: f64,
    /// One per bound, and one for what is larger.
    buckets: Box<[AtomicU64]>,
    sum: AtomicU64,
}

impl Histogram {
    pub(super) fn new(metric: &Description, scale: f64) -> Self {
        let bounds: Box<[u64]> = metric.bounds.iter().map(|bound| (bound * scale).round() as u64).collect();
        let buckets = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, scale, buckets, sum: AtomicU64::new(0) }
    }

    /// Counts one observation.
    pub(crate) fn observe(&self, value: u64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum.fetch_add(value, Relaxed);
    }

    /// For histograms whose small unit is the microsecond.
    fn observe_time(&self, time: Duration) {
        self.observe(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    /// Observations per bucket, and their sum in the unit of the name.
    pub(super) fn read(&self) -> (Vec<u64>, f64) {
        let buckets = self.buckets.iter().map(|bucket| bucket.load(Relaxed)).collect();
        (buckets, self.sum.load(Relaxed) as f64 / self.scale)
    }
}

const MICROSECONDS_IN_A_SECOND: f64 = 1e6;
const MICROSECONDS_IN_A_MILLISECOND: f64 = 1e3;

const CODES: usize = OperationalCode::ALL.len();

/// Everything a server counts. One per server, behind the handle of its shards.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(super) shards: Box<[ShardCells]>,
    codes: [AtomicU64; CODES],
    channel_codes: [AtomicU64; CODES],
    http_broadcasts: AtomicU64,
    /// Payloads of broadcasts that came over HTTP.
    pub(crate) broadcast_bytes: Histogram,
    /// Payloads of row changes.
    pub(crate) change_bytes: Histogram,
    batches: AtomicU64,
    pub(super) batch_time: Histogram,
    changes: AtomicU64,
    db_events: AtomicU64,
    received_lsn: AtomicU64,
    confirmed_lsn: AtomicU64,
    /// Questions about private channels: read, write.
    pub(super) check_time: [Histogram; 2],
    /// The same, and questions about row changes.
    pub(super) authorise_time: [Histogram; 3],
    started_unix_s: u64,
}

impl Metrics {
    pub(crate) fn new(shards: usize) -> Self {
        let zeros = || std::array::from_fn(|_| AtomicU64::new(0));
        let seconds = |metric| Histogram::new(metric, MICROSECONDS_IN_A_SECOND);
        let milliseconds = |metric| Histogram::new(metric, MICROSECONDS_IN_A_MILLISECOND);
        Self {
            shards: (0..shards).map(|_| ShardCells::default()).collect(),
            codes: zeros(),
            channel_codes: zeros(),
            http_broadcasts: AtomicU64::new(0),
            broadcast_bytes: Histogram::new(&PAYLOAD_SIZE, 1.0),
            change_bytes: Histogram::new(&PAYLOAD_SIZE, 1.0),
            batches: AtomicU64::new(0),
            batch_time: seconds(&BATCH_SECONDS),
            changes: AtomicU64::new(0),
            db_events: AtomicU64::new(0),
            received_lsn: AtomicU64::new(0),
            confirmed_lsn: AtomicU64::new(0),
            check_time: [milliseconds(&READ_CHECK), milliseconds(&WRITE_CHECK)],
            authorise_time: std::array::from_fn(|_| seconds(&AUTHORISE_SECONDS)),
            started_unix_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        }
    }

    /// An operational code of a socket, a channel or a handshake was logged.
    pub(crate) fn count_channel_code(&self, code: OperationalCode) {
        self.count_code(code);
        // The reference logs these as warnings and counts errors alone (§7.3, §7.4).
        if !matches!(code, OperationalCode::InvalidJWTToken | OperationalCode::ChannelShutdown) {
            self.channel_codes[code as usize].fetch_add(1, Relaxed);
        }
    }

    /// An operational code was logged.
    pub(crate) fn count_code(&self, code: OperationalCode) {
        self.codes[code as usize].fetch_add(1, Relaxed);
    }

    /// The same, for what only knows the name of its code.
    pub(crate) fn count_code_named(&self, name: &str) {
        if let Some(code) = OperationalCode::ALL.iter().find(|code| code.as_str() == name) {
            self.count_code(*code);
        }
    }

    /// A broadcast of so many bytes was accepted over HTTP.
    pub(crate) fn count_http_broadcast(&self, payload_bytes: usize) {
        self.http_broadcasts.fetch_add(1, Relaxed);
        self.broadcast_bytes.observe(payload_bytes as u64);
    }

    /// A change that bindings matched goes to so many subscriptions.
    pub(crate) fn count_change(&self, subscriptions: usize) {
        self.changes.fetch_add(1, Relaxed);
        self.db_events.fetch_add(subscriptions as u64, Relaxed);
    }

    /// A batch was handed to the shards.
    pub(crate) fn count_batch(&self, took: Duration) {
        self.batches.fetch_add(1, Relaxed);
        self.batch_time.observe_time(took);
    }

    /// The stream begins behind this position: nothing before it will come.
    pub(crate) fn begin_log(&self, at: Lsn) {
        self.confirmed_lsn.store(at.0, Relaxed);
        self.received_lsn.store(at.0, Relaxed);
    }

    /// The log up to here was received. The record of a change may be before what was received already.
    pub(crate) fn receive_log(&self, up_to: Lsn) {
        self.received_lsn.fetch_max(up_to.0, Relaxed);
    }

    /// The log up to here was confirmed.
    pub(crate) fn confirm_log(&self, up_to: Lsn) {
        self.confirmed_lsn.fetch_max(up_to.0, Relaxed);
    }

    /// The database has answered what of a batch of changes who may see.
    pub(crate) fn count_authorisation(&self, took: Duration) {
        self.authorise_time[2].observe_time(took);
    }

    /// The database has answered a question about a private channel.
    pub(super) fn count_answer(&self, question: super::Question, took: Duration) {
        self.check_time[question as usize].observe_time(took);
        self.authorise_time[question as usize].observe_time(took);
    }

    pub(super) fn of_shards(&self) -> ShardNumbers {
        let mut sum = ShardNumbers::default();
        for shard in &self.shards {
            shard.add_to(&mut sum);
        }
        sum
    }

    pub(super) fn wal_lag_bytes(&self) -> u64 {
        self.received_lsn.load(Relaxed).saturating_sub(self.confirmed_lsn.load(Relaxed))
    }

    pub(super) fn code_count(&self, code: OperationalCode) -> u64 {
        self.codes[code as usize].load(Relaxed)
    }

    pub(super) fn channel_code_count(&self, code: OperationalCode) -> u64 {
        self.channel_codes[code as usize].load(Relaxed)
    }

    pub(super) fn http_broadcasts(&self) -> u64 {
        self.http_broadcasts.load(Relaxed)
    }

    pub(super) fn batches(&self) -> u64 {
        self.batches.load(Relaxed)
    }

    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Relaxed)
    }

    pub(super) fn db_events(&self) -> u64 {
        self.db_events.load(Relaxed)
    }

    pub(super) fn started_unix_s(&self) -> u64 {
        self.started_unix_s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_observation_belongs_to_the_first_bound_that_is_not_below_it() {
        let histogram = Histogram::new(&PAYLOAD_SIZE, 1.0);
        for bytes in [0, 250, 251, 3_000_000, 3_000_001] {
            histogram.observe(bytes);
        }
        let (buckets, sum) = histogram.read();
        assert_eq!(buckets, [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!(sum, 6_000_502.0);
    }

    #[test]
    fn times_are_kept_in_microseconds_and_read_in_the_unit_of_the_name() {
        let histogram = Histogram::new(&READ_CHECK, MICROSECONDS_IN_A_MILLISECOND);
        histogram.observe_time(Duration::from_micros(10_000));
        histogram.observe_time(Duration::from_micros(10_001));
        let (buckets, sum) = histogram.read();
        assert_eq!(buckets, [1, 1, 0, 0, 0]);
        assert!((sum - 20.001).abs() < 1e-9);
    }

    #[test]
    fn the_lag_is_what_was_received_and_not_confirmed_and_never_negative() {
        let metrics = Metrics::new(1);
        metrics.begin_log(Lsn(100));
        metrics.receive_log(Lsn(130));
        metrics.receive_log(Lsn(120));
        assert_eq!(metrics.wal_lag_bytes(), 30);
        metrics.confirm_log(Lsn(140));
        assert_eq!(metrics.wal_lag_bytes(), 0);
    }

    #[test]
    fn warnings_of_the_reference_are_no_channel_errors() {
        let metrics = Metrics::new(1);
        for code in [OperationalCode::InvalidJWTToken, OperationalCode::SlowReader] {
            metrics.count_channel_code(code);
            assert_eq!(metrics.code_count(code), 1);
        }
        assert_eq!(metrics.channel_code_count(OperationalCode::InvalidJWTToken), 0);
        assert_eq!(metrics.channel_code_count(OperationalCode::SlowReader), 1);
        // Positions in the table and numbers of the variants are the same thing.
        assert!(OperationalCode::ALL.iter().enumerate().all(|(position, code)| *code as usize == position));
    }
}
