//! The change stream is cut while it serves: nothing is lost, nothing twice; and where something may have
//! been lost, channels are told.
//!
//! Spec: PROTOCOL.md §5.11; DESIGN.md §3.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use serde_json::{Value, json};
use tidewire_devdb::Shutdown;
use tidewire_testkit::postgres::SLOT;
use tidewire_testkit::{Postgres, TestServer, config, eventually, token};
use tokio::task::JoinHandle;

use crate::{GAMES, all_of, has_id, of_records};

/// Larger than any number that the writer reaches.
const LAST: i64 = 1_000_000_000;

/// Inserts 1, 2, 3 … in transactions of growing size, whatever happens to its connection.
struct Writer {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicI32>,
    task: JoinHandle<()>,
}

impl Writer {
    fn start(postgres: &Arc<Postgres>) -> Self {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicI32::new(0)));
        let (postgres, stopped, done) = (Arc::clone(postgres), Arc::clone(&stop), Arc::clone(&written));
        let task = tokio::spawn(async move {
            let mut from = 1;
            let mut size = 1;
            let mut session = postgres.session().await;
            while !stopped.load(Ordering::Relaxed) {
                let to = from + size;
                // What of it was committed before the connection broke is not inserted again.
                let sql = format!(
                    "insert into games select n, 'open' from generate_series({from}, {to} - 1) n on conflict do nothing"
                );
                match session.batch_execute(&sql).await {
                    Ok(()) => {
                        from = to;
                        size = size % 97 + 5;
                        done.store(to - 1, Ordering::Relaxed);
                    }
                    Err(_) => {
                        session =
                            eventually("a session", || async { postgres.try_session().await.ok() }).await;
                    }
                }
            }
        });
        Self { stop, written, task }
    }

    /// Waits until this many more rows are written.
    async fn goes_on(&self) {
        let before = self.written.load(Ordering::Relaxed);
        eventually("more rows", || async {
            (self.written.load(Ordering::Relaxed) > before + 200).then_some(())
        })
        .await;
    }

    /// Ends it and returns the last number.
    async fn finish(self) -> i64 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("the writer ends");
        i64::from(self.written.load(Ordering::Relaxed))
    }
}

fn ids(changes: &[Value]) -> Vec<i64> {
    of_records(changes, "id").iter().map(|id| id.as_i64().expect("an id")).collect()
}

/// What clients hear over three restarts of Postgres, one of them a crash.
async fn over_restarts(sql: &str, bindings: &Value) {
    let postgres = Arc::new(Postgres::start_with(&[("max_prepared_transactions", "5")], GAMES).await);
    postgres.sql(sql).await;
    let server = TestServer::start_live(&postgres).await;
    let mut client = server.client("anon").await;
    client.listen("realtime:a", bindings).await;
    let writer = Writer::start(&postgres);
    let mut prepared = Vec::new();
    for (round, how) in [Shutdown::Fast, Shutdown::Immediate, Shutdown::Fast].into_iter().enumerate() {
        writer.goes_on().await;
        // Open over the restart: one that ends with its session, one that survives and commits later.
        let open = postgres.session().await;
        open.batch_execute("begin; insert into games values (-1, 'open')")
            .await
            .expect("an open transaction");
        let id = -10 - round as i64;
        let preparing =
            format!("begin; insert into games values ({id}, 'open'); prepare transaction 'p{round}'");
        postgres.session().await.batch_execute(&preparing).await.expect("a prepared transaction");
        postgres.restart(how).await;
        server.wait_live().await;
        writer.goes_on().await;
        postgres.sql(&format!("commit prepared 'p{round}'")).await;
        prepared.push(id);
    }
    let last = writer.finish().await;
    postgres.sql(&format!("insert into games values ({LAST}, 'open')")).await;

    let arrived = ids(&client.changes_until("realtime:a", has_id(LAST)).await);
    let (of_writer, of_prepared): (Vec<i64>, Vec<i64>) = arrived.into_iter().partition(|id| *id > 0);
    assert_eq!(of_writer, (1..=last).collect::<Vec<_>>());
    assert_eq!(of_prepared, prepared);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_of_postgres_lose_nothing_and_repeat_nothing() {
    over_restarts("select", &all_of("games")).await;
}

/// What was in the stream when Postgres went down is asked about when it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_lose_nothing_either_where_postgres_has_to_be_asked() {
    let policy = "alter table games enable row level security;
                  create policy p on games for select using (status = 'open' and id <> 0)";
    over_restarts(policy, &crate::filtered("games", "status=ilike.OPEN")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_of_the_authenticator_killed_amid_questions_lose_nothing() {
    let postgres = Arc::new(Postgres::start(GAMES).await);
    postgres
        .sql(
            "alter table games enable row level security;
             create policy p on games for select using (status = 'open')",
        )
        .await;
    let server = TestServer::start_live(&postgres).await;
    let mut client = server.client("anon").await;
    client.listen("realtime:a", &all_of("games")).await;
    let writer = Writer::start(&postgres);
    for _ in 0..15 {
        writer.goes_on().await;
        postgres
            .rows("select pg_terminate_backend(pid, 10000) from pg_stat_activity where usename = 'authenticator'")
            .await;
    }
    let last = writer.finish().await;
    postgres.sql(&format!("insert into games values ({LAST}, 'open')")).await;
    let arrived = ids(&client.changes_until("realtime:a", has_id(LAST)).await);
    assert_eq!(arrived, (1..=last).collect::<Vec<_>>());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_walsender_killed_amid_transactions_loses_nothing_and_repeats_nothing() {
    let postgres = Arc::new(Postgres::start(GAMES).await);
    let mut settings = config(Some(postgres.logins()));
    // On a busy machine the client is slower than the stream; that is not what is looked at here.
    settings.limits.max_outbox_bytes = 1 << 30;
    let server = TestServer::start_with(settings).await;
    server.wait_live().await;
    let mut client = server.client("anon").await;
    client.listen("realtime:a", &all_of("games")).await;
    // It reads all the while: a slow reader would be closed.
    let listening = tokio::spawn(async move {
        let changes = client.changes_until("realtime:a", has_id(LAST)).await;
        (client, changes)
    });
    let writer = Writer::start(&postgres);
    for _ in 0..8 {
        writer.goes_on().await;
        // A transaction much larger than a batch, so that some are cut in two.
        postgres.sql("insert into games select n from generate_series(-3000, -1) n; delete from games where id < 0").await;
        postgres.terminate_walsender(SLOT).await;
    }
    let last = writer.finish().await;
    postgres.sql(&format!("insert into games values ({LAST})")).await;
    let (client, changes) = listening.await.expect("the listener ends");
    let of_writer: Vec<i64> =
        changes.iter().filter_map(|change| change["record"]["id"].as_i64()).filter(|id| *id > 0).collect();
    assert_eq!(of_writer, (1..=last).collect::<Vec<_>>());
    let of_large = |kind: &str, row: &str| -> Vec<i64> {
        let of_kind = changes.iter().filter(|change| change["type"] == kind);
        of_kind.filter_map(|change| change[row]["id"].as_i64()).filter(|id| *id < 0).collect()
    };
    let once: Vec<i64> = (-3000..=-1).collect();
    assert_eq!(of_large("INSERT", "record"), once.repeat(8));
    // A DELETE goes through the table as it lies there.
    let mut deleted = of_large("DELETE", "old_record");
    deleted.chunks_mut(once.len()).for_each(<[i64]>::sort_unstable);
    assert_eq!(deleted, once.repeat(8));
    // Continuity was never in doubt, and the channel was not told otherwise.
    assert!(!client.has_unread("realtime:a", "system"), "{:?}", client.unread());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_dropped_behind_our_back_is_a_new_beginning_that_channels_are_told_of() {
    let postgres = Postgres::start(GAMES).await;
    let server = TestServer::start_live(&postgres).await;
    let mut client = server.client("anon").await;
    client.listen("realtime:a", &all_of("games")).await;
    postgres
        .sql(&format!(
            "do $do$ begin
               for attempt in 1..100 loop
                 perform pg_terminate_backend(active_pid, 10000) from pg_replication_slots
                   where slot_name = '{SLOT}' and active_pid is not null;
                 begin
                   perform pg_drop_replication_slot('{SLOT}');
                   return;
                 exception when object_in_use then null;
                 end;
               end loop;
               raise 'the slot was always in use';
             end $do$"
        ))
        .await;
    client.subscribed("realtime:a").await;
    postgres.sql("insert into games values (1)").await;
    assert_eq!(client.change("realtime:a").await["data"]["record"]["id"], 1);
    assert!(postgres.value::<bool>("select active from pg_replication_slots").await);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_whose_log_was_removed_meanwhile_is_a_new_beginning_that_channels_are_told_of() {
    let postgres = Postgres::start_with(&[("max_slot_wal_keep_size", "1MB")], GAMES).await;
    let server = TestServer::start_live(&postgres).await;
    let mut client = server.client("anon").await;
    client.listen("realtime:a", &all_of("games")).await;
    // The server is locked out while the log grows beyond what is kept for it.
    postgres.sql("alter role tidewire_replication nologin").await;
    postgres.terminate_walsender(SLOT).await;
    eventually("the slot to be lost", || async {
        postgres
            .sql("insert into games values (1) on conflict (id) do update set status = games.status")
            .await;
        postgres.rows("select pg_switch_wal()").await;
        postgres.sql("checkpoint").await;
        postgres.value::<bool>("select wal_status = 'lost' from pg_replication_slots").await.then_some(())
    })
    .await;
    postgres.sql("alter role tidewire_replication login").await;
    let mut told = client.system("realtime:a").await;
    while told.0 == "error" {
        told = client.system("realtime:a").await;
    }
    assert_eq!(told.1, "Subscribed to PostgreSQL");
    postgres.sql("insert into games values (2)").await;
    assert_eq!(ids(&[client.change("realtime:a").await["data"].take()]), [2]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_a_forgotten_slot_could_fill_the_disk_it_is_temporary_and_a_restart_is_told() {
    let postgres = Postgres::start_with(&[("max_slot_wal_keep_size", "-1")], GAMES).await;
    let server = TestServer::start_live(&postgres).await;
    let mut client = server.client("anon").await;
    client.listen("realtime:a", &all_of("games")).await;
    assert!(postgres.value::<bool>("select temporary from pg_replication_slots").await);
    postgres.restart(Shutdown::Fast).await;
    let mut told = client.system("realtime:a").await;
    // On a machine that takes long over the restart, the error comes first.
    if told.0 == "error" {
        told = client.system("realtime:a").await;
    }
    assert_eq!(told, ("ok".into(), "Subscribed to PostgreSQL".into()));
    postgres.sql("insert into games values (1)").await;
    assert_eq!(client.change("realtime:a").await["data"]["record"]["id"], 1);
    server.stop().await;
    // Nothing is left behind that could fill the disk.
    assert_eq!(postgres.value::<i64>("select count(*) from pg_replication_slots").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publication_made_again_before_anybody_needed_it_is_not_noticed() {
    let postgres = Postgres::start(GAMES).await;
    let server = TestServer::start_live(&postgres).await;
    let mut client = server.client("anon").await;
    client.listen("realtime:a", &all_of("games")).await;
    postgres.sql("insert into games values (1)").await;
    postgres
        .sql("drop publication supabase_realtime; create publication supabase_realtime for table games")
        .await;
    postgres.sql("insert into games values (2)").await;
    postgres.sql("insert into games values (3)").await;
    let changes = client.changes_until("realtime:a", has_id(3)).await;
    assert_eq!(ids(&changes), [1, 2]);
    assert!(!client.has_unread("realtime:a", "system"), "{:?}", client.unread());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publication_dropped_while_serving_is_told_and_made_again_it_is_served_again() {
    let postgres = Postgres::start(GAMES).await;
    let server = TestServer::start_live(&postgres).await;
    let mut client = server.client("anon").await;
    client.listen("realtime:a", &all_of("games")).await;
    postgres.sql("drop publication supabase_realtime").await;
    postgres.sql("insert into games values (1)").await;
    let told = client.failure("realtime:a").await;
    assert!(told.starts_with("PublicationMissing: "), "{told}");
    postgres.sql("create publication supabase_realtime for table games").await;
    client.subscribed("realtime:a").await;
    postgres.sql("insert into games values (2)").await;
    assert_eq!(client.change("realtime:a").await["data"]["record"]["id"], 2);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_refreshed_while_the_stream_is_down_counts_when_it_is_back() {
    const ALICE: &str = "11111111-1111-4111-8111-111111111111";
    const BOB: &str = "22222222-2222-4222-8222-222222222222";
    let postgres = Postgres::start(
        "create table notes (id int primary key, owner uuid);
         alter table notes enable row level security;
         create policy own on notes for select using (owner = auth.uid());
         alter publication supabase_realtime add table notes",
    )
    .await;
    let server = TestServer::start_live(&postgres).await;
    let mut client = server.user(ALICE).await;
    client.listen("realtime:a", &all_of("notes")).await;
    postgres.halt(Shutdown::Fast).await;
    server.wait_down("DatabaseUnreachable").await;
    let refresh = json!({"access_token": token::of_user(BOB)});
    client.push(&Value::Null, "realtime:a", "access_token", &refresh).await;
    // Frames of one socket are handled in their order, so after this the token is with the change task.
    client.heartbeat().await;
    postgres.resume().await;
    let mut told = client.system("realtime:a").await;
    while told.0 == "error" {
        told = client.system("realtime:a").await;
    }
    postgres.sql(&format!("insert into notes values (1, '{ALICE}'), (2, '{BOB}')")).await;
    assert_eq!(client.change("realtime:a").await["data"]["record"]["id"], 2);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_altered_while_the_stream_is_down_is_known_as_it_is_now() {
    let postgres = Postgres::start(
        "create table numbers (id int primary key, n int);
         alter publication supabase_realtime add table numbers",
    )
    .await;
    let server = TestServer::start_live(&postgres).await;
    let mut client = server.client("anon").await;
    client.listen("realtime:a", &crate::filtered("numbers", "n=gt.5")).await;
    postgres.sql("insert into numbers values (1, 10)").await;
    assert_eq!(client.change("realtime:a").await["data"]["record"]["n"], 10);
    // One round trip: the server is cut off, and the table altered before it is back.
    postgres
        .sql(&format!(
            "select pg_terminate_backend(active_pid, 10000) from pg_replication_slots where slot_name = '{SLOT}';
             alter table numbers alter column n type text"
        ))
        .await;
    // As text, '10' is not above '5'.
    postgres.sql("insert into numbers values (2, '10'), (3, '9')").await;
    let change = client.change("realtime:a").await;
    assert_eq!(change["data"]["record"], json!({"id": 3, "n": "9"}));
    server.stop().await;
}
