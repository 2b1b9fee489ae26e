//! The end of a server, and a server with nothing to do.
//!
//! Spec: PROTOCOL.md §1.11; DESIGN.md §3 ("an idle server sends no queries").

use std::sync::Arc;
use std::time::Instant;

use tidewire_testkit::{Postgres, TestServer, eventually};

use crate::{GAMES, all_of};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn busy_clients_are_told_to_come_back_and_the_server_ends_within_its_grace() {
    let postgres = Arc::new(Postgres::start(GAMES).await);
    let server = TestServer::start_live(&postgres).await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = server.client("anon").await;
        client.listen("realtime:a", &all_of("games")).await;
        clients.push(client);
    }
    // One that never reads: it must not hold up the end.
    let mut deaf = server.client("anon").await;
    deaf.listen("realtime:a", &all_of("games")).await;
    let session = postgres.session().await;
    let writing = tokio::spawn(async move {
        let mut from = 0;
        loop {
            from += 50;
            let sql = format!(
                "insert into games select n, repeat('x', 2000) from generate_series({from}, {from} + 49) n"
            );
            session.batch_execute(&sql).await.expect("rows");
        }
    });
    for client in &mut clients {
        client.change("realtime:a").await;
    }
    let began = Instant::now();
    let stopping = tokio::spawn(server.stop());
    for client in &mut clients {
        assert_eq!(client.close_code().await, Some(1012));
    }
    stopping.await.expect("the server ends");
    // The grace period, and a little for a machine that is busy with the writer.
    assert!(began.elapsed().as_millis() < 6_000, "{:?}", began.elapsed());
    writing.abort();
    // It has left the database alone, but for its durable slot.
    eventually("the sessions to end", || async {
        let sql = "select count(*) from pg_stat_activity where usename in ('authenticator', 'tidewire_replication')";
        (postgres.value::<i64>(sql).await == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_server_sends_postgres_no_queries() {
    // Short, so that the log shows several rounds of keepalives soon.
    let postgres = Postgres::start_with(&[("wal_sender_timeout", "1500ms")], GAMES).await;
    let server = TestServer::start_live(&postgres).await;
    let mut client = server.client("anon").await;
    client.listen("realtime:a", &all_of("games")).await;
    postgres.sql("insert into games values (1)").await;
    client.change("realtime:a").await;

    // When each session was last heard of. Asking changes only our own.
    let sql = "select pid, state_change::text from pg_stat_activity
               where usename in ('authenticator', 'tidewire_replication') order by pid";
    let sessions = async || -> Vec<(i32, String)> {
        postgres.rows(sql).await.iter().map(|row| (row.get(0), row.get(1))).collect()
    };
    let before = sessions().await;
    assert!(before.len() >= 2, "{before:?}");
    // The interval: five status updates of the stream, far more than a batch or a poll would wait.
    for _ in 0..5 {
        let reply = "select reply_time::text from pg_stat_replication";
        let last: String = postgres.value(reply).await;
        eventually("a status update", || async {
            (postgres.value::<String>(reply).await != last).then_some(())
        })
        .await;
    }
    client.heartbeat().await;
    assert_eq!(sessions().await, before);
    server.stop().await;
}
