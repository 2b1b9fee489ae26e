//! A cluster, a stream on it, and changes as short text.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tidewire_devdb::Cluster;
use tidewire_replication::{
    Cell, Lsn, Message, OldTuple, SlotPolicy, Start, StreamConfig, StreamError, Tuple, WalRead, WalStream,
    decode,
};

/// Far longer than anything here takes; a test that reaches it has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const SLOT: &str = "tidewire_test";

pub(crate) fn cluster(settings: &[(&str, &str)]) -> Cluster {
    let settings = settings.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    Cluster::temporary_with(settings).expect("a private Postgres starts")
}

/// A cluster with publication `p` for all tables.
pub(crate) fn published(settings: &[(&str, &str)]) -> Cluster {
    let cluster = cluster(settings);
    sql(&cluster, "create publication p for all tables");
    cluster
}

pub(crate) fn sql(cluster: &Cluster, sql: &str) -> String {
    cluster.run_sql(sql).unwrap().trim().to_owned()
}

pub(crate) fn config(cluster: &Cluster) -> StreamConfig {
    config_for(&cluster.superuser_url())
}

pub(crate) fn config_for(url: &str) -> StreamConfig {
    StreamConfig::new(url.parse().unwrap(), SLOT, vec!["p".to_owned()])
}

pub(crate) async fn open(config: &StreamConfig) -> WalStream {
    WalStream::open(config, SlotPolicy::Auto, Start::Fresh).await.unwrap()
}

pub(crate) async fn refused(config: &StreamConfig) -> StreamError {
    WalStream::open(config, SlotPolicy::Auto, Start::Fresh).await.unwrap_err()
}

/// What ends the stream.
pub(crate) async fn failure(stream: &mut WalStream) -> StreamError {
    loop {
        match tokio::time::timeout(PATIENCE, stream.read()).await.expect("the stream ends") {
            Ok(_) => {}
            Err(error) => return error,
        }
    }
}

/// Asks until the answer to `question` is `t`.
pub(crate) fn wait_for(cluster: &Cluster, question: &str) {
    let deadline = Instant::now() + PATIENCE;
    while sql(cluster, question) != "t" {
        assert!(Instant::now() < deadline, "never true: {question}");
    }
}

/// A transaction as the stream gave it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Transaction {
    pub(crate) end: Lsn,
    pub(crate) changes: Vec<String>,
}

/// Decodes what a stream gives; keeps the names of relations over reconnections of one test.
#[derive(Default)]
pub(crate) struct Reader {
    relations: HashMap<u32, String>,
    open: Vec<String>,
}

impl Reader {
    pub(crate) async fn transactions(&mut self, stream: &mut WalStream, count: usize) -> Vec<Transaction> {
        let mut transactions = Vec::new();
        while transactions.len() < count {
            let read = tokio::time::timeout(PATIENCE, stream.read()).await;
            match read.expect("changes arrive").unwrap() {
                WalRead::Idle(_) => {}
                WalRead::Data(data) => transactions.extend(self.take(&data.body)),
            }
        }
        transactions
    }

    /// The changes of the next transactions, in one list.
    pub(crate) async fn changes(&mut self, stream: &mut WalStream, transactions: usize) -> Vec<String> {
        let transactions = self.transactions(stream, transactions).await;
        transactions.into_iter().flat_map(|transaction| transaction.changes).collect()
    }

    fn take(&mut self, body: &[u8]) -> Option<Transaction> {
        let name = |relation: &u32| self.relations.get(relation).expect("announced before").clone();
        let change = match decode(body).unwrap() {
            Message::Begin(_) => {
                assert!(self.open.is_empty(), "transactions never interleave");
                return None;
            }
            Message::Commit(commit) => {
                return Some(Transaction { end: commit.end_lsn, changes: std::mem::take(&mut self.open) });
            }
            Message::Relation(relation) => {
                self.relations.insert(relation.oid, relation.name);
                return None;
            }
            Message::Insert { relation, new } => format!("insert {} {}", name(&relation), row(new)),
            Message::Update { relation, old, new } => {
                format!("update {} {}{}", name(&relation), old_row(old), row(new))
            }
            Message::Delete { relation, old } => format!("delete {} {}", name(&relation), old_row(old)),
            Message::Truncate { relations, .. } => format!("truncate {}", relations.len()),
            _ => return None,
        };
        self.open.push(change);
        None
    }
}

fn old_row(old: OldTuple<'_>) -> String {
    match old {
        OldTuple::None => String::new(),
        OldTuple::Key(tuple) => format!("key{} ", row(tuple)),
        OldTuple::Full(tuple) => format!("full{} ", row(tuple)),
    }
}

/// `(1,-,~)`: NULL is `-`, unchanged is `~`, long values are shown by their length.
fn row(tuple: Tuple<'_>) -> String {
    let cells = tuple.cells().map(|cell| match cell {
        Cell::Null => "-".to_owned(),
        Cell::Unchanged => "~".to_owned(),
        Cell::Text(text) if text.len() > 100 => format!("<{}>", text.len()),
        Cell::Text(text) => text.to_owned(),
        Cell::Binary(bytes) => format!("{bytes:?}"),
    });
    format!("({})", cells.collect::<Vec<String>>().join(","))
}
