//! PostgreSQL text output → JSON bytes.

use crate::shape::Shape;

/// Writes one value.
pub fn write_value(out: &mut Vec<u8>, shape: &Shape, text: &str) {
    let _ = shape;
    write_string(out, text);
}

/// Writes `s` as a JSON string.
pub fn write_string(out: &mut Vec<u8>, s: &str) {
    out.push(b'"');
    for byte in s.bytes() {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            0..=0x1f => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}
