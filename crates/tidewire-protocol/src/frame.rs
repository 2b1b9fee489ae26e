//! Owns the frames of the Phoenix protocol as Realtime speaks it: V1 objects, V2 arrays and the binary kinds 0
//! to 4, reading and writing, for servers and for clients. It does not know what a payload means: payloads stay
//! raw JSON text or bytes, and refs stay the raw JSON scalars that the client sent, so they echo with their type.
//!
//! Reading fails with [`Malformed`]; the caller drops the frame, answers nothing and keeps the connection
//! (PROTOCOL.md §1.6). Writing text cannot fail; writing binary fails with [`FieldTooLong`] because every length
//! is one byte.
//!
//! Spec: PROTOCOL.md §1.4, §1.5; vectors: appendix A.

use std::borrow::Cow;

mod binary;
mod text;

pub use binary::{
    ServerFrame, decode_binary, decode_server_binary, write_broadcast, write_client_push, write_server_push,
    write_server_reply, write_user_broadcast, write_user_broadcast_push,
};
pub use text::{decode_text, write_client_text, write_reply, write_text};

/// The raw JSON text of an absent ref.
pub const NULL: &str = "null";

/// The frame format of a socket, chosen by the query parameter `vsn`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Version {
    /// JSON objects; the join ref is never sent to the client.
    V1,
    /// JSON arrays, and binary frames.
    V2,
}

impl Version {
    /// Absent or `1.0.x` is V1, `2.0.x` is V2, anything else is `None`: answer HTTP 403 with an empty body.
    ///
    /// Spec: PROTOCOL.md §1.2.
    pub fn from_vsn(vsn: Option<&str>) -> Option<Version> {
        let Some(vsn) = vsn else { return Some(Version::V1) };
        let (version, patch) = if let Some(patch) = vsn.strip_prefix("1.0.") {
            (Version::V1, patch)
        } else {
            (Version::V2, vsn.strip_prefix("2.0.")?)
        };
        let is_number = !patch.is_empty() && patch.bytes().all(|b| b.is_ascii_digit());
        is_number.then_some(version)
    }
}

/// How the payload of a user broadcast is encoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Encoding {
    /// Opaque bytes; wire value 0.
    Bytes,
    /// JSON text; wire value 1, and every other non-zero value is read as this.
    Json,
}

impl Encoding {
    fn from_wire(byte: u8) -> Encoding {
        if byte == 0 { Encoding::Bytes } else { Encoding::Json }
    }

    fn to_wire(self) -> u8 {
        match self {
            Encoding::Bytes => 0,
            Encoding::Json => 1,
        }
    }
}

/// The content of kinds 3 and 4.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UserBroadcast<'a> {
    /// The user's event name (not `broadcast`).
    pub event: &'a str,
    /// Empty, or JSON text. A server ignores what a client sends here.
    pub metadata: &'a str,
    /// How to read `payload`.
    pub encoding: Encoding,
    /// The payload. **Not validated**, not even as UTF-8, whatever `encoding` says: kind 3 is relayed as it is
    /// (PROTOCOL.md §1.5). Use [`crate::json::is_valid`] before pasting it into a text frame.
    pub payload: &'a [u8],
}

/// What a frame carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Payload<'a> {
    /// One valid JSON value as raw text, without surrounding white space.
    Json(&'a str),
    /// Kind 3.
    UserBroadcast(UserBroadcast<'a>),
    /// Kind 0: raw bytes.
    Bytes(&'a [u8]),
}

/// One frame from a client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame<'a> {
    /// Raw JSON text of the scalar the client sent (`"1"` with its quotes, `1`, `null`); [`NULL`] if absent.
    pub join_ref: Cow<'a, str>,
    /// Raw JSON text of the scalar the client sent, to be echoed verbatim.
    pub reference: Cow<'a, str>,
    /// The topic, prefix included.
    pub topic: Cow<'a, str>,
    /// The event; `broadcast` for kind 3.
    pub event: Cow<'a, str>,
    /// The payload.
    pub payload: Payload<'a>,
}

/// The `status` of a reply or of a `system` message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Status {
    /// `ok`
    Ok,
    /// `error`
    Error,
}

impl Status {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::Error => "error",
        }
    }
}

/// Why foreign bytes are not a frame. Logged as `MalformedWebSocketMessage`; never answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Malformed {
    /// Nothing at all.
    #[error("frame is empty")]
    Empty,
    /// Text that is not UTF-8, in a text frame or in a text field of a binary frame.
    #[error("frame is not valid UTF-8")]
    NotUtf8,
    /// Not JSON, or not the shape (object for V1, array for V2) of the socket's version.
    #[error("frame is not JSON of the expected shape")]
    NotJson,
    /// A V1 object without one of its required keys.
    #[error("frame lacks the key `{0}`")]
    MissingKey(&'static str),
    /// A V2 array with fewer than five elements.
    #[error("frame has fewer than five elements")]
    TooFewElements,
    /// A ref that is an array or an object.
    #[error("`{0}` is not a scalar")]
    RefNotScalar(&'static str),
    /// A topic or event that is not a string.
    #[error("`{0}` is not a string")]
    NotAString(&'static str),
    /// A binary frame of a kind that this direction does not have.
    #[error("binary frame has the unknown kind {0}")]
    UnknownKind(u8),
    /// A binary frame that ends before its announced fields do.
    #[error("binary frame ends before its announced fields")]
    Truncated,
    /// Kind 3 or 4 with metadata that is neither empty nor JSON.
    #[error("user broadcast metadata is not JSON")]
    MetadataNotJson,
}

/// A field of a binary frame is longer than the 255 bytes its one-byte length can say.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{field}` has {len} bytes, a binary frame can carry 255")]
pub struct FieldTooLong {
    /// Which field.
    pub field: &'static str,
    /// Its length in bytes.
    pub len: usize,
}
