//! A server made of hubs, links and clients, all in memory and in virtual time.
//!
//! Owns the law of use: outputs are drained after each input, links between hubs keep their order, and a
//! turn ends with [`Hub::finish_turn`] and a flush. [`Server::settle`] does all of it until nothing moves;
//! the finer steps are for tests that choose the interleaving themselves.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::IoSlice;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use proptest::test_runner::Config as ProptestConfig;
use serde_json::Value;
use tidewire_engine::{
    Answer, AskId, ChangeCommand, Credential, Drain, Hub, HubConfig, Input, Now, Output, PeerMessage,
    Question, Rates, Report, SocketId, SocketInfo, TokenRefusal, VerifyToken,
};
use tidewire_protocol::codes::OperationalCode;
use tidewire_protocol::frame::{Encoding, Version, write_user_broadcast_push};
use tidewire_protocol::websocket::{Decoder, Event, Role};

/// 2027-01-15T08:00:00Z; a whole second, so that expiry is easy to aim at.
pub(crate) const START_UNIX_S: i64 = 1_800_000_000;

/// The token of every connection.
pub(crate) const CONNECTION: &str = "connection.token.ok";

/// Table of tokens, judged as the real verifier judges.
#[derive(Default)]
pub(crate) struct Tokens {
    known: Mutex<HashMap<String, (&'static str, i64)>>,
    revoked: Mutex<HashSet<String>>,
    /// Seconds by which a token may be over and still count.
    leeway_s: AtomicI64,
}

impl Tokens {
    fn refusal(code: OperationalCode, text: &str, push_message: &str) -> TokenRefusal {
        TokenRefusal {
            code,
            join_reason: format!("{}: {text}", code.as_str()),
            push_message: push_message.to_owned(),
        }
    }
}

impl VerifyToken for Tokens {
    fn verify(&self, token: &str, now: Now) -> Result<Credential, TokenRefusal> {
        if token.split('.').count() != 3 {
            let text = "The token provided is not a valid JWT";
            return Err(Self::refusal(OperationalCode::MalformedJWT, text, text));
        }
        let known = self.known.lock().expect("not poisoned").get(token).copied();
        let Some((role, expires_unix_s)) = known else {
            return Err(Self::refusal(
                OperationalCode::JwtSignatureError,
                "Failed to validate JWT signature",
                ":signature_error",
            ));
        };
        if self.revoked.lock().expect("not poisoned").contains(token) {
            return Err(Self::refusal(
                OperationalCode::JwtSignerError,
                "Failed to generate JWT signer, check your JWT secret or JWKS configuration",
                ":error_generating_signer",
            ));
        }
        if role.is_empty() {
            let text = "Fields `role` and `exp` are required in JWT";
            return Err(Self::refusal(OperationalCode::InvalidJWTToken, text, text));
        }
        let now = now.unix_s();
        if expires_unix_s + self.leeway_s.load(Ordering::Relaxed) <= now {
            let text = format!("Token has expired {} seconds ago", now - expires_unix_s);
            return Err(Self::refusal(OperationalCode::InvalidJWTToken, &text, &text));
        }
        Ok(Credential {
            token: token.into(),
            role: role.into(),
            claims: format!(r#"{{"role":"{role}","exp":{expires_unix_s}}}"#).into(),
            expires_unix_s,
        })
    }
}

/// What a client read.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Frame {
    Text(Value),
    Binary(Vec<u8>),
    Close(u16, String),
}

/// A client, by the order of opening.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Client(pub(crate) usize);

struct Connection {
    hub: usize,
    id: SocketId,
    version: Version,
    decoder: Decoder,
    buffer: Vec<u8>,
    frames: VecDeque<Frame>,
    /// A client that does not read leaves its outbox where it is.
    is_reading: bool,
    is_disconnected: bool,
    is_gone: bool,
}

pub(crate) struct Server {
    pub(crate) hubs: Vec<Hub>,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) now: Now,
    /// `links[from][to]`
    links: Vec<Vec<VecDeque<PeerMessage>>>,
    connections: Vec<Connection>,
    pub(crate) changes: Vec<ChangeCommand>,
    /// Questions to the database: the hub that asked, the question.
    pub(crate) asked: Vec<(usize, AskId, Question)>,
    pub(crate) reports: Vec<Report>,
}

pub(crate) fn config() -> HubConfig {
    HubConfig {
        hub: 0,
        hubs: 1,
        seed: 7,
        max_channels: 100,
        max_bindings: 100,
        max_message_bytes: 5_000_000,
        max_outbox_bytes: 1_000_000,
        max_payload_bytes: 3_000_500,
        rates: Arc::new(Rates::new(None, None, None)),
        presence_calls: Some(5),
        presence_window_ms: 30_000,
        idle_timeout_ms: 60_000,
        no_channel_timeout_ms: 600_000,
        join_error_backoff_ms: 5_000,
        token_check_ms: 300_000,
    }
}

impl Server {
    pub(crate) fn new(hub_count: usize) -> Self {
        Self::with(hub_count, |_| {})
    }

    pub(crate) fn with(hub_count: usize, adjust: impl Fn(&mut HubConfig)) -> Self {
        let tokens = Arc::new(Tokens::default());
        let hubs = (0..hub_count)
            .map(|hub| {
                let mut config = config();
                config.hub = hub as u16;
                config.hubs = hub_count as u16;
                config.seed += hub as u64;
                adjust(&mut config);
                Hub::new(config, Arc::clone(&tokens) as Arc<dyn VerifyToken>)
            })
            .collect();
        let server = Self {
            hubs,
            tokens,
            now: Now { mono_ms: 5_000, wall_ms: START_UNIX_S as u64 * 1000 },
            links: (0..hub_count).map(|_| (0..hub_count).map(|_| VecDeque::new()).collect()).collect(),
            connections: Vec::new(),
            changes: Vec::new(),
            asked: Vec::new(),
            reports: Vec::new(),
        };
        server.allow(CONNECTION, "anon", 1_000_000);
        server
    }

    /// Makes a token known; an empty role is a token without the required claims.
    pub(crate) fn allow(&self, token: &str, role: &'static str, expires_in_s: i64) {
        let expires = self.now.unix_s() + expires_in_s;
        self.tokens.known.lock().expect("not poisoned").insert(token.to_owned(), (role, expires));
    }

    /// Tokens count for so much longer than they say.
    pub(crate) fn set_leeway(&self, seconds: i64) {
        self.tokens.leeway_s.store(seconds, Ordering::Relaxed);
    }

    /// The key that signed it is gone.
    pub(crate) fn revoke(&self, token: &str) {
        self.tokens.revoked.lock().expect("not poisoned").insert(token.to_owned());
    }

    pub(crate) fn open(&mut self, hub: usize, version: Version) -> Client {
        let credential = self.tokens.verify(CONNECTION, self.now).expect("the connection's token is valid");
        let info = SocketInfo { version, credential: Arc::new(credential), headers: "{}".into() };
        let id = self.hubs[hub].open(self.now, info);
        self.connections.push(Connection {
            hub,
            id,
            version,
            decoder: Decoder::new(Role::Client, usize::MAX),
            buffer: Vec::new(),
            frames: VecDeque::new(),
            is_reading: true,
            is_disconnected: false,
            is_gone: false,
        });
        Client(self.connections.len() - 1)
    }

    pub(crate) fn id(&self, client: Client) -> SocketId {
        self.connections[client.0].id
    }

    pub(crate) fn hub_of(&self, client: Client) -> usize {
        self.connections[client.0].hub
    }

    pub(crate) fn version(&self, client: Client) -> Version {
        self.connections[client.0].version
    }

    /// The hub told the driver to end the connection.
    pub(crate) fn is_disconnected(&self, client: Client) -> bool {
        self.connections[client.0].is_disconnected
    }

    pub(crate) fn stop_reading(&mut self, client: Client) {
        self.connections[client.0].is_reading = false;
    }

    pub(crate) fn start_reading(&mut self, client: Client) {
        self.connections[client.0].is_reading = true;
        self.flush(client);
    }

    // ── steps ───────────────────────────────────────────────────────────────────────────────────────

    pub(crate) fn handle(&mut self, hub: usize, input: Input<'_>) {
        self.hubs[hub].handle(self.now, input);
        self.drain_outputs(hub);
    }

    pub(crate) fn handle_text(&mut self, client: Client, text: &[u8]) {
        let (hub, id) = (self.hub_of(client), self.id(client));
        self.handle(hub, Input::Text(id, text));
    }

    pub(crate) fn handle_binary(&mut self, client: Client, bytes: &[u8]) {
        let (hub, id) = (self.hub_of(client), self.id(client));
        self.handle(hub, Input::Binary(id, bytes));
    }

    pub(crate) fn handle_closed(&mut self, client: Client) {
        let (hub, id) = (self.hub_of(client), self.id(client));
        self.connections[client.0].is_gone = true;
        self.handle(hub, Input::Closed(id));
    }

    /// Answers the oldest question to the database.
    pub(crate) fn answer(&mut self, answer: Answer) {
        let (hub, id, _) = self.asked.remove(0);
        self.handle(hub, Input::Answered(id, answer));
    }

    fn drain_outputs(&mut self, hub: usize) {
        while let Some(output) = self.hubs[hub].poll_output() {
            match output {
                Output::Peer(to, message) => {
                    assert_ne!(usize::from(to), hub, "a hub does not write to itself");
                    self.links[hub][usize::from(to)].push_back(message);
                }
                Output::Peers(message) => {
                    for to in (0..self.hubs.len()).filter(|&to| to != hub) {
                        self.links[hub][to].push_back(message.clone());
                    }
                }
                Output::Change(command) => self.changes.push(command),
                Output::Ask(id, question) => self.asked.push((hub, id, question)),
                Output::Disconnect(id) => {
                    let connection = self
                        .connections
                        .iter_mut()
                        .find(|connection| connection.hub == hub && connection.id == id)
                        .expect("a hub disconnects only what was opened");
                    assert!(!connection.is_disconnected, "a socket is disconnected once");
                    connection.is_disconnected = true;
                }
                Output::Report(report) => self.reports.push(report),
            }
        }
    }

    /// Ends a turn of one hub and flushes what it wrote. True if it wrote anything.
    pub(crate) fn finish_turn(&mut self, hub: usize) -> bool {
        self.hubs[hub].finish_turn();
        self.drain_outputs(hub);
        let mut dirty = Vec::new();
        self.hubs[hub].take_dirty(&mut dirty);
        let found = !dirty.is_empty();
        for id in dirty {
            let connection = self.connections.iter().position(|one| one.hub == hub && one.id == id);
            self.flush(Client(connection.expect("only opened sockets are dirty")));
        }
        found
    }

    /// Moves an outbox into its client, which reads and decodes it.
    pub(crate) fn flush(&mut self, client: Client) {
        let connection = &mut self.connections[client.0];
        if !connection.is_reading {
            return;
        }
        let Some(outbox) = self.hubs[connection.hub].outbox(connection.id) else { return };
        while !outbox.is_empty() {
            let mut slices = [IoSlice::new(&[]); 8];
            let filled = outbox.slices(&mut slices);
            let before = connection.buffer.len();
            for slice in &slices[..filled] {
                connection.buffer.extend_from_slice(slice);
            }
            let count = connection.buffer.len() - before;
            assert!(count > 0, "an outbox that is not empty has something to write");
            outbox.advance(count);
        }
        assert_eq!(outbox.pending_bytes(), 0);
        connection.read();
    }

    /// Carries one message from hub to hub. False if none waits.
    pub(crate) fn carry(&mut self, from: usize, to: usize) -> bool {
        match self.links[from][to].pop_front() {
            Some(message) => {
                self.handle(to, Input::Peer(message));
                true
            }
            None => false,
        }
    }

    /// Everything that can happen without new input or time happens.
    pub(crate) fn settle(&mut self) {
        loop {
            let mut moved = false;
            for hub in 0..self.hubs.len() {
                moved |= self.finish_turn(hub);
            }
            for from in 0..self.hubs.len() {
                for to in 0..self.hubs.len() {
                    while self.carry(from, to) {
                        moved = true;
                    }
                }
            }
            for client in 0..self.connections.len() {
                let connection = &self.connections[client];
                if connection.is_disconnected && !connection.is_gone {
                    self.flush(Client(client));
                    self.handle_closed(Client(client));
                    moved = true;
                }
            }
            if !moved {
                return;
            }
        }
    }

    /// Lets time pass. Every deadline on the way is met to the millisecond; links are left as they are.
    pub(crate) fn pass(&mut self, ms: u64) {
        let target = self.now.mono_ms + ms;
        loop {
            let due = (0..self.hubs.len())
                .filter_map(|hub| self.hubs[hub].poll_deadline().map(|at| (at, hub)))
                .min()
                .filter(|&(at, _)| at <= target);
            let until = due.map_or(target, |(at, _)| at.max(self.now.mono_ms));
            self.now.wall_ms += until - self.now.mono_ms;
            self.now.mono_ms = until;
            let Some((_, hub)) = due else { return };
            self.handle(hub, Input::Tick);
            self.finish_turn(hub);
        }
    }

    // ── whole steps, for tests that do not care how ─────────────────────────────────────────────────

    pub(crate) fn text(&mut self, client: Client, text: &str) {
        self.handle_text(client, text.as_bytes());
        self.settle();
    }

    pub(crate) fn binary(&mut self, client: Client, bytes: &[u8]) {
        self.handle_binary(client, bytes);
        self.settle();
    }

    pub(crate) fn close(&mut self, client: Client) {
        self.handle_closed(client);
        self.settle();
    }

    pub(crate) fn advance(&mut self, ms: u64) {
        self.pass(ms);
        self.settle();
    }

    pub(crate) fn drain(&mut self, step: Drain) {
        for hub in 0..self.hubs.len() {
            self.handle(hub, Input::Drain(step));
        }
        self.settle();
    }

    /// A message from outside (HTTP, the change stream), handed to every hub.
    pub(crate) fn publish(&mut self, message: &PeerMessage) {
        for hub in 0..self.hubs.len() {
            self.handle(hub, Input::Peer(message.clone()));
        }
        self.settle();
    }

    /// A push in the frame format of the client's version. Refs are raw JSON.
    pub(crate) fn push(
        &mut self,
        client: Client,
        join_ref: &str,
        reference: &str,
        topic: &str,
        event: &str,
        payload: &str,
    ) {
        let text = self.encode(client, join_ref, reference, topic, event, payload);
        self.text(client, &text);
    }

    pub(crate) fn encode(
        &self,
        client: Client,
        join_ref: &str,
        reference: &str,
        topic: &str,
        event: &str,
        payload: &str,
    ) -> String {
        match self.version(client) {
            Version::V1 => format!(
                r#"{{"topic":"{topic}","event":"{event}","payload":{payload},"ref":{reference},"join_ref":{join_ref}}}"#
            ),
            Version::V2 => format!(r#"[{join_ref},{reference},"{topic}","{event}",{payload}]"#),
        }
    }

    /// Joins with ref and join ref `"1"` and forgets the answer.
    pub(crate) fn join(&mut self, client: Client, topic: &str, config: &str) {
        let payload = format!(r#"{{"config":{config}}}"#);
        self.push(client, r#""1""#, r#""1""#, topic, "phx_join", &payload);
        let frames = self.take(client);
        let (_, _, _, event, payload) = parts(&frames[0]);
        assert_eq!((&*event, &payload["status"]), ("phx_reply", &Value::from("ok")), "{frames:?}");
    }

    /// What the client has read since the last call.
    pub(crate) fn take(&mut self, client: Client) -> Vec<Frame> {
        self.connections[client.0].frames.drain(..).collect()
    }

    /// Exactly these text frames have been read, in this order; refs of presence metas read `…`.
    #[track_caller]
    pub(crate) fn expect(&mut self, client: Client, expected: &[&str]) {
        let expected: Vec<Frame> = expected
            .iter()
            .map(|text| Frame::Text(serde_json::from_str(text).expect("the test writes JSON")))
            .collect();
        let found = self.take(client).into_iter().map(anonymous).collect::<Vec<_>>();
        assert!(expected == found, "expected {expected:#?}\nfound {found:#?}");
    }

    #[track_caller]
    pub(crate) fn expect_nothing(&mut self, client: Client) {
        assert_eq!(self.take(client), []);
    }

    #[track_caller]
    pub(crate) fn expect_close(&mut self, client: Client, code: u16) {
        let frames = self.take(client);
        assert!(matches!(frames.last(), Some(Frame::Close(found, _)) if *found == code), "{frames:?}");
        assert!(self.is_disconnected(client));
    }

    /// Nothing is left of anybody.
    #[track_caller]
    pub(crate) fn expect_empty(&self) {
        for hub in &self.hubs {
            let counts = (hub.socket_count(), hub.channel_count(), hub.topic_count(), hub.timer_count());
            assert_eq!(counts, (0, 0, 0, 0), "sockets, channels, topics, timers of {hub:?}");
        }
        assert!(self.links.iter().flatten().all(VecDeque::is_empty));
    }
}

impl Connection {
    fn read(&mut self) {
        let mut used = 0;
        while let Some(decoded) = self.decoder.decode(&mut self.buffer[used..]).expect("hubs write RFC 6455")
        {
            used += decoded.consumed;
            assert!(
                !matches!(self.frames.back(), Some(Frame::Close(..))),
                "nothing follows a close frame: {:?}",
                decoded.event
            );
            let frame = match decoded.event {
                Event::Text(bytes) => Frame::Text(value(bytes)),
                Event::Binary(bytes) => Frame::Binary(bytes.to_vec()),
                Event::Close { code, reason } => {
                    Frame::Close(code.expect("a close says why"), String::from_utf8_lossy(reason).into())
                }
                Event::Ping(_) | Event::Pong(_) | Event::Fragment => continue,
            };
            self.frames.push_back(frame);
        }
        self.buffer.drain(..used);
    }
}

/// What a text frame says. Some JSON has no value in Rust (half a surrogate pair, a number beyond all bounds) and
/// is relayed all the same; such a frame is kept as its text.
fn value(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_else(|_| {
        assert!(tidewire_protocol::json::is_valid(bytes), "every text frame is JSON: {bytes:?}");
        Value::from(String::from_utf8_lossy(bytes))
    })
}

/// The parts of a text frame of either version: join ref, ref, topic, event, payload.
pub(crate) fn parts(frame: &Frame) -> (Value, Value, String, String, Value) {
    let Frame::Text(value) = frame else { panic!("not a text frame: {frame:?}") };
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    match value {
        Value::Array(parts) => {
            assert_eq!(parts.len(), 5);
            (parts[0].clone(), parts[1].clone(), text(&parts[2]), text(&parts[3]), parts[4].clone())
        }
        Value::Object(parts) => {
            assert_eq!(parts.len(), 4, "V1 frames have four keys: {value}");
            let get = |key: &str| parts.get(key).expect("all four keys").clone();
            (Value::Null, get("ref"), text(&get("topic")), text(&get("event")), get("payload"))
        }
        _ => panic!("neither array nor object: {value}"),
    }
}

/// Presence refs differ from run to run in nothing that matters; their shape does (§4.4).
fn anonymous(frame: Frame) -> Frame {
    fn walk(value: &mut Value) {
        match value {
            Value::Object(members) => {
                for (key, value) in members {
                    if key == "phx_ref" || key == "phx_ref_prev" {
                        assert_eq!(value.as_str().map(str::len), Some(16), "{key} has 16 characters");
                        *value = Value::from("…");
                    } else {
                        walk(value);
                    }
                }
            }
            Value::Array(elements) => elements.iter_mut().for_each(walk),
            _ => {}
        }
    }
    match frame {
        Frame::Text(mut value) => {
            walk(&mut value);
            Frame::Text(value)
        }
        other => other,
    }
}

/// So many cases, or as many as `PROPTEST_CASES` says for a longer night. A failure prints its history and
/// leaves its seed in `tests/proptest-regressions`, which the next run tries first.
pub(crate) fn cases(usual: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok());
    ProptestConfig { cases: asked.unwrap_or(usual), max_shrink_iters: 20_000, ..ProptestConfig::default() }
}

/// Kind 3 with join ref "1" and ref "2".
pub(crate) fn kind_3(topic: &str, event: &str, encoding: Encoding, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    write_user_broadcast_push(&mut out, "1", "2", topic, event, "", encoding, payload)
        .expect("the test's fields are short");
    out
}
