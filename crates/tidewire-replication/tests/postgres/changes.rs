//! What rows look like, by replica identity, storage and type.

use crate::support::{Reader, config, open, published, sql};

#[tokio::test(flavor = "multi_thread")]
async fn old_rows_follow_the_replica_identity() {
    let cluster = published(&[]);
    sql(
        &cluster,
        "create table keyed (id int primary key, v text);
         create table whole (id int, v text); alter table whole replica identity full;
         create table indexed (id int, code text not null);
         create unique index by_code on indexed (code); alter table indexed replica identity using index by_code;
         create table silent (v text); alter table silent replica identity nothing;",
    );
    let mut stream = open(&config(&cluster)).await;
    let mut reader = Reader::default();
    sql(
        &cluster,
        "insert into keyed values (1, 'a'), (2, null); update keyed set v = 'b' where id = 1;
         update keyed set id = 3 where id = 1; delete from keyed where id = 3;
         insert into whole values (1, 'a'); update whole set v = 'b'; delete from whole;
         insert into indexed values (1, 'c'); update indexed set id = 2; update indexed set code = 'd';
         delete from indexed; insert into silent values ('s'); truncate keyed, whole;",
    );
    let expected = [
        "insert keyed (1,a)",
        "insert keyed (2,-)",
        "update keyed (1,b)",
        "update keyed key(1,-) (3,b)",
        "delete keyed key(3,-) ",
        "insert whole (1,a)",
        "update whole full(1,a) (1,b)",
        "delete whole full(1,b) ",
        "insert indexed (1,c)",
        "update indexed (2,c)",
        "update indexed key(-,c) (2,d)",
        "delete indexed key(-,d) ",
        "insert silent (s)",
        "truncate 2",
    ];
    // One string with several statements is one transaction.
    assert_eq!(reader.changes(&mut stream, 1).await, expected);

    let refused = cluster.run_sql("update silent set v = 't'").unwrap_err().to_string();
    assert!(refused.contains("set REPLICA IDENTITY"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_values_that_did_not_change_are_marked_and_known_only_from_a_full_old_row() {
    let cluster = published(&[]);
    sql(
        &cluster,
        "create table keyed (id int primary key, big text, n int); alter table keyed alter big set storage external;
         create table whole (id int primary key, big text, n int); alter table whole alter big set storage external;
         alter table whole replica identity full;
         insert into keyed values (1, repeat('x', 5000), 1); insert into whole values (1, repeat('x', 5000), 1);",
    );
    let mut stream = open(&config(&cluster)).await;
    sql(
        &cluster,
        "update keyed set n = 2; update keyed set big = repeat('y', 6000); update whole set n = 2;",
    );
    let expected =
        ["update keyed (1,~,2)", "update keyed (1,<6000>,2)", "update whole full(1,<5000>,1) (1,~,2)"];
    assert_eq!(Reader::default().changes(&mut stream, 1).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn text_forms_do_not_depend_on_settings_of_the_role_or_the_database() {
    let cluster = published(&[]);
    sql(
        &cluster,
        "alter role postgres set timezone = 'Asia/Tokyo'; alter role postgres set datestyle = 'SQL, DMY';
         alter role postgres set intervalstyle = 'iso_8601'; alter role postgres set bytea_output = 'escape';
         alter role postgres set extra_float_digits = -10; alter role postgres set statement_timeout = '1s';
         alter database postgres set client_encoding = 'LATIN1'; alter database postgres set lock_timeout = '1s';
         create table t (at timestamptz, d date, i interval, b bytea, f float8, s text);",
    );
    let mut stream = open(&config(&cluster)).await;
    sql(
        &cluster,
        "insert into t values ('2026-01-02 03:04:05.678+00', '2026-01-02', '1 day 02:03:04', '\\xdeadbeef', 0.1::float8 + 0.2, U&'\\20AC')",
    );
    let expected =
        ["insert t (2026-01-02 03:04:05.678+00,2026-01-02,1 day 02:03:04,\\xdeadbeef,0.30000000000000004,€)"];
    assert_eq!(Reader::default().changes(&mut stream, 1).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_table_is_announced_again_before_its_next_change() {
    let cluster = published(&[]);
    sql(&cluster, "create table t (id int primary key)");
    let mut stream = open(&config(&cluster)).await;
    let mut reader = Reader::default();
    sql(&cluster, "insert into t values (1)");
    assert_eq!(reader.changes(&mut stream, 1).await, ["insert t (1)"]);
    sql(
        &cluster,
        "alter table t add v text default 'new'; alter table t rename to renamed; insert into renamed values (2)",
    );
    assert_eq!(reader.changes(&mut stream, 1).await, ["insert renamed (2,new)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolled_back_transaction_is_never_seen() {
    let cluster = published(&[]);
    sql(&cluster, "create table t (id int primary key)");
    let mut stream = open(&config(&cluster)).await;
    sql(&cluster, "begin; insert into t values (1); rollback; begin; insert into t values (2); commit;");
    assert_eq!(Reader::default().changes(&mut stream, 1).await, ["insert t (2)"]);
}
