//! The page at `/`: static files inside the binary, a strict content policy, no external resource.

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::{App, json_response};

/// Scripts and styles from this server alone, nothing inline, no frames. `'self'` covers the WebSocket of
/// the same host.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

macro_rules! file {
    ($name:literal, $content_type:literal) => {
        get(async || file($content_type, include_str!(concat!("../../pages/", $name))))
    };
}

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/", file!("index.html", "text/html; charset=utf-8"))
        .route("/app.js", file!("app.js", "text/javascript; charset=utf-8"))
        .route("/panels.js", file!("panels.js", "text/javascript; charset=utf-8"))
        .route("/phoenix.js", file!("phoenix.js", "text/javascript; charset=utf-8"))
        .route("/style.css", file!("style.css", "text/css; charset=utf-8"))
        .route("/favicon.svg", file!("favicon.svg", "image/svg+xml"))
        .route("/demo/config.json", get(settings))
}

fn file(content_type: &'static str, content: &'static str) -> Response {
    let mut response = content.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// What the page needs to know. The anon key is public by design; no other key ever leaves through here.
async fn settings(State(app): State<App>, headers: axum::http::HeaderMap) -> Response {
    if !app.serves_host(&headers) {
        return json_response(axum::http::StatusCode::NOT_FOUND, r#"{"message":"not found"}"#);
    }
    let tenant = &app.config.tenant.id;
    let body = match &app.config.demo {
        Some(demo) => serde_json::json!({ "demo": true, "tenant": tenant, "anon_key": demo.anon_key }),
        None => serde_json::json!({ "demo": false, "tenant": tenant }),
    };
    json_response(axum::http::StatusCode::OK, &body.to_string())
}
