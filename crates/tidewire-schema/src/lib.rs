//! The database objects of schema `realtime`.
#![forbid(unsafe_code)]

mod error;

pub use error::SchemaError;

use tokio_postgres::Client;

/// What [`apply`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Applied {
    /// Something was made or changed; `false`: everything was there.
    pub changed: bool,
}

/// Makes what is missing.
///
/// # Errors
/// See [`SchemaError`].
pub async fn apply(_client: &mut Client) -> Result<Applied, SchemaError> {
    Ok(Applied::default())
}

/// Makes the partitions from yesterday to three days ahead. Returns the names of the new ones.
///
/// # Errors
/// See [`SchemaError`].
pub async fn ensure_partitions(_client: &mut Client) -> Result<Vec<String>, SchemaError> {
    Ok(Vec::new())
}

/// Drops partitions of days that are over for longer than this. Returns their names.
///
/// # Errors
/// See [`SchemaError`].
pub async fn drop_old_partitions(_client: &mut Client, _keep_hours: u32) -> Result<Vec<String>, SchemaError> {
    Ok(Vec::new())
}

/// What [`maintain`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Maintained {
    /// Names of new partitions.
    pub made: Vec<String>,
    /// Names of dropped partitions.
    pub dropped: Vec<String>,
}

/// [`ensure_partitions`], then [`drop_old_partitions`]: to be called at start and every few hours.
///
/// # Errors
/// See [`SchemaError`].
pub async fn maintain(client: &mut Client) -> Result<Maintained, SchemaError> {
    let made = ensure_partitions(client).await?;
    let dropped = drop_old_partitions(client, KEEP_HOURS).await?;
    Ok(Maintained { made, dropped })
}

/// For how long messages are kept at least. Spec: PROTOCOL.md §9.5.
pub const KEEP_HOURS: u32 = 72;
