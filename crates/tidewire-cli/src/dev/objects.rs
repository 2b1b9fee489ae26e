//! The objects that `dev` puts into its database: applied in one transaction, skipped when they are there; then those
//! of schema `realtime`, which `tidewire-schema` makes.
//!
//! What was applied is remembered where it applies: in the comments of schema `auth` and of the demo table.
//! A changed file, changed passwords or a dropped table makes the mark differ, and the file is applied again.

use tokio_postgres::{Client, NoTls};

use super::keys::Keys;
use crate::output::{Failure, chain};

const OBJECTS: &str = include_str!("objects.sql");
const DEMO: &str = include_str!("demo.sql");

/// Makes sure that the objects are there. Returns whether anything had to be done.
pub(crate) async fn apply(superuser_url: &str, keys: &Keys, with_demo: bool) -> Result<bool, Failure> {
    let (mut client, connection) = tokio_postgres::connect(superuser_url, NoTls).await.map_err(failed)?;
    let connection = tokio::spawn(connection);
    let result = apply_all(&mut client, keys, with_demo).await;
    drop(client);
    let _ = connection.await;
    result
}

async fn apply_all(client: &mut Client, keys: &Keys, with_demo: bool) -> Result<bool, Failure> {
    let changed = apply_with(client, keys, with_demo).await.map_err(failed)?;
    let realtime = tidewire_schema::apply(client).await.map_err(|error| {
        Failure::new(
            error.code(),
            format!("schema realtime could not be made: {}", chain(&error)),
            error.advice(),
        )
    })?;
    // The server does it again every few hours. Without a partition private channels cannot be written to; the rest
    // works.
    if let Err(error) = tidewire_schema::maintain(client).await {
        tracing::warn!(
            code = error.code(),
            error = chain(&error),
            advice = error.advice(),
            "partitions_not_maintained"
        );
    }
    Ok(changed || realtime.changed)
}

async fn apply_with(
    client: &mut Client,
    keys: &Keys,
    with_demo: bool,
) -> Result<bool, tokio_postgres::Error> {
    let objects_mark = format!("tidewire dev {:016x} {}", fingerprint(OBJECTS), keys.generation);
    let demo_mark = format!("tidewire dev {:016x}", fingerprint(DEMO));
    let row = client
        .query_one(
            "select obj_description(to_regnamespace('auth'), 'pg_namespace'),
                    obj_description(to_regclass('public.demo_notes'), 'pg_class')",
            &[],
        )
        .await?;
    let needs_objects = row.get::<_, Option<&str>>(0) != Some(&objects_mark);
    let needs_demo = with_demo && row.get::<_, Option<&str>>(1) != Some(&demo_mark);
    let mut script = String::new();
    if needs_objects {
        script += &OBJECTS
            .replace("$authenticator_password$", &keys.authenticator_password)
            .replace("$replication_password$", &keys.replication_password);
        script += &format!("comment on schema auth is '{objects_mark}';\n");
    }
    if needs_demo {
        script += DEMO;
        script += &format!("comment on table public.demo_notes is '{demo_mark}';\n");
    }
    if !script.is_empty() {
        let transaction = client.transaction().await?;
        transaction.batch_execute(&script).await?;
        transaction.commit().await?;
    }
    Ok(!script.is_empty())
}

fn failed(error: tokio_postgres::Error) -> Failure {
    Failure::new(
        "DatabaseSetupFailed",
        format!("the database objects could not be made: {}", chain(&error)),
        "read postgres.log in the data folder; removing the folder starts over with an empty database",
    )
}

/// FNV-1a: tells versions of our own files apart, nothing more.
fn fingerprint(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
