//! Fan-out: one message, many outboxes. This loop is the hot path; it clones a reference per receiver.

use std::sync::Arc;

use bytes::Bytes;
use tidewire_protocol::frame::Version;

use super::{ChannelId, Hub, Output, PeerMessage};
use crate::message::Message;

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
    /// To every member on this hub, except one channel. Presence diffs are also held back from channels
    /// that have not got their state yet: it will contain them.
    pub(super) fn deliver_to_members(
        &mut self,
        topic: u32,
        message: &Arc<Message>,
        except: Option<u32>,
        is_presence: bool,
    ) {
        let mut frames = Frames::new(message);
        for position in 0..self.topics[topic as usize].members.len() {
            let member = self.topics[topic as usize].members[position];
            if Some(member.channel) == except
                || (is_presence && self.channels[member.channel as usize].awaits_state)
            {
                continue;
            }
            if let Some(frame) = frames.get(self.sockets[member.socket as usize].version) {
                self.push(member.socket, frame);
            }
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
    pub(super) fn send_home(&mut self, topic: &str, message: PeerMessage) {
        let home = self.home_of(topic);
        if home == self.config.hub {
            self.on_peer(message);
        } else {
            self.outputs.push_back(Output::Peer(home, message));
        }
    }
}
