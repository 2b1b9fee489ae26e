//! The whole server against a real Postgres, seen by raw clients.
//!
//! Each test has a cluster of its own: slots, roles and restarts concern all of it. Spec: PROTOCOL.md §5.

mod start;
