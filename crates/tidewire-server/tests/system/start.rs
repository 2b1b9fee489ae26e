//! What the database may lack when the server starts: clients are told why, and it mends itself.
//!
//! Spec: PROTOCOL.md §5.10, §9.1.

use serde_json::{Value, json};
use tidewire_testkit::{Client, Postgres, TestServer};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn smoke() {
    let postgres = Postgres::start(
        "create table t (id int primary key, body text); alter publication supabase_realtime add table t",
    )
    .await;
    let server = TestServer::start(&postgres).await;
    let mut client = server.client("anon").await;
    client.listen("realtime:a", &json!([{"event": "*", "schema": "public", "table": "t"}])).await;
    postgres.sql("insert into t values (1, 'x')").await;
    let change = client.change("realtime:a").await;
    assert_eq!(change["data"]["record"], json!({"id": 1, "body": "x"}));
    server.stop().await;
}
