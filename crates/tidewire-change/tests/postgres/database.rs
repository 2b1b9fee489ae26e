//! A private cluster and one session on it.

use tidewire_devdb::Cluster;
use tokio::runtime::Runtime;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

pub(crate) struct Database {
    runtime: Runtime,
    client: Client,
    // Dropped last: the session ends before the server.
    _cluster: Cluster,
}

/// One row of text output, NULL as `None`.
pub(crate) type Row = Vec<Option<String>>;

impl Database {
    pub(crate) fn start() -> Database {
        let cluster = Cluster::temporary().expect("a private PostgreSQL");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let client = runtime.block_on(async {
            let (client, connection) =
                tokio_postgres::connect(&cluster.superuser_url(), NoTls).await.unwrap();
            tokio::spawn(connection);
            client
        });
        let database = Database { runtime, client, _cluster: cluster };
        // The settings the replication session fixes.
        database.run("set datestyle = 'ISO'; set timezone = 'UTC'; set intervalstyle = 'postgres'");
        database
            .run("set bytea_output = 'hex'; set extra_float_digits = 1; set client_min_messages = 'error'");
        database
    }

    pub(crate) fn run(&self, sql: &str) {
        self.try_rows(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    pub(crate) fn rows(&self, sql: &str) -> Vec<Row> {
        self.try_rows(sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    pub(crate) fn try_rows(&self, sql: &str) -> Result<Vec<Row>, String> {
        let messages = self.runtime.block_on(self.client.simple_query(sql)).map_err(|error| {
            error
                .as_db_error()
                .map_or_else(|| error.to_string(), |db| format!("{}: {}", db.code().code(), db.message()))
        })?;
        let row = |message| match message {
            SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect())
            }
            _ => None,
        };
        Ok(messages.into_iter().filter_map(row).collect())
    }
}
