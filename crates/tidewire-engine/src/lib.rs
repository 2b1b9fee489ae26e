//! The server's decisions: sockets, channels, fan-out, subscriptions; no I/O.
