//! A walsender session and the pgoutput decoder.
//!
//! Owns: one replication connection (startup, authentication, slot, streaming, status updates) and the
//! reading of pgoutput messages. May not: know sockets of clients, subscriptions, or JSON; decide what a
//! lost slot means to a subscriber. It reports positions ([`Lsn`]) and the owner decides what is safe to
//! confirm.
//!
//! Fails with [`StreamError`] (a fact about the session, with a stable code and a retry policy) or with
//! [`DecodeError`] (a message that is not pgoutput). Bytes from the server never panic this crate.
//!
//! ```text
//! open ──▶ connect ─▶ authenticate ─▶ check (version, wal_level, publications) ─▶ slot ─▶ START_REPLICATION
//!                                                                                           │
//!   owner ◀── WalRead ── WalStream (read half, buffer)          ◀──── XLogData, keepalive ──┤
//!   owner ──  confirm ─▶ positions (atomics) ─▶ status task (write half, timer) ── status ──▶
//! ```
//!
//! Spec: PostgreSQL, "Streaming Replication Protocol" and "Logical Replication Message Formats".
#![forbid(unsafe_code)]

mod error;
mod lsn;
pub mod pgoutput;
mod probe;
mod session;
mod slot;
mod status;
mod stream;

pub use error::{Retry, ServerError, StreamError};
pub use lsn::{Lsn, ParseLsnError};
pub use pgoutput::{
    Begin, Cell, Commit, DecodeError, Message, OldTuple, Relation, RelationColumn, ReplicaIdentity, Tuple,
    TypeName, decode,
};
pub use probe::{Prerequisites, SlotFacts, probe};
pub use slot::{Durability, SlotPolicy, Start};
pub use stream::{Confirmer, StreamConfig, WalData, WalRead, WalStream};
