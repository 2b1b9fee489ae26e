//! Owns the join payload and its neighbours: which parts of foreign JSON become settings, bindings and tokens, and
//! the payload of `system` messages. It judges no token, knows no tenant default and compiles no filter.
//!
//! Validation never refuses a join (PROTOCOL.md §2.2): what cannot be read becomes its default and a
//! [`JoinProblem`] for the log. The single failure is a payload that is not an object.

use std::fmt;

use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::frame::Status;
use crate::json;

mod binding;
mod elixir;
mod fingerprint;

pub use binding::{
    Binding, BindingEvent, Param, Params, Pattern, Select, Target, TargetError, legacy_binding,
};

/// How many bindings [`parse`] keeps at most, plus one so that the caller can see that there were more.
///
/// `{},` costs a client three bytes and us some two hundred; without a bound one 5 MB frame would become hundreds
/// of megabytes. Real applications stay below a few dozen; the engine's own limit may be lower, never higher.
pub const MAX_BINDINGS: usize = 1_000;

/// The payload of `phx_join`. Spec: PROTOCOL.md §2.2.
#[derive(Debug)]
pub struct JoinPayload<'a> {
    /// No `config` key: the binding comes from the topic ([`legacy_binding`]) and `bindings` is empty.
    pub legacy: bool,
    /// `config.private`
    pub private: bool,
    /// `config.broadcast.ack`: answer broadcasts.
    pub ack: bool,
    /// `config.broadcast.self`: deliver this channel's own broadcasts to it.
    pub receives_own: bool,
    /// `config.broadcast.replication_ready` is anything but null or false.
    pub replication_ready: bool,
    /// `config.broadcast.replay` as sent, if the key is present at all, even as null: on a public channel its
    /// presence alone is an error (PROTOCOL.md §3.6).
    pub replay: Option<&'a RawValue>,
    /// `config.presence.enabled`; `None` means the tenant's default.
    pub presence_enabled: Option<bool>,
    /// `config.presence.key`; `None` means: generate one. Numbers became their decimal string.
    pub presence_key: Option<String>,
    /// `config.postgres_changes` in order, null elements dropped; at most [`MAX_BINDINGS`] + 1 of them.
    pub bindings: Vec<Binding>,
    /// `access_token`
    pub access_token: TokenField,
    /// `user_token`
    pub user_token: TokenField,
    /// `config.tidewire` as sent, if present: the extensions of this server. Official clients never send it.
    pub tidewire: Option<&'a RawValue>,
    /// What was ignored; to be logged as `InvalidJoinPayload`.
    pub problems: Vec<JoinProblem>,
}

/// A token key of the join payload.
#[derive(Clone, PartialEq, Eq)]
pub enum TokenField {
    /// No such key.
    Absent,
    /// The key is null.
    Null,
    /// A string.
    Token(String),
    /// Something else; ignored.
    Other,
}

impl TokenField {
    fn parse(raw: Option<&RawValue>) -> TokenField {
        match raw.map(RawValue::get) {
            None => TokenField::Absent,
            Some("null") => TokenField::Null,
            Some(raw) => {
                json::string(raw).map_or(TokenField::Other, |text| TokenField::Token(text.into_owned()))
            }
        }
    }

    fn text(&self) -> Option<&str> {
        match self {
            TokenField::Token(token) => Some(token),
            TokenField::Absent | TokenField::Null | TokenField::Other => None,
        }
    }
}

/// Shows the shape only: a token never reaches a log.
impl fmt::Debug for TokenField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TokenField::Absent => "Absent",
            TokenField::Null => "Null",
            TokenField::Token(_) => "Token(<redacted>)",
            TokenField::Other => "Other",
        })
    }
}

/// One part of a join payload that could not be read and was replaced by its default.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JoinProblem {
    /// Where, as a dotted path.
    pub path: &'static str,
    /// What, in the reference's words.
    pub text: &'static str,
}

impl fmt::Display for JoinProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.text)
    }
}

/// The join payload is not a JSON object: answer `UnknownErrorOnChannel`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("join payload is not an object")]
pub struct NotAnObject;

const EXPECTED_BOOLEAN: &str = "unable to parse, expected boolean";
const EXPECTED_STRING: &str = "unable to parse, expected string";
const EXPECTED_MAP: &str = "unable to parse, expected a map";
const EXPECTED_MAPS: &str = "unable to parse, expected an array of maps";

/// Reads a join payload: everything that is valid, defaults for the rest.
///
/// # Errors
/// [`NotAnObject`], and nothing else.
pub fn parse(payload: &str) -> Result<JoinPayload<'_>, NotAnObject> {
    let [config, access_token, user_token] =
        json::fields(payload, ["config", "access_token", "user_token"]).ok_or(NotAnObject)?;
    let mut join = JoinPayload {
        legacy: config.is_none(),
        private: false,
        ack: false,
        receives_own: false,
        replication_ready: false,
        replay: None,
        presence_enabled: None,
        presence_key: None,
        bindings: Vec::new(),
        access_token: TokenField::parse(access_token),
        user_token: TokenField::parse(user_token),
        tidewire: None,
        problems: Vec::new(),
    };
    if join.access_token == TokenField::Other {
        join.problem("access_token", EXPECTED_STRING);
    }
    if join.user_token == TokenField::Other {
        join.problem("user_token", EXPECTED_STRING);
    }
    if let Some(config) = config {
        join.read_config(config.get());
    }
    Ok(join)
}

impl<'a> JoinPayload<'a> {
    /// The token that counts for this channel; `None` means the connection's credential. Spec: PROTOCOL.md §2.3.
    ///
    /// The order is odd and kept: `sb_` is looked for in `access_token` first, while among real tokens
    /// `user_token` wins.
    pub fn token(&self) -> Option<&str> {
        let key_candidate = match &self.access_token {
            TokenField::Absent | TokenField::Null => &self.user_token,
            present => present,
        };
        if key_candidate.text().is_some_and(is_opaque_key) {
            return None;
        }
        self.user_token.text().or_else(|| self.access_token.text())
    }

    fn read_config(&mut self, config: &'a str) {
        let names = ["private", "broadcast", "presence", "postgres_changes", "tidewire"];
        let Some([private, broadcast, presence, postgres_changes, tidewire]) = json::fields(config, names)
        else {
            if config != "null" {
                self.problem("config", EXPECTED_MAP);
            }
            return;
        };
        self.private = self.boolean("config.private", private).unwrap_or(false);
        if let Some(broadcast) = broadcast {
            self.read_broadcast(broadcast.get());
        }
        if let Some(presence) = presence {
            self.read_presence(presence.get());
        }
        if let Some(postgres_changes) = postgres_changes {
            self.read_bindings(postgres_changes.get());
        }
        self.tidewire = tidewire;
    }

    fn read_broadcast(&mut self, broadcast: &'a str) {
        let names = ["ack", "self", "replay", "replication_ready"];
        let Some([ack, receives_own, replay, replication_ready]) = json::fields(broadcast, names) else {
            if broadcast != "null" {
                self.problem("config.broadcast", EXPECTED_MAP);
            }
            return;
        };
        self.ack = self.boolean("config.broadcast.ack", ack).unwrap_or(false);
        self.receives_own = self.boolean("config.broadcast.self", receives_own).unwrap_or(false);
        self.replication_ready = replication_ready.is_some_and(|raw| !matches!(raw.get(), "null" | "false"));
        self.replay = replay;
        if replay.is_some_and(|raw| raw.get() != "null" && !json::is_object(raw.get())) {
            self.problem("config.broadcast.replay", EXPECTED_MAP);
        }
    }

    fn read_presence(&mut self, presence: &'a str) {
        let Some([enabled, key]) = json::fields(presence, ["enabled", "key"]) else {
            if presence != "null" {
                self.problem("config.presence", EXPECTED_MAP);
            }
            return;
        };
        self.presence_enabled = self.boolean("config.presence.enabled", enabled);
        let Some(key) = key.map(RawValue::get).filter(|raw| *raw != "null") else { return };
        let is_number = key.starts_with(|c: char| c == '-' || c.is_ascii_digit());
        if is_number {
            self.presence_key = Some(key.to_owned());
        } else if let Some(text) = json::string(key) {
            // An empty key means "generate"; both official clients send it by default (Q42).
            self.presence_key = Some(text.into_owned()).filter(|text| !text.is_empty());
        } else {
            self.problem("config.presence.key", EXPECTED_STRING);
        }
    }

    fn read_bindings(&mut self, postgres_changes: &'a str) {
        if postgres_changes == "null" {
            return;
        }
        let mut deserializer = serde_json::Deserializer::from_str(postgres_changes);
        let elements = deserializer.deserialize_seq(Elements).unwrap_or(None);
        let bindings: Option<Vec<Binding>> =
            elements.and_then(|elements| elements.iter().map(|raw| Binding::parse(raw.get())).collect());
        match bindings {
            Some(bindings) => self.bindings = bindings,
            None => self.problem("config.postgres_changes", EXPECTED_MAPS),
        }
    }

    /// A flexible boolean; absent, null and invalid are all `None`, and only the last is a problem.
    fn boolean(&mut self, path: &'static str, raw: Option<&RawValue>) -> Option<bool> {
        let raw = raw?.get();
        match raw {
            "true" => return Some(true),
            "false" => return Some(false),
            "null" => return None,
            _ => {}
        }
        let text = json::string(raw);
        if text.as_deref().is_some_and(|text| text.eq_ignore_ascii_case("true")) {
            Some(true)
        } else if text.as_deref().is_some_and(|text| text.eq_ignore_ascii_case("false")) {
            Some(false)
        } else {
            self.problem(path, EXPECTED_BOOLEAN);
            None
        }
    }

    fn problem(&mut self, path: &'static str, text: &'static str) {
        self.problems.push(JoinProblem { path, text });
    }
}

/// The elements of an array that are not null, at most [`MAX_BINDINGS`] + 1 of them; `None` if one is no object.
struct Elements;

impl<'de> Visitor<'de> for Elements {
    type Value = Option<Vec<&'de RawValue>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut elements = Vec::new();
        let mut are_objects = true;
        while elements.len() <= MAX_BINDINGS {
            match seq.next_element::<&RawValue>()?.map(|raw| (raw, raw.get())) {
                None => return Ok(are_objects.then_some(elements)),
                Some((_, "null")) => {}
                Some((raw, text)) if json::is_object(text) => elements.push(raw),
                Some(_) => are_objects = false,
            }
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(are_objects.then_some(elements))
    }
}

/// Opaque API keys are not tokens; the gateway turned them into the connection's credential (Q41).
fn is_opaque_key(token: &str) -> bool {
    token.starts_with("sb_")
}

/// What an `access_token` push asks for, as far as its payload tells. Spec: PROTOCOL.md §6.4.
#[derive(Clone, PartialEq, Eq)]
pub enum AccessTokenPush {
    /// Null, or an opaque `sb_` key: nothing happens. (A token equal to the current one is ignored too, which
    /// only the channel can know.)
    Ignored,
    /// Key missing or not a string: nothing happens, but it counts as an unknown event.
    Unknown,
    /// A token to verify.
    Token(String),
}

/// Shows the shape only: a token never reaches a log.
impl fmt::Debug for AccessTokenPush {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AccessTokenPush::Ignored => "Ignored",
            AccessTokenPush::Unknown => "Unknown",
            AccessTokenPush::Token(_) => "Token(<redacted>)",
        })
    }
}

/// Reads the payload of an `access_token` push.
pub fn parse_access_token(payload: &str) -> AccessTokenPush {
    let Some([token]) = json::fields(payload, ["access_token"]) else { return AccessTokenPush::Unknown };
    match TokenField::parse(token) {
        TokenField::Null => AccessTokenPush::Ignored,
        TokenField::Token(token) if is_opaque_key(&token) => AccessTokenPush::Ignored,
        TokenField::Token(token) => AccessTokenPush::Token(token),
        TokenField::Absent | TokenField::Other => AccessTokenPush::Unknown,
    }
}

/// Appends the payload of a `system` message. `channel` is the sub-topic. Spec: PROTOCOL.md §1.9.
pub fn write_system(out: &mut Vec<u8>, extension: &str, status: Status, message: &str, channel: &str) {
    out.extend_from_slice(b"{\"extension\":");
    json::write_string(out, extension);
    out.extend_from_slice(b",\"status\":");
    json::write_string(out, status.as_str());
    out.extend_from_slice(b",\"message\":");
    json::write_string(out, message);
    out.extend_from_slice(b",\"channel\":");
    json::write_string(out, channel);
    out.push(b'}');
}
