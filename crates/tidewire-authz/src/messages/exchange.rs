//! One transaction in one round trip: begin, steps, rollback, all sent before the first answer is awaited.
//!
//! Nothing of it stays, whatever happens: it ends with a rollback, and where that is not known to have happened the
//! session is not to be used again.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Error, Row, Statement};

use crate::visibility::pipeline::{Query, start};
use crate::visibility::pool::Session;

/// One statement of an exchange.
pub(super) struct Step {
    pub(super) statement: Statement,
    pub(super) params: Vec<Param>,
}

/// A parameter: text, or what replay needs.
#[derive(Debug, Clone)]
pub(super) enum Param {
    Text(String),
    Texts(Vec<String>),
    Int(i64),
}

impl Param {
    fn as_sql(&self) -> &(dyn ToSql + Sync) {
        match self {
            Self::Text(text) => text,
            Self::Texts(texts) => texts,
            Self::Int(number) => number,
        }
    }
}

/// What became of the steps.
pub(super) struct Exchanged {
    /// One per step; `None`: not answered before the deadline, nor is anything behind it.
    pub(super) answers: Vec<Option<Result<Vec<Row>, Error>>>,
    /// The transaction is known to be over.
    pub(super) is_over: bool,
}

/// Sends it all and waits for the answers, at most for `limit`.
///
/// # Errors
/// The transaction did not begin: nothing was asked.
pub(super) async fn exchange(
    session: &Session,
    begin: &str,
    steps: &[Step],
    limit: Duration,
) -> Result<Exchanged, Error> {
    let client = &session.client;
    let deadline = Instant::now() + limit;
    let mut queries: Vec<Query<'_>> = Vec::with_capacity(steps.len() + 2);
    queries.push(Box::pin(async move { client.batch_execute(begin).await.map(|()| Vec::new()) }));
    for step in steps {
        queries.push(Box::pin(async move {
            let params: Vec<_> = step.params.iter().map(Param::as_sql).collect();
            client.query(&step.statement, &params).await
        }));
    }
    queries.push(Box::pin(async move { client.batch_execute("rollback").await.map(|()| Vec::new()) }));

    let mut started = start(queries).await.into_iter();
    let mut answers = Vec::with_capacity(steps.len() + 2);
    for query in started.by_ref() {
        match timeout_at(deadline, query).await {
            Ok(answer) => answers.push(answer),
            Err(_) => break,
        }
    }
    // The rest stays unanswered; the caller discards the session, which ends what still runs.
    drop(started);
    let mut answers = answers.into_iter();
    if let Some(begun) = answers.next() {
        begun?;
    }
    let mut stepped: Vec<_> = answers.by_ref().take(steps.len()).map(Some).collect();
    let is_over = matches!(answers.next(), Some(Ok(_)));
    stepped.resize_with(steps.len(), || None);
    Ok(Exchanged { answers: stepped, is_over })
}
