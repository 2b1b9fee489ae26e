//! JSON: written straight into bytes, and payloads carried as text, against a tree of `serde_json::Value`.
//!
//! `json [runs]`
//!
//! `change`: one decoded insert of ten columns becomes the payload of a change. `broadcast`: one V2 text frame
//! with a payload of about 256 bytes becomes the frame for its subscribers. The outputs of both ways are compared
//! first, as JSON values; the tree has its keys in another order and `12.50` as `12.5`. Processor time of this
//! process, nanoseconds for one; the output buffer is reused, so that only the work itself takes memory.

use std::hint::black_box;

use serde_json::{Map, Number, Value, json};
use tidewire_change::{Shape, write_string, write_value};
use tidewire_compare::{Failure, allocations, argument, cpu_ns, machine, median, pin, say};
use tidewire_protocol::frame::{self, NULL, Payload, Version, decode_text};
use tidewire_replication::{Cell, Message, Tuple, decode};

/// Long enough that the clock's steps do not matter, short enough to take turns often.
const ROUNDS: u64 = 50_000;

/// Name, type, and the text that Postgres writes; `None` is NULL.
const COLUMNS: [(&str, u32, Option<&str>); 10] = [
    ("id", 20, Some("1234567")),
    ("owner", 2950, Some("6f1e0c1a-2b5d-4a53-9d0e-0a1b2c3d4e5f")),
    ("state", 25, Some("in progress")),
    ("done", 16, Some("f")),
    ("parent", 20, None),
    ("created_at", 1184, Some("2026-01-02 03:04:05.678901+00")),
    ("meta", 3802, Some("{\"priority\": 3, \"labels\": [\"a\", \"b\"]}")),
    ("price", 1700, Some("12.50")),
    ("title", 25, Some("Zoë writes a short sentence \"here\", and goes on to the end of it")),
    ("count", 23, Some("42")),
];

/// What a change of this table always begins with, prepared once per table, as the server does.
const HEAD: &str = "{\"schema\":\"public\",\"table\":\"tasks\",\"type\":\"INSERT\",\
     \"commit_timestamp\":\"2026-01-02T03:04:05.678Z\",\"columns\":";

fn columns_json() -> String {
    let columns: Vec<Value> =
        COLUMNS.iter().map(|(name, oid, _)| json!({ "name": name, "type": format!("type{oid}") })).collect();
    Value::Array(columns).to_string()
}

/// An insert as it comes from the stream.
fn insert() -> Vec<u8> {
    let mut message = b"I\0\0\x40\x07N\0\x0a".to_vec();
    for (_, _, text) in COLUMNS {
        match text {
            Some(text) => {
                message.push(b't');
                message.extend((text.len() as u32).to_be_bytes());
                message.extend(text.as_bytes());
            }
            None => message.push(b'n'),
        }
    }
    message
}

fn row(message: &[u8]) -> Result<Tuple<'_>, Failure> {
    match decode(message)? {
        Message::Insert { new, .. } => Ok(new),
        _ => Err("not an insert".into()),
    }
}

/// As the server's encoder does it.
fn change_direct(message: &[u8], shapes: &[Shape], columns: &str, out: &mut Vec<u8>) -> Result<(), Failure> {
    out.extend_from_slice(HEAD.as_bytes());
    out.extend_from_slice(columns.as_bytes());
    out.extend_from_slice(b",\"record\":{");
    for (index, ((cell, shape), (name, ..))) in row(message)?.cells().zip(shapes).zip(COLUMNS).enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_string(out, name);
        out.push(b':');
        match cell {
            Cell::Text(text) => write_value(out, shape, text),
            _ => out.extend_from_slice(b"null"),
        }
    }
    out.extend_from_slice(b"},\"errors\":null}");
    Ok(())
}

/// The same through a tree: each value by its type, then the object, then its text.
fn change_tree(message: &[u8], shapes: &[Shape], columns: &Value, out: &mut Vec<u8>) -> Result<(), Failure> {
    let mut record = Map::new();
    for ((cell, shape), (name, ..)) in row(message)?.cells().zip(shapes).zip(COLUMNS) {
        let value = match (cell, shape) {
            (Cell::Text(text), Shape::Bool) => Value::Bool(text == "t"),
            (Cell::Text(text), Shape::Integer) => Value::from(text.parse::<i64>()?),
            // A number with its digits kept needs `arbitrary_precision`, which is dearer still.
            (Cell::Text(text), Shape::Numeric | Shape::Float) => {
                Number::from_f64(text.parse()?).map_or(Value::Null, Value::Number)
            }
            (Cell::Text(text), Shape::Json) => serde_json::from_str(text)?,
            (Cell::Text(text), Shape::Timestamptz) => {
                let mut text = text.replacen(' ', "T", 1);
                text.push_str(":00");
                Value::String(text)
            }
            (Cell::Text(text), _) => Value::String(text.to_owned()),
            _ => Value::Null,
        };
        record.insert(name.to_owned(), value);
    }
    let mut data = Map::new();
    data.insert("schema".to_owned(), "public".into());
    data.insert("table".to_owned(), "tasks".into());
    data.insert("type".to_owned(), "INSERT".into());
    data.insert("commit_timestamp".to_owned(), "2026-01-02T03:04:05.678Z".into());
    data.insert("columns".to_owned(), columns.clone());
    data.insert("record".to_owned(), Value::Object(record));
    data.insert("errors".to_owned(), Value::Null);
    Ok(serde_json::to_writer(out, &Value::Object(data))?)
}

fn broadcast_frame() -> String {
    let text = "a sentence that somebody typed, ".repeat(6);
    let payload = json!({ "type": "broadcast", "event": "cursor", "payload": { "x": 17, "y": 23.5, "text": text, "tags": ["a", "b"] } });
    format!("[\"1\",\"7\",\"realtime:room:42\",\"broadcast\",{payload}]")
}

fn broadcast_direct(text: &str, out: &mut Vec<u8>) -> Result<(), Failure> {
    let frame = decode_text(Version::V2, text.as_bytes())?;
    let Payload::Json(payload) = frame.payload else { return Err("not JSON".into()) };
    frame::write_text(out, Version::V2, NULL, NULL, &frame.topic, &frame.event, payload);
    Ok(())
}

fn broadcast_tree(text: &str, out: &mut Vec<u8>) -> Result<(), Failure> {
    let mut frame: Value = serde_json::from_str(text)?;
    let elements = frame.as_array_mut().ok_or("not an array")?;
    elements[0] = Value::Null;
    elements[1] = Value::Null;
    Ok(serde_json::to_writer(out, &frame)?)
}

fn timed(mut work: impl FnMut(&mut Vec<u8>) -> Result<(), Failure>) -> Result<(f64, f64), Failure> {
    let mut out = Vec::with_capacity(4_096);
    let (cpu, taken) = (cpu_ns(), allocations());
    for _ in 0..ROUNDS {
        out.clear();
        work(&mut out)?;
        black_box(&out);
    }
    Ok(((cpu_ns() - cpu) as f64 / ROUNDS as f64, (allocations() - taken) as f64 / ROUNDS as f64))
}

fn main() -> Result<(), Failure> {
    pin(0)?;
    let runs: usize = argument(1, 15)?;
    let message = insert();
    let shapes = COLUMNS.iter().map(|(_, oid, _)| Shape::builtin(*oid).ok_or("no such type"));
    let shapes = shapes.collect::<Result<Vec<_>, _>>()?;
    let columns = columns_json();
    let columns_tree: Value = serde_json::from_str(&columns)?;
    let text = broadcast_frame();

    let (mut direct, mut tree) = (Vec::new(), Vec::new());
    change_direct(&message, &shapes, &columns, &mut direct)?;
    change_tree(&message, &shapes, &columns_tree, &mut tree)?;
    if serde_json::from_slice::<Value>(&direct)? != serde_json::from_slice::<Value>(&tree)? {
        return Err("the two ways disagree about the change".into());
    }
    say(&format!(
        "change: {} bytes of pgoutput, {} bytes of JSON; frame: {} bytes; {}",
        message.len(),
        direct.len(),
        text.len(),
        machine()?
    ))?;
    (direct, tree) = (Vec::new(), Vec::new());
    broadcast_direct(&text, &mut direct)?;
    broadcast_tree(&text, &mut tree)?;
    if serde_json::from_slice::<Value>(&direct)? != serde_json::from_slice::<Value>(&tree)? {
        return Err("the two ways disagree about the broadcast".into());
    }

    let names = [
        "change, straight into bytes",
        "change, through a tree",
        "broadcast, raw text",
        "broadcast, through a tree",
    ];
    let mut times = [const { Vec::new() }; 4];
    let mut taken = [0.0; 4];
    for _ in 0..runs {
        let outcomes = [
            timed(|out| change_direct(black_box(&message), &shapes, &columns, out))?,
            timed(|out| change_tree(black_box(&message), &shapes, &columns_tree, out))?,
            timed(|out| broadcast_direct(black_box(&text), out))?,
            timed(|out| broadcast_tree(black_box(&text), out))?,
        ];
        for (index, (ns, count)) in outcomes.into_iter().enumerate() {
            times[index].push(ns);
            taken[index] = count;
        }
    }
    for (index, name) in names.iter().enumerate() {
        say(&format!(
            "{name:<28} {} ns, {:.2} allocations",
            median(std::mem::take(&mut times[index])),
            taken[index]
        ))?;
    }
    Ok(())
}
