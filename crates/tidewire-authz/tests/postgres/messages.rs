//! Private channels: what is granted, when it is asked again, and how it fails. Whether the answers are *right* is the
//! oracle's business ([`super::messages_oracle`]).

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use tidewire_authz::{Authenticator, AuthenticatorConfig, Grants, ProbeError};
use tokio_postgres::Client;

use super::fixture::{ALLOWED, Database, identity, member, user};

pub(crate) const NONE: Grants = Grants { broadcast: false, presence: false };
pub(crate) const BOTH: Grants = Grants { broadcast: true, presence: true };
const BROADCAST: Grants = Grants { broadcast: true, presence: false };

/// Membership of rooms, as the policies of most projects have it.
const MEMBERS: &str = "
    create table members (user_id uuid, topic text);
    grant select on members to anon, authenticated;";

const MEMBERS_READ: &str = "create policy r on realtime.messages for select to authenticated using (
    exists (select from public.members where user_id = (select auth.uid()) and topic = realtime.topic()))";

const MEMBERS_WRITE: &str = "create policy w on realtime.messages for insert to authenticated with check (
    exists (select from public.members where user_id = (select auth.uid()) and topic = realtime.topic()))";

/// A database with schema `realtime`, its partitions, and `sql`.
pub(crate) async fn prepared(sql: &str) -> Database {
    let mut database = Database::new("").await;
    tidewire_schema::apply(&mut database.admin).await.expect("schema realtime is made");
    tidewire_schema::ensure_partitions(&mut database.admin).await.expect("partitions are made");
    database.admin.batch_execute(sql).await.expect("test schema");
    database
}

async fn join_all<F>(all: impl IntoIterator<Item = F>) -> Vec<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let tasks: Vec<_> = all.into_iter().map(tokio::spawn).collect();
    let mut outputs = Vec::new();
    for task in tasks {
        outputs.push(task.await.expect("no panic"));
    }
    outputs
}

async fn wait_until(admin: &Client, fact: &str) {
    let looks = async {
        loop {
            let row = admin.query_one(fact, &[]).await.expect("a fact can be looked at");
            if row.get(0) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), looks)
        .await
        .unwrap_or_else(|_| panic!("never true: {fact}"));
}

async fn execute(database: &Database, sql: &str) {
    database.admin.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_never_older_than_the_question() {
    let database = prepared(MEMBERS).await;
    let authenticator = database.authenticator(2);
    let (user, other) = (member(1), member(2));
    for (sql, read, write) in [
        ("", NONE, NONE),
        (MEMBERS_READ, NONE, NONE),
        ("insert into members values ('00000000-0000-4000-8000-000000000001', 'room')", BOTH, NONE),
        (MEMBERS_WRITE, BOTH, BOTH),
        (
            "create policy narrow on realtime.messages as restrictive to authenticated using (extension = 'broadcast')",
            BROADCAST,
            BROADCAST,
        ),
        ("revoke insert on realtime.messages from authenticated", BROADCAST, NONE),
        (
            "grant insert on realtime.messages to authenticated; drop policy narrow on realtime.messages",
            BOTH,
            BOTH,
        ),
        ("alter policy w on realtime.messages to anon", BOTH, NONE),
        ("alter table realtime.messages disable row level security", BOTH, BOTH),
        ("alter table realtime.messages enable row level security", BOTH, NONE),
        ("delete from members", NONE, NONE),
        // A stored expression means the function that it meant, whatever that is called now.
        (
            "create function may() returns bool language sql as 'select true';
             create policy f on realtime.messages for select using (may())",
            BOTH,
            NONE,
        ),
        (
            "alter function may() rename to might;
             create function may() returns bool language sql as 'select false'",
            BOTH,
            NONE,
        ),
    ] {
        execute(&database, sql).await;
        let said = authenticator.read_grants(&user, "room", "{}", true).await;
        assert_eq!(said, Ok(read), "read after {sql}");
        let said = authenticator.write_grants(&user, "room", "{}").await;
        assert_eq!(said, Ok(write), "write after {sql}");
    }
    execute(
        &database,
        "drop policy f on realtime.messages; alter policy w on realtime.messages to authenticated;
             insert into members values ('00000000-0000-4000-8000-000000000001', 'room')",
    )
    .await;
    assert_eq!(authenticator.read_grants(&other, "room", "{}", true).await, Ok(NONE));
    assert_eq!(authenticator.write_grants(&other, "room", "{}").await, Ok(NONE));
    assert_eq!(authenticator.read_grants(&user, "other room", "{}", true).await, Ok(NONE));
    assert_eq!(authenticator.read_grants(&user, "room", "{}", false).await, Ok(BROADCAST));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_of_different_users_gets_each_its_own_answer() {
    let database = prepared(MEMBERS).await;
    execute(&database, MEMBERS_READ).await;
    execute(&database, MEMBERS_WRITE).await;
    // User n may enter every room that n divides.
    execute(
        &database,
        "insert into members select ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid, 'room ' || r
         from generate_series(1, 30) n, generate_series(1, 10) r where r % n = 0",
    )
    .await;
    for pool_size in [1, 4] {
        let authenticator = database.authenticator(pool_size);
        let asked = (1..=30).flat_map(|user| (1..=10).map(move |room| (user, room)));
        let answers = join_all(asked.map(|(user, room)| {
            let authenticator = authenticator.clone();
            async move {
                let (who, topic) = (member(user), format!("room {room}"));
                let read = authenticator.read_grants(&who, &topic, "{}", true).await;
                let write = authenticator.write_grants(&who, &topic, "{}").await;
                (user, room, read, write)
            }
        }))
        .await;
        for (user, room, read, write) in answers {
            let expected = if room % user == 0 { BOTH } else { NONE };
            assert_eq!((read, write), (Ok(expected), Ok(expected)), "user {user}, room {room}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reading_writes_nothing_and_writing_leaves_nothing() {
    let database =
        prepared("create policy p on realtime.messages to authenticated using (true) with check (true)")
            .await;
    let authenticator = database.authenticator(2);
    let next = "select pg_snapshot_xmax(pg_current_snapshot())::text::bigint";
    let before: i64 = database.admin.query_one(next, &[]).await.unwrap().get(0);
    assert_eq!(authenticator.read_grants(&member(1), "room", "{}", true).await, Ok(BOTH));
    let after: i64 = database.admin.query_one(next, &[]).await.unwrap().get(0);
    assert_eq!(before, after, "a transaction id was used");
    assert_eq!(authenticator.write_grants(&member(1), "room", "{}").await, Ok(BOTH));
    let rows: i64 =
        database.admin.query_one("select count(*) from realtime.messages", &[]).await.unwrap().get(0);
    assert_eq!(rows, 0);
}

/// A gate in a policy: whoever passes it waits for the admin's lock, and each passage is counted.
const GATE: &str = "
    create function gate() returns bool language plpgsql security definer as $$
      begin perform pg_advisory_xact_lock_shared(7); return true; end $$;
    create policy p on realtime.messages to authenticated
      using (extension = 'broadcast' and gate()) with check (extension = 'broadcast' and gate())";

const WAITS: &str = "select count(*) = 1 from pg_locks where locktype = 'advisory' and not granted
    and database = (select oid from pg_database where datname = current_database())";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_that_wait_are_asked_once_and_a_sent_one_is_never_joined() {
    let database = prepared(GATE).await;
    execute(&database, "do $$ begin execute format('alter database %I set track_functions = ''all''', current_database()); end $$").await;
    for pool_size in [1, 2] {
        let authenticator = database.authenticator(pool_size);
        // The statement is prepared beforehand, so that the count below is of evaluations.
        authenticator.read_grants(&member(1), "room", "{}", true).await.unwrap();
        drop(authenticator);
        wait_until(&database.admin, "select count(*) = 0 from pg_stat_activity where usename = 'authenticator' and datname = current_database() and query like '%rollback%'").await;
        execute(&database, "select pg_stat_reset()").await;

        let authenticator = database.authenticator(pool_size);
        let lock = database.session().await;
        lock.batch_execute("select pg_advisory_lock(7)").await.unwrap();
        let first = tokio::spawn({
            let authenticator = authenticator.clone();
            async move { authenticator.read_grants(&member(1), "room", "{}", true).await }
        });
        wait_until(&database.admin, WAITS).await;
        let mut others: Vec<_> = (0..20)
            .map(|_| {
                let authenticator = authenticator.clone();
                Box::pin(async move { authenticator.read_grants(&member(1), "room", "{}", true).await })
            })
            .collect();
        // Each has asked once it was polled.
        for other in &mut others {
            assert!(poll_fn(|cx| Poll::Ready(other.as_mut().poll(cx).is_pending())).await);
        }
        lock.batch_execute("select pg_advisory_unlock(7)").await.unwrap();
        assert_eq!(first.await.unwrap(), Ok(BROADCAST));
        for other in others {
            assert_eq!(other.await, Ok(BROADCAST));
        }
        drop(authenticator);
        // Sessions tell their counts when they end.
        wait_until(
            &database.admin,
            "select coalesce(sum(calls), 0) >= 2 from pg_stat_user_functions where funcname = 'gate'",
        )
        .await;
        let calls = "select sum(calls)::int from pg_stat_user_functions where funcname = 'gate'";
        assert_eq!(
            database.admin.query_one(calls, &[]).await.unwrap().get::<_, i32>(0),
            2,
            "pool of {pool_size}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_goes_away_holds_up_nobody() {
    let database = prepared(GATE).await;
    let authenticator = database.authenticator(1);
    let lock = database.session().await;
    lock.batch_execute("select pg_advisory_lock(7)").await.unwrap();
    let gone = tokio::spawn({
        let authenticator = authenticator.clone();
        async move { authenticator.write_grants(&member(1), "room", "{}").await }
    });
    wait_until(&database.admin, WAITS).await;
    gone.abort();
    lock.batch_execute("select pg_advisory_unlock(7)").await.unwrap();
    assert_eq!(authenticator.write_grants(&member(2), "room", "{}").await, Ok(BROADCAST));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_whose_policy_raises_or_sleeps_does_not_harm_the_others() {
    let database = prepared(
        "create function trap() returns bool language plpgsql as $$ begin
           if realtime.topic() = 'raise' then raise exception 'a secret'; end if;
           if realtime.topic() = 'divide' then perform 1 / 0; end if;
           if realtime.topic() = 'sleep' then perform pg_sleep(60); end if;
           return realtime.topic() <> 'no'; end $$;
         create policy p on realtime.messages to authenticated using (trap()) with check (trap())",
    )
    .await;
    let authenticator = database.authenticator(1);
    let topics = ["a", "raise", "b", "sleep", "no", "divide", "c"];
    let answers = join_all(topics.into_iter().cycle().take(21).enumerate().map(|(n, topic)| {
        let authenticator = authenticator.clone();
        async move {
            let who = member(u32::try_from(n).expect("small"));
            let read = authenticator.read_grants(&who, topic, "{}", true);
            let write = authenticator.write_grants(&who, topic, "{}");
            let (read, write) = futures_util::future::join(read, write).await;
            (topic, read, write)
        }
    }));
    for (topic, read, write) in answers.await {
        for answer in [read, write] {
            match topic {
                "raise" | "divide" => {
                    let Err(ProbeError::Policy(said)) = answer else { panic!("{topic}: {answer:?}") };
                    assert!(!said.contains("secret"), "{said}");
                }
                "sleep" => assert_eq!(
                    answer,
                    Err(ProbeError::Canceled(
                        "ERROR 57014 (query_canceled) canceling statement due to statement timeout"
                            .to_owned()
                    ))
                ),
                "no" => assert_eq!(answer, Ok(NONE)),
                _ => assert_eq!(answer, Ok(BOTH), "{topic}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_cannot_keep_the_role_or_the_claims_for_the_next_one() {
    let database = prepared(
        "create function sneak() returns bool language plpgsql as $$ begin
           perform set_config('role', 'none', false);
           perform set_config('request.jwt.claims', '{\"sub\": \"00000000-0000-4000-8000-000000000001\"}', false);
           perform set_config('request.jwt.claim.sub', '00000000-0000-4000-8000-000000000001', false);
           return false; end $$;
         create policy p on realtime.messages to authenticated
           using ((select auth.uid()) = '00000000-0000-4000-8000-000000000001' or sneak())
           with check ((select auth.uid()) = '00000000-0000-4000-8000-000000000001' or sneak())",
    )
    .await;
    let authenticator = database.authenticator(1);
    let answers = join_all((1..=20).map(|n| {
        let authenticator = authenticator.clone();
        async move {
            let read = authenticator.read_grants(&member(n), "room", "{}", true).await;
            (n, read, authenticator.write_grants(&member(n), "room", "{}").await)
        }
    }));
    for (n, read, write) in answers.await {
        let expected = if n == 1 { BOTH } else { NONE };
        assert_eq!((read, write), (Ok(expected), Ok(expected)), "user {n}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_see_topic_headers_and_claims_as_they_were_sent() {
    let database = prepared(
        r#"create policy p on realtime.messages to authenticated using (
             topic = realtime.topic() and topic = 'a ''"\ room'
             and current_setting('request.headers')::json ->> 'x-team' = 'bl"ue'
             and auth.jwt() ->> 'team' = 'te''am' and current_setting('request.jwt.claim.role') = 'authenticated'
             and private is false and event is null and payload is null and binary_payload is null
             and id is not null and inserted_at = now() at time zone 'UTC' and updated_at = inserted_at)"#,
    )
    .await;
    let authenticator = database.authenticator(1);
    let who = identity("authenticated", None, r#","team":"te'am""#);
    let headers = r#"{"x-team":"bl\"ue"}"#;
    let topic = r#"a '"\ room"#;
    assert_eq!(authenticator.read_grants(&who, topic, headers, true).await, Ok(BOTH));
    assert_eq!(authenticator.write_grants(&who, topic, headers).await, Ok(BOTH));
    assert_eq!(authenticator.read_grants(&who, topic, r#"{"x-team":"red"}"#, true).await, Ok(NONE));
    assert_eq!(authenticator.read_grants(&who, topic, "{}", true).await, Ok(NONE));
    let nul = authenticator.read_grants(&who, "a\0b", headers, true).await;
    assert!(matches!(nul, Err(ProbeError::Policy(_))), "{nul:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_that_nobody_speaks_for_are_refused() {
    let database = prepared(
        "do $$ begin if to_regrole('too_mighty') is null then create role too_mighty superuser; end if; end $$;
         grant too_mighty to authenticator;
         grant usage on schema realtime to too_mighty;
         create policy p on realtime.messages using (true) with check (true)",
    )
    .await;
    let mut roles: Vec<String> = ALLOWED.iter().map(|role| (*role).to_owned()).collect();
    roles.push("too_mighty".to_owned());
    roles.push("ghost".to_owned());
    let authenticator = Authenticator::new(AuthenticatorConfig {
        postgres: database.login("authenticator"),
        pool_size: 1,
        search_path: "public".to_owned(),
        statement_timeout: Duration::from_secs(2),
        roles,
    });
    for role in ["too_mighty", "ghost", "supabase_realtime_admin", "postgres", "none", "\"", ""] {
        let who = identity(role, None, "");
        let read = authenticator.read_grants(&who, "room", "{}", true).await;
        assert!(matches!(read, Err(ProbeError::Policy(_))), "{role}: {read:?}");
        let write = authenticator.write_grants(&who, "room", "{}").await;
        assert!(matches!(write, Err(ProbeError::Policy(_))), "{role}: {write:?}");
    }
    assert_eq!(authenticator.write_grants(&member(1), "room", "{}").await, Ok(BOTH));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_partition_reading_goes_on_and_writing_says_so() {
    let mut database = Database::new("").await;
    tidewire_schema::apply(&mut database.admin).await.unwrap();
    execute(
        &database,
        "create policy p on realtime.messages to authenticated using (true) with check (true)",
    )
    .await;
    let authenticator = database.authenticator(1);
    assert_eq!(authenticator.read_grants(&member(1), "room", "{}", true).await, Ok(BOTH));
    let write = authenticator.write_grants(&member(1), "room", "{}").await;
    assert_eq!(write, Err(ProbeError::MissingPartition));
    // Where a row is needed, it is missing for reading as well.
    execute(&database, "create policy q on realtime.messages to authenticated using (tableoid > 0)").await;
    let read = authenticator.read_grants(&member(1), "room", "{}", true).await;
    assert_eq!(read, Err(ProbeError::MissingPartition));
    tidewire_schema::ensure_partitions(&mut database.admin).await.unwrap();
    assert_eq!(authenticator.write_grants(&member(1), "room", "{}").await, Ok(BOTH));
    assert_eq!(authenticator.read_grants(&member(1), "room", "{}", true).await, Ok(BOTH));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_no_role_can_insert_only_those_who_need_a_row_are_denied() {
    let database = prepared(
        "create policy a on realtime.messages to authenticated using (tableoid > 0);
         create policy b on realtime.messages to anon using (true);
         revoke insert on realtime.messages from service_role",
    )
    .await;
    let authenticator = database.authenticator(1);
    let answers = join_all((0..10).map(|n| {
        let authenticator = authenticator.clone();
        let who = if n % 2 == 0 { member(n) } else { identity("anon", Some(&user(n)), "") };
        async move { (n, authenticator.read_grants(&who, "room", "{}", true).await) }
    }));
    for (n, answer) in answers.await {
        match n % 2 {
            0 => assert!(matches!(answer, Err(ProbeError::Policy(_))), "{answer:?}"),
            _ => assert_eq!(answer, Ok(BOTH)),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_table_nothing_is_granted() {
    let database = Database::new("").await;
    let authenticator = database.authenticator(1);
    let read = authenticator.read_grants(&member(1), "room", "{}", true).await;
    assert!(matches!(read, Err(ProbeError::Policy(_))), "{read:?}");
    let write = authenticator.write_grants(&member(1), "room", "{}").await;
    assert!(matches!(write, Err(ProbeError::Policy(_))), "{write:?}");
    let replay = authenticator.replay("room", 0, 25).await;
    assert!(replay.is_err(), "{replay:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_died_are_replaced_without_anybody_noticing() {
    let database =
        prepared("create policy p on realtime.messages to authenticated using (true) with check (true)")
            .await;
    let authenticator = database.authenticator(1);
    for _ in 0..3 {
        assert_eq!(authenticator.read_grants(&member(1), "room", "{}", true).await, Ok(BOTH));
        assert_eq!(authenticator.write_grants(&member(1), "room", "{}").await, Ok(BOTH));
        assert_eq!(authenticator.replay("room", 0, 25).await, Ok(vec![]));
        execute(
            &database,
            "select pg_terminate_backend(pid, 10000) from pg_stat_activity
             where usename = 'authenticator' and datname = current_database()",
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_not_there_is_unavailable() {
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(1).user("nobody");
    let authenticator = Authenticator::new(AuthenticatorConfig {
        postgres: config,
        pool_size: 2,
        search_path: "public".to_owned(),
        statement_timeout: Duration::from_secs(2),
        roles: vec!["authenticated".to_owned()],
    });
    assert_eq!(authenticator.read_grants(&member(1), "room", "{}", true).await, Err(ProbeError::Unavailable));
    assert_eq!(authenticator.write_grants(&member(1), "room", "{}").await, Err(ProbeError::Unavailable));
    assert_eq!(authenticator.replay("room", 0, 25).await, Err(ProbeError::Unavailable));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_with_rights_of_its_own_is_not_used() {
    let database = prepared("").await;
    let authenticator = database.authenticator_as("inheriting", 1);
    let read = authenticator.read_grants(&member(1), "room", "{}", true).await;
    assert!(matches!(read, Err(ProbeError::Other(_))), "{read:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_pool_is_told_and_then_refused_at_once() {
    let database = prepared(GATE).await;
    let authenticator = Authenticator::new(AuthenticatorConfig {
        postgres: database.login("authenticator"),
        pool_size: 1,
        search_path: "public".to_owned(),
        statement_timeout: Duration::from_secs(60),
        roles: vec!["authenticated".to_owned(), "service_role".to_owned()],
    });
    let lock = database.session().await;
    lock.batch_execute("select pg_advisory_lock(7)").await.unwrap();
    let busy = tokio::spawn({
        let authenticator = authenticator.clone();
        async move { authenticator.write_grants(&member(1), "room", "{}").await }
    });
    wait_until(&database.admin, WAITS).await;
    let read = authenticator.read_grants(&member(1), "room", "{}", true).await;
    assert_eq!(read, Err(ProbeError::PoolExhausted));
    let begun = std::time::Instant::now();
    let read = authenticator.read_grants(&member(1), "room", "{}", true).await;
    assert_eq!(read, Err(ProbeError::PoolExhausted));
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    lock.batch_execute("select pg_advisory_unlock(7)").await.unwrap();
    assert_eq!(busy.await.unwrap(), Ok(BROADCAST));
}
