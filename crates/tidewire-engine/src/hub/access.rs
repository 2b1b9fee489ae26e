//! Private channels: what may be read is asked at the join, what may be written at the first use, and both
//! again when the token changes (§6.4, §6.5). The database answers; this room keeps the answers for one
//! channel and never lends them to another.
//!
//! While an answer is on its way, frames of that topic wait in order: a push never overtakes the join or
//! the question before it. What waits is bounded; a client that sends more is cut off.
//!
//! ```text
//! join ──Read──▶ granted: channel, reply, replay, …      denied: error reply after the backoff
//! first broadcast or track ──Write──▶ yes: goes on       no: as §3.4 and §4.2 say
//! access_token, period ──Read──▶ unchanged: goes on      lost: the channel is shut down
//! ```

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use tidewire_protocol::codes::OperationalCode;
use tidewire_protocol::frame::{self, Encoding, Frame, NULL, Payload, Version};
use tidewire_protocol::websocket::{self, Opcode};
use tidewire_protocol::{json, topic};

use super::channel::Channel;
use super::join::JoinRequest;
use super::{
    AccessRefusal, Answer, AskId, ChannelId, HearsPresence, Hub, Output, Question, SocketId, StoredMessage,
    StoredPayload,
};
use crate::message::{Body, Message, channel_frame};
use crate::now::Now;

/// Frames that may wait for one answer, and their bytes. A client buffers pushes until its join is answered, but
/// may send a burst while its first one is being decided; a flood is cut off.
const MAX_WAITING_FRAMES: usize = 4096;
const MAX_WAITING_BYTES: usize = 8 * 1024 * 1024;

/// Replayed ids kept per channel: as many as one replay can have (§3.6).
pub(super) const MAX_REPLAYED: usize = 25;

/// What a private channel may do.
#[derive(Debug, Default)]
pub(super) struct Access {
    pub(super) reads_broadcast: bool,
    pub(super) reads_presence: bool,
    write: Write,
    /// The read question under way, if the token was replaced or the period is over.
    recheck: Option<AskId>,
    replayed: HashSet<Box<str>>,
}

#[derive(Debug, Default)]
enum Write {
    #[default]
    Unknown,
    Asked(AskId),
    Known {
        broadcast: bool,
        presence: bool,
    },
    /// Could not be evaluated (§3.4: nothing happens, and the next use asks again).
    Failed,
}

/// A question under way.
#[derive(Debug)]
pub(super) struct Asked {
    serial: u32,
    purpose: Purpose,
    waiting: Waiting,
}

#[derive(Debug)]
enum Purpose {
    Join { socket: SocketId, request: Box<JoinRequest> },
    Write { channel: ChannelId },
    Recheck { channel: ChannelId },
}

/// Frames that wait for an answer.
#[derive(Debug, Default)]
struct Waiting {
    frames: Vec<Waited>,
    bytes: usize,
}

/// A frame kept for later. Presence pushes have been counted before they had to wait.
#[derive(Debug)]
enum Waited {
    Text(Vec<u8>),
    Binary(Vec<u8>),
}

/// What a push needs permission for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extension {
    Broadcast,
    Presence,
}

/// Whether a push may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Permission {
    Yes,
    No,
    /// The frame waits for an answer and will come again.
    Deferred,
}

impl Hub {
    // ── asking ──────────────────────────────────────────────────────────────────────────────────────

    fn ask(&mut self, purpose: Purpose, question: Question) -> AskId {
        let serial = self.next_ask_serial;
        self.next_ask_serial = self.next_ask_serial.wrapping_add(1);
        let index = self.asked.insert(Asked { serial, purpose, waiting: Waiting::default() }) as u32;
        let id = AskId { index, serial };
        self.outputs.push_back(Output::Ask(id, question));
        id
    }

    fn asked_mut(&mut self, id: AskId) -> Option<&mut Asked> {
        self.asked.get_mut(id.index as usize).filter(|asked| asked.serial == id.serial)
    }

    fn take_asked(&mut self, id: AskId) -> Option<Asked> {
        self.asked_mut(id)?;
        Some(self.asked.remove(id.index as usize))
    }

    /// A join of a private channel waits for the database.
    pub(super) fn ask_to_join(&mut self, socket: u32, request: JoinRequest) {
        let owner = &self.sockets[socket as usize];
        let question = Question::Read {
            topic: topic::sub_topic(&request.topic).unwrap_or_default().into(),
            credential: Arc::clone(&request.credential),
            headers: Arc::clone(&owner.headers),
            with_presence: request.wants_presence,
            replay: request.replay,
        };
        let purpose = Purpose::Join { socket: self.socket_id(socket), request: Box::new(request) };
        let id = self.ask(purpose, question);
        self.sockets[socket as usize].joining.push(id);
    }

    /// If a join of this topic or a push to it waits on this socket, the frame waits behind it: a leave must not
    /// overtake the last broadcast, an untrack not its track. False: the frame may go on.
    pub(super) fn waits_for_answer(&mut self, socket: u32, topic: &str, bytes: &[u8], is_text: bool) -> bool {
        if self.asked.is_empty() {
            return false;
        }
        let joining = self.sockets[socket as usize].joining.iter().copied().find(|id| {
            matches!(self.asked.get(id.index as usize), Some(Asked { purpose: Purpose::Join { request, .. }, .. })
                if *request.topic == *topic)
        });
        let Some(id) = joining.or_else(|| self.write_question(socket, topic)) else { return false };
        let waited = if is_text { Waited::Text(bytes.to_vec()) } else { Waited::Binary(bytes.to_vec()) };
        self.keep_waiting(socket, id, waited);
        true
    }

    fn write_question(&self, socket: u32, topic: &str) -> Option<AskId> {
        let slot = self.find_channel(socket, topic)?;
        match self.channels[slot as usize].access.as_deref()?.write {
            Write::Asked(id) => Some(id),
            _ => None,
        }
    }

    fn keep_waiting(&mut self, socket: u32, id: AskId, waited: Waited) {
        let Some(asked) = self.asked_mut(id) else { return };
        let (Waited::Text(bytes) | Waited::Binary(bytes)) = &waited;
        asked.waiting.bytes += bytes.len();
        asked.waiting.frames.push(waited);
        if asked.waiting.frames.len() > MAX_WAITING_FRAMES || asked.waiting.bytes > MAX_WAITING_BYTES {
            self.close_for_join_flood(socket);
        }
    }

    /// Whether a push on this channel may go on. A private channel asks the first time.
    pub(super) fn may_write(&mut self, slot: u32, extension: Extension, frame: &Frame<'_>) -> Permission {
        let channel = &mut self.channels[slot as usize];
        let Some(access) = &mut channel.access else { return Permission::Yes };
        match access.write {
            Write::Known { broadcast, presence } => {
                let is_allowed = match extension {
                    Extension::Broadcast => broadcast,
                    Extension::Presence => presence,
                };
                return if is_allowed { Permission::Yes } else { Permission::No };
            }
            Write::Failed => {
                // This use is answered with the failure; the next one asks again.
                access.write = Write::Unknown;
                return Permission::No;
            }
            Write::Unknown | Write::Asked(_) => {}
        }
        let socket = channel.socket;
        let id = match channel.access.as_ref().map(|access| &access.write) {
            Some(Write::Asked(id)) => *id,
            _ => self.ask_to_write(slot),
        };
        let waited = waited(self.sockets[socket as usize].version, frame);
        self.keep_waiting(socket, id, waited);
        Permission::Deferred
    }

    fn ask_to_write(&mut self, slot: u32) -> AskId {
        let channel = &self.channels[slot as usize];
        let question = Question::Write {
            topic: self.sub_topic_of(channel),
            credential: Arc::clone(&channel.credential),
            headers: Arc::clone(&self.sockets[channel.socket as usize].headers),
            with_presence_read: !channel.wants_presence,
        };
        let purpose = Purpose::Write { channel: channel.id };
        let id = self.ask(purpose, question);
        if let Some(access) = &mut self.channels[slot as usize].access {
            access.write = Write::Asked(id);
        }
        id
    }

    /// The token was replaced, or the period is over: what may be read is asked again, what may be written at
    /// its next use.
    pub(super) fn recheck_access(&mut self, slot: u32, is_new_token: bool) {
        let channel = &self.channels[slot as usize];
        let Some(access) = &channel.access else { return };
        let earlier = access.recheck;
        let question = Question::Read {
            topic: self.sub_topic_of(channel),
            credential: Arc::clone(&channel.credential),
            headers: Arc::clone(&self.sockets[channel.socket as usize].headers),
            with_presence: channel.wants_presence || access.reads_presence,
            replay: None,
        };
        let purpose = Purpose::Recheck { channel: channel.id };
        if let Some(earlier) = earlier {
            self.take_asked(earlier);
        }
        let id = self.ask(purpose, question);
        let Some(access) = &mut self.channels[slot as usize].access else { return };
        access.recheck = Some(id);
        if !is_new_token {
            return;
        }
        // A token waits behind the pushes that came before it, so nothing is being asked under the old one.
        debug_assert!(!matches!(access.write, Write::Asked(_)), "tokens wait behind pushes");
        access.write = Write::Unknown;
    }

    fn sub_topic_of(&self, channel: &Channel) -> Arc<str> {
        topic::sub_topic(&self.topics[channel.topic as usize].name).unwrap_or_default().into()
    }

    /// Answers for a channel that has ended are of no interest.
    pub(super) fn forget_questions(&mut self, channel: &Channel) {
        let Some(access) = &channel.access else { return };
        let write = if let Write::Asked(id) = access.write { Some(id) } else { None };
        for id in access.recheck.into_iter().chain(write) {
            self.take_asked(id);
        }
    }

    /// Joins of a socket that has ended, likewise.
    pub(super) fn forget_joins(&mut self, joining: Vec<AskId>) {
        for id in joining {
            self.take_asked(id);
        }
    }

    // ── answers ─────────────────────────────────────────────────────────────────────────────────────

    pub(super) fn on_answer(&mut self, now: Now, id: AskId, answer: Answer) {
        let Some(asked) = self.take_asked(id) else { return };
        let socket = match asked.purpose {
            Purpose::Join { socket, request } => {
                self.on_join_answer(now, socket, id, *request, answer);
                Some(socket)
            }
            Purpose::Write { channel } => self.on_write_answer(channel, answer),
            Purpose::Recheck { channel } => self.on_recheck_answer(now, channel, answer),
        };
        // What waited comes now, in its order, as if it had just arrived.
        let Some(socket) = socket else { return };
        for waited in asked.waiting.frames {
            match waited {
                Waited::Text(bytes) => self.on_text(now, socket, &bytes),
                Waited::Binary(bytes) => self.on_binary(now, socket, &bytes),
            }
        }
    }

    fn on_join_answer(
        &mut self,
        now: Now,
        socket: SocketId,
        id: AskId,
        request: JoinRequest,
        answer: Answer,
    ) {
        let Some(owner) = self.socket_mut(socket) else { return };
        owner.joining.retain(|&other| other != id);
        if owner.is_closing {
            return;
        }
        let (broadcast, presence, replayed) = match answer {
            Answer::Read { broadcast, presence, replayed } => (broadcast, presence, replayed),
            Answer::Refused(refusal) => {
                self.refuse_request(now, socket.index, &request, refusal.code, refusal.join_reason);
                return;
            }
            Answer::Write { .. } => return,
        };
        // Replay needs broadcasts, everything else one of the two (§2.4, checks 10 and 11).
        let is_readable = broadcast || (presence && request.replay.is_none());
        if !is_readable {
            let code = OperationalCode::Unauthorized;
            let sub_topic = topic::sub_topic(&request.topic).unwrap_or_default();
            let reason = format!(
                "{}: You do not have permissions to read from this Channel topic: {sub_topic}",
                code.as_str()
            );
            self.refuse_request(now, socket.index, &request, code, reason);
            return;
        }
        let access = Access {
            reads_broadcast: broadcast,
            reads_presence: presence,
            replayed: replayed.iter().take(MAX_REPLAYED).map(|message| message.id.as_str().into()).collect(),
            ..Access::default()
        };
        self.join(now, socket.index, request, Some(Box::new(access)), &replayed);
    }

    fn on_write_answer(&mut self, channel: ChannelId, answer: Answer) -> Option<SocketId> {
        let slot = *self.channel_slots.get(&channel)?;
        let socket = self.channels[slot as usize].socket;
        let topic = Arc::clone(&self.topics[self.channels[slot as usize].topic as usize].name);
        let wants_presence = self.channels[slot as usize].wants_presence;
        let access = self.channels[slot as usize].access.as_mut()?;
        match answer {
            Answer::Write { broadcast, presence, presence_read } => {
                access.write = Write::Known { broadcast, presence };
                if !wants_presence {
                    access.reads_presence = presence_read;
                }
            }
            Answer::Refused(refusal) => {
                access.write = Write::Failed;
                self.report(refusal.code, socket, Some(topic), refusal.join_reason);
            }
            Answer::Read { .. } => {}
        }
        Some(self.socket_id(socket))
    }

    fn on_recheck_answer(&mut self, now: Now, channel: ChannelId, answer: Answer) -> Option<SocketId> {
        let slot = *self.channel_slots.get(&channel)?;
        let sub_topic = self.sub_topic_of(&self.channels[slot as usize]);
        let had = {
            let access = self.channels[slot as usize].access.as_mut()?;
            access.recheck = None;
            (access.reads_broadcast, access.reads_presence)
        };
        let lost = |code, message: String| {
            Some(AccessRefusal { code, join_reason: String::new(), push_message: message })
        };
        let refusal = match answer {
            Answer::Read { broadcast: false, presence: false, .. } => lost(
                OperationalCode::Unauthorized,
                format!("You do not have permissions to read from this Channel topic: {sub_topic}"),
            ),
            Answer::Read { broadcast, presence, .. } if (had.0 && !broadcast) || (had.1 && !presence) => {
                lost(
                    OperationalCode::Unauthorized,
                    format!("You no longer have permission to read from this Channel topic: {sub_topic}"),
                )
            }
            Answer::Read { broadcast, presence, .. } => {
                let access = self.channels[slot as usize].access.as_mut()?;
                (access.reads_broadcast, access.reads_presence) = (broadcast, presence);
                let gained_state = presence && !had.1 && self.channels[slot as usize].wants_presence;
                self.hears_mut(slot).broadcast = broadcast;
                if gained_state {
                    self.request_state(slot);
                }
                None
            }
            Answer::Refused(refusal) => Some(refusal),
            Answer::Write { .. } => None,
        };
        if let Some(refusal) = refusal {
            self.shut_down(now, slot, refusal.code, &refusal.push_message);
        }
        None
    }

    // ── what private channels are sent ──────────────────────────────────────────────────────────────

    pub(super) fn was_replayed(&self, channel: u32, message: &Message) -> bool {
        let access = self.channels[channel as usize].access.as_deref();
        message.id().is_some_and(|id| access.is_some_and(|access| access.replayed.contains(id)))
    }

    /// A private channel that joined without presence and now tracks gets diffs as its own pushes, if it may
    /// read presence (§4.4).
    pub(super) fn note_tracking(&mut self, slot: u32) {
        let channel = &self.channels[slot as usize];
        let may_read = channel.access.as_deref().is_some_and(|access| access.reads_presence);
        if may_read && !channel.wants_presence {
            self.hears_mut(slot).presence = HearsPresence::AsPush;
        }
    }

    /// A presence diff as a push of this channel: with its join ref.
    pub(super) fn push_diff(&mut self, slot: u32, message: &Message) {
        let Body::Json { event, payload } = message.body() else { return };
        let Ok(payload) = std::str::from_utf8(payload) else { return };
        let channel = &self.channels[slot as usize];
        let socket = channel.socket;
        let version = self.sockets[socket as usize].version;
        let frame = channel_frame(version, channel.join_ref(), NULL, message.topic(), event, payload);
        self.push(socket, frame);
    }

    /// Stored messages right behind the join's reply, oldest first (§3.6).
    pub(super) fn push_replayed(&mut self, slot: u32, messages: &[StoredMessage]) {
        for message in messages {
            let channel = &self.channels[slot as usize];
            let socket = channel.socket;
            let version = self.sockets[socket as usize].version;
            let name = Arc::clone(&self.topics[channel.topic as usize].name);
            let frame = match (&message.payload, version) {
                (StoredPayload::Json(payload), _) => {
                    let payload = replayed_payload(message, payload);
                    Some(channel_frame(version, channel.join_ref(), NULL, &name, "broadcast", &payload))
                }
                (StoredPayload::Bytes(bytes), Version::V2) => replayed_bytes(&name, message, bytes),
                // Version 1 has no form for bytes (§3.3).
                (StoredPayload::Bytes(_), Version::V1) => None,
            };
            if let Some(frame) = frame {
                self.push(socket, frame);
            }
        }
    }
}

/// `{"type","event","payload","meta":{"replayed":true,"id"}}`.
fn replayed_payload(message: &StoredMessage, payload: &str) -> String {
    let mut out = Vec::with_capacity(payload.len() + message.event.len() + 128);
    out.extend_from_slice(b"{\"type\":\"broadcast\",\"event\":");
    json::write_string(&mut out, &message.event);
    out.extend_from_slice(b",\"payload\":");
    out.extend_from_slice(payload.as_bytes());
    out.extend_from_slice(b",\"meta\":");
    out.extend_from_slice(replayed_metadata(&message.id).as_bytes());
    out.push(b'}');
    String::from_utf8(out).expect("invariant: made of UTF-8 parts")
}

fn replayed_metadata(id: &str) -> String {
    let mut out = Vec::with_capacity(id.len() + 24);
    out.extend_from_slice(b"{\"replayed\":true,\"id\":");
    json::write_string(&mut out, id);
    out.push(b'}');
    String::from_utf8(out).expect("invariant: JSON writers emit UTF-8")
}

/// Kind 4 with metadata; nothing where a name is too long for it.
fn replayed_bytes(topic: &str, message: &StoredMessage, payload: &[u8]) -> Option<Bytes> {
    let mut content = Vec::with_capacity(payload.len() + topic.len() + 96);
    let metadata = replayed_metadata(&message.id);
    frame::write_user_broadcast(&mut content, topic, &message.event, &metadata, Encoding::Bytes, payload)
        .ok()?;
    Some(websocket::frame(Opcode::Binary, &content))
}

/// A decoded frame as bytes again, to be handled later.
fn waited(version: Version, frame: &Frame<'_>) -> Waited {
    let mut out = Vec::new();
    match &frame.payload {
        Payload::Json(payload) => {
            frame::write_client_text(
                &mut out,
                version,
                &frame.join_ref,
                &frame.reference,
                &frame.topic,
                &frame.event,
                payload,
            );
            Waited::Text(out)
        }
        Payload::UserBroadcast(user) => {
            let plain = |raw: &str| json::string(raw).map(|text| text.into_owned()).unwrap_or_default();
            // The lengths came from such a frame, so they fit into one.
            let written = frame::write_user_broadcast_push(
                &mut out,
                &plain(&frame.join_ref),
                &plain(&frame.reference),
                &frame.topic,
                user.event,
                user.metadata,
                user.encoding,
                user.payload,
            );
            debug_assert!(written.is_ok(), "a decoded kind 3 frame encodes again");
            Waited::Binary(out)
        }
        // Kind 0 is dropped before anybody asks.
        Payload::Bytes(_) => Waited::Binary(out),
    }
}
