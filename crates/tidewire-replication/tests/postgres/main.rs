//! The crate against a real PostgreSQL, one private cluster per test.

#![expect(clippy::unwrap_used, reason = "a test helper that cannot go on fails its test")]

mod changes;
mod login;
mod refusals;
mod resume;
mod streaming;
mod support;
