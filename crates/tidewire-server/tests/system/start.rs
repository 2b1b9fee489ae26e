//! What the database may lack when the server starts: clients are told why, and it mends itself.
//!
//! Spec: PROTOCOL.md §5.10, §9.1.

use serde_json::{Value, json};
use tidewire_devdb::Shutdown;
use tidewire_server::config::Secret;
use tidewire_testkit::postgres::SLOT;
use tidewire_testkit::{Client, Postgres, TestServer, config};

use crate::{GAMES, all_of};

/// A server whose change stream cannot start, a client that was there before that was known, and one that
/// comes later: both are told.
struct Refused {
    server: TestServer,
    early: Client,
    late: Client,
}

impl Refused {
    async fn start(postgres: &Postgres, code: &str) -> Self {
        Self::start_with(TestServer::start(postgres).await, code).await
    }

    async fn start_with(server: TestServer, code: &str) -> Self {
        let mut early = server.client("anon").await;
        // The join itself does not depend on the database (§5.10).
        early.join_changes("realtime:early", &all_of("games")).await;
        server.wait_down(code).await;
        let told = early.failure("realtime:early").await;
        assert!(told.starts_with(&format!("{code}: ")), "{told}");

        let mut late = server.client("anon").await;
        late.join_changes("realtime:late", &all_of("games")).await;
        assert_eq!(late.failure("realtime:late").await, told);
        Self { server, early, late }
    }

    /// Both clients are told that it works now, and it does.
    async fn recovers(mut self, postgres: &Postgres) {
        self.early.subscribed("realtime:early").await;
        self.late.subscribed("realtime:late").await;
        postgres.sql("insert into games values (1, 'open')").await;
        let row = json!({"id": 1, "status": "open"});
        assert_eq!(self.early.change("realtime:early").await["data"]["record"], row);
        assert_eq!(self.late.change("realtime:late").await["data"]["record"], row);
        self.server.stop().await;
    }
}

async fn refused_until(postgres: &Postgres, broken_by: &str, code: &str, mended_by: &str) {
    postgres.sql(broken_by).await;
    let refused = Refused::start(postgres, code).await;
    postgres.sql(mended_by).await;
    refused.recovers(postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_publication_is_told_and_changes_flow_once_it_is_made() {
    let postgres = Postgres::start(GAMES).await;
    refused_until(
        &postgres,
        "drop publication supabase_realtime",
        "PublicationMissing",
        "create publication supabase_realtime for table games",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_not_logical_is_told_and_changes_flow_after_the_restart_that_mends_it() {
    let postgres = Postgres::start_with(&[("wal_level", "replica")], GAMES).await;
    let refused = Refused::start(&postgres, "WalLevelNotLogical").await;
    postgres.sql("alter system set wal_level = 'logical'").await;
    postgres.restart(Shutdown::Fast).await;
    refused.recovers(&postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_may_not_replicate_is_told_until_it_may() {
    let postgres = Postgres::start(GAMES).await;
    refused_until(
        &postgres,
        "alter role tidewire_replication noreplication",
        "ReplicationPrivilegeMissing",
        "alter role tidewire_replication replication",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_told_without_being_shown_and_a_corrected_one_is_found() {
    let postgres = Postgres::start(GAMES).await;
    let mut database = postgres.logins();
    let url = database.replication_url.expose().replacen("b1b1b1b1", "c2c2c2c2", 1);
    database.replication_url = Secret::new(url);
    let server = TestServer::start_with(config(Some(database))).await;
    let mut client = server.client("anon").await;
    client.join_changes("realtime:early", &all_of("games")).await;
    let told = client.failure("realtime:early").await;
    assert!(told.starts_with("DatabaseAuthenticationFailed: "), "{told}");
    assert!(!told.contains("c2c2c2c2") && !told.contains("postgres://"), "{told}");
    postgres.sql("alter role tidewire_replication password 'c2c2c2c2'").await;
    client.subscribed("realtime:early").await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exhausted_slots_are_told_until_one_is_free() {
    let postgres = Postgres::start_with(&[("max_replication_slots", "1")], GAMES).await;
    refused_until(
        &postgres,
        "select pg_create_logical_replication_slot('other', 'pgoutput')",
        "ReplicationSlotsExhausted",
        "select pg_drop_replication_slot('other')",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exhausted_wal_senders_are_told_until_one_is_free() {
    let postgres = Postgres::start_with(&[("max_wal_senders", "1")], GAMES).await;
    let other = postgres.stream("other").await.expect("the first consumer streams");
    let refused = Refused::start(&postgres, "WalSendersExhausted").await;
    other.close().await;
    refused.recovers(&postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_another_server_uses_is_left_alone_until_it_is_free() {
    let postgres = Postgres::start(GAMES).await;
    let other = postgres.stream(SLOT).await.expect("the first server streams");
    let holder = postgres.walsender(SLOT).await;
    let refused = Refused::start(&postgres, "ReplicationSlotInUse").await;
    assert_eq!(postgres.walsender(SLOT).await, holder, "the other server was disturbed");
    other.close().await;
    refused.recovers(&postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_that_is_down_is_told_and_found_once_it_is_up() {
    let postgres = Postgres::start(GAMES).await;
    postgres.halt(Shutdown::Fast).await;
    let refused = Refused::start(&postgres, "DatabaseUnreachable").await;
    postgres.resume().await;
    refused.recovers(&postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_database_bindings_are_refused_and_the_rest_works() {
    let server = TestServer::start_with(config(None)).await;
    let mut client = server.client("anon").await;
    client.join_changes("realtime:a", &all_of("games")).await;
    assert!(client.failure("realtime:a").await.starts_with("UnableToSubscribeToPostgres: "));
    let payload = json!({"config": {"broadcast": {"self": true}}});
    client.join("realtime:b", &payload).await;
    let broadcast = json!({"type": "broadcast", "event": "shout", "payload": {"n": 1}});
    client.push(&json!(null), "realtime:b", "broadcast", &broadcast).await;
    let heard = client.expect("the broadcast", |frame| frame.event == "broadcast").await;
    assert_eq!(heard.payload["payload"], json!({"n": 1}));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authenticator_with_rights_of_its_own_is_told_and_shown_nothing_until_it_has_none() {
    let postgres = Postgres::start(
        "create table secrets (id int primary key);
         alter table secrets enable row level security;
         create table fence (id int primary key);
         alter publication supabase_realtime add table secrets, fence;
         alter role authenticator superuser",
    )
    .await;
    let server = TestServer::start_live(&postgres).await;
    let mut client = server.client("anon").await;
    client.join_changes("realtime:a", &json!([{"event": "*", "schema": "public"}])).await;
    let told = client.failure("realtime:a").await;
    assert!(told.starts_with("AuthenticatorUnsafe: "), "{told}");
    assert!(told.contains("superuser"), "{told}");
    postgres.sql("insert into secrets values (1)").await;

    postgres.sql("alter role authenticator nosuperuser").await;
    let mut told = client.system("realtime:a").await;
    while told.0 == "error" {
        assert!(told.1.starts_with("AuthenticatorUnsafe: "), "{told:?}");
        told = client.system("realtime:a").await;
    }
    assert_eq!(told.1, "Subscribed to PostgreSQL");
    // Row-level security without a policy: still nothing; then something everybody may see.
    postgres.sql("insert into secrets values (2)").await;
    postgres.sql("insert into fence values (1)").await;
    let shown = client.changes_until("realtime:a", |data| data["table"] == "fence").await;
    assert_eq!(shown, Vec::<Value>::new());
    postgres.sql("create policy everybody on secrets for select using (true)").await;
    postgres.sql("insert into secrets values (3)").await;
    assert_eq!(client.change("realtime:a").await["data"]["record"], json!({"id": 3}));
    server.stop().await;
}
