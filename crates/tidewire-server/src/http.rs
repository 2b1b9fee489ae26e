//! Everything that arrives over HTTP: the handshake, the broadcast API, health, and the page.
//!
//! Connections are accepted here and served by hyper; after a successful WebSocket handshake the socket
//! leaves for a shard and HTTP forgets it. Headers that carry credentials and query strings are never
//! logged.
//!
//! Every path exists twice: as the server itself has it, and below `/realtime/v1` as clients see it
//! behind a gateway (`PROTOCOL.md` §1.1).

mod authorize;
mod broadcast;
mod demo;
mod handshake;
mod pages;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tidewire_authz::Authenticator;
use tidewire_engine::Rates;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::changes::ChangeStatus;
use crate::config::ServerConfig;
use crate::shard::{Permit, Shards};
use crate::tokens::TenantTokens;

/// How long a client may take to send the head of a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// What handlers need.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) config: Arc<ServerConfig>,
    pub(crate) tokens: Arc<TenantTokens>,
    pub(crate) shards: Shards,
    pub(crate) changes: watch::Receiver<ChangeStatus>,
    pub(crate) authenticator: Option<Authenticator>,
    pub(crate) rates: Arc<Rates>,
    pub(crate) demo: Option<Arc<demo::Demo>>,
}

impl App {
    pub(crate) fn new(
        config: Arc<ServerConfig>,
        tokens: Arc<TenantTokens>,
        shards: Shards,
        changes: watch::Receiver<ChangeStatus>,
        authenticator: Option<Authenticator>,
        rates: Arc<Rates>,
    ) -> Self {
        let demo = demo::Demo::new(&config).map(Arc::new);
        Self { config, tokens, shards, changes, authenticator, rates, demo }
    }

    /// Whether the Host header means the tenant of this server: an IP literal, `localhost`, a first label
    /// equal to the tenant's id, or a configured name. Anything else is nobody's, which also stops DNS
    /// rebinding.
    pub(crate) fn serves_host(&self, headers: &HeaderMap) -> bool {
        let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else { return false };
        let name = host_name(host);
        let first_label = name.split('.').next().unwrap_or_default();
        name.parse::<std::net::IpAddr>().is_ok()
            || name.eq_ignore_ascii_case("localhost")
            || first_label == self.config.tenant.id
            || self.config.tenant.hosts.iter().any(|known| known.eq_ignore_ascii_case(name))
    }
}

/// The Host header without the port and without the brackets of an IPv6 literal.
fn host_name(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    host.rsplit_once(':')
        .map_or(host, |(name, port)| if port.bytes().all(|b| b.is_ascii_digit()) { name } else { host })
}

pub(crate) fn now_unix_s() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

fn routes(app: App) -> Router {
    let api = Router::new()
        .route("/ping", get(ping))
        .route("/broadcast", post(broadcast::batch))
        .route("/broadcast/{topic}/events/{event}", post(broadcast::single))
        .layer(DefaultBodyLimit::max(app.config.limits.max_body_bytes))
        .layer(middleware::from_fn(cross_origin));
    let mut router = Router::new()
        .route("/socket/websocket", get(handshake::upgrade))
        .route("/realtime/v1/websocket", get(handshake::upgrade))
        .route("/realtime/v1/socket/websocket", get(handshake::upgrade))
        .nest("/api", api.clone())
        .nest("/realtime/v1/api", api)
        .route("/healthcheck", get(async || "ok"))
        .route("/ready", get(ready))
        .merge(crate::metrics::routes(&app.config));
    if app.config.pages {
        router = router.merge(pages::routes()).merge(demo::routes());
    }
    router.fallback(async || (StatusCode::NOT_FOUND, "Not Found")).with_state(app)
}

/// Browsers reach this server without a gateway, so it answers preflights itself; the reference leaves
/// that to the gateway (§3.8).
async fn cross_origin(request: Request, next: Next) -> Response {
    let has_origin = request.headers().contains_key(header::ORIGIN);
    let is_preflight = request.method() == Method::OPTIONS;
    let mut response =
        if is_preflight { StatusCode::NO_CONTENT.into_response() } else { next.run(request).await };
    let headers = response.headers_mut();
    if has_origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    }
    if is_preflight {
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, OPTIONS"));
        let allowed = HeaderValue::from_static("authorization, apikey, content-type, x-client-info");
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed);
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("86400"));
    }
    response
}

async fn ping(State(app): State<App>, headers: HeaderMap) -> Response {
    if app.serves_host(&headers) {
        json_response(StatusCode::OK, r#"{"message":"Success"}"#)
    } else {
        json_response(StatusCode::UNAUTHORIZED, broadcast::TENANT_UNKNOWN)
    }
}

/// Ready means that changes flow, or that this server has no database to wait for.
async fn ready(State(app): State<App>) -> Response {
    let status = app.changes.borrow().clone();
    match status {
        ChangeStatus::Live | ChangeStatus::Off => json_response(StatusCode::OK, r#"{"ready":true}"#),
        ChangeStatus::Connecting => {
            json_response(StatusCode::SERVICE_UNAVAILABLE, r#"{"ready":false,"code":"DatabaseConnecting"}"#)
        }
        ChangeStatus::Down { code, .. } => {
            // The sentence may name hosts and users; it is in the log, not here.
            json_response(StatusCode::SERVICE_UNAVAILABLE, &format!(r#"{{"ready":false,"code":"{code}"}}"#))
        }
    }
}

/// Headers as a JSON object, names in lower case, values as text.
fn headers_json<'h>(headers: impl Iterator<Item = (&'h header::HeaderName, &'h HeaderValue)>) -> String {
    let object: serde_json::Map<String, serde_json::Value> = headers
        .map(|(name, value)| (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into()))
        .collect();
    serde_json::Value::Object(object).to_string()
}

pub(crate) fn json_response(status: StatusCode, body: &str) -> Response {
    let content_type = [(header::CONTENT_TYPE, "application/json; charset=utf-8")];
    (status, content_type, body.to_owned()).into_response()
}

/// Accepts until `shutdown`; then waits for requests under way, at most the grace period.
pub(crate) async fn serve(app: App, listener: TcpListener, shutdown: CancellationToken) {
    let count = Arc::new(AtomicUsize::new(0));
    let tracker = TaskTracker::new();
    let limit = app.config.limits.max_connections;
    let max_header_bytes = app.config.limits.max_header_bytes;
    let service = routes(app).into_service::<hyper::body::Incoming>();
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: waiting lets connections end; spinning would not.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let permit = Permit::acquire(&count, limit);
        let service = service.clone();
        let stop = shutdown.clone();
        tracker.spawn(async move {
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "cannot set TCP_NODELAY");
            }
            let slot = handshake::ConnectionSlot::new(permit);
            let service = tower::ServiceExt::map_request(service, move |mut request: Request<_>| {
                request.extensions_mut().insert(slot.clone());
                request
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(max_header_bytes.max(8192))
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
                .with_upgrades();
            tokio::pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "an http connection ended early");
            }
        });
    }
    drop(listener);
    tracker.close();
    tracker.wait().await;
}

#[cfg(test)]
mod tests {
    use super::host_name;

    #[test]
    fn host_names_lose_port_and_brackets() {
        assert_eq!(host_name("localhost:4000"), "localhost");
        assert_eq!(host_name("realtime-dev.example"), "realtime-dev.example");
        assert_eq!(host_name("[::1]:4000"), "::1");
        assert_eq!(host_name("127.0.0.1"), "127.0.0.1");
    }
}
