//! Questions of one batch, answered: what reading and writing have in common.
//!
//! **Reading** ([`super::reading`]) is decided on an image of the row that the reference would insert, by the stored policy expressions
//! under the subscriber's role and claims, as [`crate::visibility`] decides about changes. The same exchange reads what
//! the decision rests on (the access of each role) in the same snapshot; if that is not what the questions were made of, nothing was
//! decided and they are made anew.
//!
//! Where an image does not tell (a policy reads a system column, calls something in a schema the role may not name, or
//! writes), a row is inserted by a role that bypasses row-level security, selected by the subscriber and rolled back,
//! as the reference does always.
//!
//! **Writing** ([`super::writing`]) is an `INSERT` by the subscriber's role, rolled back, so that defaults, triggers, partitions and grants
//! count as they are.
//!
//! Fails per question. After an error other than a plain refusal to insert, the session is discarded.
//! Spec: PROTOCOL.md §6.5; DESIGN.md §10.

use std::time::Duration;

use tokio_postgres::{Error, Statement};

use super::desk::{Desk, Question, What};
use super::exchange::{Param, Step};
use super::reading::read;
use super::writing::write;
use super::{Grants, ProbeError};
use crate::visibility::pool::Lease;
use crate::visibility::sql;

/// How often a question is asked again on another session because the first one was found dead.
const ATTEMPTS: usize = 3;

/// How long a question is made anew because the catalogue changed under it. Each round is answered by what the
/// catalogue said in the round before, so one quiet moment of a few milliseconds is enough.
const UNSETTLED: Duration = Duration::from_secs(5);

/// One snapshot for the catalogue and for what policies read. The settings are for the catalogue's question and end with
/// [`UNDO`]: its text speaks of nobody's claims, so one plan serves for ever (planning it costs more than running it).
pub(super) const BEGIN_READ: &str = "begin isolation level repeatable read read only; savepoint tidewire; \
     set local search_path = ''; set local plan_cache_mode = force_generic_plan";
pub(super) const BEGIN_WRITE: &str = "begin isolation level read committed read write; savepoint tidewire";
pub(super) const UNDO: &str = "rollback to savepoint tidewire";
pub(super) const SET_ROLE: &str = "select set_config('role', $1, true)";

/// Becomes the subscriber, whose role is known to be fit.
pub(super) const BECOME: &str = "
    select pg_catalog.set_config('role', $1, true),
           pg_catalog.set_config('realtime.topic', $2, true),
           pg_catalog.set_config('request.jwt.claims', $3, true),
           pg_catalog.set_config('request.jwt.claim.sub', $4, true),
           pg_catalog.set_config('request.jwt.claim.role', $1, true),
           pg_catalog.set_config('request.headers', $5, true)";

/// What became of one question.
#[derive(Debug)]
pub(super) enum Outcome {
    Answer(Result<Grants, ProbeError>),
    /// Others took the time.
    NoTurn,
}

/// Why a batch has no answers.
pub(super) enum Trouble {
    /// The session died; another may live.
    Lost,
    /// The catalogue has changed; what it says now is at the desk.
    Changed,
    Failed(ProbeError),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        match probe_error(&error) {
            ProbeError::Unavailable => Self::Lost,
            other => Self::Failed(other),
        }
    }
}

/// The reference's distinction. Spec: PROTOCOL.md §6.5, Failures.
pub(super) fn probe_error(error: &Error) -> ProbeError {
    let Some(db) = error.as_db_error() else {
        return if error.is_closed() || error.to_string().contains("communicating") {
            ProbeError::Unavailable
        } else {
            ProbeError::Other(error.to_string())
        };
    };
    match db.code().code() {
        "57014" => ProbeError::Canceled(sql::spoken(db)),
        // A check of a partition has the partition's name.
        "23514" if db.table() == Some("messages") => ProbeError::MissingPartition,
        "53300" | "57P01" | "57P02" | "57P03" => ProbeError::Unavailable,
        code if code.starts_with("08") => ProbeError::Unavailable,
        _ => ProbeError::Policy(sql::discreet(error)),
    }
}

/// One outcome per question.
pub(super) async fn answer(desk: &Desk, lease: Lease, what: What, questions: &[&Question]) -> Vec<Outcome> {
    let mut held = Some(lease);
    let mut lost = 0;
    let deadline = tokio::time::Instant::now() + UNSETTLED;
    while lost < ATTEMPTS && tokio::time::Instant::now() < deadline {
        let lease = match held.take() {
            Some(lease) => lease,
            None => match desk.lease().await {
                Ok(lease) => lease,
                Err(error) => return everybody(questions, &error),
            },
        };
        let answered = match what {
            What::Read { .. } => read(desk, lease, questions).await,
            What::Write => write(desk, lease, questions).await,
        };
        match answered {
            Ok(outcomes) => return outcomes,
            Err(Trouble::Failed(error)) => return everybody(questions, &error),
            Err(Trouble::Lost) => lost += 1,
            Err(Trouble::Changed) => {}
        }
    }
    everybody(questions, &ProbeError::Unavailable)
}

pub(super) fn everybody(questions: &[&Question], error: &ProbeError) -> Vec<Outcome> {
    questions.iter().map(|_| Outcome::Answer(Err(error.clone()))).collect()
}

/// How long an exchange may take. Together, little more than the slowest single statement: whoever had no turn by then
/// is asked alone, and the session is free for others in between. Alone, enough for each of its statements.
pub(super) fn budget(desk: &Desk, questions: &[&Question]) -> Duration {
    let timeout = desk.pool.config().statement_timeout;
    if questions.len() > 1 { timeout.mul_f32(1.5) } else { timeout.saturating_mul(4) }
}

pub(super) fn become_step(statement: &Statement, question: &Question) -> Step {
    let identity = &question.identity;
    let sub = identity.sub.as_deref().unwrap_or_default();
    let params = [&identity.role, question.topic.as_str(), &identity.claims_json, sub, &question.headers];
    Step {
        statement: statement.clone(),
        params: params.into_iter().map(|text| Param::Text(text.to_owned())).collect(),
    }
}

pub(super) fn bare(statement: &Statement) -> Step {
    Step { statement: statement.clone(), params: Vec::new() }
}
