//! Sockets: arrival of frames, routing (§1.8), heartbeats, idleness, and the end.

use std::sync::Arc;

use bytes::Bytes;
use tidewire_protocol::codes::{
    CLOSE_GOING_AWAY, CLOSE_NORMAL, CLOSE_RESTART, CLOSE_SLOW_READER, OperationalCode,
};
use tidewire_protocol::frame::{self, Frame, NULL, Payload, Status, Version};
use tidewire_protocol::{topic, websocket};

use super::{AskId, Credential, Hub, Output, SocketId, SocketInfo, Timer};
use crate::message::seal;
use crate::now::Now;
use crate::outbox::{FRAME_COST_BYTES, Outbox};
use crate::timers::TimerKey;

/// A connection. Kept small: there may be hundreds of thousands, most of them idle.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) generation: u32,
    pub(super) version: Version,
    pub(super) is_dirty: bool,
    /// Ended by us: nothing more is queued and nothing more is read.
    pub(super) is_closing: bool,
    /// Error replies of failed joins that still wait, oldest first, and their bytes together.
    pub(super) refusal_timers: Vec<TimerKey>,
    pub(super) refusal_bytes: usize,
    pub(super) idle_timer: TimerKey,
    /// Set when the last channel ends; it looks for itself whether a channel has come since.
    pub(super) no_channel_timer: Option<TimerKey>,
    pub(super) last_inbound_mono_ms: u64,
    pub(super) last_channel_mono_ms: u64,
    pub(super) credential: Arc<Credential>,
    /// Slots of this socket's channels; few, so a list.
    pub(super) channels: Vec<u32>,
    /// Joins that wait for the database.
    pub(super) joining: Vec<AskId>,
    pub(super) headers: Arc<str>,
    pub(super) outbox: Outbox,
}

impl Socket {
    pub(super) fn new(generation: u32, info: SocketInfo, now: Now, idle_timer: TimerKey) -> Self {
        Self {
            generation,
            version: info.version,
            is_dirty: false,
            is_closing: false,
            refusal_timers: Vec::new(),
            refusal_bytes: 0,
            idle_timer,
            no_channel_timer: None,
            last_inbound_mono_ms: now.mono_ms,
            last_channel_mono_ms: now.mono_ms,
            credential: info.credential,
            channels: Vec::new(),
            joining: Vec::new(),
            headers: info.headers,
            outbox: Outbox::default(),
        }
    }
}

const UNMATCHED: &str = r#"{"reason":"unmatched topic"}"#;

impl Hub {
    /// Notes a sign of life. False if the socket is gone or ending.
    pub(super) fn note_alive(&mut self, now: Now, id: SocketId) -> bool {
        match self.socket_mut(id) {
            Some(socket) if !socket.is_closing => {
                socket.last_inbound_mono_ms = now.mono_ms;
                true
            }
            _ => false,
        }
    }

    pub(super) fn on_text(&mut self, now: Now, id: SocketId, bytes: &[u8]) {
        if !self.note_alive(now, id) {
            return;
        }
        let version = self.sockets[id.index as usize].version;
        match frame::decode_text(version, bytes) {
            Ok(frame) if self.waits_for_answer(id.index, &frame.topic, bytes, true) => {}
            Ok(frame) => self.route(now, id.index, &frame),
            Err(error) => self.report_malformed(id.index, &error.to_string()),
        }
    }

    pub(super) fn on_binary(&mut self, now: Now, id: SocketId, bytes: &[u8]) {
        if !self.note_alive(now, id) {
            return;
        }
        if self.sockets[id.index as usize].version == Version::V1 {
            self.report_malformed(id.index, "binary frame on a socket of version 1.0.0");
            return;
        }
        match frame::decode_binary(bytes) {
            Ok(frame) if self.waits_for_answer(id.index, &frame.topic, bytes, false) => {}
            Ok(frame) => self.route(now, id.index, &frame),
            Err(error) => self.report_malformed(id.index, &error.to_string()),
        }
    }

    /// §1.6: dropped without an answer; the connection stays.
    fn report_malformed(&mut self, socket: u32, detail: &str) {
        self.report(OperationalCode::MalformedWebSocketMessage, socket, None, detail);
    }

    /// §1.8.
    fn route(&mut self, now: Now, socket: u32, frame: &Frame<'_>) {
        if frame.topic == topic::PHOENIX && frame.event == "heartbeat" {
            self.push_reply(socket, NULL, &frame.reference, topic::PHOENIX, Status::Ok, "{}");
            return;
        }
        if frame.event == "phx_join" {
            match topic::sub_topic(&frame.topic) {
                Some(_) => self.on_join(now, socket, frame),
                None => self.push_unmatched(socket, frame),
            }
            return;
        }
        let mut channel = self.find_channel(socket, &frame.topic);
        if let Some(left) = channel.filter(|&slot| self.channels[slot as usize].leaving.is_some()) {
            self.end_channel(now, left);
            channel = None;
        }
        match channel {
            Some(channel) => self.on_channel_event(now, channel, frame),
            None if frame.event == "phx_leave" && topic::sub_topic(&frame.topic).is_some() => {
                self.push_reply(socket, &frame.join_ref, &frame.reference, &frame.topic, Status::Ok, "{}");
            }
            None => self.push_unmatched(socket, frame),
        }
    }

    fn on_channel_event(&mut self, now: Now, channel: u32, frame: &Frame<'_>) {
        match (&*frame.event, &frame.payload) {
            ("phx_leave", _) => self.on_leave(now, channel, frame),
            ("broadcast", _) => self.on_broadcast(channel, frame),
            ("presence", Payload::Json(payload)) => self.on_presence(now, channel, frame, payload),
            ("access_token", Payload::Json(payload)) => self.on_access_token(now, channel, payload),
            // Unknown events are not answered, but counted (§1.8).
            _ => self.config.rates.events.add(1),
        }
    }

    fn push_unmatched(&mut self, socket: u32, frame: &Frame<'_>) {
        self.push_reply(socket, NULL, &frame.reference, &frame.topic, Status::Error, UNMATCHED);
    }

    pub(super) fn find_channel(&self, socket: u32, topic: &str) -> Option<u32> {
        let socket = self.sockets.get(socket as usize)?;
        socket.channels.iter().copied().find(|&slot| {
            let channel = &self.channels[slot as usize];
            *self.topics[channel.topic as usize].name == *topic
        })
    }

    /// A reply, which is a text frame whatever the push was (§1.5).
    pub(super) fn push_reply(
        &mut self,
        socket: u32,
        join_ref: &str,
        reference: &str,
        topic: &str,
        status: Status,
        response: &str,
    ) {
        let frame = self.reply_frame(socket, join_ref, reference, topic, status, response);
        self.push(socket, frame);
    }

    pub(super) fn reply_frame(
        &self,
        socket: u32,
        join_ref: &str,
        reference: &str,
        topic: &str,
        status: Status,
        response: &str,
    ) -> Bytes {
        let version = self.sockets[socket as usize].version;
        seal(response.len() + topic.len() + 96, |out| {
            frame::write_reply(out, version, join_ref, reference, topic, status, response);
        })
    }

    /// Queues a frame. At the bound the socket is closed as a slow reader: what it has not read is
    /// dropped, the others are not held up (`DESIGN.md` §4).
    pub(super) fn push(&mut self, index: u32, frame: Bytes) {
        let limit = self.config.max_outbox_bytes;
        let Some(socket) = self.sockets.get_mut(index as usize) else { return };
        if socket.is_closing {
            return;
        }
        if socket.outbox.push(frame, limit).is_err() {
            let (bytes, frames) = (socket.outbox.pending_bytes(), socket.outbox.frame_count());
            self.close(index, CLOSE_SLOW_READER, "slow reader", true);
            let detail = format!(
                "{bytes} bytes in {frames} frames were waiting in the outbox, the bound is {limit} bytes \
                 with {FRAME_COST_BYTES} for each frame"
            );
            self.report(OperationalCode::SlowReader, index, None, detail);
            return;
        }
        if !socket.is_dirty {
            socket.is_dirty = true;
            let id = SocketId { index, generation: socket.generation };
            self.dirty.push(id);
        }
    }

    /// Begins the end of a socket: a close frame behind what waits (or instead of it), then the driver
    /// disconnects. Its channels end when the current input is done.
    pub(super) fn close(&mut self, index: u32, code: u16, reason: &str, discard: bool) {
        let socket = &mut self.sockets[index as usize];
        if socket.is_closing {
            return;
        }
        let frame = websocket::close_frame(code, reason);
        if discard || socket.outbox.push(frame.clone(), usize::MAX).is_err() {
            socket.outbox.truncate_with(frame);
        }
        self.disconnect(index);
    }

    /// The end itself: the driver writes what is left in the outbox, then disconnects.
    fn disconnect(&mut self, index: u32) {
        let id = self.socket_id(index);
        let socket = &mut self.sockets[index as usize];
        socket.is_closing = true;
        if !socket.is_dirty {
            socket.is_dirty = true;
            self.dirty.push(id);
        }
        self.doomed.push(id);
        self.outputs.push_back(Output::Disconnect(id));
    }

    pub(super) fn close_all(&mut self) {
        let open: Vec<u32> = self.sockets.iter().map(|(index, _)| index as u32).collect();
        for index in open {
            self.close(index, CLOSE_RESTART, "server restarting", false);
        }
    }

    /// Asked for by the peer's close frame or a protocol violation: answered with the same code.
    pub fn close_socket(&mut self, id: SocketId, code: u16, reason: &str) {
        if self.socket_mut(id).is_some() {
            self.close(id.index, code, reason, false);
            self.end_doomed();
        }
    }

    /// Too many failing joins at once: the delay of each is the brake, a flood of them is cut off.
    pub(super) fn close_for_join_flood(&mut self, socket: u32) {
        self.close(socket, CLOSE_GOING_AWAY, "too many failing joins", false);
    }

    pub(super) fn on_closed(&mut self, id: SocketId) {
        if self.socket_mut(id).is_none() {
            return;
        }
        self.end_channels(id);
        let socket = self.sockets.remove(id.index as usize);
        self.timers.cancel(socket.idle_timer);
        for timer in socket.refusal_timers.into_iter().chain(socket.no_channel_timer) {
            self.timers.cancel(timer);
        }
    }

    pub(super) fn end_channels(&mut self, id: SocketId) {
        let Some(socket) = self.socket_mut(id) else { return };
        let joining = std::mem::take(&mut socket.joining);
        for channel in std::mem::take(&mut socket.channels) {
            self.remove_channel(channel);
        }
        self.forget_joins(joining);
    }

    pub(super) fn on_idle_timer(&mut self, now: Now, id: SocketId) {
        let timeout = self.config.idle_timeout_ms;
        let Some(socket) = self.socket_mut(id) else { return };
        if socket.is_closing {
            return;
        }
        let due = socket.last_inbound_mono_ms.saturating_add(timeout);
        if due <= now.mono_ms {
            self.close(id.index, CLOSE_NORMAL, "idle timeout", false);
            self.report(OperationalCode::IdleTimeout, id.index, None, format!("no frame for {timeout} ms"));
        } else {
            let timer = self.timers.set(due, Timer::Idle(id));
            self.sockets[id.index as usize].idle_timer = timer;
        }
    }

    pub(super) fn on_no_channel_timer(&mut self, now: Now, id: SocketId) {
        let timeout = self.config.no_channel_timeout_ms;
        let Some(socket) = self.socket_mut(id) else { return };
        socket.no_channel_timer = None;
        if socket.is_closing || !socket.channels.is_empty() {
            return;
        }
        let due = socket.last_channel_mono_ms.saturating_add(timeout);
        if due <= now.mono_ms {
            // Without a close frame, as the reference does it (§1.11): a close with code 1000 would end
            // realtime-py's listener for good.
            self.disconnect(id.index);
        } else {
            let timer = self.timers.set(due, Timer::NoChannel(id));
            self.sockets[id.index as usize].no_channel_timer = Some(timer);
        }
    }
}
