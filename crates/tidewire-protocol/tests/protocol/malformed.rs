//! Foreign bytes that are no frame: PROTOCOL.md §1.6, §1.5.

use tidewire_protocol::frame::*;
use tidewire_protocol::json;

#[test]
fn v1_text() {
    use Malformed::*;
    let table: &[(&[u8], Malformed)] = &[
        (b"", Empty),
        (b" ", NotJson),
        (b"{", NotJson),
        (b"null", NotJson),
        (b"\"text\"", NotJson),
        (b"[]", NotJson),
        (b"[\"1\",\"1\",\"t\",\"e\",{}]", NotJson),
        (b"{}", MissingKey("topic")),
        (br#"{"event":"e","payload":{},"ref":null}"#, MissingKey("topic")),
        (br#"{"topic":"t","payload":{},"ref":null}"#, MissingKey("event")),
        (br#"{"topic":"t","event":"e","ref":null}"#, MissingKey("payload")),
        (br#"{"topic":"t","event":"e","payload":{}}"#, MissingKey("ref")),
        (br#"{"topic":1,"event":"e","payload":{},"ref":null}"#, NotAString("topic")),
        (br#"{"topic":"t","event":null,"payload":{},"ref":null}"#, NotAString("event")),
        (br#"{"topic":"t","event":"e","payload":{},"ref":{}}"#, RefNotScalar("ref")),
        (br#"{"topic":"t","event":"e","payload":{},"ref":"1","join_ref":[]}"#, RefNotScalar("join_ref")),
        (br#"{"topic":"t","event":"e","payload":{},"ref":null}x"#, NotJson),
        (br#"{"topic":"t","event":"e","payload":{},"ref":null,}"#, NotJson),
        (br#"{"topic":"t","event":"e","payload":undefined,"ref":null}"#, NotJson),
        (b"{\"topic\":\"\xff\",\"event\":\"e\",\"payload\":{},\"ref\":null}", NotUtf8),
        (b"{\"topic\":\"a\nb\",\"event\":\"e\",\"payload\":{},\"ref\":null}", NotJson),
    ];
    for (bytes, expected) in table {
        assert_eq!(decode_text(Version::V1, bytes), Err(*expected), "{}", bytes.escape_ascii());
    }
}

#[test]
fn v2_text() {
    use Malformed::*;
    let table: &[(&[u8], Malformed)] = &[
        (b"", Empty),
        (b"[", NotJson),
        (b"{}", NotJson),
        (b"7", NotJson),
        (br#"{"topic":"t","event":"e","payload":{},"ref":null}"#, NotJson),
        (b"[]", TooFewElements),
        (b"[null,null,\"t\",\"e\"]", TooFewElements),
        (b"[null,null,\"t\",\"e\",]", NotJson),
        (b"[null,null,\"t\",\"e\",{}", NotJson),
        (b"[null,null,\"t\",\"e\",{}]]", NotJson),
        (b"[null,null,\"t\",\"e\",{},oops]", NotJson),
        (b"[null,null,\"t\",\"e\",{\"a\":01}]", NotJson),
        (b"[null,null,\"t\",\"e\",\"\\x\"]", NotJson),
        (b"[1,2\",null,\"t\",\"e\",{}]", NotJson),
        (b"[null,nulL,\"t\",\"e\",{}]", NotJson),
        (b"[null,null,\"t\",\"e\",{}}]", NotJson),
        (b"[null,null,\"t\",\"e\",]]", NotJson),
        (b"[null,null,\"t\",\"e\",[]", NotJson),
        (b"[\"\",\"\",\"t", NotJson),
        (b"[null,null,null,null,{}]", NotAString("topic")),
        (b"[[],null,\"t\",\"e\",{}]", RefNotScalar("join_ref")),
        (b"[null,{},\"t\",\"e\",{}]", RefNotScalar("ref")),
        (b"[null,null,null,\"e\",{}]", NotAString("topic")),
        (b"[null,null,\"t\",5,{}]", NotAString("event")),
        (b"[null,null,\"\\ud800\",\"e\",{}]", NotAString("topic")),
        (b"[null,null,\"t\",\"e\",\"\xc3\x28\"]", NotUtf8),
        (b"\xef\xbb\xbf[null,null,\"t\",\"e\",{}]", NotJson),
    ];
    for (bytes, expected) in table {
        assert_eq!(decode_text(Version::V2, bytes), Err(*expected), "{}", bytes.escape_ascii());
    }
}

#[test]
fn binary_from_a_client() {
    use Malformed::*;
    let table: &[(&[u8], Malformed)] = &[
        (b"", Empty),
        (b"\x00", Truncated),
        (b"\x00\x01\x01\x01", Truncated),
        (b"\x00\x01\x01\x01\x01abc", Truncated),
        (b"\x00\x00\x00\x01\x00\xff", NotUtf8),
        (b"\x01\x01\x01\x01\x021tok", UnknownKind(1)),
        (b"\x02\x01\x01te", UnknownKind(2)),
        (b"\x04\x01\x01\x00\x01te{}", UnknownKind(4)),
        (b"\x05", UnknownKind(5)),
        (b"\xff\xff\xff", UnknownKind(255)),
        (b"\x03", Truncated),
        (b"\x03\x00\x00\x01\x01\x00", Truncated),
        (b"\x03\x00\x00\x01\x01\x00\x01t", Truncated),
        (b"\x03\x00\x00\x01\x01\x02\x01te{", Truncated),
        (b"\x03\x00\x00\x01\x01\x01\x01te{", MetadataNotJson),
        (b"\x03\x00\x00\x01\x01\x01\x01te\xff", NotUtf8),
    ];
    for (bytes, expected) in table {
        assert_eq!(decode_binary(bytes), Err(*expected), "{}", bytes.escape_ascii());
    }
}

#[test]
fn binary_from_a_server() {
    use Malformed::*;
    let table: &[(&[u8], Malformed)] = &[
        (b"", Empty),
        (b"\x00\x01\x01", Truncated),
        (b"\x01\x01\x01\x01\x02jrto", Truncated),
        (b"\x02\x01", Truncated),
        (b"\x03\x00\x00\x01\x01\x00\x01te{}", UnknownKind(3)),
        (b"\x04\x01\x01\x00", Truncated),
        (b"\x04\x01\x01\x01\x00te[", MetadataNotJson),
        (b"\x04\x02\x00\x00\x00\xc3\x28", NotUtf8),
    ];
    for (bytes, expected) in table {
        assert_eq!(decode_server_binary(bytes), Err(*expected), "{}", bytes.escape_ascii());
    }
}

#[test]
fn messages_are_fragments_without_payload() {
    let error = decode_text(Version::V1, br#"{"topic":"secret"}"#).unwrap_err();
    assert_eq!(error.to_string(), "frame lacks the key `event`");
    assert!(!format!("{error:?}").contains("secret"));
}

#[test]
fn reading_keys_fails_on_everything_but_objects() {
    for raw in ["", "[]", "1", "null", "{", "{}x", "{\"a\"}", "\"{}\""] {
        assert!(json::fields(raw, ["a"]).is_none(), "{raw}");
    }
    let [a, b] = json::fields(r#"{"a": [1, 2], "c":0}"#, ["a", "b"]).unwrap();
    assert_eq!((a.unwrap().get(), b.is_none()), ("[1, 2]", true));
}
