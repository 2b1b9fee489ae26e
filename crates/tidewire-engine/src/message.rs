//! A fan-out message: one content, at most one encoding per serializer, shared by everybody.
//!
//! The bytes are complete WebSocket frames, header included, so that a delivery is a reference count and
//! nothing is copied. An encoding is made when the first receiver of that kind turns up, on whichever
//! hub that is; the others wait for it (it takes microseconds) and share it.

use std::sync::OnceLock;

use bytes::Bytes;
use tidewire_protocol::frame::{self, Encoding, NULL, Version};
use tidewire_protocol::json;
use tidewire_protocol::websocket::{self, Opcode};

/// What is said.
#[derive(Debug)]
pub enum Body {
    /// An event with a JSON payload: a text frame for everybody.
    Json {
        /// Event name on the wire, e.g. `broadcast` or `presence_diff`.
        event: &'static str,
        /// The payload, valid JSON.
        payload: Bytes,
    },
    /// A broadcast that V2 sockets get as a binary frame of kind 4 (`PROTOCOL.md` §3.3).
    UserBroadcast {
        /// The application's event name.
        event: String,
        /// Empty, or a JSON object.
        metadata: String,
        /// What `payload` is.
        encoding: Encoding,
        /// JSON text (not yet known to be valid) or opaque bytes.
        payload: Bytes,
    },
}

/// Public and private channels of one name are different worlds (`PROTOCOL.md` §3.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Domain {
    /// No policies.
    #[default]
    Public,
    /// Policies on `realtime.messages` decide.
    Private,
}

/// A message on its way to the members of a topic.
#[derive(Debug)]
pub struct Message {
    domain: Domain,
    topic: Box<str>,
    /// Id of a stored message, by which a channel recognises what was replayed to it.
    id: Option<Box<str>>,
    body: Body,
    v1: OnceLock<Option<Bytes>>,
    v2: OnceLock<Option<Bytes>>,
}

impl Message {
    /// A message of a public topic. `topic` is the full topic, `realtime:` included.
    pub fn new(topic: &str, body: Body) -> Self {
        Self::in_domain(Domain::Public, topic, body)
    }

    /// A message of a topic in either world.
    pub fn in_domain(domain: Domain, topic: &str, body: Body) -> Self {
        Self { domain, topic: topic.into(), id: None, body, v1: OnceLock::new(), v2: OnceLock::new() }
    }

    /// The same message with the id under which it is stored.
    #[must_use]
    pub fn with_id(mut self, id: &str) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Whose members it is for.
    pub fn domain(&self) -> Domain {
        self.domain
    }

    /// Id of a stored message.
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// Full topic.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Content.
    pub fn body(&self) -> &Body {
        &self.body
    }

    /// The WebSocket frame for sockets of this version; `None` where this message cannot be expressed for
    /// them (§3.3: opaque bytes on V1; a name over 255 bytes on V2 binary; JSON that is none, on V1).
    pub fn frame(&self, version: Version) -> Option<&Bytes> {
        let (cell, encode): (_, fn(&Self) -> Option<Bytes>) = match version {
            Version::V1 => (&self.v1, Self::encode_v1),
            Version::V2 => (&self.v2, Self::encode_v2),
        };
        cell.get_or_init(|| encode(self)).as_ref()
    }

    fn encode_v1(&self) -> Option<Bytes> {
        match &self.body {
            Body::Json { event, payload } => {
                Some(text_frame(Version::V1, &self.topic, event, utf8(payload)?))
            }
            Body::UserBroadcast { encoding: Encoding::Bytes, .. } => None,
            Body::UserBroadcast { event, metadata, encoding: Encoding::Json, payload } => {
                // Kind 3 is relayed unparsed; here it becomes part of a JSON document, and a broken one
                // would take every V1 member down with it.
                let payload = utf8(payload)?;
                serde_json::from_str::<serde::de::IgnoredAny>(payload).ok()?;
                let mut wrapped = Vec::with_capacity(payload.len() + event.len() + 64);
                wrapped.extend_from_slice(b"{\"event\":");
                json::write_string(&mut wrapped, event);
                wrapped.extend_from_slice(b",\"payload\":");
                wrapped.extend_from_slice(payload.as_bytes());
                if !metadata.is_empty() {
                    wrapped.extend_from_slice(b",\"meta\":");
                    wrapped.extend_from_slice(metadata.as_bytes());
                }
                wrapped.extend_from_slice(b",\"type\":\"broadcast\"}");
                Some(text_frame(Version::V1, &self.topic, "broadcast", std::str::from_utf8(&wrapped).ok()?))
            }
        }
    }

    fn encode_v2(&self) -> Option<Bytes> {
        match &self.body {
            Body::Json { event, payload } => {
                Some(text_frame(Version::V2, &self.topic, event, utf8(payload)?))
            }
            Body::UserBroadcast { event, metadata, encoding, payload } => {
                let mut content = Vec::with_capacity(payload.len() + self.topic.len() + event.len() + 16);
                frame::write_user_broadcast(&mut content, &self.topic, event, metadata, *encoding, payload)
                    .ok()?;
                Some(websocket::frame(Opcode::Binary, &content))
            }
        }
    }
}

fn utf8(bytes: &Bytes) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// Room left in front of a frame for its WebSocket header, so that one buffer serves both.
const HEADER_ROOM: usize = 10;

/// A fan-out text frame: no refs (`PROTOCOL.md` §1.10).
fn text_frame(version: Version, topic: &str, event: &str, payload: &str) -> Bytes {
    channel_frame(version, NULL, NULL, topic, event, payload)
}

/// A complete text frame with refs, for one socket.
pub(crate) fn channel_frame(
    version: Version,
    join_ref: &str,
    reference: &str,
    topic: &str,
    event: &str,
    payload: &str,
) -> Bytes {
    seal(payload.len() + topic.len() + event.len() + 64, |out| {
        frame::write_text(out, version, join_ref, reference, topic, event, payload);
    })
}

/// Writes a text frame's content behind a gap, then puts the header right before it.
pub(crate) fn seal(size_hint: usize, write: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    let mut buffer = Vec::with_capacity(HEADER_ROOM + size_hint);
    buffer.resize(HEADER_ROOM, 0);
    write(&mut buffer);
    let mut header = Vec::with_capacity(HEADER_ROOM);
    websocket::write_header(&mut header, Opcode::Text, buffer.len() - HEADER_ROOM);
    let start = HEADER_ROOM - header.len();
    buffer[start..HEADER_ROOM].copy_from_slice(&header);
    Bytes::from(buffer).slice(start..)
}
