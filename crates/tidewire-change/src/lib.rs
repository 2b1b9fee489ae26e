//! Rows, typed values as JSON, and filters: one meaning on server and client; no I/O.
//!
//! This crate owns how the text output of PostgreSQL types becomes JSON ([`write_value`]), the filter
//! grammar of Postgres Changes ([`filter::parse`]), and which filters may be decided without asking
//! PostgreSQL ([`Predicate`]). It never talks to a database, reads no clock and starts no thread.
//!
//! It fails in two ways only: a filter that does not parse is a [`FilterError`] whose text official
//! clients see, and a value that does not look like its type is written as a JSON string. Bytes from
//! outside never panic and never produce invalid JSON.
//!
//! Spec: PROTOCOL.md §5.3 (filters), §5.9 (values).
#![forbid(unsafe_code)]

pub mod filter;
pub mod json;
mod literal;
pub mod predicate;
pub mod shape;
pub mod sql;

pub use filter::{Condition, FilterError, Operator};
pub use json::{write_string, write_value};
pub use predicate::{Decision, Predicate, TypeTraits};
pub use shape::{CompositeField, Shape};
