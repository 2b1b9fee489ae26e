//! Cases that the oracle cannot make, and the attacks.

use std::sync::Arc;
use std::time::Duration;

use tidewire_authz::{AccessError, Authenticator, AuthenticatorConfig, RowImage};

use super::fixture::{ALLOWED, Database, identity, member, user};

const NOTES: &str = "
    create table notes (id int primary key, owner uuid, body text, secret bool default false);
    alter table notes enable row level security;
    grant select on notes to authenticated, service_role, anon;";

fn notes(policy: &str) -> String {
    format!("{NOTES} create policy p on notes for select using ({policy});")
}

fn image(json: &str) -> RowImage {
    RowImage { json: json.to_owned() }
}

fn owned_by(id: u32, owner: u32) -> RowImage {
    image(&format!(r#"{{"id":"{id}","owner":"{}","body":"b","secret":"f"}}"#, user(owner)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_identities_see_their_own_rows_and_nobody_elses() {
    // The second function lies about itself: a plan kept for all would freeze the first user's id.
    let database = Database::new(
        "create function frozen() returns uuid language sql immutable as $$ select auth.uid() $$;
         create function frozen_plpgsql() returns uuid language plpgsql immutable as $$ begin return auth.uid(); end $$;",
    )
    .await;
    for policy in
        ["owner = (select auth.uid())", "owner = auth.uid()", "owner = frozen()", "owner = frozen_plpgsql()"]
    {
        database
            .admin
            .batch_execute(&format!("drop table if exists notes; {}", notes(policy)))
            .await
            .unwrap();
        for pool_size in [1, 4] {
            let authenticator = database.authenticator(pool_size);
            let table = database.table(&authenticator, "notes").await;
            let identities: Vec<_> = (0..50).map(member).collect();
            let images: Vec<_> = (0..50).map(|n| owned_by(n, n)).collect();
            // Often enough for a cached plan to turn generic.
            for _ in 0..3 {
                let judgement = authenticator.judge(&table, &identities, &images).await.unwrap();
                assert_eq!(judgement.errors, []);
                for (identity, seen) in judgement.visible.iter().enumerate() {
                    for (image, seen) in seen.iter().enumerate() {
                        assert_eq!(*seen, identity == image, "{policy}: identity {identity}, image {image}");
                    }
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_denies_that_identity_alone() {
    let database = Database::new(&notes("10 / (auth.jwt() ->> 'divisor')::int = 5")).await;
    let authenticator = database.authenticator(1);
    let table = database.table(&authenticator, "notes").await;
    let with = |divisor: &str| identity("authenticated", Some(&user(1)), &format!(r#","divisor":{divisor}"#));
    let unknown = identity("nobody_knows", None, "");
    let none = identity("none", None, "");
    let identities =
        [with("2"), with("0"), with("\"canary\""), unknown, none, with("2"), with("\"\\u0000\"")];
    let judgement = authenticator.judge(&table, &identities, &[owned_by(1, 1)]).await.unwrap();
    let seen: Vec<_> = judgement.visible.iter().map(|seen| seen[0]).collect();
    assert_eq!(seen, [true, false, false, false, false, true, false]);
    let failed: Vec<_> = judgement.errors.iter().map(|(index, _)| *index).collect();
    assert_eq!(failed, [1, 2, 3, 4, 6]);
    assert!(judgement.errors[0].1.contains("22012"));
    assert!(!format!("{:?}", judgement.errors).contains("canary"), "a value in an error");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_undoes_set_role_gains_nothing_and_spoils_nothing() {
    let database = Database::new(
        "create table vault (x int); insert into vault values (1);
         create table seen_by_service (x int); insert into seen_by_service values (1);
         grant select on seen_by_service to service_role;
         -- Only for one user, so that the next ones show what is left behind.
         create function escape(how text, what text) returns bool language plpgsql volatile as $$
         declare found bool;
         begin
             if auth.uid() <> '00000000-0000-4000-8000-000000000001' then return current_user = 'authenticated'; end if;
             perform set_config('role', how, false);
             perform set_config('request.jwt.claims', '{\"sub\":\"00000000-0000-4000-8000-000000000009\"}', false);
             perform set_config('search_path', 'pg_temp', false);
             execute 'select exists (select from public.' || what || ')' into found;
             return found;
         end $$;",
    )
    .await;
    for (how, what) in
        [("none", "vault"), ("authenticator", "vault"), ("postgres", "vault"), ("anon", "seen_by_service")]
    {
        let policy = notes(&format!("escape('{how}', '{what}')"));
        database.admin.batch_execute(&format!("drop table if exists notes; {policy}")).await.unwrap();
        let authenticator = database.authenticator(1);
        let table = database.table(&authenticator, "notes").await;
        let judgement = authenticator
            .judge(&table, &[member(1), member(2), member(1), member(3)], &[owned_by(1, 1)])
            .await
            .unwrap();
        let seen: Vec<_> = judgement.visible.iter().map(|seen| seen[0]).collect();
        assert_eq!(seen, [false, true, false, true], "{how}: {:?}", judgement.errors);
    }
    // Where the policy has its way, as it would in a SELECT, the next identity is judged as itself all the same.
    let policy = notes("escape('service_role', 'seen_by_service')");
    database.admin.batch_execute(&format!("drop table if exists notes; {policy}")).await.unwrap();
    let authenticator = database.authenticator(1);
    let table = database.table(&authenticator, "notes").await;
    let identities = [member(1), member(2), identity("anon", Some(&user(2)), "")];
    let judgement = authenticator.judge(&table, &identities, &[owned_by(1, 1)]).await.unwrap();
    assert_eq!(judgement.visible, [[true], [true], [false]]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_cannot_write() {
    let database = Database::new(
        "create table log (x int); grant insert on log to authenticated;
         create function noted() returns bool language plpgsql as $$ begin insert into log values (1); return true; end $$;
         create function unlocked() returns bool language plpgsql as
             $$ begin set transaction_read_only = off; insert into log values (1); return true; end $$;",
    )
    .await;
    for policy in ["noted()", "unlocked()"] {
        database
            .admin
            .batch_execute(&format!("drop table if exists notes; {}", notes(policy)))
            .await
            .unwrap();
        let authenticator = database.authenticator(1);
        let table = database.table(&authenticator, "notes").await;
        let judgement = authenticator.judge(&table, &[member(1)], &[owned_by(1, 1)]).await.unwrap();
        assert_eq!(judgement.visible, [[false]], "{policy}");
    }
    assert_eq!(database.admin.query("select from log", &[]).await.unwrap().len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_incomplete_image_counts_only_while_the_row_is_equal() {
    let database = Database::new(&notes("secret is not true and length(body) > 0")).await;
    let authenticator = database.authenticator(1);
    let table = database.table(&authenticator, "notes").await;
    let owner = user(1);
    let toasted = image(&format!(r#"{{"id":"1","owner":"{owner}","secret":"f"}}"#));
    let whole = image(&format!(r#"{{"id":"1","owner":"{owner}","body":"b","secret":"f"}}"#));
    let judge = async |images: &[RowImage]| {
        let judgement = authenticator.judge(&table, &[member(1)], images).await.unwrap();
        assert_eq!(judgement.errors, []);
        judgement.visible[0].clone()
    };
    // Without a row there is nothing to compare with; the whole image stands for itself.
    assert_eq!(judge(&[toasted.clone(), whole.clone()]).await, [false, true]);

    // Written under a savepoint: the row's own transaction id is not that of the stream.
    database
        .admin
        .batch_execute(&format!(
            "begin; savepoint s; insert into notes values (1, '{owner}', 'b', false); commit"
        ))
        .await
        .unwrap();
    assert_eq!(judge(std::slice::from_ref(&toasted)).await, [true]);

    // Somebody else owns it now: what the image shows cannot be selected any more.
    database.admin.batch_execute(&format!("update notes set owner = '{}'", user(2))).await.unwrap();
    assert_eq!(judge(std::slice::from_ref(&toasted)).await, [false]);

    // One transaction, two versions: the secret one in the middle was never for anybody to see.
    database
        .admin
        .batch_execute(&format!(
            "begin; update notes set owner = '{owner}', secret = true; update notes set owner = null, secret = false; commit"
        ))
        .await
        .unwrap();
    let middle = image(&format!(r#"{{"id":"1","owner":"{owner}","secret":"t"}}"#));
    assert_eq!(judge(&[middle]).await, [false]);

    // Equal again, but hidden.
    database
        .admin
        .batch_execute(&format!("update notes set owner = '{owner}', secret = false, body = ''"))
        .await
        .unwrap();
    assert_eq!(judge(&[toasted]).await, [false]);
    // No key, no answer.
    assert_eq!(judge(&[image(r#"{"secret":"f"}"#)]).await, [false]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_helper_in_a_schema_without_usage_works_as_in_a_select() {
    let database = Database::new(&format!(
        "create schema hidden;
         create function hidden.mine(who uuid) returns bool language sql stable security definer as $$ select who = auth.uid() $$;
         {}
         insert into notes values (1, '{}', 'b', false), (2, '{}', 'b', false)",
        notes("hidden.mine(owner)"),
        user(1),
        user(2)
    ))
    .await;
    let authenticator = database.authenticator(1);
    let table = database.table(&authenticator, "notes").await;
    let images = database.images(&table).await;
    for _ in 0..2 {
        let judgement =
            authenticator.judge(&table, &[member(1), member(2), member(3)], &images).await.unwrap();
        assert_eq!(judgement.errors, []);
        assert_eq!(judgement.visible, [[true, false], [false, true], [false, false]]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_json_null_is_not_taken_for_a_missing_value() {
    let database = Database::new(
        "create table j (id int primary key, meta jsonb); alter table j enable row level security;
         grant select on j to authenticated;
         create policy p on j using (meta is null);
         insert into j values (1, 'null'), (2, null), (3, '1')",
    )
    .await;
    let authenticator = database.authenticator(1);
    let table = database.table(&authenticator, "j").await;
    let images = database.images(&table).await;
    assert_eq!(images[0].json.replace('1', "2"), images[1].json, "the image itself does not tell");
    let judgement = authenticator.judge(&table, &[member(1)], &images).await.unwrap();
    assert_eq!(judgement.visible, [[false, true, false]]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_policies_of_a_partitioned_table_are_those_of_its_root() {
    let database = Database::new(
        "create table parted (id int, region text, owner uuid, primary key (id, region)) partition by list (region);
         create table parted_a partition of parted for values in ('a');
         alter table parted enable row level security;
         create policy p on parted using (owner = auth.uid());
         grant select on parted to authenticated;
         create publication pub for table parted with (publish_via_partition_root = true);",
    )
    .await;
    let authenticator = database.authenticator(1);
    let relids = authenticator.resolve("pub", Some("public"), None).await.unwrap();
    assert_eq!(relids, [database.relid("parted").await]);
    let table = authenticator.table(relids[0]).await.unwrap();
    let images: Vec<_> =
        (1..3).map(|n| image(&format!(r#"{{"id":"{n}","region":"a","owner":"{}"}}"#, user(n)))).collect();
    let judgement = authenticator.judge(&table, &[member(1), member(2)], &images).await.unwrap();
    assert_eq!(judgement.visible, [[true, false], [false, true]]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_policies_do_not_add_up_and_the_pool_survives_them() {
    let database = Database::new(&notes("(auth.jwt() ->> 'slow') is null or pg_sleep(30) is null")).await;
    let authenticator = Authenticator::new(AuthenticatorConfig {
        postgres: database.login("authenticator"),
        pool_size: 1,
        search_path: "public".to_owned(),
        statement_timeout: Duration::from_millis(100),
        roles: ALLOWED.iter().map(|role| (*role).to_owned()).collect(),
    });
    let table = database.table(&authenticator, "notes").await;
    let slow = |n: u32| identity("authenticated", Some(&user(n)), r#","slow":true"#);
    let mut identities = vec![member(1)];
    identities.extend((0..100).map(slow));
    let begun = std::time::Instant::now();
    let judgement = authenticator.judge(&table, &identities, &[owned_by(1, 1)]).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(judgement.visible[0], [true]);
    assert!(judgement.visible[1..].iter().all(|seen| seen == &[false]));
    assert_eq!(judgement.errors.len(), 100);
    // A new connection takes over.
    let judgement = authenticator.judge(&table, &identities[..1], &[owned_by(1, 1)]).await.unwrap();
    assert_eq!(judgement.visible, [[true]]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_connection_decides_nothing_and_is_replaced() {
    let database = Database::new(&notes("owner = auth.uid()")).await;
    let authenticator = database.authenticator(1);
    let table = database.table(&authenticator, "notes").await;
    let end = "select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = 'authenticator'
               and datname = current_database()";
    database.admin.query(end, &[]).await.unwrap();
    // The end may be noticed before or while asking; it is never an answer.
    let first = authenticator.judge(&table, &[member(1)], &[owned_by(1, 1)]).await;
    assert!(matches!(&first, Err(AccessError::Query(_))) || first.is_ok_and(|j| j.visible == [[true]]));
    let judgement = authenticator.judge(&table, &[member(1)], &[owned_by(1, 1)]).await.unwrap();
    assert_eq!(judgement.visible, [[true]]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_with_rights_of_its_own_is_refused() {
    let database = Database::new(&notes("true")).await;
    let relid = database.relid("notes").await;
    for (login, problem) in [("inheriting", "inherits"), ("bypassing", "bypasses")] {
        let refused = database.authenticator_as(login, 1).table(relid).await.unwrap_err();
        assert_eq!(refused.code(), "AuthenticatorUnsafe");
        assert!(refused.to_string().contains(problem), "{refused}");
        assert!(refused.advice().is_some_and(|advice| advice.contains(login)));
    }
    assert!(database.authenticator(1).table(relid).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_future_that_is_dropped_leaves_no_role_behind() {
    let database = Database::new(&notes(
        "(auth.jwt() ->> 'slow') is null and owner = auth.uid() or pg_sleep(1) is null",
    ))
    .await;
    let authenticator = database.authenticator(1);
    let table = database.table(&authenticator, "notes").await;
    let slow = [identity("authenticated", Some(&user(2)), r#","slow":true"#)];
    let images = [owned_by(1, 1), owned_by(2, 2)];
    let cut =
        tokio::time::timeout(Duration::from_millis(30), authenticator.judge(&table, &slow, &images)).await;
    assert!(cut.is_err());
    let none: [Arc<_>; 0] = [];
    assert_eq!(authenticator.judge(&table, &none, &images).await.unwrap().visible.len(), 0);
    assert!(authenticator.roles_fingerprint().await.is_ok());
    let user: String = {
        let evaluated =
            authenticator.evaluate(&table, &["current_user = 'authenticated'".to_owned()], &images).await;
        format!("{:?}", evaluated.unwrap())
    };
    assert_eq!(user, "[[false, false]]", "filters run as the least able role, anon");
}
