//! What the server counts: names, labels and meanings, once; the numbers; and `GET /metrics`.
//!
//! Owns every metric of this server. It may not decide anything, and nothing waits for it: a shard counts in
//! plain fields of its own (`meter`) and publishes them once per turn with relaxed stores; whatever happens
//! less often than a delivery adds to an atomic (`cells`). There is no lock and no look-up on the way of a
//! frame, and a scrape (`page`) only loads. What a scrape sees of several numbers may be a turn apart.
//!
//! No metric is labelled with topics, users or addresses: what clients choose must not become memory here.
//! Names that dashboards of the reference know are kept where what they count exists here (`PROTOCOL.md`
//! §8.4); ours stand beside them, with the unit in the name.
//!
//! Why the text is written here and not by a crate: the usual pair (`metrics` with its Prometheus exporter)
//! adds to a shared atomic per event, brings a registry with hashing and a dozen crates, and prints bounds
//! as `1000` where existing rules say `1.0e3`. The format is three kinds of lines.
//!
//! It fails by leaving out: a number that the system does not tell (memory outside Linux) is not printed.

mod cells;
mod endpoint;
mod meter;
mod page;

pub(crate) use cells::Metrics;
pub(crate) use endpoint::routes;
pub(crate) use meter::{Question, ShardMeter};

/// Label of the part of the world, on every sample.
pub const REGION: &str = "region";
/// Label of the machine, on every sample.
pub const HOST: &str = "host";
/// Label of the node, on every sample.
pub const ID: &str = "id";
/// Label of the tenant.
pub const TENANT: &str = "tenant";
/// Label of an operational code.
pub const CODE: &str = "code";
/// Label of what a payload belongs to: `broadcast` or `postgres_changes`.
pub const MESSAGE_TYPE: &str = "message_type";
/// Label of a limit: its key in section `limits`.
pub const NAME: &str = "name";
/// Label of what the database was asked: `read` or `write` of a private channel, or about `changes`.
pub const QUESTION: &str = "question";
/// Label of the server's version.
pub const VERSION: &str = "version";

/// What a metric's numbers do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only rises, and begins at zero with the process.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Observations counted by size.
    Histogram,
}

impl Kind {
    /// The word of the text format.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A metric: its name and what it means.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Description {
    /// Name, unit included.
    pub name: &'static str,
    /// What its numbers do.
    pub kind: Kind,
    /// Labels beside [`REGION`], [`HOST`] and [`ID`].
    pub labels: &'static [&'static str],
    /// Upper bounds of a histogram's buckets, in the unit of the name; empty otherwise.
    pub bounds: &'static [f64],
    /// What it counts, a fragment without a full stop.
    pub help: &'static str,
}

macro_rules! metrics {
    ($( $constant:ident = $name:literal, $kind:ident, [$($label:ident)*], $([$($bound:literal)+],)? $help:literal; )+) => {
        $(
            #[doc = $help]
            pub const $constant: Description = Description {
                name: $name,
                kind: Kind::$kind,
                labels: &[$($label),*],
                bounds: &[$($($bound as f64),+)?],
                help: $help,
            };
        )+

        /// Every metric, in the order of the page.
        pub const ALL: &[Description] = &[$($constant),+];
    };
}

metrics! {
    // Connections and channels.
    CONNECTED = "realtime_connections_connected", Gauge, [TENANT],
        "WebSocket connections of the tenant open on this node";
    CONNECTED_CLUSTER = "realtime_connections_connected_cluster", Gauge, [TENANT],
        "WebSocket connections of the tenant open in the cluster, which is this node";
    GLOBAL_CONNECTED = "realtime_connections_global_connected", Gauge, [],
        "WebSocket connections open on this node";
    GLOBAL_CONNECTED_CLUSTER = "realtime_connections_global_connected_cluster", Gauge, [],
        "WebSocket connections open in the cluster, which is this node";
    TENANTS_CONNECTED = "realtime_tenants_connected", Gauge, [],
        "tenants with at least one connection on this node";
    SOCKETS = "phoenix_connections_active", Gauge, [],
        "WebSocket connections open on this node";
    SOCKETS_MAX = "phoenix_connections_max", Gauge, [],
        "connections accepted at once, limits.max_connections";
    CHANNELS = "tidewire_channels", Gauge, [],
        "channels joined now";
    TOPICS = "tidewire_topics", Gauge, [],
        "topics with members or presence, summed over the shards: a topic with members on two shards counts twice";

    // Traffic.
    JOINS = "realtime_channel_joins", Counter, [TENANT],
        "joins that passed the limit of joins per second, whatever became of them";
    GLOBAL_JOINS = "realtime_channel_global_joins", Counter, [],
        "joins that passed the limit of joins per second, whatever became of them";
    EVENTS = "realtime_channel_events", Counter, [TENANT],
        "broadcasts accepted, each delivery of one to a channel, and unknown events";
    GLOBAL_EVENTS = "realtime_channel_global_events", Counter, [],
        "broadcasts accepted, each delivery of one to a channel, and unknown events";
    PRESENCE_EVENTS = "realtime_channel_presence_events", Counter, [TENANT],
        "tracks, presence states sent, and each delivery of a presence diff to a channel";
    GLOBAL_PRESENCE_EVENTS = "realtime_channel_global_presence_events", Counter, [],
        "tracks, presence states sent, and each delivery of a presence diff to a channel";
    DB_EVENTS = "realtime_channel_db_events", Counter, [TENANT],
        "row changes sent to channels: one for each subscription reached";
    GLOBAL_DB_EVENTS = "realtime_channel_global_db_events", Counter, [],
        "row changes sent to channels: one for each subscription reached";
    INPUT_BYTES = "realtime_channel_input_bytes", Counter, [TENANT],
        "bytes read from WebSocket connections, frame headers included, handshake not";
    GLOBAL_INPUT_BYTES = "realtime_channel_global_input_bytes", Counter, [],
        "bytes read from WebSocket connections, frame headers included, handshake not";
    OUTPUT_BYTES = "realtime_channel_output_bytes", Counter, [TENANT],
        "bytes written to WebSocket connections, frame headers included, handshake not";
    GLOBAL_OUTPUT_BYTES = "realtime_channel_global_output_bytes", Counter, [],
        "bytes written to WebSocket connections, frame headers included, handshake not";
    PAYLOAD_SIZE = "realtime_payload_size", Histogram, [MESSAGE_TYPE],
        [250 500 1000 3000 5000 10000 25000 100000 500000 1000000 3000000],
        "bytes of payloads, each message once: broadcasts over HTTP, row changes as encoded";
    TENANTS_PAYLOAD_SIZE = "realtime_tenants_payload_size", Histogram, [TENANT MESSAGE_TYPE],
        [250 500 1000 3000 5000 10000 25000 100000 500000 1000000 3000000],
        "bytes of payloads, each message once: broadcasts over HTTP, row changes as encoded";
    HTTP_BROADCASTS = "tidewire_http_broadcasts_total", Counter, [],
        "messages accepted by the broadcast endpoints";
    FRAMES_WRITTEN = "tidewire_frames_written_total", Counter, [],
        "WebSocket frames written completely";
    WRITES = "tidewire_writes_total", Counter, [],
        "system calls that wrote to WebSocket connections; frames per write says how well frames coalesce";

    // Queues.
    OUTBOX_BYTES = "tidewire_outbox_bytes", Gauge, [],
        "bytes that wait for connections whose socket buffer is full";
    BLOCKED = "tidewire_blocked_connections", Gauge, [],
        "connections whose socket buffer is full";
    SLOW_READERS = "tidewire_slow_readers_total", Counter, [],
        "connections closed with 4008 because their outbox was full";
    INBOX_MESSAGES = "tidewire_inbox_messages", Gauge, [],
        "messages that wait for the shards; producers wait above 8192 for one shard";

    // Errors.
    CHANNEL_ERROR = "realtime_channel_error", Counter, [CODE TENANT],
        "errors of sockets, channels and handshakes by operational code; expired tokens and ended channels are no errors";
    GLOBAL_CHANNEL_ERROR = "realtime_channel_global_error", Counter, [CODE],
        "errors of sockets, channels and handshakes by operational code; expired tokens and ended channels are no errors";
    CODES = "tidewire_operational_codes_total", Counter, [CODE],
        "operational codes logged, warnings and those of the change stream included; ERROR_CODES.md explains each";

    // The database.
    REPLICATION_LIVE = "tidewire_replication_live", Gauge, [],
        "1 while the change stream is live or no database is configured, otherwise 0";
    WAL_LAG = "tidewire_wal_lag_bytes", Gauge, [],
        "log received from the database and not yet confirmed to it";
    BATCHES = "tidewire_change_batches_total", Counter, [],
        "batches of the change stream handled";
    BATCH_SECONDS = "tidewire_change_batch_seconds", Histogram, [],
        [0.0005 0.001 0.0025 0.005 0.01 0.025 0.05 0.1 0.25 0.5 1 2.5 10],
        "time from a batch being read to its frames being with the shards, questions to the database included";
    CHANGES = "tidewire_changes_total", Counter, [],
        "row changes that at least one binding matched, whether or not policies then let it through";
    READ_CHECK = "realtime_tenants_read_authorization_check", Histogram, [TENANT],
        [10 250 5000 15000],
        "milliseconds until the database had said what of a private channel may be read, replay included";
    WRITE_CHECK = "realtime_tenants_write_authorization_check", Histogram, [TENANT],
        [10 250 5000 15000],
        "milliseconds until the database had said what may be written to a private channel";
    AUTHORISE_SECONDS = "tidewire_authorise_seconds", Histogram, [QUESTION],
        [0.0005 0.001 0.0025 0.005 0.01 0.025 0.05 0.1 0.25 0.5 1 2.5 10],
        "time until the database had answered what a subscriber may do";
    ASKED = "tidewire_authorise_waiting", Gauge, [],
        "questions about private channels that have no answer yet";

    // Settings and process.
    LIMIT = "tidewire_limit", Gauge, [NAME],
        "limits as configured, by their key in section `limits`; +Inf where there is none";
    MEMORY = "process_resident_memory_bytes", Gauge, [],
        "resident memory of the process (Linux)";
    STARTED = "process_start_time_seconds", Gauge, [],
        "start of the server, seconds since the Unix epoch";
    BUILD = "tidewire_build_info", Gauge, [VERSION],
        "always 1; the label says which version runs";
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_metric_is_described_once_and_well_named() {
        let mut names = HashSet::new();
        for metric in ALL {
            let name = metric.name;
            assert!(names.insert(name), "{name} occurs twice");
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
            assert!(metric.help.len() > 10 && !metric.help.ends_with('.'), "{name}: help is a fragment");
            assert_eq!(metric.kind == Kind::Histogram, !metric.bounds.is_empty(), "{name}");
            assert!(metric.bounds.is_sorted(), "{name}: bounds rise");
            if name.starts_with("tidewire_") {
                let is_total = name.ends_with("_total");
                assert_eq!(is_total, metric.kind == Kind::Counter, "{name}: counters end in _total");
            }
        }
    }
}
