//! Supabase Realtime frames, WebSocket framing, topics, join payloads and operational codes; no I/O.
//!
//! This crate owns the bytes: what a frame looks like on the wire, in both directions and both versions, and
//! which names and numbers clients and operators see. It may not touch sockets, clocks, threads or randomness,
//! and it decides nothing: who may join, who receives, when to close are questions for the engine.
//!
//! It fails by returning a small error that says what was wrong with foreign bytes. It never panics on them and
//! never allocates more than a small multiple of what actually arrived.
//!
//! | module | owns | Spec |
//! | --- | --- | --- |
//! | [`frame`] | Phoenix frames: V1 and V2 text, binary kinds 0 to 4 | PROTOCOL.md §1.4, §1.5 |
//! | [`websocket`] | RFC 6455 framing | PROTOCOL.md §1.2 |
//! | [`topic`] | the `realtime:` prefix | PROTOCOL.md §2.1 |
//! | [`join`] | join payload, bindings, tokens, `system` payload | PROTOCOL.md §2.2, §2.3, §2.7, §5.2 |
//! | [`codes`] | operational codes and WebSocket close codes | PROTOCOL.md §7.4 |
//! | [`json`] | writing JSON strings, reading a few keys of an object | |
#![forbid(unsafe_code)]

pub mod codes;
pub mod frame;
pub mod join;
pub mod json;
pub mod topic;
pub mod websocket;
