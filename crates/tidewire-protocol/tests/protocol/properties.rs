//! Properties: round trips, no panic on foreign bytes, and a decoder that does not care how bytes were split.

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use tidewire_protocol::frame::*;
use tidewire_protocol::join;
use tidewire_protocol::json;
use tidewire_protocol::websocket::{self, Decoder, Event, Opcode, Role};

use crate::websocket::raw;

/// Text with everything that is awkward in JSON.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z:_]{0,40}",
        vec(
            prop_oneof![any::<char>(), Just('"'), Just('\\'), Just('\u{0}'), Just('\u{1f}'), Just('\u{7f}')],
            0..40
        )
        .prop_map(|chars| chars.into_iter().collect()),
    ]
}

/// Text that fits a binary field.
fn short() -> impl Strategy<Value = String> {
    text().prop_map(|text| text[..text.floor_char_boundary(255)].to_owned())
}

fn quoted(text: &str) -> String {
    let mut out = Vec::new();
    json::write_string(&mut out, text);
    String::from_utf8(out).unwrap()
}

fn scalar() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        any::<i64>().prop_map(|n| n.to_string()),
        text().prop_map(|text| quoted(&text)),
    ]
}

fn value() -> impl Strategy<Value = String> {
    scalar().prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(|elements| format!("[{}]", elements.join(", "))),
            btree_map(text(), inner, 0..4).prop_map(|entries| {
                let entries: Vec<_> = entries.iter().map(|(k, v)| format!("{}: {v}", quoted(k))).collect();
                format!("{{{}}}", entries.join(","))
            }),
        ]
    })
}

/// A byte that means something in JSON, or `None` to remove one.
fn damaging_byte() -> impl Strategy<Value = Option<u8>> {
    proptest::option::weighted(0.7, proptest::sample::select(&b"[]{}\",:\\ \n\x000-.eunl\xc3"[..]))
}

/// What V2 demands, said with a parser that knows no fast path.
fn reads_as_v2(text: &str) -> Option<[String; 5]> {
    let elements: Vec<&serde_json::value::RawValue> = serde_json::from_str(text).ok()?;
    let [join_ref, reference, topic, event, payload, ..] = &elements[..] else { return None };
    let is_scalar = |raw: &str| !raw.starts_with(['[', '{']);
    if !is_scalar(join_ref.get()) || !is_scalar(reference.get()) {
        return None;
    }
    let plain = |raw: &str| serde_json::from_str::<String>(raw).ok();
    Some([
        join_ref.get().to_owned(),
        reference.get().to_owned(),
        plain(topic.get())?,
        plain(event.get())?,
        payload.get().to_owned(),
    ])
}

fn encoding() -> impl Strategy<Value = Encoding> {
    prop_oneof![Just(Encoding::Bytes), Just(Encoding::Json)]
}

proptest! {
    #[test]
    fn an_escaped_string_reads_back(text in text()) {
        let raw = quoted(&text);
        prop_assert_eq!(serde_json::from_str::<String>(&raw).unwrap(), text.clone());
        prop_assert_eq!(json::string(&raw).unwrap(), text.clone());
        prop_assert_eq!(raw, serde_json::to_string(&text).unwrap());
    }

    #[test]
    fn text_frames_round_trip(
        join_ref in scalar(), reference in scalar(), topic in text(), event in text(), payload in value(),
    ) {
        for version in [Version::V1, Version::V2] {
            let mut out = Vec::new();
            write_client_text(&mut out, version, &join_ref, &reference, &topic, &event, &payload);
            let frame = decode_text(version, &out).unwrap();
            prop_assert_eq!(&frame.join_ref, &join_ref);
            prop_assert_eq!(&frame.reference, &reference);
            prop_assert_eq!(&frame.topic, &topic);
            prop_assert_eq!(&frame.event, &event);
            prop_assert_eq!(frame.payload, Payload::Json(&payload));
        }
    }

    #[test]
    fn the_text_decoder_agrees_with_a_full_parser(text in prop_oneof![
        value(),
        vec(value(), 4..7).prop_map(|elements| format!("[{}]", elements.join(","))),
    ]) {
        let tree: serde_json::Value = serde_json::from_str(&text).unwrap();
        let is_scalar = |v: &serde_json::Value| !v.is_array() && !v.is_object();
        let expected = tree.as_array().is_some_and(|e| {
            e.len() >= 5 && is_scalar(&e[0]) && is_scalar(&e[1]) && e[2].is_string() && e[3].is_string()
        });
        prop_assert_eq!(decode_text(Version::V2, text.as_bytes()).is_ok(), expected);
    }

    #[test]
    fn a_damaged_frame_is_read_as_a_full_parser_reads_it(
        join_ref in scalar(), reference in scalar(), topic in text(), event in text(), payload in value(),
        damage in vec((any::<proptest::sample::Index>(), damaging_byte()), 0..4),
    ) {
        let mut bytes = Vec::new();
        write_text(&mut bytes, Version::V2, &join_ref, &reference, &topic, &event, &payload);
        for (index, byte) in damage {
            let at = index.index(bytes.len());
            match byte {
                Some(byte) => bytes[at] = byte,
                None => drop(bytes.remove(at)),
            }
        }
        let expected = std::str::from_utf8(&bytes).ok().and_then(reads_as_v2);
        let actual = decode_text(Version::V2, &bytes).ok().map(|frame| {
            let Payload::Json(payload) = frame.payload else { panic!("a text frame carries JSON") };
            [
                frame.join_ref.into_owned(),
                frame.reference.into_owned(),
                frame.topic.into_owned(),
                frame.event.into_owned(),
                payload.to_owned(),
            ]
        });
        prop_assert_eq!(actual, expected);
    }

    #[test]
    fn binary_frames_from_clients_round_trip(
        join_ref in short(), reference in short(), topic in short(), event in short(),
        metadata in prop_oneof![Just(String::new()), Just("{\"id\":\"1\"}".to_owned())],
        encoding in encoding(), payload in vec(any::<u8>(), 0..200),
    ) {
        let mut out = Vec::new();
        write_user_broadcast_push(&mut out, &join_ref, &reference, &topic, &event, &metadata, encoding, &payload)
            .unwrap();
        let frame = decode_binary(&out).unwrap();
        prop_assert_eq!(&frame.join_ref, &quoted(&join_ref));
        prop_assert_eq!(&frame.reference, &quoted(&reference));
        prop_assert_eq!(&frame.topic, &topic);
        prop_assert_eq!(&frame.event, "broadcast");
        let broadcast = UserBroadcast { event: &event, metadata: &metadata, encoding, payload: &payload };
        prop_assert_eq!(frame.payload, Payload::UserBroadcast(broadcast));

        out.clear();
        write_client_push(&mut out, &join_ref, &reference, &topic, &event, &payload).unwrap();
        let frame = decode_binary(&out).unwrap();
        prop_assert_eq!(&frame.event, &event);
        prop_assert_eq!(frame.payload, Payload::Bytes(&payload));
    }

    #[test]
    fn binary_frames_from_servers_round_trip(
        join_ref in short(), reference in short(), topic in short(), event in short(),
        encoding in encoding(), payload in vec(any::<u8>(), 0..200),
    ) {
        let mut out = Vec::new();
        write_user_broadcast(&mut out, &topic, &event, "", encoding, &payload).unwrap();
        let broadcast = UserBroadcast { event: &event, metadata: "", encoding, payload: &payload };
        prop_assert_eq!(decode_server_binary(&out), Ok(ServerFrame::UserBroadcast { topic: &topic, broadcast }));

        out.clear();
        write_server_push(&mut out, &join_ref, &topic, &event, &payload).unwrap();
        let push = ServerFrame::Push { join_ref: &join_ref, topic: &topic, event: &event, payload: &payload };
        prop_assert_eq!(decode_server_binary(&out), Ok(push));

        out.clear();
        write_server_reply(&mut out, &join_ref, &reference, &topic, Status::Error, &payload).unwrap();
        let reply = ServerFrame::Reply {
            join_ref: &join_ref, reference: &reference, topic: &topic, status: "error", payload: &payload,
        };
        prop_assert_eq!(decode_server_binary(&out), Ok(reply));

        out.clear();
        write_broadcast(&mut out, &topic, &event, &payload).unwrap();
        let broadcast = ServerFrame::Broadcast { topic: &topic, event: &event, payload: &payload };
        prop_assert_eq!(decode_server_binary(&out), Ok(broadcast));
    }

    #[test]
    fn no_bytes_panic_a_frame_decoder(bytes in vec(any::<u8>(), 0..300), kind in 0u8..6) {
        let _ = decode_text(Version::V1, &bytes);
        let _ = decode_text(Version::V2, &bytes);
        let mut binary = vec![kind];
        // Small lengths, so that some frames get past their header.
        binary.extend(bytes.iter().enumerate().map(|(i, b)| if i < 5 { b % 16 } else { *b }));
        let _ = decode_binary(&binary);
        let _ = decode_server_binary(&binary);
    }

    #[test]
    fn no_json_panics_the_join_parser(
        value in value(), key in prop_oneof![Just("config"), Just("access_token"), Just("user_token")],
        part in prop_oneof![Just("broadcast"), Just("presence"), Just("postgres_changes"), Just("private")],
    ) {
        let _ = join::parse(&value);
        let _ = join::parse(&format!("{{\"{key}\":{value}}}"));
        let _ = join::parse_access_token(&format!("{{\"{key}\":{value}}}"));
        let payload = format!("{{\"config\":{{\"{part}\":{value}}}}}");
        prop_assert!(join::parse(&payload).is_ok());
    }

    #[test]
    fn every_binding_echoes_as_json_and_has_an_id(value in value(), key in text()) {
        // Equal keys would make the tree below another object than the text.
        prop_assume!(key != "filter");
        let raw = format!("{{{}:{value},\"filter\" : \"a=eq.1\" }}", quoted(&key));
        let binding = join::Binding::parse(&raw).unwrap();
        prop_assert!((1..1 << 27).contains(&binding.id()));
        let mut echo = Vec::new();
        binding.write_echo(&mut echo);
        let mut expected: serde_json::Value = serde_json::from_str(&raw).unwrap();
        expected["id"] = binding.id().into();
        prop_assert_eq!(serde_json::from_slice::<serde_json::Value>(&echo).unwrap(), expected);
        let _ = binding.target();

        // Another spelling of the same parameters: sorted keys, no white space.
        let tree: serde_json::Value = serde_json::from_str(&raw).unwrap();
        prop_assert_eq!(join::Binding::parse(&tree.to_string()).unwrap().id(), binding.id());
    }

    #[test]
    fn a_legacy_topic_always_gives_a_binding(sub_topic in text()) {
        let binding = join::legacy_binding(&sub_topic);
        prop_assert!(binding.target().is_ok());
    }
}

/// An event with its own bytes, to compare across buffers.
#[derive(Clone, PartialEq, Debug)]
enum Owned {
    Text(Vec<u8>),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, Vec<u8>),
    Violation(u16),
}

impl Owned {
    fn new(event: Event<'_>) -> Option<Owned> {
        Some(match event {
            Event::Text(bytes) => Owned::Text(bytes.to_vec()),
            Event::Binary(bytes) => Owned::Binary(bytes.to_vec()),
            Event::Ping(bytes) => Owned::Ping(bytes.to_vec()),
            Event::Pong(bytes) => Owned::Pong(bytes.to_vec()),
            Event::Close { code, reason } => Owned::Close(code, reason.to_vec()),
            Event::Fragment => return None,
        })
    }
}

/// What a driver does: append what arrived, decode until more is needed, drop what was consumed.
fn drive(role: Role, limit: usize, bytes: &[u8], cuts: &[usize]) -> Vec<Owned> {
    let mut decoder = Decoder::new(role, limit);
    let mut buf = Vec::new();
    let mut events = Vec::new();
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    cuts.push(bytes.len());
    cuts.sort_unstable();
    let mut at = 0;
    for cut in cuts {
        buf.extend_from_slice(&bytes[at..cut]);
        at = cut;
        loop {
            match decoder.decode(&mut buf) {
                Ok(None) => break,
                Ok(Some(decoded)) => {
                    events.extend(Owned::new(decoded.event));
                    let consumed = decoded.consumed;
                    assert!(consumed >= 2 && consumed <= buf.len());
                    assert_eq!(Decoder::needed(&buf), Some(consumed));
                    buf.drain(..consumed);
                }
                Err(violation) => {
                    events.push(Owned::Violation(violation.code));
                    return events;
                }
            }
        }
    }
    events
}

#[derive(Clone, Debug)]
enum Sent {
    Message { is_text: bool, fragments: Vec<(Vec<u8>, Option<Vec<u8>>)> },
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(u16),
}

fn sent() -> impl Strategy<Value = Sent> {
    let payload = || prop_oneof![vec(any::<u8>(), 0..20), vec(any::<u8>(), 120..300)];
    let control = || vec(any::<u8>(), 0..=125);
    prop_oneof![
        4 => (any::<bool>(), vec((payload(), proptest::option::weighted(0.3, control())), 1..4))
            .prop_map(|(is_text, fragments)| Sent::Message { is_text, fragments }),
        1 => control().prop_map(Sent::Ping),
        1 => control().prop_map(Sent::Pong),
        1 => (3000u16..5000).prop_map(Sent::Close),
    ]
}

/// The bytes of a conversation and the events it must give. Pings may stand before each fragment.
fn conversation(all: &[Sent], mask: Option<[u8; 4]>) -> (Vec<u8>, Vec<Owned>) {
    let (mut bytes, mut events) = (Vec::new(), Vec::new());
    for item in all {
        match item {
            Sent::Message { is_text, fragments } => {
                let opcode = if *is_text { 1 } else { 2 };
                for (index, (payload, ping)) in fragments.iter().enumerate() {
                    if let Some(ping) = ping {
                        bytes.extend(raw(0x89, ping, mask));
                        events.push(Owned::Ping(ping.clone()));
                    }
                    let fin = if index + 1 == fragments.len() { 0x80 } else { 0 };
                    bytes.extend(raw(fin | if index == 0 { opcode } else { 0 }, payload, mask));
                }
                let whole = fragments.iter().flat_map(|(payload, _)| payload.clone()).collect();
                events.push(if *is_text { Owned::Text(whole) } else { Owned::Binary(whole) });
            }
            Sent::Ping(payload) => {
                bytes.extend(raw(0x89, payload, mask));
                events.push(Owned::Ping(payload.clone()));
            }
            Sent::Pong(payload) => {
                bytes.extend(raw(0x8a, payload, mask));
                events.push(Owned::Pong(payload.clone()));
            }
            Sent::Close(code) => {
                bytes.extend(raw(0x88, &code.to_be_bytes(), mask));
                events.push(Owned::Close(Some(*code), Vec::new()));
            }
        }
    }
    (bytes, events)
}

proptest! {
    #[test]
    fn events_do_not_depend_on_how_bytes_arrive(
        all in vec(sent(), 0..8), mask in any::<[u8; 4]>(), cuts in vec(any::<usize>(), 0..30),
    ) {
        let (bytes, expected) = conversation(&all, Some(mask));
        prop_assert_eq!(drive(Role::Server, 10_000, &bytes, &cuts), expected.clone());
        let every_byte: Vec<usize> = (0..bytes.len()).collect();
        prop_assert_eq!(drive(Role::Server, 10_000, &bytes, &every_byte), expected);

        let (bytes, expected) = conversation(&all, None);
        prop_assert_eq!(drive(Role::Client, 10_000, &bytes, &cuts), expected);
    }

    #[test]
    fn no_bytes_panic_the_websocket_decoder(
        bytes in vec(prop_oneof![any::<u8>(), Just(0x81), Just(0x82), Just(0x01), Just(0x00), Just(0x80), Just(0x84)], 0..200),
        cuts in vec(any::<usize>(), 0..10),
    ) {
        for role in [Role::Server, Role::Client] {
            prop_assert_eq!(drive(role, 64, &bytes, &cuts), drive(role, 64, &bytes, &[]));
        }
    }

    #[test]
    fn what_one_side_writes_the_other_reads(payload in vec(any::<u8>(), 0..400), mask in any::<[u8; 4]>()) {
        let mut bytes = websocket::frame(Opcode::Binary, &payload).to_vec();
        websocket::write_header(&mut bytes, Opcode::Text, payload.len());
        bytes.extend_from_slice(&payload);
        let expected = vec![Owned::Binary(payload.clone()), Owned::Text(payload.clone())];
        prop_assert_eq!(drive(Role::Client, 1_000, &bytes, &[]), expected.clone());

        let mut bytes = Vec::new();
        websocket::write_masked(&mut bytes, Opcode::Binary, &payload, mask);
        websocket::write_masked(&mut bytes, Opcode::Text, &payload, mask);
        prop_assert_eq!(drive(Role::Server, 1_000, &bytes, &[]), expected);
    }
}
