//! Many writers, many listeners: each hears what a query of the table says, once, in the order of commits.
//!
//! Spec: PROTOCOL.md §5.5, §5.8; ARCHITECTURE.md INV-5, INV-6.

use std::collections::HashSet;

use serde_json::{Value, json};
use tidewire_replication::{Cell, Message, decode};
use tidewire_testkit::postgres::PUBLICATION;
use tidewire_testkit::{Client, Postgres, TestServer};

const WRITERS: i32 = 20;
const TRANSACTIONS_EACH: i32 = 100;

/// Filters, and the same as a condition of a query. Some are decided in process, some by Postgres.
const FILTERS: [(&str, &str); 10] = [
    ("", "true"),
    ("writer=eq.3", "writer = 3"),
    ("writer=in.(1,2,19)", "writer in (1, 2, 19)"),
    ("seq=gte.50", "seq >= 50"),
    ("seq=lt.10,writer=neq.4", "seq < 10 and writer <> 4"),
    ("body=ilike.%A1%", "body ilike '%A1%'"),
    ("body=match.^[0-8]", "body ~ '^[0-8]'"),
    ("note=is.null", "note is null"),
    ("note=not.ilike.even", "not (note ilike 'even')"),
    ("body=gt.8,writer=lte.10", "body > '8' and writer <= 10"),
];

/// All ids in the order of their commits, as a slot of its own tells without the server under test.
async fn commit_order(postgres: &Postgres) -> Vec<i64> {
    let sql = format!(
        "select data from pg_logical_slot_get_binary_changes('oracle', null, null,
           'proto_version', '1', 'publication_names', '{PUBLICATION}')"
    );
    let messages: Vec<Vec<u8>> = postgres.column(&sql).await;
    let id = |message: &Vec<u8>| match decode(&bytes::Bytes::from(message.clone())).expect("a message") {
        Message::Insert { new, .. } if new.cells().count() > 1 => match new.cells().next() {
            Some(Cell::Text(id)) => id.parse().ok(),
            _ => None,
        },
        _ => None,
    };
    messages.iter().filter_map(id).collect()
}

async fn listen(client: &mut Client, number: usize) -> String {
    let topic = format!("realtime:{number}");
    let mut binding = json!({"event": "*", "schema": "public", "table": "events"});
    if !FILTERS[number].0.is_empty() {
        binding["filter"] = json!(FILTERS[number].0);
    }
    // A last change that reaches every channel, whatever its filter.
    let fence = json!({"event": "INSERT", "schema": "public", "table": "fence"});
    client.listen(&topic, &json!([binding, fence])).await;
    topic
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_channel_hears_what_its_filter_selects_once_and_in_commit_order() {
    let postgres = Postgres::start(
        "create table events (id bigint generated always as identity primary key,
                              writer int, seq int, body text, note text);
         create table fence (id int primary key);
         alter publication supabase_realtime add table events, fence",
    )
    .await;
    postgres.rows("select pg_create_logical_replication_slot('oracle', 'pgoutput')").await;
    let server = TestServer::start_live(&postgres).await;
    // Fifty channels: five sockets, and on each a channel per filter.
    let mut listening = Vec::new();
    for _ in 0..5 {
        let mut client = server.client("anon").await;
        let mut topics = Vec::new();
        for number in 0..FILTERS.len() {
            topics.push(listen(&mut client, number).await);
        }
        listening.push(tokio::spawn(async move {
            let mut heard: Vec<Vec<Value>> = Vec::new();
            for topic in topics {
                heard.push(client.changes_until(&topic, |data| data["table"] == "fence").await);
            }
            assert!(client.unread().is_empty(), "{:?}", client.unread());
            heard
        }));
    }
    let mut writing = Vec::new();
    for writer in 0..WRITERS {
        let session = postgres.session().await;
        writing.push(tokio::spawn(async move {
            for seq in 0..TRANSACTIONS_EACH {
                let row = |n: i32| {
                    format!(
                        "insert into events (writer, seq, body, note)
                           values ({writer}, {seq}, md5('{writer} {seq} {n}'), case {seq} % 3 when 0 then 'Even' when 1 then 'odd' end);"
                    )
                };
                // One to three statements, so that transactions interleave.
                let rows: String = (0..=seq % 3).map(row).collect();
                session.batch_execute(&format!("begin; {rows} commit")).await.expect("a transaction");
            }
        }));
    }
    for writer in writing {
        writer.await.expect("a writer ends");
    }
    postgres.sql("insert into fence values (1)").await;

    let order = commit_order(&postgres).await;
    let total: i64 = postgres.value("select count(*) from events").await;
    assert_eq!(order.len() as i64, total, "the oracle");
    let mut wanted = Vec::new();
    for (_, condition) in FILTERS {
        let sql = format!("select id from events where {condition}");
        let selected: HashSet<i64> = postgres.column(&sql).await.into_iter().collect();
        assert!(!selected.is_empty(), "{condition} selects nothing: the test shows nothing");
        wanted.push(order.iter().copied().filter(|id| selected.contains(id)).collect::<Vec<_>>());
    }
    for listener in listening {
        let heard = listener.await.expect("a listener ends");
        for ((changes, wanted), (filter, _)) in heard.iter().zip(&wanted).zip(FILTERS) {
            let ids: Vec<i64> =
                changes.iter().map(|change| change["record"]["id"].as_i64().unwrap()).collect();
            assert_eq!(ids, *wanted, "{filter}");
        }
    }
    server.stop().await;
}
