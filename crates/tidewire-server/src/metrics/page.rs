//! The page of `GET /metrics`: Prometheus' text format, version 0.0.4, ending in `# EOF` as the reference's.
//!
//! Spec: PROTOCOL.md §8.4.

use std::fmt::Write as _;

use tidewire_engine::Rates;
use tidewire_protocol::codes::OperationalCode;

use super::cells::{Histogram, Metrics};
use super::{
    ASKED, AUTHORISE_SECONDS, BATCH_SECONDS, BATCHES, BLOCKED, BUILD, CHANGES, CHANNEL_ERROR, CHANNELS, CODE,
    CODES, CONNECTED, CONNECTED_CLUSTER, DB_EVENTS, Description, EVENTS, FRAMES_WRITTEN,
    GLOBAL_CHANNEL_ERROR, GLOBAL_CONNECTED, GLOBAL_CONNECTED_CLUSTER, GLOBAL_DB_EVENTS, GLOBAL_EVENTS,
    GLOBAL_INPUT_BYTES, GLOBAL_JOINS, GLOBAL_OUTPUT_BYTES, GLOBAL_PRESENCE_EVENTS, HOST, HTTP_BROADCASTS, ID,
    INBOX_MESSAGES, INPUT_BYTES, JOINS, LIMIT, MEMORY, MESSAGE_TYPE, NAME, OUTBOX_BYTES, OUTPUT_BYTES,
    PAYLOAD_SIZE, PRESENCE_EVENTS, QUESTION, READ_CHECK, REGION, REPLICATION_LIVE, SLOW_READERS, SOCKETS,
    SOCKETS_MAX, STARTED, TENANT, TENANTS_CONNECTED, TENANTS_PAYLOAD_SIZE, TOPICS, VERSION, WAL_LAG,
    WRITE_CHECK, WRITES,
};
use crate::config::{Limits, ServerConfig};

/// What ends the page: a scrape that was cut off is told from a whole one.
pub(super) const END: &str = "# EOF\n";

/// Everything, as text.
pub(super) fn render(
    (metrics, inbox_messages): (&Metrics, u64),
    rates: &Rates,
    config: &ServerConfig,
    host: &str,
    is_live: bool,
) -> String {
    let node = config.metrics.node.as_deref().unwrap_or(host);
    let mut page = Page::new(&[(REGION, &config.metrics.region), (HOST, host), (ID, node)]);
    let tenant = &[(TENANT, config.tenant.id.as_str())];
    let shards = metrics.of_shards();

    for (metric, is_of_tenant) in [
        (CONNECTED, true),
        (CONNECTED_CLUSTER, true),
        (GLOBAL_CONNECTED, false),
        (GLOBAL_CONNECTED_CLUSTER, false),
        (SOCKETS, false),
    ] {
        page.number(metric, if is_of_tenant { tenant } else { &[] }, shards.sockets);
    }
    page.number(TENANTS_CONNECTED, &[], u64::from(shards.sockets > 0));
    page.number(SOCKETS_MAX, &[], config.limits.max_connections as u64);
    page.number(CHANNELS, &[], shards.channels);
    page.number(TOPICS, &[], shards.topics);

    for (of_tenant, global, value) in [
        (JOINS, GLOBAL_JOINS, rates.joins.total()),
        (EVENTS, GLOBAL_EVENTS, rates.events.total()),
        (PRESENCE_EVENTS, GLOBAL_PRESENCE_EVENTS, rates.presence.total()),
        (DB_EVENTS, GLOBAL_DB_EVENTS, metrics.db_events()),
        (INPUT_BYTES, GLOBAL_INPUT_BYTES, shards.input_bytes),
        (OUTPUT_BYTES, GLOBAL_OUTPUT_BYTES, shards.output_bytes),
    ] {
        page.number(of_tenant, tenant, value);
        page.number(global, &[], value);
    }
    let sizes = [("broadcast", &metrics.broadcast_bytes), ("postgres_changes", &metrics.change_bytes)];
    page.describe(PAYLOAD_SIZE);
    for (kind, histogram) in sizes {
        page.histogram(PAYLOAD_SIZE, &[(MESSAGE_TYPE, kind)], histogram);
    }
    page.describe(TENANTS_PAYLOAD_SIZE);
    for (kind, histogram) in sizes {
        page.histogram(TENANTS_PAYLOAD_SIZE, &[(MESSAGE_TYPE, kind), tenant[0]], histogram);
    }
    page.number(HTTP_BROADCASTS, &[], metrics.http_broadcasts());
    page.number(FRAMES_WRITTEN, &[], shards.frames_written);
    page.number(WRITES, &[], shards.writes);

    page.number(OUTBOX_BYTES, &[], shards.outbox_bytes);
    page.number(BLOCKED, &[], shards.blocked);
    page.number(SLOW_READERS, &[], metrics.code_count(OperationalCode::SlowReader));
    page.number(INBOX_MESSAGES, &[], inbox_messages);

    page.codes(CHANNEL_ERROR, tenant, |code| metrics.channel_code_count(code));
    page.codes(GLOBAL_CHANNEL_ERROR, &[], |code| metrics.channel_code_count(code));
    page.codes(CODES, &[], |code| metrics.code_count(code));

    page.number(REPLICATION_LIVE, &[], u64::from(is_live));
    page.number(WAL_LAG, &[], metrics.wal_lag_bytes());
    page.number(BATCHES, &[], metrics.batches());
    page.describe(BATCH_SECONDS);
    page.histogram(BATCH_SECONDS, &[], &metrics.batch_time);
    page.number(CHANGES, &[], metrics.changes());
    for (metric, histogram) in [READ_CHECK, WRITE_CHECK].into_iter().zip(&metrics.check_time) {
        page.describe(metric);
        page.histogram(metric, tenant, histogram);
    }
    page.describe(AUTHORISE_SECONDS);
    for (question, histogram) in ["read", "write", "changes"].into_iter().zip(&metrics.authorise_time) {
        page.histogram(AUTHORISE_SECONDS, &[(QUESTION, question)], histogram);
    }
    page.number(ASKED, &[], shards.asked);

    page.describe(LIMIT);
    for (name, value) in limits(&config.limits) {
        page.sample(LIMIT.name, &[(NAME, name)], value);
    }
    if let Some(bytes) = resident_bytes() {
        page.number(MEMORY, &[], bytes);
    }
    page.number(STARTED, &[], metrics.started_unix_s());
    page.number(BUILD, &[(VERSION, env!("CARGO_PKG_VERSION"))], 1);
    page.text.push_str(END);
    page.text
}

/// Every limit by its key. Taken apart whole, so that a new one cannot be forgotten here.
fn limits(limits: &Limits) -> Vec<(&'static str, f64)> {
    macro_rules! named {
        ($($name:ident),+ $(,)?) => {{
            let Limits { $($name),+ } = limits;
            vec![$((stringify!($name), $name.shown())),+]
        }};
    }
    named!(
        max_connections,
        max_channels_per_client,
        max_frame_bytes,
        max_body_bytes,
        max_payload_bytes,
        max_outbox_bytes,
        presence_calls,
        presence_window_ms,
        max_joins_per_second,
        max_events_per_second,
        max_presence_events_per_second,
        max_bindings_per_channel,
        max_record_bytes,
        max_header_bytes,
    )
}

/// A limit as a number.
trait Shown {
    fn shown(&self) -> f64;
}

impl Shown for usize {
    fn shown(&self) -> f64 {
        *self as f64
    }
}

impl Shown for u64 {
    fn shown(&self) -> f64 {
        *self as f64
    }
}

impl Shown for Option<u32> {
    fn shown(&self) -> f64 {
        self.map_or(f64::INFINITY, f64::from)
    }
}

/// Resident memory, as Linux tells it.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

type Labels<'a> = &'a [(&'a str, &'a str)];

/// Text under construction.
struct Page {
    text: String,
    /// Labels of every sample, as they are printed.
    everywhere: String,
}

impl Page {
    fn new(everywhere: Labels<'_>) -> Self {
        let mut labels = String::new();
        for (key, value) in everywhere {
            write_label(&mut labels, key, value);
        }
        Self { text: String::with_capacity(16 * 1024), everywhere: labels }
    }

    /// `# HELP` and `# TYPE`, before the samples.
    fn describe(&mut self, metric: Description) {
        let help = metric.help.replace('\\', "\\\\").replace('\n', "\\n");
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "# HELP {} {help}", metric.name);
        let _ = writeln!(self.text, "# TYPE {} {}", metric.name, metric.kind.as_str());
    }

    /// A metric of one sample.
    fn number(&mut self, metric: Description, labels: Labels<'_>, value: u64) {
        self.describe(metric);
        self.sample(metric.name, labels, value as f64);
    }

    fn sample(&mut self, name: &str, labels: Labels<'_>, value: f64) {
        self.text.push_str(name);
        self.text.push('{');
        self.text.push_str(&self.everywhere);
        for (key, value) in labels {
            write_label(&mut self.text, key, value);
        }
        // The last comma; there are always labels.
        self.text.pop();
        let _ = match value {
            f64::INFINITY => writeln!(self.text, "}} +Inf"),
            value => writeln!(self.text, "}} {value}"),
        };
    }

    /// One series of a histogram.
    fn histogram(&mut self, metric: Description, labels: Labels<'_>, histogram: &Histogram) {
        let (buckets, sum) = histogram.read();
        let name = format!("{}_bucket", metric.name);
        let mut count = 0;
        for (position, bucket) in buckets.iter().enumerate() {
            count += bucket;
            let bound = metric.bounds.get(position).map_or_else(|| "+Inf".to_owned(), |bound| print(*bound));
            let labels: Vec<_> = labels.iter().copied().chain([("le", bound.as_str())]).collect();
            self.sample(&name, &labels, count as f64);
        }
        self.sample(&format!("{}_sum", metric.name), labels, sum);
        self.sample(&format!("{}_count", metric.name), labels, count as f64);
    }

    /// One sample for each code that has occurred.
    fn codes(&mut self, metric: Description, labels: Labels<'_>, count: impl Fn(OperationalCode) -> u64) {
        self.describe(metric);
        for code in OperationalCode::ALL {
            let count = count(*code);
            if count > 0 {
                let labels: Vec<_> =
                    [(CODE, code.as_str())].into_iter().chain(labels.iter().copied()).collect();
                self.sample(metric.name, &labels, count as f64);
            }
        }
    }
}

fn write_label(out: &mut String, key: &str, value: &str) {
    let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let _ = write!(out, "{key}=\"{value}\",");
}

/// A bound as the reference prints it: a float, with an exponent where that is shorter (`250.0`, `1.0e3`).
fn print(bound: f64) -> String {
    let decimal = format!("{bound:?}");
    if bound < 1.0 {
        return decimal;
    }
    let scientific = format!("{bound:e}");
    let scientific = match scientific.split_once('e') {
        Some((digits, exponent)) if !digits.contains('.') => format!("{digits}.0e{exponent}"),
        _ => scientific,
    };
    if scientific.len() < decimal.len() { scientific } else { decimal }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_printed_as_existing_rules_have_them() {
        let printed: Vec<String> = PAYLOAD_SIZE.bounds.iter().map(|bound| print(*bound)).collect();
        assert_eq!(
            printed,
            [
                "250.0", "500.0", "1.0e3", "3.0e3", "5.0e3", "1.0e4", "2.5e4", "1.0e5", "5.0e5", "1.0e6",
                "3.0e6"
            ]
        );
        assert_eq!(
            [print(10.0), print(15_000.0), print(0.0005), print(2.5)],
            ["10.0", "1.5e4", "0.0005", "2.5"]
        );
    }

    #[test]
    fn labels_escape_what_would_end_them() {
        let mut page = Page::new(&[(REGION, "a\"b\\c\nd")]);
        page.number(CHANNELS, &[], 3);
        let last = page.text.lines().last().unwrap();
        assert_eq!(last, r#"tidewire_channels{region="a\"b\\c\nd"} 3"#);
    }

    #[test]
    fn large_counts_are_printed_digit_by_digit() {
        let mut page = Page::new(&[(ID, "n")]);
        page.number(WRITES, &[], 1_234_567_890_123);
        page.sample("x", &[], f64::INFINITY);
        assert!(page.text.ends_with("{id=\"n\"} 1234567890123\nx{id=\"n\"} +Inf\n"), "{}", page.text);
    }

    #[test]
    fn a_histogram_ends_with_everything() {
        let histogram = Histogram::new(&READ_CHECK, 1000.0);
        histogram.observe(1);
        histogram.observe(20_000_000);
        let mut page = Page::new(&[(ID, "n")]);
        page.histogram(READ_CHECK, &[], &histogram);
        let wanted = [
            r#"_bucket{id="n",le="10.0"} 1"#,
            r#"_bucket{id="n",le="250.0"} 1"#,
            r#"_bucket{id="n",le="5.0e3"} 1"#,
            r#"_bucket{id="n",le="1.5e4"} 1"#,
            r#"_bucket{id="n",le="+Inf"} 2"#,
            r#"_sum{id="n"} 20000.001"#,
            r#"_count{id="n"} 2"#,
        ];
        let lines: Vec<&str> =
            page.text.lines().map(|line| line.strip_prefix(READ_CHECK.name).unwrap()).collect();
        assert_eq!(lines, wanted);
    }
}
