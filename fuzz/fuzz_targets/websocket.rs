//! WebSocket framing: no panic, and the same events however the bytes arrive. The first byte chooses the role and
//! how the rest is cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidewire_protocol::websocket::{Decoder, Role};

const LIMIT: usize = 4096;

fn events(role: Role, bytes: &[u8], step: usize) -> Vec<String> {
    let mut decoder = Decoder::new(role, LIMIT);
    let mut buf = Vec::new();
    let mut events = Vec::new();
    for part in bytes.chunks(step) {
        buf.extend_from_slice(part);
        loop {
            match decoder.decode(&mut buf) {
                Ok(None) => break,
                Ok(Some(decoded)) => {
                    events.push(format!("{:?}", decoded.event));
                    let consumed = decoded.consumed;
                    buf.drain(..consumed);
                }
                Err(violation) => {
                    events.push(violation.to_string());
                    return events;
                }
            }
        }
    }
    events
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&first, rest)) = bytes.split_first() else { return };
    let role = if first & 1 == 0 { Role::Server } else { Role::Client };
    let whole = events(role, rest, rest.len().max(1));
    assert_eq!(events(role, rest, 1 + usize::from(first >> 1)), whole);
});
