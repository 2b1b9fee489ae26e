//! What `apply` makes, and what it leaves alone.

use super::fixture::{Database, texts};
use tidewire_schema::{SchemaError, apply, maintain};

const SHAPE: &str = "
    select concat_ws(' ', a.attname, format_type(a.atttypid, a.atttypmod),
                     case when a.attnotnull then 'not null' end, pg_get_expr(d.adbin, d.adrelid))
    from pg_attribute a left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
    where a.attrelid = 'realtime.messages'::regclass and a.attnum > 0 order by a.attname";

/// Everything in schema realtime that can be changed, with its row versions.
const VERSIONS: &str = "
    select c.relname || c.xmin::text from pg_class c where c.relnamespace = 'realtime'::regnamespace
    union all select p.proname || p.xmin::text from pg_proc p where p.pronamespace = 'realtime'::regnamespace
    union all select n.nspname || n.xmin::text from pg_namespace n where n.nspname = 'realtime'
    union all select p.pubname || p.xmin::text from pg_publication p order by 1";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fresh_database_gets_the_table_of_the_specification() {
    let mut database = Database::new().await;
    let applied = apply(&mut database.admin).await.unwrap();
    assert!(applied.changed && !applied.is_of_reference);
    assert_eq!(
        database.texts(SHAPE).await,
        [
            "binary_payload bytea",
            "event text",
            "extension text not null",
            "id uuid not null gen_random_uuid()",
            "inserted_at timestamp without time zone not null now()",
            "payload jsonb",
            "private boolean false",
            "topic text not null",
            "updated_at timestamp without time zone not null now()",
        ]
    );
    let facts = database
        .texts(
            "select concat_ws(' ', relrowsecurity, relforcerowsecurity, relowner::regrole, pg_get_partkeydef(oid))
             from pg_class where oid = 'realtime.messages'::regclass
             union all select pg_get_indexdef(indexrelid) from pg_index where indrelid = 'realtime.messages'::regclass
             union all select conname || ' ' || pg_get_constraintdef(oid) from pg_constraint
                       where conrelid = 'realtime.messages'::regclass and contype = 'c'",
        )
        .await;
    assert_eq!(
        facts,
        [
            "t f supabase_realtime_admin RANGE (inserted_at)",
            "CREATE UNIQUE INDEX messages_pkey ON ONLY realtime.messages USING btree (id, inserted_at)",
            "CREATE INDEX messages_inserted_at_topic_index ON ONLY realtime.messages USING btree (inserted_at DESC, topic) \
             WHERE ((extension = 'broadcast'::text) AND (private IS TRUE))",
            "messages_payload_exclusive CHECK (((payload IS NULL) OR (binary_payload IS NULL))) NOT VALID",
        ]
    );
    assert_eq!(
        database.texts("select nspowner::regrole::text from pg_namespace where nspname = 'realtime'").await,
        ["supabase_admin"]
    );
    assert_eq!(database.texts("select to_regclass('realtime.schema_migrations')::text").await, ["NULL"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_time_nothing_is_touched() {
    let mut database = Database::new().await;
    apply(&mut database.admin).await.unwrap();
    maintain(&mut database.admin).await.unwrap();
    let before = database.texts(VERSIONS).await;
    assert!(before.len() > 12, "{before:?}");
    let applied = apply(&mut database.admin).await.unwrap();
    assert!(!applied.changed);
    assert!(maintain(&mut database.admin).await.unwrap().made.is_empty());
    assert_eq!(database.texts(VERSIONS).await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_dropped_comes_back() {
    let mut database = Database::new().await;
    apply(&mut database.admin).await.unwrap();
    for sql in [
        "drop table realtime.messages",
        "drop function realtime.send_binary",
        "drop publication supabase_realtime_messages_publication",
        "drop schema realtime cascade",
    ] {
        database.admin.batch_execute(sql).await.unwrap();
        assert!(apply(&mut database.admin).await.unwrap().changed, "{sql}");
        assert!(!apply(&mut database.admin).await.unwrap().changed, "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_start_together_do_not_fail() {
    let database = Database::new().await;
    let starts = (0..4).map(|_| async {
        let mut client = database.session().await.0;
        apply(&mut client).await?;
        maintain(&mut client).await
    });
    let mut made = 0;
    for start in futures(starts).await {
        made += start.unwrap().made.len();
    }
    assert_eq!(made, 5, "each partition was made once");
}

async fn futures<F: Future>(all: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut all: Vec<_> = all.map(Box::pin).collect();
    let mut outputs: Vec<Option<F::Output>> = all.iter().map(|_| None).collect();
    std::future::poll_fn(|cx| {
        for (future, output) in all.iter_mut().zip(&mut outputs) {
            if output.is_none()
                && let std::task::Poll::Ready(done) = future.as_mut().poll(cx)
            {
                *output = Some(done);
            }
        }
        if outputs.iter().all(Option::is_some) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    outputs.into_iter().flatten().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_roles_may_what_the_specification_says_and_no_more() {
    let mut database = Database::new().await;
    apply(&mut database.admin).await.unwrap();
    maintain(&mut database.admin).await.unwrap();
    let rights = "
        select concat_ws(' ', r.rolname, t.relname, array_to_string(array(
            select p from unnest(array['select', 'insert', 'update', 'delete', 'truncate']) as p
            where has_table_privilege(r.oid, t.oid, p)), ','))
        from pg_roles r, (select oid, case when relispartition then 'partition' else relname::text end as relname
                          from pg_class where relnamespace = 'realtime'::regnamespace and relkind in ('r', 'p')
                          order by relname limit 2) t
        where r.rolname in ('anon', 'authenticated', 'service_role', 'dashboard_user') order by 1";
    assert_eq!(
        database.texts(rights).await,
        [
            "anon messages select,insert,update",
            "anon partition ",
            "authenticated messages select,insert,update",
            "authenticated partition ",
            "dashboard_user messages select,insert,update,delete,truncate",
            "dashboard_user partition select,insert,update,delete,truncate",
            "service_role messages select,insert,update",
            "service_role partition ",
        ]
    );
    let schema = "
        select concat_ws(' ', r.rolname, has_schema_privilege(r.oid, 'realtime', 'usage'),
                         has_schema_privilege(r.oid, 'realtime', 'usage with grant option'),
                         has_schema_privilege(r.oid, 'realtime', 'create'))
        from pg_roles r
        where r.rolname in ('anon', 'authenticated', 'service_role', 'dashboard_user', 'supabase_realtime_admin')
        order by 1";
    assert_eq!(
        database.texts(schema).await,
        [
            "anon t f f",
            "authenticated t f f",
            "dashboard_user t f f",
            "service_role t f f",
            "supabase_realtime_admin t t t"
        ]
    );
    let admin = "
        select concat_ws(' ', rolcanlogin, rolinherit, rolsuper, array_to_string(array(
            select roleid::regrole::text from pg_auth_members where member = r.oid order by 1), ','))
        from pg_roles r where rolname = 'supabase_realtime_admin'";
    assert_eq!(database.texts(admin).await, ["f f f anon,authenticated,service_role"]);
    let owners = "
        select distinct proowner::regrole::text from pg_proc where pronamespace = 'realtime'::regnamespace
        union select relowner::regrole::text from pg_class where relnamespace = 'realtime'::regnamespace";
    assert_eq!(database.texts(owners).await, ["supabase_realtime_admin"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_of_the_reference_keeps_what_the_reference_made() {
    let mut database = Database::new().await;
    apply(&mut database.admin).await.unwrap();
    // As the reference leaves it: a table of versions, functions of its own, an older shape without bytes.
    database
        .admin
        .batch_execute(
            "comment on schema realtime is null;
             create table realtime.schema_migrations (version bigint primary key, inserted_at timestamp);
             insert into realtime.schema_migrations values (20211116024918, now());
             alter table realtime.messages drop column binary_payload;
             alter table realtime.messages owner to current_user;
             create or replace function realtime.topic() returns text language sql as $$ select 'theirs' $$;
             drop function realtime.send_binary;
             drop function realtime.broadcast_changes;",
        )
        .await
        .unwrap();
    let before = database.texts(VERSIONS).await;
    let applied = apply(&mut database.admin).await.unwrap();
    assert!(applied.changed && applied.is_of_reference);
    let after = database.texts(VERSIONS).await;
    let new: Vec<_> = after.iter().filter(|line| !before.contains(line)).collect();
    assert!(new.len() == 1 && new[0].starts_with("broadcast_changes"), "{new:?}");
    assert_eq!(database.texts("select realtime.topic()").await, ["theirs"]);
    assert_eq!(database.texts("select count(*)::text from realtime.schema_migrations").await, ["1"]);
    assert!(!apply(&mut database.admin).await.unwrap().changed);
    maintain(&mut database.admin).await.unwrap();

    database.admin.batch_execute("drop table realtime.messages").await.unwrap();
    let error = apply(&mut database.admin).await.unwrap_err();
    assert_eq!(error.code(), "SchemaUnexpectedTable");
    assert!(matches!(error, SchemaError::UnexpectedTable { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_table_of_versions_does_not_make_a_database_the_references() {
    let mut database = Database::new().await;
    database
        .admin
        .batch_execute("create schema realtime; create table realtime.schema_migrations (version bigint)")
        .await
        .unwrap();
    assert!(!apply(&mut database.admin).await.unwrap().is_of_reference);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publication_that_lists_something_else_is_made_again() {
    let mut database = Database::new().await;
    apply(&mut database.admin).await.unwrap();
    maintain(&mut database.admin).await.unwrap();
    let listed = "select schemaname || '.' || tablename from pg_publication_tables
                  where pubname = 'supabase_realtime_messages_publication' order by 1";
    let right = database.texts(listed).await;
    assert_eq!(right.len(), 5, "{right:?}");
    let partition = right[0].clone();
    for (content, is_right) in [
        ("for table realtime.messages", true),
        ("for table realtime.messages with (publish_via_partition_root = true)", true),
        (&format!("for table realtime.messages, {partition}"), true),
        ("for table realtime.messages, public.other", false),
        ("for table public.other", false),
        ("for all tables", false),
        ("for tables in schema realtime, public", false),
        ("", false),
        (&format!("for table {partition}"), false),
        ("for table realtime.messages where (id is null) with (publish_via_partition_root = true)", false),
        ("for table realtime.messages (id, inserted_at) with (publish_via_partition_root = true)", false),
        ("for table realtime.messages with (publish = 'update, delete')", false),
    ] {
        let sql = format!(
            "create table if not exists public.other (id int primary key);
             drop publication if exists supabase_realtime_messages_publication;
             create publication supabase_realtime_messages_publication {content}"
        );
        database.admin.batch_execute(&sql).await.unwrap();
        let applied = apply(&mut database.admin).await.unwrap();
        assert_eq!(applied.changed, !is_right, "{content}");
        if !is_right {
            assert_eq!(database.texts(listed).await, right, "{content}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_without_the_right_is_told_so_and_changes_nothing() {
    let database = Database::new().await;
    let mut builder = database.login("builder").await;
    let error = apply(&mut builder).await.unwrap_err();
    assert_eq!(error.code(), "SchemaNotAllowed", "{error:?}");
    assert!(!error.advice().is_empty());
    assert_eq!(texts(&database.admin, "select to_regnamespace('realtime')::text").await, ["NULL"]);
}
