//! Going on after an interruption, and refusing to where changes would be missing.

use std::time::Duration;

use tidewire_devdb::{Cluster, Shutdown};
use tidewire_replication::{Durability, Lsn, SlotPolicy, Start, StreamConfig, StreamError, WalStream};

use crate::support::{Reader, SLOT, config, failure, published, sql, wait_for};

async fn go_on(config: &StreamConfig, from: Lsn) -> Result<WalStream, StreamError> {
    WalStream::open(config, SlotPolicy::Auto, Start::From(from)).await
}

fn insert(cluster: &Cluster, range: std::ops::RangeInclusive<u32>) {
    for n in range {
        sql(cluster, &format!("insert into t values ({n}, 'a'), ({n}, 'b')"));
    }
}

fn rows(range: std::ops::RangeInclusive<u32>) -> Vec<String> {
    range.flat_map(|n| [format!("insert t ({n},a)"), format!("insert t ({n},b)")]).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_killed_connection_every_change_comes_once_from_the_position() {
    let cluster = published(&[]);
    sql(&cluster, "create table t (n int, v text)");
    let mut config = config(&cluster);
    config.status_interval = Duration::from_millis(50);
    let mut reader = Reader::default();

    let mut stream = WalStream::open(&config, SlotPolicy::Durable, Start::Fresh).await.unwrap();
    insert(&cluster, 1..=6);
    let seen = reader.transactions(&mut stream, 5).await;
    let confirmed = seen[2].end;
    stream.confirm(confirmed);
    // Lower positions, said later, change nothing.
    stream.confirmer().confirm(seen[0].end);
    let slot = format!("from pg_replication_slots where slot_name = '{SLOT}'");
    wait_for(&cluster, &format!("select confirmed_flush_lsn = '{confirmed}' {slot}"));

    sql(&cluster, &format!("select pg_terminate_backend(active_pid) {slot}"));
    let error = failure(&mut stream).await;
    assert_eq!(error.code(), "ChangeStreamInterrupted", "{error:?}");
    wait_for(&cluster, &format!("select active_pid is null {slot}"));
    insert(&cluster, 7..=8);

    // What was read but not confirmed comes again when asked for …
    let mut stream = go_on(&config, confirmed).await.unwrap();
    assert_eq!((stream.started_at(), stream.durability()), (confirmed, Durability::Durable));
    assert_eq!(reader.changes(&mut stream, 5).await, rows(4..=8));
    stream.close().await;

    // … and not when the position asked for is past it.
    let mut stream = go_on(&config, seen[4].end).await.unwrap();
    assert_eq!(reader.changes(&mut stream, 3).await, rows(6..=8));
    stream.close().await;

    // The server's own position, for an owner that remembers none.
    let stream = go_on(&config, Lsn::ZERO).await.unwrap();
    assert!(stream.started_at() >= seen[4].end);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_postgres_is_survived() {
    let mut cluster = published(&[]);
    sql(&cluster, "create table t (n int, v text)");
    let config = config(&cluster);
    let mut reader = Reader::default();
    let mut stream = WalStream::open(&config, SlotPolicy::Durable, Start::Fresh).await.unwrap();
    insert(&cluster, 1..=2);
    let seen = reader.transactions(&mut stream, 1).await;
    cluster.halt(Shutdown::Immediate);
    failure(&mut stream).await;
    let unreachable = go_on(&config, seen[0].end).await.unwrap_err();
    assert_eq!(unreachable.code(), "DatabaseUnreachable");
    cluster.resume().unwrap();
    let mut stream = go_on(&config, seen[0].end).await.unwrap();
    insert(&cluster, 3..=3);
    assert_eq!(reader.changes(&mut stream, 2).await, rows(2..=3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_before_the_confirmed_one_is_refused_rather_than_skipped() {
    let cluster = published(&[]);
    sql(&cluster, "create table t (n int, v text)");
    let config = config(&cluster);
    let mut stream = WalStream::open(&config, SlotPolicy::Durable, Start::Fresh).await.unwrap();
    insert(&cluster, 1..=3);
    let seen = Reader::default().transactions(&mut stream, 3).await;
    stream.confirm(seen[2].end);
    // Reports the position a last time.
    stream.close().await;
    let error = go_on(&config, seen[0].end).await.unwrap_err();
    assert!(error.is_continuity_lost());
    let StreamError::PositionLost { requested, confirmed } = error else { panic!("{error:?}") };
    assert_eq!((requested, confirmed), (seen[0].end, seen[2].end));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_slot_is_lost_and_a_fresh_start_makes_a_new_one() {
    let cluster = published(&[]);
    sql(&cluster, "create table t (n int, v text)");
    let config = config(&cluster);
    assert_eq!(go_on(&config, Lsn(1)).await.unwrap_err().code(), "ReplicationSlotLost");
    let stream = WalStream::open(&config, SlotPolicy::Durable, Start::Fresh).await.unwrap();
    stream.close().await;
    insert(&cluster, 1..=1);
    // Fresh means from now: the old slot and what it kept are given up.
    let mut stream = WalStream::open(&config, SlotPolicy::Durable, Start::Fresh).await.unwrap();
    insert(&cluster, 2..=2);
    assert_eq!(Reader::default().changes(&mut stream, 1).await, rows(2..=2));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalidated_slot_is_lost_and_a_fresh_start_replaces_it() {
    let cluster =
        published(&[("max_slot_wal_keep_size", "1MB"), ("min_wal_size", "32MB"), ("max_wal_size", "32MB")]);
    let config = config(&cluster);
    let stream = WalStream::open(&config, SlotPolicy::Auto, Start::Fresh).await.unwrap();
    let from = stream.started_at();
    stream.close().await;
    sql(
        &cluster,
        "create table t (n int, v text); insert into t select n, repeat('x', 1000) from generate_series(1, 60000) n",
    );
    sql(&cluster, "select pg_switch_wal()");
    sql(&cluster, "checkpoint");
    wait_for(
        &cluster,
        &format!("select wal_status = 'lost' from pg_replication_slots where slot_name = '{SLOT}'"),
    );
    assert_eq!(go_on(&config, from).await.unwrap_err().code(), "ReplicationSlotLost");
    WalStream::open(&config, SlotPolicy::Auto, Start::Fresh).await.unwrap().close().await;
}
