//! `topic`, `send`, `send_binary`, `broadcast_changes`. Spec: PROTOCOL.md §3.9.

use std::sync::PoisonError;

use super::fixture::{Database, texts};
use tidewire_schema::{apply, ensure_partitions};

async fn prepared() -> Database {
    let mut database = Database::new().await;
    apply(&mut database.admin).await.expect("prepared");
    ensure_partitions(&mut database.admin).await.expect("prepared");
    database
}

const STORED: &str = "select concat_ws(' ', topic, event, extension, private, payload - 'id',
                          case when payload ->> 'id' = id::text then 'own id' else payload ->> 'id' end,
                          encode(binary_payload, 'hex'))
                      from realtime.messages order by event";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payload_without_id_gets_the_id_of_its_row() {
    let database = prepared().await;
    database
        .admin
        .batch_execute(
            r#"select realtime.send('{"a": 1}', 'e1', 'room');
               select realtime.send('{"id": "mine", "a": 1}', 'e2', 'room', false);
               select realtime.send('{"id": null}', 'e3', 'room');
               select realtime.send_binary('\xdead', 'e4', 'room', private => false);"#,
        )
        .await
        .unwrap();
    assert_eq!(
        database.texts(STORED).await,
        [
            r#"room e1 broadcast t {"a": 1} own id"#,
            r#"room e2 broadcast f {"a": 1} mine"#,
            "room e3 broadcast t {}",
            "room e4 broadcast f dead",
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payload_that_is_null_is_stored_and_one_that_cannot_have_an_id_is_a_warning() {
    let database = prepared().await;
    let (client, notices) = database.session().await;
    client
        .batch_execute(
            "begin;
             create table kept (id int);
             select realtime.send(null, 'none', 'room');
             select realtime.send('[1]', 'array', 'room');
             select realtime.send('3', 'number', 'room');
             select realtime.send('{}', 'nowhere', null);
             select realtime.send_binary('x', 'nowhere', null);
             commit",
        )
        .await
        .unwrap();
    assert_eq!(texts(&client, "select event from realtime.messages").await, ["none"]);
    assert_eq!(
        texts(&client, "select to_regclass('kept')::text").await,
        ["kept"],
        "the caller's work is kept"
    );
    let told = notices.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert_eq!(told.len(), 4, "{told:?}");
    assert!(told.iter().all(|text| text.starts_with("WARNING: WarnSendingBroadcastMessage: ")), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_partition_is_a_warning() {
    let mut database = Database::new().await;
    apply(&mut database.admin).await.unwrap();
    let (client, notices) = database.session().await;
    client.batch_execute("select realtime.send('{}', 'e', 'room')").await.unwrap();
    let told = notices.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert!(told[0].contains("no partition of relation \"messages\" found for row"), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_topic_holds_for_the_rest_of_the_transaction() {
    let database = prepared().await;
    let (client, _) = database.session().await;
    assert_eq!(texts(&client, "select realtime.topic()").await, ["NULL"]);
    client.batch_execute("begin; select realtime.send('{}', 'e', 'a ''room''')").await.unwrap();
    assert_eq!(texts(&client, "select realtime.topic()").await, ["a 'room'"]);
    client.batch_execute("commit").await.unwrap();
    assert_eq!(texts(&client, "select realtime.topic()").await, ["NULL"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_sends_needs_the_right_to() {
    let database = prepared().await;
    let (client, notices) = database.session().await;
    client
        .batch_execute("set role authenticated; select realtime.send('{}', 'e', 'room'); reset role")
        .await
        .unwrap();
    let told = notices.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert!(told[0].contains("row-level security policy"), "{told:?}");
    client
        .batch_execute(
            "create policy p on realtime.messages for insert to authenticated with check (realtime.topic() = 'room');
             set role authenticated;
             select realtime.send('{}', 'e', 'room');
             select realtime.send('{}', 'e', 'other');
             reset role",
        )
        .await
        .unwrap();
    assert_eq!(texts(&client, "select topic from realtime.messages").await, ["room"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trigger_broadcasts_its_rows_privately() {
    let database = prepared().await;
    database
        .admin
        .batch_execute(
            "create table games (id int, name text);
             create function tell() returns trigger language plpgsql as $$ begin
               perform realtime.broadcast_changes('game:' || coalesce(new.id, old.id), 'x' || tg_op, tg_op,
                                                  tg_table_name, tg_table_schema, new, old, tg_level);
               return null; end $$;
             create trigger t after insert or update or delete on games for each row execute function tell();
             insert into games values (1, 'go');
             update games set name = 'chess';
             delete from games;",
        )
        .await
        .unwrap();
    let stored =
        "select concat_ws(' ', topic, event, private, payload - 'id') from realtime.messages order by event";
    assert_eq!(
        database.texts(stored).await,
        [
            r#"game:1 xDELETE t {"table": "games", "record": null, "schema": "public", "operation": "DELETE", "old_record": {"id": 1, "name": "chess"}}"#,
            r#"game:1 xINSERT t {"table": "games", "record": {"id": 1, "name": "go"}, "schema": "public", "operation": "INSERT", "old_record": null}"#,
            r#"game:1 xUPDATE t {"table": "games", "record": {"id": 1, "name": "chess"}, "schema": "public", "operation": "UPDATE", "old_record": {"id": 1, "name": "go"}}"#,
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_and_other_operations_are_errors() {
    let database = prepared().await;
    for (arguments, said) in [
        (
            "'INSERT', 't', 'public', null::record, null::record, 'STATEMENT'",
            "Failed to process the row: function can only be triggered for each row, not for each statement",
        ),
        (
            "'TRUNCATE', 't', 'public', null::record, null::record",
            "Failed to process the row: Unexpected operation type: TRUNCATE",
        ),
    ] {
        let sql = format!("select realtime.broadcast_changes('room', 'e', {arguments})");
        let error = database.admin.batch_execute(&sql).await.unwrap_err();
        assert_eq!(error.as_db_error().expect("an error of Postgres").message(), said);
    }
}
