//! Supabase Realtime frames, WebSocket framing, topics, join payloads and operational codes; no I/O.
