//! Standby status updates: the task that owns the write half, and the positions it reports.
//!
//! Owns the write half and the timer, so that a reader that pauses for minutes still looks alive to Postgres.
//! It may not read from the connection. When writing fails it ends quietly; the read half meets the same
//! broken connection and reports it.
//!
//! Two messages go out each time. The first carries the confirmed position and moves the slot. The second
//! leaves the flushed position out (`0/0` does not move a slot), because a walsender that is told to shut down
//! waits until the last flushed position it heard equals what it sent, or, where that is absent, the written
//! one. Our confirmed position trails on purpose by the resume window: reporting it alone would keep Postgres
//! from ever stopping, and with `synchronous_standby_names = '*'` would hold every commit back for as long.
//!
//! Spec: PostgreSQL, "Streaming Replication Protocol", Standby status update; DESIGN.md §3.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{BufMut, BytesMut};
use postgres_protocol::message::frontend;
use tokio::io::AsyncWriteExt;
use tokio::sync::{Notify, oneshot};
use tokio::time::MissedTickBehavior;

use crate::lsn::Lsn;
use crate::pgoutput::unix_us;
use crate::session::WriteHalf;

/// What reader, owner and status task share.
#[derive(Debug)]
pub(crate) struct Positions {
    /// Read from the connection.
    received: AtomicU64,
    /// Safe downstream.
    confirmed: AtomicU64,
    /// An answer was requested.
    pub(crate) answer: Notify,
}

impl Positions {
    pub(crate) fn starting_at(lsn: Lsn) -> Positions {
        Positions { received: lsn.0.into(), confirmed: lsn.0.into(), answer: Notify::new() }
    }

    /// Raises the received position; returns whether it rose.
    pub(crate) fn receive(&self, lsn: Lsn) -> bool {
        self.received.fetch_max(lsn.0, Ordering::AcqRel) < lsn.0
    }

    pub(crate) fn confirm(&self, lsn: Lsn) {
        self.confirmed.fetch_max(lsn.0, Ordering::AcqRel);
    }

    /// Written and flushed position to report. What was never received cannot be confirmed: reporting it would
    /// make Postgres forget changes nobody saw.
    fn report(&self) -> (Lsn, Lsn) {
        let confirmed = self.confirmed.load(Ordering::Acquire);
        let received = self.received.load(Ordering::Acquire);
        (Lsn(received), Lsn(confirmed.min(received)))
    }
}

/// Asks the task to say goodbye. Dropping it makes the task close the connection without a word.
pub(crate) type Stop = oneshot::Sender<()>;

pub(crate) struct StatusTask {
    pub(crate) write: WriteHalf,
    pub(crate) positions: Arc<Positions>,
    pub(crate) interval: Duration,
    pub(crate) stop: oneshot::Receiver<()>,
}

impl StatusTask {
    pub(crate) async fn run(mut self) {
        let mut timer = tokio::time::interval(self.interval);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut out = BytesMut::with_capacity(128);
        loop {
            let is_last = tokio::select! {
                biased;
                // Stopping first: nothing else matters any more.
                stop = &mut self.stop => match stop {
                    Ok(()) => true,
                    Err(_) => return,
                },
                // An answer is urgent: the server counts down to disconnecting us.
                () = self.positions.answer.notified() => false,
                _ = timer.tick() => false,
            };
            let (written, flushed) = self.positions.report();
            put_status(&mut out, written, flushed);
            put_status(&mut out, written, Lsn::ZERO);
            if is_last {
                frontend::copy_done(&mut out);
                frontend::terminate(&mut out);
            }
            if let Err(error) = self.write(&mut out, is_last).await {
                tracing::debug!(error = &error as &dyn std::error::Error, "status update not sent");
                return;
            }
            if is_last {
                return;
            }
        }
    }

    /// Writes all, unless the stream is dropped meanwhile: a peer that reads nothing must not keep us.
    async fn write(&mut self, out: &mut BytesMut, is_last: bool) -> io::Result<()> {
        if is_last {
            self.write.write_all_buf(out).await?;
            return self.write.flush().await;
        }
        tokio::select! {
            biased;
            stop = &mut self.stop => {
                drop(stop);
                Err(io::Error::new(io::ErrorKind::Interrupted, "the stream was closed while a status was being sent"))
            }
            written = self.write.write_all_buf(out) => written,
        }
    }
}

/// Appends one Standby status update inside CopyData.
fn put_status(out: &mut BytesMut, written: Lsn, flushed: Lsn) {
    const BODY_BYTES: u32 = 1 + 8 + 8 + 8 + 8 + 1;
    out.put_u8(b'd');
    out.put_u32(4 + BODY_BYTES);
    out.put_u8(b'r');
    out.put_u64(written.0);
    out.put_u64(flushed.0);
    // Applied: a flushed change is an applied one here.
    out.put_u64(flushed.0);
    out.put_i64(postgres_now_us());
    // We never ask for an answer; see the keepalive constants of the session.
    out.put_u8(0);
}

fn postgres_now_us() -> i64 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(unix.as_micros()).unwrap_or(i64::MAX).saturating_sub(unix_us(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn confirmed_positions_rise_and_never_pass_what_was_received() {
        let positions = Positions::starting_at(Lsn(100));
        assert_eq!(positions.report(), (Lsn(100), Lsn(100)));
        positions.confirm(Lsn(50));
        assert_eq!(positions.report(), (Lsn(100), Lsn(100)));
        positions.confirm(Lsn(300));
        assert_eq!(positions.report(), (Lsn(100), Lsn(100)));
        assert!(positions.receive(Lsn(200)));
        assert!(!positions.receive(Lsn(150)));
        assert_eq!(positions.report(), (Lsn(200), Lsn(200)));
        positions.receive(Lsn(400));
        assert_eq!(positions.report(), (Lsn(400), Lsn(300)));
    }

    #[test]
    fn a_status_update_is_laid_out_as_documented() {
        let mut out = BytesMut::new();
        put_status(&mut out, Lsn(0x0102_0304_0506_0708), Lsn(9));
        assert_eq!(out.len(), 1 + 4 + 34);
        assert_eq!(out[..14], [b'd', 0, 0, 0, 38, b'r', 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(out[14..30], [0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 9]);
        assert_eq!(out[38], 0);
    }
}
