//! Makes the objects, or adds what is missing to those of the reference.

use tokio_postgres::{Client, Row, Transaction};

use crate::SchemaError;

const OBJECTS: &str = include_str!("sql/objects.sql");
const TOPIC: &str = include_str!("sql/topic.sql");
const SEND: &str = include_str!("sql/send.sql");
const SEND_BINARY: &str = include_str!("sql/send_binary.sql");
const BROADCAST_CHANGES: &str = include_str!("sql/broadcast_changes.sql");
const GRANTS: &str = include_str!("sql/grants.sql");
const STATE: &str = include_str!("sql/state.sql");
const PUBLICATION: &str = include_str!("sql/publication.sql");

/// Held by whoever makes or maintains objects, so that servers that start together wait for each other. The number is
/// the first eight bytes of "tidewire".
pub(crate) const LOCK: &str = "select pg_advisory_xact_lock(8388346167912133221)";

/// With an empty search path nothing that others may create is called by mistake. Waiting for a lock behind others is
/// bounded: whoever comes after us would wait as well.
pub(crate) const PREPARE: &str =
    "set local search_path = ''; set local lock_timeout = '10s'; set local client_min_messages = warning";

/// The columns that everything else relies on.
const COLUMNS: [&str; 8] =
    ["id", "topic", "extension", "payload", "event", "private", "inserted_at", "updated_at"];

/// Oldest server that has all that is used here. Spec: DESIGN.md §1.
const VERSION_MIN: i32 = 140_000;

/// What [`apply`](crate::apply) found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Applied {
    /// Something was made or changed; `false`: everything was there.
    pub changed: bool,
    /// The reference has run its migrations here: its objects were left as they are.
    pub is_of_reference: bool,
}

struct State {
    version_num: i32,
    version: String,
    has_migrations: bool,
    has_messages: bool,
    is_partitioned: bool,
    columns: Vec<String>,
    mark: Option<String>,
    /// Functions that are there, in the order of [`FUNCTIONS`].
    functions: [bool; 4],
}

const FUNCTIONS: [(&str, &str); 4] = [
    ("has_topic", TOPIC),
    ("has_send", SEND),
    ("has_send_binary", SEND_BINARY),
    ("has_broadcast_changes", BROADCAST_CHANGES),
];

impl State {
    fn read(row: &Row) -> Result<Self, tokio_postgres::Error> {
        let mut functions = [false; 4];
        for (is_there, (name, _)) in functions.iter_mut().zip(FUNCTIONS) {
            *is_there = row.try_get(name)?;
        }
        Ok(Self {
            version_num: row.try_get("version_num")?,
            version: row.try_get("version")?,
            has_migrations: row.try_get("has_migrations")?,
            has_messages: row.try_get("has_messages")?,
            is_partitioned: row.try_get("is_partitioned")?,
            columns: row.try_get("columns")?,
            mark: row.try_get("mark")?,
            functions,
        })
    }

    fn has_column(&self, name: &str) -> bool {
        self.columns.iter().any(|column| column == name)
    }

    fn check_table(&self) -> Result<(), SchemaError> {
        let problem = if !self.has_messages {
            "it does not exist".to_owned()
        } else if !self.is_partitioned {
            "it is not partitioned by range of inserted_at".to_owned()
        } else if let Some(missing) = COLUMNS.into_iter().find(|name| !self.has_column(name)) {
            format!("it has no column {missing}")
        } else {
            return Ok(());
        };
        Err(SchemaError::UnexpectedTable { problem })
    }
}

pub(crate) async fn apply(client: &mut Client) -> Result<Applied, SchemaError> {
    let failed = SchemaError::of("make the objects of schema realtime");
    let transaction = client.transaction().await.map_err(SchemaError::of("begin"))?;
    transaction.batch_execute(PREPARE).await.map_err(SchemaError::of("prepare"))?;
    transaction.batch_execute(LOCK).await.map_err(SchemaError::of("wait for another server"))?;
    let state = state(&transaction).await?;
    if state.version_num < VERSION_MIN {
        return Err(SchemaError::TooOld { version: state.version });
    }
    let is_of_reference = state.has_migrations && has_versions(&transaction).await?;
    let mut applied = Applied { changed: false, is_of_reference };
    if applied.is_of_reference {
        state.check_table()?;
        applied.changed = complete(&transaction, &state).await.map_err(failed)?;
    } else if state.mark.as_deref() != Some(&mark())
        || state.functions.contains(&false)
        || !state.has_messages
    {
        make(&transaction, &state).await.map_err(failed)?;
        self::state(&transaction).await?.check_table()?;
        applied.changed = true;
    } else {
        state.check_table()?;
    }
    let published = publish(&transaction).await;
    applied.changed |= published.map_err(SchemaError::of("make the publication of realtime.messages"))?;
    transaction.commit().await.map_err(SchemaError::of("commit the objects of schema realtime"))?;
    Ok(applied)
}

async fn state(transaction: &Transaction<'_>) -> Result<State, SchemaError> {
    let row = transaction.query_one(STATE, &[]).await.and_then(|row| State::read(&row));
    row.map_err(SchemaError::of("look at schema realtime"))
}

/// An empty table of versions is what the reference leaves when its first start fails.
async fn has_versions(transaction: &Transaction<'_>) -> Result<bool, SchemaError> {
    let query = transaction.query_one("select exists (select from realtime.schema_migrations)", &[]).await;
    query.and_then(|row| row.try_get(0)).map_err(SchemaError::of("read realtime.schema_migrations"))
}

/// A database that is ours.
async fn make(transaction: &Transaction<'_>, state: &State) -> Result<(), tokio_postgres::Error> {
    transaction.batch_execute(OBJECTS).await?;
    for (_, function) in FUNCTIONS {
        transaction.batch_execute(function).await?;
    }
    transaction.batch_execute(GRANTS).await?;
    // A comment that somebody else made stays; then everything is made again each time, which changes nothing.
    if state.mark.as_ref().is_none_or(|mark| mark.starts_with(MARK)) {
        transaction.batch_execute(&format!("comment on schema realtime is '{}'", mark())).await?;
    }
    Ok(())
}

/// A database of the reference: what it made stays as it is, also if a later version of it would have made it in
/// another way, because its migrations count on finding what they left.
async fn complete(transaction: &Transaction<'_>, state: &State) -> Result<bool, tokio_postgres::Error> {
    let mut changed = false;
    for (is_there, (name, function)) in state.functions.into_iter().zip(FUNCTIONS) {
        // Before `binary_payload` there was no `send_binary`, and it could not do anything.
        if is_there || (name == "has_send_binary" && !state.has_column("binary_payload")) {
            continue;
        }
        transaction.batch_execute(function).await?;
        changed = true;
    }
    Ok(changed)
}

async fn publish(transaction: &Transaction<'_>) -> Result<bool, tokio_postgres::Error> {
    let found = transaction.query_opt(PUBLICATION, &[]).await?;
    let is_right = found.map(|row| row.try_get::<_, bool>(0)).transpose()?;
    match is_right {
        Some(true) => return Ok(false),
        Some(false) => {
            tracing::warn!("supabase_realtime_messages_publication lists something else and is made again");
            transaction.batch_execute("drop publication supabase_realtime_messages_publication").await?;
        }
        None => {}
    }
    let create = "create publication supabase_realtime_messages_publication for table realtime.messages";
    transaction.batch_execute(create).await?;
    Ok(true)
}

const MARK: &str = "tidewire schema ";

/// Tells which version of these files was applied, where it was applied.
fn mark() -> String {
    let all = [OBJECTS, TOPIC, SEND, SEND_BINARY, BROADCAST_CHANGES, GRANTS].concat();
    // FNV-1a: tells versions of our own files apart, nothing more.
    let hash = all.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{MARK}{hash:016x}")
}
