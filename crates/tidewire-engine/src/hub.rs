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
mod surface;
mod token;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use rustc_hash::FxHashMap;
use slab::Slab;
use tidewire_presence::Presence;
use tidewire_protocol::codes::OperationalCode;

use crate::message::Domain;
use crate::now::Now;
use crate::outbox::Outbox;
use crate::random::Random;
use crate::timers::Timers;
pub use surface::{
    AccessRefusal, Answer, AskId, ChangeCommand, ChannelId, Credential, Drain, HubConfig, Input, Output,
    PeerMessage, Question, Replay, Report, SocketId, SocketInfo, StoredMessage, StoredPayload, TokenRefusal,
    TopicKey, VerifyToken,
};

use access::Asked;
use channel::Channel;
use socket::Socket;

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
