//! The Tidewire server as a library: endpoints, shards, change stream, configuration.
//!
//! [`Server::start`] binds and starts everything; the returned handle tells the address and waits for
//! the end. The command line is a thin shell around it.
//!
//! | room | owns |
//! | --- | --- |
//! | [`config`] | settings, defaults, validation |
//! | `http` | accepting, handshake, broadcast API, page |
//! | `shard` | one event loop per core, its sockets and its hub |
//! | `changes` | the replication stream and who gets its changes |
//! | `access` | what hubs ask about private channels |
//! | `maintenance` | upkeep of `realtime.messages` |
//! | [`metrics`] | what is counted, and `GET /metrics` |
//! | `rates` | the pace of the rate counters |
//! | `tokens` | the tenant's verifier |

mod access;
mod changes;
pub mod config;
mod http;
mod maintenance;
pub mod metrics;
mod rates;
mod shard;
mod tokens;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

pub use changes::ChangeStatus;
pub use config::ServerConfig;
use shard::{ShardThreads, Shards};
use tidewire_engine::{Drain, HubConfig, Rates, VerifyToken};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Why a server could not start. [`StartError::code`] is stable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration has problems; all of them are listed.
    #[error("the configuration is not valid")]
    Config(Vec<config::ConfigProblem>),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// Address asked for.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// A thread, socket or poller could not be made.
    #[error("cannot start an event loop")]
    EventLoop(#[source] std::io::Error),
}

impl StartError {
    /// Stable name for scripts.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Config(_) => "ConfigInvalid",
            Self::Listen { source, .. } if source.kind() == std::io::ErrorKind::AddrInUse => "PortInUse",
            Self::Listen { .. } => "ListenFailed",
            Self::EventLoop(_) => "EventLoopFailed",
        }
    }

    /// What to do about it.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Config(_) => "correct the keys listed; `tidewire config default` prints all of them",
            Self::Listen { source, .. } if source.kind() == std::io::ErrorKind::AddrInUse => {
                "stop what listens there, or choose another port (0 lets the system choose)"
            }
            Self::Listen { .. } => "choose an address of this machine and a port you may use",
            Self::EventLoop(_) => "raise the limits on open files and processes (`ulimit -n`, `ulimit -u`)",
        }
    }
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    shards: Shards,
    threads: ShardThreads,
    http: JoinHandle<()>,
    changes: JoinHandle<()>,
    status: watch::Receiver<ChangeStatus>,
    shutdown: CancellationToken,
    stop_changes: CancellationToken,
    grace: Duration,
}

impl Server {
    /// Validates, binds and starts. Returns as soon as connections are accepted; the database is
    /// connected in the background, and `shutdown` begins the orderly end.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(config: ServerConfig, shutdown: CancellationToken) -> Result<Self, StartError> {
        config.validate().map_err(StartError::Config)?;
        let listener = TcpListener::bind(config.listen)
            .await
            .map_err(|source| StartError::Listen { address: config.listen, source })?;
        let address = listener.local_addr().map_err(StartError::EventLoop)?;
        let grace = Duration::from_millis(config.timers.shutdown_grace_ms);

        let tokens = tokens::TenantTokens::new(&config.tenant).map_err(|error| {
            StartError::Config(vec![config::ConfigProblem {
                path: "tenant.jwks",
                message: error.to_string(),
            }])
        })?;
        let tokens = Arc::new(tokens);
        let verifier: Arc<dyn VerifyToken> = Arc::<tokens::TenantTokens>::clone(&tokens);
        // Cannot fail after validation, which parses the same URLs.
        let unusable = |_| {
            let message = "the URLs cannot be parsed".into();
            StartError::Config(vec![config::ConfigProblem { path: "database", message }])
        };
        let authenticator = changes::authenticator(&config).map_err(unusable)?;
        let maintenance = config.database.as_ref().and_then(|database| database.maintenance_url.as_ref());
        let owner = maintenance.map(|url| changes::parse_url(url.expose())).transpose().map_err(unusable)?;
        let owner = owner.map(maintenance::Owner::new);
        let limits = &config.limits;
        let rates = Arc::new(Rates::new(
            limits.max_joins_per_second,
            limits.max_events_per_second,
            limits.max_presence_events_per_second,
        ));
        tokio::spawn(rates::run(Arc::clone(&rates), shutdown.clone()));
        let (sender, receiver) = changes::channel();
        let access = access::Access::new(authenticator.clone(), owner.clone());
        let (shards, threads) = Shards::start(hub_configs(&config, &rates), &verifier, &sender, &access)
            .map_err(StartError::EventLoop)?;
        // The change stream outlives the sockets: it takes their last commands.
        let stop_changes = CancellationToken::new();
        let started = changes::start(
            &config,
            receiver,
            shards.clone(),
            authenticator.as_ref(),
            owner.clone(),
            Arc::clone(&rates),
            stop_changes.clone(),
        );
        let (status, changes) = started.map_err(|error| {
            shards.stop();
            unusable(error)
        })?;
        if let Some(owner) = owner {
            tokio::spawn(owner.run(shutdown.clone()));
        }
        let app =
            http::App::new(Arc::new(config), tokens, shards.clone(), status.clone(), authenticator, rates);
        let http = tokio::spawn(http::serve(app, listener, shutdown.clone()));
        tracing::info!(%address, shards = shards.count(), "listening");
        Ok(Self { address, shards, threads, http, changes, status, shutdown, stop_changes, grace })
    }

    /// The address really bound.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Resolves when the change stream is live, or after its first failure: what the database looks like
    /// is known then.
    pub async fn database_settled(&self) -> ChangeStatus {
        let mut status = self.status.clone();
        match status.wait_for(|status| *status != ChangeStatus::Connecting).await {
            Ok(status) => status.clone(),
            Err(_) => ChangeStatus::Off,
        }
    }

    /// Waits until the server has ended after `shutdown` was cancelled: no new connections, clients told
    /// to come back elsewhere (1012), outboxes flushed, the last position confirmed. The grace period
    /// ends all argument.
    pub async fn finished(self) {
        self.shutdown.cancelled().await;
        tracing::info!(grace_ms = self.grace.as_millis() as u64, "shutting down");
        self.shards.drain(Drain::Refuse);
        self.shards.drain(Drain::Close);
        self.shards.stop();
        let threads = self.threads;
        let ended = tokio::task::spawn_blocking(move || threads.join());
        let orderly = async {
            if ended.await.is_err() {
                tracing::error!("waiting for the shards failed");
            }
            if self.http.await.is_err() {
                tracing::error!("the http task failed");
            }
            self.stop_changes.cancel();
            if self.changes.await.is_err() {
                tracing::error!("the change task failed");
            }
        };
        if tokio::time::timeout(self.grace, orderly).await.is_err() {
            tracing::warn!("the grace period is over; ending all the same");
            self.stop_changes.cancel();
        }
    }
}

fn hub_configs(config: &ServerConfig, rates: &Arc<Rates>) -> Vec<HubConfig> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let hubs = if config.shards == 0 { cores.min(64) } else { config.shards } as u16;
    let mut seed = [0_u8; 8];
    if let Err(error) = getrandom::fill(&mut seed) {
        // Names only have to be unique; the process id and hub number still tell most things apart.
        tracing::warn!(%error, "no random seed");
    }
    let (limits, timers) = (&config.limits, &config.timers);
    (0..hubs)
        .map(|hub| HubConfig {
            hub,
            hubs,
            seed: u64::from_le_bytes(seed).wrapping_add(u64::from(hub).wrapping_mul(0x9E37_79B9_7F4A_7C15)),
            max_channels: limits.max_channels_per_client,
            max_bindings: limits.max_bindings_per_channel,
            max_message_bytes: limits.max_frame_bytes,
            max_outbox_bytes: limits.max_outbox_bytes,
            max_payload_bytes: limits.max_payload_bytes,
            rates: Arc::clone(rates),
            presence_calls: limits.presence_calls,
            presence_window_ms: limits.presence_window_ms,
            idle_timeout_ms: timers.idle_timeout_ms,
            no_channel_timeout_ms: timers.no_channel_timeout_ms,
            join_error_backoff_ms: timers.channel_error_backoff_ms,
            token_check_ms: timers.token_check_ms,
        })
        .collect()
}
