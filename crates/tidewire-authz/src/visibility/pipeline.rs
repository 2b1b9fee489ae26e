//! Many queries on one connection without waiting for each answer.

use std::future::{Future, poll_fn, ready};
use std::pin::Pin;
use std::task::Poll;

use tokio_postgres::{Error, Row};

/// A query that is sent when it is first polled, as those of `tokio_postgres` with a prepared statement are.
pub(crate) type Query<'a> = Pin<Box<dyn Future<Output = Result<Vec<Row>, Error>> + Send + 'a>>;

/// Sends all queries, in order, and returns what is left of them: their answers.
///
/// Each is polled once, which is what fixes the order on the wire; a join would leave it to its own scheduling.
pub(crate) async fn start(mut queries: Vec<Query<'_>>) -> Vec<Query<'_>> {
    poll_fn(|cx| {
        for query in &mut queries {
            if let Poll::Ready(answer) = query.as_mut().poll(cx) {
                *query = Box::pin(ready(answer));
            }
        }
        Poll::Ready(())
    })
    .await;
    queries
}

/// Sends all queries in order, then takes their answers in order.
pub(crate) async fn in_order(queries: Vec<Query<'_>>) -> Vec<Result<Vec<Row>, Error>> {
    let mut answers = Vec::with_capacity(queries.len());
    for query in start(queries).await {
        answers.push(query.await);
    }
    answers
}
