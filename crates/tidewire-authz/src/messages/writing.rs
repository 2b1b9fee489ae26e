//! What may be written: tried, and rolled back.

use std::collections::BTreeMap;

use tokio_postgres::{Error, Row, Statement};

use super::desk::{Desk, Question};
use super::exchange::{Param, Step, exchange};
use super::probe::{
    BECOME, BEGIN_WRITE, Outcome, SET_ROLE, Trouble, UNDO, bare, become_step, budget, probe_error,
};
use super::reading::load_access;
use super::{Grants, ProbeError};
use crate::visibility::pool::{Lease, Session};

/// As [`BEGIN_WRITE`], with the settings for [`FIT`], which end with [`UNDO`]. See [`BEGIN_READ`](super::probe).
const BEGIN_FIT: &str = "begin isolation level read committed read write; savepoint tidewire; \
     set local search_path = ''; set local plan_cache_mode = force_generic_plan";

/// Whoever of `$1` somebody may speak for, and whether they may name things in the schema: a prepared statement is not
/// asked again whether its names may be looked up.
const FIT: &str = "
    select r.rolname::text, has_schema_privilege(r.oid, 'realtime', 'USAGE')
    from pg_roles r where r.rolname::text = any ($1) and not r.rolsuper and not r.rolreplication";

/// The columns that the reference gives; the others take their defaults.
const INSERT: &str = "
    insert into realtime.messages (topic, extension, inserted_at, updated_at)
    values ($1, $2, pg_catalog.timezone('UTC', pg_catalog.now()), pg_catalog.timezone('UTC', pg_catalog.now()))";

/// Insufficient privilege: the answer "no", from grants and from `WITH CHECK` alike.
const DENIED: &str = "42501";

const EXTENSIONS: [&str; 2] = ["broadcast", "presence"];

type Answer = Result<Grants, ProbeError>;

fn unfit() -> ProbeError {
    ProbeError::Policy("the role does not exist or is not allowed".to_owned())
}

pub(super) async fn write(
    desk: &Desk,
    mut lease: Lease,
    questions: &[&Question],
) -> Result<Vec<Outcome>, Trouble> {
    let session = lease.session();
    let (insert, known) = prepare(desk, session, questions).await?;
    let become_subscriber = session.prepare(BECOME).await?;
    let undo = session.prepare(UNDO).await?;
    let fit = session.prepare(FIT).await?;
    let mut roles: Vec<_> = questions.iter().map(|question| question.identity.role.clone()).collect();
    roles.sort_unstable();
    roles.dedup();
    let mut steps = vec![Step { statement: fit, params: vec![Param::Texts(roles)] }, bare(&undo)];
    if let Some(insert) = &insert {
        for question in questions.iter().filter(|q| !known.contains_key(q.identity.role.as_str())) {
            for extension in EXTENSIONS {
                steps.push(become_step(&become_subscriber, question));
                let params = [question.topic.as_str(), extension].map(|text| Param::Text(text.to_owned()));
                steps.push(Step { statement: insert.clone(), params: params.into() });
                steps.push(bare(&undo));
            }
        }
    }
    let exchanged = exchange(session, BEGIN_FIT, &steps, budget(desk, questions)).await?;
    let mut is_sound = exchanged.is_over;
    let mut answers = exchanged.answers.into_iter();
    let mut may_enter: BTreeMap<String, bool> = BTreeMap::new();
    for row in answers.next().flatten().ok_or(Trouble::Lost)?? {
        may_enter.insert(row.try_get(0)?, row.try_get(1)?);
    }
    answers.next().flatten().ok_or(Trouble::Lost)??;

    let mut outcomes = Vec::with_capacity(questions.len());
    for question in questions {
        let role = question.identity.role.as_str();
        if let Some(answer) = known.get(role) {
            outcomes.push(Outcome::Answer(answer.clone()));
            continue;
        }
        let mut may = [false; 2];
        let mut error = None;
        let mut had_turn = true;
        for may in &mut may {
            let three = (answers.next().flatten(), answers.next().flatten(), answers.next().flatten());
            let (Some(became), Some(inserted), Some(undone)) = three else {
                had_turn = false;
                continue;
            };
            // Without this one the next question would be answered for the wrong subscriber.
            undone?;
            match read_insert(became, inserted) {
                Ok(answer) => *may = answer,
                Err(ProbeError::Unavailable) => return Err(Trouble::Lost),
                // The first one counts; what runs on after it changes nothing.
                Err(found) => error = error.or(Some(found)),
            }
        }
        is_sound &= error.is_none();
        outcomes.push(match (error, may_enter.get(role)) {
            (_, None) => Outcome::Answer(Err(unfit())),
            (Some(error), _) => Outcome::Answer(Err(error)),
            (None, _) if !had_turn => Outcome::NoTurn,
            (None, Some(false)) => Outcome::Answer(Ok(Grants::default())),
            (None, Some(true)) => Outcome::Answer(Ok(Grants { broadcast: may[0], presence: may[1] })),
        });
    }
    if is_sound {
        lease.give_back();
    }
    Ok(outcomes)
}

/// A plain refusal is an answer, not a fault: the session goes on after the rollback.
fn read_insert(
    became: Result<Vec<Row>, Error>,
    inserted: Result<Vec<Row>, Error>,
) -> Result<bool, ProbeError> {
    became.map_err(|error| probe_error(&error))?;
    match inserted {
        Ok(_) => Ok(true),
        Err(error) if is_denied(&error) => Ok(false),
        Err(error) => Err(probe_error(&error)),
    }
}

fn is_denied(error: &Error) -> bool {
    error.code().is_some_and(|code| code.code() == DENIED)
}

/// The statement, and the roles whose answer is known without it: nobody speaks for them, or they cannot have it
/// parsed. A role that was fit a moment ago and no longer is runs nothing but this statement, and is found out after.
async fn prepare<'a>(
    desk: &Desk,
    session: &mut Session,
    questions: &[&'a Question],
) -> Result<(Option<Statement>, BTreeMap<&'a str, Answer>), Trouble> {
    let mut known: BTreeMap<&str, Answer> = BTreeMap::new();
    let roles = || questions.iter().map(|question| question.identity.role.as_str());
    let are_fit = desk.access().is_some_and(|access| roles().all(|role| access.is_fit(role)));
    if !are_fit {
        // Never read, or before this role was there.
        let access = load_access(desk, session).await?;
        known.extend(roles().filter(|role| !access.is_fit(role)).map(|role| (role, Err(unfit()))));
    }
    if !session.is_prepared(FIT) {
        session.client.batch_execute(BEGIN_FIT).await?;
        session.prepare(FIT).await?;
        session.client.batch_execute("rollback").await?;
    }
    if session.is_prepared(INSERT) {
        return Ok((Some(session.prepare(INSERT).await?), known));
    }
    let mut insert = None;
    for role in roles() {
        if insert.is_some() || known.contains_key(role) {
            continue;
        }
        session.client.batch_execute(BEGIN_WRITE).await?;
        let answer = match session.client.query(SET_ROLE, &[&role]).await {
            Ok(_) => match session.prepare(INSERT).await {
                Ok(statement) => {
                    insert = Some(statement);
                    None
                }
                Err(error) if is_denied(&error) => Some(Ok(Grants::default())),
                Err(error) => Some(Err(probe_error(&error))),
            },
            Err(error) => Some(Err(probe_error(&error))),
        };
        if answer == Some(Err(ProbeError::Unavailable)) {
            return Err(Trouble::Lost);
        }
        session.client.batch_execute("rollback").await?;
        known.extend(answer.map(|answer| (role, answer)));
    }
    Ok((insert, known))
}
