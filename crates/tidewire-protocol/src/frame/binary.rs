//! Binary frames, V2 only. Owns the kinds and their headers; payloads are never looked into.
//!
//! Every length is one unsigned byte counting UTF-8 bytes, all lengths first, then the fields in that order,
//! then the payload to the end of the frame. Spec: PROTOCOL.md §1.5.

use std::borrow::Cow;

use super::{Encoding, FieldTooLong, Frame, Malformed, Payload, Status, UserBroadcast};
use crate::json;

const PUSH: u8 = 0;
const REPLY: u8 = 1;
const BROADCAST: u8 = 2;
const USER_BROADCAST_PUSH: u8 = 3;
const USER_BROADCAST: u8 = 4;

/// A binary frame from a server. Refs are plain text here, not JSON: empty means empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ServerFrame<'a> {
    /// Kind 0.
    Push {
        /// The channel's join ref.
        join_ref: &'a str,
        /// The topic, prefix included.
        topic: &'a str,
        /// The event.
        event: &'a str,
        /// Raw bytes.
        payload: &'a [u8],
    },
    /// Kind 1.
    Reply {
        /// The channel's join ref.
        join_ref: &'a str,
        /// The ref of the push that is answered.
        reference: &'a str,
        /// The topic, prefix included.
        topic: &'a str,
        /// `ok`, `error` or whatever the server says.
        status: &'a str,
        /// Raw bytes.
        payload: &'a [u8],
    },
    /// Kind 2.
    Broadcast {
        /// The topic, prefix included.
        topic: &'a str,
        /// The event.
        event: &'a str,
        /// Raw bytes.
        payload: &'a [u8],
    },
    /// Kind 4: the only kind a server should send (realtime-js decodes no other).
    UserBroadcast {
        /// The topic, prefix included.
        topic: &'a str,
        /// Event, metadata, payload.
        broadcast: UserBroadcast<'a>,
    },
}

/// Reads a binary frame from a client: kinds 0 and 3.
///
/// A zero-length ref is an empty *string* (`""`), not null. Kind 3 has the event `broadcast`.
///
/// # Errors
/// [`Malformed`]: drop the frame, answer nothing, keep the connection.
pub fn decode_binary(bytes: &[u8]) -> Result<Frame<'_>, Malformed> {
    let (&kind, rest) = bytes.split_first().ok_or(Malformed::Empty)?;
    match kind {
        PUSH => {
            let ([join_ref, reference, topic, event], payload) = split(lengths(rest)?)?;
            Ok(Frame {
                join_ref: quoted(join_ref),
                reference: quoted(reference),
                topic: Cow::Borrowed(topic),
                event: Cow::Borrowed(event),
                payload: Payload::Bytes(payload),
            })
        }
        USER_BROADCAST_PUSH => {
            let (lengths, rest) = lengths::<5>(rest)?;
            let (&encoding, rest) = rest.split_first().ok_or(Malformed::Truncated)?;
            let ([join_ref, reference, topic, event, metadata], payload) = split((lengths, rest))?;
            Ok(Frame {
                join_ref: quoted(join_ref),
                reference: quoted(reference),
                topic: Cow::Borrowed(topic),
                event: Cow::Borrowed("broadcast"),
                payload: Payload::UserBroadcast(user_broadcast(event, metadata, encoding, payload)?),
            })
        }
        other => Err(Malformed::UnknownKind(other)),
    }
}

/// Reads a binary frame from a server: kinds 0, 1, 2 and 4.
///
/// # Errors
/// [`Malformed`], with the same meaning as for [`decode_binary`].
pub fn decode_server_binary(bytes: &[u8]) -> Result<ServerFrame<'_>, Malformed> {
    let (&kind, rest) = bytes.split_first().ok_or(Malformed::Empty)?;
    match kind {
        PUSH => {
            let ([join_ref, topic, event], payload) = split(lengths(rest)?)?;
            Ok(ServerFrame::Push { join_ref, topic, event, payload })
        }
        REPLY => {
            let ([join_ref, reference, topic, status], payload) = split(lengths(rest)?)?;
            Ok(ServerFrame::Reply { join_ref, reference, topic, status, payload })
        }
        BROADCAST => {
            let ([topic, event], payload) = split(lengths(rest)?)?;
            Ok(ServerFrame::Broadcast { topic, event, payload })
        }
        USER_BROADCAST => {
            let (lengths, rest) = lengths::<3>(rest)?;
            let (&encoding, rest) = rest.split_first().ok_or(Malformed::Truncated)?;
            let ([topic, event, metadata], payload) = split((lengths, rest))?;
            let broadcast = user_broadcast(event, metadata, encoding, payload)?;
            Ok(ServerFrame::UserBroadcast { topic, broadcast })
        }
        other => Err(Malformed::UnknownKind(other)),
    }
}

/// `N` length bytes, and what follows them.
fn lengths<const N: usize>(bytes: &[u8]) -> Result<([u8; N], &[u8]), Malformed> {
    let (lengths, rest) = bytes.split_first_chunk::<N>().ok_or(Malformed::Truncated)?;
    Ok((*lengths, rest))
}

/// `N` text fields of the given lengths, and the payload behind them.
fn split<const N: usize>((lengths, mut rest): ([u8; N], &[u8])) -> Result<([&str; N], &[u8]), Malformed> {
    let mut fields = [""; N];
    for (field, length) in fields.iter_mut().zip(lengths) {
        let (bytes, tail) = rest.split_at_checked(usize::from(length)).ok_or(Malformed::Truncated)?;
        *field = std::str::from_utf8(bytes).map_err(|_| Malformed::NotUtf8)?;
        rest = tail;
    }
    Ok((fields, rest))
}

fn user_broadcast<'a>(
    event: &'a str,
    metadata: &'a str,
    encoding: u8,
    payload: &'a [u8],
) -> Result<UserBroadcast<'a>, Malformed> {
    if !metadata.is_empty() && !json::is_valid(metadata.as_bytes()) {
        return Err(Malformed::MetadataNotJson);
    }
    Ok(UserBroadcast { event, metadata, encoding: Encoding::from_wire(encoding), payload })
}

/// A plain ref as the raw JSON text that [`Frame`] carries.
fn quoted(plain: &str) -> Cow<'static, str> {
    if plain.is_empty() {
        return Cow::Borrowed("\"\"");
    }
    let mut raw = Vec::with_capacity(plain.len() + 2);
    json::write_string(&mut raw, plain);
    Cow::Owned(String::from_utf8(raw).expect("invariant: write_string copies UTF-8 and adds ASCII"))
}

/// Checks the lengths of all fields before anything is written, so a failed write leaves `out` untouched.
fn write_frame<const N: usize>(
    out: &mut Vec<u8>,
    kind: u8,
    fields: [(&'static str, &str); N],
    encoding: Option<Encoding>,
    payload: &[u8],
) -> Result<(), FieldTooLong> {
    let mut lengths = [0u8; N];
    let mut total = 0;
    for (length, (field, text)) in lengths.iter_mut().zip(fields) {
        let too_long = |_| FieldTooLong { field, len: text.len() };
        *length = u8::try_from(text.len()).map_err(too_long)?;
        total += text.len();
    }
    out.reserve(2 + N + total + payload.len());
    out.push(kind);
    out.extend_from_slice(&lengths);
    out.extend(encoding.map(Encoding::to_wire));
    for (_, text) in fields {
        out.extend_from_slice(text.as_bytes());
    }
    out.extend_from_slice(payload);
    Ok(())
}

/// Writes kind 4, the delivery of a user broadcast to a V2 socket.
///
/// # Errors
/// [`FieldTooLong`] if a field exceeds 255 bytes; nothing is written. Drop that delivery and log.
pub fn write_user_broadcast(
    out: &mut Vec<u8>,
    topic: &str,
    event: &str,
    metadata: &str,
    encoding: Encoding,
    payload: &[u8],
) -> Result<(), FieldTooLong> {
    let fields = [("topic", topic), ("event", event), ("metadata", metadata)];
    write_frame(out, USER_BROADCAST, fields, Some(encoding), payload)
}

/// Writes kind 3, a user broadcast from a client. Refs are plain text, not JSON.
///
/// # Errors
/// [`FieldTooLong`] if a field exceeds 255 bytes; nothing is written.
#[expect(clippy::too_many_arguments, reason = "the fields of the frame, in their order on the wire")]
pub fn write_user_broadcast_push(
    out: &mut Vec<u8>,
    join_ref: &str,
    reference: &str,
    topic: &str,
    event: &str,
    metadata: &str,
    encoding: Encoding,
    payload: &[u8],
) -> Result<(), FieldTooLong> {
    let fields = [
        ("join_ref", join_ref),
        ("ref", reference),
        ("topic", topic),
        ("event", event),
        ("metadata", metadata),
    ];
    write_frame(out, USER_BROADCAST_PUSH, fields, Some(encoding), payload)
}

/// Writes kind 0 as a client sends it. Refs are plain text.
///
/// # Errors
/// [`FieldTooLong`] if a field exceeds 255 bytes; nothing is written.
pub fn write_client_push(
    out: &mut Vec<u8>,
    join_ref: &str,
    reference: &str,
    topic: &str,
    event: &str,
    payload: &[u8],
) -> Result<(), FieldTooLong> {
    let fields = [("join_ref", join_ref), ("ref", reference), ("topic", topic), ("event", event)];
    write_frame(out, PUSH, fields, None, payload)
}

/// Writes kind 0 as a server would. Official clients cannot read it: for tests and other Phoenix clients.
///
/// # Errors
/// [`FieldTooLong`] if a field exceeds 255 bytes; nothing is written.
pub fn write_server_push(
    out: &mut Vec<u8>,
    join_ref: &str,
    topic: &str,
    event: &str,
    payload: &[u8],
) -> Result<(), FieldTooLong> {
    write_frame(out, PUSH, [("join_ref", join_ref), ("topic", topic), ("event", event)], None, payload)
}

/// Writes kind 1. Official clients cannot read it: for tests and other Phoenix clients.
///
/// # Errors
/// [`FieldTooLong`] if a field exceeds 255 bytes; nothing is written.
pub fn write_server_reply(
    out: &mut Vec<u8>,
    join_ref: &str,
    reference: &str,
    topic: &str,
    status: Status,
    payload: &[u8],
) -> Result<(), FieldTooLong> {
    let fields = [("join_ref", join_ref), ("ref", reference), ("topic", topic), ("status", status.as_str())];
    write_frame(out, REPLY, fields, None, payload)
}

/// Writes kind 2. Official clients cannot read it: for tests and other Phoenix clients.
///
/// # Errors
/// [`FieldTooLong`] if a field exceeds 255 bytes; nothing is written.
pub fn write_broadcast(
    out: &mut Vec<u8>,
    topic: &str,
    event: &str,
    payload: &[u8],
) -> Result<(), FieldTooLong> {
    write_frame(out, BROADCAST, [("topic", topic), ("event", event)], None, payload)
}
