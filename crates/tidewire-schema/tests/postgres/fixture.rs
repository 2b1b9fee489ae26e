//! One cluster for the whole binary, one database per test. Roles are shared by all of them.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tidewire_devdb::Cluster;
use tokio_postgres::{AsyncMessage, Client, Config, NoTls};

const ROLES: &str = "
    create role anon nologin noinherit;
    create role authenticated nologin noinherit;
    create role service_role nologin noinherit bypassrls;
    create role supabase_admin nologin noinherit superuser;
    create role dashboard_user nologin noinherit;
    create role builder login password 'secret' createrole;";

fn cluster() -> Arc<Cluster> {
    static CLUSTER: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());
    let mut shared = CLUSTER.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let cluster = Arc::new(Cluster::temporary().expect("a private cluster starts"));
        cluster.run_sql(ROLES).expect("roles are made");
        *shared = Arc::downgrade(&cluster);
        cluster
    })
}

pub(crate) struct Database {
    pub(crate) admin: Client,
    name: String,
    cluster: Arc<Cluster>,
}

impl Database {
    pub(crate) async fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let cluster = tokio::task::spawn_blocking(cluster).await.expect("cluster starts");
        let name = format!("s{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let root: Config = cluster.superuser_url().parse().expect("url");
        let (client, connection) = root.connect(NoTls).await.expect("connects");
        tokio::spawn(connection);
        client.batch_execute(&format!("create database {name}")).await.expect("database");
        let admin = open(root.clone().dbname(&name)).await.0;
        Self { admin, name, cluster }
    }

    /// Another superuser session, and what the server tells it.
    pub(crate) async fn session(&self) -> (Client, Arc<Mutex<Vec<String>>>) {
        let mut config: Config = self.cluster.superuser_url().parse().expect("url");
        open(config.dbname(&self.name)).await
    }

    pub(crate) async fn login(&self, user: &str) -> Client {
        let mut config: Config = self.cluster.url(user, "secret").parse().expect("url");
        open(config.dbname(&self.name)).await.0
    }

    /// The first column of all rows, as text.
    pub(crate) async fn texts(&self, sql: &str) -> Vec<String> {
        texts(&self.admin, sql).await
    }
}

pub(crate) async fn texts(client: &Client, sql: &str) -> Vec<String> {
    let rows = client.query(sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    rows.iter().map(|row| row.get::<_, Option<String>>(0).unwrap_or_else(|| "NULL".to_owned())).collect()
}

async fn open(config: &mut Config) -> (Client, Arc<Mutex<Vec<String>>>) {
    let (client, mut connection) = config.connect(NoTls).await.expect("connects");
    let notices = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&notices);
    tokio::spawn(async move {
        while let Some(Ok(message)) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
            if let AsyncMessage::Notice(notice) = message {
                told.lock().unwrap_or_else(PoisonError::into_inner).push(format!(
                    "{}: {}",
                    notice.severity(),
                    notice.message()
                ));
            }
        }
    });
    (client, notices)
}
