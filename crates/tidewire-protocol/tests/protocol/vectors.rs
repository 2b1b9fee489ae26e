//! PROTOCOL.md appendix A, literally. Entries are added, never edited.

use tidewire_protocol::frame::{self, *};

const TOPIC: &str = "realtime:room";

const KIND_3_JSON: &str =
    "03 01 01 0D 04 00 01 31 32 72 65 61 6C 74 69 6D 65 3A 72 6F 6F 6D 70 69 6E 67 7B 22 61 22 3A 31 7D";
const KIND_4_JSON: &str =
    "04 0D 04 00 01 72 65 61 6C 74 69 6D 65 3A 72 6F 6F 6D 70 69 6E 67 7B 22 61 22 3A 31 7D";
const KIND_4_BYTES_META: &str = "04 0D 04 0B 00 72 65 61 6C 74 69 6D 65 3A 72 6F 6F 6D 70 69 6E 67 7B 22 69 64 22 3A 22 6D 31 22 7D DE AD";
const KIND_0_CLIENT: &str = "00 01 01 0D 04 31 32 72 65 61 6C 74 69 6D 65 3A 72 6F 6F 6D 70 69 6E 67 DE AD";
const KIND_0_SERVER: &str = "00 01 0D 04 31 72 65 61 6C 74 69 6D 65 3A 72 6F 6F 6D 70 69 6E 67 DE AD";
const KIND_1_OK: &str = "01 01 01 0D 02 31 32 72 65 61 6C 74 69 6D 65 3A 72 6F 6F 6D 6F 6B DE AD";
const KIND_2: &str = "02 0D 04 72 65 61 6C 74 69 6D 65 3A 72 6F 6F 6D 70 69 6E 67 DE AD";

const DEAD: &[u8] = &[0xde, 0xad];

fn hex(text: &str) -> Vec<u8> {
    text.split(' ').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

fn written<E: std::fmt::Debug>(write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out).unwrap();
    out
}

fn client_frame<'a>(payload: Payload<'a>, event: &'a str) -> Frame<'a> {
    Frame {
        join_ref: "\"1\"".into(),
        reference: "\"2\"".into(),
        topic: TOPIC.into(),
        event: event.into(),
        payload,
    }
}

#[test]
fn kind_3_with_json_is_a_broadcast() {
    let broadcast =
        UserBroadcast { event: "ping", metadata: "", encoding: Encoding::Json, payload: b"{\"a\":1}" };
    let bytes = hex(KIND_3_JSON);
    let expected = client_frame(Payload::UserBroadcast(broadcast), "broadcast");
    assert_eq!(decode_binary(&bytes), Ok(expected));
    let write = |out: &mut Vec<u8>| {
        write_user_broadcast_push(out, "1", "2", TOPIC, "ping", "", Encoding::Json, b"{\"a\":1}")
    };
    assert_eq!(written(write), bytes);
}

#[test]
fn kind_4_delivers_it() {
    let broadcast =
        UserBroadcast { event: "ping", metadata: "", encoding: Encoding::Json, payload: b"{\"a\":1}" };
    let bytes = hex(KIND_4_JSON);
    assert_eq!(decode_server_binary(&bytes), Ok(ServerFrame::UserBroadcast { topic: TOPIC, broadcast }));
    let write =
        |out: &mut Vec<u8>| write_user_broadcast(out, TOPIC, "ping", "", Encoding::Json, b"{\"a\":1}");
    assert_eq!(written(write), bytes);
}

#[test]
fn kind_4_carries_bytes_and_metadata() {
    let metadata = "{\"id\":\"m1\"}";
    let broadcast = UserBroadcast { event: "ping", metadata, encoding: Encoding::Bytes, payload: DEAD };
    let bytes = hex(KIND_4_BYTES_META);
    assert_eq!(decode_server_binary(&bytes), Ok(ServerFrame::UserBroadcast { topic: TOPIC, broadcast }));
    let write = |out: &mut Vec<u8>| write_user_broadcast(out, TOPIC, "ping", metadata, Encoding::Bytes, DEAD);
    assert_eq!(written(write), bytes);
}

#[test]
fn kind_0_has_a_ref_only_when_a_client_sends_it() {
    let bytes = hex(KIND_0_CLIENT);
    assert_eq!(decode_binary(&bytes), Ok(client_frame(Payload::Bytes(DEAD), "ping")));
    assert_eq!(written(|out| write_client_push(out, "1", "2", TOPIC, "ping", DEAD)), bytes);

    let bytes = hex(KIND_0_SERVER);
    let expected = ServerFrame::Push { join_ref: "1", topic: TOPIC, event: "ping", payload: DEAD };
    assert_eq!(decode_server_binary(&bytes), Ok(expected));
    assert_eq!(written(|out| write_server_push(out, "1", TOPIC, "ping", DEAD)), bytes);
}

#[test]
fn kind_1_replies() {
    let bytes = hex(KIND_1_OK);
    let expected =
        ServerFrame::Reply { join_ref: "1", reference: "2", topic: TOPIC, status: "ok", payload: DEAD };
    assert_eq!(decode_server_binary(&bytes), Ok(expected));
    assert_eq!(written(|out| write_server_reply(out, "1", "2", TOPIC, Status::Ok, DEAD)), bytes);
}

#[test]
fn kind_2_broadcasts() {
    let bytes = hex(KIND_2);
    let expected = ServerFrame::Broadcast { topic: TOPIC, event: "ping", payload: DEAD };
    assert_eq!(decode_server_binary(&bytes), Ok(expected));
    assert_eq!(written(|out| write_broadcast(out, TOPIC, "ping", DEAD)), bytes);
}

/// `>` from the client, `<` from the server. Arrow and frame as in appendix A, "Session, V2".
const SESSION_V2: &[(char, &str)] = &[
    (
        '>',
        r#"["1","1","realtime:room","phx_join",{"config":{"broadcast":{"ack":true,"self":true},"presence":{"enabled":true,"key":"ada"}}}]"#,
    ),
    ('<', r#"["1","1","realtime:room","phx_reply",{"status":"ok","response":{"postgres_changes":[]}}]"#),
    ('<', r#"["1",null,"realtime:room","presence_state",{}]"#),
    (
        '>',
        r#"["1","2","realtime:room","broadcast",{"type":"broadcast","event":"ping","payload":{"a":1},"extra":5}]"#,
    ),
    (
        '<',
        r#"[null,null,"realtime:room","broadcast",{"type":"broadcast","event":"ping","payload":{"a":1},"extra":5}]"#,
    ),
    ('<', r#"["1","2","realtime:room","phx_reply",{"status":"ok","response":{}}]"#),
    ('>', r#"["77","3","realtime:room","broadcast",{"type":"broadcast","event":"ping","payload":{}}]"#),
    ('<', r#"[null,null,"realtime:room","broadcast",{"type":"broadcast","event":"ping","payload":{}}]"#),
    ('<', r#"["1","3","realtime:room","phx_reply",{"status":"ok","response":{}}]"#),
    ('>', r#"["77","4","realtime:room","phx_leave",{}]"#),
    ('>', r#"["1","5","realtime:room","presence",{"type":"presence","event":"track","payload":{"n":1}}]"#),
    ('<', r#"["1","5","realtime:room","phx_reply",{"status":"ok","response":{}}]"#),
    (
        '<',
        r#"[null,null,"realtime:room","presence_diff",{"joins":{"ada":{"metas":[{"phx_ref":"…","n":1}]}},"leaves":{}}]"#,
    ),
    ('>', r#"["6","7","realtime:room","phx_join",{"config":{"presence":{"enabled":true,"key":"ada"}}}]"#),
    ('<', r#"["6","7","realtime:room","phx_reply",{"status":"ok","response":{"postgres_changes":[]}}]"#),
    ('<', r#"["1","1","realtime:room","phx_close",{}]"#),
    ('<', r#"["6",null,"realtime:room","presence_state",{}]"#),
    ('>', r#"["6","8","realtime:room","phx_leave",{}]"#),
    ('<', r#"["6","8","realtime:room","phx_reply",{"status":"ok","response":{}}]"#),
    ('<', r#"["6","6","realtime:room","phx_close",{}]"#),
    // §1.7, §1.8
    ('>', r#"[null,"7","phoenix","heartbeat",{}]"#),
    (
        '<',
        r#"[null,"4","realtime:nope","phx_reply",{"status":"error","response":{"reason":"unmatched topic"}}]"#,
    ),
];

/// Appendix A, "Session, V1 in the manner of realtime-py", and the object frames of §1.4, §1.7 and §1.9.
const SESSION_V1: &[(char, &str)] = &[
    (
        '>',
        r#"{"event":"phx_join","payload":{"config":{}},"topic":"realtime:room","ref":"1","join_ref":null}"#,
    ),
    (
        '<',
        r#"{"topic":"realtime:room","event":"phx_reply","payload":{"status":"ok","response":{"postgres_changes":[]}},"ref":"1"}"#,
    ),
    ('>', r#"{"event":"phx_leave","payload":{},"topic":"realtime:room","ref":"2","join_ref":null}"#),
    (
        '<',
        r#"{"topic":"realtime:room","event":"phx_reply","payload":{"status":"ok","response":{}},"ref":"2"}"#,
    ),
    ('<', r#"{"topic":"realtime:room","event":"phx_close","payload":{},"ref":null}"#),
    ('>', r#"{"topic":"realtime:room","event":"phx_join","payload":{},"ref":"1","join_ref":"1"}"#),
    ('>', r#"{"topic":"phoenix","event":"heartbeat","payload":{},"ref":null}"#),
    ('<', r#"{"topic":"realtime:room","event":"phx_close","payload":{},"ref":"3"}"#),
];

fn json_of(payload: Payload<'_>) -> &str {
    match payload {
        Payload::Json(raw) => raw,
        other => panic!("not JSON: {other:?}"),
    }
}

/// Reads each frame and writes it again; the bytes must come back.
fn replay(version: Version, session: &[(char, &str)], written_order_differs: impl Fn(&str) -> bool) {
    for (direction, text) in session {
        let frame = decode_text(version, text.as_bytes()).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert!(frame.topic == TOPIC || frame.topic == "phoenix" || frame.topic == "realtime:nope");
        let payload = json_of(frame.payload);
        let mut out = Vec::new();
        let write = if *direction == '>' { write_client_text } else { write_text };
        write(&mut out, version, &frame.join_ref, &frame.reference, &frame.topic, &frame.event, payload);
        let again = String::from_utf8(out).unwrap();
        if written_order_differs(text) {
            assert_eq!(decode_text(version, again.as_bytes()).unwrap(), frame, "{text}");
        } else {
            assert_eq!(&again, text);
        }
    }
}

#[test]
fn the_v2_session_is_read_and_written_byte_for_byte() {
    replay(Version::V2, SESSION_V2, |_| false);
}

#[test]
fn the_v1_session_is_read_and_written() {
    // Key order is unspecified; realtime-py writes another one and may leave `join_ref` out.
    let differs = |text: &str| text.starts_with("{\"event\"") || text.contains("heartbeat");
    replay(Version::V1, SESSION_V1, differs);
}

#[test]
fn replies_are_written_as_the_sessions_show_them() {
    for (version, session) in [(Version::V1, SESSION_V1), (Version::V2, SESSION_V2)] {
        let mut count = 0;
        for (_, text) in session.iter().filter(|(_, text)| text.contains("phx_reply")) {
            let frame = decode_text(version, text.as_bytes()).unwrap();
            let (status, response) = json_of(frame.payload)
                .strip_prefix("{\"status\":\"")
                .and_then(|rest| rest.strip_suffix('}'))
                .and_then(|rest| rest.split_once("\",\"response\":"))
                .unwrap();
            let status = if status == "ok" { Status::Ok } else { Status::Error };
            let mut out = Vec::new();
            write_reply(&mut out, version, &frame.join_ref, &frame.reference, &frame.topic, status, response);
            assert_eq!(std::str::from_utf8(&out).unwrap(), *text);
            count += 1;
        }
        assert!(count >= 2);
    }
}

#[test]
fn a_shutdown_is_a_system_message_and_a_close() {
    let mut payload = Vec::new();
    tidewire_protocol::join::write_system(
        &mut payload,
        "system",
        Status::Error,
        "Too many messages per second",
        "room",
    );
    let payload = String::from_utf8(payload).unwrap();
    let mut out = Vec::new();
    write_text(&mut out, Version::V2, "\"3\"", frame::NULL, TOPIC, "system", &payload);
    let expected = r#"["3",null,"realtime:room","system",{"extension":"system","status":"error","message":"Too many messages per second","channel":"room"}]"#;
    assert_eq!(String::from_utf8(out).unwrap(), expected);
}
