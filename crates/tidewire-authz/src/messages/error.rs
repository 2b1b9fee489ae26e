//! Why a permission could not be established, and what each receiver is told about it.

/// A question about a private channel that got no answer. Whoever asked may not do what they asked for.
///
/// The texts inside come from Postgres: they are for the log, not for clients (except [`Canceled`](Self::Canceled),
/// whose text says nothing but that a limit was reached).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// A policy raised, or the role does not exist, is not allowed, or may not touch the table. Counts as denied.
    #[error("policies of realtime.messages could not be evaluated: {0}")]
    Policy(String),
    /// A statement took too long.
    #[error("{0}")]
    Canceled(String),
    /// There is no partition for today.
    #[error("realtime.messages has no partition for today")]
    MissingPartition,
    /// All connections were busy for too long, or were so often enough lately.
    #[error("no connection of the pool became free in time")]
    PoolExhausted,
    /// Postgres cannot be reached.
    #[error("postgres cannot be reached")]
    Unavailable,
    /// Anything else; the text is for the log.
    #[error("{0}")]
    Other(String),
}

/// What clients see when the database did not answer. Spec: PROTOCOL.md §2.5, §6.4.
const NO_DATABASE: &str = "Realtime was unable to connect to the project database";

impl ProbeError {
    /// Operational code. Spec: PROTOCOL.md §7.4.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Policy(_) => "RlsPolicyError",
            Self::Canceled(_) => "QueryCanceled",
            Self::MissingPartition => "MissingPartition",
            Self::PoolExhausted => "IncreaseConnectionPool",
            Self::Unavailable => "UnableToConnectToProject",
            Self::Other(_) => "UnableToSetPolicies",
        }
    }

    /// What an operator can do, if there is something.
    #[must_use]
    pub fn advice(&self) -> Option<&'static str> {
        match self {
            Self::Policy(_) => Some("try the policies of realtime.messages under this role and these claims"),
            Self::Canceled(_) => {
                Some("make the policies of realtime.messages cheaper: add an index, or use (select …)")
            }
            Self::MissingPartition => {
                Some("let the server maintain the partitions, or look at why it could not")
            }
            Self::PoolExhausted => Some("raise the size of the pool, or make the policies cheaper"),
            Self::Unavailable => Some("check the authenticator's login, its password and pg_hba.conf"),
            Self::Other(_) => None,
        }
    }

    /// The `reason` of the error reply to a join; `topic` is the sub-topic. Spec: PROTOCOL.md §2.5.
    #[must_use]
    pub fn join_reason(&self, topic: &str) -> String {
        match self {
            Self::Policy(_) => {
                format!("Unauthorized: You do not have permissions to read from this Channel topic: {topic}")
            }
            Self::Canceled(said) => format!("QueryCanceled: {said}"),
            Self::MissingPartition => {
                "MissingPartition: Realtime was unable to find the expected messages partition".to_owned()
            }
            Self::PoolExhausted => {
                "IncreaseConnectionPool: Please increase your connection pool size".to_owned()
            }
            Self::Unavailable => format!("UnableToConnectToProject: {NO_DATABASE}"),
            Self::Other(_) => NO_DATABASE.to_owned(),
        }
    }

    /// The message with which a channel is shut down after an `access_token` push. Spec: PROTOCOL.md §6.4.
    #[must_use]
    pub fn push_message(&self, topic: &str) -> String {
        match self {
            Self::Policy(_) => {
                format!("You do not have permissions to read from this Channel topic: {topic}")
            }
            Self::Canceled(_) => "Query was cancelled, please try again".to_owned(),
            // The reference prints the name of its own term.
            Self::PoolExhausted => ":increase_connection_pool".to_owned(),
            Self::MissingPartition | Self::Unavailable | Self::Other(_) => NO_DATABASE.to_owned(),
        }
    }

    /// Status and `message` of the single broadcast route. Spec: PROTOCOL.md §3.8.2.
    #[must_use]
    pub fn http_answer(&self) -> (u16, &'static str) {
        match self {
            Self::Policy(_) => (422, "RLS policy error"),
            Self::Canceled(_) => (422, "Query canceled"),
            Self::MissingPartition => (422, "Missing messages partition"),
            Self::PoolExhausted => (429, "Connection pool exhausted"),
            Self::Unavailable => (422, "Tenant database unavailable"),
            Self::Other(_) => (500, "Unable to authorize broadcast"),
        }
    }
}

/// `reason` of a join whose replay failed. Spec: PROTOCOL.md §2.5.
pub const REPLAY_FAILED: &str = "UnableToReplayMessages: Realtime was unable to replay messages";

#[cfg(test)]
mod tests {
    use super::*;

    /// Spec: PROTOCOL.md §2.5, §6.4, §3.8.2, letter for letter.
    #[test]
    fn every_receiver_is_told_in_the_words_of_the_reference() {
        let said = "ERROR 57014 (query_canceled) canceling statement due to statement timeout";
        let database = "Realtime was unable to connect to the project database";
        let denied = "You do not have permissions to read from this Channel topic: room";
        let table = [
            (
                ProbeError::Policy("ERROR P0001 (raise_exception)".to_owned()),
                "RlsPolicyError",
                format!("Unauthorized: {denied}"),
                denied,
                (422, "RLS policy error"),
            ),
            (
                ProbeError::Canceled(said.to_owned()),
                "QueryCanceled",
                format!("QueryCanceled: {said}"),
                "Query was cancelled, please try again",
                (422, "Query canceled"),
            ),
            (
                ProbeError::MissingPartition,
                "MissingPartition",
                "MissingPartition: Realtime was unable to find the expected messages partition".to_owned(),
                database,
                (422, "Missing messages partition"),
            ),
            (
                ProbeError::PoolExhausted,
                "IncreaseConnectionPool",
                "IncreaseConnectionPool: Please increase your connection pool size".to_owned(),
                ":increase_connection_pool",
                (429, "Connection pool exhausted"),
            ),
            (
                ProbeError::Unavailable,
                "UnableToConnectToProject",
                format!("UnableToConnectToProject: {database}"),
                database,
                (422, "Tenant database unavailable"),
            ),
            (
                ProbeError::Other("something".to_owned()),
                "UnableToSetPolicies",
                database.to_owned(),
                database,
                (500, "Unable to authorize broadcast"),
            ),
        ];
        for (error, code, reason, message, answer) in table {
            assert_eq!(error.code(), code);
            assert_eq!(error.join_reason("room"), reason);
            assert_eq!(error.push_message("room"), message);
            assert_eq!(error.http_answer(), answer);
            assert!(!reason.contains("something") && !reason.contains("raise_exception"));
        }
    }
}
