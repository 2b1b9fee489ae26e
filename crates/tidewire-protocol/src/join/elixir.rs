//! Prints JSON the way Elixir's `inspect` prints the decoded term, because one message of the reference shows
//! its parameters like that (PROTOCOL.md §5.10). Follows `inspect`'s default limits: 50 elements per collection
//! and 4096 characters per string, which also bounds what a client can make us send back.

use std::fmt::Write as _;

use serde_json::Value;

const MAX_ELEMENTS: usize = 50;
const MAX_CHARS: usize = 4096;

/// `%{"event" => "*", "n" => [1, nil]}`
pub(super) fn inspect(value: &Value) -> String {
    let mut out = String::new();
    write_value(&mut out, value);
    out
}

fn write_value(out: &mut String, value: &Value) {
    match value {
        Value::Null => out.push_str("nil"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Number(number) => {
            let _ = write!(out, "{number}");
        }
        Value::String(text) => write_text(out, text),
        Value::Array(elements) => {
            out.push('[');
            write_list(out, elements.iter(), write_value);
            out.push(']');
        }
        Value::Object(entries) => {
            out.push_str("%{");
            let mut entries: Vec<_> = entries.iter().collect();
            entries.sort_unstable_by_key(|(key, _)| *key);
            write_list(out, entries.into_iter(), |out, (key, value)| {
                write_text(out, key);
                out.push_str(" => ");
                write_value(out, value);
            });
            out.push('}');
        }
    }
}

fn write_list<T>(out: &mut String, elements: impl Iterator<Item = T>, mut write: impl FnMut(&mut String, T)) {
    for (index, element) in elements.enumerate() {
        if index > 0 {
            out.push_str(", ");
        }
        if index == MAX_ELEMENTS {
            out.push_str("...");
            return;
        }
        write(out, element);
    }
}

fn write_text(out: &mut String, text: &str) {
    out.push('"');
    let mut chars = text.chars().peekable();
    let mut count = 0;
    while let Some(c) = chars.next() {
        if count == MAX_CHARS {
            out.push_str("\" <> ...");
            return;
        }
        count += 1;
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '#' if chars.peek() == Some(&'{') => out.push_str("\\#"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\0' => out.push_str("\\0"),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0b' => out.push_str("\\v"),
            '\x0c' => out.push_str("\\f"),
            '\x1b' => out.push_str("\\e"),
            '\x7f' => out.push_str("\\d"),
            c if c < ' ' => {
                let _ = write!(out, "\\x{:02X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}
