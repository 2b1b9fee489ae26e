//! Rows and tables of every kind, as they arrive.
//!
//! Spec: PROTOCOL.md §5.2, §5.7–5.9.

use serde_json::{Value, json};
use tidewire_testkit::{Postgres, TestServer, config};

use crate::{all_of, has_id, of_records};

/// Text that does not compress below the size at which Postgres moves it out of the row.
const LARGE: &str = "(select string_agg(md5(n::text), '') from generate_series(1, 300) n)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_value_that_did_not_change_is_left_out_or_taken_from_the_old_row() {
    let postgres = Postgres::start(&format!(
        "create table by_key (id int primary key, big text, n int);
         create table by_row (id int primary key, big text, n int);
         alter table by_row replica identity full;
         alter publication supabase_realtime add table by_key, by_row;
         insert into by_key values (1, {LARGE}, 0); insert into by_row values (1, {LARGE}, 0)"
    ))
    .await;
    let server = TestServer::start_live(&postgres).await;
    let mut client = server.client("anon").await;
    client.listen("realtime:key", &all_of("by_key")).await;
    client.listen("realtime:row", &all_of("by_row")).await;
    client.listen("realtime:seen", &crate::filtered("by_row", "big=like.c4ca4238%")).await;
    client.listen("realtime:unseen", &crate::filtered("by_key", "big=like.c4ca4238%")).await;
    let large: String = postgres.value("select big from by_key").await;

    postgres.sql("update by_key set n = 1; update by_row set n = 1").await;
    let data = client.change("realtime:key").await["data"].take();
    assert_eq!(data["record"], json!({"id": 1, "n": 1}));
    assert_eq!(data["columns"].as_array().unwrap().len(), 3);
    let data = client.change("realtime:row").await["data"].take();
    assert_eq!(data["record"], json!({"id": 1, "big": large, "n": 1}));
    assert_eq!(data["old_record"], json!({"id": 1, "big": large, "n": 0}));
    assert_eq!(client.change("realtime:seen").await["data"]["record"]["n"], 1);

    postgres.sql("update by_key set big = big || 'x', n = 2").await;
    assert_eq!(client.change("realtime:key").await["data"]["record"]["big"], format!("{large}x"));
    // A condition on a value that is not there fails; the first to match is the second update.
    assert_eq!(client.change("realtime:unseen").await["data"]["record"]["n"], 2);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_arrive_under_the_name_that_the_publication_gives_them() {
    let partitioned = |name: &str| {
        format!(
            "create table {name} (id int, at int, primary key (id, at)) partition by range (at);
             create table {name}_low partition of {name} for values from (0) to (10);
             create table {name}_high (at int, extra text, id int, primary key (id, at));
             alter table {name}_high drop column extra;
             alter table {name} attach partition {name}_high for values from (10) to (20);"
        )
    };
    let sql = format!("{}{}", partitioned("logs"), partitioned("parts"));
    let postgres = Postgres::start(&sql).await;
    postgres.sql("alter publication supabase_realtime add table parts").await;
    let server = TestServer::start_live(&postgres).await;
    let mut client = server.client("anon").await;
    client.listen("realtime:low", &all_of("parts_low")).await;
    client.listen("realtime:high", &all_of("parts_high")).await;
    postgres.sql("insert into parts values (1, 5), (2, 15); update parts set at = 16 where id = 1").await;
    let data = client.change("realtime:low").await["data"].take();
    assert_eq!((&data["table"], &data["record"]), (&json!("parts_low"), &json!({"id": 1, "at": 5})));
    let data = client.change("realtime:high").await["data"].take();
    assert_eq!((&data["table"], &data["record"]), (&json!("parts_high"), &json!({"id": 2, "at": 15})));
    // Moved from one to the other: a delete there and an insert here.
    let data = client.change("realtime:low").await["data"].take();
    assert_eq!((&data["type"], &data["old_record"]), (&json!("DELETE"), &json!({"id": 1, "at": 5})));
    let data = client.change("realtime:high").await["data"].take();
    assert_eq!((&data["type"], &data["record"]), (&json!("INSERT"), &json!({"id": 1, "at": 16})));
    // The partitioned table itself is not in the publication under this setting.
    client.join_changes("realtime:root", &all_of("parts")).await;
    assert!(client.failure("realtime:root").await.starts_with("Unable to subscribe"));
    server.stop().await;

    postgres.sql("alter publication supabase_realtime set (publish_via_partition_root = true)").await;
    let server = TestServer::start_live(&postgres).await;
    let mut client = server.client("anon").await;
    client.listen("realtime:root", &all_of("parts")).await;
    client.join_changes("realtime:leaf", &all_of("parts_low")).await;
    assert!(client.failure("realtime:leaf").await.starts_with("Unable to subscribe"));
    postgres.sql("insert into parts values (3, 7), (4, 17)").await;
    for wanted in [json!({"id": 3, "at": 7}), json!({"id": 4, "at": 17})] {
        let data = client.change("realtime:root").await["data"].take();
        assert_eq!((&data["table"], &data["record"]), (&json!("parts"), &wanted));
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_and_columns_that_the_publication_leaves_out_do_not_arrive() {
    let postgres = Postgres::start(
        "create table games (id int primary key, status text, secret text);
         alter publication supabase_realtime add table games (id, status) where (id > 0)",
    )
    .await;
    let server = TestServer::start_live(&postgres).await;
    let mut client = server.client("anon").await;
    client.listen("realtime:a", &all_of("games")).await;
    postgres
        .sql(
            "insert into games values (-1, 'a', 's'), (1, 'b', 's');
             update games set id = 2 where id = -1; update games set id = -1 where id = 1;
             truncate games; insert into games values (3)",
        )
        .await;
    let changes = client.changes_until("realtime:a", has_id(3)).await;
    let seen: Vec<_> =
        changes.iter().map(|data| json!([data["type"], data["record"], data["old_record"]])).collect();
    // Postgres itself turns what comes in into an INSERT and what goes out into a DELETE.
    let wanted = [
        json!(["INSERT", {"id": 1, "status": "b"}, null]),
        json!(["INSERT", {"id": 2, "status": "a"}, null]),
        json!(["DELETE", null, {"id": 1}]),
    ];
    assert_eq!(seen, wanted);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_names_and_generated_columns_are_taken_as_they_are() {
    let postgres = Postgres::start(
        r#"create schema "Odd ""Schema""";
         grant usage on schema "Odd ""Schema""" to anon;
         create table "Odd ""Schema"""."My Täble.x" (
           "Id" int primary key, "a""b" text, "select" int, "sp ace.d" text,
           "twice" int generated always as ("select" * 2) stored);
         grant all on "Odd ""Schema"""."My Täble.x" to anon;
         alter table "Odd ""Schema"""."My Täble.x" enable row level security;
         create policy p on "Odd ""Schema"""."My Täble.x" for select using ("sp ace.d" <> 'hidden' and "My Täble.x"."select" > 0);
         alter publication supabase_realtime add table "Odd ""Schema"""."My Täble.x""#,
    )
    .await;
    let server = TestServer::start_live(&postgres).await;
    let mut client = server.client("anon").await;
    let binding = |more: Value| {
        let mut binding = json!({"event": "*", "schema": "Odd \"Schema\"", "table": "My Täble.x"});
        binding.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!([binding])
    };
    client.listen("realtime:all", &binding(json!({}))).await;
    client.listen("realtime:like", &binding(json!({"filter": "a\"b=ilike.X%"}))).await;
    client.listen("realtime:eq", &binding(json!({"filter": "sp ace.d=eq.d,select=in.(1,2)"}))).await;
    client.listen("realtime:some", &binding(json!({"select": ["sp ace.d"]}))).await;
    postgres
        .sql(
            r#"insert into "Odd ""Schema"""."My Täble.x" values (1, 'x1', 1, 'd'), (2, 'x2', 2, 'hidden'), (3, 'y', 9, 'e'), (4, 'last', 1, 'd')"#,
        )
        .await;
    let last = |data: &Value| data["record"]["Id"] == 4;
    let changes = client.changes_until("realtime:all", last).await;
    assert_eq!(json!(of_records(&changes, "Id")), json!([1, 3]));
    assert_eq!(changes[0]["schema"], "Odd \"Schema\"");
    // Before PostgreSQL 18 the log does not have generated columns: listed, without a value.
    assert_eq!(changes[0]["record"], json!({"Id": 1, "a\"b": "x1", "select": 1, "sp ace.d": "d"}));
    assert_eq!(changes[0]["columns"][4], json!({"name": "twice", "type": "int4"}));
    let changes = client.changes_until("realtime:eq", last).await;
    assert_eq!(json!(of_records(&changes, "Id")), json!([1]));
    let changes = client.changes_until("realtime:some", last).await;
    assert_eq!(changes[1]["record"], json!({"Id": 3, "sp ace.d": "e"}));
    assert_eq!(client.change("realtime:like").await["data"]["record"]["Id"], 1);
    assert!(!client.has_unread("realtime:like", "postgres_changes"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_cannot_be_shown_arrive_as_errors() {
    let postgres = Postgres::start(
        "create table keyless (id int, secret text);
         create table locked (id int primary key, body text);
         revoke all on locked from anon; grant select (body) on locked to anon;
         create table large (id int primary key, body text, short text, none text);
         alter publication supabase_realtime add table keyless, locked, large",
    )
    .await;
    let mut settings = config(Some(postgres.logins()));
    settings.limits.max_record_bytes = 10_000;
    let server = TestServer::start_with(settings).await;
    server.wait_live().await;
    let mut client = server.client("anon").await;
    // To everybody of the role, filters not looked at (§5.8).
    client.listen("realtime:keyless", &crate::filtered("keyless", "id=eq.7")).await;
    client.listen("realtime:locked", &all_of("locked")).await;
    client.listen("realtime:large", &crate::filtered("large", "id=gt.0")).await;
    let mut service = server.client("service_role").await;
    service.listen("realtime:locked", &all_of("locked")).await;
    let mut only_deletes = server.client("anon").await;
    let deletes = json!([{"event": "DELETE", "schema": "public", "table": "locked"}]);
    only_deletes.listen("realtime:locked", &deletes).await;

    postgres.sql("insert into keyless values (1, 'hush')").await;
    let refusal = |table: &str, kind: &str, error: &str| {
        let mut data = json!({"schema": "public", "table": table, "type": kind, "commit_timestamp": null,
            "columns": [], "record": {}, "errors": [error]});
        if kind == "UPDATE" {
            data["old_record"] = json!({});
        }
        data
    };
    let data = client.change("realtime:keyless").await["data"].take();
    assert_eq!(data, refusal("keyless", "INSERT", "Error 400: Bad Request, no primary key"));

    postgres
        .sql("insert into locked values (1, 'x'); update locked set body = 'y'; delete from locked")
        .await;
    let unauthorized = "Error 401: Unauthorized";
    assert_eq!(client.change("realtime:locked").await["data"], refusal("locked", "INSERT", unauthorized));
    assert_eq!(client.change("realtime:locked").await["data"], refusal("locked", "UPDATE", unauthorized));
    // No column of the key is left to show (§5.7).
    let deleted = client.change("realtime:locked").await["data"].take();
    assert_eq!((&deleted["type"], &deleted["old_record"]), (&json!("DELETE"), &Value::Null));
    assert_eq!(only_deletes.change("realtime:locked").await["data"]["type"], "DELETE");
    assert!(!only_deletes.has_unread("realtime:locked", "postgres_changes"));
    assert_eq!(service.change("realtime:locked").await["data"]["record"], json!({"id": 1, "body": "x"}));

    postgres
        .sql("insert into large values (1, repeat('x', 20000), 'short', null), (2, 'small', 's', null)")
        .await;
    let data = client.change("realtime:large").await["data"].take();
    assert_eq!(data["errors"], json!(["Error 413: Payload Too Large"]));
    assert_eq!(data["record"], json!({"id": 1, "short": "short"}));
    assert_eq!(data["columns"].as_array().unwrap().len(), 4);
    let data = client.change("realtime:large").await["data"].take();
    assert_eq!(data["record"], json!({"id": 2, "body": "small", "short": "s", "none": null}));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_of_bindings_are_like_patterns() {
    let postgres = Postgres::start(
        r"create table my_table (id int primary key);
         create table myxtable (id int primary key);
         create table my_other (id int primary key);
         create schema game_1; create schema gamex1;
         create table game_1.t (id int primary key); create table gamex1.t (id int primary key);
         grant usage on schema game_1, gamex1 to anon; grant all on game_1.t, gamex1.t to anon;
         alter publication supabase_realtime add table my_table, myxtable, my_other, game_1.t, gamex1.t",
    )
    .await;
    let server = TestServer::start_live(&postgres).await;
    let mut client = server.client("anon").await;
    let on = |schema: &str, table: &str| json!([{"event": "*", "schema": schema, "table": table}]);
    client.listen("realtime:underscore", &on("public", "my_table")).await;
    client.listen("realtime:percent", &on("public", "my%")).await;
    client.listen("realtime:schema", &on("game_1", "t")).await;
    client.listen("realtime:plain", &on("public", "myxtable")).await;
    client.listen("realtime:no-schema", &json!([{"event": "*", "table": "my_other"}])).await;
    client.join_changes("realtime:none", &on("public", r"my\_table")).await;
    assert!(client.failure("realtime:none").await.starts_with("Unable to subscribe"));
    postgres
        .sql(
            "insert into my_table values (1); insert into myxtable values (2); insert into my_other values (3);
             insert into game_1.t values (4); insert into gamex1.t values (5);
             insert into my_table values (100); insert into myxtable values (100); insert into game_1.t values (100);
             insert into my_other values (100)",
        )
        .await;
    for (topic, wanted) in [
        ("realtime:underscore", vec![1, 2]),
        ("realtime:percent", vec![1, 2, 3]),
        ("realtime:schema", vec![4, 5]),
        ("realtime:plain", vec![2]),
        ("realtime:no-schema", vec![3]),
    ] {
        let changes = client.changes_until(topic, has_id(100)).await;
        assert_eq!(json!(of_records(&changes, "id")), json!(wanted), "{topic}");
    }
    server.stop().await;
}
