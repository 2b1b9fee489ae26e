//! Fan-out: one message, many outboxes. This loop is the hot path; it clones a reference per receiver.

use std::sync::Arc;

use bytes::Bytes;
use tidewire_protocol::codes::OperationalCode;
use tidewire_protocol::frame::Version;

use super::{ChannelId, Hears, HearsPresence, Hub, Output, PeerMessage, Rate, TopicKey};
use crate::message::Message;
use crate::now::Now;

/// The frames of one message as this loop has needed them so far.
struct Frames<'a> {
    message: &'a Message,
    v1: Option<Option<&'a Bytes>>,
    v2: Option<Option<&'a Bytes>>,
}

impl<'a> Frames<'a> {
    fn new(message: &'a Message) -> Self {
        Self { message, v1: None, v2: None }
    }

    fn get(&mut self, version: Version) -> Option<Bytes> {
        let cell = match version {
            Version::V1 => &mut self.v1,
            Version::V2 => &mut self.v2,
        };
        cell.get_or_insert_with(|| self.message.frame(version)).cloned()
    }
}

impl Hub {
    /// To every member on this hub that may hear it, except one channel.
    pub(super) fn deliver_to_members(
        &mut self,
        topic: u32,
        message: &Arc<Message>,
        except: Option<u32>,
        is_presence: bool,
    ) {
        let mut frames = Frames::new(message);
        let mut deliveries = 0;
        // A tenant over its rate loses the channels that would have heard this (Q18).
        let over = self.over_rate(is_presence);
        for position in 0..self.topics[topic as usize].members.len() {
            let member = self.topics[topic as usize].members[position];
            let hears = member.hears;
            let is_heard = if is_presence {
                hears.presence == HearsPresence::Yes
            } else {
                hears.broadcast && !(hears.has_replayed && self.was_replayed(member.channel, message))
            };
            if !is_heard || Some(member.channel) == except {
                if is_presence && hears.presence == HearsPresence::AsPush {
                    self.push_diff(member.channel, message);
                }
                continue;
            }
            deliveries += 1;
            if let Some(rate) = over {
                self.over_rate.push((self.channels[member.channel as usize].id, rate));
                continue;
            }
            if let Some(frame) = frames.get(self.sockets[member.socket as usize].version) {
                self.push(member.socket, frame);
            }
        }
        let rates = &self.config.rates;
        let counter = if is_presence { &rates.presence } else { &rates.events };
        counter.add(deliveries);
    }

    fn over_rate(&self, is_presence: bool) -> Option<Rate> {
        let rates = &self.config.rates;
        if is_presence {
            rates.presence.is_above().then_some(Rate::Presence)
        } else {
            rates.events.is_triggered().then_some(Rate::Events)
        }
    }

    /// Shuts down what a delivery found to be over a rate; not at once, because that changes the member list
    /// under the loop.
    pub(super) fn end_over_rate(&mut self, now: Now) {
        for (channel, rate) in std::mem::take(&mut self.over_rate) {
            let Some(&slot) = self.channel_slots.get(&channel) else { continue };
            let (code, text) = match rate {
                Rate::Events => {
                    (OperationalCode::MessagePerSecondRateLimitReached, "Too many messages per second")
                }
                Rate::Presence => {
                    (OperationalCode::PresenceRateLimitReached, "Too many presence messages per second")
                }
            };
            self.shut_down(now, slot, code, text);
        }
    }

    pub(super) fn deliver_to_channels(&mut self, message: &Arc<Message>, channels: &[ChannelId]) {
        let mut frames = Frames::new(message);
        for channel in channels {
            let Some(&slot) = self.channel_slots.get(channel) else { continue };
            let socket = self.channels[slot as usize].socket;
            if let Some(frame) = frames.get(self.sockets[socket as usize].version) {
                self.push(socket, frame);
            }
        }
    }

    /// Hands a message to the hub that keeps the topic's presence, which may be this one.
    pub(super) fn send_home(&mut self, topic: &TopicKey, message: PeerMessage) {
        let home = self.home_of(topic.domain, &topic.name);
        if home == self.config.hub {
            self.on_peer(message);
        } else {
            self.outputs.push_back(Output::Peer(home, message));
        }
    }

    pub(super) fn topic_key(&self, channel: u32) -> TopicKey {
        let topic = &self.topics[self.channels[channel as usize].topic as usize];
        TopicKey { domain: topic.domain, name: Arc::clone(&topic.name) }
    }

    /// What a channel is sent.
    pub(super) fn hears_mut(&mut self, channel: u32) -> &mut Hears {
        let channel = &self.channels[channel as usize];
        &mut self.topics[channel.topic as usize].members[channel.member as usize].hears
    }
}
