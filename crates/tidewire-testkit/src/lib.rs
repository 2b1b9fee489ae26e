//! What system tests stand on: a raw Phoenix client, a prepared Postgres, a server in this process.
//!
//! For tests only: nothing of the product may depend on this crate, and everything here panics with a
//! sentence instead of returning an error. It decides nothing about the protocol: the client sends what it
//! is told and shows what it got, so that a test can see a wrong frame.
//!
//! | room | gives |
//! | --- | --- |
//! | [`client`] | a WebSocket client of the Phoenix protocol, frames V1 and V2 |
//! | [`postgres`] | a private cluster with the roles, schemas and publication of `tidewire dev` |
//! | [`server`] | a server on a free port with short timers |
//! | [`token`] | signed tokens |
//!
//! Waiting is always for a fact and always has an end, [`DEADLINE`]. `TIDEWIRE_LOG=debug` shows what the
//! server logs.

use std::time::Duration;

pub mod client;
pub mod postgres;
pub mod server;
pub mod token;

pub use client::{Client, Frame};
pub use postgres::Postgres;
pub use server::{TestServer, config};

/// How long any fact is waited for. Far above what anything takes on a loaded machine; what ends here fails.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Waits until a question is answered with something.
///
/// # Panics
/// If it is not within [`DEADLINE`].
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, ask: impl Fn() -> F) -> T {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(tokio::time::Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Shows logs on standard error where `TIDEWIRE_LOG` asks for them.
pub(crate) fn show_logs() {
    if let Ok(filter) = std::env::var("TIDEWIRE_LOG") {
        // A second test of the same process finds it done.
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
            .with_writer(std::io::stderr)
            .try_init();
    }
}
