//! Channels: one joined topic on one socket, from the join's reply to its end.

use std::sync::Arc;

use bytes::Bytes;
use tidewire_protocol::codes::OperationalCode;
use tidewire_protocol::frame::{Frame, NULL, Status};
use tidewire_protocol::{join, topic};

use super::access::Access;
use super::{ChangeCommand, ChannelId, Credential, Hub, Output, PeerMessage, Timer, TopicKey};
use crate::message::{Domain, channel_frame};
use crate::now::Now;
use crate::timers::TimerKey;

/// A joined topic on one socket.
#[derive(Debug)]
pub(super) struct Channel {
    pub(super) id: ChannelId,
    pub(super) socket: u32,
    pub(super) topic: u32,
    /// Position in the topic's member list.
    pub(super) member: u32,
    /// `join_ref` as the join carried it, raw JSON.
    pub(super) sent_join_ref: Box<str>,
    /// `ref` of the join, raw JSON; the channel's join ref when the join carried none.
    pub(super) push_ref: Box<str>,
    pub(super) credential: Arc<Credential>,
    pub(super) presence_key: Box<str>,
    pub(super) presence_window_start_ms: u64,
    pub(super) presence_calls: u32,
    pub(super) token_timer: TimerKey,
    pub(super) wants_ack: bool,
    pub(super) receives_own: bool,
    /// Asked for `presence_state` at the join.
    pub(super) wants_presence: bool,
    pub(super) is_tracked: bool,
    pub(super) has_bindings: bool,
    /// The reply to a leave that takes effect at the end of this turn.
    pub(super) leaving: Option<Box<Bytes>>,
    /// What a private channel may do and has been told; `None` for a public one.
    pub(super) access: Option<Box<Access>>,
}

impl Channel {
    /// The channel's join ref: that of the join if it had one, else its ref (§1.10).
    pub(super) fn join_ref(&self) -> &str {
        if &*self.sent_join_ref == NULL { &self.push_ref } else { &self.sent_join_ref }
    }
}

impl Hub {
    pub(super) fn on_leave(&mut self, now: Now, slot: u32, frame: &Frame<'_>) {
        let channel = &self.channels[slot as usize];
        // A leave of an older incarnation (§1.8). A channel that joined without a ref takes any leave.
        if &*channel.sent_join_ref != NULL && *channel.sent_join_ref != *frame.join_ref {
            return;
        }
        let (id, socket) = (channel.id, channel.socket);
        let join_ref = channel.join_ref();
        let reply = self.reply_frame(socket, join_ref, &frame.reference, &frame.topic, Status::Ok, "{}");
        self.channels[slot as usize].leaving = Some(Box::new(reply));
        self.leaving.push((now, id));
    }

    /// Ends the channels that were left in this turn. A join of the same topic right behind the leave has come by
    /// now: its reply goes first, as if the channel were still there (§2.8).
    pub(super) fn finish_leaves(&mut self) {
        for (now, channel) in std::mem::take(&mut self.leaving) {
            if let Some(&slot) = self.channel_slots.get(&channel) {
                self.end_channel(now, slot);
            }
        }
    }

    /// Ends a channel: removed everywhere, then the reply to its leave, if it was left, and `phx_close`.
    pub(super) fn end_channel(&mut self, now: Now, slot: u32) {
        let socket = self.channels[slot as usize].socket;
        let farewell = self.take_channel(slot);
        self.push(socket, farewell);
        self.note_channel_ended(now, socket);
    }

    /// Removes a channel and returns what its socket is still to be told.
    pub(super) fn take_channel(&mut self, slot: u32) -> Bytes {
        let channel = &mut self.channels[slot as usize];
        let (socket, reply) = (channel.socket, channel.leaving.take());
        let close_ref = channel.sent_join_ref.clone();
        let name = Arc::clone(&self.topics[channel.topic as usize].name);
        let owner = &mut self.sockets[socket as usize];
        owner.channels.retain(|&other| other != slot);
        let close = channel_frame(owner.version, &close_ref, &close_ref, &name, "phx_close", "{}");
        self.remove_channel(slot);
        match reply {
            Some(reply) => [*reply, close].concat().into(),
            None => close,
        }
    }

    /// The server ends a channel: a `system` error, then `phx_close` (§1.9).
    pub(super) fn shut_down(&mut self, now: Now, slot: u32, code: OperationalCode, message: &str) {
        let channel = &self.channels[slot as usize];
        let (socket, topic) = (channel.socket, Arc::clone(&self.topics[channel.topic as usize].name));
        self.push_system(slot, "system", false, message);
        self.end_channel(now, slot);
        self.report(code, socket, Some(topic), message);
    }

    /// Takes a channel out of every list. Its socket's own list is the caller's business.
    pub(super) fn remove_channel(&mut self, slot: u32) {
        let channel = self.channels.remove(slot as usize);
        self.channel_slots.remove(&channel.id);
        self.timers.cancel(channel.token_timer);
        self.forget_questions(&channel);
        let topic = &mut self.topics[channel.topic as usize];
        let key = TopicKey { domain: topic.domain, name: Arc::clone(&topic.name) };
        topic.members.swap_remove(channel.member as usize);
        if let Some(moved) = topic.members.get(channel.member as usize) {
            self.channels[moved.channel as usize].member = channel.member;
        }
        if channel.has_bindings {
            self.outputs.push_back(Output::Change(ChangeCommand::Unsubscribe { channel: channel.id }));
        }
        if channel.is_tracked {
            self.send_home(&key, PeerMessage::Untrack { topic: key.clone(), owner: channel.id });
        }
        self.drop_topic_if_unused(channel.topic);
    }

    /// Notes that a socket may have lost its last channel.
    pub(super) fn note_channel_ended(&mut self, now: Now, socket: u32) {
        let id = self.socket_id(socket);
        let timeout = self.config.no_channel_timeout_ms;
        let owner = &mut self.sockets[socket as usize];
        if owner.channels.is_empty() {
            owner.last_channel_mono_ms = now.mono_ms;
            if owner.no_channel_timer.is_none() {
                let timer = self.timers.set(now.mono_ms.saturating_add(timeout), Timer::NoChannel(id));
                owner.no_channel_timer = Some(timer);
            }
        }
    }

    pub(super) fn push_system(&mut self, slot: u32, extension: &str, ok: bool, message: &str) {
        let channel = &self.channels[slot as usize];
        let socket = channel.socket;
        let name = &self.topics[channel.topic as usize].name;
        let status = if ok { Status::Ok } else { Status::Error };
        let mut payload = Vec::with_capacity(message.len() + name.len() + 96);
        join::write_system(
            &mut payload,
            extension,
            status,
            message,
            topic::sub_topic(name).unwrap_or_default(),
        );
        let payload = String::from_utf8(payload).expect("invariant: JSON writers emit UTF-8");
        let version = self.sockets[socket as usize].version;
        let frame = channel_frame(version, channel.join_ref(), NULL, name, "system", &payload);
        self.push(socket, frame);
    }

    pub(super) fn find_topic(&self, domain: Domain, name: &str) -> Option<u32> {
        self.topic_slots[domain as usize].get(name).copied()
    }

    /// Finds or makes a topic.
    pub(super) fn topic_slot(&mut self, domain: Domain, name: &str) -> u32 {
        if let Some(slot) = self.find_topic(domain, name) {
            return slot;
        }
        let name: Arc<str> = name.into();
        let slot = self.topics.insert(super::Topic {
            domain,
            name: Arc::clone(&name),
            members: Vec::new(),
            presence: None,
            is_presence_dirty: false,
        }) as u32;
        self.topic_slots[domain as usize].insert(name, slot);
        slot
    }

    pub(super) fn drop_topic_if_unused(&mut self, slot: u32) {
        let Some(topic) = self.topics.get(slot as usize) else { return };
        if topic.members.is_empty() && topic.presence.is_none() && !topic.is_presence_dirty {
            let topic = self.topics.remove(slot as usize);
            self.topic_slots[topic.domain as usize].remove(&topic.name);
        }
    }
}
