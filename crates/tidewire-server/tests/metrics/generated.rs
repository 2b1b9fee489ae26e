//! Facts that the code knows, as documents: `docs/generated/`.
//!
//! Each test writes its document when `TIDEWIRE_CODEGEN` is 1 (`./x codegen`) and otherwise compares, so a
//! document that is stale fails. Texts come from the code itself: codes and metrics from their tables,
//! settings from the source of `config.rs` (names, types, meanings) and from the values of the defaults, held
//! against what the deserializer takes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use serde_json::json;
use tidewire_protocol::codes::{OperationalCode, Surface};
use tidewire_server::ServerConfig;
use tidewire_server::config::DatabaseConfig;
use tidewire_server::metrics;

const NOTICE: &str = "<!-- Written by `./x codegen`; edit the code, not this file. -->\n\n";

/// Writes or compares.
fn settle(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/generated").join(name);
    if std::env::var("TIDEWIRE_CODEGEN").is_ok_and(|value| value == "1") {
        let folder = path.parent().expect("the file is in a folder");
        std::fs::create_dir_all(folder)
            .and_then(|()| std::fs::write(&path, text))
            .expect("it can be written");
        return;
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    let difference = found.lines().zip(text.lines()).find(|(found, wanted)| found != wanted);
    assert!(
        found == text,
        "docs/generated/{name} is stale, run `./x codegen`; first difference: {difference:?}"
    );
}

/// For a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[test]
fn error_codes() {
    let mut text = format!(
        "{NOTICE}# Operational codes\n\n\
         What can go wrong and what to do about it. A code stands in the log line (`code=…`), in the metric\n\
         `tidewire_operational_codes_total`, and where its entry says. A code is never renamed or reused.\n\n"
    );
    for code in OperationalCode::ALL {
        let surfaces: Vec<&str> = code.surface().iter().map(|surface| said(*surface)).collect();
        let _ = write!(
            text,
            "## {code}\n\n{}.\n\n- Seen in: {}.\n- What to do: {}.\n\n",
            capitalised(code.meaning()),
            surfaces.join(", "),
            code.advice()
        );
    }
    settle("ERROR_CODES.md", &format!("{}\n", text.trim_end()));
}

fn said(surface: Surface) -> &'static str {
    match surface {
        Surface::Handshake => "the answer to a handshake",
        Surface::JoinReply => "the error reply to a join, as `Code: text`",
        Surface::System => "a `system` message, without the code",
        Surface::Http => "an HTTP answer",
        Surface::Close => "a close frame",
        Surface::Log => "the log",
    }
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

#[test]
fn metrics_table() {
    let mut text = format!(
        "{NOTICE}# Metrics\n\n\
         `GET /metrics` answers in Prometheus' text format. It is off unless `metrics.jwt_secret` is set (then\n\
         with `Authorization: Bearer <token>`, signed with that secret) or `metrics.without_secret` opens it on a\n\
         loopback address. Every sample has the labels `{}`, `{}` and `{}`; none has topics, users or addresses.\n\n\
         | metric | type | further labels | meaning |\n| --- | --- | --- | --- |\n",
        metrics::REGION,
        metrics::HOST,
        metrics::ID
    );
    for metric in metrics::ALL {
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let bounds: Vec<String> = metric.bounds.iter().map(f64::to_string).collect();
        let bounds =
            if bounds.is_empty() { String::new() } else { format!("; bounds {}", bounds.join(", ")) };
        let _ = writeln!(
            text,
            "| `{}` | {} | {} | {}{bounds} |",
            metric.name,
            metric.kind.as_str(),
            labels.join(", "),
            cell(metric.help)
        );
    }
    settle("METRICS.md", &text);
}

// ── settings ────────────────────────────────────────────────────────────────────────────────────────────

const SOURCE: &str = include_str!("../../src/config.rs");

/// A public struct or enum of the source.
struct Item {
    doc: String,
    /// Name, type (empty for variants) and meaning.
    members: Vec<(String, String, String)>,
}

/// Structs and enums by name. The source is formatted, so members stand one per line.
fn items() -> BTreeMap<String, Item> {
    let mut items = BTreeMap::new();
    let mut doc = String::new();
    let mut open: Option<(String, Item)> = None;
    for line in SOURCE.lines() {
        let code = line.trim();
        if let Some(text) = code.strip_prefix("///") {
            doc = format!("{doc} {}", text.trim());
            continue;
        }
        if code.starts_with("#[") {
            continue;
        }
        let is_start = ["pub struct ", "pub enum "].iter().find_map(|start| line.strip_prefix(start));
        if let Some(name) = is_start.and_then(|rest| rest.strip_suffix(" {")) {
            open = Some((name.to_owned(), Item { doc: plain(&doc), members: Vec::new() }));
        } else if line == "}" {
            items.extend(open.take());
        } else if let Some((_, item)) = &mut open {
            let member = code.strip_suffix(',').unwrap_or_else(|| panic!("not a member: {line}"));
            let (name, kind) =
                member.strip_prefix("pub ").unwrap_or(member).split_once(": ").unwrap_or((member, ""));
            item.members.push((name.to_owned(), kind.to_owned(), plain(&doc)));
        }
        doc.clear();
    }
    items
}

/// Documentation without links into the code.
fn plain(doc: &str) -> String {
    let doc = doc
        .replace("[`Limits::", "`")
        .replace("[`", "`")
        .replace("`]", "`")
        .replace("`None` =", "`\"none\"` =");
    doc.trim().trim_end_matches('.').to_owned()
}

/// A type as somebody who writes settings sees it.
fn shown_type(kind: &str, items: &BTreeMap<String, Item>) -> String {
    if let Some(inner) = kind.strip_prefix("Option<").and_then(|rest| rest.strip_suffix('>')) {
        return format!("{} or `\"none\"`", shown_type(inner, items));
    }
    match kind {
        "usize" | "u64" | "u32" | "u16" => "number".into(),
        "bool" => "`true` or `false`".into(),
        "String" => "text".into(),
        "Secret" => "secret text".into(),
        "Vec<String>" => "list of texts".into(),
        "SocketAddr" => "address:port".into(),
        other => match items.get(other) {
            Some(item) if item.members.iter().all(|(_, kind, _)| kind.is_empty()) => {
                let named = item.members.iter().map(|(name, _, doc)| {
                    format!("`\"{}\"` ({})", name.to_lowercase(), doc[..1].to_lowercase() + &doc[1..])
                });
                named.collect::<Vec<_>>().join(" or ")
            }
            _ => panic!("how is {other} written in a file of settings?"),
        },
    }
}

/// Values by path, from the indented form of `Debug`.
fn values(debug: &str) -> BTreeMap<String, String> {
    let mut values = BTreeMap::new();
    let mut path: Vec<String> = Vec::new();
    let mut pending: Option<(String, usize, Vec<String>)> = None;
    for line in debug.lines() {
        let depth = (line.len() - line.trim_start().len()) / 4;
        let code = line.trim().trim_end_matches(',');
        if let Some((key, at, parts)) = &mut pending {
            if depth == *at {
                let value = parts.join(", ");
                let value = if code == "]" { format!("[{value}]") } else { value };
                values.insert(key.clone(), value);
                pending = None;
            } else {
                parts.push(code.to_owned());
            }
            continue;
        }
        path.truncate(depth.saturating_sub(1));
        let Some((name, value)) = code.split_once(": ") else { continue };
        path.push(name.to_owned());
        let key = path.join(".");
        match value {
            value if value.ends_with('{') => {}
            "[" | "Some(" => pending = Some((key, depth, Vec::new())),
            value => {
                values.insert(key, value.to_owned());
            }
        }
    }
    values
}

/// A value of `Debug` as a file of settings has it.
fn shown_value(value: &str, kind: &str, items: &BTreeMap<String, Item>) -> String {
    match value {
        "None" => "`\"none\"`".into(),
        "Secret(…)" => "–".into(),
        value if items.contains_key(kind) => format!("`\"{}\"`", value.to_lowercase()),
        value if kind == "SocketAddr" => format!("`\"{value}\"`"),
        value => format!("`{value}`"),
    }
}

#[test]
fn settings() {
    let items = items();
    let defaults = values(&format!("{:#?}", ServerConfig::default()));
    let required = json!({"replication_url": "r", "authenticator_url": "a"});
    let database: DatabaseConfig = serde_json::from_value(required).unwrap();
    let database = values(&format!("{database:#?}"));

    let mut text = format!(
        "{NOTICE}# Settings\n\n\
         Defaults ← file (TOML) ← environment ← flags. The environment's name of `section.key` is\n\
         `TIDEWIRE__SECTION__KEY`; lists are separated by commas there, and `none` takes a limit away. Unknown keys\n\
         are errors. `tidewire config default` prints a file, `tidewire config check` checks one.\n"
    );
    let mut sections = vec![(String::new(), "ServerConfig".to_owned())];
    let mut position = 0;
    while let Some((section, name)) = sections.get(position).cloned() {
        position += 1;
        let item = &items[&name];
        let title = if section.is_empty() { "Top level".to_owned() } else { format!("`[{section}]`") };
        let _ = write!(text, "\n## {title}\n\n{}.\n\n", item.doc);
        text.push_str("| key | type | default | meaning |\n| --- | --- | --- | --- |\n");
        for (key, kind, doc) in &item.members {
            let inner = kind.strip_prefix("Option<").and_then(|rest| rest.strip_suffix('>')).unwrap_or(kind);
            let is_section =
                items.get(inner).is_some_and(|item| item.members.iter().any(|member| !member.1.is_empty()));
            if is_section {
                let default = if inner == kind { "" } else { "absent" };
                let _ = writeln!(text, "| `[{key}]` | section | {default} | {} |", cell(doc));
                sections.push((key.clone(), inner.to_owned()));
                continue;
            }
            let path = if section.is_empty() { key.clone() } else { format!("{section}.{key}") };
            let default =
                match defaults.get(&path).or_else(|| database.get(key).filter(|_| section == "database")) {
                    Some(value) => shown_value(value, kind, &items),
                    None => "–".to_owned(),
                };
            let _ = writeln!(
                text,
                "| `{key}` | {} | {} | {} |",
                shown_type(kind, &items),
                cell(&default),
                cell(doc)
            );
        }
        assert_eq!(
            taken(&section),
            item.members.iter().map(|member| member.0.clone()).collect(),
            "[{section}]"
        );
    }
    text.push_str("\n`–` stands where there is no default: the key is needed where its section is.\n");
    settle("CONFIG.md", &text);
}

/// The keys that the deserializer takes: it lists them when it meets another.
fn taken(section: &str) -> BTreeSet<String> {
    let wrong = json!({"not_a_key": 0});
    let tree = if section.is_empty() { wrong } else { json!({ section: wrong }) };
    let refusal = serde_json::from_value::<ServerConfig>(tree).expect_err("no such key").to_string();
    // The first name is the wrong one; one alone is expected without a list, and reads the same.
    refusal.split('`').skip(1).step_by(2).filter(|name| *name != "not_a_key").map(str::to_owned).collect()
}

#[test]
fn values_are_read_from_their_debug_form() {
    let values = values(&format!("{:#?}", ServerConfig::default()));
    assert_eq!(values["listen"], "127.0.0.1:4000");
    assert_eq!(values["tenant.id"], "\"realtime-dev\"");
    assert_eq!(values["tenant.hosts"], "[]");
    assert_eq!(values["tenant.roles"], "[\"anon\", \"authenticated\", \"service_role\"]");
    assert_eq!(values["limits.presence_calls"], "5");
    assert_eq!(values["limits.max_frame_bytes"], "5000000");
    assert_eq!(values["database"], "None");
}
