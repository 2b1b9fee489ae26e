//! Replay. Spec: PROTOCOL.md §3.6.

use tidewire_authz::messages::is_replay_since_valid;
use tidewire_authz::{ProbeError, ReplayedMessage, ReplayedPayload};

use super::messages::prepared;

fn payload_text(message: &ReplayedMessage) -> String {
    match &message.payload {
        ReplayedPayload::Json(text) => text.clone(),
        ReplayedPayload::Bytes(bytes) => format!("{bytes:02x?}"),
    }
}

/// `minutes` before now.
fn row(minutes: i32, event: &str, rest: &str) -> String {
    format!(
        "insert into realtime.messages (topic, extension, private, event, payload, inserted_at)
         select topic, extension, private, '{event}', payload, (now() at time zone 'UTC') - {minutes} * interval '1 minute'
         from (select 'room' as topic, 'broadcast' as extension, true as private, '{{\"a\": 1}}'::jsonb as payload) d
         {rest};"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newest_are_replayed_oldest_first() {
    let rows = row(1, "e1", "") + &row(3, "e3", "") + &row(2, "e2", "") + &row(4, "e4", "");
    let database = prepared(&rows).await;
    // Nobody needs a policy: the channel has been granted broadcast read.
    let authenticator = database.authenticator(1);
    let events = |messages: Vec<ReplayedMessage>| {
        messages.into_iter().map(|message| message.event).collect::<Vec<_>>()
    };
    assert_eq!(events(authenticator.replay("room", 0, 25).await.unwrap()), ["e4", "e3", "e2", "e1"]);
    assert_eq!(events(authenticator.replay("room", 0, 2).await.unwrap()), ["e2", "e1"]);
    assert_eq!(events(authenticator.replay("room", i64::MIN, 1).await.unwrap()), ["e1"]);
    assert!(authenticator.replay("room", i64::MAX, 25).await.unwrap().is_empty());
    assert!(authenticator.replay("other", 0, 25).await.unwrap().is_empty());
    let since: i64 = database
        .admin
        .query_one("select (extract(epoch from now()) * 1000)::bigint - 150000", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(events(authenticator.replay("room", since, 25).await.unwrap()), ["e2", "e1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn since_is_exact_to_the_millisecond_in_any_time_zone() {
    let database = prepared(
        "set time zone 'Asia/Tokyo';
         insert into realtime.messages (topic, extension, private, event, inserted_at) values
           ('room', 'broadcast', true, 'at', date_trunc('day', now() at time zone 'UTC') + interval '0.001 s')",
    )
    .await;
    let zone = "do $$ begin execute format('alter database %I set timezone = ''America/New_York''', current_database()); end $$";
    database.admin.batch_execute(zone).await.unwrap();
    let midnight = "select (extract(epoch from date_trunc('day', now() at time zone 'UTC')) * 1000)::bigint";
    let midnight: i64 = database.admin.query_one(midnight, &[]).await.unwrap().get(0);
    let authenticator = database.authenticator(1);
    assert_eq!(authenticator.replay("room", midnight + 1, 25).await.unwrap().len(), 1);
    assert_eq!(authenticator.replay("room", midnight + 2, 25).await.unwrap().len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_private_broadcasts_that_are_not_from_the_future_are_replayed() {
    let change = |set: &str| format!("where set_config('x.y', '{set}', true) is not null");
    let mut sql = row(1, "yes", "");
    for (event, column, value) in [
        ("public", "private", "false"),
        ("presence", "extension", "'presence'"),
        ("topic", "topic", "'rooms'"),
    ] {
        sql += &row(1, event, &change(event));
        sql += &format!("update realtime.messages set {column} = {value} where event = '{event}';");
    }
    sql += &row(-2, "future", "");
    sql += &row(0, "now", "");
    let database = prepared(&sql).await;
    let messages = database.authenticator(1).replay("room", 0, 25).await.unwrap();
    let events: Vec<_> = messages.iter().map(|message| message.event.as_str()).collect();
    assert_eq!(events, ["yes", "now"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_payload_is_replayed() {
    let mut sql = String::new();
    for (minutes, event, set) in [
        (5, "object", r#"payload = '{"b":1,  "a":[null]}'"#),
        (4, "array", "payload = '[1]'"),
        (3, "nothing", "payload = null"),
        (2, "null", "payload = 'null'"),
        (1, "bytes", r"payload = null, binary_payload = '\xdead'"),
        (0, "empty", r"payload = null, binary_payload = ''"),
    ] {
        sql += &row(minutes, event, "");
        sql += &format!("update realtime.messages set {set} where event = '{event}';");
    }
    let database = prepared(&sql).await;
    let messages = database.authenticator(1).replay("room", 0, 25).await.unwrap();
    let payloads: Vec<_> = messages.iter().map(payload_text).collect();
    assert_eq!(payloads, [r#"{"a": [null], "b": 1}"#, "[1]", "null", "null", "[de, ad]", "[]"]);
    let ids = "select id::text from realtime.messages order by inserted_at";
    let ids: Vec<String> =
        database.admin.query(ids, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(messages.iter().map(|message| message.id.clone()).collect::<Vec<_>>(), ids);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_table_without_bytes_is_replayed_too() {
    let database = prepared(&row(1, "e", "")).await;
    let authenticator = database.authenticator(1);
    assert_eq!(authenticator.replay("room", 0, 25).await.unwrap().len(), 1);
    database.admin.batch_execute("alter table realtime.messages drop column binary_payload").await.unwrap();
    let messages = authenticator.replay("room", 0, 25).await.unwrap();
    assert_eq!(payload_text(&messages[0]), r#"{"a": 1}"#);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_does_not_see_everything_is_not_read_under() {
    let database = prepared(&row(1, "e", "")).await;
    let authenticator = database.authenticator(1).with_replay_role("authenticated");
    let said = authenticator.replay("room", 0, 25).await;
    assert!(matches!(said, Err(ProbeError::Other(_))), "{said:?}");
    let authenticator = database.authenticator(1).with_replay_role("service_role");
    assert_eq!(authenticator.replay("room", 0, 25).await.unwrap().len(), 1);
    // A right that was taken away is noticed, not turned into silence.
    database.admin.batch_execute("revoke select on realtime.messages from service_role").await.unwrap();
    let said = authenticator.replay("room", 0, 25).await;
    assert!(matches!(said, Err(ProbeError::Other(_))), "{said:?}");
}

#[test]
fn a_time_that_the_reference_cannot_read_is_not_valid() {
    assert!(
        is_replay_since_valid(0) && is_replay_since_valid(1_700_000_000_000) && is_replay_since_valid(-1)
    );
    assert!(is_replay_since_valid(253_402_300_799_999) && !is_replay_since_valid(253_402_300_800_000));
    assert!(is_replay_since_valid(-377_705_116_800_000) && !is_replay_since_valid(-377_705_116_800_001));
}
