//! Bytes from outside: whatever one client sends, nothing panics and nobody else notices.

use proptest::prelude::*;
use tidewire_protocol::frame::{Encoding, Version};

use super::server::{Server, cases, kind_3};

#[derive(Debug, Clone)]
enum Noise {
    Text(Vec<u8>),
    Binary(Vec<u8>),
}

/// Something a client might have meant, with a few bytes overwritten, removed or repeated.
fn mutated(base: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let edits = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4_u8), 0..4);
    (Just(base), edits).prop_map(|(mut bytes, edits)| {
        for (at, value, kind) in edits {
            if bytes.is_empty() {
                break;
            }
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = value,
                1 => _ = bytes.remove(at),
                2 => bytes.insert(at, value),
                _ => bytes.truncate(at),
            }
        }
        bytes
    })
}

fn texts() -> Vec<Vec<u8>> {
    let events = [
        (
            "phx_join",
            r#"{"config":{"broadcast":{"ack":true,"self":true},"presence":{"enabled":true,"key":"k"},"postgres_changes":[{"event":"*","schema":"public","table":"t","filter":"id=in.(1,2)","select":["a"]}],"private":false},"access_token":null}"#,
        ),
        ("phx_join", r#"{}"#),
        ("phx_leave", "{}"),
        ("broadcast", r#"{"type":"broadcast","event":"e","payload":{"\u0000":"\ud83d\ude00"}}"#),
        ("presence", r#"{"event":"track","payload":{"phx_ref":"x","a":[{"b":"\"}"}]}}"#),
        ("broadcast", r#"{"half a pair":"\ud800","beyond":1e999}"#),
        ("presence", r#"{"event":"track","payload":{"half":"\udc00"}}"#),
        ("presence", r#"{"event":"untrack"}"#),
        ("access_token", r#"{"access_token":"a.b.c"}"#),
        ("heartbeat", "{}"),
    ];
    let mut texts = Vec::new();
    for (event, payload) in events {
        for topic in ["realtime:mine", "realtime:", "phoenix", "realtime:\\u0061\\n"] {
            texts.push(format!(r#"["1","2","{topic}","{event}",{payload}]"#).into_bytes());
            texts.push(
                format!(
                    r#"{{"topic":"{topic}","event":"{event}","payload":{payload},"ref":"2","join_ref":null}}"#
                )
                .into_bytes(),
            );
        }
    }
    texts
}

fn noise() -> impl Strategy<Value = Noise> {
    let binary = kind_3("realtime:mine", "event", Encoding::Json, br#"{"a":1}"#);
    prop_oneof![
        prop::sample::select(texts()).prop_map(Noise::Text),
        prop::sample::select(texts()).prop_flat_map(mutated).prop_map(Noise::Text),
        mutated(binary).prop_map(Noise::Binary),
        prop::collection::vec(any::<u8>(), 0..64).prop_map(Noise::Binary),
        prop::collection::vec(any::<u8>(), 0..64).prop_map(Noise::Text),
        ".{0,40}".prop_map(|text| Noise::Text(text.into_bytes())),
    ]
}

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn noise_disturbs_nobody(
        inputs in prop::collection::vec((noise(), 0..3_usize, 0..3_000_u64), 1..40),
    ) {
        let mut server = Server::new(2);
        let noisy = [server.open(0, Version::V1), server.open(0, Version::V2), server.open(1, Version::V2)];
        let (quiet, friend) = (server.open(0, Version::V2), server.open(1, Version::V1));
        let config = r#"{"broadcast":{"ack":true},"presence":{"enabled":true,"key":"quiet"}}"#;
        server.join(quiet, "realtime:ours", config);
        server.join(friend, "realtime:ours", "{}");
        for (n, (input, who, ms)) in inputs.into_iter().enumerate() {
            match input {
                Noise::Text(bytes) => server.handle_text(noisy[who], &bytes),
                Noise::Binary(bytes) => server.handle_binary(noisy[who], &bytes),
            }
            server.advance(ms);
            server.text(quiet, &format!(r#"["1","{n}","realtime:ours","broadcast",{{"n":{n}}}]"#));
            server.expect(
                quiet,
                &[&format!(r#"["1","{n}","realtime:ours","phx_reply",{{"status":"ok","response":{{}}}}]"#)],
            );
            server.expect(
                friend,
                &[&format!(
                    r#"{{"topic":"realtime:ours","event":"broadcast","payload":{{"n":{n}}},"ref":null}}"#
                )],
            );
            server.text(friend, "{}");
            // Every frame that the noisy ones get is one; the server's decoder has checked that.
            for client in noisy {
                server.take(client);
            }
        }
        for client in [noisy[0], noisy[1], noisy[2], quiet, friend] {
            if !server.is_disconnected(client) {
                server.close(client);
            }
        }
        server.expect_empty();
    }
}
