//! The numbers move when the thing happens that they count. Spec: PROTOCOL.md §7.3, §8.4.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tidewire_server::ServerConfig;
use tidewire_server::config::{DatabaseConfig, MetricsAccess};
use tidewire_testkit::client::Version;
use tidewire_testkit::{Client, Postgres, TestServer, config, token};

use crate::page::{Page, request, until};

fn open(database: Option<DatabaseConfig>) -> ServerConfig {
    let mut config = config(database);
    config.metrics.without_secret = MetricsAccess::Loopback;
    config.limits.max_events_per_second = None;
    config
}

fn broadcast(event: &str) -> Value {
    json!({"type": "broadcast", "event": event, "payload": {}})
}

async fn broadcast_over_http(address: SocketAddr, payload: &Value) {
    let body = json!({"messages": [{"topic": "room", "event": "e", "payload": payload}]}).to_string();
    let authorization = format!("Authorization: Bearer {}", token::of_role("anon"));
    let headers = ["Content-Type: application/json", authorization.as_str()];
    let answer = request(address, "POST /api/broadcast", &headers, &body).await;
    assert_eq!(answer.status, 202, "{}", answer.body);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_joins_and_events_are_counted_and_leave_again() {
    let server = TestServer::start_with(open(None)).await;
    let address = server.address();
    let page = Page::of(address).await;
    assert_eq!(page.of_tenant("realtime_connections_connected"), 0.0);
    assert_eq!(page.value("realtime_tenants_connected", &[]), 0.0);
    assert_eq!(page.value("tidewire_replication_live", &[]), 1.0, "no database, nothing to wait for");

    let mut sender = server.client("anon").await;
    let mut receiver = Client::connect(address, &token::of_role("anon"), Version::V1).await;
    for client in [&mut sender, &mut receiver] {
        client.join("realtime:room", &json!({"config": {"presence": {"enabled": false}}})).await;
    }
    sender.join("realtime:room", &json!({})).await;
    for name in ["one", "two"] {
        sender.push(&json!("3"), "realtime:room", "broadcast", &broadcast(name)).await;
        receiver.expect(name, |frame| frame.payload["event"] == name).await;
    }
    let page = until(address, "two broadcasts, one delivery each", |page| {
        page.of_tenant("realtime_channel_events") == 4.0 && page.value("tidewire_channels", &[]) == 2.0
    })
    .await;
    for connected in ["realtime_connections_connected", "realtime_connections_connected_cluster"] {
        assert_eq!(page.of_tenant(connected), 2.0);
    }
    assert_eq!(page.value("realtime_connections_global_connected", &[]), 2.0);
    assert_eq!(page.value("phoenix_connections_active", &[]), 2.0);
    assert_eq!(page.value("realtime_tenants_connected", &[]), 1.0);
    assert_eq!(page.of_tenant("realtime_channel_joins"), 3.0);
    assert_eq!(page.value("realtime_channel_global_joins", &[]), 3.0);
    // Three replies, a close of the channel joined twice, two broadcasts; presence may add a state.
    let frames = page.value("tidewire_frames_written_total", &[]);
    assert!(frames >= 6.0, "{frames}");
    assert!((1.0..=frames).contains(&page.value("tidewire_writes_total", &[])));
    assert!(page.of_tenant("realtime_channel_input_bytes") > 300.0);
    assert!(page.of_tenant("realtime_channel_output_bytes") > 300.0);
    assert_eq!(page.value("tidewire_outbox_bytes", &[]), 0.0);

    drop(sender);
    drop(receiver);
    until(address, "nobody", |page| {
        page.of_tenant("realtime_connections_connected") == 0.0 && page.value("tidewire_topics", &[]) == 0.0
    })
    .await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_are_those_on_the_wire() {
    let server = TestServer::start_with(open(None)).await;
    let address = server.address();
    let mut client = server.client("anon").await;
    client.heartbeat().await;
    // A text frame of a client: two bytes, four of the mask, the text; of the server: two bytes and the text.
    let sent = br#"[null,"1","phoenix","heartbeat",{}]"#.len() + 6;
    let got = br#"[null,"1","phoenix","phx_reply",{"status":"ok","response":{}}]"#.len() + 2;
    until(address, "one frame each way", |page| {
        page.of_tenant("realtime_channel_input_bytes") == sent as f64
            && page.value("realtime_channel_global_output_bytes", &[]) == got as f64
            && page.value("tidewire_frames_written_total", &[]) == 1.0
    })
    .await;
    drop(client);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn presence_is_counted() {
    let server = TestServer::start_with(open(None)).await;
    let mut client = server.client("anon").await;
    client.join("realtime:room", &json!({"config": {"presence": {"key": "k", "enabled": true}}})).await;
    client.expect("a state", |frame| frame.event == "presence_state").await;
    let track = json!({"type": "presence", "event": "track", "payload": {"a": 1}});
    client.push(&json!("1"), "realtime:room", "presence", &track).await;
    client.expect("a diff", |frame| frame.event == "presence_diff").await;
    // The state, the track, the diff.
    until(server.address(), "three presence events", |page| {
        page.of_tenant("realtime_channel_presence_events") == 3.0
    })
    .await;
    drop(client);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broadcasts_over_http_are_counted_with_their_size() {
    let server = TestServer::start_with(open(None)).await;
    broadcast_over_http(server.address(), &json!({"a": 1})).await;
    broadcast_over_http(server.address(), &json!({"a": "x".repeat(2_000)})).await;
    let page = Page::of(server.address()).await;
    assert_eq!(page.value("tidewire_http_broadcasts_total", &[]), 2.0);
    assert_eq!(page.of_tenant("realtime_channel_events"), 2.0, "accepted, and delivered to nobody");
    let kind = ("message_type", "broadcast");
    assert_eq!(page.value("realtime_payload_size_count", &[kind]), 2.0);
    for (bound, count) in [("250.0", 1.0), ("1.0e3", 1.0), ("3.0e3", 2.0), ("3.0e6", 2.0)] {
        let labels = [kind, ("le", bound)];
        assert_eq!(page.value("realtime_payload_size_bucket", &labels), count, "{bound}");
        let of_tenant = [kind, ("tenant", "realtime-dev"), ("le", bound)];
        assert_eq!(page.value("realtime_tenants_payload_size_bucket", &of_tenant), count, "{bound}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_are_counted_by_code_and_warnings_are_no_errors() {
    let server = TestServer::start_with(open(None)).await;
    let address = server.address();
    let mut client = server.client("anon").await;
    client.push(&json!("1"), "realtime:", "phx_join", &json!({})).await;
    let upgrade = [
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ];
    let expired = token::sign(&json!({"role": "anon", "exp": 1}));
    for (path, status) in
        [("/socket/websocket?vsn=2.0.0", 401), (&*format!("/socket/websocket?apikey={expired}"), 401)]
    {
        let answer = request(address, &format!("GET {path}"), &upgrade, "").await;
        assert_eq!(answer.status, status, "{}", answer.body);
    }
    let count = |page: &Page, code: &str| {
        let of_tenant = [("code", code), ("tenant", "realtime-dev")];
        let of_tenant = page.value("realtime_channel_error", &of_tenant);
        assert_eq!(of_tenant, page.value("realtime_channel_global_error", &[("code", code)]));
        (of_tenant, page.value("tidewire_operational_codes_total", &[("code", code)]))
    };
    let page =
        until(address, "a join without a topic", |page| count(page, "TopicNameRequired") == (1.0, 1.0)).await;
    assert_eq!(count(&page, "MissingAPIKey"), (1.0, 1.0));
    assert_eq!(count(&page, "InvalidJWTToken"), (0.0, 1.0));
    assert_eq!(count(&page, "Unauthorized"), (0.0, 0.0));
    drop(client);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_are_shown_as_configured() {
    let mut config = open(None);
    config.limits.max_connections = 77;
    config.limits.presence_calls = None;
    let server = TestServer::start_with(config).await;
    let page = Page::of(server.address()).await;
    let limit = |name| page.value("tidewire_limit", &[("name", name)]);
    assert_eq!(limit("max_connections"), 77.0);
    assert_eq!(page.value("phoenix_connections_max", &[]), 77.0);
    assert_eq!(limit("max_outbox_bytes"), 16_777_216.0);
    assert_eq!(limit("presence_calls"), f64::INFINITY);
    if cfg!(target_os = "linux") {
        assert!(page.value("process_resident_memory_bytes", &[]) > 1e6);
    }
    assert!(page.value("process_start_time_seconds", &[]) > 1.7e9);
    assert_eq!(page.value("tidewire_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), 1.0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_shows_what_waits_for_it_until_it_is_closed() {
    let server = TestServer::start_with(open(None)).await;
    let address = server.address();
    let mut idle = server.client("anon").await;
    idle.join("realtime:room", &json!({})).await;
    // It reads nothing from here on. What the kernel takes depends on the machine; what is more, waits.
    let payload = json!({"a": "x".repeat(2_000_000)});
    for _ in 0..100 {
        broadcast_over_http(address, &payload).await;
        let page = Page::of(address).await;
        if page.value("tidewire_blocked_connections", &[]) == 1.0 {
            break;
        }
    }
    let page =
        until(address, "a blocked connection", |page| page.value("tidewire_outbox_bytes", &[]) > 0.0).await;
    assert_eq!(page.value("tidewire_blocked_connections", &[]), 1.0);
    assert_eq!(page.value("tidewire_slow_readers_total", &[]), 0.0);
    // More than the bound of 16 MiB.
    for _ in 0..10 {
        broadcast_over_http(address, &payload).await;
    }
    until(address, "a slow reader", |page| page.value("tidewire_slow_readers_total", &[]) == 1.0).await;
    drop(idle);
    until(address, "nothing that waits", |page| {
        page.value("tidewire_outbox_bytes", &[]) == 0.0
            && page.value("tidewire_blocked_connections", &[]) == 0.0
    })
    .await;
    server.stop().await;
}

mod postgres {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn changes_are_counted_and_the_log_is_confirmed() {
        let sql =
            "create table games (id int primary key); alter publication supabase_realtime add table games";
        let postgres = Postgres::start(sql).await;
        let server = TestServer::start_with(open(Some(postgres.logins()))).await;
        server.wait_live().await;
        let address = server.address();
        let mut client = server.client("anon").await;
        let binding = json!({"event": "*", "schema": "public", "table": "games"});
        let filtered = json!({"event": "*", "schema": "public", "table": "games", "filter": "id=eq.1"});
        client.listen("realtime:a", &json!([binding])).await;
        client.listen("realtime:b", &json!([binding, filtered])).await;
        postgres.sql("insert into games values (1)").await;
        postgres.sql("insert into games values (2)").await;
        for topic in ["realtime:a", "realtime:b"] {
            client.changes_until(topic, |data| data["record"]["id"] == 2).await;
        }
        let page = until(address, "a confirmed log", |page| {
            page.value("tidewire_change_batches_total", &[]) >= 1.0
                && page.value("tidewire_wal_lag_bytes", &[]) == 0.0
        })
        .await;
        assert_eq!(page.value("tidewire_replication_live", &[]), 1.0);
        assert_eq!(page.value("tidewire_changes_total", &[]), 2.0);
        assert_eq!(page.of_tenant("realtime_channel_db_events"), 5.0, "three bindings, then two");
        assert_eq!(page.value("realtime_channel_global_db_events", &[]), 5.0);
        // An encoding is made once.
        let kind = [("message_type", "postgres_changes")];
        assert_eq!(page.value("realtime_payload_size_count", &kind), 2.0);
        assert!(page.value("tidewire_change_batch_seconds_sum", &[]) > 0.0);

        postgres.terminate_walsender(tidewire_testkit::postgres::SLOT).await;
        let interrupted = [("code", "ChangeStreamInterrupted")];
        until(address, "an interruption that is over", |page| {
            page.value("tidewire_operational_codes_total", &interrupted) >= 1.0
                && page.value("tidewire_replication_live", &[]) == 1.0
        })
        .await;
        drop(client);
        server.stop().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn questions_about_private_channels_are_timed() {
        let postgres = Postgres::start("").await;
        let server = TestServer::start_with(open(Some(postgres.logins()))).await;
        let mut client = server.client("anon").await;
        client.push(&json!("1"), "realtime:a", "phx_join", &json!({"config": {"private": true}})).await;
        client.expect("an answer", |frame| frame.event == "phx_reply").await;
        until(server.address(), "one question, answered", |page| {
            page.value("tidewire_authorise_seconds_count", &[("question", "read")]) == 1.0
                && page.of_tenant("realtime_tenants_read_authorization_check_count") == 1.0
                && page.value("tidewire_authorise_waiting", &[]) == 0.0
        })
        .await;
        drop(client);
        server.stop().await;
    }
}
