//! Text frames: no panic, and whatever is read can be written and read again unchanged.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidewire_protocol::frame::{Payload, Version, decode_text, write_client_text};

fuzz_target!(|bytes: &[u8]| {
    for version in [Version::V1, Version::V2] {
        let Ok(frame) = decode_text(version, bytes) else { continue };
        let Payload::Json(payload) = frame.payload else { panic!("a text frame carries JSON") };
        let mut out = Vec::new();
        write_client_text(
            &mut out,
            version,
            &frame.join_ref,
            &frame.reference,
            &frame.topic,
            &frame.event,
            payload,
        );
        assert_eq!(decode_text(version, &out).as_ref(), Ok(&frame));
    }
});
