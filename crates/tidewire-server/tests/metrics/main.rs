//! The numbers of `GET /metrics`, and the documents that are written from the code.
//!
//! A binary of its own, so that `./x codegen` can write the documents without PostgreSQL.

mod access;
mod generated;
mod numbers;
mod page;
