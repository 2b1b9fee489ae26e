//! The frames around a change: ids, groups, the legacy shape, both serializers.
//!
//! Spec: PROTOCOL.md §2.6, §2.7, §5.5.

use serde_json::{Value, json};
use tidewire_testkit::client::Version;
use tidewire_testkit::{Client, Postgres, TestServer, token};

use crate::{GAMES, all_of};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_frame_per_selection_names_its_bindings_in_reverse() {
    let postgres = Postgres::start(GAMES).await;
    let server = TestServer::start_live(&postgres).await;
    let mut client = server.client("anon").await;
    let on = |more: Value| {
        let mut binding = json!({"event": "*", "schema": "public", "table": "games"});
        binding.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        binding
    };
    // Equal bindings have equal ids and are all named.
    let bindings = json!([
        on(json!({})),
        on(json!({"filter": "id=eq.1"})),
        on(json!({"filter": "id=eq.2"})),
        on(json!({"event": "INSERT"})),
        on(json!({})),
        on(json!({"select": ["id"]})),
        on(json!({"select": ["id"], "filter": "status=ilike.O%"})),
        on(json!({"select": ["status"]})),
    ]);
    let ids = client.listen("realtime:a", &bindings).await;
    assert_eq!(ids[0], ids[4]);
    assert!(ids.iter().all(|id| (1..1 << 27).contains(id)), "{ids:?}");
    postgres.sql("insert into games values (1, 'open')").await;
    postgres.sql("update games set status = 'shut'").await;

    let mut frames: Vec<(Value, Value)> = Vec::new();
    for _ in 0..6 {
        let payload = client.change("realtime:a").await;
        frames.push((payload["ids"].clone(), payload["data"]["record"].clone()));
    }
    let mut wanted = vec![
        (json!([ids[4], ids[3], ids[1], ids[0]]), json!({"id": 1, "status": "open"})),
        (json!([ids[6], ids[5]]), json!({"id": 1})),
        (json!([ids[7]]), json!({"id": 1, "status": "open"})),
        (json!([ids[4], ids[1], ids[0]]), json!({"id": 1, "status": "shut"})),
        (json!([ids[5]]), json!({"id": 1})),
        (json!([ids[7]]), json!({"id": 1, "status": "shut"})),
    ];
    // The order of the frames of one change is not said.
    for half in [&mut frames, &mut wanted] {
        half[..3].sort_by_key(|frame| frame.0.to_string());
        half[3..].sort_by_key(|frame| frame.0.to_string());
    }
    assert_eq!(frames, wanted);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_of_the_old_shape_listens_to_what_its_topic_says_and_gets_bare_changes() {
    let postgres = Postgres::start(GAMES).await;
    let server = TestServer::start_live(&postgres).await;
    for version in [Version::V1, Version::V2] {
        let mut client = Client::connect(server.address(), &token::of_role("anon"), version).await;
        let response = client.join("realtime:public:games", &json!({})).await;
        let binding = &response["postgres_changes"][0];
        assert_eq!((&binding["schema"], &binding["table"]), (&json!("public"), &json!("games")));
        client.subscribed("realtime:public:games").await;
        client.join("realtime:public:games:id=eq.2", &json!({})).await;
        client.subscribed("realtime:public:games:id=eq.2").await;
        client.join("realtime:public", &json!({"access_token": token::of_role("anon")})).await;
        client.subscribed("realtime:public").await;

        postgres.sql("insert into games values (1, 'a'), (2, 'b'); update games set status = 'c' where id = 2; delete from games").await;
        for (topic, wanted) in [
            (
                "realtime:public:games",
                ["INSERT 1", "INSERT 2", "UPDATE 2", "DELETE 1", "DELETE 2"].as_slice(),
            ),
            ("realtime:public:games:id=eq.2", &["INSERT 2", "UPDATE 2", "DELETE 2"]),
            ("realtime:public", &["INSERT 1", "INSERT 2", "UPDATE 2", "DELETE 1", "DELETE 2"]),
        ] {
            for wanted in wanted {
                let frame =
                    client.expect(wanted, |frame| frame.topic == topic && frame.event != "system").await;
                assert_eq!(frame.payload["type"], frame.event.as_str());
                let row = if frame.event == "DELETE" { "old_record" } else { "record" };
                assert_eq!(format!("{} {}", frame.event, frame.payload[row]["id"]), *wanted, "{topic}");
                assert_eq!(frame.payload.get("ids"), None);
                assert_eq!((frame.join_ref, frame.reference), (Value::Null, Value::Null));
            }
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_serializers_carry_the_same_change_without_refs() {
    let postgres = Postgres::start(GAMES).await;
    let server = TestServer::start_live(&postgres).await;
    let mut heard = Vec::new();
    let mut clients = Vec::new();
    for version in [Version::V1, Version::V2] {
        let mut client = Client::connect(server.address(), &token::of_role("anon"), version).await;
        client.listen("realtime:a", &all_of("games")).await;
        clients.push(client);
    }
    postgres.sql(r#"insert into games values (1, 'quote " back \ tab	 snow ☃')"#).await;
    for client in &mut clients {
        let frame = client.expect("a change", |frame| frame.event == "postgres_changes").await;
        assert_eq!((&frame.join_ref, &frame.reference), (&Value::Null, &Value::Null));
        heard.push(frame.payload);
    }
    assert_eq!(heard[0], heard[1]);
    assert_eq!(heard[0]["data"]["record"]["status"], "quote \" back \\ tab\t snow ☃");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_has_left_gets_nothing_and_its_socket_goes_on() {
    let postgres = Postgres::start(GAMES).await;
    let server = TestServer::start_live(&postgres).await;
    let mut client = server.client("anon").await;
    client.listen("realtime:a", &all_of("games")).await;
    client.listen("realtime:b", &all_of("games")).await;
    postgres.sql("insert into games values (1)").await;
    client.change("realtime:a").await;
    client.leave("realtime:a").await;
    postgres.sql("insert into games values (2)").await;
    client.changes_until("realtime:b", crate::has_id(2)).await;
    assert!(!client.has_unread("realtime:a", "postgres_changes"), "{:?}", client.unread());
    // Joined again it listens again, and hears nothing of what was in between.
    client.listen("realtime:a", &all_of("games")).await;
    postgres.sql("insert into games values (3)").await;
    assert_eq!(client.change("realtime:a").await["data"]["record"]["id"], 3);
    server.stop().await;
}
