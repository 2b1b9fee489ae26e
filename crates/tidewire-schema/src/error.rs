//! Why the objects could not be made.

/// The database does not have what it should have, and could not be given it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SchemaError {
    /// The login may not do this.
    #[error("the login may not {action}")]
    NotAllowed {
        /// What was tried.
        action: &'static str,
        /// What Postgres said.
        #[source]
        source: tokio_postgres::Error,
    },
    /// Somebody else held a lock on `realtime.messages` or its maintenance for too long.
    #[error("realtime.messages was locked by somebody else while it was tried to {action}")]
    Busy {
        /// What was tried.
        action: &'static str,
        /// What Postgres said.
        #[source]
        source: tokio_postgres::Error,
    },
    /// `realtime.messages` is not the table it should be: it has another shape, or is not partitioned by day.
    #[error("realtime.messages is not as expected: {problem}")]
    UnexpectedTable {
        /// What is wrong with it.
        problem: String,
    },
    /// The server is too old.
    #[error("postgres {version} is too old")]
    TooOld {
        /// Its version.
        version: String,
    },
    /// A statement failed for another reason.
    #[error("could not {action}")]
    Query {
        /// What was tried.
        action: &'static str,
        /// What Postgres said.
        #[source]
        source: tokio_postgres::Error,
    },
}

impl SchemaError {
    pub(crate) fn of(action: &'static str) -> impl FnOnce(tokio_postgres::Error) -> Self {
        move |source| match source.code().map(tokio_postgres::error::SqlState::code) {
            Some("42501") => Self::NotAllowed { action, source },
            // lock_not_available, deadlock_detected
            Some("55P03" | "40P01") => Self::Busy { action, source },
            _ => Self::Query { action, source },
        }
    }

    /// Operational code. `PartitionCreationFailed` and `JanitorFailedToDeleteOldMessages` are the caller's to choose
    /// where it logs a failed [`ensure_partitions`](crate::ensure_partitions) or
    /// [`drop_old_partitions`](crate::drop_old_partitions). Spec: PROTOCOL.md §7.4.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotAllowed { .. } => "SchemaNotAllowed",
            Self::Busy { .. } => "SchemaBusy",
            Self::UnexpectedTable { .. } => "SchemaUnexpectedTable",
            Self::TooOld { .. } => "PostgresTooOld",
            Self::Query { .. } => "MigrationsFailedToRun",
        }
    }

    /// What an operator can do.
    #[must_use]
    pub fn advice(&self) -> &'static str {
        match self {
            Self::NotAllowed { .. } => {
                "let a superuser, or the owner of schema realtime with CREATEROLE and CREATE on the database, do it"
            }
            Self::Busy { .. } => "it is tried again later; look for long transactions in pg_stat_activity",
            Self::UnexpectedTable { .. } => {
                "compare the table with PROTOCOL.md §9.3, or let the server that made it finish its migrations"
            }
            Self::TooOld { .. } => "use PostgreSQL 14 or newer",
            Self::Query { .. } => "read the cause; nothing was changed, the whole step is one transaction",
        }
    }
}
