//! One cluster for the whole binary, one database per test, so that tests do not see each other.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tidewire_authz::{Authenticator, AuthenticatorConfig, Identity, RowImage, Table};
use tidewire_devdb::Cluster;
use tokio_postgres::{Client, Config, NoTls};

/// Roles as a Supabase project has them, a login for us, and one role that is only reachable through another.
const ROLES: &str = "
    create role anon nologin noinherit;
    create role authenticated nologin noinherit;
    create role service_role nologin noinherit bypassrls;
    create role moderators nologin;
    create role editor nologin inherit in role moderators;
    create role assumer nologin noinherit in role moderators;
    create role owner_role nologin;
    create role outsider nologin;
    create role authenticator login password 'secret' nosuperuser noreplication nobypassrls noinherit;
    grant anon, authenticated, service_role, editor, assumer, owner_role, outsider to authenticator;
    create role inheriting login password 'secret' inherit;
    create role bypassing login password 'secret' noinherit bypassrls;";

/// The helpers that policies of such projects use.
const AUTH: &str = "
    revoke all on schema public from public;
    grant usage on schema public to anon, authenticated, service_role, editor, assumer, owner_role;
    create schema auth;
    grant usage on schema auth to anon, authenticated, service_role, editor, assumer, owner_role;
    create function auth.uid() returns uuid language sql stable as
        $$ select coalesce(nullif(current_setting('request.jwt.claim.sub', true), ''),
                           nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::uuid $$;
    create function auth.role() returns text language sql stable as
        $$ select current_setting('request.jwt.claim.role', true) $$;
    create function auth.jwt() returns jsonb language sql stable as
        $$ select nullif(current_setting('request.jwt.claims', true), '')::jsonb $$;";

pub(crate) const ALLOWED: [&str; 7] =
    ["anon", "authenticated", "service_role", "editor", "assumer", "owner_role", "outsider"];

/// Shared by the tests that run at the same time, gone with the last of them.
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
    name: String,
    pub(crate) admin: Client,
    /// Logged in as the authenticator, to ask what an identity sees without the code under test.
    plain: Client,
    cluster: Arc<Cluster>,
}

async fn connect(config: &Config) -> Client {
    let (client, connection) = config.connect(NoTls).await.expect("connects");
    tokio::spawn(connection);
    client
}

impl Database {
    pub(crate) async fn new(sql: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // Starting the cluster blocks.
        let cluster = tokio::task::spawn_blocking(cluster).await.expect("cluster starts");
        let name = format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let root: Config = cluster.superuser_url().parse().expect("url");
        connect(&root).await.batch_execute(&format!("create database {name}")).await.expect("database");
        let mut config = root;
        config.dbname(&name);
        let admin = connect(&config).await;
        admin.batch_execute(AUTH).await.expect("auth schema");
        admin.batch_execute(sql).await.expect("test schema");
        let mut config: Config = cluster.url("authenticator", "secret").parse().expect("url");
        let plain = connect(config.dbname(&name)).await;
        plain.batch_execute("set search_path = public").await.expect("search path");
        Self { name, admin, plain, cluster }
    }

    /// Another superuser session.
    pub(crate) async fn session(&self) -> Client {
        let mut config: Config = self.cluster.superuser_url().parse().expect("url");
        config.dbname(&self.name);
        connect(&config).await
    }

    pub(crate) fn login(&self, user: &str) -> Config {
        let mut config: Config = self.cluster.url(user, "secret").parse().expect("url");
        config.dbname(&self.name);
        config
    }

    pub(crate) fn authenticator_as(&self, login: &str, pool_size: usize) -> Authenticator {
        Authenticator::new(AuthenticatorConfig {
            postgres: self.login(login),
            pool_size,
            search_path: "public".to_owned(),
            statement_timeout: Duration::from_secs(2),
            roles: ALLOWED.iter().map(|role| (*role).to_owned()).collect(),
        })
    }

    pub(crate) fn authenticator(&self, pool_size: usize) -> Authenticator {
        self.authenticator_as("authenticator", pool_size)
    }

    pub(crate) async fn relid(&self, name: &str) -> u32 {
        let row =
            self.admin.query_one("select $1::text::regclass::oid", &[&name]).await.expect("table exists");
        row.get(0)
    }

    pub(crate) async fn table(&self, authenticator: &Authenticator, name: &str) -> Table {
        authenticator.table(self.relid(name).await).await.expect("table is read")
    }

    /// The images of all rows that the superuser sees, in the order of the key, as the stream would show them.
    pub(crate) async fn images(&self, table: &Table) -> Vec<RowImage> {
        let columns: Vec<_> = table.columns.iter().filter(|column| !column.generated).collect();
        let pairs: Vec<_> = columns
            .iter()
            .map(|column| {
                let name = ident(&column.name);
                let is_json = ["json", "jsonb"].contains(&column.type_name.as_str());
                // The text that the type's output function makes.
                let text = if is_json {
                    format!("{name}::text")
                } else {
                    format!("to_json(format('%s', {name}))::text")
                };
                let value = format!("case when {name} is distinct from null then {text} else 'null' end");
                format!("to_json({}::text)::text || ':' || {value}", quote(&column.name))
            })
            .collect();
        let key: Vec<_> =
            columns.iter().filter(|column| column.is_primary_key).map(|c| c.name.clone()).collect();
        let sql = format!(
            "select '{{' || concat_ws(',', {}) || '}}' from {}.{} order by {}",
            pairs.join(", "),
            ident(&table.schema),
            ident(&table.name),
            key.iter().map(|name| ident(name)).collect::<Vec<_>>().join(", "),
        );
        let rows = self.admin.query(&sql, &[]).await.expect("images");
        rows.iter().map(|row| RowImage { json: row.get(0) }).collect()
    }

    /// What the identity itself sees, asked as PostgREST would: for each row in the order of the key, whether it is
    /// there. `None`: the query failed.
    pub(crate) async fn selects(
        &self,
        table: &Table,
        identity: &Identity,
        count: &[String],
    ) -> Option<Vec<bool>> {
        let key: Vec<_> = table.columns.iter().filter(|column| column.is_primary_key).collect();
        let key_sql: Vec<_> = key.iter().map(|column| format!("{}::text", ident(&column.name))).collect();
        self.become_identity(identity).await;
        let sql = format!(
            "select concat_ws('/', {}) from {}.{}",
            key_sql.join(", "),
            ident(&table.schema),
            ident(&table.name)
        );
        let rows = self.plain.query(&sql, &[]).await.ok()?;
        let seen: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        Some(count.iter().map(|key| seen.contains(key)).collect())
    }

    /// Like [`selects`](Self::selects) where a query for all rows fails: each row asked for by itself.
    pub(crate) async fn selects_one_by_one(
        &self,
        table: &Table,
        identity: &Identity,
        ids: &[String],
    ) -> Vec<bool> {
        let mut seen = Vec::new();
        for id in ids {
            let only = format!("{}.{} where id = {id}", ident(&table.schema), ident(&table.name));
            seen.push(self.identity_sees_any(identity, &only).await);
        }
        seen
    }

    async fn identity_sees_any(&self, identity: &Identity, from: &str) -> bool {
        self.become_identity(identity).await;
        self.plain.query(&format!("select id from {from}"), &[]).await.is_ok_and(|rows| !rows.is_empty())
    }

    async fn become_identity(&self, identity: &Identity) {
        self.plain.batch_execute("rollback; begin read only").await.expect("begin");
        let sub = identity.sub.clone().unwrap_or_default();
        self.plain
            .query(
                "select set_config('request.jwt.claims', $2, true), set_config('request.jwt.claim.sub', $3, true),
                        set_config('request.jwt.claim.role', $1, true), set_config('role', $1, true)",
                &[&identity.role, &identity.claims_json, &sub],
            )
            .await
            .expect("identity is set");
    }
}

/// The text of column `id` of each image.
pub(crate) fn keys(images: &[RowImage]) -> Vec<String> {
    let id = |image: &RowImage| {
        let object: serde_json::Value = serde_json::from_str(&image.json).expect("an object");
        object["id"].as_str().expect("every image has its id").to_owned()
    };
    images.iter().map(id).collect()
}

pub(crate) fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

pub(crate) fn user(number: u32) -> String {
    format!("00000000-0000-4000-8000-{number:012}")
}

pub(crate) fn identity(role: &str, sub: Option<&str>, more: &str) -> Arc<Identity> {
    let sub_json = sub.map(|sub| format!(r#","sub":"{sub}""#)).unwrap_or_default();
    Arc::new(Identity {
        role: role.to_owned(),
        claims_json: format!(r#"{{"role":"{role}","exp":4000000000{sub_json}{more}}}"#),
        sub: sub.map(str::to_owned),
        exp: 4_000_000_000,
    })
}

pub(crate) fn member(number: u32) -> Arc<Identity> {
    identity("authenticated", Some(&user(number)), "")
}
