//! What frames keep, borrow and tolerate.

use std::borrow::Cow;

use tidewire_protocol::frame::*;
use tidewire_protocol::json;

fn v1(text: &str) -> Frame<'_> {
    decode_text(Version::V1, text.as_bytes()).unwrap()
}

fn v2(text: &str) -> Frame<'_> {
    decode_text(Version::V2, text.as_bytes()).unwrap()
}

#[test]
fn vsn_chooses_the_version() {
    let table = [
        (None, Some(Version::V1)),
        (Some("1.0.0"), Some(Version::V1)),
        (Some("1.0.17"), Some(Version::V1)),
        (Some("2.0.0"), Some(Version::V2)),
        (Some("2.0.9"), Some(Version::V2)),
        (Some(""), None),
        (Some("1"), None),
        (Some("2.0"), None),
        (Some("2.0."), None),
        (Some("2.0.x"), None),
        (Some("2.1.0"), None),
        (Some("3.0.0"), None),
        (Some(" 2.0.0"), None),
    ];
    for (vsn, expected) in table {
        assert_eq!(Version::from_vsn(vsn), expected, "{vsn:?}");
    }
}

#[test]
fn refs_echo_with_their_type() {
    let scalars =
        ["null", "\"1\"", "1", "-2.50e3", "true", "false", "\"\"", "\"a\\n\\u00e9\"", "18446744073709551616"];
    for scalar in scalars {
        let text = format!("[{scalar},{scalar},\"t\",\"e\",{{}}]");
        let frame = v2(&text);
        assert_eq!((&*frame.join_ref, &*frame.reference), (scalar, scalar));
        let mut out = Vec::new();
        write_reply(&mut out, Version::V2, &frame.join_ref, &frame.reference, "t", Status::Ok, "{}");
        let expected =
            format!("[{scalar},{scalar},\"t\",\"phx_reply\",{{\"status\":\"ok\",\"response\":{{}}}}]");
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}

#[test]
fn nothing_is_copied_when_nothing_is_escaped() {
    let frame = v2(r#"["1","2","realtime:größe","broadcast",{"a":"\n"}]"#);
    assert!(matches!(frame.topic, Cow::Borrowed("realtime:größe")));
    assert!(matches!(frame.event, Cow::Borrowed("broadcast")));
    assert!(matches!((frame.join_ref, frame.reference), (Cow::Borrowed(_), Cow::Borrowed(_))));
    assert_eq!(frame.payload, Payload::Json(r#"{"a":"\n"}"#));
}

#[test]
fn escapes_in_topic_and_event_are_undone() {
    let frame = v2(r#"[null,null,"realtime:\u00e9\ud83d\ude00\/\"","e\\v",0]"#);
    assert_eq!(frame.topic, "realtime:é😀/\"");
    assert_eq!(frame.event, "e\\v");
}

#[test]
fn v2_ignores_elements_past_the_fifth_and_white_space_around_them() {
    let frame = v2(" [ \"1\" , \"2\" ,\"t\",\t\"e\",\n { \"a\" : 1 } , 6, [[7]], {\"8\":8} ] \r\n");
    assert_eq!(frame.payload, Payload::Json("{ \"a\" : 1 }"));
    assert_eq!(frame.reference, "\"2\"");
}

#[test]
fn v1_ignores_unknown_keys_and_takes_the_last_of_equal_ones() {
    let frame = v1(r#"{"x":[{}],"ref":1,"topic":"a","topic":"b","event":"e","payload":null,"ref":2}"#);
    assert_eq!((&*frame.topic, &*frame.reference, &*frame.join_ref), ("b", "2", NULL));
    assert_eq!(frame.payload, Payload::Json("null"));
}

#[test]
fn v1_keys_may_be_escaped() {
    assert_eq!(v1(r#"{"t\u006fpic":"a","event":"e","payload":{},"ref":null}"#).topic, "a");
}

#[test]
fn a_deeply_nested_payload_is_just_text() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let text = format!("[null,null,\"t\",\"e\",{deep}]");
    assert_eq!(v2(&text).payload, Payload::Json(&deep));
    let text = format!("[null,null,\"t\",\"e\",{{}},{deep}]");
    assert_eq!(v2(&text).payload, Payload::Json("{}"));
}

#[test]
fn zero_length_refs_are_empty_strings_not_null() {
    let frame = decode_binary(b"\x03\0\0\x01\x01\0\0te").unwrap();
    assert_eq!((&*frame.join_ref, &*frame.reference), ("\"\"", "\"\""));
    let frame = decode_binary(b"\0\0\0\x01\x01tepayload").unwrap();
    assert_eq!((&*frame.join_ref, &*frame.reference), ("\"\"", "\"\""));
    assert_eq!(frame.payload, Payload::Bytes(b"payload"));
}

#[test]
fn binary_refs_become_json_text() {
    let mut out = Vec::new();
    write_client_push(&mut out, "a\"b", "\n", "t", "e", b"").unwrap();
    let frame = decode_binary(&out).unwrap();
    assert_eq!((&*frame.join_ref, &*frame.reference), (r#""a\"b""#, r#""\n""#));
}

#[test]
fn every_non_zero_encoding_is_json_and_leaves_as_one() {
    for encoding in [1, 2, 255] {
        let bytes = [3, 0, 0, 1, 1, 0, encoding, b't', b'e', b'1'];
        let Payload::UserBroadcast(broadcast) = decode_binary(&bytes).unwrap().payload else { panic!() };
        assert_eq!(broadcast.encoding, Encoding::Json);
        let mut out = Vec::new();
        write_user_broadcast(&mut out, "t", broadcast.event, "", broadcast.encoding, broadcast.payload)
            .unwrap();
        assert_eq!(out[4], 1);
    }
}

#[test]
fn kind_3_payloads_are_not_looked_into() {
    let frame = decode_binary(b"\x03\0\0\x01\x01\0\x01te{not json\xff").unwrap();
    let Payload::UserBroadcast(broadcast) = frame.payload else { panic!() };
    assert_eq!(broadcast.payload, b"{not json\xff");
    assert!(!json::is_valid(broadcast.payload));
}

#[test]
fn a_field_beyond_255_bytes_writes_nothing() {
    let long = "x".repeat(256);
    let fits = &long[..255];
    let mut out = b"before".to_vec();
    let error = write_user_broadcast(&mut out, &long, "e", "", Encoding::Json, b"{}").unwrap_err();
    assert_eq!(error, FieldTooLong { field: "topic", len: 256 });
    assert_eq!(
        write_user_broadcast(&mut out, "t", "e", &long, Encoding::Json, b"").unwrap_err().field,
        "metadata"
    );
    assert_eq!(write_client_push(&mut out, "1", &long, "t", "e", b"").unwrap_err().field, "ref");
    assert_eq!(out, b"before");
    assert!(write_user_broadcast(&mut out, fits, fits, "", Encoding::Bytes, b"").is_ok());
}

#[test]
fn v1_never_sends_a_join_ref_and_clients_do() {
    let mut out = Vec::new();
    write_text(&mut out, Version::V1, "\"9\"", "null", "t", "e", "{}");
    assert_eq!(out, br#"{"topic":"t","event":"e","payload":{},"ref":null}"#);
    out.clear();
    write_client_text(&mut out, Version::V1, "\"9\"", "\"1\"", "t", "e", "{}");
    assert_eq!(out, br#"{"topic":"t","event":"e","payload":{},"ref":"1","join_ref":"9"}"#);
}

#[test]
fn writers_append() {
    let mut out = b"x".to_vec();
    write_text(&mut out, Version::V2, NULL, NULL, "a\"b", "\u{1}", "1");
    assert_eq!(out, br#"x[null,null,"a\"b","\u0001",1]"#);
}
