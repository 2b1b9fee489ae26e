//! What a token may do on a private channel, and what was said there: asked of `realtime.messages`.
//!
//! Owns the questions and how they are put: many at a time, one round trip, one transaction that is always rolled back.
//! It may not keep an answer: a question is answered by a transaction that began after it was asked, and two callers
//! share an answer only if both asked before. Who remembers a permission, and for how long, is the channel's business.
//!
//! ```text
//! question ─▶ line ─▶ worker ─▶ begin · catalogue · (become · evaluate · undo)… · rollback ─▶ answers
//!              ▲ identical ones wait together              └── one round trip ──┘
//! ```
//!
//! Every failure is on the side of silence: [`ProbeError`] is never a permission.
//! Spec: PROTOCOL.md §3.6, §6.5; DESIGN.md §10.

use std::sync::Arc;

mod access;
pub(crate) mod desk;
mod error;
mod exchange;
mod probe;
mod reading;
mod replay;
mod writing;

pub use error::{ProbeError, REPLAY_FAILED};
pub use replay::is_replay_since_valid;

use crate::identity::Identity;
use crate::visibility::Authenticator;
use desk::{Question, What};

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
    /// Name of the event; empty if the row has none.
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
    /// Names the role under which stored broadcasts are read, and under which a row is inserted where policies cannot
    /// be decided without one. It must be among the allowed roles, bypass row-level security and have SELECT and INSERT
    /// on `realtime.messages`. Without this: `service_role`, or any such role.
    ///
    /// To be called before the handle is cloned: clones made earlier keep what they have.
    #[must_use]
    pub fn with_replay_role(mut self, role: &str) -> Self {
        self.desk = Arc::new(self.desk.with_replay_role(role));
        self
    }

    /// What this identity may read on a topic (the sub-topic, without `realtime:`): whether a row with the extension
    /// `broadcast`, and with `presence` if that is asked for, would be visible to it now. No row is written where the
    /// policies can be decided on an image, which is nearly always.
    ///
    /// `headers` is a JSON object that policies read as `request.headers`.
    ///
    /// # Errors
    /// See [`ProbeError`]; none of them is a permission.
    ///
    /// # Cancel safety
    /// May be dropped; nothing is decided.
    pub async fn read_grants(
        &self,
        identity: &Arc<Identity>,
        topic: &str,
        headers: &str,
        with_presence: bool,
    ) -> Result<Grants, ProbeError> {
        self.ask(identity, topic, headers, What::Read { with_presence }).await
    }

    /// What this identity may write on a topic: whether inserting a row would succeed now, with everything that
    /// belongs to it (grants, `WITH CHECK`, triggers, partitions). The rows are rolled back: nobody hears of them.
    ///
    /// # Errors
    /// See [`ProbeError`]; none of them is a permission.
    ///
    /// # Cancel safety
    /// May be dropped; nothing is decided.
    pub async fn write_grants(
        &self,
        identity: &Arc<Identity>,
        topic: &str,
        headers: &str,
    ) -> Result<Grants, ProbeError> {
        self.ask(identity, topic, headers, What::Write).await
    }

    async fn ask(
        &self,
        identity: &Arc<Identity>,
        topic: &str,
        headers: &str,
        what: What,
    ) -> Result<Grants, ProbeError> {
        refuse_nul(&[topic, headers, &identity.role, &identity.claims_json])?;
        let question = Question {
            identity: Arc::clone(identity),
            topic: topic.to_owned(),
            headers: headers.to_owned(),
            what,
        };
        self.desk.ask(question).await
    }

    /// The newest `limit` private broadcasts stored for a topic since `since_unix_ms`, oldest first; those of one
    /// transaction in any order. At most five seconds.
    ///
    /// Nobody's permission is checked here: the caller has been granted broadcast read on this topic.
    ///
    /// # Errors
    /// See [`ProbeError`]; the client hears [`REPLAY_FAILED`].
    ///
    /// # Cancel safety
    /// May be dropped; its connection is discarded.
    pub async fn replay(
        &self,
        topic: &str,
        since_unix_ms: i64,
        limit: u32,
    ) -> Result<Vec<ReplayedMessage>, ProbeError> {
        refuse_nul(&[topic])?;
        self.desk.refuse_if_exhausted()?;
        replay::replay(&self.desk, topic, since_unix_ms, limit).await
    }
}

/// Postgres has no text with NUL; one bad parameter must not spoil the exchange of others.
fn refuse_nul(texts: &[&str]) -> Result<(), ProbeError> {
    if texts.iter().any(|text| text.contains('\0')) {
        return Err(ProbeError::Policy("a text with NUL".to_owned()));
    }
    Ok(())
}
