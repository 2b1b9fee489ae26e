//! What may be written: tried, and rolled back.

use std::collections::BTreeMap;

use tokio_postgres::{Error, Row, Statement};

use super::desk::{Desk, Question};
use super::exchange::{Param, Step, exchange};
use super::probe::{
    BECOME, BEGIN_WRITE, Outcome, SET_ROLE, Trouble, UNDO, bare, become_step, budget, probe_error,
};
use super::reading::is_become;
use super::{Grants, ProbeError};
use crate::visibility::pool::{Lease, Session};

/// The columns that the reference gives; the others take their defaults.
const INSERT: &str = "
    insert into realtime.messages (topic, extension, inserted_at, updated_at)
    values ($1, $2, pg_catalog.timezone('UTC', pg_catalog.now()), pg_catalog.timezone('UTC', pg_catalog.now()))";

/// Insufficient privilege: the answer "no", from grants and from `WITH CHECK` alike.
const DENIED: &str = "42501";

const EXTENSIONS: [&str; 2] = ["broadcast", "presence"];

type Answer = Result<Grants, ProbeError>;

pub(super) async fn write(
    desk: &Desk,
    mut lease: Lease,
    questions: &[&Question],
) -> Result<Vec<Outcome>, Trouble> {
    let session = lease.session();
    let (insert, mut known) = prepare(desk, session, questions).await?;
    let become_subscriber = session.prepare(BECOME).await?;
    let undo = session.prepare(UNDO).await?;
    let mut steps = Vec::with_capacity(questions.len() * 6);
    if let Some(insert) = &insert {
        for question in
            questions.iter().filter(|question| !known.contains_key(question.identity.role.as_str()))
        {
            for extension in EXTENSIONS {
                steps.push(become_step(&become_subscriber, question));
                let params = [question.topic.as_str(), extension].map(|text| Param::Text(text.to_owned()));
                steps.push(Step { statement: insert.clone(), params: params.into() });
                steps.push(bare(&undo));
            }
        }
    }
    let exchanged = exchange(session, BEGIN_WRITE, &steps, budget(desk, questions)).await?;
    let mut is_sound = exchanged.is_over;
    let mut answers = exchanged.answers.into_iter();
    let mut outcomes = Vec::with_capacity(questions.len());
    for question in questions {
        if let Some(answer) = known.get_mut(question.identity.role.as_str()) {
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
        outcomes.push(match error {
            Some(error) => Outcome::Answer(Err(error)),
            None if had_turn => Outcome::Answer(Ok(Grants { broadcast: may[0], presence: may[1] })),
            None => Outcome::NoTurn,
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
    let became = became.map_err(|error| probe_error(&error))?;
    is_become(&became)?;
    // A prepared statement is not asked again whether its names may be looked up.
    let may_enter = became.first().is_some_and(|row| row.try_get::<_, bool>(1).unwrap_or(false));
    match inserted {
        Ok(_) => Ok(may_enter),
        Err(error) if error.code().is_some_and(|code| code.code() == DENIED) => Ok(false),
        Err(error) => Err(probe_error(&error)),
    }
}

/// The statement, and the roles whose answer is known without it: not allowed, or unable to have it parsed.
async fn prepare<'a>(
    desk: &Desk,
    session: &mut Session,
    questions: &[&'a Question],
) -> Result<(Option<Statement>, BTreeMap<&'a str, Answer>), Trouble> {
    let mut known: BTreeMap<&str, Answer> = BTreeMap::new();
    let roles = || questions.iter().map(|question| question.identity.role.as_str());
    for role in roles() {
        if !desk.pool.config().roles.iter().any(|allowed| allowed == role) {
            let why = "the role does not exist or is not allowed";
            known.insert(role, Err(ProbeError::Policy(why.to_owned())));
        }
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
                Err(error) if error.code().is_some_and(|code| code.code() == DENIED) => {
                    Some(Ok(Grants::default()))
                }
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
