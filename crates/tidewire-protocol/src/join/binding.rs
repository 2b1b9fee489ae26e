//! One element of `config.postgres_changes`: kept verbatim for the reply, read as far as the table of
//! PROTOCOL.md §5.2 goes, and given the id that clients match events by. The filter grammar is not this room's.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::{elixir, fingerprint};
use crate::json;

/// No table has more columns (PostgreSQL, appendix K). Names beyond are dropped, which can only show less: without a
/// bound, `"",` costs a client three bytes and us twenty-four.
const MAX_COLUMNS: usize = 1_600;

/// Parameters longer than this are not printed into an error message: it would take a tree of many times their size.
const MAX_PRINTED_BYTES: usize = 64 * 1024;

/// A binding as the client asked for it.
#[derive(Clone, PartialEq, Eq)]
pub struct Binding {
    raw: Box<str>,
    id: u32,
    /// Which operations.
    pub event: BindingEvent,
    /// The parameters, read but not judged.
    pub params: Params,
}

/// Without the raw object: old clients put tokens there.
impl fmt::Debug for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Binding { raw: _, id, event, params } = self;
        f.debug_struct("Binding").field("id", id).field("event", event).field("params", params).finish()
    }
}

/// The operations a binding asks for: any case of `INSERT`, `UPDATE`, `DELETE`; everything else means all.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum BindingEvent {
    /// `*`
    All,
    /// `INSERT`
    Insert,
    /// `UPDATE`
    Update,
    /// `DELETE`
    Delete,
}

impl BindingEvent {
    /// The word on the wire and in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            BindingEvent::All => "*",
            BindingEvent::Insert => "INSERT",
            BindingEvent::Update => "UPDATE",
            BindingEvent::Delete => "DELETE",
        }
    }

    fn parse(raw: Option<&RawValue>) -> BindingEvent {
        let text = raw.and_then(|raw| json::string(raw.get()));
        let is =
            |event: BindingEvent| text.as_deref().is_some_and(|t| t.eq_ignore_ascii_case(event.as_str()));
        [BindingEvent::Insert, BindingEvent::Update, BindingEvent::Delete]
            .into_iter()
            .find(|event| is(*event))
            .unwrap_or(BindingEvent::All)
    }
}

/// The parameters that decide about the target. Spec: PROTOCOL.md §5.2.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Params {
    /// `schema`
    pub schema: Param,
    /// `table`
    pub table: Param,
    /// `filter`
    pub filter: Param,
    /// `select`
    pub select: Select,
}

/// One parameter: presence and type both matter.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Param {
    /// No such key.
    Absent,
    /// A string.
    Text(String),
    /// Anything else, null included (Q35).
    Other,
}

impl Param {
    fn parse(raw: Option<&RawValue>) -> Param {
        match raw {
            None => Param::Absent,
            Some(raw) => json::string(raw.get()).map_or(Param::Other, |text| Param::Text(text.into_owned())),
        }
    }
}

/// The `select` parameter. Spec: PROTOCOL.md §5.4.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Select {
    /// Absent, an empty list, or a value that is neither list nor string.
    AllColumns,
    /// A list; elements that are not strings were dropped, at least one is left.
    Columns(Vec<String>),
    /// A string where a list belongs: an error.
    Text,
}

impl Select {
    fn parse(raw: Option<&RawValue>) -> Select {
        let Some(raw) = raw.map(RawValue::get) else { return Select::AllColumns };
        if raw.starts_with('"') {
            return Select::Text;
        }
        if !raw.starts_with('[') {
            return Select::AllColumns;
        }
        let mut deserializer = serde_json::Deserializer::from_str(raw);
        let columns = deserializer.deserialize_seq(ColumnNames).unwrap_or_default();
        if columns.is_empty() { Select::AllColumns } else { Select::Columns(columns) }
    }
}

/// The strings of an array, at most [`MAX_COLUMNS`] of them.
struct ColumnNames;

impl<'de> Visitor<'de> for ColumnNames {
    type Value = Vec<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut columns = Vec::new();
        while let Some(raw) = seq.next_element::<&RawValue>()? {
            if columns.len() < MAX_COLUMNS {
                columns.extend(json::string(raw.get()).map(Cow::into_owned));
            }
        }
        Ok(columns)
    }
}

/// A schema or table name: matched against the publication with SQL `LIKE`, no escape character (Q34).
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub enum Pattern {
    /// `*`
    Any,
    /// A name in which `%` and `_` are wildcards.
    Like(String),
}

impl Pattern {
    fn new(text: &str) -> Pattern {
        if text == "*" { Pattern::Any } else { Pattern::Like(text.to_owned()) }
    }
}

/// As the message of PROTOCOL.md §5.10 shows it.
impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Pattern::Any => "*",
            Pattern::Like(text) => text,
        })
    }
}

/// What a binding listens to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// Which schemas.
    pub schema: Pattern,
    /// Which tables.
    pub table: Pattern,
    /// The filter text, not parsed; `Some("")` is no filter either.
    pub filter: Option<String>,
    /// The columns to send besides the primary key; `None` means all.
    pub select: Option<Vec<String>>,
}

/// Why a binding has no target. `Display` is the exact `message` of the `system` push; it is not retried.
///
/// Spec: PROTOCOL.md §5.4, §5.10.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TargetError {
    /// The keys present make no target; carries the parameters in Elixir notation, or `<redacted>`.
    #[error(
        "No subscription params provided. Please provide at least a `schema` or `table` to subscribe to: {0}"
    )]
    NoSubscriptionParams(String),
    /// `select` is a string.
    #[error(
        "Error parsing `select` params: expected a list of column name strings, e.g. select: [\"col1\", \"col2\"]"
    )]
    SelectIsText,
    /// `select` together with a schema or table of `*`.
    #[error(
        "Column selection is not supported for wildcard subscriptions. Provide an explicit schema and table name."
    )]
    SelectOnWildcard,
}

impl Binding {
    /// Reads one element; `None` if it is not an object.
    pub fn parse(raw: &str) -> Option<Binding> {
        let raw = raw.trim_ascii();
        let names = ["event", "schema", "table", "filter", "select"];
        let [event, schema, table, filter, select] = json::fields(raw, names)?;
        Some(Binding {
            raw: raw.into(),
            id: fingerprint::id_of(raw),
            event: BindingEvent::parse(event),
            params: Params {
                schema: Param::parse(schema),
                table: Param::parse(table),
                filter: Param::parse(filter),
                select: Select::parse(select),
            },
        })
    }

    /// The client's object, verbatim.
    pub fn raw(&self) -> &str {
        &self.raw
    }

    /// The id of PROTOCOL.md §2.6, in `1..2^27`: the same parameters give the same id on every socket and node,
    /// whatever their order and white space; never 0, which clients take for "no id".
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Appends the client's object with `id` added, as the join reply shows it. Ours comes last, so that it wins
    /// over an `id` the client may have put there itself.
    pub fn write_echo(&self, out: &mut Vec<u8>) {
        let open = self
            .raw
            .strip_suffix('}')
            .expect("invariant: a parsed object ends with a brace")
            .trim_ascii_end();
        out.extend_from_slice(open.as_bytes());
        if open.len() > 1 {
            out.push(b',');
        }
        out.extend_from_slice(b"\"id\":");
        out.extend_from_slice(self.id.to_string().as_bytes());
        out.push(b'}');
    }

    /// What this binding listens to: the table "keys present" of PROTOCOL.md §5.2.
    ///
    /// # Errors
    /// [`TargetError`]: its text goes to the client as a `system` error and is not retried.
    pub fn target(&self) -> Result<Target, TargetError> {
        let Params { schema, table, filter, select } = &self.params;
        // The reference looks at `select` before it looks at the keys.
        let select = match select {
            Select::Text => return Err(TargetError::SelectIsText),
            Select::AllColumns => None,
            Select::Columns(columns) => Some(columns.clone()),
        };
        let (schema, table, filter) = match (schema, table, filter) {
            (Param::Text(schema), Param::Text(table), Param::Text(filter)) => {
                (&**schema, &**table, Some(filter))
            }
            (Param::Text(schema), Param::Text(table), Param::Absent) => (&**schema, &**table, None),
            (Param::Text(schema), Param::Absent, Param::Absent) => (&**schema, "*", None),
            (Param::Absent, Param::Text(table), Param::Absent) => ("public", &**table, None),
            _ => return Err(TargetError::NoSubscriptionParams(self.printed_params())),
        };
        let target = Target {
            schema: Pattern::new(schema),
            table: Pattern::new(table),
            filter: filter.cloned(),
            select,
        };
        if target.select.is_some() && (target.schema == Pattern::Any || target.table == Pattern::Any) {
            return Err(TargetError::SelectOnWildcard);
        }
        Ok(target)
    }

    fn printed_params(&self) -> String {
        const REDACTED: &str = "<redacted>";
        let has_token = json::fields(&self.raw, ["user_token", "auth_token"])
            .is_none_or(|tokens| tokens.iter().any(Option::is_some));
        if has_token || self.raw.len() > MAX_PRINTED_BYTES {
            return REDACTED.to_owned();
        }
        // A tree is refused beyond 128 levels or for a lone surrogate; such parameters are not worth printing.
        serde_json::from_str::<Value>(&self.raw).map_or_else(|_| REDACTED.to_owned(), |v| elixir::inspect(&v))
    }
}

/// The binding that a join without `config` creates from its topic: `schema`, `schema:table` or
/// `schema:table:filter`. Spec: PROTOCOL.md §2.7.
pub fn legacy_binding(sub_topic: &str) -> Binding {
    let mut raw = Vec::with_capacity(sub_topic.len() + 40);
    for (key, part) in ["schema", "table", "filter"].into_iter().zip(sub_topic.splitn(3, ':')) {
        raw.push(if raw.is_empty() { b'{' } else { b',' });
        json::write_string(&mut raw, key);
        raw.push(b':');
        json::write_string(&mut raw, part);
    }
    raw.push(b'}');
    let raw = String::from_utf8(raw).expect("invariant: write_string copies UTF-8 and adds ASCII");
    Binding::parse(&raw).expect("invariant: an object was just written")
}
