//! A strict reader of Prometheus' text format: what it takes, every scraper takes.
//!
//! It wants more than scrapers do: each family in one piece, described before its first sample, known to
//! [`tidewire_server::metrics::ALL`] with exactly the labels said there, and histograms that add up.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;

use tidewire_server::metrics::{ALL, Description, HOST, ID, Kind, REGION};
use tidewire_testkit::{DEADLINE, eventually};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// An answer over HTTP.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

/// Sends a request as it is written, one per connection.
pub(crate) async fn request(address: SocketAddr, line: &str, headers: &[&str], body: &str) -> Answer {
    let mut stream = TcpStream::connect(address).await.expect("the server accepts");
    let host =
        if headers.iter().any(|header| header.starts_with("Host:")) { "" } else { "Host: localhost\r\n" };
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let text = format!(
        "{line} HTTP/1.1\r\n{host}{headers}Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(text.as_bytes()).await.expect("the request is sent");
    let mut answer = String::new();
    let read = tokio::time::timeout(DEADLINE, stream.read_to_string(&mut answer)).await;
    read.expect("an answer in time").expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
}

/// One reading of all metrics.
#[derive(Debug)]
pub(crate) struct Page {
    /// Value by name and labels, without the labels that all samples have.
    samples: HashMap<(String, BTreeMap<String, String>), f64>,
}

impl Page {
    pub(crate) async fn of(address: SocketAddr) -> Self {
        let answer = request(address, "GET /metrics", &[], "").await;
        assert_eq!(answer.status, 200, "{}", answer.head);
        assert!(answer.head.contains("content-type: text/plain; charset=utf-8"), "{}", answer.head);
        Self::read(&answer.body)
    }

    /// A value; what has not occurred counts as zero.
    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        self.samples.get(&(name.to_owned(), labels)).copied().unwrap_or_default()
    }

    /// A value of the one tenant.
    pub(crate) fn of_tenant(&self, name: &str) -> f64 {
        self.value(name, &[("tenant", "realtime-dev")])
    }

    /// Reads a page.
    ///
    /// # Panics
    /// At whatever is not as it should be.
    pub(crate) fn read(text: &str) -> Self {
        let text = text.strip_suffix("# EOF\n").expect("the page ends with # EOF");
        let mut samples = HashMap::new();
        let mut seen: Vec<&Description> = Vec::new();
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            let (name, help) = line
                .strip_prefix("# HELP ")
                .and_then(|rest| rest.split_once(' '))
                .unwrap_or_else(|| panic!("{line}"));
            let metric =
                ALL.iter().find(|metric| metric.name == name).unwrap_or_else(|| panic!("{name} is unknown"));
            assert_eq!(help, metric.help);
            let kind = format!("# TYPE {name} {}", metric.kind.as_str());
            assert_eq!(lines.next(), Some(kind.as_str()));
            assert!(!seen.contains(&metric), "{name} comes twice");
            seen.push(metric);
            let mut of_family = Vec::new();
            while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
                let (name, labels, value) = sample(line);
                check_labels(metric, &name, &labels);
                assert!(metric.kind != Kind::Counter || (value >= 0.0 && value.fract() == 0.0), "{line}");
                assert!(
                    samples.insert((name.clone(), own(&labels)), value).is_none(),
                    "a series comes twice: {line}"
                );
                of_family.push((name, own(&labels), value));
            }
            match metric.kind {
                Kind::Histogram => check_histogram(metric, &of_family),
                _ => assert!(of_family.iter().all(|(sample, ..)| sample == name)),
            }
        }
        for metric in ALL {
            let is_there = seen.contains(&metric);
            assert!(is_there || cfg!(not(target_os = "linux")), "{} is missing", metric.name);
        }
        Self { samples }
    }
}

/// `name{key="value",…} number`.
fn sample(line: &str) -> (String, BTreeMap<String, String>, f64) {
    let (name, rest) = line.split_once('{').unwrap_or_else(|| panic!("no labels: {line}"));
    assert!(is_name(name), "{line}");
    let mut labels = BTreeMap::new();
    let mut rest = rest;
    loop {
        let (key, behind) = rest.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
        assert!(is_name(key), "{line}");
        let mut value = String::new();
        let mut chars = behind.char_indices();
        let end = loop {
            match chars.next() {
                Some((_, '\\')) => match chars.next() {
                    Some((_, 'n')) => value.push('\n'),
                    Some((_, escaped @ ('\\' | '"'))) => value.push(escaped),
                    _ => panic!("unknown escape: {line}"),
                },
                Some((end, '"')) => break end,
                Some((_, plain)) => value.push(plain),
                None => panic!("unfinished label: {line}"),
            }
        };
        assert!(labels.insert(key.to_owned(), value).is_none(), "a label comes twice: {line}");
        rest = &behind[end + 1..];
        match rest.split_at_checked(1) {
            Some((",", more)) => rest = more,
            Some(("}", more)) => {
                let number = more.strip_prefix(' ').unwrap_or_else(|| panic!("{line}"));
                let value = if number == "+Inf" { f64::INFINITY } else { number.parse().expect("a number") };
                return (name.to_owned(), labels, value);
            }
            _ => panic!("{line}"),
        }
    }
}

fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// The labels that tell a sample from others of this server.
fn own(labels: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    labels
        .iter()
        .filter(|(key, _)| ![REGION, HOST, ID].contains(&key.as_str()))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect()
}

fn check_labels(metric: &Description, sample: &str, labels: &BTreeMap<String, String>) {
    let mut wanted: HashSet<&str> =
        [REGION, HOST, ID].into_iter().chain(metric.labels.iter().copied()).collect();
    if metric.kind == Kind::Histogram && sample.ends_with("_bucket") {
        wanted.insert("le");
    }
    let found: HashSet<&str> = labels.keys().map(String::as_str).collect();
    assert_eq!(found, wanted, "labels of {sample}");
}

/// Buckets rise to `+Inf`, which is the count; each series has its sum.
fn check_histogram(metric: &Description, samples: &[(String, BTreeMap<String, String>, f64)]) {
    let buckets = metric.bounds.len() + 1;
    assert_eq!(samples.len() % (buckets + 2), 0, "{}", metric.name);
    for series in samples.chunks(buckets + 2) {
        let mut before = (f64::NEG_INFINITY, 0.0);
        for (position, (name, labels, value)) in series[..buckets].iter().enumerate() {
            assert_eq!(*name, format!("{}_bucket", metric.name));
            let bound = match labels["le"].as_str() {
                "+Inf" => f64::INFINITY,
                bound => bound.parse().expect("a bound"),
            };
            assert!(bound > before.0 && *value >= before.1, "{name} {labels:?}");
            assert_eq!(metric.bounds.get(position).copied().unwrap_or(f64::INFINITY), bound);
            before = (bound, *value);
        }
        assert_eq!(series[buckets].0, format!("{}_sum", metric.name));
        assert_eq!(series[buckets + 1].0, format!("{}_count", metric.name));
        assert_eq!(series[buckets + 1].2, before.1, "{} counts what its buckets hold", metric.name);
    }
}

/// Reads until a question about the page is answered with yes: numbers are published at the end of a turn.
pub(crate) async fn until(address: SocketAddr, what: &str, is_so: impl Fn(&Page) -> bool) -> Page {
    let is_so = &is_so;
    eventually(what, || async move {
        let page = Page::of(address).await;
        is_so(&page).then_some(page)
    })
    .await
}
