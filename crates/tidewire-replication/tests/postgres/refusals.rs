//! Each reason why a stream cannot start, with its stable code.

use std::time::Duration;

use tidewire_replication::{Retry, SlotPolicy, Start, StreamError, WalStream, probe};
use tokio_postgres::NoTls;

use crate::support::{
    PATIENCE, Reader, SLOT, cluster, config, config_for, failure, open, published, refused, sql, wait_for,
};

#[tokio::test(flavor = "multi_thread")]
async fn wal_level_must_be_logical() {
    let cluster = published(&[("wal_level", "replica")]);
    let config = config(&cluster);
    let StreamError::WalLevelNotLogical { found } = refused(&config).await else { panic!() };
    assert_eq!(found, "replica");
    assert_eq!(probe(&config).await.unwrap().wal_level, "replica");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_publication_is_found_before_streaming() {
    let cluster = cluster(&[]);
    sql(&cluster, "create publication \"od\"\"d, 'name\"; create publication \"Second\"");
    let mut config = config(&cluster);
    config.publications = vec!["od\"d, 'name".to_owned(), "second".to_owned()];
    let StreamError::PublicationMissing { name } = refused(&config).await else { panic!() };
    assert_eq!(name, "second");
    let facts = probe(&config).await.unwrap();
    assert_eq!((facts.publication_exists, facts.missing_publications), (false, vec!["second".to_owned()]));
    assert_eq!(sql(&cluster, "select count(*) from pg_replication_slots"), "0");

    config.publications[1] = "Second".to_owned();
    sql(&cluster, "create table a (id int); create table b (id int)");
    sql(
        &cluster,
        "alter publication \"od\"\"d, 'name\" add table a; alter publication \"Second\" add table b",
    );
    let mut stream = open(&config).await;
    sql(&cluster, "insert into a values (1); insert into b values (2)");
    assert_eq!(Reader::default().changes(&mut stream, 1).await, ["insert a (1)", "insert b (2)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_dropped_under_way_breaks_continuity_even_if_it_comes_back() {
    let cluster = published(&[]);
    sql(&cluster, "create table t (id int)");
    let config = config(&cluster);
    let mut stream = WalStream::open(&config, SlotPolicy::Durable, Start::Fresh).await.unwrap();
    let from = stream.started_at();
    sql(&cluster, "drop publication p");
    sql(&cluster, "insert into t values (1)");
    let error = failure(&mut stream).await;
    assert!(matches!(&error, StreamError::PublicationLost { name } if name == "p"), "{error:?}");
    assert_eq!(refused(&config).await.code(), "PublicationMissing");

    sql(&cluster, "create publication p for all tables");
    wait_for(&cluster, "select count(*) = 0 from pg_replication_slots where active_pid is not null");
    let mut stream = WalStream::open(&config, SlotPolicy::Durable, Start::From(from)).await.unwrap();
    let error = failure(&mut stream).await;
    assert!(error.is_continuity_lost(), "{error:?}");

    wait_for(&cluster, "select count(*) = 0 from pg_replication_slots where active_pid is not null");
    let mut stream = open(&config).await;
    sql(&cluster, "insert into t values (2)");
    assert_eq!(Reader::default().changes(&mut stream, 1).await, ["insert t (2)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_in_use_names_the_process_that_uses_it() {
    let cluster = published(&[]);
    let config = config(&cluster);
    for policy in [SlotPolicy::Durable, SlotPolicy::Temporary] {
        let stream = WalStream::open(&config, policy, Start::Fresh).await.unwrap();
        let pid = sql(&cluster, "select active_pid from pg_replication_slots").parse().ok();
        for start in [Start::Fresh, Start::From(stream.started_at())] {
            let error = WalStream::open(&config, policy, start).await.unwrap_err();
            assert!(matches!(error, StreamError::SlotInUse { pid: found } if found == pid), "{error:?}");
            assert_eq!(error.retry(), Retry::Backoff);
        }
        stream.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_and_wal_senders_run_out_under_their_own_names() {
    let cluster = published(&[("max_replication_slots", "1"), ("max_wal_senders", "2")]);
    let first = open(&config(&cluster)).await;
    let mut other = config(&cluster);
    other.slot = "another".to_owned();
    assert_eq!(refused(&other).await.code(), "ReplicationSlotsExhausted");
    // The session that was refused takes a moment to end.
    let facts = loop {
        let facts = probe(&other).await.unwrap();
        if facts.wal_senders_in_use == 1 {
            break facts;
        }
    };
    assert_eq!((facts.max_replication_slots, facts.replication_slots_in_use), (1, 1));
    assert_eq!(facts.max_wal_senders, 2);
    drop(first);

    let cluster = published(&[("max_replication_slots", "5"), ("max_wal_senders", "1")]);
    let _first = open(&config(&cluster)).await;
    other = config(&cluster);
    other.slot = "another".to_owned();
    assert_eq!(refused(&other).await.code(), "WalSendersExhausted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_needs_the_replication_privilege_and_no_more() {
    let cluster = published(&[]);
    sql(
        &cluster,
        "create role plain login password 'pw'; create role copier login replication password 'pw'",
    );
    sql(&cluster, "create table t (id int)");
    let plain = config_for(&cluster.url("plain", "pw"));
    assert_eq!(refused(&plain).await.code(), "ReplicationPrivilegeMissing");
    assert!(!probe(&plain).await.unwrap().can_replicate);
    let copier = config_for(&cluster.url("copier", "pw"));
    assert!(probe(&copier).await.unwrap().can_replicate);
    let mut stream = open(&copier).await;
    sql(&cluster, "insert into t values (1)");
    assert_eq!(Reader::default().changes(&mut stream, 1).await, ["insert t (1)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_of_another_kind_is_never_dropped() {
    let cluster = published(&[]);
    sql(&cluster, &format!("select pg_create_physical_replication_slot('{SLOT}')"));
    assert_eq!(refused(&config(&cluster)).await.code(), "ReplicationSlotForeign");
    assert_eq!(sql(&cluster, "select slot_type from pg_replication_slots"), "physical");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_transaction_blocks_the_slot_only_for_the_time_given() {
    let cluster = published(&[]);
    sql(&cluster, "create table t (id int)");
    let (client, connection) = tokio_postgres::connect(&cluster.superuser_url(), NoTls).await.unwrap();
    let connection = tokio::spawn(connection);
    client.batch_execute("begin; insert into t values (1)").await.unwrap();
    let mut config = config(&cluster);
    config.slot_timeout = Duration::from_millis(100);
    let error = tokio::time::timeout(PATIENCE, refused(&config)).await.unwrap();
    assert_eq!(error.code(), "ReplicationSlotBlocked", "{error:?}");
    client.batch_execute("commit").await.unwrap();
    wait_for(&cluster, "select count(*) = 0 from pg_replication_slots");
    open(&config).await;
    drop(client);
    connection.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_above_the_limit_is_an_error_and_not_memory() {
    let cluster = published(&[]);
    sql(&cluster, "create table t (v text)");
    let mut config = config(&cluster);
    config.max_message_bytes = 1 << 20;
    let mut stream = open(&config).await;
    sql(&cluster, "insert into t values (repeat('x', 2000000))");
    let error = failure(&mut stream).await;
    assert!(
        matches!(error, StreamError::MessageTooLarge { bytes: 2_000_000.., limit_bytes: 1_048_576 }),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_probe_reads_the_facts_and_changes_nothing() {
    let cluster = published(&[("max_slot_wal_keep_size", "64MB"), ("wal_sender_timeout", "7s")]);
    let config = config(&cluster);
    let facts = probe(&config).await.unwrap();
    assert!((140_000..1_000_000).contains(&facts.server_version_num), "{facts:?}");
    assert_eq!(facts.wal_level, "logical");
    assert!(facts.publication_exists && facts.can_replicate);
    assert_eq!((facts.max_slot_wal_keep_size_mb, facts.wal_sender_timeout_ms), (64, 7000));
    assert!(!facts.current_lsn.is_zero());
    assert_eq!(facts.slot, None);

    let stream = open(&config).await;
    let started_at = stream.started_at();
    let slot = probe(&config).await.unwrap().slot.unwrap();
    assert!(slot.is_ours && !slot.is_temporary && !slot.is_lost);
    assert_eq!(slot.confirmed_lsn, started_at);
    assert_eq!(slot.active_pid, sql(&cluster, "select active_pid from pg_replication_slots").parse().ok());
}
