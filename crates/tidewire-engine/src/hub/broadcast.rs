//! Broadcast from a socket (§3.2–3.4).

use std::sync::Arc;

use bytes::Bytes;
use tidewire_protocol::frame::{Frame, NULL, Payload, Status};

use super::access::{Extension, Permission};
use super::{Hub, Output, PeerMessage};
use crate::message::{Body, Message};

/// A quirk kept for official clients: this response is a string, not an object (Q16).
const TOO_LARGE: &str = r#""payload_size_exceeded""#;

impl Hub {
    pub(super) fn on_broadcast(&mut self, slot: u32, frame: &Frame<'_>) {
        match self.may_write(slot, Extension::Broadcast, frame) {
            Permission::Yes => {}
            // Neither a refused nor an undecidable broadcast is ever answered (§3.4, Q10).
            Permission::No | Permission::Deferred => return,
        }
        let (body, size) = match &frame.payload {
            Payload::Json(payload) => {
                // A payload that is no object crashes the reference's channel; nobody can send it on
                // purpose, so it is ignored (§3.3, may differ).
                if !payload.starts_with('{') {
                    return;
                }
                let body =
                    Body::Json { event: "broadcast", payload: Bytes::copy_from_slice(payload.as_bytes()) };
                (body, payload.len())
            }
            Payload::UserBroadcast(user) => {
                let body = Body::UserBroadcast {
                    event: user.event.to_owned(),
                    // Accepted and ignored on the way in (§1.5).
                    metadata: String::new(),
                    encoding: user.encoding,
                    payload: Bytes::copy_from_slice(user.payload),
                };
                (body, user.payload.len() + user.event.len())
            }
            // Kind 0: no official client sends or reads it (§1.5, may differ).
            Payload::Bytes(_) => return,
        };
        let channel = &self.channels[slot as usize];
        let (socket, topic_slot) = (channel.socket, channel.topic);
        let (wants_ack, receives_own) = (channel.wants_ack, channel.receives_own);
        let join_ref: Option<Box<str>> = wants_ack.then(|| channel.join_ref().into());
        if size > self.config.max_payload_bytes {
            if let Some(join_ref) = join_ref {
                self.push_reply(socket, &join_ref, &frame.reference, &frame.topic, Status::Error, TOO_LARGE);
            }
            return;
        }
        self.config.rates.events.add(1);
        let domain = self.topics[topic_slot as usize].domain;
        let message = Arc::new(Message::in_domain(domain, &frame.topic, body));
        let except = (!receives_own).then_some(slot);
        self.deliver_to_members(topic_slot, &message, except, false);
        if self.config.hubs > 1 {
            self.outputs.push_back(Output::Peers(PeerMessage::Publish { message, is_presence: false }));
        }
        // The sender's own copy precedes the acknowledgement (Q45).
        if let Some(join_ref) = join_ref {
            let reference = if frame.reference.is_empty() { NULL } else { &frame.reference };
            self.push_reply(socket, &join_ref, reference, &frame.topic, Status::Ok, "{}");
        }
    }
}
