//! Broadcast: frames by origin and receiver (§3.3), self and acknowledgement (§3.4), the size rule.

use std::sync::Arc;

use serde_json::json;
use tidewire_engine::{Body, Message, PeerMessage};
use tidewire_protocol::frame::{Encoding, ServerFrame, Version, decode_server_binary};

use super::server::{Client, Frame, Server, kind_3};

const ROOM: &str = "realtime:room";

/// A sender and, on each hub, a receiver of each version.
fn room(hubs: usize, sender: Version) -> (Server, Client, Vec<(Client, Version)>) {
    let mut server = Server::new(hubs);
    let client = server.open(0, sender);
    server.join(client, ROOM, "{}");
    let mut receivers = Vec::new();
    for hub in 0..hubs {
        for version in [Version::V1, Version::V2] {
            let receiver = server.open(hub, version);
            server.join(receiver, ROOM, "{}");
            receivers.push((receiver, version));
        }
    }
    (server, client, receivers)
}

/// Everybody received exactly the frame of its version.
#[track_caller]
fn expect_delivery(
    server: &mut Server,
    receivers: &[(Client, Version)],
    v1: Option<&Frame>,
    v2: Option<&Frame>,
) {
    for &(receiver, version) in receivers {
        let expected = match version {
            Version::V1 => v1,
            Version::V2 => v2,
        };
        assert_eq!(server.take(receiver), expected.cloned().into_iter().collect::<Vec<_>>(), "{version:?}");
    }
}

fn kind_4(event: &str, metadata: &str, encoding: Encoding, payload: &[u8]) -> Frame {
    let mut out = Vec::new();
    tidewire_protocol::frame::write_user_broadcast(&mut out, ROOM, event, metadata, encoding, payload)
        .expect("the test's fields are short");
    Frame::Binary(out)
}

#[test]
fn a_text_push_reaches_everybody_as_text_with_its_payload_untouched() {
    for sender_version in [Version::V1, Version::V2] {
        let (mut server, sender, receivers) = room(3, sender_version);
        // The payload is not inspected: no `event`, odd keys, white space, a huge number.
        let payload = r#"{ "a" : [1, 2], "big": 123456789012345678901234567890.5, "": null}"#;
        let value: serde_json::Value = serde_json::from_str(payload).unwrap();
        server.push(sender, r#""1""#, r#""2""#, ROOM, "broadcast", payload);
        server.expect_nothing(sender);
        let v1 = Frame::Text(json!({"topic": ROOM, "event": "broadcast", "payload": value, "ref": null}));
        let v2 = Frame::Text(json!([null, null, ROOM, "broadcast", value]));
        expect_delivery(&mut server, &receivers, Some(&v1), Some(&v2));
    }
}

#[test]
fn a_json_user_broadcast_is_kind_4_to_v2_and_an_object_to_v1() {
    let (mut server, sender, receivers) = room(2, Version::V2);
    server.binary(sender, &kind_3(ROOM, "pi\"ng", Encoding::Json, br#"{"a":1}"#));
    server.expect_nothing(sender);
    let payload = json!({"event": "pi\"ng", "payload": {"a": 1}, "type": "broadcast"});
    let v1 = Frame::Text(json!({"topic": ROOM, "event": "broadcast", "payload": payload, "ref": null}));
    let v2 = kind_4("pi\"ng", "", Encoding::Json, br#"{"a":1}"#);
    expect_delivery(&mut server, &receivers, Some(&v1), Some(&v2));
}

#[test]
fn opaque_bytes_reach_v2_only() {
    let (mut server, sender, receivers) = room(2, Version::V2);
    server.binary(sender, &kind_3(ROOM, "ping", Encoding::Bytes, &[0xDE, 0xAD]));
    let v2 = kind_4("ping", "", Encoding::Bytes, &[0xDE, 0xAD]);
    expect_delivery(&mut server, &receivers, None, Some(&v2));
}

/// Kind 3 is relayed unparsed (§1.5); only where it would become part of a JSON document does it matter
/// whether it is one.
#[test]
fn a_user_broadcast_that_is_not_the_json_it_claims_is_dropped_for_v1_alone() {
    for broken in [&b"{"[..], b"", b"\xFF", b"1 2", b"},\"x\":{", b"nul"] {
        let (mut server, sender, receivers) = room(2, Version::V2);
        server.binary(sender, &kind_3(ROOM, "ping", Encoding::Json, broken));
        let v2 = kind_4("ping", "", Encoding::Json, broken);
        expect_delivery(&mut server, &receivers, None, Some(&v2));
        // The room lives on.
        server.binary(sender, &kind_3(ROOM, "ping", Encoding::Json, b"[]"));
        assert!(receivers.iter().all(|&(receiver, _)| server.take(receiver).len() == 1));
    }
}

#[test]
fn metadata_that_a_client_sends_is_ignored() {
    let (mut server, sender, receivers) = room(1, Version::V2);
    let mut push = Vec::new();
    tidewire_protocol::frame::write_user_broadcast_push(
        &mut push,
        "1",
        "2",
        ROOM,
        "ping",
        r#"{"id":"forged"}"#,
        Encoding::Json,
        b"{}",
    )
    .unwrap();
    server.binary(sender, &push);
    let payload = json!({"event": "ping", "payload": {}, "type": "broadcast"});
    let v1 = Frame::Text(json!({"topic": ROOM, "event": "broadcast", "payload": payload, "ref": null}));
    expect_delivery(&mut server, &receivers, Some(&v1), Some(&kind_4("ping", "", Encoding::Json, b"{}")));
}

#[test]
fn a_message_with_an_id_shows_it_in_each_format() {
    let (mut server, _, receivers) = room(2, Version::V2);
    let body = Body::UserBroadcast {
        event: "ping".into(),
        metadata: r#"{"id":"m1"}"#.into(),
        encoding: Encoding::Json,
        payload: "{}".into(),
    };
    let message = Arc::new(Message::new(ROOM, body));
    server.publish(&PeerMessage::Publish { message, is_presence: false });
    let payload = json!({"event": "ping", "payload": {}, "meta": {"id": "m1"}, "type": "broadcast"});
    let v1 = Frame::Text(json!({"topic": ROOM, "event": "broadcast", "payload": payload, "ref": null}));
    let v2 = kind_4("ping", r#"{"id":"m1"}"#, Encoding::Json, b"{}");
    expect_delivery(&mut server, &receivers, Some(&v1), Some(&v2));
}

#[test]
fn a_name_too_long_for_a_binary_frame_is_dropped_for_v2_alone() {
    let (mut server, _, receivers) = room(1, Version::V2);
    let event = "e".repeat(256);
    let body = Body::UserBroadcast {
        event: event.clone(),
        metadata: String::new(),
        encoding: Encoding::Json,
        payload: "{}".into(),
    };
    let message = Arc::new(Message::new(ROOM, body));
    server.publish(&PeerMessage::Publish { message, is_presence: false });
    let payload = json!({"event": event, "payload": {}, "type": "broadcast"});
    let v1 = Frame::Text(json!({"topic": ROOM, "event": "broadcast", "payload": payload, "ref": null}));
    expect_delivery(&mut server, &receivers, Some(&v1), None);
}

#[test]
fn acknowledgement_and_own_copy_follow_the_config_of_the_sender() {
    let ok = r#"["1","2","realtime:room","phx_reply",{"status":"ok","response":{}}]"#;
    let copy = r#"[null,null,"realtime:room","broadcast",{"n":1}]"#;
    for hubs in [1, 2] {
        for (ack, own, expected) in [
            (false, false, vec![]),
            (true, false, vec![ok]),
            (false, true, vec![copy]),
            (true, true, vec![copy, ok]),
        ] {
            let mut server = Server::new(hubs);
            let sender = server.open(0, Version::V2);
            server.join(sender, ROOM, &format!(r#"{{"broadcast":{{"ack":{ack},"self":{own}}}}}"#));
            server.push(sender, r#""1""#, r#""2""#, ROOM, "broadcast", r#"{"n":1}"#);
            server.expect(sender, &expected);
        }
    }
}

#[test]
fn a_user_broadcast_without_ref_is_acknowledged_with_an_empty_one() {
    let mut server = Server::new(1);
    let sender = server.open(0, Version::V2);
    server.join(sender, ROOM, r#"{"broadcast":{"ack":true}}"#);
    server.binary(sender, b"\x03\x00\x00\x0D\x01\x00\x01realtime:roome{}");
    server.expect(sender, &[r#"["1","","realtime:room","phx_reply",{"status":"ok","response":{}}]"#]);
}

#[test]
fn other_topics_hear_nothing() {
    let mut server = Server::new(2);
    let (sender, same_socket_other_topic) = (server.open(0, Version::V2), server.open(1, Version::V2));
    server.join(sender, ROOM, r#"{"broadcast":{"self":true}}"#);
    server.join(sender, "realtime:roo", r#"{"broadcast":{"self":true}}"#);
    server.join(same_socket_other_topic, "realtime:room2", "{}");
    server.push(sender, r#""1""#, r#""2""#, ROOM, "broadcast", "{}");
    server.expect(sender, &[r#"[null,null,"realtime:room","broadcast",{}]"#]);
    server.expect_nothing(same_socket_other_topic);
}

#[test]
fn a_payload_that_is_no_object_is_ignored() {
    let (mut server, sender, receivers) = room(1, Version::V2);
    for payload in ["[]", "7", "null", r#""text""#] {
        server.push(sender, r#""1""#, r#""2""#, ROOM, "broadcast", payload);
        server.expect_nothing(sender);
        expect_delivery(&mut server, &receivers, None, None);
    }
}

/// Q16: this response is a string.
#[test]
fn a_payload_over_the_limit_is_dropped_and_said_so_only_with_ack() {
    let fits = format!(r#"{{"a":"{}"}}"#, "x".repeat(92));
    let exceeds = format!(r#"{{"a":"{}"}}"#, "x".repeat(93));
    let reply =
        r#"["1","2","realtime:room","phx_reply",{"status":"error","response":"payload_size_exceeded"}]"#;
    for ack in [false, true] {
        let mut server = Server::with(1, |config| config.max_payload_bytes = 100);
        let (sender, receiver) = (server.open(0, Version::V2), server.open(0, Version::V2));
        server.join(sender, ROOM, &format!(r#"{{"broadcast":{{"ack":{ack},"self":true}}}}"#));
        server.join(receiver, ROOM, "{}");
        let answer = if ack { vec![reply] } else { Vec::new() };
        server.push(sender, r#""1""#, r#""2""#, ROOM, "broadcast", &exceeds);
        server.expect(sender, &answer);
        server.binary(sender, &kind_3(ROOM, "e", Encoding::Bytes, &[0; 101]));
        server.expect(sender, &answer);
        server.expect_nothing(receiver);
        server.push(sender, r#""1""#, r#""2""#, ROOM, "broadcast", &fits);
        assert_eq!(server.take(receiver).len(), 1);
    }
}

#[test]
fn one_socket_receives_once_per_topic_it_joined() {
    let mut server = Server::new(2);
    let (sender, receiver) = (server.open(0, Version::V2), server.open(1, Version::V2));
    server.join(sender, ROOM, "{}");
    server.join(receiver, ROOM, "{}");
    server.join(receiver, ROOM, "{}");
    server.push(sender, r#""1""#, r#""2""#, ROOM, "broadcast", "{}");
    assert_eq!(server.take(receiver).len(), 1);
}

#[test]
fn the_delivery_of_a_json_user_broadcast_is_relayed_byte_for_byte() {
    let (mut server, sender, receivers) = room(1, Version::V2);
    let payload = b" { \"a\" : 1.0e0 }\n";
    server.binary(sender, &kind_3(ROOM, "ping", Encoding::Json, payload));
    let v2 = receivers.iter().find(|(_, version)| *version == Version::V2).unwrap().0;
    let frames = server.take(v2);
    let [Frame::Binary(bytes)] = &frames[..] else { panic!("{frames:?}") };
    let Ok(ServerFrame::UserBroadcast { broadcast, .. }) = decode_server_binary(bytes) else { panic!() };
    assert_eq!(broadcast.payload, payload);
}
