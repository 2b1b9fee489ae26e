//! `POST /api/broadcast`: a batch of broadcasts (`PROTOCOL.md` §3.8.1).
//!
//! All or nothing at validation; afterwards public messages are sent in order. Private ones are dropped
//! with the answer unchanged, which is what a caller without permission sees (§3.8.1): policies on
//! `realtime.messages` are not evaluated yet.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::value::RawValue;
use tidewire_engine::{Body, Message, PeerMessage};
use tidewire_protocol::{json, topic};

use super::{App, json_response, now_unix_s};

pub(super) const TENANT_UNKNOWN: &str = r#"{"message":"Tenant not found in database"}"#;
const UNAUTHORIZED: &str = r#"{"message":"Unauthorized"}"#;

/// One message as it came: anything may be missing or of the wrong type.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Draft<'a> {
    #[serde(borrow)]
    topic: Option<&'a RawValue>,
    #[serde(borrow)]
    event: Option<&'a RawValue>,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
    #[serde(borrow)]
    private: Option<&'a RawValue>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Request<'a> {
    #[serde(borrow, default)]
    messages: Option<&'a RawValue>,
}

/// A message that may be sent.
struct Valid<'a> {
    topic: String,
    event: String,
    payload: &'a str,
    is_private: bool,
    id: Option<String>,
}

pub(super) async fn batch(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Response {
    if !app.serves_host(&headers) {
        return json_response(StatusCode::UNAUTHORIZED, TENANT_UNKNOWN);
    }
    let authorized = bearer(&headers).is_some_and(|token| app.tokens.check(&token, now_unix_s()).is_ok());
    if !authorized {
        return json_response(StatusCode::UNAUTHORIZED, UNAUTHORIZED);
    }
    let drafts = match drafts(&body) {
        Ok(drafts) => drafts,
        Err(response) => return *response,
    };
    let mut messages = Vec::with_capacity(drafts.len());
    let mut errors = Vec::with_capacity(drafts.len());
    for draft in &drafts {
        match validate(draft, app.config.limits.max_payload_bytes) {
            Ok(message) => {
                messages.push(message);
                errors.push("{}".to_owned());
            }
            Err(error) => errors.push(error),
        }
    }
    if messages.len() < drafts.len() {
        let body = format!(r#"{{"errors":{{"messages":[{}]}}}}"#, errors.join(","));
        return json_response(StatusCode::UNPROCESSABLE_ENTITY, &body);
    }
    app.shards.uncongested().await;
    for message in messages.iter().filter(|message| !message.is_private) {
        let frame = Message::new(
            &format!("{}{}", topic::PREFIX, message.topic),
            Body::Json { event: "broadcast", payload: payload(message) },
        );
        app.shards.send_to_all(&PeerMessage::Publish { message: Arc::new(frame), is_presence: false });
    }
    StatusCode::ACCEPTED.into_response()
}

/// The token: `Authorization: Bearer …`, any other scheme falls back to `apikey` (§3.8).
pub(super) fn bearer(headers: &HeaderMap) -> Option<String> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    text(header::AUTHORIZATION.as_str())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.to_owned())
        .or_else(|| text("apikey").map(str::to_owned))
}

fn drafts(body: &[u8]) -> Result<Vec<Option<Draft<'_>>>, Box<Response>> {
    const BLANK: &str = r#"{"errors":{"messages":["can't be blank"]}}"#;
    const INVALID: &str = r#"{"errors":{"messages":["is invalid"]}}"#;
    let refuse = |body: &str| Box::new(json_response(StatusCode::UNPROCESSABLE_ENTITY, body));
    let Ok(root) = serde_json::from_slice::<&RawValue>(body) else {
        return Err(Box::new((StatusCode::BAD_REQUEST, "Bad Request").into_response()));
    };
    // A body that is no object counts as one without messages.
    let messages = serde_json::from_str::<Request<'_>>(root.get()).ok().and_then(|request| request.messages);
    // `Option<&RawValue>` reads an explicit null as absent, which the reference tells apart.
    let is_null = messages.is_none()
        && serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(root.get())
            .is_ok_and(|body| body.get("messages").is_some_and(serde_json::Value::is_null));
    let Some(messages) = messages else {
        return Err(refuse(if is_null { INVALID } else { BLANK }));
    };
    let Ok(elements) = serde_json::from_str::<Vec<&RawValue>>(messages.get()) else {
        return Err(refuse(INVALID));
    };
    if elements.is_empty() {
        return Err(refuse(BLANK));
    }
    Ok(elements.iter().map(|element| serde_json::from_str(element.get()).ok()).collect())
}

/// Checks one message. The error is its JSON object, fields with all their complaints.
fn validate<'a>(draft: &Option<Draft<'a>>, max_payload_bytes: usize) -> Result<Valid<'a>, String> {
    let Some(draft) = draft else { return Err(r#"{"messages":["is invalid"]}"#.into()) };
    let mut complaints = Vec::new();
    let mut text = |name: &str, value: Option<&RawValue>| match value
        .map(|raw| serde_json::from_str::<String>(raw.get()))
    {
        None => {
            complaints.push(format!(r#""{name}":["can't be blank"]"#));
            String::new()
        }
        Some(Ok(text)) if text.trim().is_empty() => {
            complaints.push(format!(r#""{name}":["can't be blank"]"#));
            String::new()
        }
        Some(Ok(text)) => text,
        Some(Err(_)) => {
            complaints.push(format!(r#""{name}":["is invalid"]"#));
            String::new()
        }
    };
    let topic = text("topic", draft.topic);
    let event = text("event", draft.event);
    let payload = match draft.payload.map(RawValue::get) {
        None => {
            complaints.push(r#""payload":["can't be blank"]"#.into());
            ""
        }
        Some(payload) if !payload.starts_with('{') => {
            complaints.push(r#""payload":["is invalid"]"#.into());
            ""
        }
        Some(payload) if payload.len() > max_payload_bytes => {
            complaints.push(r#""payload":["Payload size exceeds tenant limit"]"#.into());
            ""
        }
        Some(payload) => payload,
    };
    let is_private = match draft.private.map(RawValue::get) {
        None | Some("false" | "\"false\"" | "\"0\"" | "0") => false,
        Some("true" | "\"true\"" | "\"1\"" | "1") => true,
        Some(_) => {
            complaints.push(r#""private":["is invalid"]"#.into());
            false
        }
    };
    let id = match draft.id.map(|raw| serde_json::from_str::<String>(raw.get())) {
        None => None,
        Some(Ok(id)) if is_uuid(&id) => Some(id.to_ascii_lowercase()),
        Some(_) => {
            complaints.push(r#""id":["is invalid"]"#.into());
            None
        }
    };
    if complaints.is_empty() {
        Ok(Valid { topic, event, payload, is_private, id })
    } else {
        Err(format!("{{{}}}", complaints.join(",")))
    }
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(position, byte)| match position {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// What members get (§3.3, row "HTTP batch").
fn payload(message: &Valid<'_>) -> bytes::Bytes {
    let mut out = Vec::with_capacity(message.payload.len() + message.event.len() + 96);
    out.extend_from_slice(b"{\"type\":\"broadcast\",\"event\":");
    json::write_string(&mut out, &message.event);
    out.extend_from_slice(b",\"payload\":");
    out.extend_from_slice(message.payload.as_bytes());
    if let Some(id) = &message.id {
        out.extend_from_slice(b",\"meta\":{\"id\":");
        json::write_string(&mut out, id);
        out.push(b'}');
    }
    out.push(b'}');
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(message: &str) -> Result<String, String> {
        let draft = serde_json::from_str(message).ok();
        validate(&draft, 100).map(|valid| format!("{} {} {}", valid.topic, valid.event, valid.payload))
    }

    #[test]
    fn a_message_needs_topic_event_and_an_object() {
        assert_eq!(check(r#"{"topic":"r","event":"e","payload":{"a":1}}"#), Ok(r#"r e {"a":1}"#.into()));
        assert_eq!(
            check(r#"{"topic":" ","event":7}"#),
            Err(r#"{"topic":["can't be blank"],"event":["is invalid"],"payload":["can't be blank"]}"#.into())
        );
        assert_eq!(
            check(r#"{"topic":"r","event":"e","payload":[]}"#),
            Err(r#"{"payload":["is invalid"]}"#.into())
        );
        let large = format!(r#"{{"topic":"r","event":"e","payload":{{"a":"{}"}}}}"#, "x".repeat(100));
        assert_eq!(check(&large), Err(r#"{"payload":["Payload size exceeds tenant limit"]}"#.into()));
    }

    #[test]
    fn ids_are_uuids_and_become_metadata() {
        let text = r#"{"topic":"r","event":"e","payload":{},"id":"5F0C0000-0000-4000-8000-00000000000a"}"#;
        let draft = serde_json::from_str(text).ok();
        let valid = validate(&draft, 100).ok().unwrap();
        assert_eq!(
            payload(&valid),
            &br#"{"type":"broadcast","event":"e","payload":{},"meta":{"id":"5f0c0000-0000-4000-8000-00000000000a"}}"#[..]
        );
        assert!(check(r#"{"topic":"r","event":"e","payload":{},"id":"7"}"#).is_err());
    }
}
