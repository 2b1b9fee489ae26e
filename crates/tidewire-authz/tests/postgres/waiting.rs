//! Not before it is visible.

use std::time::Duration;

use tidewire_authz::AccessError;

use super::fixture::Database;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_transaction_is_not_visible_and_a_committed_one_is() {
    let database = Database::new("create table t (id int)").await;
    let authenticator = database.authenticator(2);
    let writer = database.session().await;
    writer.batch_execute("begin; insert into t values (1)").await.unwrap();
    let row = writer.query_one("select pg_current_xact_id()::text::bigint", &[]).await.unwrap();
    let xid = u32::try_from(row.get::<_, i64>(0)).unwrap();

    let waited = authenticator.wait_visible(&[xid], Duration::from_millis(50)).await;
    assert!(matches!(waited, Err(AccessError::NotVisible { .. })), "{waited:?}");

    let waiting = tokio::spawn({
        let authenticator = authenticator.clone();
        async move { authenticator.wait_visible(&[xid], Duration::from_secs(20)).await }
    });
    writer.batch_execute("commit").await.unwrap();
    waiting.await.unwrap().unwrap();
    // Later transactions do not matter, and an empty list waits for nothing.
    writer.batch_execute("begin; insert into t values (2)").await.unwrap();
    authenticator.wait_visible(&[xid], Duration::from_secs(5)).await.unwrap();
    authenticator.wait_visible(&[], Duration::ZERO).await.unwrap();
}
