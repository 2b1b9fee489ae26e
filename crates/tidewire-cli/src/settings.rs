//! The server's settings from their sources: defaults ← file ← `TIDEWIRE__SECTION__KEY` ← flags.
//!
//! Owns the merging and the paths in messages; what a setting means is the server's business. The
//! environment only has text, so a text becomes what the setting wants: a number, a yes or no, a list
//! separated by commas. Unknown settings are errors, wherever they stand; values are never quoted in
//! messages, because some of them are secrets.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::value::{MapDeserializer, SeqDeserializer, StringDeserializer};
use serde::de::{self, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, Visitor};
use tidewire_server::ServerConfig;

use crate::output::Failure;

const PREFIX: &str = "TIDEWIRE__";
const ADVICE: &str = "correct the setting; `tidewire config default` shows all of them";

/// Merges the sources, the later winning.
pub(crate) fn load(
    defaults: &str,
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<ServerConfig, Failure> {
    let mut tree = parse(defaults, "the defaults")?;
    if let Some(path) = file {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| {
            let message = format!("{name} cannot be read: {error}");
            Failure::new("ConfigMissing", message, "`tidewire config default > tidewire.toml` writes one")
        })?;
        tree.merge(parse(&text, &name)?);
    }
    for (name, value) in environment {
        let Some(path) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
        let Some(value) = value.to_str() else {
            return Err(invalid(format!("{PREFIX}{path}: it is not UTF-8")));
        };
        let path: Vec<String> = path.split("__").map(str::to_ascii_lowercase).collect();
        tree.set(&path, value).map_err(|error| invalid(error.to_string()))?;
    }
    ServerConfig::deserialize(tree).map_err(|error| invalid(error.to_string()))
}

fn invalid(message: String) -> Failure {
    Failure::new("ConfigInvalid", message, ADVICE)
}

fn parse(text: &str, name: &str) -> Result<Node, Failure> {
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        // Not the error's own text: it quotes the line, which may hold a secret.
        let line =
            error.span().map_or(0, |span| text.get(..span.start).unwrap_or(text).lines().count().max(1));
        invalid(format!("{name}, line {line}: {}", error.message()))
    })?;
    Ok(Node::from(toml::Value::Table(table)))
}

/// One place in the tree of settings.
#[derive(Debug, Clone)]
enum Node {
    Table(BTreeMap<String, Node>),
    List(Vec<Node>),
    Value(toml::Value),
    /// From the environment: becomes what the setting wants.
    Text(String),
}

impl From<toml::Value> for Node {
    fn from(value: toml::Value) -> Self {
        match value {
            toml::Value::Table(table) => {
                Self::Table(table.into_iter().map(|(key, value)| (key, value.into())).collect())
            }
            toml::Value::Array(list) => Self::List(list.into_iter().map(Self::from).collect()),
            value => Self::Value(value),
        }
    }
}

impl Node {
    fn merge(&mut self, over: Self) {
        match (self, over) {
            (Self::Table(under), Self::Table(over)) => {
                for (key, value) in over {
                    match under.get_mut(&key) {
                        Some(node) => node.merge(value),
                        None => {
                            under.insert(key, value);
                        }
                    }
                }
            }
            (under, over) => *under = over,
        }
    }

    fn set(&mut self, path: &[String], value: &str) -> Result<(), TreeError> {
        let Some((key, rest)) = path.split_first() else {
            *self = Self::Text(value.to_owned());
            return Ok(());
        };
        if key.is_empty() {
            return Err(de::Error::custom("the variable's name has an empty part"));
        }
        match self {
            Self::Table(table) => table
                .entry(key.clone())
                .or_insert_with(|| Self::Table(BTreeMap::new()))
                .set(rest, value)
                .map_err(|error| error.below(key)),
            _ => Err(TreeError::custom_at(key, "the setting above it is not a section")),
        }
    }
}

/// What is wrong, and where.
#[derive(Debug)]
struct TreeError {
    path: Vec<String>,
    message: String,
}

impl TreeError {
    fn custom_at(key: &str, message: &str) -> Self {
        Self { path: vec![key.to_owned()], message: message.to_owned() }
    }

    fn below(mut self, key: &str) -> Self {
        self.path.insert(0, key.to_owned());
        self
    }
}

impl fmt::Display for TreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path.join("."))?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for TreeError {}

impl de::Error for TreeError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { path: Vec::new(), message: message.to_string() }
    }

    fn invalid_type(unexpected: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        // The kind only, never the value: it may be a secret.
        let kind = match unexpected {
            de::Unexpected::Bool(_) => "a boolean",
            de::Unexpected::Unsigned(_) | de::Unexpected::Signed(_) => "an integer",
            de::Unexpected::Float(_) => "a floating point number",
            de::Unexpected::Str(_) => "a text",
            de::Unexpected::Seq => "a list",
            de::Unexpected::Map => "a section",
            _ => "something else",
        };
        Self::custom(format_args!("expected {expected}, found {kind}"))
    }

    fn invalid_value(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::custom(format_args!("expected {expected}"))
    }
}

impl<'de> IntoDeserializer<'de, TreeError> for Node {
    type Deserializer = Self;
    fn into_deserializer(self) -> Self {
        self
    }
}

/// Numbers and booleans of the environment are read from their text.
macro_rules! from_text {
    ($($method:ident => $visit:ident: $kind:ty, $wanted:literal;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TreeError> {
            match self {
                Self::Text(text) => match text.trim().replace('_', "").parse::<$kind>() {
                    Ok(value) => visitor.$visit(value),
                    Err(_) => Err(de::Error::custom(concat!("expected ", $wanted))),
                },
                other => other.deserialize_any(visitor),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for Node {
    type Error = TreeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TreeError> {
        match self {
            Self::Table(table) => visitor.visit_map(Entries { rest: table.into_iter(), next: None }),
            Self::List(list) => {
                let mut list = SeqDeserializer::new(list.into_iter());
                let value = visitor.visit_seq(&mut list)?;
                list.end().map(|()| value)
            }
            Self::Value(toml::Value::String(text)) | Self::Text(text) => visitor.visit_string(text),
            Self::Value(toml::Value::Integer(number)) => visitor.visit_i64(number),
            Self::Value(toml::Value::Float(number)) => visitor.visit_f64(number),
            Self::Value(toml::Value::Boolean(value)) => visitor.visit_bool(value),
            Self::Value(_) => Err(de::Error::custom("a date is not a setting")),
        }
    }

    from_text! {
        deserialize_bool => visit_bool: bool, "true or false";
        deserialize_u8 => visit_u8: u8, "a number";
        deserialize_u16 => visit_u16: u16, "a number";
        deserialize_u32 => visit_u32: u32, "a number";
        deserialize_u64 => visit_u64: u64, "a number";
        deserialize_i8 => visit_i8: i8, "a number";
        deserialize_i16 => visit_i16: i16, "a number";
        deserialize_i32 => visit_i32: i32, "a number";
        deserialize_i64 => visit_i64: i64, "a number";
        deserialize_f32 => visit_f32: f32, "a number";
        deserialize_f64 => visit_f64: f64, "a number";
    }

    /// TOML has no null: `"unlimited"` and `"none"` take a limit away.
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TreeError> {
        match &self {
            Self::Text(text) | Self::Value(toml::Value::String(text))
                if matches!(text.as_str(), "unlimited" | "none") =>
            {
                visitor.visit_none()
            }
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TreeError> {
        match self {
            Self::Text(text) => {
                let items: Vec<Node> = text
                    .split(',')
                    .map(str::trim)
                    .filter(|item| !item.is_empty())
                    .map(|item| Self::Text(item.to_owned()))
                    .collect();
                visitor.visit_seq(SeqDeserializer::new(items.into_iter()))
            }
            other => other.deserialize_any(visitor),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, TreeError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, TreeError> {
        match self {
            Self::Value(toml::Value::String(text)) | Self::Text(text) => {
                let text: StringDeserializer<TreeError> = text.into_deserializer();
                text.deserialize_enum(name, variants, visitor)
            }
            Self::Table(table) => {
                de::value::MapAccessDeserializer::new(MapDeserializer::new(table.into_iter()))
                    .deserialize_enum(name, variants, visitor)
            }
            _ => Err(de::Error::custom("expected a name")),
        }
    }

    serde::forward_to_deserialize_any! {
        i128 u128 char str string bytes byte_buf unit unit_struct tuple tuple_struct map struct identifier ignored_any
    }
}

/// The entries of a section; errors below learn where they are.
struct Entries {
    rest: std::collections::btree_map::IntoIter<String, Node>,
    next: Option<(String, Node)>,
}

impl<'de> MapAccess<'de> for Entries {
    type Error = TreeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, TreeError> {
        self.next = self.rest.next();
        let Some((key, _)) = &self.next else { return Ok(None) };
        let key: StringDeserializer<TreeError> = key.clone().into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, TreeError> {
        let (key, node) = self.next.take().expect("invariant: a value follows its key");
        seed.deserialize(node).map_err(|error| error.below(&key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(file: &str, environment: &[(&str, &str)]) -> Result<ServerConfig, Failure> {
        load(
            file,
            None,
            environment.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))),
        )
    }

    fn refusal(file: &str, environment: &[(&str, &str)]) -> String {
        format!("{:?}", with(file, environment).unwrap_err())
    }

    #[test]
    fn the_environment_wins_over_the_file_and_takes_the_settings_type() {
        let file =
            "shards = 2\n[limits]\nmax_connections = 10\nmax_body_bytes = 7\n[tenant]\nroles = ['anon']\n";
        let config = with(
            file,
            &[
                ("TIDEWIRE__LIMITS__MAX_CONNECTIONS", "20_000"),
                ("TIDEWIRE__TENANT__ROLES", "anon, authenticated"),
                ("TIDEWIRE__TENANT__JWT_SECRET", "12345678901234567890123456789012"),
                ("TIDEWIRE__LISTEN", "0.0.0.0:80"),
                ("TIDEWIRE__PAGES", "true"),
                ("TIDEWIRE_CACHE", "not a setting"),
            ],
        )
        .unwrap();
        assert_eq!(config.shards, 2);
        assert_eq!(config.limits.max_connections, 20_000);
        assert_eq!(config.limits.max_body_bytes, 7);
        assert_eq!(config.tenant.roles, ["anon", "authenticated"]);
        assert_eq!(config.tenant.jwt_secret.expose(), "12345678901234567890123456789012");
        assert_eq!(config.listen.port(), 80);
        assert!(config.pages);
    }

    #[test]
    fn a_limit_can_be_taken_away() {
        assert_eq!(
            with("", &[("TIDEWIRE__LIMITS__PRESENCE_CALLS", "unlimited")]).unwrap().limits.presence_calls,
            None
        );
        assert_eq!(with("limits.presence_calls = 'none'", &[]).unwrap().limits.presence_calls, None);
        assert_eq!(with("limits.presence_calls = 9", &[]).unwrap().limits.presence_calls, Some(9));
    }

    #[test]
    fn unknown_settings_are_refused_with_their_path() {
        assert!(
            refusal("[limits]\nmax_conections = 1", &[]).contains("limits: unknown field `max_conections`")
        );
        assert!(refusal("", &[("TIDEWIRE__LIMITZ__X", "1")]).contains("unknown field `limitz`"));
        assert!(refusal("", &[("TIDEWIRE__SHARDS__X", "1")]).contains("shards: "));
        assert!(refusal("shards = 1", &[("TIDEWIRE__SHARDS__X", "1")]).contains("not a section"));
        assert!(refusal("", &[("TIDEWIRE____X", "1")]).contains("empty part"));
    }

    #[test]
    fn messages_name_the_place_and_never_quote_a_value() {
        let wrong = refusal("", &[("TIDEWIRE__LIMITS__MAX_CONNECTIONS", "hunter2")]);
        assert!(wrong.contains("limits.max_connections: expected a number"), "{wrong}");
        assert!(!wrong.contains("hunter2"));
        let wrong = refusal("[tenant]\njwt_secret = 1234567", &[]);
        assert!(wrong.contains("tenant.jwt_secret: "), "{wrong}");
        assert!(!wrong.contains("1234567"));
        let wrong = refusal("[tenant]\njwt_secret = 'hunter2", &[]);
        assert!(wrong.contains("line 2"), "{wrong}");
        assert!(!wrong.contains("hunter2"));
    }
}
