//! A private cluster with what `tidewire dev` puts into its database: roles, schemas, the publication.
//!
//! One cluster per fixture: replication slots, settings and restarts concern a whole cluster, and tests
//! must not meet each other there. Starting one takes about a second.

use std::sync::{Arc, Mutex, PoisonError};

use tidewire_devdb::{Cluster, Shutdown};
use tidewire_replication::{SlotPolicy, Start, StreamConfig, StreamError, WalStream};
use tidewire_server::config::{DatabaseConfig, Secret};
use tokio_postgres::types::FromSqlOwned;
use tokio_postgres::{Client, NoTls, Row};

use crate::eventually;

/// The product's own objects: tests run against what users run against.
const OBJECTS: &str = include_str!("../../tidewire-cli/src/dev/objects.sql");

const AUTHENTICATOR_PASSWORD: &str = "a0a0a0a0";
const REPLICATION_PASSWORD: &str = "b1b1b1b1";

/// The publication that is offered.
pub const PUBLICATION: &str = "supabase_realtime";

/// The slot of the server under test.
pub const SLOT: &str = "tidewire_changes";

/// A cluster and a superuser session in it. Dropping it ends and removes it.
#[derive(Debug)]
pub struct Postgres {
    cluster: Arc<Mutex<Cluster>>,
    superuser_url: String,
    port: u16,
    admin: tokio::sync::Mutex<Option<Arc<Client>>>,
}

impl Postgres {
    /// A cluster with the product's objects and, on top, this SQL.
    pub async fn start(sql: &str) -> Self {
        Self::start_with(&[], sql).await
    }

    /// The same with settings of `postgresql.conf`.
    ///
    /// # Panics
    /// If the cluster does not start, or the SQL fails.
    pub async fn start_with(settings: &[(&str, &str)], sql: &str) -> Self {
        crate::show_logs();
        let settings =
            settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let cluster = tokio::task::spawn_blocking(|| Cluster::temporary_with(settings))
            .await
            .expect("starting a cluster does not panic")
            .expect("a private cluster starts");
        let (superuser_url, port) = (cluster.superuser_url(), cluster.port());
        let cluster = Arc::new(Mutex::new(cluster));
        let postgres = Self { cluster, superuser_url, port, admin: tokio::sync::Mutex::default() };
        let objects = OBJECTS
            .replace("$authenticator_password$", AUTHENTICATOR_PASSWORD)
            .replace("$replication_password$", REPLICATION_PASSWORD);
        postgres.sql(&objects).await;
        postgres.sql(sql).await;
        postgres
    }

    /// The superuser's URL.
    #[must_use]
    pub fn superuser_url(&self) -> &str {
        &self.superuser_url
    }

    /// The two logins of the server, as settings.
    #[must_use]
    pub fn logins(&self) -> DatabaseConfig {
        let url = |user: &str, password: &str| {
            Secret::new(format!("postgres://{user}:{password}@127.0.0.1:{}/postgres", self.port))
        };
        DatabaseConfig {
            replication_url: url("tidewire_replication", REPLICATION_PASSWORD),
            authenticator_url: url("authenticator", AUTHENTICATOR_PASSWORD),
            publication: PUBLICATION.into(),
            messages_publication: "supabase_realtime_messages_publication".into(),
            maintenance_url: None,
            slot: SLOT.into(),
            search_path: "public, extensions".into(),
            pool_size: 2,
        }
    }

    /// A superuser session of one's own.
    ///
    /// # Panics
    /// If the server cannot be reached.
    pub async fn session(&self) -> Client {
        self.try_session().await.expect("a session")
    }

    /// A superuser session, if the server lets us in.
    ///
    /// # Errors
    /// What the server or the system said.
    pub async fn try_session(&self) -> Result<Client, tokio_postgres::Error> {
        let (client, connection) = tokio_postgres::connect(&self.superuser_url, NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// Runs statements as the superuser, in one transaction if there are several.
    ///
    /// # Panics
    /// If one fails.
    pub async fn sql(&self, sql: &str) {
        let admin = self.admin().await;
        if let Err(error) = admin.batch_execute(sql).await {
            panic!("{error:?} in: {sql}");
        }
    }

    /// Runs a query as the superuser.
    ///
    /// # Panics
    /// If it fails.
    pub async fn rows(&self, sql: &str) -> Vec<Row> {
        match self.admin().await.query(sql, &[]).await {
            Ok(rows) => rows,
            Err(error) => panic!("{error:?} in: {sql}"),
        }
    }

    /// The first column of all rows.
    pub async fn column<T: FromSqlOwned>(&self, sql: &str) -> Vec<T> {
        self.rows(sql).await.iter().map(|row| row.get(0)).collect()
    }

    /// The one value of a query that has one.
    ///
    /// # Panics
    /// If there is no row.
    pub async fn value<T: FromSqlOwned>(&self, sql: &str) -> T {
        self.column(sql).await.into_iter().next().expect("a row")
    }

    async fn admin(&self) -> Arc<Client> {
        let mut admin = self.admin.lock().await;
        match &*admin {
            Some(client) if !client.is_closed() => Arc::clone(client),
            _ => {
                // After a restart the server may still be coming up.
                let client =
                    eventually("a superuser session", || async { self.try_session().await.ok() }).await;
                let client = Arc::new(client);
                *admin = Some(Arc::clone(&client));
                client
            }
        }
    }

    /// Stops the server, keeping everything.
    pub async fn halt(&self, how: Shutdown) {
        self.blocking(move |cluster| cluster.halt(how)).await;
    }

    /// Starts the stopped server, on the same port.
    pub async fn resume(&self) {
        self.blocking(|cluster| cluster.resume().expect("the cluster starts again")).await;
    }

    /// Stops and starts the server.
    pub async fn restart(&self, how: Shutdown) {
        self.blocking(move |cluster| cluster.restart(how).expect("the cluster starts again")).await;
    }

    async fn blocking(&self, act: impl FnOnce(&mut Cluster) + Send + 'static) {
        let cluster = Arc::clone(&self.cluster);
        let acting = move || act(&mut cluster.lock().unwrap_or_else(PoisonError::into_inner));
        tokio::task::spawn_blocking(acting).await.expect("the cluster does what it is told");
    }

    /// Another consumer of the log: a stream from a slot of this name, as a second server would hold it.
    ///
    /// # Errors
    /// Why it does not stream.
    pub async fn stream(&self, slot: &str) -> Result<WalStream, StreamError> {
        let url = self.logins().replication_url;
        let login = url.expose().parse().expect("our own URL");
        let config = StreamConfig::new(login, slot, vec![PUBLICATION.into()]);
        WalStream::open(&config, SlotPolicy::Auto, Start::Fresh).await
    }

    /// The process that streams from a slot; waits until there is one.
    pub async fn walsender(&self, slot: &str) -> i32 {
        let sql = format!("select active_pid from pg_replication_slots where slot_name = '{slot}'");
        let ask = || async { self.column::<Option<i32>>(&sql).await.into_iter().next().flatten() };
        eventually("a walsender", ask).await
    }

    /// Ends the session that streams from a slot, as an administrator would, and waits until it is gone.
    pub async fn terminate_walsender(&self, slot: &str) {
        let pid = self.walsender(slot).await;
        self.rows(&format!("select pg_terminate_backend({pid}, 10000)")).await;
    }
}
