//! Tokens, claims, and what row-level security lets a subscriber see.
