//! A server in this process, on a free port, with short timers.

use std::net::{Ipv4Addr, SocketAddr};

use tidewire_server::config::{DatabaseConfig, Limits, Secret, TenantConfig, Timers};
use tidewire_server::{ChangeStatus, Server, ServerConfig};
use tokio_util::sync::CancellationToken;

use crate::client::{Client, Version};
use crate::{Postgres, eventually, token};

/// Settings for tests: the protocol's limits, but nobody waits for a backoff.
#[must_use]
pub fn config(database: Option<DatabaseConfig>) -> ServerConfig {
    ServerConfig {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        shards: 2,
        tenant: TenantConfig { jwt_secret: Secret::new(token::SECRET), ..TenantConfig::default() },
        database,
        limits: Limits::default(),
        timers: Timers {
            connect_error_backoff_ms: 10,
            channel_error_backoff_ms: 10,
            resubscribe_ms: 200,
            shutdown_grace_ms: 5_000,
            ..Timers::default()
        },
        ..ServerConfig::default()
    }
}

/// A running server. End it with [`TestServer::stop`].
#[derive(Debug)]
pub struct TestServer {
    server: Server,
    shutdown: CancellationToken,
}

impl TestServer {
    /// A server of this database.
    pub async fn start(postgres: &Postgres) -> Self {
        Self::start_with(config(Some(postgres.logins()))).await
    }

    /// A server of this database whose change stream runs.
    pub async fn start_live(postgres: &Postgres) -> Self {
        let server = Self::start(postgres).await;
        server.wait_live().await;
        server
    }

    /// A server with these settings.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn start_with(config: ServerConfig) -> Self {
        crate::show_logs();
        let shutdown = CancellationToken::new();
        let server = Server::start(config, shutdown.clone()).await.expect("the server starts");
        Self { server, shutdown }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.server.local_addr()
    }

    /// The change stream as it is now; waits for the end of the first attempt to open it.
    pub async fn status(&self) -> ChangeStatus {
        self.server.database_settled().await
    }

    /// Waits until changes flow.
    pub async fn wait_live(&self) {
        self.wait_status("a change stream", |status| *status == ChangeStatus::Live).await;
    }

    /// Waits until the change stream is down with this code.
    pub async fn wait_down(&self, code: &str) {
        let is_down = |status: &ChangeStatus| matches!(status, ChangeStatus::Down { code: found, .. } if *found == code);
        self.wait_status(code, is_down).await;
    }

    async fn wait_status(&self, what: &str, wanted: impl Fn(&ChangeStatus) -> bool) {
        eventually(what, || async {
            let status = self.server.database_settled().await;
            wanted(&status).then_some(())
        })
        .await;
    }

    /// A V2 client with a token of this role.
    pub async fn client(&self, role: &str) -> Client {
        Client::connect(self.address(), &token::of_role(role), Version::V2).await
    }

    /// A V2 client of a signed-in user.
    pub async fn user(&self, sub: &str) -> Client {
        Client::connect(self.address(), &token::of_user(sub), Version::V2).await
    }

    /// Begins the orderly end without waiting for it.
    pub fn begin_shutdown(&self) {
        self.shutdown.cancel();
    }

    /// Ends it and waits until it has ended.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.server.finished().await;
    }
}
