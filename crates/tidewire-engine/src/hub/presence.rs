//! Presence (§4). A topic's state lives on its home hub; diffs are coalesced per topic and turn.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::value::RawValue;
use tidewire_presence::{Presence, Tracked};
use tidewire_protocol::codes::OperationalCode;
use tidewire_protocol::frame::{Frame, NULL, Status};
use tidewire_protocol::json;

use super::access::{Extension, Permission};
use super::{ChannelId, HearsPresence, Hub, Output, PeerMessage, TopicKey};
use crate::message::{Body, Message, channel_frame};
use crate::now::Now;

/// What a push asks for (§4.2).
enum Call {
    Track,
    Untrack,
    Unknown,
}

impl Call {
    fn of(event: &RawValue) -> Self {
        match json::string(event.get()) {
            Some(name) if name.eq_ignore_ascii_case("track") => Self::Track,
            Some(name) if name.eq_ignore_ascii_case("untrack") => Self::Untrack,
            _ => Self::Unknown,
        }
    }
}

const NOT_A_MAP: &str = r#"{"reason":"Presence track payload must be a map"}"#;

impl Hub {
    pub(super) fn on_presence(&mut self, now: Now, slot: u32, frame: &Frame<'_>, payload: &str) {
        let reference = &*frame.reference;
        // Not derived: a `payload` that is null is not the same as none.
        let [event, tracked] = json::fields(payload, ["event", "payload"]).unwrap_or_default();
        let Some(call) = event.map(Call::of) else {
            self.reply_presence(slot, reference, Status::Ok, "{}");
            return;
        };
        if !self.presence_call_allowed(now, slot) {
            let code = OperationalCode::ClientPresenceRateLimitReached;
            self.shut_down(now, slot, code, "Client presence rate limit exceeded");
            return;
        }
        match call {
            Call::Track => {
                let tracked = tracked.map_or("{}", RawValue::get);
                if !tracked.starts_with('{') {
                    self.report_presence(
                        slot,
                        OperationalCode::InvalidPresencePayload,
                        "payload is not an object",
                    );
                    self.reply_presence(slot, reference, Status::Error, NOT_A_MAP);
                } else if tracked.len() > self.config.max_payload_bytes {
                    self.shut_down(
                        now,
                        slot,
                        OperationalCode::ChannelShutdown,
                        "Track message size exceeded",
                    );
                } else {
                    match self.may_write(slot, Extension::Presence, frame) {
                        Permission::Yes if self.config.rates.presence.is_above() => {
                            let code = OperationalCode::PresenceRateLimitReached;
                            self.shut_down(now, slot, code, "Too many presence messages per second");
                        }
                        Permission::Yes => {
                            self.config.rates.presence.add(1);
                            self.track(slot, tracked);
                            self.note_tracking(slot);
                            self.reply_presence(slot, reference, Status::Ok, "{}");
                        }
                        Permission::No => self.reply_presence(slot, reference, Status::Error, "{}"),
                        // It comes again and is counted then.
                        Permission::Deferred => self.channels[slot as usize].presence_calls -= 1,
                    }
                }
            }
            Call::Untrack => {
                self.untrack(slot);
                self.reply_presence(slot, reference, Status::Ok, "{}");
            }
            Call::Unknown => {
                self.report_presence(
                    slot,
                    OperationalCode::UnknownPresenceEvent,
                    "neither track nor untrack",
                );
                self.reply_presence(slot, reference, Status::Error, "{}");
            }
        }
    }

    fn report_presence(&mut self, slot: u32, code: OperationalCode, detail: &str) {
        let channel = &self.channels[slot as usize];
        let (socket, topic) = (channel.socket, Arc::clone(&self.topics[channel.topic as usize].name));
        self.report(code, socket, Some(topic), detail);
    }

    fn reply_presence(&mut self, slot: u32, reference: &str, status: Status, response: &str) {
        let channel = &self.channels[slot as usize];
        let socket = channel.socket;
        let join_ref: Box<str> = channel.join_ref().into();
        let topic = Arc::clone(&self.topics[channel.topic as usize].name);
        self.push_reply(socket, &join_ref, reference, &topic, status, response);
    }

    /// A fixed window per channel (§7.2).
    fn presence_call_allowed(&mut self, now: Now, slot: u32) -> bool {
        let Some(limit) = self.config.presence_calls else { return true };
        let window = self.config.presence_window_ms;
        let channel = &mut self.channels[slot as usize];
        if now.mono_ms.saturating_sub(channel.presence_window_start_ms) >= window {
            channel.presence_window_start_ms = now.mono_ms;
            channel.presence_calls = 0;
        }
        channel.presence_calls = channel.presence_calls.saturating_add(1);
        channel.presence_calls <= limit
    }

    fn track(&mut self, slot: u32, payload: &str) {
        let phx_ref = self.random.presence_ref();
        let channel = &mut self.channels[slot as usize];
        channel.is_tracked = true;
        let (owner, key) = (channel.id, channel.presence_key.clone());
        let topic = self.topic_key(slot);
        let message =
            PeerMessage::Track { topic: topic.clone(), owner, key, phx_ref, payload: payload.into() };
        self.send_home(&topic, message);
    }

    fn untrack(&mut self, slot: u32) {
        let channel = &mut self.channels[slot as usize];
        if !std::mem::take(&mut channel.is_tracked) {
            return;
        }
        let owner = channel.id;
        let topic = self.topic_key(slot);
        self.send_home(&topic, PeerMessage::Untrack { topic: topic.clone(), owner });
    }

    // ── on the home hub ─────────────────────────────────────────────────────────────────────────────

    pub(super) fn track_here(
        &mut self,
        topic: &TopicKey,
        owner: ChannelId,
        key: &str,
        phx_ref: &str,
        payload: &str,
    ) {
        let slot = self.topic_slot(topic.domain, &topic.name);
        let presence = self.topics[slot as usize].presence.get_or_insert_with(Default::default);
        if presence.track(owner.0, key, phx_ref, payload) != Tracked::Unchanged {
            self.mark_presence_dirty(slot);
        }
    }

    pub(super) fn untrack_here(&mut self, topic: &TopicKey, owner: ChannelId) {
        let Some(slot) = self.find_topic(topic.domain, &topic.name) else { return };
        let Some(presence) = &mut self.topics[slot as usize].presence else { return };
        if presence.untrack(owner.0) {
            self.mark_presence_dirty(slot);
        }
    }

    fn mark_presence_dirty(&mut self, slot: u32) {
        let topic = &mut self.topics[slot as usize];
        if !std::mem::replace(&mut topic.is_presence_dirty, true) {
            self.dirty_presence.push(slot);
        }
    }

    /// Sends the diffs of this turn, one per topic.
    pub(super) fn flush_presence(&mut self) {
        for slot in std::mem::take(&mut self.dirty_presence) {
            self.flush_presence_of(slot);
            self.drop_topic_if_unused(slot);
        }
    }

    fn flush_presence_of(&mut self, slot: u32) {
        let Some(topic) = self.topics.get_mut(slot as usize) else { return };
        topic.is_presence_dirty = false;
        let Some(presence) = &mut topic.presence else { return };
        let mut diff = Vec::new();
        let changed = presence.take_diff(&mut diff);
        if presence.is_empty() {
            topic.presence = None;
        }
        if !changed {
            return;
        }
        let body = Body::Json { event: "presence_diff", payload: diff.into() };
        let message = Arc::new(Message::in_domain(topic.domain, &topic.name, body));
        self.deliver_to_members(slot, &message, None, true);
        if self.config.hubs > 1 {
            self.outputs.push_back(Output::Peers(PeerMessage::Publish { message, is_presence: true }));
        }
    }

    /// The state, after the diffs that it already contains have gone to the others.
    pub(super) fn answer_state(&mut self, topic: &TopicKey, channel: ChannelId) {
        let mut payload = Vec::new();
        match self.find_topic(topic.domain, &topic.name) {
            Some(slot) => {
                if self.topics[slot as usize].is_presence_dirty {
                    self.dirty_presence.retain(|&dirty| dirty != slot);
                    self.flush_presence_of(slot);
                }
                match &self.topics[slot as usize].presence {
                    Some(presence) => presence.write_state(&mut payload),
                    None => Presence::default().write_state(&mut payload),
                }
                self.drop_topic_if_unused(slot);
            }
            None => Presence::default().write_state(&mut payload),
        }
        let payload = Bytes::from(payload);
        if channel.hub() == self.config.hub {
            self.push_state(channel, &payload);
        } else {
            self.outputs.push_back(Output::Peer(channel.hub(), PeerMessage::State { channel, payload }));
        }
    }

    pub(super) fn push_state(&mut self, channel: ChannelId, payload: &Bytes) {
        let Some(&slot) = self.channel_slots.get(&channel) else { return };
        self.hears_mut(slot).presence = HearsPresence::Yes;
        self.config.rates.presence.add(1);
        let channel = &self.channels[slot as usize];
        let socket = channel.socket;
        let version = self.sockets[socket as usize].version;
        let topic = &self.topics[channel.topic as usize].name;
        let payload = std::str::from_utf8(payload).expect("invariant: presence writes UTF-8");
        let frame = channel_frame(version, channel.join_ref(), NULL, topic, "presence_state", payload);
        self.push(socket, frame);
    }
}
