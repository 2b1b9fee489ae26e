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

use crate::identity::Identity;

mod error;
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
    /// A column that is not in the image is not in the object.
    pub json: String,
    /// Some columns are not in the image (unchanged TOAST values).
    pub unchanged_toast: bool,
    /// Key columns and their text.
    pub key: Vec<(String, String)>,
    /// Transaction that wrote the image.
    pub xid: u32,
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
    /// Right-hand side as in the filter (for `in` a Postgres array literal).
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

/// Asks Postgres on behalf of subscribers. A cheap handle.
#[derive(Debug, Clone)]
pub struct Authenticator {
    config: Arc<AuthenticatorConfig>,
}

const NOT_YET: AccessError = AccessError::Protocol { what: "not built yet" };

impl Authenticator {
    /// No connection is opened before it is needed.
    #[must_use]
    pub fn new(config: AuthenticatorConfig) -> Self {
        Self { config: Arc::new(config) }
    }

    /// What the catalogue says about a table.
    ///
    /// # Errors
    /// [`AccessError::NoTable`], or Postgres could not be asked.
    pub async fn table(&self, relid: u32) -> Result<Table, AccessError> {
        let _ = (&self.config, relid);
        Err(NOT_YET)
    }

    /// Published tables whose names match, by `LIKE`; `None` is any. Spec: PROTOCOL.md §5.2.
    ///
    /// # Errors
    /// Postgres could not be asked.
    pub async fn resolve(
        &self,
        publication: &str,
        schema: Option<&str>,
        table: Option<&str>,
    ) -> Result<Vec<u32>, AccessError> {
        let _ = (publication, schema, table);
        Err(NOT_YET)
    }

    /// A number that changes when role membership, role attributes or schema privileges change.
    ///
    /// # Errors
    /// Postgres could not be asked.
    pub async fn roles_fingerprint(&self) -> Result<u64, AccessError> {
        Err(NOT_YET)
    }

    /// Waits until all these transactions are visible to others.
    ///
    /// # Errors
    /// [`AccessError::NotVisible`] after `timeout`, or Postgres could not be asked.
    pub async fn wait_visible(&self, xids: &[u32], timeout: Duration) -> Result<(), AccessError> {
        let _ = (xids, timeout);
        Err(NOT_YET)
    }

    /// Which images each identity may select.
    ///
    /// # Errors
    /// Postgres could not be asked at all; then nothing was decided.
    pub async fn judge(
        &self,
        table: &Table,
        identities: &[Arc<Identity>],
        images: &[RowImage],
    ) -> Result<Judgement, AccessError> {
        let _ = (table, identities, images);
        Err(NOT_YET)
    }

    /// `result[expression][image]`; NULL is false.
    ///
    /// # Errors
    /// An expression failed, or Postgres could not be asked.
    pub async fn evaluate(
        &self,
        table: &Table,
        expressions: &[String],
        images: &[RowImage],
    ) -> Result<Vec<Vec<bool>>, AccessError> {
        let _ = (table, expressions, images);
        Err(NOT_YET)
    }

    /// Checks a binding when it is made. Spec: PROTOCOL.md §5.3, §5.4, §5.10.
    ///
    /// # Errors
    /// The binding is refused with the exact text for the client.
    pub async fn check_binding(
        &self,
        role: &str,
        relid: u32,
        conditions: &[BindingCondition],
        select: Option<&[String]>,
    ) -> Result<(), BindingRefusal> {
        let _ = (role, relid, conditions, select);
        Err(BindingRefusal { message: "not built yet".to_owned(), is_transient: true })
    }
}
