//! What may be read: decided on an image, or on a row where an image does not tell.
//!
//! Two things the reference does are not done on an image. Triggers and constraints of `realtime.messages` that refuse
//! its probe rows keep everybody from reading there; here policies alone decide about reading. And a policy function
//! that looks for messages of the topic with the rights of its owner finds the probe rows there.

use std::sync::Arc;

use tokio_postgres::{Row, Statement};

use super::access::{ACCESS, Access, Reader};
use super::desk::{Desk, Question, What};
use super::exchange::{Param, Step, exchange};
use super::probe::{
    BECOME, BEGIN_READ, BEGIN_WRITE, Outcome, SET_ROLE, Trouble, UNDO, bare, become_step, budget, everybody,
    probe_error,
};
use super::{Grants, ProbeError};
use crate::visibility::pool::{Lease, Session};
use crate::visibility::sql;

const NEW_IDS: &str =
    "select pg_catalog.gen_random_uuid()::text from pg_catalog.generate_series(1, $1::int8)";
/// `$1` topic, `$2` one id or two.
const INSERT_KNOWN: &str = "
    insert into realtime.messages (id, topic, extension, inserted_at, updated_at)
    select known.id::uuid, $1::text, known.extension,
           pg_catalog.timezone('UTC', pg_catalog.now()), pg_catalog.timezone('UTC', pg_catalog.now())
    from rows from (pg_catalog.unnest($2::text[]), pg_catalog.unnest(array['broadcast', 'presence']))
        as known(id, extension)
    where known.id is not null";
const SELECT_KNOWN: &str = "select id::text from realtime.messages where id = any ($1::text[]::uuid[])";

/// How one question is answered.
enum Plan {
    Known(Result<Grants, ProbeError>),
    Image(Statement),
    Row,
}

fn with_presence(question: &Question) -> bool {
    question.what == What::Read { with_presence: true }
}

pub(super) async fn read(
    desk: &Desk,
    mut lease: Lease,
    questions: &[&Question],
) -> Result<Vec<Outcome>, Trouble> {
    let session = lease.session();
    let access = match desk.access() {
        Some(access) => access,
        None => load_access(desk, session).await?,
    };
    let plans = plan(session, &access, questions).await?;
    let catalogue = session.prepare(ACCESS).await?;
    let undo = session.prepare(UNDO).await?;
    let become_subscriber = session.prepare(BECOME).await?;

    let roles = Param::Texts(desk.pool.config().roles.clone());
    let mut steps = vec![Step { statement: catalogue, params: vec![roles] }, bare(&undo)];
    for (plan, question) in plans.iter().zip(questions) {
        if let Plan::Image(statement) = plan {
            steps.push(become_step(&become_subscriber, question));
            let params = vec![Param::Text(question.topic.clone())];
            steps.push(Step { statement: statement.clone(), params });
            steps.push(bare(&undo));
        }
    }
    let exchanged = exchange(session, BEGIN_READ, &steps, budget(desk, questions)).await?;
    let mut answers = exchanged.answers.into_iter();
    let rests_on = answers.next().flatten().ok_or(Trouble::Lost)??;
    answers.next().flatten().ok_or(Trouble::Lost)??;
    if access_text(&rests_on)? != access.text {
        note_access(desk, access_text(&rests_on)?)?;
        if exchanged.is_over {
            lease.give_back();
        }
        return Err(Trouble::Changed);
    }

    let mut is_sound = exchanged.is_over;
    let mut outcomes = Vec::with_capacity(questions.len());
    let mut by_row = Vec::new();
    for (index, (plan, question)) in plans.into_iter().zip(questions).enumerate() {
        let outcome = match plan {
            Plan::Known(grants) => Outcome::Answer(grants),
            Plan::Row => {
                by_row.push(index);
                Outcome::NoTurn
            }
            Plan::Image(_) => {
                let three = (answers.next().flatten(), answers.next().flatten(), answers.next().flatten());
                let (Some(became), Some(seen), Some(undone)) = three else {
                    outcomes.push(Outcome::NoTurn);
                    continue;
                };
                // Without this one the next question would be answered for the wrong subscriber.
                undone?;
                match became.and(seen) {
                    Ok(seen) => Outcome::Answer(read_image(&seen, with_presence(question))),
                    Err(error) => {
                        is_sound = false;
                        if error.code().is_some_and(|code| is_about_the_text(code.code())) {
                            by_row.push(index);
                            Outcome::NoTurn
                        } else {
                            Outcome::Answer(Err(step_error(&error)?))
                        }
                    }
                }
            }
        };
        outcomes.push(outcome);
    }
    let mut free = None;
    if is_sound {
        free = Some(lease);
    } else {
        drop(lease);
    }
    if by_row.is_empty() {
        if let Some(lease) = free {
            lease.give_back();
        }
        return Ok(outcomes);
    }

    let asked: Vec<&Question> = by_row.iter().map(|index| questions[*index]).collect();
    let lease = match free {
        Some(lease) => Ok(lease),
        None => desk.lease().await.map_err(Trouble::Failed),
    };
    let answered = match lease {
        Ok(lease) => read_rows(desk, lease, &access, &asked).await,
        Err(trouble) => Err(trouble),
    };
    let answered = match answered {
        // The answers of the others stand.
        Err(Trouble::Failed(error)) => everybody(&asked, &error),
        other => other?,
    };
    for (index, outcome) in by_row.into_iter().zip(answered) {
        outcomes[index] = outcome;
    }
    Ok(outcomes)
}

/// The question could not be put to this role in this way; row-level security itself has no text to parse and may
/// write. Class 42: syntax error or access rule violation. 25006: read-only transaction.
fn is_about_the_text(code: &str) -> bool {
    code.starts_with("42") || code == "25006"
}

/// A lost session concerns everybody, anything else the one who asked.
fn step_error(error: &tokio_postgres::Error) -> Result<ProbeError, Trouble> {
    match probe_error(error) {
        ProbeError::Unavailable => Err(Trouble::Lost),
        other => Ok(other),
    }
}

fn read_image(seen: &[Row], with_presence: bool) -> Result<Grants, ProbeError> {
    let unreadable = |_| ProbeError::Other("postgres answered with another type".to_owned());
    let mut bits = Vec::with_capacity(2);
    for row in seen {
        bits.push(row.try_get::<_, bool>(0).map_err(unreadable)?);
    }
    match (bits.as_slice(), with_presence) {
        ([broadcast], false) => Ok(Grants { broadcast: *broadcast, presence: false }),
        ([broadcast, presence], true) => Ok(Grants { broadcast: *broadcast, presence: *presence }),
        _ => Err(ProbeError::Other("postgres answered with another number of rows".to_owned())),
    }
}

fn access_text(rows: &[Row]) -> Result<&str, Trouble> {
    let missing = || Trouble::Failed(ProbeError::Policy("realtime.messages does not exist".to_owned()));
    Ok(rows.first().ok_or_else(missing)?.try_get(0)?)
}

pub(super) fn note_access(desk: &Desk, text: &str) -> Result<Arc<Access>, Trouble> {
    let unreadable = || ProbeError::Other("the catalogue's answer cannot be read".to_owned());
    let access = Access::read(text.to_owned()).ok_or_else(|| Trouble::Failed(unreadable()))?;
    let access = Arc::new(access);
    desk.set_access(Arc::clone(&access));
    Ok(access)
}

/// The catalogue, where it was never read. Also prepares [`ACCESS`] under the search path in which it is asked.
pub(super) async fn load_access(desk: &Desk, session: &mut Session) -> Result<Arc<Access>, Trouble> {
    session.client.batch_execute(BEGIN_READ).await?;
    let statement = session.prepare(ACCESS).await?;
    let rows = session.client.query(&statement, &[&desk.pool.config().roles]).await?;
    session.client.batch_execute("rollback").await?;
    note_access(desk, access_text(&rows)?)
}

/// Decides how each question is answered, and has parsed what is not parsed yet: as the role that asks, whose
/// privileges count when names are looked up. Only a parser runs here, so a refusal leaves nothing behind.
async fn plan(session: &mut Session, access: &Access, questions: &[&Question]) -> Result<Vec<Plan>, Trouble> {
    let mut is_open = false;
    if !session.is_prepared(ACCESS) {
        session.client.batch_execute(BEGIN_READ).await?;
        is_open = true;
        session.prepare(ACCESS).await?;
        session.client.batch_execute(UNDO).await?;
    }
    let mut plans = Vec::with_capacity(questions.len());
    for question in questions {
        let role = question.identity.role.as_str();
        let text = match access.reader(role) {
            Reader::All => {
                let grants = Grants { broadcast: true, presence: with_presence(question) };
                plans.push(Plan::Known(Ok(grants)));
                continue;
            }
            Reader::Nothing => {
                plans.push(Plan::Known(Ok(Grants::default())));
                continue;
            }
            Reader::Refused(why) => {
                plans.push(Plan::Known(Err(ProbeError::Policy(why.to_owned()))));
                continue;
            }
            Reader::Row => {
                plans.push(Plan::Row);
                continue;
            }
            Reader::Image { both, .. } if with_presence(question) => both,
            Reader::Image { broadcast, .. } => broadcast,
        };
        if !session.is_prepared(&text) && session.refusal(role, &text).is_some() {
            plans.push(Plan::Row);
            continue;
        }
        if !session.is_prepared(&text) {
            if !is_open {
                session.client.batch_execute(BEGIN_READ).await?;
                session.client.batch_execute(UNDO).await?;
                is_open = true;
            }
            let prepared = match session.client.query(SET_ROLE, &[&role]).await {
                Ok(_) => session.prepare(&text).await.map(Some),
                Err(error) => Err(error),
            };
            session.client.batch_execute(UNDO).await?;
            if let Err(error) = prepared {
                if probe_error(&error) == ProbeError::Unavailable {
                    return Err(Trouble::Lost);
                }
                session.refuse(role, &text, &sql::discreet(&error));
                plans.push(Plan::Row);
                continue;
            }
        }
        plans.push(Plan::Image(session.prepare(&text).await?));
    }
    if is_open {
        session.client.batch_execute("rollback").await?;
    }
    Ok(plans)
}

/// The reference's own way: a row is there, and is selected or not.
async fn read_rows(
    desk: &Desk,
    mut lease: Lease,
    access: &Access,
    questions: &[&Question],
) -> Result<Vec<Outcome>, Trouble> {
    let Some(writer) = access.bypassing(desk.replay_role.as_deref(), true) else {
        lease.give_back();
        let why = "no allowed role bypasses row-level security and may insert into realtime.messages";
        return Ok(questions
            .iter()
            .map(|_| Outcome::Answer(Err(ProbeError::Policy(why.to_owned()))))
            .collect());
    };
    let session = lease.session();
    if !session.is_prepared(INSERT_KNOWN) || !session.is_prepared(SELECT_KNOWN) {
        session.client.batch_execute(BEGIN_WRITE).await?;
        session.client.query(SET_ROLE, &[&writer]).await?;
        session.prepare(INSERT_KNOWN).await?;
        session.prepare(SELECT_KNOWN).await?;
        session.client.batch_execute("rollback").await?;
    }
    let insert = session.prepare(INSERT_KNOWN).await?;
    let select = session.prepare(SELECT_KNOWN).await?;
    let set_role = session.prepare(SET_ROLE).await?;
    let become_subscriber = session.prepare(BECOME).await?;
    let undo = session.prepare(UNDO).await?;
    let new_ids = session.prepare(NEW_IDS).await?;
    let count = i64::try_from(questions.len() * 2).unwrap_or(i64::MAX);
    let mut ids = Vec::with_capacity(questions.len() * 2);
    for row in session.client.query(&new_ids, &[&count]).await? {
        ids.push(row.try_get::<_, String>(0)?);
    }

    let mut steps = Vec::with_capacity(questions.len() * 5);
    for (question, ids) in questions.iter().zip(ids.chunks(2)) {
        let asked = if with_presence(question) { ids } else { &ids[..1] };
        let asked = Param::Texts(asked.to_vec());
        steps.push(Step { statement: set_role.clone(), params: vec![Param::Text(writer.to_owned())] });
        let params = vec![Param::Text(question.topic.clone()), asked.clone()];
        steps.push(Step { statement: insert.clone(), params });
        steps.push(become_step(&become_subscriber, question));
        steps.push(Step { statement: select.clone(), params: vec![asked] });
        steps.push(bare(&undo));
    }
    let exchanged = exchange(session, BEGIN_WRITE, &steps, budget(desk, questions)).await?;
    let mut is_sound = exchanged.is_over;
    let mut answers = exchanged.answers.into_iter();
    let mut outcomes = Vec::with_capacity(questions.len());
    for ids in ids.chunks(2).take(questions.len()) {
        let mut steps = Vec::with_capacity(5);
        for _ in 0..5 {
            steps.extend(answers.next().flatten());
        }
        if steps.len() < 5 {
            outcomes.push(Outcome::NoTurn);
            continue;
        }
        // Without this one the next question would be answered for the wrong subscriber.
        steps.pop().ok_or(Trouble::Lost)??;
        let outcome = match steps.into_iter().collect::<Result<Vec<_>, _>>() {
            Ok(rows) => {
                let seen: Vec<String> = rows[3].iter().filter_map(|row| row.try_get(0).ok()).collect();
                Ok(Grants { broadcast: seen.contains(&ids[0]), presence: seen.contains(&ids[1]) })
            }
            Err(error) => {
                is_sound = false;
                Err(step_error(&error)?)
            }
        };
        outcomes.push(Outcome::Answer(outcome));
    }
    if is_sound {
        lease.give_back();
    }
    Ok(outcomes)
}
