//! Specification of the wire, level 1 and 2: literal vectors, tables of malformed input, properties.
#![expect(clippy::unwrap_used, reason = "clippy forgives only #[test] functions, not their helpers")]

mod frames;
mod join;
mod malformed;
mod properties;
mod vectors;
mod websocket;
