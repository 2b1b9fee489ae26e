//! Broadcast over HTTP: a batch (`PROTOCOL.md` §3.8.1) and a single message (§3.8.2).
//!
//! A batch is all or nothing at validation. Then public messages are sent in order, then private ones by
//! topic; a private topic that the caller may not send to is left out, and the answer is the same. The single
//! form says so.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::value::RawValue;
use tidewire_engine::{Body, Credential, Domain, Message, PeerMessage};
use tidewire_protocol::frame::Encoding;
use tidewire_protocol::{json, topic};

use super::authorize::may_send;
use super::{App, json_response, now_unix_s};

pub(super) const TENANT_UNKNOWN: &str = r#"{"message":"Tenant not found in database"}"#;
const UNAUTHORIZED: &str = r#"{"message":"Unauthorized"}"#;
const RATE_EXCEEDED: &str = r#"{"message":"You have exceeded your rate limit"}"#;
const BATCH_TOO_LARGE: &str = r#"{"message":"Too many messages to broadcast, please reduce the batch size"}"#;
const UNSUPPORTED: &str =
    r#"{"error":"Unsupported Media Type. Use application/json or application/octet-stream"}"#;

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
    let Some(credential) = credential(&app, &headers) else {
        return json_response(StatusCode::UNAUTHORIZED, UNAUTHORIZED);
    };
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
    if let Some(limit) = app.rates.events.limit() {
        let average = app.rates.events.average();
        let text = if app.rates.events.is_above() {
            Some(RATE_EXCEEDED)
        } else if average + messages.len() as u64 > u64::from(limit) {
            Some(BATCH_TOO_LARGE)
        } else {
            None
        };
        if let Some(text) = text {
            return json_response(StatusCode::TOO_MANY_REQUESTS, text);
        }
    }
    app.shards.uncongested().await;
    for message in messages.iter().filter(|message| !message.is_private) {
        send(&app, Domain::Public, &message.topic, message.body(), message.id.as_deref());
    }
    let mut topics: Vec<&str> =
        messages.iter().filter(|message| message.is_private).map(|message| message.topic.as_str()).collect();
    topics.sort_unstable();
    topics.dedup();
    for topic in topics {
        match may_send(&app, &credential, &headers, topic).await {
            Ok(true) => {}
            Ok(false) => continue,
            Err(error) => {
                app.shards.metrics().count_code_named(error.code());
                tracing::warn!(
                    code = error.code(),
                    advice = error.advice(),
                    "a private broadcast was not sent"
                );
                continue;
            }
        }
        for message in messages.iter().filter(|message| message.is_private && message.topic == topic) {
            send(&app, Domain::Private, topic, message.body(), message.id.as_deref());
        }
    }
    StatusCode::ACCEPTED.into_response()
}

/// One message: topic and event in the path, the payload as body.
pub(super) async fn single(
    State(app): State<App>,
    Path((topic, event)): Path<(String, String)>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let Some(kind) = payload_kind(&headers) else {
        return json_response(StatusCode::UNSUPPORTED_MEDIA_TYPE, UNSUPPORTED);
    };
    if !app.serves_host(&headers) {
        return json_response(StatusCode::UNAUTHORIZED, TENANT_UNKNOWN);
    }
    let Some(credential) = credential(&app, &headers) else {
        return json_response(StatusCode::UNAUTHORIZED, UNAUTHORIZED);
    };
    let body = match body {
        Ok(body) => body,
        Err(rejection) => return rejection.into_response(),
    };
    let Some(payload) = single_payload(kind, &body) else {
        return (StatusCode::BAD_REQUEST, "Bad Request").into_response();
    };
    if payload.bytes.len() > app.config.limits.max_payload_bytes {
        let text = r#"{"errors":{"payload":["Payload size exceeds tenant limit"]}}"#;
        return json_response(StatusCode::UNPROCESSABLE_ENTITY, text);
    }
    let asked = super::handshake::parameter(query.as_deref().unwrap_or_default(), "private");
    let is_private = asked.map_or(payload.says_private, |value| value == "true");
    if is_private {
        match may_send(&app, &credential, &headers, &topic).await {
            Ok(true) => {}
            Ok(false) => return json_response(StatusCode::FORBIDDEN, UNAUTHORIZED),
            Err(error) => {
                app.shards.metrics().count_code_named(error.code());
                tracing::warn!(
                    code = error.code(),
                    advice = error.advice(),
                    "a private broadcast was not sent"
                );
                let (status, text) = error.http_answer();
                let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                return json_response(status, &serde_json::json!({ "message": text }).to_string());
            }
        }
    }
    if app.rates.events.is_triggered() {
        return json_response(StatusCode::TOO_MANY_REQUESTS, RATE_EXCEEDED);
    }
    app.shards.uncongested().await;
    let domain = if is_private { Domain::Private } else { Domain::Public };
    let body = Body::UserBroadcast {
        event,
        metadata: String::new(),
        encoding: payload.encoding,
        payload: payload.bytes,
    };
    send(&app, domain, &topic, body, None);
    StatusCode::ACCEPTED.into_response()
}

/// A message with an id is spared those to whom it has been replayed (§3.6).
fn send(app: &App, domain: Domain, sub_topic: &str, body: Body, id: Option<&str>) {
    app.rates.events.add(1);
    app.shards.metrics().count_http_broadcast(match &body {
        Body::Json { payload, .. } | Body::UserBroadcast { payload, .. } => payload.len(),
    });
    let mut message = Message::in_domain(domain, &format!("{}{sub_topic}", topic::PREFIX), body);
    if let Some(id) = id {
        message = message.with_id(id);
    }
    app.shards.send_to_all(&PeerMessage::Publish { message: Arc::new(message), is_presence: false });
}

fn credential(app: &App, headers: &HeaderMap) -> Option<Credential> {
    app.tokens.check(&bearer(headers)?, now_unix_s()).ok()
}

/// What the body of a single broadcast is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PayloadKind {
    Json,
    Bytes,
    /// No content type: the body is not looked at.
    None,
}

fn payload_kind(headers: &HeaderMap) -> Option<PayloadKind> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Some(PayloadKind::None) };
    let essence = value.to_str().ok()?.split(';').next().unwrap_or_default().trim();
    match essence.to_ascii_lowercase().as_str() {
        "application/json" => Some(PayloadKind::Json),
        "application/octet-stream" => Some(PayloadKind::Bytes),
        _ => None,
    }
}

/// The payload of a single broadcast as members get it.
struct SinglePayload {
    encoding: Encoding,
    bytes: Bytes,
    /// The body says `"private": true`, which counts unless the query says otherwise (Q21).
    says_private: bool,
}

/// `None` for JSON that is none.
fn single_payload(kind: PayloadKind, body: &Bytes) -> Option<SinglePayload> {
    let json =
        |bytes: Bytes, says_private| Some(SinglePayload { encoding: Encoding::Json, bytes, says_private });
    match kind {
        PayloadKind::Bytes => {
            Some(SinglePayload { encoding: Encoding::Bytes, bytes: body.clone(), says_private: false })
        }
        PayloadKind::None => json(Bytes::from_static(b"{}"), false),
        PayloadKind::Json if body.is_empty() => json(Bytes::from_static(b"{}"), false),
        PayloadKind::Json => {
            let value = serde_json::from_slice::<&RawValue>(body).ok()?.get();
            if !value.starts_with('{') {
                return json(format!(r#"{{"_json":{value}}}"#).into(), false);
            }
            let [private] = json::fields(value, ["private"]).unwrap_or_default();
            let says_private = matches!(private.map(RawValue::get), Some("true" | "\"true\""));
            json(Bytes::copy_from_slice(value.as_bytes()), says_private)
        }
    }
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

impl Valid<'_> {
    fn body(&self) -> Body {
        Body::Json { event: "broadcast", payload: payload(self) }
    }
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
