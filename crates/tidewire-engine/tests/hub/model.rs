//! Random histories against a model of what must be true.
//!
//! Clients on one to three hubs open, join, leave, rejoin, track, broadcast, refresh tokens and vanish, in
//! any interleaving of turns and of messages between hubs that keeps the order of each link. Whenever
//! everything has come to rest:
//!
//! - every client's view of presence is the set of channels that track (`view.rs` keeps it);
//! - every broadcast reached every channel that was there all along exactly once, nobody twice, in the order
//!   of each sender, and the sender only if it asked for that;
//! - every acknowledgement asked for has come;
//! - every subscription of a channel that ended has ended, once;
//! - when all clients are gone, nothing is left.
//!
//! A client reads what is there before it joins: a diff that was under way when the client left is not
//! told apart from one of the new channel by the rules of the Phoenix client, whatever the server does.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::prelude::*;
use serde_json::{Value, json};
use tidewire_engine::{ChangeCommand, ChannelId};
use tidewire_protocol::frame::{Encoding, ServerFrame, Version, decode_server_binary};

use super::server::{Client, Frame, START_UNIX_S, Server, cases, parts};
use super::view::View;

const TOPICS: [&str; 3] = ["realtime:a", "realtime:b", "realtime:c"];
const KEYS: [&str; 3] = ["ada", "bob", ""];
/// Name and lifetime in seconds, from the start.
const TOKENS: [(&str, i64); 4] = [("short.a.b", 40), ("middle.a.b", 90), ("long.a.b", 1_000_000), ("bad", 0)];

#[derive(Debug, Clone, Copy)]
struct JoinOptions {
    presence: bool,
    own: bool,
    ack: bool,
    bindings: bool,
    key: usize,
    token: usize,
    has_join_ref: bool,
}

#[derive(Debug, Clone, Copy)]
enum Form {
    Text,
    Json,
    Bytes,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Open { hub: usize, is_v1: bool },
    Join { client: usize, topic: usize, options: JoinOptions },
    Leave { client: usize, topic: usize },
    Track { client: usize, topic: usize, n: u8 },
    Untrack { client: usize, topic: usize },
    Broadcast { client: usize, topic: usize, form: Form },
    Reauthorize { client: usize, topic: usize, token: usize },
    Close { client: usize },
    Pass { ms: u64 },
    Turn { hub: usize },
    Carry { from: usize, to: usize },
    Settle,
}

fn step() -> impl Strategy<Value = Step> {
    let (client, topic) = (0..8_usize, 0..TOPICS.len());
    let target = || (client.clone(), topic.clone());
    // Mostly good tokens, so that most of the history is about channels that live.
    let token = prop_oneof![6 => Just(2_usize), 1 => Just(0), 1 => Just(1), 1 => Just(3)];
    let options =
        (any::<[bool; 5]>(), 0..KEYS.len(), token.clone()).prop_map(|(flags, key, token)| JoinOptions {
            presence: flags[0],
            own: flags[1],
            ack: flags[2],
            bindings: flags[3],
            has_join_ref: flags[4],
            key,
            token,
        });
    let form = prop_oneof![Just(Form::Text), Just(Form::Json), Just(Form::Bytes)];
    prop_oneof![
        2 => (0..3_usize, any::<bool>()).prop_map(|(hub, is_v1)| Step::Open { hub, is_v1 }),
        6 => (target(), options).prop_map(|((client, topic), options)| Step::Join { client, topic, options }),
        2 => target().prop_map(|(client, topic)| Step::Leave { client, topic }),
        6 => (target(), 0..4_u8).prop_map(|((client, topic), n)| Step::Track { client, topic, n }),
        2 => target().prop_map(|(client, topic)| Step::Untrack { client, topic }),
        5 => (target(), form).prop_map(|((client, topic), form)| Step::Broadcast { client, topic, form }),
        1 => (target(), token).prop_map(|((client, topic), token)| Step::Reauthorize { client, topic, token }),
        1 => client.clone().prop_map(|client| Step::Close { client }),
        2 => prop_oneof![Just(0), Just(1_000), Just(5_000), 0..20_000_u64].prop_map(|ms| Step::Pass { ms }),
        4 => (0..3_usize).prop_map(|hub| Step::Turn { hub }),
        8 => (0..3_usize, 0..3_usize).prop_map(|(from, to)| Step::Carry { from, to }),
        1 => Just(Step::Settle),
    ]
}

/// A channel that truly is joined.
#[derive(Debug, Clone)]
struct Channel {
    /// Tells incarnations of one topic on one socket apart.
    serial: u64,
    options: JoinOptions,
    expires_unix_s: i64,
    tracked: Option<u8>,
}

struct Sent {
    topic: usize,
    /// Serial of the sending channel, for the order.
    channel: u64,
    form: Form,
    /// Whoever was joined at that moment, the sender only if it hears itself.
    members: Vec<(Client, u64)>,
    /// Never, by nobody's fault: the sender.
    silent: Option<Client>,
    is_settled: bool,
}

struct Model {
    server: Server,
    clients: Vec<Client>,
    channels: BTreeMap<(Client, usize), Channel>,
    views: HashMap<(Client, usize), View>,
    sent: Vec<Sent>,
    /// (client, topic) → serials of broadcasts in the order of arrival.
    received: HashMap<(Client, usize), Vec<usize>>,
    expected_acks: BTreeSet<(Client, usize)>,
    received_acks: Vec<(Client, usize)>,
    next_channel: u64,
}

impl Model {
    fn new(hubs: usize) -> Self {
        let server = Server::with(hubs, |config| {
            config.presence_calls = None;
            config.idle_timeout_ms = u64::MAX / 2;
            config.no_channel_timeout_ms = u64::MAX / 2;
            config.max_outbox_bytes = 100_000_000;
            config.token_check_ms = 30_000;
            config.max_channels = 1_000;
        });
        for (token, lifetime) in &TOKENS[..3] {
            server.allow(token, "authenticated", *lifetime);
        }
        Self {
            server,
            clients: Vec::new(),
            channels: BTreeMap::new(),
            views: HashMap::new(),
            sent: Vec::new(),
            received: HashMap::new(),
            expected_acks: BTreeSet::new(),
            received_acks: Vec::new(),
            next_channel: 0,
        }
    }

    fn client(&self, n: usize) -> Option<Client> {
        (!self.clients.is_empty()).then(|| self.clients[n % self.clients.len()])
    }

    fn push(
        &mut self,
        client: Client,
        join_ref: &str,
        reference: &str,
        topic: usize,
        event: &str,
        payload: &str,
    ) {
        let text = self.server.encode(client, join_ref, reference, TOPICS[topic], event, payload);
        self.server.handle_text(client, text.as_bytes());
    }

    fn expires(&self, token: usize) -> Option<i64> {
        let (name, lifetime) = TOKENS[token];
        let expires = START_UNIX_S + lifetime;
        (name != "bad" && expires > self.server.now.unix_s()).then_some(expires)
    }

    fn apply(&mut self, step: Step) {
        let hubs = self.server.hubs.len();
        match step {
            Step::Open { hub, is_v1 } => {
                if self.clients.len() < 8 {
                    let version = if is_v1 { Version::V1 } else { Version::V2 };
                    self.clients.push(self.server.open(hub % hubs, version));
                }
            }
            Step::Join { client, topic, options } => {
                if let Some(client) = self.client(client) {
                    self.join(client, topic, options);
                }
            }
            Step::Leave { client, topic } => {
                let Some(client) = self.client(client) else { return };
                let Some(channel) = self.channels.remove(&(client, topic)) else { return };
                let join_ref = join_ref(&channel.options, channel.serial);
                self.push(client, &join_ref, r#""leave""#, topic, "phx_leave", "{}");
            }
            Step::Track { client, topic, n } => {
                let Some(client) = self.client(client) else { return };
                if let Some(channel) = self.channels.get_mut(&(client, topic)) {
                    channel.tracked = Some(n);
                }
                let payload = format!(r#"{{"type":"presence","event":"track","payload":{{"n":{n}}}}}"#);
                self.push(client, "null", "null", topic, "presence", &payload);
            }
            Step::Untrack { client, topic } => {
                let Some(client) = self.client(client) else { return };
                if let Some(channel) = self.channels.get_mut(&(client, topic)) {
                    channel.tracked = None;
                }
                self.push(client, "null", "null", topic, "presence", r#"{"event":"untrack"}"#);
            }
            Step::Broadcast { client, topic, form } => {
                if let Some(client) = self.client(client) {
                    self.broadcast(client, topic, form);
                }
            }
            Step::Reauthorize { client, topic, token } => {
                let Some(client) = self.client(client) else { return };
                let current = self.channels.get(&(client, topic)).map(|channel| channel.options.token);
                // The current token again is ignored, even when it has expired in this very moment.
                if current != Some(token) {
                    match self.expires(token) {
                        None => _ = self.channels.remove(&(client, topic)),
                        Some(expires) => {
                            if let Some(channel) = self.channels.get_mut(&(client, topic)) {
                                channel.expires_unix_s = expires;
                                channel.options.token = token;
                            }
                        }
                    }
                }
                let payload = format!(r#"{{"access_token":"{}"}}"#, TOKENS[token].0);
                self.push(client, "null", "null", topic, "access_token", &payload);
            }
            Step::Close { client } => {
                let Some(client) = self.client(client) else { return };
                self.clients.retain(|&other| other != client);
                self.channels.retain(|&(owner, _), _| owner != client);
                self.server.handle_closed(client);
            }
            Step::Pass { ms } => {
                self.server.pass(ms);
                let now = self.server.now.unix_s();
                self.channels.retain(|_, channel| channel.expires_unix_s > now);
            }
            Step::Turn { hub } => _ = self.server.finish_turn(hub % hubs),
            Step::Carry { from, to } => _ = self.server.carry(from % hubs, to % hubs),
            Step::Settle => self.settle(),
        }
        self.read_all();
    }

    fn join(&mut self, client: Client, topic: usize, options: JoinOptions) {
        self.server.flush(client);
        self.read(client);
        let serial = self.next_channel;
        self.next_channel += 1;
        self.views.entry((client, topic)).or_default().begin();
        self.channels.remove(&(client, topic));
        if let Some(expires_unix_s) = self.expires(options.token) {
            let channel = Channel { serial, options, expires_unix_s, tracked: None };
            self.channels.insert((client, topic), channel);
        }
        let changes = if options.bindings { r#"[{"schema":"public"}]"# } else { "[]" };
        let payload = json!({
            "config": {
                "broadcast": {"ack": options.ack, "self": options.own},
                "presence": {"enabled": options.presence, "key": KEYS[options.key]},
                "postgres_changes": serde_json::from_str::<Value>(changes).expect("JSON"),
            },
            "access_token": TOKENS[options.token].0,
        });
        let join_ref = join_ref(&options, serial);
        self.push(client, &join_ref, &format!(r#""j{serial}""#), topic, "phx_join", &payload.to_string());
    }

    fn broadcast(&mut self, client: Client, topic: usize, form: Form) {
        let serial = self.sent.len();
        let form = if self.server.version(client) == Version::V1 { Form::Text } else { form };
        if let Some(channel) = self.channels.get(&(client, topic)) {
            let members = self
                .channels
                .iter()
                .filter(|((member, of), _)| *of == topic && (*member != client || channel.options.own))
                .map(|((member, _), channel)| (*member, channel.serial))
                .collect();
            if channel.options.ack {
                self.expected_acks.insert((client, serial));
            }
            self.sent.push(Sent {
                topic,
                channel: channel.serial,
                form,
                members,
                silent: (!channel.options.own).then_some(client),
                is_settled: false,
            });
        }
        match form {
            Form::Text => {
                let payload =
                    format!(r#"{{"type":"broadcast","event":"e","payload":{{"serial":{serial}}}}}"#);
                self.push(client, "null", &format!(r#""b{serial}""#), topic, "broadcast", &payload);
            }
            Form::Json => {
                let payload = format!(r#"{{"serial":{serial}}}"#);
                let push = user_broadcast(TOPICS[topic], serial, Encoding::Json, payload.as_bytes());
                self.server.handle_binary(client, &push);
            }
            Form::Bytes => {
                let push =
                    user_broadcast(TOPICS[topic], serial, Encoding::Bytes, serial.to_string().as_bytes());
                self.server.handle_binary(client, &push);
            }
        }
    }

    fn read_all(&mut self) {
        for client in self.clients.clone() {
            self.read(client);
        }
    }

    fn read(&mut self, client: Client) {
        for frame in self.server.take(client) {
            match &frame {
                Frame::Binary(bytes) => {
                    let Ok(ServerFrame::UserBroadcast { topic, broadcast }) = decode_server_binary(bytes)
                    else {
                        panic!("not kind 4: {bytes:?}")
                    };
                    let payload: Value = serde_json::from_slice(broadcast.payload).expect("JSON or a number");
                    let serial = match broadcast.encoding {
                        Encoding::Json => payload["serial"].as_u64(),
                        Encoding::Bytes => payload.as_u64(),
                    };
                    self.on_broadcast(client, topic, serial);
                }
                Frame::Text(_) => self.on_text(client, &frame),
                Frame::Close(..) => panic!("nobody is closed in this model: {frame:?}"),
            }
        }
    }

    fn on_text(&mut self, client: Client, frame: &Frame) {
        let (join_ref, reference, topic, event, payload) = parts(frame);
        let position = TOPICS.iter().position(|known| *known == topic).expect("a topic of ours");
        match &*event {
            "broadcast" => self.on_broadcast(client, &topic, payload["payload"]["serial"].as_u64()),
            "presence_state" | "presence_diff" => {
                // A client without presence does not look.
                let Some(channel) = self.channels.get(&(client, position)) else { return };
                let view = self.views.get_mut(&(client, position)).expect("made by the join");
                if event == "presence_diff" {
                    view.on_diff(&payload);
                } else {
                    assert!(channel.options.presence, "a state was not asked for");
                    if self.server.version(client) == Version::V2 {
                        let own = if channel.options.has_join_ref { "c" } else { "j" };
                        assert_eq!(join_ref, format!("{own}{}", channel.serial), "the state of another join");
                    }
                    view.on_state(&payload);
                }
            }
            "phx_reply" => {
                let reference = reference.as_str().unwrap_or_default();
                if let Some(serial) = reference.strip_prefix('b')
                    && payload["status"] == "ok"
                {
                    self.received_acks.push((client, serial.parse().expect("our own ref")));
                }
            }
            "phx_close" | "system" => {}
            _ => panic!("unexpected {event}"),
        }
    }

    fn on_broadcast(&mut self, client: Client, topic: &str, serial: Option<u64>) {
        let position = TOPICS.iter().position(|known| *known == topic).expect("a topic of ours");
        let serial = serial.expect("every broadcast has a serial") as usize;
        self.received.entry((client, position)).or_default().push(serial);
    }

    /// Lets everything come to rest, then looks.
    fn settle(&mut self) {
        self.server.settle();
        self.read_all();
        self.check_presence();
        self.check_broadcasts();
        self.check_counts();
        self.check_subscriptions();
    }

    fn check_presence(&self) {
        for (topic, name) in TOPICS.iter().enumerate() {
            let mut truth: Vec<(Option<&str>, u8)> = self
                .channels
                .iter()
                .filter(|((_, of), _)| *of == topic)
                .filter_map(|(_, channel)| Some((known_key(channel), channel.tracked?)))
                .collect();
            truth.sort_unstable();
            let mut first: Option<BTreeMap<&String, BTreeSet<String>>> = None;
            for ((client, of), channel) in &self.channels {
                if *of != topic || !channel.options.presence {
                    continue;
                }
                let view = &self.views[&(*client, topic)];
                assert!(view.has_state(), "{client:?} on {topic} still waits for its state");
                let mut seen: Vec<(Option<&str>, u8)> = Vec::new();
                for (key, metas) in &view.state {
                    for meta in metas {
                        let n = meta["n"].as_u64().expect("what was tracked") as u8;
                        let key = KEYS.into_iter().find(|known| known == key);
                        seen.push((key, n));
                    }
                }
                seen.sort_unstable();
                assert_eq!(seen, truth, "{client:?}'s view of {name}: {:?}", view.state);
                // Everybody holds the very same metas, refs included.
                let metas = view
                    .state
                    .iter()
                    .map(|(key, metas)| (key, metas.iter().map(Value::to_string).collect()))
                    .collect();
                match &first {
                    Some(first) => assert_eq!(*first, metas),
                    None => first = Some(metas),
                }
            }
        }
    }

    fn check_broadcasts(&mut self) {
        let mut counts: HashMap<(Client, usize), usize> = HashMap::new();
        for ((client, topic), serials) in &self.received {
            let mut newest: HashMap<u64, usize> = HashMap::new();
            for &serial in serials {
                let sent = &self.sent[serial];
                assert_eq!(sent.topic, *topic, "{serial} crossed topics");
                *counts.entry((*client, serial)).or_default() += 1;
                let before = newest.insert(sent.channel, serial);
                assert!(
                    before.is_none_or(|before| before < serial),
                    "{client:?}: {before:?} before {serial}"
                );
            }
        }
        for (serial, sent) in self.sent.iter_mut().enumerate() {
            if std::mem::replace(&mut sent.is_settled, true) {
                continue;
            }
            for &(client, channel) in &sent.members {
                let is_still_there =
                    self.channels.get(&(client, sent.topic)).is_some_and(|current| current.serial == channel);
                let can_read =
                    !matches!(sent.form, Form::Bytes) || self.server.version(client) == Version::V2;
                let count = counts.get(&(client, serial)).copied().unwrap_or(0);
                if is_still_there {
                    assert_eq!(count, usize::from(can_read), "{client:?} and broadcast {serial}");
                }
            }
        }
        for ((client, serial), count) in counts {
            assert_eq!(count, 1, "{client:?} received {serial} more than once");
            assert_ne!(self.sent[serial].silent, Some(client), "{serial} came back to its sender");
        }
        let acks: BTreeSet<_> = self.received_acks.iter().copied().collect();
        assert_eq!(acks.len(), self.received_acks.len(), "an acknowledgement came twice");
        for &(client, serial) in &self.expected_acks {
            let is_open = self.clients.contains(&client);
            assert!(!is_open || acks.contains(&(client, serial)), "{serial} was not acknowledged");
        }
        assert!(acks.is_subset(&self.expected_acks), "an acknowledgement that nobody asked for");
    }

    fn check_counts(&self) {
        let sockets: usize = self.server.hubs.iter().map(|hub| hub.socket_count()).sum();
        let channels: usize = self.server.hubs.iter().map(|hub| hub.channel_count()).sum();
        assert_eq!((sockets, channels), (self.clients.len(), self.channels.len()));
        for hub in &self.server.hubs {
            assert!(hub.topic_count() <= TOPICS.len());
        }
    }

    /// Subscribed channels are exactly those that live and have bindings; each ended once.
    fn check_subscriptions(&self) {
        let mut live: BTreeMap<ChannelId, bool> = BTreeMap::new();
        for command in &self.server.changes {
            match command {
                ChangeCommand::Subscribe { channel, .. } => {
                    assert!(live.insert(*channel, true).is_none(), "{channel:?} subscribed twice");
                }
                ChangeCommand::Reauthorize { channel, .. } => {
                    assert_eq!(live.get(channel), Some(&true), "{channel:?} is not subscribed");
                }
                ChangeCommand::TellWhenReady { .. } => panic!("no channel of this model asks for it"),
                ChangeCommand::Unsubscribe { channel } => {
                    assert_eq!(live.insert(*channel, false), Some(true), "{channel:?} is not subscribed");
                }
            }
        }
        let expected = self.channels.values().filter(|channel| channel.options.bindings).count();
        assert_eq!(live.values().filter(|is_live| **is_live).count(), expected);
    }

    fn end(mut self) {
        self.settle();
        for client in std::mem::take(&mut self.clients) {
            self.server.handle_closed(client);
        }
        self.channels.clear();
        self.settle();
        self.server.expect_empty();
    }
}

/// Generated keys are known to nobody.
fn known_key(channel: &Channel) -> Option<&'static str> {
    Some(KEYS[channel.options.key]).filter(|key| !key.is_empty())
}

fn join_ref(options: &JoinOptions, serial: u64) -> String {
    if options.has_join_ref { format!(r#""c{serial}""#) } else { "null".to_owned() }
}

fn user_broadcast(topic: &str, serial: usize, encoding: Encoding, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    tidewire_protocol::frame::write_user_broadcast_push(
        &mut out,
        "",
        &format!("b{serial}"),
        topic,
        "e",
        "",
        encoding,
        payload,
    )
    .expect("short fields");
    out
}

proptest! {
    #![proptest_config(cases(1500))]

    #[test]
    fn any_history_ends_in_the_truth(
        hubs in 1..=3_usize,
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut model = Model::new(hubs);
        for hub in 0..hubs {
            model.apply(Step::Open { hub, is_v1: false });
        }
        for step in steps {
            model.apply(step);
        }
        model.end();
    }
}
