//! What a token may do on a private channel: the policies of `realtime.messages`, asked of Postgres.
use std::sync::Arc;

mod error;

pub use error::{ProbeError, REPLAY_FAILED};

use crate::identity::Identity;
use crate::visibility::Authenticator;

/// What is allowed, of one kind (reading or writing).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Grants {
    /// Broadcasts.
    pub broadcast: bool,
    /// Presence.
    pub presence: bool,
}

/// A stored broadcast.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayedMessage {
    /// The row's id.
    pub id: String,
    /// Name of the event.
    pub event: String,
    /// What was sent.
    pub payload: ReplayedPayload,
}

/// What a stored broadcast carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplayedPayload {
    /// The text of the jsonb value as Postgres prints it; `null` if the row has no payload at all.
    Json(String),
    /// Bytes.
    Bytes(Vec<u8>),
}

impl Authenticator {
    /// What this identity may read on a topic.
    ///
    /// # Errors
    /// See [`ProbeError`].
    pub async fn read_grants(
        &self,
        _identity: &Arc<Identity>,
        _topic: &str,
        _headers: &str,
        _with_presence: bool,
    ) -> Result<Grants, ProbeError> {
        Err(ProbeError::Unavailable)
    }

    /// What this identity may write on a topic.
    ///
    /// # Errors
    /// See [`ProbeError`].
    pub async fn write_grants(
        &self,
        _identity: &Arc<Identity>,
        _topic: &str,
        _headers: &str,
    ) -> Result<Grants, ProbeError> {
        Err(ProbeError::Unavailable)
    }

    /// The newest `limit` stored broadcasts of a topic since `since_unix_ms`, oldest first.
    ///
    /// # Errors
    /// See [`ProbeError`].
    pub async fn replay(
        &self,
        _topic: &str,
        _since_unix_ms: i64,
        _limit: u32,
    ) -> Result<Vec<ReplayedMessage>, ProbeError> {
        Err(ProbeError::Unavailable)
    }
}
