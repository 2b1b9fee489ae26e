//! Who may see which image: policies decided on the image, under each subscriber's own role and claims.
//!
//! For one identity:
//!
//! ```text
//! savepoint ── set_config(role, claims) ── select coalesce((policy), false) from json_populate_recordset(…)
//!          └── rollback to savepoint: role and claims are gone, whatever a policy function did meanwhile
//! ```
//!
//! Many identities are sent one after the other without waiting, never two in one statement: `(select auth.uid())` is
//! computed once per statement, and would show the first one's rows to the others.
//!
//! **When the image cannot be judged** (a policy reads a column that is not in it, or the text of a policy cannot be
//! parsed by the subscriber, who need not have USAGE on a helper function's schema), real row-level security is asked
//! about the row with this key. That row counts only if everything the subscriber would be shown is equal to what they
//! can select now. The transaction that wrote the row is no substitute for this comparison: one transaction may write
//! a row twice, and its first version was never for anybody to see; and rows written under a savepoint carry another
//! id than the stream's.
//!
//! Fails per identity: an error denies that identity the whole batch, and the session is discarded afterwards.
//! Spec: DESIGN.md §3 (strategy 3), §9, §10.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;
use std::sync::Arc;

use tokio::time::{Instant, timeout_at};
use tokio_postgres::{Row, Statement};

use super::image::{self, Image};
use super::pipeline::{Query, start};
use super::pool::{Pool, Session};
use super::sql;
use super::table::{RoleAccess, Table};
use super::{AccessError, Judgement, RowImage};
use crate::identity::Identity;

/// Identities per connection below which a second connection is not worth its turn.
const SHARE_MIN: usize = 16;
/// Questions in flight on one connection; bounds what is buffered for answers.
const WINDOW: usize = 128;
/// The whole batch may take this many times the timeout of one statement: many slow policies may not add up.
const BUDGET: u32 = 4;

pub(super) const BEGIN: &str = "begin isolation level read committed read only; savepoint tidewire";
const ROLLBACK_TO: &str = "rollback to savepoint tidewire";
const SET_ROLE: &str = "select set_config('role', $1, true)";
const SET_IDENTITY: &str = "select set_config('role', $1, true), set_config('request.jwt.claims', $2, true), \
     set_config('request.jwt.claim.sub', $3, true), set_config('request.jwt.claim.role', $1, true)";

/// What to ask for a role; the same for each of its identities.
struct RolePlan {
    /// The images themselves.
    direct: Option<Arc<Question>>,
    /// Images that have to be looked up, whatever `direct` says.
    by_key: Vec<Arc<Question>>,
    /// The images of `direct`, looked up, should it be impossible to judge them.
    instead: Vec<Arc<Question>>,
}

struct Question {
    sql: String,
    /// Array of images, the parameter.
    json: String,
    /// Which images of the batch; one row of the answer each.
    images: Vec<usize>,
}

/// One question about one identity.
struct Task {
    identity: usize,
    question: Arc<Question>,
}

enum Failure {
    /// Postgres could not make sense of the question in this role: it says nothing about the row.
    Unaskable(String),
    Error(String),
}

pub(super) async fn judge(
    pool: &Pool,
    table: &Table,
    identities: &[Arc<Identity>],
    images: &[RowImage],
) -> Result<Judgement, AccessError> {
    let read = images.iter().map(|image| Image::read(image, table)).collect::<Result<Vec<_>, _>>()?;
    let mut judgement =
        Judgement { visible: vec![vec![false; images.len()]; identities.len()], errors: Vec::new() };
    let mut plans: HashMap<&str, RolePlan> = HashMap::new();
    let mut open = Vec::new();
    for (index, identity) in identities.iter().enumerate() {
        let Some(access) = table.roles.get(&identity.role) else {
            judgement.errors.push((index, "the role does not exist or is not allowed".to_owned()));
            continue;
        };
        if !access.can_select() {
            continue;
        }
        if access.sees_all_rows {
            judgement.visible[index].fill(true);
            continue;
        }
        if let Some(policy) = &access.policy
            && !images.is_empty()
        {
            plans.entry(&identity.role).or_insert_with(|| plan(table, access, policy, &read));
            open.push(index);
        }
    }
    if open.is_empty() {
        return Ok(judgement);
    }

    let connections = open.len().div_ceil(SHARE_MIN).min(pool.config().pool_size.max(1));
    let share = open.len().div_ceil(connections);
    let shares = open.chunks(share).map(|share| judge_share(pool, share, identities, &plans));
    for answers in futures_util::future::join_all(shares).await {
        for (identity, answer) in answers? {
            match answer {
                Ok(visible) => {
                    for image in visible {
                        judgement.visible[identity][image] = true;
                    }
                }
                Err(error) => judgement.errors.push((identity, error)),
            }
        }
    }
    judgement.errors.sort();
    Ok(judgement)
}

fn plan(table: &Table, access: &RoleAccess, policy: &str, images: &[Image<'_>]) -> RolePlan {
    let (direct, rest): (Vec<usize>, Vec<usize>) =
        (0..images.len()).partition(|index| images[*index].tells(access, table));
    let question = (!direct.is_empty()).then(|| {
        Arc::new(Question {
            sql: format!(
                "SELECT coalesce(({policy}\n), false) FROM json_populate_recordset(null::{}, $1::text::json) AS {}",
                qualified(table),
                // Stored expressions call the table by its own name.
                sql::identifier(&table.name),
            ),
            json: image::array(direct.iter().map(|index| &images[*index])),
            images: direct.clone(),
        })
    });
    RolePlan {
        direct: question,
        by_key: by_key(table, access, images, &rest),
        instead: by_key(table, access, images, &direct),
    }
}

pub(super) fn qualified(table: &Table) -> String {
    format!("{}.{}", sql::identifier(&table.schema), sql::identifier(&table.name))
}

/// One question for all images that have the same columns. An image without its key is not asked about: not visible.
fn by_key(table: &Table, access: &RoleAccess, images: &[Image<'_>], which: &[usize]) -> Vec<Arc<Question>> {
    let mut groups: BTreeMap<Vec<bool>, Vec<usize>> = BTreeMap::new();
    for index in which {
        if let Some(compared) = images[*index].compared(access, table) {
            groups.entry(compared).or_default().push(*index);
        }
    }
    let questions = groups.into_iter().map(|(compared, which)| {
        Arc::new(Question {
            sql: by_key_sql(table, &compared),
            json: image::array(which.iter().map(|index| &images[*index])),
            images: which,
        })
    });
    questions.collect()
}

fn by_key_sql(table: &Table, compared: &[bool]) -> String {
    let mut key = String::new();
    let (mut row, mut image) = (String::new(), String::new());
    for (column, is_compared) in table.columns.iter().zip(compared) {
        let name = sql::identifier(&column.name);
        if column.is_primary_key {
            let _ = write!(key, "\"t\".{name} = \"i\".{name} AND ");
        }
        if *is_compared {
            // A JSON null and an SQL NULL are shown alike, and the image does not tell them apart; nor does it keep
            // white space around a value of type json.
            let text = |of: &str| match image::is_json(column) {
                true => format!("nullif(btrim({of}.{name}::text, E' \\t\\n\\r'), 'null')"),
                false => format!("{of}.{name}"),
            };
            let (left, right) = (text("\"t\""), text("\"i\""));
            let comma = if row.is_empty() { "" } else { ", " };
            let _ = write!(row, "{comma}{left}");
            let _ = write!(image, "{comma}{right}");
        }
    }
    let name = qualified(table);
    // The text of a row is made by the output functions of its types: what a client is shown is made of the same.
    format!(
        "SELECT exists (SELECT FROM {name} AS \"t\" WHERE {key}ROW({row})::text = ROW({image})::text) \
         FROM json_populate_recordset(null::{name}, $1::text::json) AS \"i\""
    )
}

type Answer = Result<Vec<usize>, String>;

async fn judge_share(
    pool: &Pool,
    share: &[usize],
    identities: &[Arc<Identity>],
    plans: &HashMap<&str, RolePlan>,
) -> Result<Vec<(usize, Answer)>, AccessError> {
    let mut lease = pool.lease().await?;
    let mut asking = Asking {
        session: lease.session(),
        identities,
        deadline: Instant::now() + pool.config().statement_timeout.saturating_mul(BUDGET),
        is_tainted: false,
    };
    asking.session.client.batch_execute(BEGIN).await.map_err(AccessError::Query)?;
    let mut answers: BTreeMap<usize, Answer> =
        share.iter().map(|identity| (*identity, Ok(Vec::new()))).collect();

    let mut tasks = Vec::new();
    for identity in share {
        if let Some(plan) = plans.get(identities[*identity].role.as_str()) {
            let questions = plan.direct.iter().chain(&plan.by_key);
            tasks.extend(
                questions.map(|question| Task { identity: *identity, question: Arc::clone(question) }),
            );
        }
    }
    let mut again = Vec::new();
    for (task, answer) in asking.ask(tasks).await? {
        let plan = plans.get(identities[task.identity].role.as_str());
        match (answer, plan) {
            (Err(Failure::Unaskable(_)), Some(plan))
                if plan.direct.as_ref().is_some_and(|direct| Arc::ptr_eq(direct, &task.question)) =>
            {
                let questions = plan.instead.iter();
                again.extend(questions.map(|q| Task { identity: task.identity, question: Arc::clone(q) }));
            }
            (answer, _) => note(&mut answers, task.identity, answer),
        }
    }
    if !again.is_empty() {
        for (task, answer) in asking.ask(again).await? {
            note(&mut answers, task.identity, answer);
        }
    }

    if !asking.is_tainted {
        asking.session.client.batch_execute("rollback").await.map_err(AccessError::Query)?;
        lease.give_back();
    }
    Ok(answers.into_iter().collect())
}

fn note(answers: &mut BTreeMap<usize, Answer>, identity: usize, answer: Result<Vec<usize>, Failure>) {
    let entry = answers.entry(identity).or_insert_with(|| Ok(Vec::new()));
    match (entry, answer) {
        (Ok(seen), Ok(more)) => seen.extend(more),
        (Err(_), _) => {}
        (entry, Err(Failure::Unaskable(error) | Failure::Error(error))) => *entry = Err(error),
    }
}

/// A session inside the transaction of a batch.
struct Asking<'a> {
    session: &'a mut Session,
    identities: &'a [Arc<Identity>],
    deadline: Instant,
    /// An error was seen while foreign code could run.
    is_tainted: bool,
}

impl Asking<'_> {
    async fn ask(
        &mut self,
        tasks: Vec<Task>,
    ) -> Result<Vec<(Task, Result<Vec<usize>, Failure>)>, AccessError> {
        let set = self.session.prepare(SET_IDENTITY).await.map_err(AccessError::Query)?;
        let undo = self.session.prepare(ROLLBACK_TO).await.map_err(AccessError::Query)?;
        let statements = self.prepare_all(&tasks, &undo).await?;
        let mut answers = Vec::with_capacity(tasks.len());
        let mut tasks = tasks.into_iter().peekable();
        while tasks.peek().is_some() {
            let window: Vec<Task> = tasks.by_ref().take(WINDOW).collect();
            let found = self.ask_window(&window, &statements, &set, &undo).await?;
            answers.extend(window.into_iter().zip(found));
        }
        Ok(answers)
    }

    async fn ask_window(
        &mut self,
        window: &[Task],
        statements: &HashMap<String, Result<Statement, String>>,
        set: &Statement,
        undo: &Statement,
    ) -> Result<Vec<Result<Vec<usize>, Failure>>, AccessError> {
        let client = &self.session.client;
        let mut queries: Vec<Query<'_>> = Vec::with_capacity(window.len() * 3);
        for task in window {
            let Some(Ok(statement)) = statements.get(&task.question.sql) else { continue };
            let identity = &self.identities[task.identity];
            let question = &task.question;
            queries.push(Box::pin(async move {
                let sub = identity.sub.as_deref().unwrap_or_default();
                client.query(set, &[&identity.role, &identity.claims_json, &sub]).await
            }));
            queries.push(Box::pin(async move { client.query(statement, &[&question.json]).await }));
            queries.push(Box::pin(async move { client.query(undo, &[]).await }));
        }
        let mut started = start(queries).await.into_iter();
        let mut answers = Vec::with_capacity(window.len());
        for task in window {
            match statements.get(&task.question.sql) {
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    answers.push(Err(Failure::Unaskable(error.clone())));
                    continue;
                }
                None => return Err(AccessError::Protocol { what: "a question was never prepared" }),
            }
            let (Some(set), Some(rows), Some(undone)) = (started.next(), started.next(), started.next())
            else {
                return Err(AccessError::Protocol { what: "an answer is missing" });
            };
            let Ok((set, rows, undone)) =
                timeout_at(self.deadline, async { (set.await, rows.await, undone.await) }).await
            else {
                self.is_tainted = true;
                answers.push(Err(Failure::Error("policies took too long together".to_owned())));
                continue;
            };
            // Without this one the next identity would be judged in the wrong role.
            undone.map_err(AccessError::Query)?;
            let answer = match set.and(rows) {
                Ok(rows) => read_answer(&rows, &task.question.images),
                Err(error) => {
                    self.is_tainted = true;
                    Err(failure(&error))
                }
            };
            answers.push(answer);
        }
        Ok(answers)
    }

    /// Parses what is not yet prepared, as a role that will ask it: the role's privileges count when names are looked
    /// up. Only a parser runs here, so a refusal leaves nothing behind and the session stays sound.
    async fn prepare_all(
        &mut self,
        tasks: &[Task],
        undo: &Statement,
    ) -> Result<HashMap<String, Result<Statement, String>>, AccessError> {
        let mut statements: HashMap<String, Result<Statement, String>> = HashMap::new();
        let mut tried: HashSet<(&str, &str)> = HashSet::new();
        for task in tasks {
            let text = task.question.sql.as_str();
            let role = self.identities[task.identity].role.as_str();
            if matches!(statements.get(text), Some(Ok(_))) || !tried.insert((role, text)) {
                continue;
            }
            if self.session.is_prepared(text) {
                let statement = self.session.prepare(text).await.map_err(AccessError::Query)?;
                statements.insert(text.to_owned(), Ok(statement));
                continue;
            }
            if let Some(refusal) = self.session.refusal(role, text) {
                statements.insert(text.to_owned(), Err(refusal));
                continue;
            }
            let set = self.session.prepare(SET_ROLE).await.map_err(AccessError::Query)?;
            let prepared = match self.session.client.query(&set, &[&role]).await {
                Ok(_) => self.session.prepare(text).await,
                Err(error) => Err(error),
            };
            self.session.client.query(undo, &[]).await.map_err(AccessError::Query)?;
            let prepared = prepared.map_err(|error| sql::discreet(&error));
            if let Err(refusal) = &prepared {
                self.session.refuse(role, text, refusal);
            }
            statements.insert(text.to_owned(), prepared);
        }
        Ok(statements)
    }
}

/// Row *n* of the answer is image *n* of the question: a function scan keeps the order of its array.
fn read_answer(rows: &[Row], images: &[usize]) -> Result<Vec<usize>, Failure> {
    if rows.len() != images.len() {
        return Err(Failure::Error("postgres answered with another number of rows".to_owned()));
    }
    let mut visible = Vec::new();
    for (row, image) in rows.iter().zip(images) {
        match row.try_get::<_, bool>(0) {
            Ok(true) => visible.push(*image),
            Ok(false) => {}
            Err(_) => return Err(Failure::Error("postgres answered with another type".to_owned())),
        }
    }
    Ok(visible)
}

fn failure(error: &tokio_postgres::Error) -> Failure {
    let text = sql::discreet(error);
    // Class 42: syntax error or access rule violation. Real row-level security has no text to parse.
    if error.code().is_some_and(|code| code.code().starts_with("42")) {
        Failure::Unaskable(text)
    } else {
        Failure::Error(text)
    }
}
