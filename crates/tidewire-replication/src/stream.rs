//! The change stream: settings, opening, reading.
//!
//! Owns the read half and its buffer; the write half belongs to the status task. It may not decode pgoutput
//! (the owner does, when it wants to) and holds no more than one buffer: when the owner stops reading, TCP
//! makes Postgres stop sending, and Postgres spills large transactions to its own disk.
//!
//! Fails with [`StreamError`]. After an error the stream is over: each further read returns an error too.
//!
//! Spec: PostgreSQL, "Streaming Replication Protocol"; DESIGN.md §3.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::message::backend::Message;
use tokio::io::AsyncReadExt;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::error::{Phase, StreamError, classify};
use crate::lsn::Lsn;
use crate::pgoutput::unix_us;
use crate::probe::Prerequisites;
use crate::session::{Frame, Purpose, ReadHalf, Session, server_error};
use crate::slot::{self, Durability, SlotPolicy, Start};
use crate::status::{Positions, StatusTask, Stop};

/// Size of one read and of the buffer at rest. Large enough for hundreds of changes per system call; a body
/// kept by the owner keeps its whole block alive, so much larger would waste memory.
const READ_BYTES: usize = 64 * 1024;

/// Below this much free space a new block is taken rather than reading in crumbs.
const LEAST_READ_BYTES: usize = 8 * 1024;

/// A row may have 1 GB in Postgres; one that large would take several times that here.
const DEFAULT_MAX_MESSAGE_BYTES: usize = 256 * 1024 * 1024;

/// How long saying goodbye may take before the connection is simply dropped.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// tag, length, `w`, start, end, time
const XLOG_DATA_BYTES: usize = 5 + 25;
/// tag, length, `k`, end, time, reply requested
const KEEPALIVE_BYTES: usize = 5 + 18;

/// Settings of a change stream.
#[derive(Debug, Clone)]
pub struct StreamConfig {
    /// Host (TCP or Unix socket folder), port, user, password, database.
    pub postgres: tokio_postgres::Config,
    /// Name of the slot: 1 to 63 of `a-z`, `0-9`, `_`.
    pub slot: String,
    /// Publications to stream; at least one.
    pub publications: Vec<String>,
    /// Time between status updates. Shortened where `wal_sender_timeout` is so short that it would be missed.
    pub status_interval: Duration,
    /// Bound for connecting and authenticating, per host.
    pub connect_timeout: Duration,
    /// How long making a slot may wait for each transaction that was already writing.
    pub slot_timeout: Duration,
    /// Bound for one message of the server, and so for the memory of one read.
    pub max_message_bytes: usize,
}

impl StreamConfig {
    /// Settings with the defaults: status every 5 s, 10 s to connect, 30 s for a slot, 256 MiB per message.
    #[must_use]
    pub fn new(
        postgres: tokio_postgres::Config,
        slot: impl Into<String>,
        publications: Vec<String>,
    ) -> StreamConfig {
        StreamConfig {
            postgres,
            slot: slot.into(),
            publications,
            status_interval: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(10),
            slot_timeout: Duration::from_secs(30),
            max_message_bytes: DEFAULT_MAX_MESSAGE_BYTES,
        }
    }

    pub(crate) fn validate(&self) -> Result<(), StreamError> {
        let problem = if !is_slot_name(&self.slot) {
            "the slot name must have 1 to 63 characters of a-z, 0-9 and _"
        } else if self.publications.is_empty() {
            "no publication is given"
        } else if self.status_interval.is_zero() {
            "the status interval is zero"
        } else {
            return Ok(());
        };
        Err(StreamError::InvalidConfig(problem.to_owned()))
    }
}

fn is_slot_name(name: &str) -> bool {
    (1..=63).contains(&name.len()) && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'))
}

/// One piece of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WalRead {
    /// One message of the output plugin.
    Data(WalData),
    /// Everything up to here has been sent: the log went on with nothing for us. If all that was read before is
    /// safe, this position may be confirmed, so that an idle slot does not keep log.
    Idle(Lsn),
}

/// One XLogData message.
#[derive(Clone, PartialEq, Eq)]
pub struct WalData {
    /// Position of the change in the log. Begin and changes carry the position of their own record, which may be
    /// behind what was read before; commits are in order.
    pub start: Lsn,
    /// For logical decoding Postgres sends the same value as `start`.
    pub end: Lsn,
    /// When the server sent it, microseconds since 1970-01-01 UTC.
    pub sent_unix_us: i64,
    /// The pgoutput message; see [`decode`](crate::decode). A view into the read buffer: keeping it keeps the
    /// block of at least 64 KiB around it alive.
    pub body: Bytes,
}

/// Shows the length of the body only: rows must not end up in a log.
impl fmt::Debug for WalData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WalData")
            .field("start", &self.start)
            .field("end", &self.end)
            .field("sent_unix_us", &self.sent_unix_us)
            .field("body_bytes", &self.body.len())
            .finish()
    }
}

/// Confirms positions from another task than the one that reads.
#[derive(Debug, Clone)]
pub struct Confirmer(Arc<Positions>);

impl Confirmer {
    /// The same as [`WalStream::confirm`].
    pub fn confirm(&self, lsn: Lsn) {
        self.0.confirm(lsn);
    }
}

/// A running change stream. Dropping it closes the connection.
pub struct WalStream {
    read: ReadHalf,
    buffer: BytesMut,
    max_message_bytes: usize,
    positions: Arc<Positions>,
    started_at: Lsn,
    durability: Durability,
    stop: Stop,
    status: JoinHandle<()>,
}

impl fmt::Debug for WalStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WalStream")
            .field("started_at", &self.started_at)
            .field("durability", &self.durability)
            .finish_non_exhaustive()
    }
}

impl WalStream {
    /// Connects, checks the prerequisites, makes or reuses the slot, and starts streaming whole transactions in
    /// commit order.
    ///
    /// Making a slot waits for transactions that were already writing, at most `slot_timeout` for each.
    ///
    /// # Errors
    /// Any [`StreamError`]; nothing is left behind but, possibly, a durable slot that was just made.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection; a durable slot may have been made.
    pub async fn open(
        config: &StreamConfig,
        policy: SlotPolicy,
        start: Start,
    ) -> Result<WalStream, StreamError> {
        config.validate()?;
        let mut session = Session::connect(config, Purpose::Replication).await?;
        let facts = Prerequisites::read(&mut session, config).await?;
        // Before streaming, because a missing publication would show up only at the first change.
        facts.require()?;
        let ready = slot::prepare(&mut session, &facts, config, policy, start).await?;
        session.start_streaming(&start_command(config, ready.from)).await?;

        let (read, write, buffer) = session.into_parts();
        let positions = Arc::new(Positions::starting_at(ready.from));
        let (stop, stopped) = oneshot::channel();
        let interval = status_interval(config.status_interval, facts.wal_sender_timeout_ms);
        let task = StatusTask { write, positions: Arc::clone(&positions), interval, stop: stopped };
        tracing::info!(slot = config.slot, from = %ready.from, durability = ?ready.durability, "change stream started");
        Ok(WalStream {
            read,
            buffer,
            max_message_bytes: config.max_message_bytes,
            positions,
            started_at: ready.from,
            durability: ready.durability,
            stop,
            status: tokio::spawn(task.run()),
        })
    }

    /// The position after which changes are sent.
    #[must_use]
    pub fn started_at(&self) -> Lsn {
        self.started_at
    }

    /// Whether the slot outlives this stream.
    #[must_use]
    pub fn durability(&self) -> Durability {
        self.durability
    }

    /// Waits for the next piece of the log. Keepalives that ask for an answer are answered on the way.
    ///
    /// # Errors
    /// [`StreamError::Interrupted`] when the connection ended, or what the server reported.
    ///
    /// # Cancel safety
    /// Cancel-safe: nothing that was received is lost.
    pub async fn read(&mut self) -> Result<WalRead, StreamError> {
        loop {
            if let Some(read) = self.take()? {
                return Ok(read);
            }
            self.fill().await?;
        }
    }

    /// What is already received, without waiting. `None` when nothing is complete, and also when the next thing
    /// is an error, which [`WalStream::read`] then returns.
    pub fn read_buffered(&mut self) -> Option<WalRead> {
        self.take().ok().flatten()
    }

    /// Tells Postgres, at the next status update, that everything up to `lsn` is safe and need not be sent again.
    /// Positions only rise; one that was never received is held back until it is.
    ///
    /// Confirm the `end_lsn` of a [`Commit`](crate::Commit) or the position of a [`WalRead::Idle`].
    pub fn confirm(&self, lsn: Lsn) {
        self.positions.confirm(lsn);
    }

    /// A handle that confirms from elsewhere.
    #[must_use]
    pub fn confirmer(&self) -> Confirmer {
        Confirmer(Arc::clone(&self.positions))
    }

    /// Reports the confirmed position a last time and ends the session. A temporary slot is gone when this
    /// returns, unless the server did not answer within five seconds.
    pub async fn close(self) {
        let WalStream { mut read, stop, status, .. } = self;
        let goodbye = async move {
            // The task may have ended before us, with a broken connection.
            if stop.send(()).is_err() {
                return;
            }
            // What is still under way must be read, or the server could not get to our goodbye.
            let mut rest = vec![0; READ_BYTES];
            while matches!(read.read(&mut rest).await, Ok(1..)) {}
        };
        if tokio::time::timeout(CLOSE_TIMEOUT, goodbye).await.is_err() {
            tracing::warn!("the database did not end the replication session in time");
        }
        status.abort();
    }

    /// Takes one piece from the buffer. An error consumes nothing, so that it stays what is next.
    fn take(&mut self) -> Result<Option<WalRead>, StreamError> {
        // Several keepalives in a row say no more than the last one.
        let mut idle = None;
        loop {
            let frame = match Frame::peek(&self.buffer, self.max_message_bytes) {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ok(idle.map(WalRead::Idle)),
                Err(_) if idle.is_some() => return Ok(idle.map(WalRead::Idle)),
                Err(error) => return Err(error),
            };
            match (frame.tag, self.buffer.get(5)) {
                (b'd', Some(b'k')) if frame.total_bytes == KEEPALIVE_BYTES => {
                    let mut keepalive = self.buffer.split_to(frame.total_bytes);
                    keepalive.advance(6);
                    let end = Lsn(keepalive.get_u64());
                    let _sent = keepalive.get_i64();
                    if self.positions.receive(end) {
                        idle = Some(end);
                    }
                    if keepalive.get_u8() != 0 {
                        self.positions.answer.notify_one();
                    }
                }
                // Notices, parameter changes, notifications.
                (b'N' | b'S' | b'A', _) => self.buffer.advance(frame.total_bytes),
                _ if idle.is_some() => return Ok(idle.map(WalRead::Idle)),
                (b'd', Some(b'w')) if frame.total_bytes >= XLOG_DATA_BYTES => {
                    return Ok(Some(WalRead::Data(self.take_data(frame))));
                }
                _ => return Err(self.refuse(frame)),
            }
        }
    }

    fn take_data(&mut self, frame: Frame) -> WalData {
        let mut body = self.buffer.split_to(frame.total_bytes).freeze();
        if frame.total_bytes > 4 * READ_BYTES {
            // The rest shares the block of a very large message; move away, or that block stays for good.
            let mut fresh = BytesMut::with_capacity(READ_BYTES.max(self.buffer.len()));
            fresh.extend_from_slice(&self.buffer);
            self.buffer = fresh;
        }
        body.advance(6);
        let (start, end) = (Lsn(body.get_u64()), Lsn(body.get_u64()));
        let sent_unix_us = unix_us(body.get_i64());
        self.positions.receive(end);
        WalData { start, end, sent_unix_us, body }
    }

    /// The error that a message stands for which does not belong into a running stream.
    fn refuse(&self, frame: Frame) -> StreamError {
        match frame.tag {
            b'E' => {
                let mut copy = BytesMut::from(&self.buffer[..frame.total_bytes]);
                match Message::parse(&mut copy) {
                    Ok(Some(Message::ErrorResponse(body))) => match server_error(body.fields()) {
                        Ok(error) => classify(error, Phase::Streaming),
                        Err(error) => error,
                    },
                    _ => StreamError::Protocol("malformed error".to_owned()),
                }
            }
            // CopyDone or CommandComplete: the server ends the stream, which it does when it shuts down.
            b'c' | b'C' => StreamError::Interrupted {
                source: io::Error::new(io::ErrorKind::ConnectionAborted, "the server ended the stream"),
            },
            tag => StreamError::Protocol(format!("unexpected message {tag:#04x} in the change stream")),
        }
    }

    /// Reads more bytes. Cancel-safe: `read_buf` puts what it read into the buffer or has read nothing.
    async fn fill(&mut self) -> Result<(), StreamError> {
        let missing = Frame::announced(&self.buffer, self.max_message_bytes)?
            .map_or(0, |frame| frame.total_bytes.saturating_sub(self.buffer.len()));
        let free = self.buffer.capacity() - self.buffer.len();
        if free < missing || free < LEAST_READ_BYTES {
            self.buffer.reserve(missing.max(READ_BYTES));
        }
        let read = self.read.read_buf(&mut self.buffer).await;
        match read.map_err(|source| StreamError::Interrupted { source })? {
            0 => Err(StreamError::Interrupted { source: io::ErrorKind::UnexpectedEof.into() }),
            _ => Ok(()),
        }
    }
}

/// A third of the server's patience, if that is shorter than the settings: one lost wakeup must not end us.
fn status_interval(configured: Duration, wal_sender_timeout_ms: i64) -> Duration {
    match u64::try_from(wal_sender_timeout_ms) {
        Ok(0) | Err(_) => configured,
        Ok(timeout_ms) => configured.min(Duration::from_millis((timeout_ms / 3).max(10))),
    }
}

/// `proto_version '1'`: whole transactions after their commit. The names are quoted twice: as identifiers in
/// a list, and that list as a literal of the replication grammar, which has no escapes but the doubled quote.
fn start_command(config: &StreamConfig, from: Lsn) -> String {
    let names: Vec<String> =
        config.publications.iter().map(|name| format!("\"{}\"", name.replace('"', "\"\""))).collect();
    format!(
        "START_REPLICATION SLOT \"{}\" LOGICAL {from} (proto_version '1', publication_names '{}')",
        config.slot,
        names.join(",").replace('\'', "''"),
    )
}

#[cfg(test)]
mod tests;
