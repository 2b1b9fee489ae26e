//! The server's settings: one typed tree with defaults, validated as a whole.
//!
//! Loading (file, environment, flags) is the command line's business; this room owns the meaning, the
//! defaults and [`ServerConfig::validate`], which reports *all* problems, each with the path of its key.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};

use serde::Deserialize;

/// A value that must never be printed: tokens, passwords, keys.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The secret itself; call it only where the value is used.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Everything a server needs to know.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// Address to listen on. Port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Event loops that own connections; 0 = one per core.
    pub shards: usize,
    /// The one tenant served.
    pub tenant: TenantConfig,
    /// The tenant's database; without one, Broadcast and Presence work and Postgres Changes report an error.
    pub database: Option<DatabaseConfig>,
    /// Bounds and their numbers.
    pub limits: Limits,
    /// Delays and timeouts.
    pub timers: Timers,
    /// What is counted, for whoever may read it.
    pub metrics: MetricsConfig,
    /// Serve the page at `/`.
    pub pages: bool,
    /// Serve the demonstration table's write endpoint and show the demonstration on the page.
    pub demo: Option<DemoConfig>,
}

/// The tenant that this server serves.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TenantConfig {
    /// External id; the first label of the Host header may name it.
    pub id: String,
    /// Secret of HS256, HS384 and HS512 tokens; may be empty where there is a key set.
    pub jwt_secret: Secret,
    /// Key set for tokens with RSA, ECDSA, Ed25519 or further HMAC keys: the JSON text `{"keys":[…]}`. Static,
    /// never fetched.
    pub jwks: Option<Secret>,
    /// What claims must equal where a token has them: the JSON text of an object.
    pub claim_validators: Option<String>,
    /// Further Host header values (without port) that mean this tenant.
    pub hosts: Vec<String>,
    /// Roles a token may name. Never a superuser or replication role.
    pub roles: Vec<String>,
}

/// How to reach the tenant's database. Both are `postgres://` URLs.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseConfig {
    /// Login of the change stream: needs `REPLICATION` and may read the catalogue.
    pub replication_url: Secret,
    /// Login that speaks for users: `NOSUPERUSER NOINHERIT`, member of the claim roles.
    pub authenticator_url: Secret,
    /// Publication whose tables are offered.
    #[serde(default = "default_publication")]
    pub publication: String,
    /// Publication of `realtime.messages`; without it there is no broadcast from the database.
    #[serde(default = "default_messages_publication")]
    pub messages_publication: String,
    /// Login that owns `realtime.messages` and keeps its partitions; without one somebody else has to.
    #[serde(default)]
    pub maintenance_url: Option<Secret>,
    /// Name of the replication slot.
    #[serde(default = "default_slot")]
    pub slot: String,
    /// `search_path` under which policies are evaluated.
    #[serde(default = "default_search_path")]
    pub search_path: String,
    /// Connections that evaluate policies and filters.
    #[serde(default = "default_pool")]
    pub pool_size: usize,
}

fn default_publication() -> String {
    "supabase_realtime".into()
}
fn default_messages_publication() -> String {
    "supabase_realtime_messages_publication".into()
}
fn default_slot() -> String {
    "tidewire_changes".into()
}
fn default_search_path() -> String {
    "public, extensions".into()
}
fn default_pool() -> usize {
    2
}

/// `GET /metrics` (`PROTOCOL.md` §8.4).
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsConfig {
    /// Secret of the tokens that may read the metrics, as `Authorization: Bearer …` (§8.1).
    pub jwt_secret: Option<Secret>,
    /// Who may read them while there is no secret.
    pub without_secret: MetricsAccess,
    /// Label `region` of every sample.
    pub region: String,
    /// Label `id` of every sample; `None` = the machine's name.
    pub node: Option<String>,
}

/// Who may read the metrics without a token.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MetricsAccess {
    /// Nobody: the path does not exist.
    #[default]
    Off,
    /// Whoever reaches the server, which therefore listens on a loopback address.
    Loopback,
}

/// What the demonstration page needs beyond the public endpoints.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DemoConfig {
    /// The key that the page uses; always the anon key.
    pub anon_key: String,
}

/// Every bound of the server. Policies are written where the queues are.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Connections accepted at once; above it the handshake answers 429.
    pub max_connections: usize,
    /// Channels of one socket (`PROTOCOL.md` §7.2).
    pub max_channels_per_client: usize,
    /// Largest inbound WebSocket message; larger closes with 1009 (§1.2).
    pub max_frame_bytes: usize,
    /// Largest HTTP body (§7.2).
    pub max_body_bytes: usize,
    /// Largest broadcast or presence payload (§7.2, appendix C).
    pub max_payload_bytes: usize,
    /// Bytes that may wait in one connection's outbox before the slow reader is closed.
    pub max_outbox_bytes: usize,
    /// Presence calls of one channel per [`Limits::presence_window_ms`]; `None` = unlimited (§7.2).
    pub presence_calls: Option<u32>,
    /// Fixed window of [`Limits::presence_calls`].
    pub presence_window_ms: u64,
    /// Joins per second of the tenant on this server, averaged over a minute; `None` = unlimited (§7.1).
    pub max_joins_per_second: Option<u32>,
    /// Broadcasts and their deliveries per second, likewise.
    pub max_events_per_second: Option<u32>,
    /// Presence events and their deliveries per second, likewise.
    pub max_presence_events_per_second: Option<u32>,
    /// Bindings of one channel.
    pub max_bindings_per_channel: usize,
    /// A change whose text form is larger is sent with `Error 413` (§5.9).
    pub max_record_bytes: usize,
    /// Length of one header block.
    pub max_header_bytes: usize,
}

/// Every delay of the server, in milliseconds.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timers {
    /// Wait before a refused handshake is answered (§1.2).
    pub connect_error_backoff_ms: u64,
    /// Wait before a failed join is answered (§2.5).
    pub channel_error_backoff_ms: u64,
    /// A connection without any inbound frame for this long is closed (§1.2).
    pub idle_timeout_ms: u64,
    /// A socket that once joined and has had no channel for a whole period is dropped (§1.11).
    pub no_channel_timeout_ms: u64,
    /// A channel token is verified again at least this often (§6.3).
    pub token_check_ms: u64,
    /// Wait before bindings are tried again when the change stream is not there (§5.10).
    pub resubscribe_ms: u64,
    /// Grace period of a shutdown.
    pub shutdown_grace_ms: u64,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 4000)),
            shards: 0,
            tenant: TenantConfig::default(),
            database: None,
            limits: Limits::default(),
            timers: Timers::default(),
            metrics: MetricsConfig::default(),
            pages: false,
            demo: None,
        }
    }
}

impl Default for TenantConfig {
    fn default() -> Self {
        Self {
            id: "realtime-dev".into(),
            jwt_secret: Secret::default(),
            jwks: None,
            claim_validators: None,
            hosts: Vec::new(),
            roles: vec!["anon".into(), "authenticated".into(), "service_role".into()],
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 16_384,
            max_channels_per_client: 100,
            max_frame_bytes: 5_000_000,
            max_body_bytes: 8_000_000,
            max_payload_bytes: 3_000_500,
            max_outbox_bytes: 16 * 1024 * 1024,
            presence_calls: Some(5),
            presence_window_ms: 30_000,
            max_joins_per_second: Some(100),
            max_events_per_second: Some(100),
            max_presence_events_per_second: Some(1000),
            max_bindings_per_channel: 100,
            max_record_bytes: 1_048_576,
            max_header_bytes: 16_384,
        }
    }
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            connect_error_backoff_ms: 2_000,
            channel_error_backoff_ms: 5_000,
            idle_timeout_ms: 60_000,
            no_channel_timeout_ms: 600_000,
            token_check_ms: 300_000,
            resubscribe_ms: 5_000,
            shutdown_grace_ms: 5_000,
        }
    }
}

/// One problem of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigProblem {
    /// Path of the key, e.g. `limits.max_frame_bytes`.
    pub path: &'static str,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

impl ServerConfig {
    /// Checks the whole tree and reports every problem at once.
    ///
    /// # Errors
    /// All problems found, in the order of the tree.
    pub fn validate(&self) -> Result<(), Vec<ConfigProblem>> {
        let mut problems = Vec::new();
        let mut check = |ok: bool, path: &'static str, message: &str| {
            if !ok {
                problems.push(ConfigProblem { path, message: message.into() });
            }
        };
        check(!self.tenant.id.is_empty(), "tenant.id", "must not be empty");
        check(
            !self.tenant.id.contains('.'),
            "tenant.id",
            "must not contain a dot: it is compared with the first label of the Host header",
        );
        let secret_length = self.tenant.jwt_secret.expose().len();
        check(
            secret_length >= 32 || (secret_length == 0 && self.tenant.jwks.is_some()),
            "tenant.jwt_secret",
            "must be at least 32 bytes long, or empty beside `tenant.jwks`; generate one with `openssl rand -hex 32`",
        );
        check(!self.tenant.roles.is_empty(), "tenant.roles", "must list at least one role");
        for role in &self.tenant.roles {
            check(
                !matches!(role.as_str(), "postgres" | "supabase_admin"),
                "tenant.roles",
                "must not list a superuser role",
            );
        }
        let limits = &self.limits;
        check(limits.max_frame_bytes >= 1024, "limits.max_frame_bytes", "must be at least 1024");
        check(
            limits.max_outbox_bytes >= 65_536,
            "limits.max_outbox_bytes",
            "must be at least 65536: one large frame has to fit",
        );
        check(limits.presence_window_ms > 0, "limits.presence_window_ms", "must be positive");
        check(limits.max_channels_per_client > 0, "limits.max_channels_per_client", "must be positive");
        check(self.timers.idle_timeout_ms >= 1000, "timers.idle_timeout_ms", "must be at least 1000");
        let metrics = &self.metrics;
        check(
            metrics.jwt_secret.as_ref().is_none_or(|secret| secret.expose().len() >= 32),
            "metrics.jwt_secret",
            "must be at least 32 bytes long; generate one with `openssl rand -hex 32`",
        );
        check(
            metrics.without_secret == MetricsAccess::Off
                || metrics.jwt_secret.is_some()
                || self.listen.ip().is_loopback(),
            "metrics.without_secret",
            "must be `off` unless `listen` is a loopback address; set `metrics.jwt_secret` instead",
        );
        check(self.shards <= 64, "shards", "must be at most 64");
        if (self.tenant.jwks.is_some() || self.tenant.claim_validators.is_some())
            && let Err(error) = crate::tokens::TenantTokens::new(&self.tenant)
        {
            problems.push(ConfigProblem { path: "tenant.jwks", message: error.to_string() });
        }
        if let Some(database) = &self.database {
            for (path, message) in crate::changes::check_urls(database) {
                problems.push(ConfigProblem { path, message });
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    }
}
