//! The database objects of schema `realtime`: made, maintained, checked.
//!
//! Owns the statements that make `realtime.messages`, its partitions, the functions that user code calls, and the
//! publication of the broadcast stream. It may not read or write a message, opens no connection and decides nothing
//! about when it is called.
//!
//! **Two kinds of database.** Where the reference has run its migrations (`realtime.schema_migrations` has rows), its
//! objects are left exactly as they are, and so is its table of versions: it can take over again at any time. Only what
//! is missing is added: a function that is not there, the publication, partitions; all of which the reference itself
//! makes with `create or replace`, on connecting, or not at all. Elsewhere the database is ours. We then make the
//! objects that clients and user code know, and **no** `schema_migrations`, no `realtime.subscription` and none of the
//! functions of the reference's change pipeline, which nothing here calls: a table of versions without the objects would
//! be a lie, and the reference would believe it. The price: its migrations are not made for a database that has a
//! partitioned `realtime.messages` already (one of 2024 changes the type of `inserted_at`, which Postgres refuses for a
//! partition key). Whoever moves such a database to the reference drops schema `realtime` first, keeping a copy of the
//! policies on `realtime.messages`; messages live three days anyway.
//!
//! **How it fails.** Each step is one transaction under an advisory lock: servers that start together wait for each
//! other, and a step that fails has changed nothing. Waiting for locks is bounded.
//!
//! Spec: PROTOCOL.md §3.9, §9.3–9.5, §9.7.
#![forbid(unsafe_code)]

mod error;
mod objects;
mod partitions;

pub use error::SchemaError;
pub use objects::Applied;

use tokio_postgres::Client;

/// For how long messages are kept at least. Spec: PROTOCOL.md §9.5.
pub const KEEP_HOURS: u32 = 72;

/// What [`maintain`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Maintained {
    /// Names of new partitions.
    pub made: Vec<String>,
    /// Names of dropped partitions.
    pub dropped: Vec<String>,
}

/// Makes what is missing, except partitions. The login is a superuser, or owns what is there and may create roles,
/// schemas and publications.
///
/// # Errors
/// See [`SchemaError`]; nothing was changed.
///
/// # Cancel safety
/// Nothing was changed, or everything.
pub async fn apply(client: &mut Client) -> Result<Applied, SchemaError> {
    objects::apply(client).await
}

/// Makes the partitions of yesterday, today and the next three days, as far as they are missing. Returns the names of
/// the new ones, oldest first. Safe when several servers do it at once.
///
/// # Errors
/// See [`SchemaError`]. Where a name is taken by something else, the other days have been made nevertheless.
///
/// # Cancel safety
/// Nothing was made, or everything.
pub async fn ensure_partitions(client: &mut Client) -> Result<Vec<String>, SchemaError> {
    partitions::ensure(client).await
}

/// Drops the partitions whose last row is older than `keep_hours`, whole days only. Returns their names, oldest first.
/// A partition that is not `messages_YYYY_MM_DD` with the bounds of that day is left alone, with a warning.
///
/// # Errors
/// See [`SchemaError`]. What was dropped until then is gone.
///
/// # Cancel safety
/// Each partition is there or gone.
pub async fn drop_old_partitions(client: &mut Client, keep_hours: u32) -> Result<Vec<String>, SchemaError> {
    partitions::drop_old(client, keep_hours).await
}

/// [`ensure_partitions`], then [`drop_old_partitions`]: to be called at start, every few hours, and when an insert found
/// no partition (a machine that slept for days). What fails first does not keep the other from happening.
///
/// # Errors
/// See [`SchemaError`].
pub async fn maintain(client: &mut Client) -> Result<Maintained, SchemaError> {
    let made = ensure_partitions(client).await;
    let dropped = drop_old_partitions(client, KEEP_HOURS).await;
    Ok(Maintained { made: made?, dropped: dropped? })
}
