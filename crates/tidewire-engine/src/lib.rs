//! The server's decisions, without I/O.
//!
//! A [`Hub`] owns a set of sockets and their channels: one hub per event loop. It is told what happened
//! ([`Input`]) and when ([`Now`]), appends encoded frames to the outboxes of the sockets concerned, and
//! says what only the outside can do ([`Output`]). [`Subscriptions`] decides which row changes go to
//! which channels. Nothing here owns a socket, a clock, a thread or a random source, and nothing here
//! knows Tokio.
//!
//! Hubs talk to each other through [`PeerMessage`]s, which the driver carries in order.

#![forbid(unsafe_code)]

mod hub;
mod message;
mod now;
mod outbox;
mod random;
mod rate;
mod subscriptions;
mod timers;

pub use hub::{
    AccessRefusal, Answer, AskId, ChangeCommand, ChannelId, Credential, Drain, Hub, HubConfig, Input, Output,
    PeerMessage, Question, Replay, Report, SocketId, SocketInfo, StoredMessage, StoredPayload, TokenRefusal,
    TopicKey, VerifyToken,
};
pub use message::{Body, Domain, Message};
pub use now::Now;
pub use outbox::{Outbox, Overflow};
pub use rate::{RateCounter, Rates, TICK_MS};
pub use subscriptions::{
    Action, ActionSet, Group, GroupId, GroupKey, Match, Member, Subscriptions, TableId, Test, Value,
};
