//! Why Postgres could not be asked.

use std::time::Duration;

/// A question to Postgres that got no answer. Nothing was decided, so nothing may be shown.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AccessError {
    /// The login that speaks for subscribers has rights of its own, which a policy function could fall back to by
    /// undoing `SET ROLE`. Spec: DESIGN.md §10.
    #[error("login {login:?} is not fit to speak for subscribers: {problem}")]
    AuthenticatorUnsafe {
        /// Name of the login.
        login: String,
        /// What is wrong with it.
        problem: &'static str,
        /// A statement that repairs it.
        advice: String,
    },
    /// No connection could be opened.
    #[error("could not connect to postgres as the authenticator")]
    Connect(#[source] tokio_postgres::Error),
    /// A query failed.
    #[error("query failed")]
    Query(#[source] tokio_postgres::Error),
    /// The table does not exist (any more).
    #[error("no table with oid {relid}")]
    NoTable {
        /// Oid that was asked for.
        relid: u32,
    },
    /// Transactions were not visible to others in time.
    #[error("a transaction was not visible after {waited:?}")]
    NotVisible {
        /// How long it was waited for.
        waited: Duration,
    },
    /// Postgres answered something that cannot be.
    #[error("unexpected answer from postgres: {what}")]
    Protocol {
        /// What was wrong.
        what: &'static str,
    },
}

impl AccessError {
    /// Operational code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::AuthenticatorUnsafe { .. } => "AuthenticatorUnsafe",
            Self::Connect(_) => "UnableToConnectToProject",
            Self::Query(_) | Self::Protocol { .. } => "VisibilityQueryFailed",
            Self::NoTable { .. } => "TableNotFound",
            Self::NotVisible { .. } => "TransactionNotVisible",
        }
    }

    /// What an operator can do, if there is something.
    #[must_use]
    pub fn advice(&self) -> Option<&str> {
        match self {
            Self::AuthenticatorUnsafe { advice, .. } => Some(advice),
            Self::Connect(_) => Some("check the authenticator's login, its password and pg_hba.conf"),
            Self::NotVisible { .. } => Some("look for a synchronous standby that does not confirm commits"),
            Self::Query(_) | Self::NoTable { .. } | Self::Protocol { .. } => None,
        }
    }
}
