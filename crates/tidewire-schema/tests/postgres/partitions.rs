//! Partitions: in time, once, and no longer than wanted.

use super::fixture::Database;
use tidewire_schema::{apply, drop_old_partitions, ensure_partitions, maintain};

const NAMES: &str = "select inhrelid::regclass::text from pg_inherits
                     where inhparent = 'realtime.messages'::regclass order by 1";

async fn prepared() -> Database {
    let mut database = Database::new().await;
    apply(&mut database.admin).await.expect("prepared");
    database
}

/// Names of days relative to today, as Postgres has it.
async fn days(database: &Database, from: i32, to: i32) -> Vec<String> {
    let sql = format!(
        "select 'messages_' || to_char((now() at time zone 'UTC')::date + n, 'YYYY_MM_DD')
         from generate_series({from}, {to}) n"
    );
    database.texts(&sql).await
}

async fn partition(database: &Database, name: &str, from: i32, to: i32) {
    let sql = format!(
        "do $$ begin execute format('create table realtime.{name} partition of realtime.messages
             for values from (%L) to (%L)', (now() at time zone 'UTC')::date + {from},
             (now() at time zone 'UTC')::date + {to}); end $$"
    );
    database.admin.batch_execute(&sql).await.expect("prepared");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn yesterday_to_three_days_ahead_are_made_and_hold_rows() {
    let mut database = prepared().await;
    let made = ensure_partitions(&mut database.admin).await.unwrap();
    assert_eq!(made, days(&database, -1, 3).await);
    // Rows of any time zone find their day.
    for zone in ["Pacific/Kiritimati", "Etc/GMT+12", "UTC"] {
        let sql = format!(
            "set time zone '{zone}'; insert into realtime.messages (topic, extension) values ('t', 'broadcast')"
        );
        database.admin.batch_execute(&sql).await.unwrap();
    }
    let shape = "select concat_ws(' ', relrowsecurity, relowner::regrole, array_to_string(array(
                     select indexrelid::regclass::text from pg_index where indrelid = c.oid order by 1), ','),
                     array_to_string(array(select conname::text from pg_constraint where conrelid = c.oid order by 1), ','))
                 from pg_class c where oid = ('realtime.' || $$NAME$$)::regclass";
    let shape = database.texts(&shape.replace("NAME", &made[0])).await;
    let name = &made[0];
    assert_eq!(
        shape,
        [format!(
            "f supabase_realtime_admin realtime.{name}_inserted_at_topic_idx,realtime.{name}_pkey \
             {name}_pkey,messages_payload_exclusive"
        )]
    );
    let attached = "select count(*)::text from pg_inherits where inhparent in
                    ('realtime.messages_pkey'::regclass, 'realtime.messages_inserted_at_topic_index'::regclass)";
    assert_eq!(database.texts(attached).await, ["10"], "indexes belong to those of the table");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn making_partitions_does_not_wait_for_readers_and_writers() {
    let mut database = prepared().await;
    ensure_partitions(&mut database.admin).await.unwrap();
    let gone = days(&database, 3, 3).await.remove(0);
    database.admin.batch_execute(&format!("drop table realtime.{gone}")).await.unwrap();
    let (busy, _) = database.session().await;
    busy.batch_execute("begin; insert into realtime.messages (topic, extension) values ('t', 'broadcast')")
        .await
        .unwrap();
    assert_eq!(ensure_partitions(&mut database.admin).await.unwrap(), [gone]);
    busy.batch_execute("commit").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_pause_of_days_the_gap_is_closed_and_the_past_dropped() {
    let mut database = prepared().await;
    for (name, day) in days(&database, -9, -5).await.iter().zip(-9..) {
        partition(&database, name, day, day + 1).await;
    }
    let maintained = maintain(&mut database.admin).await.unwrap();
    assert_eq!(maintained.made, days(&database, -1, 3).await);
    assert_eq!(maintained.dropped, days(&database, -9, -5).await);
    assert_eq!(maintain(&mut database.admin).await.unwrap(), Default::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_is_kept_until_its_last_row_is_old_enough() {
    let mut database = prepared().await;
    for (name, day) in days(&database, -4, -2).await.iter().zip(-4..) {
        partition(&database, name, day, day + 1).await;
    }
    // 72 hours ago was three days back: that day may hold a row that is younger.
    assert_eq!(drop_old_partitions(&mut database.admin, 72).await.unwrap(), days(&database, -4, -4).await);
    assert_eq!(drop_old_partitions(&mut database.admin, 48).await.unwrap(), days(&database, -3, -3).await);
    assert_eq!(drop_old_partitions(&mut database.admin, 0).await.unwrap(), days(&database, -2, -2).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_ours_is_left_alone() {
    let mut database = prepared().await;
    let names = days(&database, -20, -10).await;
    partition(&database, "messages_archive", -30, -20).await;
    // A name that promises one day and holds five.
    partition(&database, &names[0], -20, -15).await;
    partition(&database, "\"messages_2024_13_45; drop\"", -14, -13).await;
    partition(&database, &names[10], -10, -9).await;
    let dropped = drop_old_partitions(&mut database.admin, 72).await.unwrap();
    assert_eq!(dropped, [names[10].clone()]);
    assert_eq!(database.texts(NAMES).await.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_that_another_partition_covers_needs_none() {
    let mut database = prepared().await;
    partition(&database, "messages_week", -1, 2).await;
    assert_eq!(ensure_partitions(&mut database.admin).await.unwrap(), days(&database, 2, 3).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_is_taken_is_an_error_and_the_other_days_are_made() {
    let mut database = prepared().await;
    let today = days(&database, 0, 0).await.remove(0);
    database.admin.batch_execute(&format!("create table realtime.{today} (id int)")).await.unwrap();
    let error = ensure_partitions(&mut database.admin).await.unwrap_err();
    assert_eq!(error.code(), "SchemaUnexpectedTable");
    assert!(error.to_string().contains(&today), "{error}");
    assert_eq!(database.texts(NAMES).await.len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_table_there_is_nothing_to_maintain() {
    let mut database = Database::new().await;
    assert_eq!(maintain(&mut database.admin).await.unwrap_err().code(), "SchemaUnexpectedTable");
}
