//! Questions of the hubs about private channels, put to Postgres beside the event loops.
//!
//! A hub asks, a task of the runtime waits for the database, the answer goes back into the inbox of the
//! shard that asked. How many ask at once is bounded by the channels there are and, towards Postgres, by the
//! authenticator's pool. Nothing is remembered here: an answer belongs to the question (`DESIGN.md` §10).

use std::sync::Arc;

use bytes::Bytes;
use tidewire_authz::messages::{ProbeError, REPLAY_FAILED, ReplayedPayload};
use tidewire_authz::{Authenticator, Identity};
use tidewire_engine::{
    AccessRefusal, Answer, AskId, Credential, Question, Replay, StoredMessage, StoredPayload,
};
use tidewire_protocol::codes::OperationalCode;

use crate::maintenance::Owner;
use crate::shard::Shards;
use crate::tokens::identity_of;

/// Puts questions; a cheap handle.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    runtime: tokio::runtime::Handle,
    authenticator: Option<Authenticator>,
    owner: Option<Owner>,
}

impl Access {
    /// Must be called on the runtime that will carry the questions.
    pub(crate) fn new(authenticator: Option<Authenticator>, owner: Option<Owner>) -> Self {
        Self { runtime: tokio::runtime::Handle::current(), authenticator, owner }
    }

    /// Puts a question; the answer reaches the hub whenever it comes.
    pub(crate) fn ask(&self, shards: &Shards, hub: u16, id: AskId, question: Question) {
        let Some(authenticator) = self.authenticator.clone() else {
            shards.answer(hub, id, Answer::Refused(refusal(&ProbeError::Unavailable, topic_of(&question))));
            return;
        };
        let (shards, owner) = (shards.clone(), self.owner.clone());
        self.runtime.spawn(async move {
            let answer = match decide(&authenticator, &question).await {
                Ok(answer) => answer,
                Err(refusal) => {
                    if let (OperationalCode::MissingPartition, Some(owner)) = (refusal.code, owner) {
                        owner.wake();
                    }
                    Answer::Refused(refusal)
                }
            };
            shards.answer(hub, id, answer);
        });
    }
}

fn topic_of(question: &Question) -> &str {
    match question {
        Question::Read { topic, .. } | Question::Write { topic, .. } => topic,
    }
}

fn subscriber(credential: &Credential) -> Arc<Identity> {
    Arc::new(identity_of(credential))
}

async fn decide(authenticator: &Authenticator, question: &Question) -> Result<Answer, AccessRefusal> {
    let refused = |error: ProbeError| {
        tracing::warn!(
            code = error.code(),
            advice = error.advice(),
            "a private channel could not be decided"
        );
        refusal(&error, topic_of(question))
    };
    match question {
        Question::Read { topic, credential, headers, with_presence, replay } => {
            let identity = subscriber(credential);
            let grants = authenticator
                .read_grants(&identity, topic, headers, *with_presence)
                .await
                .map_err(refused)?;
            let replayed = match replay {
                Some(replay) if grants.broadcast => stored(authenticator, topic, *replay).await?,
                _ => Vec::new(),
            };
            Ok(Answer::Read { broadcast: grants.broadcast, presence: grants.presence, replayed })
        }
        Question::Write { topic, credential, headers, with_presence_read } => {
            let identity = subscriber(credential);
            let grants = authenticator.write_grants(&identity, topic, headers).await.map_err(refused)?;
            let presence_read = *with_presence_read
                && grants.presence
                && authenticator
                    .read_grants(&identity, topic, headers, true)
                    .await
                    .map_err(refused)?
                    .presence;
            Ok(Answer::Write { broadcast: grants.broadcast, presence: grants.presence, presence_read })
        }
    }
}

async fn stored(
    authenticator: &Authenticator,
    topic: &str,
    replay: Replay,
) -> Result<Vec<StoredMessage>, AccessRefusal> {
    let found = authenticator.replay(topic, replay.since_unix_ms, replay.limit).await.map_err(|error| {
        tracing::warn!(code = error.code(), "stored messages could not be read");
        AccessRefusal {
            code: OperationalCode::UnableToReplayMessages,
            join_reason: REPLAY_FAILED.to_owned(),
            push_message: error.push_message(topic),
        }
    })?;
    let stored = found.into_iter().map(|message| StoredMessage {
        id: message.id,
        event: message.event,
        payload: match message.payload {
            ReplayedPayload::Json(text) => StoredPayload::Json(text),
            ReplayedPayload::Bytes(bytes) => StoredPayload::Bytes(Bytes::from(bytes)),
        },
    });
    Ok(stored.collect())
}

fn refusal(error: &ProbeError, topic: &str) -> AccessRefusal {
    let code = OperationalCode::ALL
        .iter()
        .copied()
        .find(|code| code.as_str() == error.code())
        .unwrap_or(OperationalCode::UnableToSetPolicies);
    AccessRefusal { code, join_reason: error.join_reason(topic), push_message: error.push_message(topic) }
}
