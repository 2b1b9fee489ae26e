//! Binary frames of both directions: no panic, and reading then writing gives the same bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidewire_protocol::frame::{
    Payload, ServerFrame, decode_binary, decode_server_binary, write_broadcast, write_client_push,
    write_server_push, write_user_broadcast, write_user_broadcast_push,
};

fn plain(raw: &str) -> String {
    serde_json::from_str(raw).expect("refs of binary frames are JSON strings")
}

fuzz_target!(|bytes: &[u8]| {
    if let Ok(frame) = decode_binary(bytes) {
        let (join_ref, reference) = (plain(&frame.join_ref), plain(&frame.reference));
        let mut out = Vec::new();
        match frame.payload {
            Payload::Bytes(payload) => {
                write_client_push(&mut out, &join_ref, &reference, &frame.topic, &frame.event, payload)
                    .expect("what was read fits");
                assert_eq!(out, bytes);
            }
            Payload::UserBroadcast(b) => {
                write_user_broadcast_push(
                    &mut out,
                    &join_ref,
                    &reference,
                    &frame.topic,
                    b.event,
                    b.metadata,
                    b.encoding,
                    b.payload,
                )
                .expect("what was read fits");
                // Every non-zero encoding is read as 1.
                assert_eq!(out[6], bytes[6].min(1));
                out[6] = bytes[6];
                assert_eq!(out, bytes);
            }
            Payload::Json(_) => panic!("a binary frame never carries parsed JSON"),
        }
    }
    let mut out = Vec::new();
    match decode_server_binary(bytes) {
        Ok(ServerFrame::Push { join_ref, topic, event, payload }) => {
            write_server_push(&mut out, join_ref, topic, event, payload).expect("what was read fits");
            assert_eq!(out, bytes);
        }
        Ok(ServerFrame::Broadcast { topic, event, payload }) => {
            write_broadcast(&mut out, topic, event, payload).expect("what was read fits");
            assert_eq!(out, bytes);
        }
        Ok(ServerFrame::UserBroadcast { topic, broadcast: b }) => {
            write_user_broadcast(&mut out, topic, b.event, b.metadata, b.encoding, b.payload)
                .expect("what was read fits");
            out[4] = bytes[4];
            assert_eq!(out, bytes);
        }
        Ok(ServerFrame::Reply { .. }) | Err(_) => {}
    }
});
