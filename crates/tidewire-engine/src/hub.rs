//! One event loop's worth of sockets, channels and topics.
//!
//! Owns: the sockets given to this hub, their channels and outboxes, the members of each topic on this
//! hub, and the presence of the topics whose *home* this hub is. Never touches: the network, the clock,
//! the database, other hubs' memory.
//!
//! The law of use: after each [`Hub::handle`], drain [`Hub::poll_output`]; when a turn's inputs are all
//! handled, call [`Hub::finish_turn`], drain again, then write what [`Hub::take_dirty`] names. A message
//! to a peer hub must arrive in the order it was put out.
//!
//! ```text
//!   frame ──▶ routing ──▶ join │ leave │ broadcast │ presence │ access_token
//!                           │                │            │
//!                           ▼                ▼            ▼
//!                      ChangeCommand    members here   home hub of the topic
//!                                       + other hubs   (state, diffs once per turn)
//! ```
//!
//! | channel state × event | `phx_join` | `phx_leave` | other |
//! | --- | --- | --- | --- |
//! | not joined | join | ok reply | `unmatched topic` |
//! | joined | new incarnation, then close of the old | leave (if the ref is ours) | delivered |
//! | ended by the server | join | ok reply | `unmatched topic` |
//!
//! Spec: `PROTOCOL.md` §1.6–1.11, §2–§4, §6.3–6.4.

mod access;
mod broadcast;
mod channel;
mod delivery;
mod join;
mod presence;
mod socket;
mod token;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use rustc_hash::FxHashMap;
use slab::Slab;
use tidewire_presence::Presence;
use tidewire_protocol::codes::OperationalCode;
use tidewire_protocol::frame::Version;
use tidewire_protocol::join::Binding;

use crate::message::{Domain, Message};
use crate::now::Now;
use crate::outbox::Outbox;
use crate::random::Random;
use crate::rate::Rates;
use crate::timers::Timers;
use access::Asked;
use channel::Channel;
use socket::Socket;

/// A socket of one hub. Stale ids are recognised and ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SocketId {
    /// Position in the hub; the driver may use it as an index of its own.
    pub index: u32,
    /// Tells this socket from an earlier one at the same position.
    pub generation: u32,
}

/// A channel, unique in the process: the hub in the upper 16 bits, a serial below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelId(pub u64);

impl ChannelId {
    /// The hub that owns the channel.
    pub fn hub(self) -> u16 {
        (self.0 >> 48) as u16
    }
}

/// What a verified token says. Its `Debug` shows the role alone.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    /// The token as verified, kept to be verified again (§6.3).
    pub token: Box<str>,
    /// Claim `role`.
    pub role: Box<str>,
    /// All claims, JSON text.
    pub claims: Box<str>,
    /// Claim `exp`, seconds since the Unix epoch.
    pub expires_unix_s: i64,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credential").field("role", &self.role).finish_non_exhaustive()
    }
}

/// Why a token was refused, in the words of each place that can say so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRefusal {
    /// Stable code.
    pub code: OperationalCode,
    /// `reason` of a join's error reply (§2.5).
    pub join_reason: String,
    /// Text of the system message when a joined channel is shut down (§6.3, §6.4).
    pub push_message: String,
}

/// Verifies a token: pure computation over static keys, so that it may run inside a turn.
pub trait VerifyToken: Send + Sync {
    /// Checks signature, expiry and required claims.
    ///
    /// # Errors
    /// [`TokenRefusal`], in the words of the protocol.
    fn verify(&self, token: &str, now: Now) -> Result<Credential, TokenRefusal>;
}

/// Bounds and delays of a hub. Sources of the numbers: `PROTOCOL.md` §7.2 and appendix B.
#[derive(Debug, Clone)]
pub struct HubConfig {
    /// This hub's number.
    pub hub: u16,
    /// How many hubs there are; the home of a topic is chosen among them.
    pub hubs: u16,
    /// Seed of names that must be unique but not secret.
    pub seed: u64,
    /// Channels of one socket.
    pub max_channels: usize,
    /// Bindings of one channel.
    pub max_bindings: usize,
    /// Largest inbound WebSocket message; the driver closes with 1009 above it.
    pub max_message_bytes: usize,
    /// Bytes that may wait for one socket before it is closed as a slow reader.
    pub max_outbox_bytes: usize,
    /// Largest broadcast or presence payload.
    pub max_payload_bytes: usize,
    /// Rate counters of the tenant, shared by its hubs.
    pub rates: Arc<Rates>,
    /// Presence calls per channel and window; `None` = unlimited.
    pub presence_calls: Option<u32>,
    /// Length of that window.
    pub presence_window_ms: u64,
    /// A socket without inbound frames for this long is closed.
    pub idle_timeout_ms: u64,
    /// A socket that joined once and has no channel for this long is dropped.
    pub no_channel_timeout_ms: u64,
    /// Wait before a failed join is answered.
    pub join_error_backoff_ms: u64,
    /// Longest time between two verifications of a channel's token.
    pub token_check_ms: u64,
}

/// What the driver knows of a socket when it hands it over.
#[derive(Debug, Clone)]
pub struct SocketInfo {
    /// Serializer.
    pub version: Version,
    /// The credential of the connection (§6.2).
    pub credential: Arc<Credential>,
    /// The `x-…` headers of the handshake as a JSON object, for policies (§6.5).
    pub headers: Arc<str>,
}

/// A topic's name and world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicKey {
    /// World.
    pub domain: Domain,
    /// Full topic, `realtime:` included.
    pub name: Arc<str>,
}

/// Something happened.
#[derive(Debug)]
pub enum Input<'a> {
    /// A text message arrived.
    Text(SocketId, &'a [u8]),
    /// A binary message arrived.
    Binary(SocketId, &'a [u8]),
    /// A ping arrived; the driver answers it, the hub notes a sign of life.
    Alive(SocketId),
    /// The connection is gone; the id will not be used again.
    Closed(SocketId),
    /// A message from another hub, from HTTP, or from the change stream.
    Peer(PeerMessage),
    /// The answer to an [`Output::Ask`].
    Answered(AskId, Answer),
    /// A deadline may have come.
    Tick,
    /// Shutting down.
    Drain(Drain),
}

/// The two steps of a shutdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drain {
    /// Refuse new joins.
    Refuse,
    /// Close every socket with 1012 (§1.11).
    Close,
}

/// Hub to hub, and outside to hub. Cheap to clone: contents are shared.
#[derive(Debug, Clone)]
pub enum PeerMessage {
    /// To every member of the message's topic on the receiving hub.
    Publish {
        /// The message.
        message: Arc<Message>,
        /// Presence diffs are held back from channels that still wait for their state.
        is_presence: bool,
    },
    /// To these channels, if they still exist; row changes come this way.
    Deliver {
        /// The message; its topic is the topic of all these channels.
        message: Arc<Message>,
        /// Receivers, all of the receiving hub.
        channels: Arc<[ChannelId]>,
    },
    /// A `system` message for one channel (§5.10, §3.7).
    System {
        /// Receiver.
        channel: ChannelId,
        /// `postgres_changes` or `system`.
        extension: &'static str,
        /// Status `ok`, otherwise `error`.
        ok: bool,
        /// Text.
        text: String,
    },
    /// Ends a channel with a `system` error (§1.9).
    ShutDown {
        /// The channel.
        channel: ChannelId,
        /// Text of the error.
        text: String,
    },
    /// To the home hub: a channel tracks.
    Track {
        /// Topic.
        topic: TopicKey,
        /// The tracking channel.
        owner: ChannelId,
        /// Presence key.
        key: Box<str>,
        /// Fresh reference of the meta.
        phx_ref: String,
        /// The tracked object, JSON text.
        payload: Box<str>,
    },
    /// To the home hub: a channel's presence ends.
    Untrack {
        /// Topic.
        topic: TopicKey,
        /// The channel.
        owner: ChannelId,
    },
    /// To the home hub: a channel joined and wants the state.
    StateRequest {
        /// Topic.
        topic: TopicKey,
        /// Who asks.
        channel: ChannelId,
    },
    /// From the home hub: the state asked for.
    State {
        /// Who asked.
        channel: ChannelId,
        /// `presence_state` payload.
        payload: Bytes,
    },
}

/// What only the outside can do.
#[derive(Debug)]
pub enum Output {
    /// Carry a message to one other hub.
    Peer(u16, PeerMessage),
    /// Carry a message to all other hubs.
    Peers(PeerMessage),
    /// Tell the change stream.
    Change(ChangeCommand),
    /// Ask the database; the answer comes as [`Input::Answered`], whenever it comes.
    Ask(AskId, Question),
    /// Write what the outbox holds, then end the connection. The hub has let go of its channels already.
    Disconnect(SocketId),
    /// Log and count.
    Report(Report),
}

/// Names a question; answers to questions that nobody waits for any more are ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AskId {
    index: u32,
    serial: u32,
}

/// What only the database can say about a private channel (§6.5).
#[derive(Debug, Clone)]
pub enum Question {
    /// What of the topic may be read.
    Read {
        /// Sub-topic.
        topic: Arc<str>,
        /// Role and claims.
        credential: Arc<Credential>,
        /// `request.headers`.
        headers: Arc<str>,
        /// Whether presence is asked about, too.
        with_presence: bool,
        /// Stored messages wanted, if broadcasts may be read (§3.6).
        replay: Option<Replay>,
    },
    /// What may be written.
    Write {
        /// Sub-topic.
        topic: Arc<str>,
        /// Role and claims.
        credential: Arc<Credential>,
        /// `request.headers`.
        headers: Arc<str>,
        /// Whether presence may be read is asked as well: the channel joined without it and tracks now (§4.4).
        with_presence_read: bool,
    },
}

/// Which stored messages a join asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replay {
    /// Milliseconds since the Unix epoch.
    pub since_unix_ms: i64,
    /// At most this many, 1 to 25, the newest.
    pub limit: u32,
}

/// A stored message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredMessage {
    /// Its id, a UUID.
    pub id: String,
    /// Event name.
    pub event: String,
    /// JSON text or bytes.
    pub payload: StoredPayload,
}

/// The payload of a stored message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredPayload {
    /// JSON text as Postgres prints it; `null` for none.
    Json(String),
    /// Opaque bytes.
    Bytes(Bytes),
}

/// Why the database gave no permission or no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessRefusal {
    /// Stable code.
    pub code: OperationalCode,
    /// `reason` of a join's error reply (§2.5).
    pub join_reason: String,
    /// Text of the system message when a joined channel is shut down (§6.4).
    pub push_message: String,
}

/// The answer to a [`Question`].
#[derive(Debug, Clone)]
pub enum Answer {
    /// To [`Question::Read`]; neither permission is an answer, not a refusal.
    Read {
        /// Broadcasts may be read.
        broadcast: bool,
        /// Presence may be read.
        presence: bool,
        /// Stored messages, oldest first.
        replayed: Vec<StoredMessage>,
    },
    /// To [`Question::Write`].
    Write {
        /// Broadcasts may be sent.
        broadcast: bool,
        /// Presence may be tracked.
        presence: bool,
        /// Presence may be read; only meaningful if it was asked.
        presence_read: bool,
    },
    /// Nothing could be decided.
    Refused(AccessRefusal),
}

/// What the change stream has to know about channels. Commands of one channel come in order.
#[derive(Debug)]
pub enum ChangeCommand {
    /// A channel joined with bindings.
    Subscribe {
        /// The channel.
        channel: ChannelId,
        /// Full topic, for the frames.
        topic: Arc<str>,
        /// Role and claims.
        credential: Arc<Credential>,
        /// Joined without `config` (§2.7): other event names, bare payload.
        is_legacy: bool,
        /// In join order.
        bindings: Vec<Binding>,
    },
    /// The channel's token was replaced (§6.4).
    Reauthorize {
        /// The channel.
        channel: ChannelId,
        /// The new role and claims.
        credential: Arc<Credential>,
    },
    /// The channel wants to be told when messages from the database flow (§3.7).
    TellWhenReady {
        /// The channel.
        channel: ChannelId,
    },
    /// The channel ended.
    Unsubscribe {
        /// The channel.
        channel: ChannelId,
    },
}

/// An operational event: a line in the log and a count. Never holds payloads or tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Stable code.
    pub code: OperationalCode,
    /// Where.
    pub socket: SocketId,
    /// Full topic, if the event belongs to one.
    pub topic: Option<Arc<str>>,
    /// A sentence for the operator.
    pub detail: String,
}

/// A topic as this hub knows it.
#[derive(Debug)]
struct Topic {
    domain: Domain,
    name: Arc<str>,
    members: Vec<Member>,
    /// Only on the topic's home hub, only while somebody tracks.
    presence: Option<Box<Presence>>,
    is_presence_dirty: bool,
}

/// A member of a topic. Small and flat: the fan-out loop walks these.
#[derive(Debug, Clone, Copy)]
struct Member {
    socket: u32,
    channel: u32,
    hears: Hears,
}

/// What a member is sent. Kept beside the member, so that the fan-out loop needs no look at the channel.
#[derive(Debug, Clone, Copy)]
struct Hears {
    broadcast: bool,
    presence: HearsPresence,
    /// Messages were replayed to this channel: the same ones must not come again (§3.6).
    has_replayed: bool,
}

/// Which rate a tenant is over (§7.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rate {
    Events,
    Presence,
}

/// How a member gets presence diffs (§4.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HearsPresence {
    /// Not at all.
    No,
    /// Once its state has come; the state contains what is held back.
    AfterState,
    /// With everybody.
    Yes,
    /// As pushes of its own channel: a private channel that joined without presence and then tracked.
    AsPush,
}

#[derive(Debug)]
enum Timer {
    Idle(SocketId),
    NoChannel(SocketId),
    JoinRefusal { socket: SocketId, frames: Bytes, closes_socket: bool },
    TokenCheck(ChannelId),
}

/// Names in a report come from clients, who may make them megabytes long; a log line is read by people.
const MAX_REPORTED_BYTES: usize = 1024;

/// See the module documentation.
pub struct Hub {
    config: HubConfig,
    verifier: Arc<dyn VerifyToken>,
    random: Random,
    sockets: Slab<Socket>,
    channels: Slab<Channel>,
    channel_slots: FxHashMap<ChannelId, u32>,
    /// Topic names come from clients, so this map uses the keyed default hasher.
    topic_slots: [HashMap<Arc<str>, u32>; 2],
    topics: Slab<Topic>,
    timers: Timers<Timer>,
    asked: Slab<Asked>,
    next_ask_serial: u32,
    outputs: VecDeque<Output>,
    dirty: Vec<SocketId>,
    dirty_presence: Vec<u32>,
    /// Sockets to be ended at the end of this input; ending them at once would change the member list
    /// under a fan-out loop.
    doomed: Vec<SocketId>,
    /// Channels left in this turn, and when.
    leaving: Vec<(Now, ChannelId)>,
    /// Channels to be shut down at the end of this input because their tenant is over a rate.
    over_rate: Vec<(ChannelId, Rate)>,
    next_channel_serial: u64,
    next_generation: u32,
    is_draining: bool,
    /// Time of the last input; what ends a turn happens then.
    now: Now,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub")
            .field("hub", &self.config.hub)
            .field("sockets", &self.sockets.len())
            .field("channels", &self.channels.len())
            .finish_non_exhaustive()
    }
}

impl Hub {
    /// An empty hub.
    pub fn new(config: HubConfig, verifier: Arc<dyn VerifyToken>) -> Self {
        Self {
            random: Random::new(config.seed, config.hub),
            config,
            verifier,
            sockets: Slab::new(),
            channels: Slab::new(),
            channel_slots: FxHashMap::default(),
            topic_slots: Default::default(),
            topics: Slab::new(),
            timers: Timers::default(),
            asked: Slab::new(),
            next_ask_serial: 0,
            outputs: VecDeque::new(),
            dirty: Vec::new(),
            dirty_presence: Vec::new(),
            doomed: Vec::new(),
            leaving: Vec::new(),
            over_rate: Vec::new(),
            next_channel_serial: 0,
            next_generation: 0,
            is_draining: false,
            now: Now { mono_ms: 0, wall_ms: 0 },
        }
    }

    /// Takes over a connection whose handshake has succeeded.
    pub fn open(&mut self, now: Now, info: SocketInfo) -> SocketId {
        let generation = self.next_generation;
        self.next_generation = self.next_generation.wrapping_add(1);
        let entry = self.sockets.vacant_entry();
        let id = SocketId { index: entry.key() as u32, generation };
        let idle_timer =
            self.timers.set(now.mono_ms.saturating_add(self.config.idle_timeout_ms), Timer::Idle(id));
        entry.insert(Socket::new(generation, info, now, idle_timer));
        id
    }

    /// Tells the hub what happened.
    pub fn handle(&mut self, now: Now, input: Input<'_>) {
        self.now = now;
        match input {
            Input::Text(socket, bytes) => self.on_text(now, socket, bytes),
            Input::Binary(socket, bytes) => self.on_binary(now, socket, bytes),
            Input::Alive(socket) => {
                self.note_alive(now, socket);
            }
            Input::Closed(socket) => self.on_closed(socket),
            Input::Peer(PeerMessage::ShutDown { channel, text }) => {
                if let Some(&slot) = self.channel_slots.get(&channel) {
                    self.shut_down(now, slot, OperationalCode::ChannelShutdown, &text);
                }
            }
            Input::Peer(message) => self.on_peer(message),
            Input::Answered(id, answer) => self.on_answer(now, id, answer),
            Input::Tick => self.on_tick(now),
            Input::Drain(Drain::Refuse) => self.is_draining = true,
            Input::Drain(Drain::Close) => self.close_all(),
        }
        self.end_over_rate(now);
        self.end_doomed();
    }

    /// The next thing to do outside, until `None`.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Input::Tick`] is due next, in milliseconds of [`Now::mono_ms`].
    pub fn poll_deadline(&self) -> Option<u64> {
        self.timers.next_deadline()
    }

    /// Ends a turn: what may be said once for many inputs (presence diffs) is said now.
    pub fn finish_turn(&mut self) {
        self.finish_leaves();
        // A diff can fill an outbox, and ending that slow reader's channels is one more change of presence.
        // Each round but the last closes a socket, so this ends.
        loop {
            self.flush_presence();
            self.end_over_rate(self.now);
            self.end_doomed();
            if self.dirty_presence.is_empty() {
                return;
            }
        }
    }

    fn end_doomed(&mut self) {
        while let Some(socket) = self.doomed.pop() {
            self.end_channels(socket);
        }
    }

    /// Moves the sockets that have something to write into `dirty`.
    pub fn take_dirty(&mut self, dirty: &mut Vec<SocketId>) {
        for id in &self.dirty {
            if let Some(socket) = self.sockets.get_mut(id.index as usize) {
                socket.is_dirty = false;
            }
        }
        dirty.append(&mut self.dirty);
    }

    /// What waits for a socket; `None` if it is gone.
    pub fn outbox(&mut self, id: SocketId) -> Option<&mut Outbox> {
        self.socket_mut(id).map(|socket| &mut socket.outbox)
    }

    /// Appends a frame made by the driver (pong, close) to a socket's outbox.
    pub fn push_raw(&mut self, id: SocketId, frame: Bytes) {
        if self.socket_mut(id).is_some() {
            self.push(id.index, frame);
        }
    }

    /// Sockets open now.
    pub fn socket_count(&self) -> usize {
        self.sockets.len()
    }

    /// Channels joined now.
    pub fn channel_count(&self) -> usize {
        self.channels.len()
    }

    /// Questions to the database that have no answer yet.
    pub fn asked_count(&self) -> usize {
        self.asked.len()
    }

    /// Topics known now: those with members here, and those whose presence is kept here.
    pub fn topic_count(&self) -> usize {
        self.topics.len()
    }

    /// Deadlines waiting now. Bounded by sockets, channels and waiting refusals, whatever clients do.
    pub fn timer_count(&self) -> usize {
        self.timers.len()
    }

    fn socket_mut(&mut self, id: SocketId) -> Option<&mut Socket> {
        self.sockets.get_mut(id.index as usize).filter(|socket| socket.generation == id.generation)
    }

    fn socket_id(&self, index: u32) -> SocketId {
        SocketId { index, generation: self.sockets[index as usize].generation }
    }

    /// The hub that keeps a topic's presence. Every hub computes the same.
    fn home_of(&self, domain: Domain, topic: &str) -> u16 {
        use std::hash::{Hash, Hasher};
        let mut hasher = rustc_hash::FxHasher::default();
        (domain, topic).hash(&mut hasher);
        (hasher.finish() % u64::from(self.config.hubs.max(1))) as u16
    }

    fn report(
        &mut self,
        code: OperationalCode,
        socket: u32,
        topic: Option<Arc<str>>,
        detail: impl Into<String>,
    ) {
        let socket = self.socket_id(socket);
        let mut detail = detail.into();
        detail.truncate(detail.floor_char_boundary(MAX_REPORTED_BYTES));
        let topic = topic.map(|name| match name.len() {
            0..=MAX_REPORTED_BYTES => name,
            _ => name[..name.floor_char_boundary(MAX_REPORTED_BYTES)].into(),
        });
        self.outputs.push_back(Output::Report(Report { code, socket, topic, detail }));
    }

    fn on_peer(&mut self, message: PeerMessage) {
        match message {
            PeerMessage::Publish { message, is_presence } => {
                if let Some(slot) = self.find_topic(message.domain(), message.topic()) {
                    self.deliver_to_members(slot, &message, None, is_presence);
                }
            }
            PeerMessage::Deliver { message, channels } => self.deliver_to_channels(&message, &channels),
            PeerMessage::System { channel, extension, ok, text } => {
                if let Some(&slot) = self.channel_slots.get(&channel) {
                    self.push_system(slot, extension, ok, &text);
                }
            }
            PeerMessage::Track { topic, owner, key, phx_ref, payload } => {
                self.track_here(&topic, owner, &key, &phx_ref, &payload);
            }
            PeerMessage::Untrack { topic, owner } => self.untrack_here(&topic, owner),
            PeerMessage::StateRequest { topic, channel } => self.answer_state(&topic, channel),
            PeerMessage::State { channel, payload } => self.push_state(channel, &payload),
            // Needs the time; handled where inputs arrive.
            PeerMessage::ShutDown { .. } => {}
        }
    }

    fn on_tick(&mut self, now: Now) {
        while let Some(timer) = self.timers.pop_due(now.mono_ms) {
            match timer {
                Timer::Idle(id) => self.on_idle_timer(now, id),
                Timer::NoChannel(id) => self.on_no_channel_timer(now, id),
                Timer::JoinRefusal { socket, frames, closes_socket } => {
                    self.on_refusal_timer(socket, frames, closes_socket);
                }
                Timer::TokenCheck(channel) => self.on_token_timer(now, channel),
            }
        }
    }
}
