//! What the database offers, before anything is changed in it.
//!
//! Owns the one query that reads the facts. It may not create or drop anything. Fails with [`StreamError`].
//!
//! Spec: PROTOCOL.md §9.1; DESIGN.md §3 ("durable slot where `max_slot_wal_keep_size` bounds it").

use crate::error::{Phase, StreamError};
use crate::lsn::Lsn;
use crate::session::{Purpose, Row, Session};
use crate::stream::StreamConfig;

/// PostgreSQL 14: the first with `wal_status`, binary-safe pgoutput options and decoding that survives DDL.
const OLDEST_SERVER_VERSION_NUM: u32 = 140_000;

/// Facts about the database, as the role of the settings sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prerequisites {
    /// For example 150008.
    pub server_version_num: u32,
    /// Must be `logical`.
    pub wal_level: String,
    /// Whether every publication of the settings exists.
    pub publication_exists: bool,
    /// Those that do not.
    pub missing_publications: Vec<String>,
    /// Whether the role has REPLICATION or is superuser.
    pub can_replicate: bool,
    /// `max_slot_wal_keep_size` in megabytes; -1 means a forgotten slot may fill the disk.
    pub max_slot_wal_keep_size_mb: i64,
    /// `wal_sender_timeout` in milliseconds; 0 is off.
    pub wal_sender_timeout_ms: i64,
    /// `max_replication_slots`.
    pub max_replication_slots: i64,
    /// How many of them are taken.
    pub replication_slots_in_use: i64,
    /// `max_wal_senders`.
    pub max_wal_senders: i64,
    /// How many of them are taken (replicas and other consumers), this session not counted.
    pub wal_senders_in_use: i64,
    /// Where the log is now.
    pub current_lsn: Lsn,
    /// The slot of the settings' name, if there is one.
    pub slot: Option<SlotFacts>,
}

/// A replication slot as `pg_replication_slots` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotFacts {
    /// Whether it is a logical pgoutput slot of this database: one we could have made.
    pub is_ours: bool,
    /// Whether it ends with its session.
    pub is_temporary: bool,
    /// The process that uses it.
    pub active_pid: Option<i32>,
    /// Whether the log it needs has been removed.
    pub is_lost: bool,
    /// Up to where changes have been confirmed.
    pub confirmed_lsn: Lsn,
}

/// Reads the facts over a plain SQL connection of its own.
///
/// # Errors
/// Connection and authentication errors. A missing prerequisite is not an error here: the answer says so.
///
/// # Cancel safety
/// Dropping the future closes the connection.
pub async fn probe(config: &StreamConfig) -> Result<Prerequisites, StreamError> {
    config.validate()?;
    let mut session = Session::connect(config, Purpose::Sql).await?;
    let facts = Prerequisites::read(&mut session, config).await?;
    session.terminate().await;
    Ok(facts)
}

impl Prerequisites {
    pub(crate) async fn read(
        session: &mut Session,
        config: &StreamConfig,
    ) -> Result<Prerequisites, StreamError> {
        let settings = "SELECT pg_catalog.current_setting('server_version_num'), \
                pg_catalog.current_setting('wal_level'), \
                (SELECT setting FROM pg_catalog.pg_settings WHERE name = 'max_slot_wal_keep_size'), \
                (SELECT setting FROM pg_catalog.pg_settings WHERE name = 'wal_sender_timeout'), \
                pg_catalog.current_setting('max_replication_slots'), \
                (SELECT count(*) FROM pg_catalog.pg_replication_slots), \
                pg_catalog.current_setting('max_wal_senders'), \
                (SELECT count(*) FROM pg_catalog.pg_stat_replication \
                  WHERE pid OPERATOR(pg_catalog.<>) pg_catalog.pg_backend_pid()), \
                (SELECT rolsuper OR rolreplication FROM pg_catalog.pg_roles WHERE rolname = current_user), \
                CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
                     ELSE pg_catalog.pg_current_wal_lsn() END";
        let mut fields = one_row(session.query(settings, Phase::Query).await?)?.into_iter();
        let mut next = || fields.next().flatten().unwrap_or_default();
        let server_version_num = number(&next())?;
        let wal_level = next();
        let mut facts = Prerequisites {
            server_version_num,
            wal_level,
            max_slot_wal_keep_size_mb: number(&next())?,
            wal_sender_timeout_ms: number(&next())?,
            max_replication_slots: number(&next())?,
            replication_slots_in_use: number(&next())?,
            max_wal_senders: number(&next())?,
            wal_senders_in_use: number(&next())?,
            can_replicate: next() == "t",
            current_lsn: position(&next())?,
            publication_exists: false,
            missing_publications: config.publications.clone(),
            slot: None,
        };

        let publications =
            session.query("SELECT pubname FROM pg_catalog.pg_publication", Phase::Query).await?;
        for name in publications.into_iter().filter_map(|row| row.into_iter().next().flatten()) {
            facts.missing_publications.retain(|missing| *missing != name);
        }
        facts.publication_exists = facts.missing_publications.is_empty();

        // The slot name was validated to be [a-z0-9_], so it needs no quoting.
        let slot = format!(
            "SELECT slot_type = 'logical' AND plugin = 'pgoutput' AND database = pg_catalog.current_database(), \
                    temporary, active_pid, wal_status = 'lost', confirmed_flush_lsn \
               FROM pg_catalog.pg_replication_slots WHERE slot_name = '{}'",
            config.slot
        );
        facts.slot =
            session.query(&slot, Phase::Query).await?.into_iter().next().map(slot_facts).transpose()?;
        Ok(facts)
    }

    /// The first reason why streaming cannot work, whatever the slot.
    pub(crate) fn require(&self) -> Result<(), StreamError> {
        if self.server_version_num < OLDEST_SERVER_VERSION_NUM {
            return Err(StreamError::ServerTooOld { found: self.server_version_num });
        }
        if self.wal_level != "logical" {
            return Err(StreamError::WalLevelNotLogical { found: self.wal_level.clone() });
        }
        match self.missing_publications.first() {
            Some(name) => Err(StreamError::PublicationMissing { name: name.clone() }),
            None => Ok(()),
        }
    }
}

fn slot_facts(row: Row) -> Result<SlotFacts, StreamError> {
    let mut fields = row.into_iter();
    let mut next = || fields.next().flatten();
    Ok(SlotFacts {
        is_ours: next().as_deref() == Some("t"),
        is_temporary: next().as_deref() == Some("t"),
        active_pid: next().map(|pid| number(&pid)).transpose()?,
        is_lost: next().as_deref() == Some("t"),
        confirmed_lsn: next().map_or(Ok(Lsn::ZERO), |lsn| position(&lsn))?,
    })
}

pub(crate) fn one_row(rows: Vec<Row>) -> Result<Row, StreamError> {
    rows.into_iter().next().ok_or_else(|| StreamError::Protocol("a query returned no row".to_owned()))
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, StreamError> {
    text.parse().map_err(|_| StreamError::Protocol(format!("expected a number, found {text:?}")))
}

pub(crate) fn position(text: &str) -> Result<Lsn, StreamError> {
    text.parse().map_err(|_| StreamError::Protocol(format!("expected a log position, found {text:?}")))
}
