//! Rows, typed values as JSON, and filters: one meaning on server and client; no I/O.
