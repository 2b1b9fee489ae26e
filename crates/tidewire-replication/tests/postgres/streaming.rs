//! The session over time: large transactions, silence on our side, positions, the end.

use std::fs;
use std::time::Duration;

use tidewire_devdb::Shutdown;
use tidewire_replication::{Durability, Lsn, SlotPolicy, Start, StreamError, WalRead, WalStream};

use crate::support::{PATIENCE, Reader, SLOT, config, failure, open, published, sql, wait_for};

fn resident_bytes() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_of_50_000_rows_and_100_mb_streams_in_little_memory() {
    let cluster = published(&[("max_wal_size", "1GB")]);
    sql(&cluster, "create table t (id int primary key, v text)");
    let mut stream = open(&config(&cluster)).await;
    sql(&cluster, "insert into t select n, repeat('x', 2000) from generate_series(1, 50000) n");
    let before = resident_bytes();
    let (mut data, mut bytes, mut peak) = (0_u32, 0, 0);
    // Begin, relation, 50,000 rows, commit.
    while data < 50_003 {
        match tokio::time::timeout(PATIENCE, stream.read()).await.unwrap().unwrap() {
            WalRead::Data(read) => {
                data += 1;
                bytes += read.body.len();
            }
            WalRead::Idle(_) => {}
        }
        if data % 1000 == 0 {
            peak = peak.max(resident_bytes());
        }
    }
    assert!(bytes > 100_000_000, "{bytes}");
    let growth = peak.saturating_sub(before);
    assert!(growth < 8 << 20, "grew by {growth} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_session_lives_while_nobody_reads() {
    // The status interval of five seconds would be too long here; the stream adapts it.
    let cluster = published(&[("wal_sender_timeout", "2s")]);
    sql(&cluster, "create table t (id int primary key, v text)");
    let mut stream = open(&config(&cluster)).await;
    // More than all socket buffers hold, so that the walsender stands still in the middle of writing.
    sql(&cluster, "insert into t select n, repeat('x', 10000) from generate_series(1, 3000) n");
    wait_for(
        &cluster,
        "select reply_time > backend_start + interval '5 seconds' from pg_stat_replication where application_name = 'tidewire_changes'",
    );
    let changes = Reader::default().changes(&mut stream, 1).await;
    assert_eq!(changes.len(), 3000);
    assert_eq!(changes[2999], "insert t (3000,<10000>)");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_position_is_surfaced_and_confirming_it_moves_the_slot() {
    let cluster = published(&[]);
    let mut config = config(&cluster);
    config.status_interval = Duration::from_millis(50);
    let stream = WalStream::open(&config, SlotPolicy::Durable, Start::Fresh).await;
    let mut stream = stream.unwrap();
    // DDL writes log that publishes nothing.
    sql(&cluster, "create table noise (id int)");
    let target: Lsn = sql(&cluster, "select pg_current_wal_lsn()").parse().unwrap();
    loop {
        match tokio::time::timeout(PATIENCE, stream.read()).await.unwrap().unwrap() {
            WalRead::Idle(lsn) => {
                stream.confirm(lsn);
                if lsn >= target {
                    break;
                }
            }
            WalRead::Data(_) => {}
        }
    }
    wait_for(
        &cluster,
        &format!(
            "select confirmed_flush_lsn >= '{target}' from pg_replication_slots where slot_name = '{SLOT}'"
        ),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_trails_on_purpose_does_not_keep_postgres_from_stopping() {
    let mut cluster = published(&[]);
    sql(&cluster, "create table t (id int primary key)");
    let stream = WalStream::open(&config(&cluster), SlotPolicy::Durable, Start::Fresh).await;
    let mut stream = stream.unwrap();
    sql(&cluster, "insert into t values (1)");
    Reader::default().transactions(&mut stream, 1).await;
    // Nothing is confirmed.
    let stopping = tokio::task::spawn_blocking(move || cluster.halt(Shutdown::Fast));
    let ended = failure(&mut stream).await;
    // Had it needed force, the end would be SQLSTATE 57P02 or a bare end of the connection.
    let StreamError::Interrupted { source } = ended else { panic!("{ended:?}") };
    assert_eq!(source.to_string(), "the server ended the stream");
    stopping.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_is_durable_where_the_log_is_bounded_and_temporary_otherwise() {
    for (size, durability, slots_left) in
        [("1GB", Durability::Durable, "1"), ("-1", Durability::Temporary, "0")]
    {
        let cluster = published(&[("max_slot_wal_keep_size", size)]);
        let stream = open(&config(&cluster)).await;
        assert_eq!(stream.durability(), durability);
        assert!(!stream.started_at().is_zero());
        stream.close().await;
        assert_eq!(sql(&cluster, "select count(*) from pg_replication_slots"), slots_left);
        assert_eq!(sql(&cluster, "select count(*) from pg_stat_replication"), "0");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_in_the_middle_of_a_large_transaction_ends_the_session() {
    let cluster = published(&[]);
    sql(&cluster, "create table t (id int primary key, v text)");
    let stream = WalStream::open(&config(&cluster), SlotPolicy::Temporary, Start::Fresh).await;
    let mut stream = stream.unwrap();
    sql(&cluster, "insert into t select n, repeat('x', 10000) from generate_series(1, 3000) n");
    while !matches!(stream.read().await.unwrap(), WalRead::Data(_)) {}
    stream.close().await;
    assert_eq!(sql(&cluster, "select count(*) from pg_replication_slots"), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_stream_ends_the_session() {
    let cluster = published(&[]);
    drop(WalStream::open(&config(&cluster), SlotPolicy::Temporary, Start::Fresh).await.unwrap());
    wait_for(&cluster, "select count(*) = 0 from pg_replication_slots");
}
