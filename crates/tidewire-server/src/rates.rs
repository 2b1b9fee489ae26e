//! The pace of the rate counters: the engine counts, this room says when a tick is over.

use std::sync::Arc;
use std::time::Duration;

use tidewire_engine::{Rates, TICK_MS};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// Ticks until `shutdown`.
pub(crate) async fn run(rates: Arc<Rates>, shutdown: CancellationToken) {
    let mut tick = interval(Duration::from_millis(TICK_MS));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first comes at once; the start is a tick already (`PROTOCOL.md` §7.1).
    tick.tick().await;
    while shutdown.run_until_cancelled(tick.tick()).await.is_some() {
        rates.tick();
    }
}
