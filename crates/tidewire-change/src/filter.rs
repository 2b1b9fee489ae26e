//! The filter of a Postgres Changes binding: grammar, errors, and how error sentences print it.
//!
//! Owns the text form only. What a condition *means* for a value is [`crate::predicate`], what it means in
//! SQL is [`crate::sql`]; whether the column exists is the database's business.
//!
//! Parsing fails with a [`FilterError`] whose text official clients see after [`FILTER_ERROR_PREFIX`].
//!
//! ```text
//! filter := ws? [ cond { "," cond } ] ws?
//! cond   := column "=" [ "not." ] op "." value
//! value  := "(" anything ")"  (op in)  |  quoted  |  anything up to the next top-level comma
//! ```
//!
//! Spec: PROTOCOL.md §5.3.

use std::fmt;

/// What precedes the text of a [`FilterError`] in the `system` message.
pub const FILTER_ERROR_PREFIX: &str = "Error parsing `filter` params: ";

/// Most elements an `in` list may have. Checked when a subscription is validated, not by [`parse`], because
/// the reference answers with another sentence.
pub const IN_LIST_LIMIT: usize = 100;

/// The operators of the grammar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operator {
    /// `=`
    Eq,
    /// `!=`
    Neq,
    /// `<`
    Lt,
    /// `<=`
    Lte,
    /// `>`
    Gt,
    /// `>=`
    Gte,
    /// `= ANY(array)`
    In,
    /// `LIKE`
    Like,
    /// `ILIKE`
    Ilike,
    /// `IS NULL`, `IS TRUE`, `IS FALSE`, `IS UNKNOWN`
    Is,
    /// `~`
    Match,
    /// `~*`
    Imatch,
    /// `IS DISTINCT FROM`
    IsDistinct,
}

impl Operator {
    /// Every operator, in the order of the specification.
    pub const ALL: [Operator; 13] = [
        Operator::Eq,
        Operator::Neq,
        Operator::Lt,
        Operator::Lte,
        Operator::Gt,
        Operator::Gte,
        Operator::In,
        Operator::Like,
        Operator::Ilike,
        Operator::Is,
        Operator::Match,
        Operator::Imatch,
        Operator::IsDistinct,
    ];

    /// The word on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Operator::Eq => "eq",
            Operator::Neq => "neq",
            Operator::Lt => "lt",
            Operator::Lte => "lte",
            Operator::Gt => "gt",
            Operator::Gte => "gte",
            Operator::In => "in",
            Operator::Like => "like",
            Operator::Ilike => "ilike",
            Operator::Is => "is",
            Operator::Match => "match",
            Operator::Imatch => "imatch",
            Operator::IsDistinct => "isdistinct",
        }
    }

    fn from_name(name: &str) -> Option<Operator> {
        Operator::ALL.into_iter().find(|op| op.name() == name)
    }
}

/// One condition. All conditions of a filter must hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Condition {
    /// Column name, literal and case-sensitive.
    pub column: String,
    /// Whether `not.` stood before the operator.
    pub negate: bool,
    /// The operator.
    pub op: Operator,
    /// The right-hand side: for [`Operator::In`] the text between the parentheses (the body of a PostgreSQL
    /// array literal), otherwise the value with whole-value quotes removed.
    pub value: String,
}

/// Why a filter does not parse. `Display` is the sentence without [`FILTER_ERROR_PREFIX`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// A condition without `=` or without an operator that exists: the parts it fell into.
    #[error("{}", elixir_list(.0))]
    Unrecognised(Vec<String>),
    /// Two commas in a row, or one at an end.
    #[error("filter must not contain empty segments (check for extra commas)")]
    EmptySegment,
    /// `in` without parentheses around its list.
    #[error("`in` filter value must be wrapped by parentheses")]
    UnwrappedList,
}

/// Parses the `filter` string of a binding. Blank text is no filter: an empty list.
///
/// # Errors
/// The first condition, from the left, that the grammar does not allow.
pub fn parse(filter: &str) -> Result<Vec<Condition>, FilterError> {
    let filter = filter.trim();
    if filter.is_empty() {
        return Ok(Vec::new());
    }
    segments(filter).into_iter().map(parse_condition).collect()
}

/// Splits at commas that are outside parentheses and quotes.
fn segments(filter: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut depth) = (0, 0usize);
    // The byte before, within the segment: a quote opens only after one of three.
    let mut previous = 0u8;
    let mut bytes = filter.bytes().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' if matches!(previous, b'.' | b'(' | b',') => {
                while let Some((_, inner)) = bytes.next() {
                    match inner {
                        b'"' => break,
                        b'\\' => _ = bytes.next(),
                        _ => {}
                    }
                }
            }
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            b',' if depth == 0 => {
                parts.push(&filter[start..at]);
                start = at + 1;
                previous = 0;
                continue;
            }
            _ => {}
        }
        previous = byte;
    }
    parts.push(&filter[start..]);
    parts
}

fn parse_condition(segment: &str) -> Result<Condition, FilterError> {
    let segment = segment.trim();
    if segment.is_empty() {
        return Err(FilterError::EmptySegment);
    }
    let unrecognised =
        |parts: &[&str]| FilterError::Unrecognised(parts.iter().map(|part| (*part).to_owned()).collect());
    let (column, rest) = segment.split_once('=').ok_or_else(|| unrecognised(&[segment]))?;
    let (negate, rest) = match rest.strip_prefix("not.") {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let (name, value) = rest.split_once('.').ok_or_else(|| unrecognised(&[rest]))?;
    let op = Operator::from_name(name).ok_or_else(|| unrecognised(&[name, value]))?;
    let value = if op == Operator::In {
        value
            .strip_prefix('(')
            .and_then(|list| list.strip_suffix(')'))
            .ok_or(FilterError::UnwrappedList)?
            .to_owned()
    } else {
        unquote(value).unwrap_or_else(|| value.to_owned())
    };
    Ok(Condition { column: column.to_owned(), negate, op, value })
}

/// The inside of a quoted value if the quotes span the whole of it.
fn unquote(value: &str) -> Option<String> {
    let mut chars = value.strip_prefix('"')?.chars();
    let mut inside = String::with_capacity(value.len());
    while let Some(c) = chars.next() {
        match c {
            '"' => return chars.as_str().is_empty().then_some(inside),
            '\\' => inside.push(chars.next()?),
            _ => inside.push(c),
        }
    }
    None
}

impl fmt::Display for Condition {
    /// The tuple as the reference's sentences print it: `{"id", "eq", "hey", false}`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list;
        let value = if self.op == Operator::In {
            list = format!("{{{}}}", self.value);
            &list
        } else {
            &self.value
        };
        let (column, value) = (elixir_string(&self.column), elixir_string(value));
        write!(f, "{{{column}, \"{}\", {value}, {}}}", self.op.name(), self.negate)
    }
}

/// The conditions as the reference's error sentences print them: `[{"id", "eq", "hey", false}]`.
pub fn elixir(conditions: &[Condition]) -> String {
    let tuples: Vec<String> = conditions.iter().map(Condition::to_string).collect();
    format!("[{}]", tuples.join(", "))
}

/// Strings as an Elixir list: `["a", "b"]`.
pub fn elixir_list<S: AsRef<str>>(parts: &[S]) -> String {
    let strings: Vec<String> = parts.iter().map(|part| elixir_string(part.as_ref())).collect();
    format!("[{}]", strings.join(", "))
}

/// A string as Elixir's `inspect` prints it, in double quotes.
pub fn elixir_string(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '#' if chars.peek() == Some(&'{') => out.push_str("\\#"),
            '\u{07}' => out.push_str("\\a"),
            '\u{08}' => out.push_str("\\b"),
            '\t' => out.push_str("\\t"),
            '\n' => out.push_str("\\n"),
            '\u{0B}' => out.push_str("\\v"),
            '\u{0C}' => out.push_str("\\f"),
            '\r' => out.push_str("\\r"),
            '\u{1B}' => out.push_str("\\e"),
            '\u{7F}' => out.push_str("\\d"),
            '\0' => out.push_str("\\0"),
            c if (c as u32) < 0x100 && c.is_control() => out.push_str(&format!("\\x{:02X}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests;
