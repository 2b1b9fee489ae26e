//! The objects of schema `realtime` and their upkeep: made before the stream is opened, partitions made ahead,
//! old ones dropped.
//!
//! Needs a login that owns them (`database.maintenance_url`). Without one nothing is done here, and somebody
//! else has to keep the partitions; a missing one shows as `MissingPartition`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_postgres::{Client, NoTls};
use tokio_util::sync::CancellationToken;

/// Partitions exist for three days ahead, so one run a day would do; an hour also covers a laptop that slept.
const INTERVAL: Duration = Duration::from_secs(60 * 60);

/// After a failure.
const RETRY: Duration = Duration::from_secs(60);

/// The owner's login. A cheap handle.
#[derive(Debug, Clone)]
pub(crate) struct Owner {
    postgres: tokio_postgres::Config,
    is_prepared: Arc<AtomicBool>,
    wanted: Arc<Notify>,
}

impl Owner {
    pub(crate) fn new(mut postgres: tokio_postgres::Config) -> Self {
        postgres.application_name("tidewire_maintenance").connect_timeout(Duration::from_secs(10));
        Self { postgres, is_prepared: Arc::default(), wanted: Arc::default() }
    }

    /// Makes what is missing, once. A failure is logged and does not keep the stream from being opened: row
    /// changes need none of it.
    pub(crate) async fn prepare(&self) {
        if self.is_prepared.load(Ordering::Acquire) {
            return;
        }
        let prepared = self
            .with_client(async |client| {
                tidewire_schema::apply(client).await?;
                tidewire_schema::maintain(client).await.map(drop)
            })
            .await;
        match prepared {
            Ok(()) => self.is_prepared.store(true, Ordering::Release),
            Err(error) => {
                tracing::warn!(code = "MigrationsFailedToRun", error, "schema realtime could not be made");
            }
        }
    }

    /// Somebody found no partition for today: the clock has jumped, or the machine slept for days.
    pub(crate) fn wake(&self) {
        self.wanted.notify_one();
    }

    /// Keeps the partitions until `shutdown`.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let mut wait = INTERVAL;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.wanted.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
            let kept =
                self.with_client(async |client| tidewire_schema::maintain(client).await.map(drop)).await;
            wait = INTERVAL;
            if let Err(error) = kept {
                tracing::warn!(code = "PartitionCreationFailed", error, "upkeep of realtime.messages failed");
                wait = RETRY;
            }
        }
    }

    async fn with_client(
        &self,
        work: impl AsyncFnOnce(&mut Client) -> Result<(), tidewire_schema::SchemaError>,
    ) -> Result<(), String> {
        // The text of a connection error names hosts, never passwords.
        let (mut client, connection) =
            self.postgres.connect(NoTls).await.map_err(|error| error.to_string())?;
        let driver = tokio::spawn(connection);
        let result = work(&mut client).await.map_err(|error| error.to_string());
        drop(client);
        driver.abort();
        result
    }
}
