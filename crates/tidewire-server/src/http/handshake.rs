//! The WebSocket handshake (`PROTOCOL.md` §1.2): checks in their order, then the socket leaves for a
//! shard.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tidewire_engine::{Credential, SocketInfo};
use tidewire_protocol::codes::OperationalCode;
use tidewire_protocol::frame::Version;
use tidewire_protocol::websocket;
use tokio::net::TcpStream;

use super::{App, json_response, now_unix_s};
use crate::shard::{Handoff, Permit};

/// The permit of a connection, taken by the request that upgrades it. Without a permit the server is full,
/// and a handshake is told so.
#[derive(Clone)]
pub(super) struct ConnectionSlot(Arc<Mutex<Option<Permit>>>);

impl ConnectionSlot {
    pub(super) fn new(permit: Option<Permit>) -> Self {
        Self(Arc::new(Mutex::new(permit)))
    }

    fn take(&self) -> Option<Permit> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A handshake refused: status and text.
struct Refusal {
    code: OperationalCode,
    status: StatusCode,
    text: String,
}

pub(super) async fn upgrade(State(app): State<App>, mut request: Request) -> Response {
    let Some(key) = websocket_key(request.headers()) else {
        return (StatusCode::BAD_REQUEST, "this is a WebSocket endpoint: connect with a WebSocket client")
            .into_response();
    };
    let query = request.uri().query().unwrap_or_default().to_owned();
    let version = match Version::from_vsn(parameter(&query, "vsn").as_deref()) {
        Some(version) => version,
        // An unknown version is refused by the transport, before anything else, with an empty body.
        None => return StatusCode::FORBIDDEN.into_response(),
    };
    let credential = match admit(&app, request.headers(), &query) {
        Ok(credential) => Arc::new(credential),
        Err(refusal) => return refuse(&app, refusal).await,
    };
    if app.rates.joins.is_triggered() {
        let refusal = Refusal {
            code: OperationalCode::JoinsRateLimitReached,
            status: StatusCode::TOO_MANY_REQUESTS,
            text: "Too many joins per second".into(),
        };
        return refuse(&app, refusal).await;
    }
    let slot = request.extensions().get::<ConnectionSlot>().cloned();
    let Some(permit) = slot.and_then(|slot| slot.take()) else {
        let refusal = Refusal {
            code: OperationalCode::ConnectionRateLimitReached,
            status: StatusCode::TOO_MANY_REQUESTS,
            text: "Too many connected users".into(),
        };
        return refuse(&app, refusal).await;
    };
    let Some(on_upgrade) = request.extensions_mut().remove::<OnUpgrade>() else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let shards = app.shards.clone();
    let info = SocketInfo { version, credential, headers: policy_headers(request.headers()) };
    tokio::spawn(async move {
        match on_upgrade.await {
            Ok(upgraded) => {
                if let Some(handoff) = hand_off(upgraded, info, permit) {
                    shards.adopt(handoff);
                }
            }
            Err(error) => tracing::debug!(%error, "a handshake was not completed"),
        }
    });
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = response.headers_mut();
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    if let Ok(accept) = HeaderValue::from_str(&websocket::accept_key(&key)) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    response
}

/// The headers that policies see (§6.5): every one whose name begins with `x-`, as a JSON object.
fn policy_headers(headers: &HeaderMap) -> Arc<str> {
    let named = headers.iter().filter(|(name, _)| name.as_str().starts_with("x-"));
    super::headers_json(named).into()
}

/// Takes the plain socket out of hyper's and the runtime's hands.
fn hand_off(upgraded: Upgraded, info: SocketInfo, permit: Permit) -> Option<Handoff> {
    let parts = upgraded.downcast::<TokioIo<TcpStream>>().ok()?;
    match parts.io.into_inner().into_std() {
        Ok(stream) => Some(Handoff { stream, early: parts.read_buf, info, permit }),
        Err(error) => {
            tracing::warn!(%error, "cannot take over a connection");
            None
        }
    }
}

/// The `Sec-WebSocket-Key` of a well-formed upgrade request.
fn websocket_key(headers: &HeaderMap) -> Option<String> {
    let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let has_token = |value: Option<&str>, token: &str| {
        value.is_some_and(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(token)))
    };
    let is_upgrade = has_token(text(header::UPGRADE), "websocket")
        && has_token(text(header::CONNECTION), "upgrade")
        && text(header::SEC_WEBSOCKET_VERSION) == Some("13");
    is_upgrade.then(|| text(header::SEC_WEBSOCKET_KEY).map(str::to_owned)).flatten()
}

fn admit(app: &App, headers: &HeaderMap, query: &str) -> Result<Credential, Refusal> {
    if !app.serves_host(headers) {
        return Err(Refusal {
            code: OperationalCode::TenantNotFound,
            status: StatusCode::NOT_FOUND,
            text: "Tenant not found".into(),
        });
    }
    let from_header =
        headers.get("x-api-key").map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let Some(token) = from_header.or_else(|| parameter(query, "apikey")) else {
        return Err(Refusal {
            code: OperationalCode::MissingAPIKey,
            status: StatusCode::UNAUTHORIZED,
            text: "API key is missing".into(),
        });
    };
    app.tokens.check(&token, now_unix_s()).map_err(|error| {
        let (status, text) = error.connect_answer();
        Refusal {
            code: crate::tokens::code_of(&error),
            status: StatusCode::from_u16(status).unwrap_or(StatusCode::UNAUTHORIZED),
            text: text.to_owned(),
        }
    })
}

/// The answer comes after a wait: the brake on clients that retry in a loop.
async fn refuse(app: &App, refusal: Refusal) -> Response {
    tracing::warn!(code = refusal.code.as_str(), status = refusal.status.as_u16(), "a handshake was refused");
    app.shards.metrics().count_channel_code(refusal.code);
    tokio::time::sleep(Duration::from_millis(app.config.timers.connect_error_backoff_ms)).await;
    let body = serde_json::json!({ "error": refusal.text }).to_string();
    json_response(refusal.status, &body)
}

/// The first value of a query parameter, percent-decoded.
pub(super) fn parameter(query: &str, name: &str) -> Option<String> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then(|| percent_decode(value))
    })
}

fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut position = 0;
    while position < bytes.len() {
        let pair = (bytes[position] == b'%')
            .then(|| bytes.get(position + 1..position + 3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match pair {
            Some(byte) => {
                decoded.push(byte);
                position += 3;
            }
            None => {
                decoded.push(if bytes[position] == b'+' { b' ' } else { bytes[position] });
                position += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_found_and_decoded() {
        assert_eq!(parameter("apikey=a%2Eb&vsn=2.0.0", "apikey").as_deref(), Some("a.b"));
        assert_eq!(parameter("apikey=a&vsn=2.0.0", "vsn").as_deref(), Some("2.0.0"));
        assert_eq!(parameter("apikey", "apikey").as_deref(), Some(""));
        assert_eq!(parameter("", "apikey"), None);
        assert_eq!(parameter("apikey=%zz%e", "apikey").as_deref(), Some("%zz%e"));
    }

    #[test]
    fn an_upgrade_needs_all_four_headers() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("upgrade", "WebSocket"),
            ("connection", "keep-alive, Upgrade"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ] {
            assert!(websocket_key(&headers).is_none());
            headers.insert(name, HeaderValue::from_static(value));
        }
        assert_eq!(websocket_key(&headers).as_deref(), Some("dGhlIHNhbXBsZSBub25jZQ=="));
    }
}
