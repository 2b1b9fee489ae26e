//! `GET /metrics` and who may read it.
//!
//! With a secret configured: whoever brings a token signed with it, HS256, HS384 or HS512; no claim is needed
//! and `exp` counts where there is one; everybody else gets 403 and an empty body. Without a secret the path
//! does not exist, unless the configuration opens it on a loopback address (`tidewire dev`). There, names that
//! are not ours are refused: a foreign page that points its own name at 127.0.0.1 learns nothing.
//!
//! Spec: PROTOCOL.md §8.1, §8.4.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tidewire_authz::{TokenError, Verifier};

use super::page;
use crate::changes::ChangeStatus;
use crate::config::{MetricsAccess, ServerConfig};
use crate::http::{App, now_unix_s};

/// Who may read.
enum Gate {
    Token(Verifier),
    Loopback,
}

/// The routes, none if nobody may read.
pub(crate) fn routes(config: &ServerConfig) -> Router<App> {
    let Some(gate) = Gate::of(config) else { return Router::new() };
    let gate = Arc::new(gate);
    let host: Arc<str> = host_name().into();
    let whole = (Arc::clone(&gate), Arc::clone(&host));
    Router::new()
        .route(
            "/metrics",
            get(async move |State(app): State<App>, headers: HeaderMap| {
                answer(&app, &whole.0, &whole.1, &headers, None)
            }),
        )
        .route(
            "/metrics/{region}",
            get(async move |State(app): State<App>, Path(region): Path<String>, headers: HeaderMap| {
                answer(&app, &gate, &host, &headers, Some(&region))
            }),
        )
}

impl Gate {
    fn of(config: &ServerConfig) -> Option<Self> {
        match (&config.metrics.jwt_secret, config.metrics.without_secret) {
            // No roles: whatever a token says of itself, only form, signature and times count.
            (Some(secret), _) => Some(Self::Token(Verifier::new(secret.expose().as_bytes(), Vec::new()))),
            (None, MetricsAccess::Loopback) if config.listen.ip().is_loopback() => Some(Self::Loopback),
            (None, MetricsAccess::Loopback | MetricsAccess::Off) => None,
        }
    }

    fn admits(&self, app: &App, headers: &HeaderMap) -> bool {
        match self {
            Self::Loopback => app.serves_host(headers),
            Self::Token(verifier) => headers
                .get(header::AUTHORIZATION)
                .and_then(|value| value.to_str().ok())
                .and_then(|value| value.strip_prefix("Bearer "))
                .is_some_and(|token| is_signed(verifier, token, now_unix_s())),
        }
    }
}

/// Whether signature and times are good. The verifier looks at required claims and roles last, so being told
/// about those means that everything before them was in order.
fn is_signed(verifier: &Verifier, token: &str, now_unix_s: i64) -> bool {
    matches!(
        verifier.verify(token, now_unix_s),
        Ok(_) | Err(TokenError::ClaimsMissing | TokenError::RoleNotAllowed { .. })
    )
}

fn answer(app: &App, gate: &Gate, host: &str, headers: &HeaderMap, region: Option<&str>) -> Response {
    if !gate.admits(app, headers) {
        return StatusCode::FORBIDDEN.into_response();
    }
    let is_here = region.is_none_or(|region| region == app.config.metrics.region);
    let text = if is_here {
        let is_live = matches!(*app.changes.borrow(), ChangeStatus::Live | ChangeStatus::Off);
        page::render(
            (app.shards.metrics(), app.shards.waiting_messages()),
            &app.rates,
            &app.config,
            host,
            is_live,
        )
    } else {
        // Another region has nodes of its own; this server is all there is here.
        page::END.to_owned()
    };
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
}

/// The machine's name, as Linux or the environment tells it.
fn host_name() -> String {
    let told = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    told.map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .or_else(|| std::env::var("HOSTNAME").ok())
        .unwrap_or_else(|| "localhost".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = b"a secret of the metrics, 32 bytes";

    #[test]
    fn a_token_needs_a_signature_and_no_claim() {
        let verifier = Verifier::new(SECRET, Vec::new());
        let is_good = |secret: &[u8], claims: &str| {
            is_signed(&verifier, &tidewire_authz::sign_hs256(secret, claims), 1_000)
        };
        assert!(is_good(SECRET, "{}"));
        assert!(is_good(SECRET, r#"{"exp":1001}"#));
        assert!(is_good(SECRET, r#"{"role":"anon","exp":1001}"#));
        assert!(!is_good(SECRET, r#"{"exp":1000}"#));
        assert!(!is_good(SECRET, r#"{"role":"anon","exp":999}"#));
        assert!(!is_good(SECRET, r#"{"exp":"soon"}"#));
        assert!(!is_good(b"another secret, also of 32 bytes.", "{}"));
        assert!(!is_signed(&verifier, "", 1_000));
        // `alg` none, no signature.
        assert!(!is_signed(&verifier, "eyJhbGciOiJub25lIn0.e30.", 1_000));
    }
}
