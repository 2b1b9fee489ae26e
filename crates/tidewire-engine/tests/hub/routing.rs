//! Routing (§1.8), refs (§1.10), heartbeats (§1.7) and malformed input (§1.6).

use tidewire_protocol::codes::OperationalCode;
use tidewire_protocol::frame::{Encoding, Version};

use super::server::{Server, kind_3};

const ROOM: &str = "realtime:room";

#[test]
fn a_topic_with_another_prefix_cannot_be_joined() {
    let mut server = Server::new(1);
    let client = server.open(0, Version::V2);
    server.text(client, r#"["1","1","room","phx_join",{"config":{}}]"#);
    // At once: §1.8 knows no backoff here.
    server.expect(
        client,
        &[r#"[null,"1","room","phx_reply",{"status":"error","response":{"reason":"unmatched topic"}}]"#],
    );
}

#[test]
fn leaving_a_topic_that_is_not_joined_is_fine() {
    let mut server = Server::new(1);
    let client = server.open(0, Version::V2);
    server.text(client, r#"["4","5","realtime:room","phx_leave",{}]"#);
    server.expect(client, &[r#"["4","5","realtime:room","phx_reply",{"status":"ok","response":{}}]"#]);
}

#[test]
fn anything_else_on_a_topic_that_is_not_joined_is_unmatched() {
    let mut server = Server::new(1);
    let client = server.open(0, Version::V2);
    for event in ["broadcast", "presence", "access_token", "whatever"] {
        server.text(client, &format!(r#"["3","4","realtime:nope","{event}",{{}}]"#));
        server.expect(
            client,
            &[
                r#"[null,"4","realtime:nope","phx_reply",{"status":"error","response":{"reason":"unmatched topic"}}]"#,
            ],
        );
    }
    server.binary(client, &kind_3("realtime:nope", "e", Encoding::Json, b"{}"));
    server.expect(
        client,
        &[
            r#"[null,"2","realtime:nope","phx_reply",{"status":"error","response":{"reason":"unmatched topic"}}]"#,
        ],
    );
}

#[test]
fn a_v1_client_gets_unmatched_topic_in_its_own_format() {
    let mut server = Server::new(1);
    let client = server.open(0, Version::V1);
    server.push(client, "null", "4", "realtime:nope", "broadcast", "{}");
    server.expect(
        client,
        &[
            r#"{"topic":"realtime:nope","event":"phx_reply","payload":{"status":"error","response":{"reason":"unmatched topic"}},"ref":4}"#,
        ],
    );
}

#[test]
fn a_channel_ended_by_the_server_is_unmatched_until_it_is_joined_again() {
    let mut server = Server::new(1);
    let client = server.open(0, Version::V2);
    server.join(client, ROOM, "{}");
    server.text(client, r#"["1","2","realtime:room","access_token",{"access_token":"nonsense"}]"#);
    server.expect(
        client,
        &[
            r#"["1",null,"realtime:room","system",{"extension":"system","status":"error","message":"The token provided is not a valid JWT","channel":"room"}]"#,
            r#"["1","1","realtime:room","phx_close",{}]"#,
        ],
    );
    server.text(client, r#"["1","3","realtime:room","broadcast",{}]"#);
    server.expect(
        client,
        &[
            r#"[null,"3","realtime:room","phx_reply",{"status":"error","response":{"reason":"unmatched topic"}}]"#,
        ],
    );
    server.text(client, r#"["1","4","realtime:room","phx_leave",{}]"#);
    server.expect(client, &[r#"["1","4","realtime:room","phx_reply",{"status":"ok","response":{}}]"#]);
    server.join(client, ROOM, "{}");
}

#[test]
fn a_leave_needs_the_join_ref_of_the_channel() {
    let mut server = Server::new(1);
    let client = server.open(0, Version::V2);
    server.join(client, ROOM, "{}");
    for stale in [r#""2""#, "1", "null", r#""""#] {
        server.push(client, stale, r#""9""#, ROOM, "phx_leave", "{}");
        server.expect_nothing(client);
        assert_eq!(server.hubs[0].channel_count(), 1);
    }
    server.push(client, r#""1""#, r#""10""#, ROOM, "phx_leave", "{}");
    server.expect(
        client,
        &[
            r#"["1","10","realtime:room","phx_reply",{"status":"ok","response":{}}]"#,
            r#"["1","1","realtime:room","phx_close",{}]"#,
        ],
    );
}

#[test]
fn a_channel_that_joined_without_join_ref_takes_any_leave() {
    for leave_ref in ["null", r#""77""#, "5"] {
        let mut server = Server::new(1);
        let client = server.open(0, Version::V2);
        server.text(client, r#"[null,"3","realtime:room","phx_join",{"config":{}}]"#);
        server.take(client);
        server.push(client, leave_ref, r#""4""#, ROOM, "phx_leave", "{}");
        // The channel's join ref is the ref of its join; its close carries what the join carried: null.
        server.expect(
            client,
            &[
                r#"["3","4","realtime:room","phx_reply",{"status":"ok","response":{}}]"#,
                r#"[null,null,"realtime:room","phx_close",{}]"#,
            ],
        );
    }
}

#[test]
fn replies_carry_the_join_ref_of_the_channel_whatever_the_push_carried() {
    let mut server = Server::new(1);
    let client = server.open(0, Version::V2);
    server.join(client, ROOM, r#"{"broadcast":{"ack":true}}"#);
    for foreign in [r#""77""#, "null", "1", r#""1""#] {
        server.push(client, foreign, r#""5""#, ROOM, "broadcast", "{}");
        server.expect(client, &[r#"["1","5","realtime:room","phx_reply",{"status":"ok","response":{}}]"#]);
        server.push(client, foreign, "6", ROOM, "presence", r#"{"event":"untrack"}"#);
        server.expect(client, &[r#"["1",6,"realtime:room","phx_reply",{"status":"ok","response":{}}]"#]);
    }
    server.binary(client, &kind_3(ROOM, "e", Encoding::Json, b"{}"));
    server.expect(client, &[r#"["1","2","realtime:room","phx_reply",{"status":"ok","response":{}}]"#]);
}

#[test]
fn refs_are_echoed_with_their_type() {
    let mut server = Server::new(1);
    for reference in ["7", r#""7""#, "7.5", "true", "null", r#""a\"b\\""#] {
        let client = server.open(0, Version::V2);
        server.push(client, reference, reference, ROOM, "phx_join", r#"{"config":{}}"#);
        server.expect(
            client,
            &[&format!(
                r#"[{reference},{reference},"realtime:room","phx_reply",{{"status":"ok","response":{{"postgres_changes":[]}}}}]"#
            )],
        );
        server.push(client, reference, reference, ROOM, "phx_leave", "{}");
        server.expect(
            client,
            &[
                &format!(
                    r#"[{reference},{reference},"realtime:room","phx_reply",{{"status":"ok","response":{{}}}}]"#
                ),
                &format!(r#"[{reference},{reference},"realtime:room","phx_close",{{}}]"#),
            ],
        );
    }
}

#[test]
fn a_fan_out_frame_carries_no_refs() {
    let mut server = Server::new(2);
    let sender = server.open(0, Version::V2);
    let (near, far, old) =
        (server.open(0, Version::V2), server.open(1, Version::V2), server.open(1, Version::V1));
    for client in [sender, near, far, old] {
        server.join(client, ROOM, "{}");
    }
    server.push(sender, r#""1""#, r#""2""#, ROOM, "broadcast", r#"{"n":1}"#);
    for client in [near, far] {
        server.expect(client, &[r#"[null,null,"realtime:room","broadcast",{"n":1}]"#]);
    }
    server.expect(old, &[r#"{"topic":"realtime:room","event":"broadcast","payload":{"n":1},"ref":null}"#]);
}

#[test]
fn heartbeats_are_answered_and_nothing_else_on_their_topic_is() {
    let mut server = Server::new(1);
    let new = server.open(0, Version::V2);
    server.text(new, r#"[null,"7","phoenix","heartbeat",{}]"#);
    server.expect(new, &[r#"[null,"7","phoenix","phx_reply",{"response":{},"status":"ok"}]"#]);
    for event in ["phx_join", "phx_leave", "broadcast"] {
        server.text(new, &format!(r#"["1","8","phoenix","{event}",{{}}]"#));
        server.expect(
            new,
            &[
                r#"[null,"8","phoenix","phx_reply",{"status":"error","response":{"reason":"unmatched topic"}}]"#,
            ],
        );
    }
    let old = server.open(0, Version::V1);
    server.text(old, r#"{"topic":"phoenix","event":"heartbeat","payload":{},"ref":null}"#);
    server.expect(
        old,
        &[r#"{"topic":"phoenix","event":"phx_reply","payload":{"response":{},"status":"ok"},"ref":null}"#],
    );
}

#[test]
fn unknown_events_on_a_joined_topic_are_not_answered() {
    let mut server = Server::new(1);
    let client = server.open(0, Version::V2);
    server.join(client, ROOM, r#"{"broadcast":{"ack":true,"self":true}}"#);
    for event in ["nonsense", "phx_reply", "system", "heartbeat", "BROADCAST"] {
        server.push(client, r#""1""#, r#""2""#, ROOM, event, "{}");
        server.expect_nothing(client);
    }
    // Kind 0, which no official client sends.
    server.binary(client, b"\x00\x01\x01\x0D\x0912realtime:roombroadcast\xDE\xAD");
    server.expect_nothing(client);
}

#[test]
fn version_1_has_no_binary_frames() {
    let mut server = Server::new(1);
    let (old, other) = (server.open(0, Version::V1), server.open(0, Version::V2));
    server.join(old, ROOM, r#"{"broadcast":{"ack":true}}"#);
    server.join(other, ROOM, "{}");
    server.binary(old, &kind_3(ROOM, "e", Encoding::Json, b"{}"));
    server.expect_nothing(old);
    server.expect_nothing(other);
    assert_eq!(server.reports.last().unwrap().code, OperationalCode::MalformedWebSocketMessage);
}

#[test]
fn malformed_frames_are_dropped_and_the_session_goes_on() {
    let mut server = Server::new(1);
    let (client, other) = (server.open(0, Version::V2), server.open(0, Version::V2));
    let old = server.open(0, Version::V1);
    for one in [client, other, old] {
        server.join(one, ROOM, "{}");
    }
    let long = "[".repeat(100_000);
    let texts: [&[u8]; 10] = [
        b"",
        b" ",
        b"{}",
        b"[]",
        b"[null,null,\"realtime:room\",\"broadcast\"]",
        b"[null,null,7,\"broadcast\",{}]",
        b"[[],null,\"realtime:room\",\"broadcast\",{}]",
        b"[null,null,\"realtime:room\",\"broadcast\",{}",
        b"\xFF\xFE",
        long.as_bytes(),
    ];
    for text in texts {
        server.handle_text(client, text);
        server.handle_text(old, text);
    }
    let binaries: [&[u8]; 6] =
        [b"", b"\x03", b"\x04\x00\x00\x00\x00", b"\x03\xFF\xFF\xFF\xFF\xFF\x01abc", b"\x09", b"\x00\x01"];
    for bytes in binaries {
        server.handle_binary(client, bytes);
        server.handle_binary(old, bytes);
    }
    // Kind 3 whose metadata is no JSON.
    server.handle_binary(client, b"\x03\x00\x00\x0D\x01\x01\x01realtime:roome}{}");
    server.settle();
    for one in [client, other, old] {
        server.expect_nothing(one);
    }
    let malformed =
        server.reports.iter().filter(|one| one.code == OperationalCode::MalformedWebSocketMessage).count();
    assert_eq!(malformed, 2 * texts.len() + 2 * binaries.len() + 1);
    server.text(client, r#"["1","2","realtime:room","broadcast",{"still":"here"}]"#);
    server.expect(other, &[r#"[null,null,"realtime:room","broadcast",{"still":"here"}]"#]);
}
