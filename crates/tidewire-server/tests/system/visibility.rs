//! Grants, policies and memberships change while they are applied.
//!
//! Spec: PROTOCOL.md §5.8; DESIGN.md §3 ("Freshness of decisions").

use serde_json::{Value, json};
use tidewire_testkit::{Client, Postgres, TestServer, eventually};
use tokio::task::JoinHandle;

use crate::{all_of, has_id, of_records};

const NOTES: &str = "
    create table notes (id int primary key, owner text, body text);
    alter publication supabase_realtime add table notes;
    create table fence (id int primary key);
    alter publication supabase_realtime add table fence";

/// What has arrived on `realtime:a` before now: a row of another table that everybody sees comes last.
async fn arrived(postgres: &Postgres, client: &mut Client, fence: i64) -> Vec<Value> {
    postgres.sql(&format!("insert into fence values ({fence})")).await;
    client.changes_until("realtime:a", |data| data["table"] == "fence" && has_id(fence)(data)).await
}

fn notes_and_fence() -> Value {
    json!([{"event": "*", "schema": "public", "table": "notes"}, {"event": "*", "schema": "public", "table": "fence"}])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_granted_and_revoked_come_and_go() {
    let postgres = Postgres::start(NOTES).await;
    postgres.sql("revoke all on notes from anon; grant select (id, owner) on notes to anon").await;
    let server = TestServer::start_live(&postgres).await;
    let mut client = server.client("anon").await;
    client.listen("realtime:a", &notes_and_fence()).await;
    let steps = [
        ("select", json!({"id": 0, "owner": "o"}), json!(["id", "owner"])),
        (
            "grant select (body) on notes to anon",
            json!({"id": 1, "owner": "o", "body": "b"}),
            json!(["id", "owner", "body"]),
        ),
        ("revoke select (owner) on notes from anon", json!({"id": 2, "body": "b"}), json!(["id", "body"])),
        (
            "grant select on notes to anon",
            json!({"id": 3, "owner": "o", "body": "b"}),
            json!(["id", "owner", "body"]),
        ),
    ];
    for (id, (sql, record, columns)) in steps.into_iter().enumerate() {
        postgres.sql(&format!("{sql}; insert into notes values ({id}, 'o', 'b')")).await;
        let data = client.change("realtime:a").await["data"].take();
        assert_eq!(data["record"], record, "{sql}");
        let names: Vec<Value> =
            data["columns"].as_array().unwrap().iter().map(|c| c["name"].clone()).collect();
        assert_eq!(json!(names), columns, "{sql}");
    }
    // Without the key there is an error instead of the row (§5.8, point 3).
    postgres.sql("revoke select on notes from anon; grant select (body) on notes to anon").await;
    postgres.sql("insert into notes values (10, 'o', 'b')").await;
    let data = client.change("realtime:a").await["data"].take();
    assert_eq!((&data["record"], &data["errors"]), (&json!({}), &json!(["Error 401: Unauthorized"])));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_count_from_the_change_after_their_commit() {
    let postgres = Postgres::start(NOTES).await;
    let server = TestServer::start_live(&postgres).await;
    let mut client = server.client("anon").await;
    client.listen("realtime:a", &notes_and_fence()).await;
    let steps: [(&str, &[i64]); 7] = [
        ("insert into notes values (1, 'x', '')", &[1]),
        ("alter table notes enable row level security", &[]),
        ("insert into notes values (2, 'x', '')", &[]),
        (
            "create policy p on notes for select using (owner = 'x'); insert into notes values (3, 'x', ''), (4, 'y', '')",
            &[3],
        ),
        (
            "alter policy p on notes using (owner = 'y'); insert into notes values (5, 'x', ''), (6, 'y', '')",
            &[6],
        ),
        (
            "create policy r on notes as restrictive for select using (id > 7); insert into notes values (7, 'y', ''), (8, 'y', '')",
            &[8],
        ),
        ("alter table notes disable row level security; insert into notes values (9, 'z', '')", &[9]),
    ];
    for (fence, (sql, wanted)) in steps.into_iter().enumerate() {
        postgres.sql(sql).await;
        let changes = arrived(&postgres, &mut client, fence as i64).await;
        assert_eq!(json!(of_records(&changes, "id")), json!(wanted), "{sql}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_membership_given_and_taken_counts_for_the_next_change() {
    let postgres = Postgres::start(NOTES).await;
    postgres
        .sql(
            "create role moderators nologin;
             alter role authenticated inherit;
             alter table notes enable row level security;
             create policy p on notes for select to moderators using (true)",
        )
        .await;
    let server = TestServer::start_live(&postgres).await;
    let mut client = server.client("authenticated").await;
    client.listen("realtime:a", &notes_and_fence()).await;
    let steps: [(&str, &[i64]); 5] = [
        ("select", &[]),
        ("grant moderators to authenticated", &[1]),
        ("revoke moderators from authenticated", &[]),
        ("alter role authenticated bypassrls", &[3]),
        ("alter role authenticated nobypassrls", &[]),
    ];
    for (id, (sql, wanted)) in steps.into_iter().enumerate() {
        postgres.sql(sql).await;
        postgres.sql(&format!("insert into notes values ({id}, 'x', '')")).await;
        let changes = arrived(&postgres, &mut client, id as i64).await;
        assert_eq!(json!(of_records(&changes, "id")), json!(wanted), "{sql}");
    }
    server.stop().await;
}

/// A cluster whose commits wait for a standby that does not exist, where the session asks for that.
async fn with_a_deaf_standby() -> Postgres {
    let settings = [("synchronous_standby_names", "nobody"), ("synchronous_commit", "local")];
    Postgres::start_with(&settings, NOTES).await
}

/// Begins a commit that waits for the standby: it is in the stream, and no other session sees it.
async fn held_commit(postgres: &Postgres, sql: &str) -> JoinHandle<()> {
    let session = postgres.session().await;
    session.batch_execute("set synchronous_commit = on").await.expect("the setting");
    let pid: i32 = session.query_one("select pg_backend_pid()", &[]).await.expect("its pid").get(0);
    let sql = sql.to_owned();
    let commit = tokio::spawn(async move { session.batch_execute(&sql).await.expect("the commit ends") });
    let waits =
        format!("select wait_event is not distinct from 'SyncRep' from pg_stat_activity where pid = {pid}");
    eventually("the commit to wait", || async { postgres.value::<bool>(&waits).await.then_some(()) }).await;
    let written: String = postgres.value("select pg_current_wal_lsn()::text").await;
    let sent = format!("select bool_or(sent_lsn >= '{written}') from pg_stat_replication");
    eventually("the stream", || async { postgres.value::<Option<bool>>(&sent).await.filter(|sent| *sent) })
        .await;
    commit
}

async fn release(postgres: &Postgres) {
    postgres.sql("alter system set synchronous_standby_names = ''").await;
    postgres.rows("select pg_reload_conf()").await;
}

/// The log is ahead of what other sessions see. With a standby that does not answer, far ahead: the
/// transaction is in the stream, and the catalogue still shows what was before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_hidden_by_their_own_transaction_stay_hidden_while_nobody_sees_the_transaction() {
    let postgres = with_a_deaf_standby().await;
    let server = TestServer::start_live(&postgres).await;
    let mut client = server.client("anon").await;
    client.listen("realtime:a", &notes_and_fence()).await;
    postgres.sql("insert into notes values (1, 'x', 'open')").await;
    assert_eq!(client.change("realtime:a").await["data"]["record"]["id"], 1);

    let hiding = "alter table notes enable row level security; insert into notes values (2, 'x', 'secret')";
    let commit = held_commit(&postgres, hiding).await;
    // Several of the looks that the server takes at the transaction.
    client.heartbeat().await;
    release(&postgres).await;
    commit.await.unwrap();
    postgres.sql("insert into notes values (3, 'x', 'secret')").await;
    assert_eq!(arrived(&postgres, &mut client, 1).await, Vec::<Value>::new());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_cannot_be_decided_about_in_time_is_a_gap_that_the_channel_is_told_of() {
    let postgres = with_a_deaf_standby().await;
    postgres
        .sql("alter table notes enable row level security; create policy p on notes for select using (true)")
        .await;
    let server = TestServer::start_live(&postgres).await;
    let mut client = server.client("anon").await;
    client.listen("realtime:a", &all_of("notes")).await;
    client.listen("realtime:other", &all_of("fence")).await;
    let commit = held_commit(&postgres, "insert into notes values (1, 'x', '')").await;
    let told = client.failure("realtime:a").await;
    assert!(told.starts_with("TransactionNotVisible: "), "{told}");
    client.subscribed("realtime:a").await;
    release(&postgres).await;
    commit.await.unwrap();
    postgres.sql("insert into notes values (2, 'x', '')").await;
    assert_eq!(client.change("realtime:a").await["data"]["record"]["id"], 2);
    assert!(!client.has_unread("realtime:other", "system"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_is_shown_what_a_query_of_their_own_shows() {
    const USERS: usize = 12;
    let user = |number: usize| format!("00000000-0000-4000-8000-{number:012}");
    let postgres = Postgres::start(
        "create table members (room int, who uuid, primary key (room, who));
         grant select on members to authenticated;
         create table messages (id int primary key, room int, author uuid);
         alter table messages enable row level security;
         create policy m on messages for select to authenticated using (
           author = (select auth.uid()) or exists (select from members where members.room = messages.room and who = auth.uid()));
         create policy a on messages for select to anon using (room = 0);
         alter publication supabase_realtime add table messages",
    )
    .await;
    for number in 0..USERS {
        postgres
            .sql(&format!(
                "insert into members values ({}, '{}'), ({}, '{1}')",
                number % 3,
                user(number),
                3 + number % 4
            ))
            .await;
    }
    let server = TestServer::start_live(&postgres).await;
    let mut clients = Vec::new();
    for number in 0..USERS {
        let mut client = server.user(&user(number)).await;
        client.listen("realtime:a", &all_of("messages")).await;
        clients.push(client);
    }
    let mut anon = server.client("anon").await;
    anon.listen("realtime:a", &all_of("messages")).await;
    let mut service = server.client("service_role").await;
    service.listen("realtime:a", &all_of("messages")).await;
    postgres
        .sql(&format!(
            "insert into messages select n, n % 7, ('00000000-0000-4000-8000-' || lpad((n % {USERS})::text, 12, '0'))::uuid
             from generate_series(1, 300) n"
        ))
        .await;
    // A last one that everybody sees: as its author, in room 0, or through a membership.
    postgres.sql("insert into members select 99, who from members group by who").await;
    postgres.sql("alter policy a on messages using (room in (0, 99)); insert into messages values (1000, 99, null)").await;

    for (number, client) in clients.iter_mut().enumerate() {
        let changes = client.changes_until("realtime:a", has_id(1000)).await;
        let sql = format!(
            "select id from messages where id < 1000 and (author = '{0}' or room in (select room from members where who = '{0}'))
             order by id",
            user(number)
        );
        assert_eq!(
            json!(of_records(&changes, "id")),
            json!(postgres.column::<i32>(&sql).await),
            "user {number}"
        );
    }
    let changes = anon.changes_until("realtime:a", has_id(1000)).await;
    let sql = "select id from messages where room = 0 order by id";
    assert_eq!(json!(of_records(&changes, "id")), json!(postgres.column::<i32>(sql).await));
    let changes = service.changes_until("realtime:a", has_id(1000)).await;
    assert_eq!(changes.len(), 300);
    server.stop().await;
}
