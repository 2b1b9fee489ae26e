//! A private PostgreSQL in a folder of one's own: found, initialised, started, stopped.
