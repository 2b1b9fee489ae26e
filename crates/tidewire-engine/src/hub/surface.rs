//! What goes into a hub and what comes out: closed enums and plain data, no behaviour.

use std::sync::Arc;

use bytes::Bytes;
use tidewire_protocol::codes::OperationalCode;
use tidewire_protocol::frame::Version;
use tidewire_protocol::join::Binding;

use crate::message::{Domain, Message};
use crate::now::Now;
use crate::rate::Rates;

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
    pub(super) index: u32,
    pub(super) serial: u32,
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
