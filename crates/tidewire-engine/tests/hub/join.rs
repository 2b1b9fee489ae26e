//! Joins: refusals and their delay (§2.5), replies (§2.6), legacy joins (§2.7), rejoins (§2.8).

use serde_json::json;
use tidewire_engine::{Answer, ChangeCommand, Drain};
use tidewire_protocol::codes::OperationalCode;
use tidewire_protocol::frame::Version;

use super::server::{CONNECTION, Client, Frame, Server, parts};

const ROOM: &str = "realtime:room";

/// Nothing before five seconds are over, then exactly this reason.
#[track_caller]
fn expect_refusal(server: &mut Server, client: Client, topic: &str, payload: &str, reason: &str) {
    server.push(client, r#""3""#, r#""4""#, topic, "phx_join", payload);
    server.expect_nothing(client);
    server.advance(4_999);
    server.expect_nothing(client);
    server.advance(1);
    let expected = json!(["3", "4", topic, "phx_reply", {"status": "error", "response": {"reason": reason}}]);
    assert_eq!(server.take(client), [Frame::Text(expected)]);
    assert_eq!(server.hubs[0].channel_count(), 0);
}

#[test]
fn every_refusal_says_its_reason_after_five_seconds() {
    let mut server = Server::new(1);
    server.allow("expired.a.b", "anon", -7);
    server.allow("no.claims.a", "", 60);
    server.allow("no.key.a", "anon", 600);
    server.revoke("no.key.a");
    // A fresh socket each, as the idle rule closes one that waits for a minute.
    let mut refused = |topic: &str, payload: &str, reason: &str| {
        let client = server.open(0, Version::V2);
        expect_refusal(&mut server, client, topic, payload, reason);
        server.close(client);
    };
    refused("realtime:", r#"{"config":{}}"#, "TopicNameRequired: You must provide a topic name");
    // Five seconds pass per refusal, but the token is looked at on arrival.
    refused(
        ROOM,
        r#"{"config":{},"access_token":"expired.a.b"}"#,
        "InvalidJWTToken: Token has expired 12 seconds ago",
    );
    refused(
        ROOM,
        r#"{"config":{},"access_token":"no.claims.a"}"#,
        "InvalidJWTToken: Fields `role` and `exp` are required in JWT",
    );
    refused(
        ROOM,
        r#"{"config":{},"access_token":"no.key.a"}"#,
        "JwtSignerError: Failed to generate JWT signer, check your JWT secret or JWKS configuration",
    );
    refused(
        ROOM,
        r#"{"config":{},"access_token":"garbage"}"#,
        "MalformedJWT: The token provided is not a valid JWT",
    );
    refused(
        ROOM,
        r#"{"config":{},"user_token":"a.b.c","access_token":"connection.token.ok"}"#,
        "JwtSignatureError: Failed to validate JWT signature",
    );
    for replay in ["null", "{}", "5"] {
        refused(
            ROOM,
            &format!(r#"{{"config":{{"broadcast":{{"replay":{replay}}}}}}}"#),
            "UnableToReplayMessages: Replay is not allowed for public channels",
        );
    }
    refused(ROOM, "[]", "UnknownErrorOnChannel: join payload is not an object");
    refused(ROOM, "null", "UnknownErrorOnChannel: join payload is not an object");
    let bindings = vec![r#"{"schema":"public"}"#; 101].join(",");
    refused(
        ROOM,
        &format!(r#"{{"config":{{"postgres_changes":[{bindings}]}}}}"#),
        "TooManyBindings: a channel may have at most 100 postgres_changes bindings, this one asks for 101",
    );
    server.drain(Drain::Refuse);
    let client = server.open(0, Version::V2);
    expect_refusal(
        &mut server,
        client,
        ROOM,
        r#"{"config":{}}"#,
        "RealtimeRestarting: Realtime is restarting, please standby",
    );
    server.close(client);
    assert!(server.changes.is_empty(), "no refused join reaches the change stream");
    server.expect_empty();
}

#[test]
fn the_checks_come_in_the_order_of_the_specification() {
    let mut server = Server::with(1, |config| config.max_channels = 1);
    let client = server.open(0, Version::V2);
    server.join(client, "realtime:first", "{}");
    let everything_wrong = r#"{"config":{"private":true,"broadcast":{"replay":null}},"access_token":"x"}"#;
    server.push(client, r#""2""#, r#""2""#, ROOM, "phx_join", everything_wrong);
    server.advance(5_000);
    let (.., payload) = parts(&server.take(client)[0]);
    assert_eq!(payload["response"]["reason"], "ChannelRateLimitReached: Too many channels");
}

#[test]
fn other_frames_are_handled_while_a_refusal_waits() {
    let mut server = Server::new(1);
    let client = server.open(0, Version::V2);
    server.push(client, r#""1""#, r#""1""#, "realtime:", "phx_join", "{}");
    server.join(client, ROOM, "{}");
    server.text(client, r#"[null,"9","phoenix","heartbeat",{}]"#);
    assert_eq!(server.take(client).len(), 1);
}

#[test]
fn refusals_sent_together_come_back_in_order() {
    let mut server = Server::new(1);
    let client = server.open(0, Version::V2);
    for reference in 0..20 {
        server.push(client, "null", &reference.to_string(), "realtime:", "phx_join", "{}");
    }
    server.advance(5_000);
    let refs: Vec<_> = server.take(client).iter().map(|frame| parts(frame).1).collect();
    assert_eq!(refs, (0..20).map(|reference| json!(reference)).collect::<Vec<_>>());
}

#[test]
fn the_last_free_slot_can_be_taken_and_a_slot_is_freed_by_a_leave() {
    let mut server = Server::with(1, |config| config.max_channels = 3);
    let client = server.open(0, Version::V2);
    for topic in ["realtime:a", "realtime:b", "realtime:c"] {
        server.join(client, topic, "{}");
    }
    // A rejoin takes the slot of what it replaces.
    server.join(client, "realtime:b", "{}");
    server.push(client, r#""9""#, r#""9""#, "realtime:d", "phx_join", r#"{"config":{}}"#);
    server.advance(5_000);
    let (.., payload) = parts(&server.take(client)[0]);
    assert_eq!(payload["response"]["reason"], "ChannelRateLimitReached: Too many channels");
    server.push(client, r#""1""#, r#""10""#, "realtime:a", "phx_leave", "{}");
    server.take(client);
    server.join(client, "realtime:d", "{}");
}

#[test]
fn the_reply_echoes_every_binding_with_its_id_and_the_change_stream_is_told() {
    let mut server = Server::new(1);
    let client = server.open(0, Version::V2);
    let bindings = r#"[{"event":"*","schema":"public","table":"games","filter":"id=eq.1","mine":true},null,{"event":"INSERT","schema":"public"}]"#;
    let payload = format!(r#"{{"config":{{"postgres_changes":{bindings}}}}}"#);
    server.push(client, r#""1""#, r#""1""#, ROOM, "phx_join", &payload);
    let frames = server.take(client);
    let (.., payload) = parts(&frames[0]);
    let echoed = &payload["response"]["postgres_changes"];
    let ids: Vec<u64> = (0..2).map(|at| echoed[at]["id"].as_u64().unwrap()).collect();
    assert_eq!(
        *echoed,
        json!([
            {"event": "*", "schema": "public", "table": "games", "filter": "id=eq.1", "mine": true, "id": ids[0]},
            {"event": "INSERT", "schema": "public", "id": ids[1]},
        ])
    );
    assert!(ids.iter().all(|id| (1..1 << 27).contains(id)));

    let [ChangeCommand::Subscribe { channel, topic, credential, is_legacy: false, bindings }] =
        &server.changes[..]
    else {
        panic!("{:?}", server.changes)
    };
    assert_eq!((&**topic, &*credential.token, bindings.len()), (ROOM, CONNECTION, 2));
    assert_eq!(bindings.iter().map(|one| u64::from(one.id())).collect::<Vec<_>>(), ids);
    let subscribed = *channel;
    server.close(client);
    assert!(matches!(server.changes[1], ChangeCommand::Unsubscribe { channel } if channel == subscribed));
    assert_eq!(server.changes.len(), 2);
}

#[test]
fn a_join_without_config_subscribes_to_what_its_topic_names() {
    let mut server = Server::new(1);
    let client = server.open(0, Version::V1);
    server.push(client, "null", "1", "realtime:public:games", "phx_join", "{}");
    let (.., payload) = parts(&server.take(client)[0]);
    let echoed = &payload["response"]["postgres_changes"];
    let id = echoed[0]["id"].as_u64().unwrap();
    assert_eq!(*echoed, json!([{"schema": "public", "table": "games", "id": id}]));
    assert!(matches!(&server.changes[..], [ChangeCommand::Subscribe { is_legacy: true, .. }]));
}

#[test]
fn an_invalid_part_of_the_config_becomes_its_default() {
    let mut server = Server::new(1);
    let client = server.open(0, Version::V2);
    // Q1: a private channel spelled wrongly is a public one.
    server.join(client, ROOM, r#"{"private":"yes","broadcast":{"self":"TRUE","ack":7}}"#);
    assert!(server.reports.iter().any(|one| one.code == OperationalCode::InvalidJoinPayload));
    server.push(client, r#""1""#, r#""2""#, ROOM, "broadcast", "{}");
    server.expect(client, &[r#"[null,null,"realtime:room","broadcast",{}]"#]);
}

#[test]
fn a_rejoin_is_answered_before_the_old_channel_is_closed_with_its_own_ref() {
    let mut server = Server::new(1);
    let client = server.open(0, Version::V2);
    server.text(client, r#"["1","1","realtime:room","phx_join",{"config":{}}]"#);
    server.take(client);
    server.text(client, r#"["5","6","realtime:room","phx_join",{"config":{}}]"#);
    server.expect(
        client,
        &[
            r#"["5","6","realtime:room","phx_reply",{"status":"ok","response":{"postgres_changes":[]}}]"#,
            r#"["1","1","realtime:room","phx_close",{}]"#,
        ],
    );
    assert_eq!(server.hubs[0].channel_count(), 1);
    // What belongs to the first incarnation is stale now.
    server.text(client, r#"["1","7","realtime:room","phx_leave",{}]"#);
    server.expect_nothing(client);
}

#[test]
fn a_rejoin_replaces_the_subscription() {
    let mut server = Server::new(1);
    let client = server.open(0, Version::V2);
    let config = r#"{"postgres_changes":[{"schema":"public"}]}"#;
    server.join(client, ROOM, config);
    server.join(client, ROOM, config);
    let [
        ChangeCommand::Subscribe { channel: first, .. },
        ChangeCommand::Unsubscribe { channel: gone },
        ChangeCommand::Subscribe { channel: second, .. },
    ] = &server.changes[..]
    else {
        panic!("{:?}", server.changes)
    };
    assert_eq!(first, gone);
    assert_ne!(first, second);
}

/// §2.8: the old channel ends first, whatever becomes of the new join. A client that comes back with a
/// token that is not good enough must not go on under the old one.
#[test]
fn a_refused_rejoin_ends_the_old_channel_too() {
    let mut server = Server::new(2);
    let (client, other) = (server.open(0, Version::V2), server.open(1, Version::V2));
    server.join(other, ROOM, r#"{"presence":{"enabled":true}}"#);
    server.join(client, ROOM, r#"{"presence":{"key":"ada"},"postgres_changes":[{"schema":"public"}]}"#);
    server.push(client, r#""1""#, r#""2""#, ROOM, "presence", r#"{"event":"track"}"#);
    server.take(client);
    server.take(other);

    server.push(client, r#""5""#, r#""6""#, ROOM, "phx_join", r#"{"config":{},"access_token":"bad"}"#);
    server.expect_nothing(client);
    assert_eq!(server.hubs[0].channel_count(), 0);
    assert!(matches!(server.changes.last(), Some(ChangeCommand::Unsubscribe { .. })));
    server.expect(
        other,
        &[
            r#"[null,null,"realtime:room","presence_diff",{"joins":{},"leaves":{"ada":{"metas":[{"phx_ref":"…"}]}}}]"#,
        ],
    );
    server.push(other, r#""1""#, r#""2""#, ROOM, "broadcast", "{}");
    server.expect_nothing(client);
    // As after a join that succeeds: the reply, then the close of the old incarnation.
    server.advance(5_000);
    server.expect(
        client,
        &[
            r#"["5","6","realtime:room","phx_reply",{"status":"error","response":{"reason":"MalformedJWT: The token provided is not a valid JWT"}}]"#,
            r#"["1","1","realtime:room","phx_close",{}]"#,
        ],
    );
}

/// Spec: PROTOCOL.md §2.8, last paragraph.
#[test]
fn a_leave_and_a_join_sent_together_are_answered_join_first() {
    let mut server = Server::new(1);
    let client = server.open(0, Version::V2);
    server.join(client, ROOM, "{}");
    server.handle_text(client, br#"["1","2","realtime:room","phx_leave",{}]"#);
    server.handle_text(client, br#"["3","3","realtime:room","phx_join",{"config":{}}]"#);
    server.settle();
    server.expect(
        client,
        &[
            r#"["3","3","realtime:room","phx_reply",{"status":"ok","response":{"postgres_changes":[]}}]"#,
            r#"["1","2","realtime:room","phx_reply",{"status":"ok","response":{}}]"#,
            r#"["1","1","realtime:room","phx_close",{}]"#,
        ],
    );
}

/// The slot of a channel that is being left is free for whoever comes right behind, other topics included.
#[test]
fn a_leave_frees_its_slot_for_the_join_right_behind_it() {
    let mut server = Server::with(1, |config| config.max_channels = 1);
    let client = server.open(0, Version::V2);
    server.join(client, ROOM, "{}");
    server.handle_text(client, br#"["1","2","realtime:room","phx_leave",{}]"#);
    server.handle_text(client, br#"["3","3","realtime:other","phx_join",{"config":{}}]"#);
    server.settle();
    server.expect(
        client,
        &[
            r#"["1","2","realtime:room","phx_reply",{"status":"ok","response":{}}]"#,
            r#"["1","1","realtime:room","phx_close",{}]"#,
            r#"["3","3","realtime:other","phx_reply",{"status":"ok","response":{"postgres_changes":[]}}]"#,
        ],
    );
}

#[test]
fn whatever_happens_to_a_channel_that_was_left_it_ends_once() {
    let leave = br#"["1","2","realtime:room","phx_leave",{}]"#;
    let farewell = [
        r#"["1","2","realtime:room","phx_reply",{"status":"ok","response":{}}]"#,
        r#"["1","1","realtime:room","phx_close",{}]"#,
    ];
    let new = || {
        let mut server = Server::new(1);
        let client = server.open(0, Version::V2);
        server.join(client, ROOM, r#"{"postgres_changes":[{"schema":"public"}]}"#);
        server.handle_text(client, leave);
        (server, client)
    };
    let ended = |server: &Server| {
        assert_eq!(server.hubs[0].channel_count(), 0);
        assert!(matches!(
            server.changes[..],
            [ChangeCommand::Subscribe { .. }, ChangeCommand::Unsubscribe { .. }]
        ));
    };
    // Left again.
    let (mut server, client) = new();
    server.text(client, r#"["1","3","realtime:room","phx_leave",{}]"#);
    let again = r#"["1","3","realtime:room","phx_reply",{"status":"ok","response":{}}]"#;
    server.expect(client, &[farewell[0], farewell[1], again]);
    ended(&server);
    // Joined again in vain: the refusal first, as with any join right behind a leave.
    let (mut server, client) = new();
    server.text(client, r#"["4","4","realtime:room","phx_join",{"config":{},"access_token":"bad"}]"#);
    server.expect_nothing(client);
    ended(&server);
    server.advance(5_000);
    let refusal = r#"["4","4","realtime:room","phx_reply",{"status":"error","response":{"reason":"MalformedJWT: The token provided is not a valid JWT"}}]"#;
    server.expect(client, &[refusal, farewell[0], farewell[1]]);
    // The connection goes.
    let (mut server, client) = new();
    server.close(client);
    ended(&server);
    server.expect_empty();
    // The server closes it.
    let (mut server, client) = new();
    server.drain(Drain::Close);
    server.expect_close(client, 1012);
    ended(&server);
    server.expect_empty();
}

#[test]
fn a_push_right_behind_a_leave_finds_no_channel() {
    let mut server = Server::new(1);
    let client = server.open(0, Version::V2);
    server.join(client, ROOM, "{}");
    server.handle_text(client, br#"["1","2","realtime:room","phx_leave",{}]"#);
    server.handle_text(client, br#"["1","3","realtime:room","broadcast",{"n":1}]"#);
    server.settle();
    server.expect(
        client,
        &[
            r#"["1","2","realtime:room","phx_reply",{"status":"ok","response":{}}]"#,
            r#"["1","1","realtime:room","phx_close",{}]"#,
            r#"[null,"3","realtime:room","phx_reply",{"status":"error","response":{"reason":"unmatched topic"}}]"#,
        ],
    );
}

#[test]
fn pushes_right_behind_a_join_are_handled_after_it() {
    let mut server = Server::new(1);
    let client = server.open(0, Version::V2);
    server.handle_text(
        client,
        br#"["1","1","realtime:room","phx_join",{"config":{"broadcast":{"self":true,"ack":true}}}]"#,
    );
    server.handle_text(client, br#"["1","2","realtime:room","broadcast",{"n":1}]"#);
    server.settle();
    server.expect(
        client,
        &[
            r#"["1","1","realtime:room","phx_reply",{"status":"ok","response":{"postgres_changes":[]}}]"#,
            r#"[null,null,"realtime:room","broadcast",{"n":1}]"#,
            r#"["1","2","realtime:room","phx_reply",{"status":"ok","response":{}}]"#,
        ],
    );
}

#[test]
fn a_flood_of_failing_joins_is_cut_off() {
    let mut server = Server::with(1, |config| config.max_channels = 10);
    let (client, other) = (server.open(0, Version::V2), server.open(0, Version::V2));
    server.join(other, ROOM, "{}");
    for _ in 0..10 {
        server.push(client, "null", "1", "realtime:", "phx_join", "{}");
    }
    assert!(!server.is_disconnected(client));
    server.push(client, "null", "1", "realtime:", "phx_join", "{}");
    server.expect_close(client, 1001);
    server.push(other, r#""1""#, r#""2""#, ROOM, "phx_leave", "{}");
    assert_eq!(server.take(other).len(), 2);
    server.close(other);
    server.expect_empty();
}

/// A refusal holds the topic and the refs that the client chose, up to five megabytes, for five seconds.
#[test]
fn waiting_refusals_are_bounded_in_bytes() {
    let mut server = Server::with(1, |config| config.max_outbox_bytes = 1_000_000);
    let client = server.open(0, Version::V2);
    let topic = format!("realtime:{}", "x".repeat(300_000));
    for count in 0..4 {
        assert!(!server.is_disconnected(client), "after {count} refusals");
        server.push(client, "null", "1", &topic, "phx_join", r#"{"config":{},"access_token":"bad"}"#);
    }
    server.expect_close(client, 1001);
    server.expect_empty();
}

#[test]
fn refusals_that_were_answered_count_no_more() {
    let mut server = Server::with(1, |config| {
        config.max_channels = 3;
        config.max_outbox_bytes = 2_000;
    });
    let client = server.open(0, Version::V2);
    let topic = format!("realtime:{}", "x".repeat(200));
    for _ in 0..20 {
        for _ in 0..3 {
            server.push(client, "null", "1", &topic, "phx_join", r#"{"config":{},"access_token":"bad"}"#);
        }
        server.advance(5_000);
        assert_eq!(server.take(client).len(), 3);
    }
    server.close(client);
    server.expect_empty();
}

#[test]
fn reports_are_short_however_long_the_names_are() {
    let mut server = Server::new(1);
    let client = server.open(0, Version::V2);
    let topic = format!("realtime:{}", "ä".repeat(100_000));
    server.push(client, "null", "1", &topic, "phx_join", r#"{"config":{"private":true}}"#);
    server.answer(Answer::Read { broadcast: false, presence: false, replayed: Vec::new() });
    let report = server.reports.last().unwrap();
    assert_eq!(report.code, OperationalCode::Unauthorized);
    assert!(report.detail.len() <= 1024 && report.topic.as_ref().unwrap().len() <= 1024);
}
