//! Tables change while they are listened to.
//!
//! Spec: PROTOCOL.md §5.2, §5.6, §5.7, §5.11.

use std::time::Instant;

use serde_json::{Value, json};
use tidewire_testkit::{Postgres, TestServer};

use crate::{GAMES, all_of, filtered, has_id};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_published_after_a_wide_subscription_arrives_from_its_first_change() {
    let postgres = Postgres::start(GAMES).await;
    postgres
        .sql("create table scenes (id int primary key); alter publication supabase_realtime add table scenes")
        .await;
    let server = TestServer::start_live(&postgres).await;
    let mut client = server.client("anon").await;
    client.listen("realtime:schema", &json!([{"event": "*", "schema": "public"}])).await;
    client.listen("realtime:star", &all_of("*")).await;
    client.listen("realtime:like", &all_of("sc%")).await;
    client.listen("realtime:exact", &all_of("games")).await;
    // The stream knows the other table already.
    postgres.sql("insert into games values (1)").await;
    postgres
        .sql(
            "create table scores (id int primary key);
             create table hidden (id int primary key);
             alter publication supabase_realtime add table scores",
        )
        .await;
    postgres
        .sql("insert into hidden values (1); insert into scores values (2); insert into games values (3)")
        .await;
    for (topic, wanted) in [
        ("realtime:schema", vec![("games", 1), ("scores", 2)]),
        ("realtime:star", vec![("games", 1), ("scores", 2)]),
        ("realtime:exact", vec![("games", 1)]),
    ] {
        let changes = client.changes_until(topic, has_id(3)).await;
        let seen: Vec<_> = changes
            .iter()
            .map(|change| (change["table"].as_str().unwrap(), change["record"]["id"].as_i64().unwrap()))
            .collect();
        assert_eq!(seen, wanted, "{topic}");
    }
    assert_eq!(client.change("realtime:like").await["data"]["table"], "scores");
    assert!(!client.has_unread("realtime:like", "postgres_changes"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_published_while_a_wide_binding_is_checked_is_not_missed() {
    let postgres = Postgres::start(GAMES).await;
    let server = TestServer::start_live(&postgres).await;
    let mut client = server.client("anon").await;
    for round in 0..30 {
        let publish = format!(
            "create table t{round} (id int primary key);
             alter publication supabase_realtime add table t{round};"
        );
        let (topic, binding) = (format!("realtime:{round}"), json!([{"event": "*", "schema": "public"}]));
        // The first change, in which the stream names the table, falls before, into and behind the check.
        let publishing = async {
            postgres.sql(&publish).await;
            postgres.sql(&format!("insert into t{round} values (1)")).await;
        };
        tokio::join!(publishing, client.listen(&topic, &binding));
        postgres.sql(&format!("insert into t{round} values (2)")).await;
        let table = format!("t{round}");
        client.changes_until(&topic, |data| data["table"] == table.as_str() && has_id(2)(data)).await;
        client.leave(&topic).await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_dropped_and_made_again_under_its_name_is_listened_to_again() {
    let postgres = Postgres::start(
        "create table scores (id int primary key); alter publication supabase_realtime add table scores",
    )
    .await;
    let server = TestServer::start_live(&postgres).await;
    let mut client = server.client("anon").await;
    client.listen("realtime:a", &all_of("scores")).await;
    postgres.sql("insert into scores values (1)").await;
    assert_eq!(client.change("realtime:a").await["data"]["record"], json!({"id": 1}));
    postgres
        .sql(
            "drop table scores;
             create table scores (id int primary key, points int);
             alter publication supabase_realtime add table scores",
        )
        .await;
    postgres.sql("insert into scores values (2, 20)").await;
    assert_eq!(client.change("realtime:a").await["data"]["record"], json!({"id": 2, "points": 20}));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_dropped_right_after_its_change_holds_up_nobody() {
    let postgres = Postgres::start(GAMES).await;
    let server = TestServer::start_live(&postgres).await;
    let mut client = server.client("anon").await;
    client.listen("realtime:games", &all_of("games")).await;
    for (round, (made, filter, is_known)) in [
        ("select", "id=gt.0", false),
        ("select", "id=gt.0", true),
        ("select", "body=ilike.X", true),
        (
            "alter table t enable row level security; create policy p on t for select using (id > 0)",
            "id=gt.0",
            true,
        ),
    ]
    .into_iter()
    .enumerate()
    {
        postgres
            .sql(&format!(
                "create table t (id int primary key, body text); alter publication supabase_realtime add table t; {made}"
            ))
            .await;
        let topic = format!("realtime:{round}");
        client.listen(&topic, &filtered("t", filter)).await;
        if is_known {
            postgres.sql("insert into t values (1, 'x')").await;
            client.change(&topic).await;
        }
        let began = Instant::now();
        // When the log has this transaction, the table is gone for everybody who asks.
        postgres.sql("insert into t values (2, 'x'); drop table t").await;
        postgres.sql(&format!("insert into games values ({round})")).await;
        assert_eq!(client.change("realtime:games").await["data"]["record"]["id"], round);
        // Below what an unanswered question is waited for.
        assert!(began.elapsed().as_secs() < 5, "round {round}: {:?}", began.elapsed());
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_added_dropped_renamed_and_retyped_show_from_the_next_change_on() {
    let postgres = Postgres::start(
        "create table games (id int primary key, status text, n int);
         alter publication supabase_realtime add table games",
    )
    .await;
    let server = TestServer::start_live(&postgres).await;
    let mut client = server.client("anon").await;
    client.listen("realtime:a", &all_of("games")).await;
    let mut next = async |sql: &str| -> (Value, Vec<String>) {
        postgres.sql(sql).await;
        let data = client.change("realtime:a").await["data"].take();
        let columns = data["columns"].as_array().unwrap();
        let columns = columns
            .iter()
            .map(|c| format!("{}:{}", c["name"].as_str().unwrap(), c["type"].as_str().unwrap()));
        (data["record"].clone(), columns.collect())
    };
    let (record, columns) = next("insert into games values (1, 'a', 5)").await;
    assert_eq!(record, json!({"id": 1, "status": "a", "n": 5}));
    assert_eq!(columns, ["id:int4", "status:text", "n:int4"]);

    next("alter table games add column level int default 7; insert into games values (2, 'b', 6)").await;
    let (record, columns) = next("insert into games values (3, 'c', 7)").await;
    assert_eq!(record, json!({"id": 3, "status": "c", "n": 7, "level": 7}));
    assert_eq!(columns, ["id:int4", "status:text", "n:int4", "level:int4"]);

    postgres.sql("alter table games rename column status to state").await;
    let (record, _) = next("insert into games values (4, 'd', 8)").await;
    assert_eq!(record, json!({"id": 4, "state": "d", "n": 8, "level": 7}));

    postgres.sql("alter table games drop column level").await;
    let (record, columns) = next("insert into games values (5, 'e', 9)").await;
    assert_eq!(record, json!({"id": 5, "state": "e", "n": 9}));
    assert_eq!(columns, ["id:int4", "state:text", "n:int4"]);

    postgres.sql("alter table games alter column n type jsonb using to_jsonb(n)").await;
    let (record, columns) = next("insert into games values (6, 'f', '{\"x\": [1]}')").await;
    assert_eq!(record, json!({"id": 6, "state": "f", "n": {"x": [1]}}));
    assert_eq!(columns, ["id:int4", "state:text", "n:jsonb"]);

    postgres.sql("alter table games rename to matches").await;
    postgres.sql("insert into matches values (7, 'g', '1')").await;
    let data = client.change("realtime:a").await["data"].take();
    assert_eq!((&data["table"], &data["record"]["id"]), (&json!("matches"), &json!(7)));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_follow_a_retyped_column_and_end_with_a_dropped_one() {
    let postgres = Postgres::start(
        "create table games (id int primary key, n int);
         alter publication supabase_realtime add table games",
    )
    .await;
    let server = TestServer::start_live(&postgres).await;
    let mut client = server.client("anon").await;
    client.listen("realtime:n", &filtered("games", "n=gt.5")).await;
    client.listen("realtime:all", &all_of("games")).await;
    postgres.sql("insert into games values (1, 4), (2, 10)").await;
    postgres.sql("alter table games alter column n type text").await;
    // As text, '10' is not above '5'.
    postgres.sql("insert into games values (3, '10'), (4, '9')").await;
    assert_eq!(client.change("realtime:n").await["data"]["record"]["id"], 2);
    assert_eq!(client.change("realtime:n").await["data"]["record"]["id"], 4);

    postgres.sql("alter table games drop column n").await;
    postgres.sql("insert into games values (5)").await;
    let told = client.failure("realtime:n").await;
    assert!(told.ends_with("ERROR P0001 (raise_exception) invalid column for filter n"), "{told}");
    client.changes_until("realtime:all", has_id(5)).await;
    assert!(!client.has_unread("realtime:n", "postgres_changes"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switched_replica_identity_shows_in_the_next_old_record() {
    let postgres = Postgres::start(
        "create table games (id int primary key, status text not null, n int);
         create unique index by_status on games (status);
         alter publication supabase_realtime add table games;
         insert into games values (1, 'a', 1)",
    )
    .await;
    let server = TestServer::start_live(&postgres).await;
    let mut client = server.client("anon").await;
    client.listen("realtime:a", &all_of("games")).await;
    for (identity, wanted) in [
        ("default", json!({"id": 1})),
        ("full", json!({"id": 1, "status": "a", "n": 1})),
        ("using index by_status", json!({"status": "a"})),
        ("default", json!({"id": 1})),
    ] {
        postgres.sql(&format!("alter table games replica identity {identity}")).await;
        postgres.sql("update games set n = 1").await;
        let data = client.change("realtime:a").await["data"].take();
        assert_eq!(data["old_record"], wanted, "{identity}");
        assert_eq!(data["record"], json!({"id": 1, "status": "a", "n": 1}));
    }
    postgres.sql("alter table games replica identity full; update games set id = 2; delete from games").await;
    let updated = client.change("realtime:a").await["data"].take();
    assert_eq!(updated["old_record"], json!({"id": 1, "status": "a", "n": 1}));
    assert_eq!(updated["record"]["id"], 2);
    let deleted = client.change("realtime:a").await["data"].take();
    assert_eq!(deleted["old_record"], json!({"id": 2, "status": "a", "n": 1}));
    assert_eq!(deleted.get("record"), None);
    server.stop().await;
}
