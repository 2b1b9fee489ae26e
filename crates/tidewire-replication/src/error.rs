//! What can go wrong with a replication session, as facts an operator can act on.
//!
//! Owns the error type, its stable codes, its retry policy, and the reading of SQLSTATEs. It may not hold
//! row values or passwords: only the primary message of a server error is kept, never its detail.

use std::fmt;
use std::io;

use crate::lsn::Lsn;

/// When the same call may succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// At once: the cause was in the connection that is gone.
    Now,
    /// After a growing pause: something in the database or the network has to change first.
    Backoff,
    /// Not with the same arguments: the settings must change, or the stream must start afresh.
    Never,
}

/// An error the server reported: its SQLSTATE and its primary message, without detail or hint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerError {
    /// Five characters, for example `55006`.
    pub sqlstate: String,
    /// The primary message, in the server's language.
    pub message: String,
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (SQLSTATE {})", self.message, self.sqlstate)
    }
}

impl std::error::Error for ServerError {}

/// Why a replication session could not start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// No connection: refused, unresolvable, timed out, or the server is starting or stopping.
    #[error("the database cannot be reached")]
    Unreachable {
        /// The last attempt's failure.
        source: io::Error,
    },
    /// Wrong password, unknown role, or no `pg_hba.conf` line.
    #[error("the database refused the login: {reason}")]
    AuthenticationFailed {
        /// The server's sentence, or ours when the password is missing or the server failed to prove itself.
        reason: String,
    },
    /// `sslmode=require` was asked for, and this session cannot speak TLS.
    #[error(
        "TLS was required, but replication sessions do not support it yet; use sslmode=prefer or disable"
    )]
    TlsUnsupported,
    /// The settings cannot describe a session.
    #[error("the replication settings are not usable: {0}")]
    InvalidConfig(String),
    /// Older than PostgreSQL 14.
    #[error("PostgreSQL {found} is too old, 14 or later is needed")]
    ServerTooOld {
        /// `server_version_num`, for example 130012.
        found: u32,
    },
    /// `wal_level` must be `logical`; changing it needs a restart of Postgres.
    #[error("wal_level is {found}, but must be logical")]
    WalLevelNotLogical {
        /// The setting as found.
        found: String,
    },
    /// The publication does not exist in this database.
    #[error("publication {name:?} does not exist")]
    PublicationMissing {
        /// Its name.
        name: String,
    },
    /// At some change in the log the publication did not exist: it was dropped, or made after the slot. Postgres
    /// looks it up as of that change, so that making it again does not help: this stretch of the log cannot be
    /// read any more, continuity is over.
    #[error("publication {name:?} did not exist at a change in the log")]
    PublicationLost {
        /// Its name.
        name: String,
    },
    /// The role has neither REPLICATION nor superuser.
    #[error("the role has no REPLICATION privilege")]
    NoReplicationPrivilege,
    /// All of `max_replication_slots` are taken.
    #[error("all replication slots are in use (max_replication_slots)")]
    SlotsExhausted,
    /// All of `max_wal_senders` are taken.
    #[error("all WAL senders are in use (max_wal_senders)")]
    WalSendersExhausted,
    /// All of `max_connections` are taken.
    #[error("the database has no connection left")]
    ConnectionsExhausted,
    /// Another session streams from the slot.
    #[error("the replication slot is in use{}", pid.map(|pid| format!(" by process {pid}")).unwrap_or_default())]
    SlotInUse {
        /// The other walsender's process id, where it is known.
        pid: Option<i32>,
    },
    /// A slot of this name belongs to another database, plugin or kind; it is never dropped.
    #[error("the replication slot name is taken by a slot of another kind or database")]
    SlotForeign,
    /// Making a slot waits for older transactions to end, and one of them did not.
    #[error("the replication slot could not be made because a transaction stays open")]
    SlotBlocked,
    /// The slot is gone or invalidated: changes may be missing, continuity is over.
    #[error("the replication slot is lost")]
    SlotLost,
    /// The slot has been confirmed past the position asked for: what lies between will not be sent again.
    #[error("the replication slot was confirmed up to {confirmed}, past the requested position {requested}")]
    PositionLost {
        /// The position asked for.
        requested: Lsn,
        /// The earliest position there is.
        confirmed: Lsn,
    },
    /// The connection ended while streaming.
    #[error("the change stream was interrupted")]
    Interrupted {
        /// What ended it; wraps a [`ServerError`] when the server said why.
        source: io::Error,
    },
    /// One message exceeds the bound of the settings; it would come again on every attempt.
    #[error("a message of {bytes} bytes exceeds the limit of {limit_bytes} bytes")]
    MessageTooLarge {
        /// Its announced size.
        bytes: u64,
        /// `max_message_bytes` of the settings.
        limit_bytes: usize,
    },
    /// The server said something the protocol does not allow here.
    #[error("protocol violation: {0}")]
    Protocol(String),
    /// Any other error of the server.
    #[error("the database reported: {message} (SQLSTATE {sqlstate})")]
    Server {
        /// Five characters.
        sqlstate: String,
        /// The primary message.
        message: String,
    },
}

impl StreamError {
    /// The stable name of this error on the wire, in logs and in metrics.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            StreamError::Unreachable { .. } => "DatabaseUnreachable",
            StreamError::AuthenticationFailed { .. } => "DatabaseAuthenticationFailed",
            StreamError::TlsUnsupported => "DatabaseTlsUnsupported",
            StreamError::InvalidConfig(_) => "ReplicationConfigInvalid",
            StreamError::ServerTooOld { .. } => "DatabaseVersionUnsupported",
            StreamError::WalLevelNotLogical { .. } => "WalLevelNotLogical",
            // To an operator both say the same: look at the publication.
            StreamError::PublicationMissing { .. } | StreamError::PublicationLost { .. } => {
                "PublicationMissing"
            }
            StreamError::NoReplicationPrivilege => "ReplicationPrivilegeMissing",
            StreamError::SlotsExhausted => "ReplicationSlotsExhausted",
            StreamError::WalSendersExhausted => "WalSendersExhausted",
            StreamError::ConnectionsExhausted => "DatabaseConnectionsExhausted",
            StreamError::SlotInUse { .. } => "ReplicationSlotInUse",
            StreamError::SlotForeign => "ReplicationSlotForeign",
            StreamError::SlotBlocked => "ReplicationSlotBlocked",
            StreamError::SlotLost => "ReplicationSlotLost",
            StreamError::PositionLost { .. } => "ReplicationPositionLost",
            StreamError::Interrupted { .. } => "ChangeStreamInterrupted",
            StreamError::MessageTooLarge { .. } => "ChangeStreamMessageTooLarge",
            StreamError::Protocol(_) => "ChangeStreamProtocolViolation",
            StreamError::Server { .. } => "DatabaseError",
        }
    }

    /// Whether and when the same call may succeed.
    ///
    /// What an operator can repair inside the database while this process runs is [`Retry::Backoff`]; a lost
    /// position is [`Retry::Never`], because only a fresh start (a new epoch) helps.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            StreamError::Interrupted { .. } => Retry::Now,
            StreamError::Unreachable { .. }
            | StreamError::AuthenticationFailed { .. }
            | StreamError::WalLevelNotLogical { .. }
            | StreamError::PublicationMissing { .. }
            | StreamError::NoReplicationPrivilege
            | StreamError::SlotsExhausted
            | StreamError::WalSendersExhausted
            | StreamError::ConnectionsExhausted
            | StreamError::SlotInUse { .. }
            | StreamError::SlotForeign
            | StreamError::SlotBlocked
            | StreamError::Protocol(_)
            | StreamError::Server { .. } => Retry::Backoff,
            StreamError::TlsUnsupported
            | StreamError::InvalidConfig(_)
            | StreamError::ServerTooOld { .. }
            | StreamError::SlotLost
            | StreamError::PublicationLost { .. }
            | StreamError::PositionLost { .. }
            | StreamError::MessageTooLarge { .. } => Retry::Never,
        }
    }

    /// Whether changes may be missing for good, so that only a fresh start, a new epoch, is honest.
    #[must_use]
    pub fn is_continuity_lost(&self) -> bool {
        matches!(
            self,
            StreamError::SlotLost | StreamError::PositionLost { .. } | StreamError::PublicationLost { .. }
        )
    }
}

/// Where in the session's life the server reported an error; the same SQLSTATE means different things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Connect,
    Query,
    Slot,
    Start,
    Streaming,
}

/// Reads a server error as a fact. SQLSTATEs decide; message text is looked at only for names of settings
/// and numbers, which translations keep.
///
/// Spec: PostgreSQL, appendix "PostgreSQL Error Codes".
pub(crate) fn classify(error: ServerError, phase: Phase) -> StreamError {
    let streaming = matches!(phase, Phase::Start | Phase::Streaming);
    match error.sqlstate.as_str() {
        // invalid_password and invalid_authorization_specification (the latter also: no pg_hba.conf line).
        "28P01" | "28000" => StreamError::AuthenticationFailed { reason: error.message },
        "42501" if phase != Phase::Query && phase != Phase::Streaming => StreamError::NoReplicationPrivilege,
        "53300" if error.message.contains("max_wal_senders") => StreamError::WalSendersExhausted,
        "53300" => StreamError::ConnectionsExhausted,
        "53400" if phase == Phase::Slot => StreamError::SlotsExhausted,
        "55006" => StreamError::SlotInUse { pid: last_number(&error.message) },
        // duplicate_object: another session made the slot between our look and our CREATE.
        "42710" if phase == Phase::Slot => StreamError::SlotInUse { pid: None },
        "55P03" if phase == Phase::Slot => StreamError::SlotBlocked,
        "55000" if phase == Phase::Slot => {
            StreamError::WalLevelNotLogical { found: "not logical".to_owned() }
        }
        "55000" if phase == Phase::Start => StreamError::SlotLost,
        // undefined_object: START_REPLICATION knows the slot no more; while streaming it is the publication,
        // which pgoutput looks up at the first change, as of that change.
        "42704" if phase == Phase::Start => StreamError::SlotLost,
        "42704" if phase == Phase::Streaming => {
            StreamError::PublicationLost { name: quoted_name(&error.message).unwrap_or_default() }
        }
        // undefined_file: "requested WAL segment … has already been removed".
        "58P01" if streaming => StreamError::SlotLost,
        // admin_shutdown, crash_shutdown, cannot_connect_now, and their kin.
        "57P01" | "57P02" | "57P03" | "57P05" if phase == Phase::Connect => {
            StreamError::Unreachable { source: io::Error::other(error) }
        }
        "57P01" | "57P02" | "57P03" | "57P05" => {
            StreamError::Interrupted { source: io::Error::new(io::ErrorKind::ConnectionAborted, error) }
        }
        _ => StreamError::Server { sqlstate: error.sqlstate, message: error.message },
    }
}

fn last_number(message: &str) -> Option<i32> {
    message.rsplit(|c: char| !c.is_ascii_digit()).find(|part| !part.is_empty())?.parse().ok()
}

fn quoted_name(message: &str) -> Option<String> {
    let (_, rest) = message.split_once('"')?;
    let (name, _) = rest.rsplit_once('"')?;
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(sqlstate: &str, message: &str) -> ServerError {
        ServerError { sqlstate: sqlstate.to_owned(), message: message.to_owned() }
    }

    #[test]
    fn the_same_sqlstate_is_read_by_phase() {
        let cases = [
            (
                "28P01",
                "password authentication failed for user \"a\"",
                Phase::Connect,
                "DatabaseAuthenticationFailed",
            ),
            ("28000", "no pg_hba.conf entry", Phase::Connect, "DatabaseAuthenticationFailed"),
            (
                "53300",
                "number of requested standby connections exceeds max_wal_senders (currently 1)",
                Phase::Connect,
                "WalSendersExhausted",
            ),
            ("53300", "sorry, too many clients already", Phase::Connect, "DatabaseConnectionsExhausted"),
            ("53400", "all replication slots are in use", Phase::Slot, "ReplicationSlotsExhausted"),
            ("42501", "must be superuser or replication role", Phase::Connect, "ReplicationPrivilegeMissing"),
            ("55000", "logical decoding requires wal_level >= logical", Phase::Slot, "WalLevelNotLogical"),
            ("55000", "cannot read from logical replication slot \"s\"", Phase::Start, "ReplicationSlotLost"),
            ("42704", "replication slot \"s\" does not exist", Phase::Start, "ReplicationSlotLost"),
            ("42704", "publication \"p\" does not exist", Phase::Streaming, "PublicationMissing"),
            (
                "58P01",
                "requested WAL segment has already been removed",
                Phase::Streaming,
                "ReplicationSlotLost",
            ),
            ("57P03", "the database system is starting up", Phase::Connect, "DatabaseUnreachable"),
            ("57P01", "terminating connection", Phase::Streaming, "ChangeStreamInterrupted"),
            ("55P03", "canceling statement due to lock timeout", Phase::Slot, "ReplicationSlotBlocked"),
            ("XX000", "boom", Phase::Streaming, "DatabaseError"),
        ];
        for (sqlstate, message, phase, code) in cases {
            assert_eq!(classify(server(sqlstate, message), phase).code(), code, "{sqlstate} {message}");
        }
    }

    #[test]
    fn names_and_numbers_are_taken_from_the_message() {
        let in_use =
            classify(server("55006", "replication slot \"s1\" is active for PID 4711"), Phase::Start);
        assert!(matches!(in_use, StreamError::SlotInUse { pid: Some(4711) }), "{in_use:?}");
        assert_eq!(in_use.to_string(), "the replication slot is in use by process 4711");
        let missing =
            classify(server("42704", "publication \"odd \"\" name\" does not exist"), Phase::Streaming);
        assert!(
            matches!(&missing, StreamError::PublicationLost { name } if name == "odd \"\" name"),
            "{missing:?}"
        );
    }

    #[test]
    fn a_lost_position_is_never_retried_as_it_was() {
        let lost = StreamError::PositionLost { requested: Lsn(1), confirmed: Lsn(2) };
        assert!(lost.is_continuity_lost() && StreamError::SlotLost.is_continuity_lost());
        assert_eq!(lost.retry(), Retry::Never);
        assert_eq!(StreamError::SlotLost.retry(), Retry::Never);
    }
}
