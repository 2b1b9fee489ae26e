//! The loop of one shard.

use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mio::{Events, Interest, Poll, Token};
use tidewire_engine::{Hub, HubConfig, Input, Now, Output, SocketId, VerifyToken};
use tidewire_protocol::codes::CLOSE_NORMAL;
use tidewire_protocol::websocket::{self, Decoder, Event, Opcode, Role};

use super::connection::Connection;
use super::inbox::{INBOX, Inbox};
use super::reports::Reports;
use super::{Handoff, ShardMessage, Shards};
use crate::access::Access;
use crate::changes::ChangeSender;
use crate::metrics::ShardMeter;

/// Bytes read from one socket before the next one has its turn. Larger starves the others, smaller costs
/// system calls.
const READ_BUDGET: usize = 64 * 1024;

/// Frames of one vectored write; the kernel takes at most 1,024. Beyond 64 nothing is gained: 16 frames
/// already cost 0.3 µs each (measured on the machine of `bench/README.md`).
const SLICES: usize = 64;

/// How long a connection that was told to close may take to read its close frame.
const LINGER: Duration = Duration::from_secs(2);

pub(super) struct EventLoop {
    hub: Hub,
    hub_number: u16,
    max_message_bytes: usize,
    poll: Poll,
    shards: Shards,
    changes: ChangeSender,
    access: Access,
    /// By the index of the hub's socket id.
    connections: Vec<Option<Connection>>,
    /// Sockets that have bytes to read.
    ready: VecDeque<SocketId>,
    /// Sockets told to close, with the moment at which they are dropped.
    lingering: VecDeque<(u64, SocketId)>,
    scratch: Box<[u8]>,
    dirty: Vec<SocketId>,
    batch: Vec<ShardMessage>,
    reports: Reports,
    meter: ShardMeter,
    started: Instant,
    is_stopping: bool,
}

impl EventLoop {
    pub(super) fn new(
        config: HubConfig,
        poll: Poll,
        shards: Shards,
        verifier: Arc<dyn VerifyToken>,
        changes: ChangeSender,
        access: Access,
    ) -> Self {
        Self {
            hub_number: config.hub,
            max_message_bytes: config.max_message_bytes,
            meter: ShardMeter::new(Arc::clone(shards.metrics()), config.hub),
            hub: Hub::new(config, verifier),
            poll,
            shards,
            changes,
            access,
            connections: Vec::new(),
            ready: VecDeque::new(),
            lingering: VecDeque::new(),
            scratch: vec![0; READ_BUDGET].into_boxed_slice(),
            dirty: Vec::new(),
            batch: Vec::new(),
            reports: Reports::default(),
            started: Instant::now(),
            is_stopping: false,
        }
    }

    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        while !(self.is_stopping && self.connections.iter().all(Option::is_none)) {
            let timeout = self.timeout();
            if let Err(error) = self.poll.poll(&mut events, timeout)
                && error.kind() != ErrorKind::Interrupted
            {
                tracing::error!(%error, "the poller failed; this shard stops");
                return;
            }
            self.turn(&events);
        }
    }

    fn now(&self) -> Now {
        let wall_ms =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        Now { mono_ms: self.started.elapsed().as_millis() as u64, wall_ms }
    }

    /// Until the next deadline; not at all when sockets wait to be read.
    fn timeout(&self) -> Option<Duration> {
        let now = self.started.elapsed().as_millis() as u64;
        if !self.ready.is_empty() {
            // Readable sockets are held back only while another shard is behind.
            return Some(if self.must_wait() { Duration::from_millis(1) } else { Duration::ZERO });
        }
        let linger = self.lingering.front().map(|(at, _)| *at);
        let next = [self.hub.poll_deadline(), linger].into_iter().flatten().min()?;
        Some(Duration::from_millis(next.saturating_sub(now)))
    }

    fn must_wait(&self) -> bool {
        self.shards.is_congested() || self.changes.is_congested()
    }

    fn turn(&mut self, events: &Events) {
        let now = self.now();
        self.drain_inbox(now);
        for event in events {
            if event.token() == INBOX {
                continue;
            }
            let index = event.token().0;
            let Some(Some(connection)) = self.connections.get_mut(index) else { continue };
            if event.is_writable() && connection.is_blocked {
                connection.is_blocked = false;
                let id = connection.id;
                self.meter.unblocked(id.index);
                self.flush(now, id);
            }
            let Some(Some(connection)) = self.connections.get_mut(index) else { continue };
            connection.is_read_closed |= event.is_read_closed() || event.is_error();
            if (event.is_readable() || connection.is_read_closed) && !connection.is_ready {
                connection.is_ready = true;
                self.ready.push_back(connection.id);
            }
        }
        if !self.must_wait() {
            for _ in 0..self.ready.len() {
                let Some(id) = self.ready.pop_front() else { break };
                self.read(now, id);
            }
        }
        if self.hub.poll_deadline().is_some_and(|at| at <= now.mono_ms) {
            self.hub.handle(now, Input::Tick);
        }
        while let Some(&(at, id)) = self.lingering.front() {
            if at > now.mono_ms {
                break;
            }
            self.lingering.pop_front();
            self.drop_connection(now, id);
        }
        self.settle(now);
        self.meter.publish(&self.hub);
    }

    /// Ends the turn: carries out what the hub wants and writes what it has to say. A write can find a
    /// connection dead, whose end is more for the hub to say; each round but the last drops one, so this ends.
    fn settle(&mut self, now: Now) {
        let mut dirty = std::mem::take(&mut self.dirty);
        loop {
            self.drain_outputs(now);
            self.hub.finish_turn();
            self.drain_outputs(now);
            self.hub.take_dirty(&mut dirty);
            if dirty.is_empty() {
                break;
            }
            for id in dirty.drain(..) {
                self.flush(now, id);
            }
        }
        self.dirty = dirty;
    }

    fn inbox(&self) -> Arc<Inbox> {
        Arc::clone(&self.shards.inboxes[usize::from(self.hub_number)])
    }

    fn drain_inbox(&mut self, now: Now) {
        let mut batch = std::mem::take(&mut self.batch);
        self.inbox().take(&mut batch);
        for message in batch.drain(..) {
            match message {
                ShardMessage::Adopt(handoff) => self.adopt(now, *handoff),
                ShardMessage::Peer(message) => self.hub.handle(now, Input::Peer(message)),
                ShardMessage::Answer(id, answer) => {
                    self.meter.answered(id);
                    self.hub.handle(now, Input::Answered(id, answer));
                }
                ShardMessage::Drain(step) => self.hub.handle(now, Input::Drain(step)),
                ShardMessage::Stop => self.is_stopping = true,
            }
        }
        // A burst must not keep its memory for ever.
        if batch.capacity() > 16_384 {
            batch = Vec::new();
        }
        self.batch = batch;
    }

    fn adopt(&mut self, now: Now, handoff: Handoff) {
        let id = self.hub.open(now, handoff.info);
        let index = id.index as usize;
        let mut stream = mio::net::TcpStream::from_std(handoff.stream);
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self.poll.registry().register(&mut stream, Token(index), interest) {
            tracing::warn!(%error, "cannot watch a connection");
            self.hub.handle(now, Input::Closed(id));
            self.inbox().forget_connection();
            return;
        }
        if self.connections.len() <= index {
            self.connections.resize_with(index + 1, || None);
        }
        self.connections[index] = Some(Connection {
            id,
            stream,
            decoder: Decoder::new(Role::Server, self.max_message_bytes),
            partial: handoff.early.to_vec(),
            is_blocked: false,
            // Read at once: bytes may have arrived before the socket was registered.
            is_ready: true,
            is_read_closed: false,
            is_closing: false,
            is_shut_down: false,
            _permit: handoff.permit,
        });
        self.ready.push_back(id);
    }

    fn connection(&mut self, id: SocketId) -> Option<&mut Connection> {
        self.connections.get_mut(id.index as usize)?.as_mut().filter(|connection| connection.id == id)
    }

    /// Reads up to the budget and feeds every complete frame to the hub.
    fn read(&mut self, now: Now, id: SocketId) {
        let mut scratch = std::mem::take(&mut self.scratch);
        let Some(connection) = self.connection(id) else {
            self.scratch = scratch;
            return;
        };
        connection.is_ready = false;
        let mut partial = std::mem::take(&mut connection.partial);
        let outcome = connection.stream.read(&mut scratch);
        let ended = match outcome {
            Ok(0) => true,
            Ok(count) => {
                self.meter.read(count);
                if partial.is_empty() {
                    // The usual case: whole frames, fed from the scratch buffer without a copy.
                    if let Some(used) = self.feed(now, id, &mut scratch[..count]) {
                        partial.extend_from_slice(&scratch[used..count]);
                    }
                } else {
                    partial.extend_from_slice(&scratch[..count]);
                    self.feed_partial(now, id, &mut partial);
                }
                if let Some(connection) = self.connection(id) {
                    connection.partial = partial;
                    // Edge-triggered: a full buffer means that there may be more. A short read has taken
                    // all there was, and whatever comes later is a new event, unless the peer's end had
                    // been announced already.
                    if count == scratch.len() || connection.is_read_closed {
                        connection.is_ready = true;
                        self.ready.push_back(id);
                    }
                }
                false
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                // Bytes that came with the handshake may hold complete frames.
                if !partial.is_empty() {
                    self.feed_partial(now, id, &mut partial);
                    if let Some(connection) = self.connection(id) {
                        connection.partial = partial;
                    }
                }
                false
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {
                connection.partial = partial;
                connection.is_ready = true;
                self.ready.push_back(id);
                false
            }
            Err(_) => true,
        };
        self.scratch = scratch;
        if ended {
            self.drop_connection(now, id);
        }
    }

    /// Feeds what a connection has kept and keeps the rest.
    fn feed_partial(&mut self, now: Now, id: SocketId, partial: &mut Vec<u8>) {
        match self.feed(now, id, partial) {
            Some(used) if used == partial.len() => *partial = Vec::new(),
            Some(used) => drop(partial.drain(..used)),
            None => *partial = Vec::new(),
        }
    }

    /// Decodes frames from the start of `buffer`. Returns the bytes used; `None` when the rest is of no
    /// interest because the socket is ending.
    fn feed(&mut self, now: Now, id: SocketId, buffer: &mut [u8]) -> Option<usize> {
        let mut used = 0;
        loop {
            let connection = self.connections.get_mut(id.index as usize)?.as_mut()?;
            if connection.is_closing {
                return None;
            }
            match connection.decoder.decode(&mut buffer[used..]) {
                Ok(None) => return Some(used),
                Ok(Some(decoded)) => {
                    used += decoded.consumed;
                    match decoded.event {
                        Event::Text(bytes) => self.hub.handle(now, Input::Text(id, bytes)),
                        Event::Binary(bytes) => self.hub.handle(now, Input::Binary(id, bytes)),
                        Event::Ping(bytes) => {
                            let pong = websocket::frame(Opcode::Pong, bytes);
                            self.hub.handle(now, Input::Alive(id));
                            self.hub.push_raw(id, pong);
                        }
                        Event::Pong(_) => self.hub.handle(now, Input::Alive(id)),
                        Event::Fragment => {}
                        Event::Close { code, .. } => {
                            self.hub.close_socket(id, code.unwrap_or(CLOSE_NORMAL), "");
                        }
                    }
                }
                Err(violation) => self.hub.close_socket(id, violation.code, violation.reason),
            }
            // `Disconnect` marks the connection as closing, which ends this loop.
            self.drain_outputs(now);
        }
    }

    fn drain_outputs(&mut self, now: Now) {
        while let Some(output) = self.hub.poll_output() {
            match output {
                Output::Peer(hub, message) => self.shards.send(hub, message),
                Output::Peers(message) => self.shards.send_to_others(self.hub_number, &message),
                Output::Change(command) => self.changes.send(command),
                Output::Ask(id, question) => {
                    self.meter.asked(id, &question);
                    self.access.ask(&self.shards, self.hub_number, id, question);
                }
                Output::Disconnect(id) => {
                    if let Some(connection) = self.connection(id) {
                        connection.is_closing = true;
                        self.lingering.push_back((now.mono_ms + LINGER.as_millis() as u64, id));
                    }
                }
                Output::Report(report) => {
                    self.meter.reported(&report);
                    self.reports.log(now, &report);
                }
            }
        }
    }

    /// Writes as much of the outbox as the socket takes.
    fn flush(&mut self, now: Now, id: SocketId) {
        let Some(Some(connection)) = self.connections.get_mut(id.index as usize) else { return };
        if connection.id != id {
            return;
        }
        let Some(outbox) = self.hub.outbox(id) else { return };
        if connection.is_blocked {
            self.meter.blocked(id.index, outbox.pending_bytes());
            return;
        }
        while !outbox.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let filled = outbox.slices(&mut slices);
            match connection.stream.write_vectored(&slices[..filled]) {
                Ok(0) => break,
                Ok(count) => {
                    self.meter.wrote(count, &slices[..filled]);
                    outbox.advance(count);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    connection.is_blocked = true;
                    self.meter.blocked(id.index, outbox.pending_bytes());
                    return;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    self.drop_connection(now, id);
                    return;
                }
            }
        }
        if connection.is_closing && !connection.is_shut_down {
            connection.is_shut_down = true;
            // The peer reads the close frame, closes, and the next read ends the connection. Closing at
            // once could reset it and take the close frame along.
            if connection.stream.shutdown(Shutdown::Write).is_err() {
                self.drop_connection(now, id);
            }
        }
    }

    fn drop_connection(&mut self, now: Now, id: SocketId) {
        let Some(slot) = self.connections.get_mut(id.index as usize) else { return };
        if slot.as_ref().is_none_or(|connection| connection.id != id) {
            return;
        }
        if let Some(mut connection) = slot.take()
            && let Err(error) = self.poll.registry().deregister(&mut connection.stream)
        {
            tracing::debug!(%error, "cannot stop watching a connection");
        }
        self.inbox().forget_connection();
        self.meter.unblocked(id.index);
        self.hub.handle(now, Input::Closed(id));
    }
}
