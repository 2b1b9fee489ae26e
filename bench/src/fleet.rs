//! Many WebSocket clients on one thread.
//!
//! Owns the sockets, the handshakes, the joins and the heartbeats; what is delivered goes to a [`Sink`]. It must
//! be far cheaper than any server it measures: one scratch buffer for all, one clock reading per read, nothing
//! allocated per message.
//!
//! ```text
//!   connecting ──writable──▶ upgrading ──101──▶ joining ──reply ok──▶ live
//!                                                  │                   ▲
//!                                                  └─reply ok─▶ subscribing (system ok)
//!   any ──close frame, end of stream, error──▶ ended
//! ```

mod member;

use std::io::{ErrorKind, Read as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Protocol, Socket, Type};
use tidewire_protocol::frame::Version;
use tidewire_protocol::websocket::Opcode;

use crate::clock::Clock;
use crate::failure::{Context as _, Failure};
use crate::server::Server;
use member::{Member, Step};

pub(crate) use member::Phase;

/// Handshakes and joins under way at once. More would measure the server's accept queue (1,024 on a default
/// system) instead of making connections.
const WINDOW: usize = 128;

/// All connections must be joined by then.
const PATIENCE: Duration = Duration::from_secs(120);

/// Bytes of one read, shared by all members.
const SCRATCH: usize = 512 * 1024;

/// Official clients beat every 25 s.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(25);

/// Loopback addresses to connect from: each has its own 28,000 ports.
const SOURCES: usize = 8;

/// Where deliveries go.
pub(crate) trait Sink {
    /// A whole message arrived for a live member; `at` is the run's clock at the read that brought it.
    fn message(&mut self, member: usize, bytes: &[u8], at: u64);
    /// A member ended; its phase says how.
    fn ended(&mut self) {}
}

/// For sockets whose answers are of no interest.
pub(crate) struct Ignore;

impl Sink for Ignore {
    fn message(&mut self, _member: usize, _bytes: &[u8], _at: u64) {}
}

/// What one member does once it is connected.
#[derive(Debug, Clone)]
pub(crate) struct Role {
    /// Topic with its prefix; empty joins nothing.
    pub(crate) topic: Arc<str>,
    /// Payload of the join.
    pub(crate) join: Arc<str>,
    /// Live only when the server has said that the bindings are.
    pub(crate) has_bindings: bool,
}

impl Role {
    /// A public channel for broadcasts.
    pub(crate) fn broadcast(topic: &Arc<str>, join: &Arc<str>) -> Self {
        Self { topic: Arc::clone(topic), join: Arc::clone(join), has_bindings: false }
    }

    /// Connected, joined to nothing.
    pub(crate) fn bare() -> Self {
        Self { topic: "".into(), join: "".into(), has_bindings: false }
    }
}

/// The join payload that official clients send for a plain broadcast channel.
pub(crate) const PLAIN_JOIN: &str = r#"{"config":{"broadcast":{"ack":false,"self":false},"presence":{"enabled":false},"postgres_changes":[],"private":false}}"#;

pub(crate) struct Fleet {
    poll: Poll,
    events: Events,
    members: Vec<Member>,
    scratch: Box<[u8]>,
    dirty: Vec<usize>,
    clock: Clock,
    version: Version,
    random: u32,
    beats: Beats,
}

/// Heartbeats go round the members, evenly spread over the period.
struct Beats {
    next: usize,
    due: Instant,
}

impl Fleet {
    /// Connects and joins one member per role; returns when all are live.
    pub(crate) fn connect(
        server: &Server,
        clock: Clock,
        version: Version,
        roles: &[Role],
    ) -> Result<Self, Failure> {
        let mut fleet = Self::empty(clock, version)?;
        let vsn = if version == Version::V1 { "1.0.0" } else { "2.0.0" };
        let request = format!(
            "GET {}/websocket?apikey={}&vsn={vsn} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\n\
             Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Version: 13\r\n\r\n",
            server.path, server.anon_key, server.host
        );
        let until = Instant::now() + PATIENCE;
        let mut under_way: Vec<usize> = Vec::with_capacity(WINDOW);
        let mut waiting = roles.iter();
        loop {
            while under_way.len() < WINDOW {
                let Some(role) = waiting.next() else { break };
                let socket = open(server.address, fleet.members.len())?;
                under_way.push(fleet.members.len());
                fleet.add(socket, Phase::Connecting, request.as_bytes(), Some(role.clone()))?;
            }
            if under_way.is_empty() {
                return Ok(fleet);
            }
            if Instant::now() > until {
                return Err(Failure::new(format!(
                    "{} of {} connections were not joined within {} s",
                    under_way.len() + waiting.len(),
                    roles.len(),
                    PATIENCE.as_secs()
                )));
            }
            fleet.pump(Duration::from_millis(100), &mut Ignore)?;
            let mut broken = None;
            under_way.retain(|&index| match &fleet.members[index].phase {
                Phase::Live => false,
                Phase::Ended(_) => {
                    broken = Some(index);
                    false
                }
                _ => true,
            });
            if let Some(index) = broken {
                let member = &fleet.members[index];
                return Err(Failure::new(format!(
                    "connection {index} ended before it was joined: {:?} {}",
                    member.phase, member.complaint
                )));
            }
        }
    }

    /// Raw sockets that are already connected and speak WebSocket frames at once: for the ceiling.
    pub(crate) fn of_raw_sockets(clock: Clock, sockets: Vec<std::net::TcpStream>) -> Result<Self, Failure> {
        let mut fleet = Self::empty(clock, Version::V2)?;
        for socket in sockets {
            socket.set_nonblocking(true).context("cannot make a socket nonblocking")?;
            fleet.add(socket, Phase::Live, &[], None)?;
        }
        Ok(fleet)
    }

    fn empty(clock: Clock, version: Version) -> Result<Self, Failure> {
        Ok(Self {
            poll: Poll::new().context("cannot make a poller")?,
            events: Events::with_capacity(4096),
            members: Vec::new(),
            scratch: vec![0; SCRATCH].into_boxed_slice(),
            dirty: Vec::new(),
            clock,
            version,
            random: 0x9e37_79b9,
            beats: Beats { next: 0, due: Instant::now() },
        })
    }

    fn add(
        &mut self,
        socket: std::net::TcpStream,
        phase: Phase,
        first: &[u8],
        role: Option<Role>,
    ) -> Result<(), Failure> {
        let mut stream = mio::net::TcpStream::from_std(socket);
        self.poll
            .registry()
            .register(&mut stream, Token(self.members.len()), Interest::READABLE | Interest::WRITABLE)
            .context("cannot watch a socket")?;
        self.members.push(Member::new(stream, phase, first, role, self.version));
        Ok(())
    }

    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    pub(crate) fn phase(&self, member: usize) -> &Phase {
        &self.members[member].phase
    }

    pub(crate) fn live_count(&self) -> usize {
        self.members.iter().filter(|member| matches!(member.phase, Phase::Live)).count()
    }

    /// How members ended, in words.
    pub(crate) fn endings(&self) -> Vec<String> {
        let ended = self.members.iter().filter(|member| matches!(member.phase, Phase::Ended(_)));
        ended.map(|member| format!("{:?} {}", member.phase, member.complaint)).collect()
    }

    /// Bytes that the sockets have not taken yet.
    pub(crate) fn unsent_bytes(&self) -> usize {
        self.members.iter().map(Member::unsent_bytes).sum()
    }

    /// Queues a frame; [`Fleet::flush`] writes it.
    pub(crate) fn send(&mut self, member: usize, opcode: Opcode, payload: &[u8]) {
        // A mask need not be secret here; it must only not be constant, or unmasking could look cheaper than
        // it is.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 17;
        self.random ^= self.random << 5;
        let mask = self.random.to_ne_bytes();
        if self.members[member].queue(opcode, payload, mask) {
            self.dirty.push(member);
        }
    }

    /// Writes what was queued, one write per member.
    pub(crate) fn flush(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for index in dirty.drain(..) {
            self.members[index].flush();
        }
        self.dirty = dirty;
    }

    /// Sends the heartbeats that are due.
    pub(crate) fn beat(&mut self) {
        if self.members.is_empty() {
            return;
        }
        let step = HEARTBEAT / self.members.len() as u32;
        let now = Instant::now();
        while self.beats.due <= now {
            let index = self.beats.next;
            if matches!(self.members[index].phase, Phase::Live) {
                let beat: &[u8] = match self.version {
                    Version::V1 => br#"{"topic":"phoenix","event":"heartbeat","payload":{},"ref":"7"}"#,
                    Version::V2 => br#"[null,"7","phoenix","heartbeat",{}]"#,
                };
                self.send(index, Opcode::Text, beat);
            }
            self.beats.next = (index + 1) % self.members.len();
            self.beats.due += step;
        }
        self.flush();
    }

    /// Stops reading from a member: its buffers fill, then the server's.
    pub(crate) fn pause(&mut self, member: usize) {
        self.members[member].is_paused = true;
    }

    /// Reads again.
    pub(crate) fn resume(&mut self, member: usize, sink: &mut impl Sink) {
        self.members[member].is_paused = false;
        self.read(member, sink);
    }

    /// Waits for events, at most `timeout`, and handles them.
    pub(crate) fn pump(&mut self, timeout: Duration, sink: &mut impl Sink) -> Result<(), Failure> {
        let mut events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        let outcome = self.poll.poll(&mut events, Some(timeout));
        if let Err(error) = outcome
            && error.kind() != ErrorKind::Interrupted
        {
            return Err(error).context("the poller failed");
        }
        for event in &events {
            let index = event.token().0;
            if event.is_writable() {
                self.members[index].writable();
                if matches!(self.members[index].phase, Phase::Ended(_)) {
                    sink.ended();
                    continue;
                }
            }
            if (event.is_readable() || event.is_read_closed() || event.is_error())
                && !self.members[index].is_paused
            {
                self.read(index, sink);
            }
        }
        self.events = events;
        Ok(())
    }

    /// Reads until the socket is empty. A short read says so without another system call.
    fn read(&mut self, index: usize, sink: &mut impl Sink) {
        loop {
            let member = &mut self.members[index];
            let Some(stream) = member.stream.as_mut() else { return };
            let kept = member.partial.len();
            self.scratch[..kept].copy_from_slice(&member.partial);
            let count = match stream.read(&mut self.scratch[kept..]) {
                Ok(0) => {
                    member.end(None);
                    sink.ended();
                    return;
                }
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => {
                    member.complain(&error.to_string());
                    member.end(None);
                    sink.ended();
                    return;
                }
            };
            member.partial.clear();
            let at = self.clock.now();
            let filled = kept + count;
            let is_drained = filled < self.scratch.len();
            match member.take(&mut self.scratch[..filled], |bytes| sink.message(index, bytes, at)) {
                Step::Go { used } => {
                    let member = &mut self.members[index];
                    member.partial.extend_from_slice(&self.scratch[used..filled]);
                    member.flush();
                }
                Step::Ended => {
                    sink.ended();
                    return;
                }
            }
            if is_drained {
                return;
            }
        }
    }
}

/// A nonblocking socket on its way to `address`, from one of several loopback addresses.
fn open(address: SocketAddr, serial: usize) -> Result<std::net::TcpStream, Failure> {
    let socket =
        Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).context("cannot make a socket")?;
    socket.set_nonblocking(true).context("cannot make a socket nonblocking")?;
    socket.set_tcp_nodelay(true).context("cannot set TCP_NODELAY")?;
    if address.ip().is_loopback() {
        let last = 2 + (serial % SOURCES) as u8;
        let source = SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), 0));
        socket.bind(&source.into()).context("cannot bind to a loopback address")?;
    }
    match socket.connect(&address.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
        Err(error) => return Err(error).context("cannot connect"),
    }
    Ok(socket.into())
}
