//! What row-level security lets a subscriber see, as Postgres itself answers.
//!
//! Owns a bounded pool of connections of one *authenticator*: a login without any right of its own, member of the
//! roles that tokens may name. It may not write, may not be a superuser, and knows nothing of subscriptions.
//!
//! Every answer errs on the side of silence: an error is never "visible". After any error a connection is discarded.
//!
//! Spec: DESIGN.md §3, §9, §10; PROTOCOL.md §5.8.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::identity::Identity;
use crate::messages::desk::Desk;

mod catalogue;
mod error;
mod filters;
mod image;
mod judge;
pub(crate) mod pipeline;
pub(crate) mod policy;
pub(crate) mod pool;
mod snapshot;
pub(crate) mod sql;
mod table;

pub use error::AccessError;
pub use table::{Column, RoleAccess, Table, TypeShape, TypeTree};

/// How to reach Postgres on behalf of subscribers.
#[derive(Debug, Clone)]
pub struct AuthenticatorConfig {
    /// Where, and the login. It must be `NOSUPERUSER NOREPLICATION NOBYPASSRLS NOINHERIT` and member of `roles`.
    pub postgres: tokio_postgres::Config,
    /// Most connections at a time; at least one.
    pub pool_size: usize,
    /// `search_path` under which policies and filters are evaluated, as it would be written after `SET`.
    pub search_path: String,
    /// Bound of every single statement.
    pub statement_timeout: Duration,
    /// Roles that tokens may name.
    pub roles: Vec<String>,
}

/// One version of a row.
#[derive(Debug, Clone, Default)]
pub struct RowImage {
    /// Object from column to Postgres text form as a JSON string; `json` and `jsonb` columns raw; NULL is `null`.
    /// A column that is not in the image is not in the object: its keys alone say what the image tells.
    pub json: String,
}

/// Who may see what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Judgement {
    /// `visible[identity][image]`.
    pub visible: Vec<Vec<bool>>,
    /// Identities (by index) that saw an error, and what Postgres said. They see nothing of this batch.
    pub errors: Vec<(usize, String)>,
}

/// A filter condition of a binding, to be checked when it is made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BindingCondition {
    /// Column name, unquoted.
    pub column: String,
    /// `not.` stood before the operator.
    pub negate: bool,
    /// Operator as in the filter grammar: `eq`, `in`, `match` …
    pub op: String,
    /// Right-hand side; for `in` the text between the parentheses.
    pub value: String,
    /// The condition as a boolean SQL expression over the columns.
    pub sql: String,
}

/// A binding that cannot be made. The text is the tail of the client's message. Spec: PROTOCOL.md §5.10.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BindingRefusal {
    /// `ERROR P0001 (raise_exception) invalid column for filter x`.
    pub message: String,
    /// The binding was not refused: Postgres could not be asked, so asking again may help.
    pub is_transient: bool,
}

/// Asks Postgres on behalf of subscribers. A cheap handle; clones share one pool.
///
/// # Cancel safety
/// Every question may be dropped half-way: nothing is decided, and its connections are discarded.
#[derive(Debug, Clone)]
pub struct Authenticator {
    pub(crate) pool: Arc<pool::Pool>,
    /// Where questions about private channels wait for each other ([`crate::messages`]).
    pub(crate) desk: Arc<Desk>,
}

/// First pause between two looks at the snapshot. The usual gap between a commit in the stream and its visibility is
/// far below a millisecond; with a slow synchronous standby the pause doubles up to [`LOOK_PAUSE_MAX`].
const LOOK_PAUSE_MIN: Duration = Duration::from_micros(250);
const LOOK_PAUSE_MAX: Duration = Duration::from_millis(20);

impl Authenticator {
    /// No connection is opened before it is needed.
    #[must_use]
    pub fn new(config: AuthenticatorConfig) -> Self {
        let pool = Arc::new(pool::Pool::new(config));
        Self { desk: Arc::new(Desk::new(Arc::clone(&pool))), pool }
    }

    /// What the catalogue says about a table.
    ///
    /// # Errors
    /// [`AccessError::NoTable`], or Postgres could not be asked.
    pub async fn table(&self, relid: u32) -> Result<Table, AccessError> {
        let mut lease = self.pool.lease().await?;
        let table = catalogue::table(lease.session(), relid, &self.pool.config().roles).await;
        if matches!(table, Ok(_) | Err(AccessError::NoTable { .. })) {
            lease.give_back();
        }
        table
    }

    /// Published tables whose names match, by `LIKE` without an escape character; `None` is any. In oid order.
    /// Spec: PROTOCOL.md §5.2.
    ///
    /// # Errors
    /// Postgres could not be asked.
    pub async fn resolve(
        &self,
        publication: &str,
        schema: Option<&str>,
        table: Option<&str>,
    ) -> Result<Vec<u32>, AccessError> {
        // Names in Postgres hold no NUL, so nothing can match.
        if [Some(publication), schema, table].into_iter().flatten().any(|text| text.contains('\0')) {
            return Ok(Vec::new());
        }
        let mut lease = self.pool.lease().await?;
        let found = catalogue::resolve(lease.session(), publication, schema, table).await;
        let found = found.map_err(AccessError::Query)?;
        lease.give_back();
        Ok(found)
    }

    /// A number that changes when what a role *is* changes: membership, attributes, USAGE on schemas. None of these is
    /// announced in the stream. Also covers the authenticator itself. Not comparable between databases.
    ///
    /// # Errors
    /// Postgres could not be asked.
    pub async fn roles_fingerprint(&self) -> Result<u64, AccessError> {
        let mut lease = self.pool.lease().await?;
        let fingerprint = catalogue::roles_fingerprint(lease.session(), &self.pool.config().roles).await;
        let fingerprint = fingerprint.map_err(AccessError::Query)?;
        lease.give_back();
        Ok(fingerprint)
    }

    /// The position of the log now: whatever commits from here on has a commit position that is not before it.
    ///
    /// # Errors
    /// Postgres could not be asked.
    pub async fn log_position(&self) -> Result<u64, AccessError> {
        let mut lease = self.pool.lease().await?;
        let position = catalogue::log_position(lease.session()).await;
        let position = position.map_err(AccessError::Query)?;
        lease.give_back();
        Ok(position)
    }

    /// Waits until all these transactions, which the stream has shown as committed, are visible to others.
    ///
    /// `xids` are ids of top-level transactions as the stream's `Begin` has them. Spec: DESIGN.md §3, "Not before it
    /// is visible".
    ///
    /// # Errors
    /// [`AccessError::NotVisible`] after `timeout`, or Postgres could not be asked.
    pub async fn wait_visible(&self, xids: &[u32], timeout: Duration) -> Result<(), AccessError> {
        if xids.is_empty() {
            return Ok(());
        }
        let begun = Instant::now();
        let mut pause = LOOK_PAUSE_MIN;
        let look = async {
            loop {
                // Borrowed for one look each: a commit that waits for a standby must not hold up others' questions.
                let mut lease = self.pool.lease().await?;
                let session = lease.session();
                let statement = session.prepare("select pg_catalog.pg_current_snapshot()::text").await;
                let row = session.client.query_one(&statement.map_err(AccessError::Query)?, &[]).await;
                let snapshot: String = row.and_then(|row| row.try_get(0)).map_err(AccessError::Query)?;
                lease.give_back();
                let mut are_visible = true;
                for xid in xids {
                    are_visible &= snapshot::sees(&snapshot, *xid)
                        .ok_or(AccessError::Protocol { what: "a snapshot that cannot be read" })?;
                }
                if are_visible {
                    return Ok(());
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LOOK_PAUSE_MAX);
            }
        };
        match tokio::time::timeout(timeout, look).await {
            Ok(outcome) => outcome,
            Err(_) => Err(AccessError::NotVisible { waited: begun.elapsed() }),
        }
    }

    /// For each identity, which of the images it may select: decided *on the image* by the table's policies under the
    /// identity's role and claims, or, where the image does not tell, on an equal row that it can select now.
    ///
    /// The caller has waited for visibility ([`wait_visible`](Self::wait_visible)) and keeps `table` fresh. An error
    /// for one identity denies that identity alone and is listed in the result.
    ///
    /// # Errors
    /// Postgres could not be asked at all; nothing was decided, for anybody.
    pub async fn judge(
        &self,
        table: &Table,
        identities: &[Arc<Identity>],
        images: &[RowImage],
    ) -> Result<Judgement, AccessError> {
        judge::judge(&self.pool, table, identities, images).await
    }

    /// `result[expression][image]` of boolean SQL expressions over the columns of an image; NULL is false, and so is
    /// an expression that fails.
    ///
    /// A column that is not in an image counts as NULL here; a condition on it is the caller's to refuse
    /// (PROTOCOL.md §5.3).
    ///
    /// # Errors
    /// Postgres could not be asked.
    pub async fn evaluate(
        &self,
        table: &Table,
        expressions: &[String],
        images: &[RowImage],
    ) -> Result<Vec<Vec<bool>>, AccessError> {
        filters::evaluate(&self.pool, table, expressions, images).await
    }

    /// Checks a binding when it is made: the role exists, columns exist and are selectable, values can be cast,
    /// operators exist, regular expressions compile. Spec: PROTOCOL.md §5.3, §5.4, §5.10.
    ///
    /// # Errors
    /// The binding is refused, with the exact tail of the client's message.
    pub async fn check_binding(
        &self,
        role: &str,
        relid: u32,
        conditions: &[BindingCondition],
        select: Option<&[String]>,
    ) -> Result<(), BindingRefusal> {
        filters::check_binding(&self.pool, role, relid, conditions, select).await
    }
}
