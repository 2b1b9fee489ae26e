//! Upkeep of `realtime.messages`: partitions made ahead, old ones dropped.
//!
//! Needs a login that owns the table (`database.maintenance_url`). Without one nothing is done here, and
//! somebody else has to keep the partitions; a missing one shows as `MissingPartition`.

use std::time::Duration;

use tokio_postgres::NoTls;
use tokio_util::sync::CancellationToken;

/// Partitions exist for three days ahead, so one run a day would do; an hour also covers a laptop that slept.
const INTERVAL: Duration = Duration::from_secs(60 * 60);

/// After a failure.
const RETRY: Duration = Duration::from_secs(60);

/// Runs until `shutdown`.
pub(crate) async fn run(postgres: tokio_postgres::Config, shutdown: CancellationToken) {
    loop {
        let wait = match once(&postgres).await {
            Ok(()) => INTERVAL,
            Err(error) => {
                tracing::warn!(code = "PartitionCreationFailed", error, "upkeep of realtime.messages failed");
                RETRY
            }
        };
        if shutdown.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
            return;
        }
    }
}

async fn once(postgres: &tokio_postgres::Config) -> Result<(), String> {
    // The text of a connection error names hosts, never passwords.
    let (mut client, connection) = postgres.connect(NoTls).await.map_err(|error| error.to_string())?;
    let driver = tokio::spawn(connection);
    let result = tidewire_schema::maintain(&mut client).await.map_err(|error| error.to_string());
    drop(client);
    driver.abort();
    result.map(drop)
}
