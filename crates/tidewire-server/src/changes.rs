//! Postgres Changes: from the write-ahead log to the channels that may see a change.
//!
//! One task owns the replication stream, the catalogue of the published tables and the index of bindings.
//! It reads what the stream has, decides who gets it, encodes once, and hands the frames to the shards.
//!
//! ```text
//! WalStream ──▶ decode ──▶ match (Subscriptions) ──▶ authorise (Authenticator) ──▶ encode ──▶ shards
//!                  │                                      │
//!             Relation: forget the table          one prepared execution per identity, on the row image
//! ```
//!
//! The rooms: [`task`] runs the loop, [`registry`] knows the channels and makes their bindings live,
//! [`catalogue`] shares answers among checks,
//! [`table`] joins what the catalogue and the stream say of a table, [`batch`] takes a batch of changes
//! through the steps above, [`encode`] writes JSON.
//!
//! Failure: the stream is opened again with growing waits, and every failure has a code. With a durable
//! slot nothing is missing afterwards; with a temporary one the channels are told by another
//! `Subscribed to PostgreSQL`, as official clients know it (`PROTOCOL.md` §5.11). A change whose
//! visibility cannot be decided is not delivered.
//!
//! Bounds: the stream is read only as fast as batches are handled, so what waits is in the socket and in
//! Postgres; a batch is bounded in messages and bytes; the way to the shards is bounded by
//! [`Shards::is_congested`].

mod batch;
mod catalogue;
mod encode;
mod registry;
mod table;
mod task;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tidewire_authz::{Authenticator, AuthenticatorConfig};
use tidewire_engine::{ChangeCommand, Rates};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::config::{DatabaseConfig, ServerConfig};
use crate::maintenance::Owner;
use crate::shard::Shards;

/// Commands waiting above which shards stop reading their sockets.
const CONGESTED: usize = 4_096;

/// What the outside may know of the change stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangeStatus {
    /// No database is configured.
    Off,
    /// Not connected yet.
    Connecting,
    /// Streaming.
    Live,
    /// Not streaming; the next attempt is under way or waits.
    Down {
        /// Stable code.
        code: &'static str,
        /// A sentence.
        message: String,
    },
}

/// The way of commands to the change task.
#[derive(Debug, Clone)]
pub(crate) struct ChangeSender {
    queue: mpsc::UnboundedSender<ChangeCommand>,
    /// Unbounded by type, bounded by this: shards read no further frames while it is above [`CONGESTED`].
    waiting: Arc<AtomicUsize>,
}

/// The other end.
#[derive(Debug)]
pub(crate) struct ChangeReceiver {
    queue: mpsc::UnboundedReceiver<ChangeCommand>,
    waiting: Arc<AtomicUsize>,
}

pub(crate) fn channel() -> (ChangeSender, ChangeReceiver) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let waiting = Arc::new(AtomicUsize::new(0));
    (
        ChangeSender { queue: sender, waiting: Arc::clone(&waiting) },
        ChangeReceiver { queue: receiver, waiting },
    )
}

impl ChangeSender {
    pub(crate) fn send(&self, command: ChangeCommand) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        // The task outlives the shards; only at the very end of a shutdown may it be gone.
        drop(self.queue.send(command));
    }

    pub(crate) fn is_congested(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > CONGESTED
    }
}

impl ChangeReceiver {
    /// Cancel safe.
    async fn recv(&mut self) -> Option<ChangeCommand> {
        let command = self.queue.recv().await;
        if command.is_some() {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        command
    }

    fn try_recv(&mut self) -> Option<ChangeCommand> {
        let command = self.queue.try_recv().ok();
        if command.is_some() {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        command
    }
}

/// Starts the task. Without a database it still answers: bindings get an error that says so.
pub(crate) fn start(
    config: &ServerConfig,
    receiver: ChangeReceiver,
    shards: Shards,
    authenticator: Option<&Authenticator>,
    owner: Option<Owner>,
    rates: Arc<Rates>,
    shutdown: CancellationToken,
) -> Result<(watch::Receiver<ChangeStatus>, tokio::task::JoinHandle<()>), tokio_postgres::Error> {
    let first = if config.database.is_some() { ChangeStatus::Connecting } else { ChangeStatus::Off };
    let (status, watcher) = watch::channel(first);
    let database = match (&config.database, authenticator) {
        (Some(database), Some(authenticator)) => {
            Some(task::Database::new(database, authenticator.clone(), owner)?)
        }
        _ => None,
    };
    let task = task::ChangeTask::new(config, database, receiver, shards, rates, status);
    Ok((watcher, tokio::spawn(task.run(shutdown))))
}

/// The sessions that speak for subscribers, shared by everything that asks on their behalf.
pub(crate) fn authenticator(config: &ServerConfig) -> Result<Option<Authenticator>, tokio_postgres::Error> {
    let Some(database) = &config.database else { return Ok(None) };
    Ok(Some(Authenticator::new(AuthenticatorConfig {
        postgres: parse_url(database.authenticator_url.expose())?,
        pool_size: database.pool_size,
        search_path: database.search_path.clone(),
        statement_timeout: std::time::Duration::from_secs(5),
        roles: config.tenant.roles.clone(),
    })))
}

/// Parses the two logins of a database.
pub(crate) fn parse_url(url: &str) -> Result<tokio_postgres::Config, tokio_postgres::Error> {
    url.parse()
}

/// Checks that both URLs can be parsed, for [`ServerConfig::validate`].
pub(crate) fn check_urls(database: &DatabaseConfig) -> Vec<(&'static str, String)> {
    [
        ("database.replication_url", &database.replication_url),
        ("database.authenticator_url", &database.authenticator_url),
    ]
    .into_iter()
    .filter_map(|(path, url)| {
        // The parser's own message may quote the URL, and with it the password.
        parse_url(url.expose()).err().map(|_| {
            (path, "is not a postgres:// URL; write postgres://user:password@host:port/database".into())
        })
    })
    .collect()
}
