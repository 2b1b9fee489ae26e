//! Owns RFC 6455 framing: the accept key, frame headers, masking, fragments and control frames. It performs no
//! I/O, keeps no read buffer and answers nothing: pings and closes are events, the driver decides.
//!
//! It fails with [`ProtocolViolation`], which carries the close code to send; after that the connection is over
//! and the decoder must not be used again. UTF-8 is not validated here (PROTOCOL.md §1.2): bad UTF-8 fails in
//! [`crate::frame::decode_text`] and drops one frame instead of the connection.
//!
//! Compression is not offered, so a set RSV bit is always a violation.

use base64::Engine as _;
use bytes::Bytes;

use crate::codes::{CLOSE_PROTOCOL, CLOSE_TOO_BIG};

mod decoder;

pub use decoder::{Decoded, Decoder, Event, ProtocolViolation, Role};

/// Longest payload of a control frame. RFC 6455 §5.5.
pub const MAX_CONTROL_BYTES: usize = 125;

/// Longest header: two bytes, eight of length, four of mask.
pub const MAX_HEADER_BYTES: usize = 14;

const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;

/// The value of `Sec-WebSocket-Accept` for a `Sec-WebSocket-Key`. RFC 6455 §4.2.2.
pub fn accept_key(key: &str) -> String {
    let mut sha1 = sha1_smol::Sha1::new();
    sha1.update(key.as_bytes());
    sha1.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    base64::engine::general_purpose::STANDARD.encode(sha1.digest().bytes())
}

/// The kinds of frame one can send whole; fragments are only ever read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Opcode {
    /// UTF-8 text.
    Text,
    /// Bytes.
    Binary,
    /// Close, with an optional code and reason.
    Close,
    /// Ping; the peer answers with a pong of the same payload.
    Ping,
    /// Pong.
    Pong,
}

impl Opcode {
    fn to_wire(self) -> u8 {
        match self {
            Opcode::Text => 0x1,
            Opcode::Binary => 0x2,
            Opcode::Close => 0x8,
            Opcode::Ping => 0x9,
            Opcode::Pong => 0xa,
        }
    }
}

/// Writes the header of a whole, unmasked frame: what a server sends.
///
/// A control frame longer than [`MAX_CONTROL_BYTES`] is the caller's mistake and not checked here.
pub fn write_header(out: &mut Vec<u8>, opcode: Opcode, payload_len: usize) {
    write_head(out, opcode, payload_len, 0);
}

fn write_head(out: &mut Vec<u8>, opcode: Opcode, payload_len: usize, mask_bit: u8) {
    out.push(FIN | opcode.to_wire());
    // The three forms of RFC 6455 §5.2; each length uses the shortest one that can hold it.
    match payload_len {
        0..=125 => out.push(mask_bit | payload_len as u8),
        126..=0xffff => {
            out.push(mask_bit | 126);
            out.extend_from_slice(&(payload_len as u16).to_be_bytes());
        }
        _ => {
            out.push(mask_bit | 127);
            out.extend_from_slice(&(payload_len as u64).to_be_bytes());
        }
    }
}

/// A whole frame from the server, ready to be shared.
pub fn frame(opcode: Opcode, payload: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(payload.len() + MAX_HEADER_BYTES);
    write_header(&mut out, opcode, payload.len());
    out.extend_from_slice(payload);
    Bytes::from(out)
}

/// A whole close frame from the server. The reason is cut at a character boundary to fit a control frame.
pub fn close_frame(code: u16, reason: &str) -> Bytes {
    let reason = &reason[..reason.floor_char_boundary(MAX_CONTROL_BYTES - 2)];
    let mut payload = Vec::with_capacity(reason.len() + 2);
    payload.extend_from_slice(&code.to_be_bytes());
    payload.extend_from_slice(reason.as_bytes());
    frame(Opcode::Close, &payload)
}

/// Writes a whole masked frame: what a client sends. The mask comes from the caller's random source.
pub fn write_masked(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8], mask: [u8; 4]) {
    out.reserve(payload.len() + MAX_HEADER_BYTES);
    write_head(out, opcode, payload.len(), MASKED);
    out.extend_from_slice(&mask);
    let start = out.len();
    out.extend_from_slice(payload);
    apply_mask(&mut out[start..], mask);
}

/// Masks or unmasks in place, eight bytes at a time (the compiler widens the loop further).
fn apply_mask(bytes: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (chunks, tail) = bytes.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (byte, key) in tail.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}

const fn protocol(reason: &'static str) -> ProtocolViolation {
    ProtocolViolation { code: CLOSE_PROTOCOL, reason }
}

const TOO_BIG: ProtocolViolation = ProtocolViolation { code: CLOSE_TOO_BIG, reason: "message too big" };
