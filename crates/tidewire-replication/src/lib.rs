//! A walsender session and the pgoutput decoder.
