//! Presence state and diffs of one topic; no I/O.
